"""What a remembered batch token was found right by: its siblings are judged as if it were not remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from mqauth.errors import Reason, Rejection
from mqauth.judging.verifier import Verifier
from mqauth.testing import FakeClock, Forge
from mqauth.wire.keys import KeySet, Revocation
from mqauth.wire.message import Message

Maker = Callable[..., Message]
LATER = 100


def reason(verifier: Verifier, message: Message, keys: KeySet, received: float) -> Reason | None:
    """Return why a message is refused, ``None`` where it is not."""
    try:
        candidate = verifier.open(message)
        verifier.verify(message, candidate, keys, received)
        if not candidate.learnt:
            verifier.learn(candidate)
    except Rejection as rejection:
        return rejection.reason
    return None


@pytest.fixture
def siblings(forge: Forge, kafka: Maker) -> list[Message]:
    """Two messages of one batch."""
    return forge.signer().sign_many([kafka(), kafka(body=b"other")])


def test_a_key_is_revoked_between_siblings(forge: Forge, clock: FakeClock, siblings: list[Message]) -> None:
    """A revocation that is in the key set all along counts from its moment on, also for a remembered token."""
    moment = int(clock.now()) + 10
    keys = KeySet([replace(forge.key, revocation=Revocation(revoked_at=moment))])
    verifier = forge.verifier()
    assert reason(verifier, siblings[0], keys, clock.now()) is None
    assert reason(verifier, siblings[1], keys, moment - 0.001) is None
    assert reason(verifier, siblings[1], keys, moment) is Reason.KEY_REVOKED


def test_a_clock_that_steps_back_is_judged_anew(forge: Forge, clock: FakeClock, siblings: list[Message]) -> None:
    """A sibling received before the token was issued is of the future, whatever its sibling was."""
    verifier, keys = forge.verifier(), forge.keys
    assert reason(verifier, siblings[0], keys, clock.now()) is None
    assert reason(verifier, siblings[1], keys, clock.now() - LATER) is Reason.ISSUED_IN_FUTURE
