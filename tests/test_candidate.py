"""What is remembered of a batch token: bounded, nothing of forgeries, and asked again of key, clock and claims."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mqauth.errors import Reason, Rejection
from mqauth.judging.verifier import Verifier
from mqauth.testing import FakeClock, Forge
from mqauth.testing.batchforge import ForgedBatch, forge_batch
from mqauth.testing.forge import NEIGHBOUR
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import jws
from mqauth.wire.keys import Key, KeySet, Revocation
from mqauth.wire.message import Message

KAFKA, RABBITMQ = "kafka:orders", "rabbitmq:shop/orders.created"


def batch_of(forge: Forge, size: int = 4, place: str = KAFKA, **bends: Any) -> ForgedBatch:
    """Return a batch whose messages all differ."""
    return forge_batch(forge, [honest_message(place, number) for number in range(size)], **bends)


def judge(verifier: Verifier, message: Message, keys: KeySet, received: float) -> Reason | None:
    """Return why a message is rejected, ``None`` where it is accepted."""
    try:
        candidate = verifier.open(message)
        verifier.verify(message, candidate, keys, received)
        if not candidate.learnt:
            verifier.learn(candidate)
    except Rejection as rejection:
        return rejection.reason
    return None


class Checks:
    """Counts the signatures that are checked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._verify = jws.verify
        monkeypatch.setattr(jws, "verify", self)

    def __call__(self, opened: jws.Opened, key: Key) -> None:
        self.count += 1
        self._verify(opened, key)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Checks:
    """A counter of signature checks."""
    return Checks(monkeypatch)


# --- what gets in -----------------------------------------------------------------------------------------


def test_a_flood_of_forgeries_leaves_no_trace(forge: Forge, clock: FakeClock, checks: Checks) -> None:
    """However many distinct tokens are forged, none is remembered, and the good one needs no second check."""
    verifier, keys, good = forge.verifier(), forge.keys, batch_of(forge, 8)
    assert judge(verifier, good.seal(0), keys, clock.now()) is None
    bends: list[dict[str, Any]] = [
        {"key": forge.stranger, "header": {"kid": forge.key.kid}}, {"key": forge.stranger}, {"key": forge.revoked},
        {"key": forge.retired}, {"signature": b"x" * 64}, {"header": {"alg": "ES256"}},
    ]  # fmt: skip
    said = {judge(verifier, batch_of(forge, 2, **bends[number % len(bends)]).seal(0), keys, clock.now())
            for number in range(300)}  # fmt: skip
    assert said == {Reason.SIGNATURE_INVALID, Reason.KEY_UNKNOWN, Reason.KEY_REVOKED, Reason.KEY_EXPIRED,
                    Reason.ALGORITHM_FORBIDDEN}  # fmt: skip
    before = checks.count
    assert [judge(verifier, good.seal(index), keys, clock.now()) for index in range(8)] == [None] * 8
    assert checks.count == before
    assert len(verifier.tokens) == 1


def test_a_flood_of_old_tokens_leaves_no_trace(forge: Forge, clock: FakeClock, checks: Checks) -> None:
    """Captured batches whose signatures hold are expired, and push no living one out."""
    verifier, keys, now, good = forge.verifier(), forge.keys, int(clock.now()), batch_of(forge, 8)
    assert judge(verifier, good.seal(0), keys, now) is None
    held = verifier.tokens._held
    for number in range(20):
        old = batch_of(forge, 8, claims={"iat": now - 600 - number, "exp": now - 500})
        assert judge(verifier, old.seal(0), keys, now) is Reason.EXPIRED
    before = checks.count
    assert judge(verifier, good.seal(1), keys, now) is None
    assert (checks.count, verifier.tokens._held, len(verifier.tokens)) == (before, held, 1)


def test_memory_of_a_verifier_is_bounded(forge: Forge, clock: FakeClock, checks: Checks) -> None:
    """Honest batches beyond the capacity make it forget the others, whose siblings are still accepted."""
    verifier = forge.verifier()
    batches = [batch_of(forge) for _ in range(20)]
    verifier.tokens._capacity = 10 * verifier.open(batches[0].seal(0)).token.size
    for found in batches:
        assert judge(verifier, found.seal(0), forge.keys, clock.now()) is None
    assert 0 < len(verifier.tokens) <= 10
    assert verifier.tokens._held <= verifier.tokens._capacity
    before = checks.count
    assert [judge(verifier, found.seal(1), forge.keys, clock.now()) for found in batches] == [None] * 20
    assert checks.count > before


# --- what is asked again ----------------------------------------------------------------------------------


def test_the_key_set_of_now_decides(forge: Forge, clock: FakeClock, checks: Checks) -> None:
    """Between siblings a key is revoked, removed, retired, replaced under its kid, and put back."""
    verifier, found, now = forge.verifier(), batch_of(forge), clock.now()
    other = replace(Key.generate(subjects=["orders-api"]), kid=forge.key.kid)
    elliptic = replace(Key.generate("ES256", subjects=["orders-api"]), kid=forge.key.kid)
    changes: list[tuple[list[Key], Reason | None]] = [
        ([forge.key], None),
        ([replace(forge.key, revocation=Revocation(reason="stolen"))], Reason.KEY_REVOKED),
        ([forge.key], None),
        ([], Reason.KEY_UNKNOWN),
        ([replace(forge.key, expires=int(now))], Reason.KEY_EXPIRED),
        ([other], Reason.SIGNATURE_INVALID),
        ([elliptic], Reason.ALGORITHM_FORBIDDEN),
        ([replace(forge.key, subjects=frozenset([NEIGHBOUR]))], Reason.SUBJECT_MISMATCH),
        ([forge.key], None),
    ]
    for number, (keys, reason) in enumerate(changes):
        assert judge(verifier, found.seal(number % 4), KeySet(keys), now) is reason
    assert checks.count >= 3


@pytest.mark.parametrize(
    ("offset", "reason"),
    [(64, None), (65, Reason.EXPIRED), (-5, None), (-6, Reason.ISSUED_IN_FUTURE), (1e6, Reason.EXPIRED)],
)
def test_the_clock_of_now_decides(offset: float, reason: Reason | None, forge: Forge, clock: FakeClock) -> None:
    """A sibling that comes later, or before the clock was set back, is judged by its own moment."""
    keys = forge.keys
    verifier, found, now = forge.verifier(), batch_of(forge), int(clock.now())
    assert judge(verifier, found.seal(0), keys, now) is None
    assert judge(verifier, found.seal(1), keys, now + offset) is reason
    assert judge(verifier, found.seal(2), keys, now) is None


@pytest.mark.parametrize(
    ("claims", "reason"),
    [({"aud": "shipping"}, Reason.AUDIENCE_MISMATCH), ({"sub": NEIGHBOUR}, Reason.SUBJECT_MISMATCH),
     ({"exp": 2**52}, Reason.LIFETIME_EXCESSIVE)],
)  # fmt: skip
def test_a_good_signature_excuses_nothing(
    claims: dict[str, Any], reason: Reason, forge: Forge, clock: FakeClock
) -> None:
    """Audience, subject and lifetime are refused for every sibling, the first and the ones after it."""
    keys = forge.keys
    verifier, found = forge.verifier(), batch_of(forge, claims=claims)
    assert [judge(verifier, found.seal(index), keys, clock.now()) for index in range(4)] == [reason] * 4
