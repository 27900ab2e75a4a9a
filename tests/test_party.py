"""Whose fault an outage of keys is: the outcome names the issuer or the release authority, and no other party."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mqauth.errors import Cause, Reason, Unavailable
from mqauth.judging.pipeline import Verdict
from mqauth.letters.authorities import Authority, ReleaseAuthorities, Releaser
from mqauth.testing import FakeClock, Forge
from mqauth.wire.keys import Key, KeySet
from tests.conftest import World

REVIEW = "https://review.example"
MakeWorld = Callable[..., World]


class Away:
    """Keys that are out of reach."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def key_set(self) -> KeySet:
        """Have no keys."""
        raise Unavailable(Cause.KEYS_UNAVAILABLE)

    def refresh(self, kid: str, received: float, /) -> KeySet:
        """Fail."""
        raise self._error


class Counting(Away):
    """Keys that are out of reach, and how often somebody asked for them."""

    def __init__(self) -> None:
        super().__init__(OSError("down"))
        self.asked = 0

    def key_set(self) -> KeySet:
        """Count, and have none."""
        self.asked += 1
        return super().key_set()


UNSIGNED: list[tuple[dict[str, Any], Reason]] = [
    ({"signature": b"x"}, Reason.SIGNATURE_INVALID),
    ({"claims": {"iss": "https://evil.example"}}, Reason.ISSUER_UNTRUSTED),
    ({"header": {"kid": "nobody"}}, Reason.KEY_UNKNOWN),
    ({"header": {"alg": "ES256"}}, Reason.ALGORITHM_FORBIDDEN),
]


@pytest.mark.parametrize(("bends", "reason"), UNSIGNED)
def test_without_a_good_token_no_authority_is_asked(
    make_world: MakeWorld, clock: FakeClock, forge: Forge, bends: dict[str, Any], reason: Reason
) -> None:
    """A message that no producer signed is rejected while the authority is out of reach, which nobody asks."""
    away = Counting()
    world = make_world(verifier=forge.verifier(release=ReleaseAuthorities({REVIEW: Authority(keys=away)})))
    releaser = Releaser(key=Key.generate(), issuer=REVIEW, reviewer="ada", clock=clock)
    message, _ = releaser.release(world.sealed(**bends), letter="0" * 64, scope="orders", reason="hostile")
    outcome = world.process(message)
    assert (outcome.verdict, outcome.reason, away.asked) == (Verdict.REJECTED, reason, 0)


@pytest.mark.parametrize("plug", ["policy.decide", "store.claim", "store.confirm"])
def test_what_is_everybodys_names_nobody(world: World, plug: str) -> None:
    """An outage of policy or store is no party's."""
    owner, name = plug.split(".")
    getattr(getattr(world, owner), name).failure = OSError("down")
    assert world.process(world.sealed()).party is None
