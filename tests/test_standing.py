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


def test_a_sibling_expires_on_its_own(forge: Forge, clock: FakeClock, siblings: list[Message]) -> None:
    """A sibling that comes after the expiry and its leeway is expired, one that comes just before is not."""
    verifier, keys = forge.verifier(leeway=5), forge.keys
    end = int(clock.now()) + forge.lifetime + 5
    assert reason(verifier, siblings[0], keys, clock.now()) is None
    assert reason(verifier, siblings[1], keys, end - 0.001) is None
    assert reason(verifier, siblings[1], keys, end) is Reason.EXPIRED


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


def test_another_key_set_is_asked_again(forge: Forge, clock: FakeClock, siblings: list[Message]) -> None:
    """What one key set said is not believed of the next."""
    verifier = forge.verifier()
    assert reason(verifier, siblings[0], forge.keys, clock.now()) is None
    assert reason(verifier, siblings[1], KeySet([forge.neighbour]), clock.now()) is Reason.KEY_UNKNOWN


def test_append_time_is_judged_for_each_message(forge: Forge, clock: FakeClock, siblings: list[Message]) -> None:
    """With ``at="append"`` one sibling's time in the log says nothing of another's."""
    verifier, keys, now = forge.verifier(at="append", max_queue_age=3600), forge.keys, clock.now()

    def appended(message: Message, at: float) -> Message:
        origin = replace(message.origin, timestamp_ms=int(at * 1000), timestamp_type="append")
        return replace(message, origin=origin)

    assert reason(verifier, appended(siblings[0], now), keys, now) is None
    assert reason(verifier, appended(siblings[1], now + 1000), keys, now + 1000) is Reason.EXPIRED
    assert reason(verifier, appended(siblings[1], now + 1000), keys, now) is Reason.EXPIRED


def test_the_brokers_user_is_asked_of_each_message(forge: Forge, clock: FakeClock, rabbit: Maker) -> None:
    """With ``user_id`` set, a sibling published by another user is refused."""
    one, two = forge.signer().sign_many([rabbit(), rabbit(body=b"other")])
    verifier, keys = forge.verifier(user_id="subject"), forge.keys
    forwarded = replace(one, properties={**one.properties, "user-id": "mallory"})
    assert reason(verifier, two, keys, clock.now()) is None
    assert reason(verifier, forwarded, keys, clock.now()) is Reason.SUBJECT_MISMATCH
