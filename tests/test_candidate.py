"""What is remembered of a batch token: bounded, nothing of forgeries, and asked again of key, clock and claims."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mqauth import Message, Reason, Rejection, Verifier
from mqauth.testing import FakeClock, Forge
from mqauth.testing.batchforge import ForgedBatch, forge_batch
from mqauth.testing.forge import AUDIENCE
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import jws
from mqauth.wire.keys import Key, KeySet, Revocation

KAFKA, RABBITMQ = "kafka:orders", "rabbitmq:shop/orders.created"


def batch_of(
    forge: Forge, size: int = 4, place: str = KAFKA, **bends: Any
) -> ForgedBatch:
    """Return a batch whose messages all differ."""
    return forge_batch(
        forge, [honest_message(place, number) for number in range(size)], **bends
    )


def judge(
    verifier: Verifier, message: Message, keys: KeySet, received: float
) -> Reason | None:
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


def test_one_signature_is_checked_for_a_batch(
    forge: Forge, clock: FakeClock, checks: Checks
) -> None:
    """Siblings need a proof and no signature; another batch needs its own."""
    verifier, keys = forge.verifier(), forge.keys
    first, second = batch_of(forge), batch_of(forge)
    for found in (first, first, second):
        assert [
            judge(verifier, found.seal(index), keys, clock.now()) for index in range(4)
        ] == [None] * 4
    assert checks.count == 2


def test_a_single_token_is_not_remembered(
    forge: Forge, clock: FakeClock, checks: Checks
) -> None:
    """Every copy of a single token has its signature checked."""
    verifier, sealed = forge.verifier(), forge.seal(honest_message(KAFKA))
    assert [judge(verifier, sealed, forge.keys, clock.now()) for _ in range(3)] == [
        None
    ] * 3
    assert checks.count == 3


def test_a_flood_of_forgeries_leaves_no_trace(
    forge: Forge, clock: FakeClock, checks: Checks
) -> None:
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
    assert [
        judge(verifier, good.seal(index), keys, clock.now()) for index in range(8)
    ] == [None] * 8
    assert checks.count == before
    assert len(verifier.tokens) == 1


def test_a_flood_of_old_tokens_leaves_no_trace(
    forge: Forge, clock: FakeClock, checks: Checks
) -> None:
    """Captured batches whose signatures hold are expired, and push no living one out."""
    verifier, keys, now, good = (
        forge.verifier(),
        forge.keys,
        int(clock.now()),
        batch_of(forge, 8),
    )
    assert judge(verifier, good.seal(0), keys, now) is None
    held = verifier.tokens._held
    for number in range(20):
        old = batch_of(forge, 8, claims={"iat": now - 600 - number, "exp": now - 500})
        assert judge(verifier, old.seal(0), keys, now) is Reason.EXPIRED
    before = checks.count
    assert judge(verifier, good.seal(1), keys, now) is None
    assert (checks.count, verifier.tokens._held, len(verifier.tokens)) == (
        before,
        held,
        1,
    )


def test_memory_of_a_verifier_is_bounded(
    forge: Forge, clock: FakeClock, checks: Checks
) -> None:
    """Honest batches beyond the capacity make it forget the others, whose siblings are still accepted."""
    verifier = forge.verifier()
    batches = [batch_of(forge) for _ in range(20)]
    verifier.tokens._capacity = 10 * verifier.open(batches[0].seal(0)).token.size
    for found in batches:
        assert judge(verifier, found.seal(0), forge.keys, clock.now()) is None
    assert 0 < len(verifier.tokens) <= 10
    assert verifier.tokens._held <= verifier.tokens._capacity
    before = checks.count
    assert [
        judge(verifier, found.seal(1), forge.keys, clock.now()) for found in batches
    ] == [None] * 20
    assert checks.count > before


# --- what is asked again ----------------------------------------------------------------------------------


def test_an_equal_key_of_a_new_set_is_checked_once(
    forge: Forge, clock: FakeClock, checks: Checks
) -> None:
    """A set loaded anew brings new objects: the signature is checked again for the first sibling only."""
    verifier, found = forge.verifier(), batch_of(forge)
    for keys in (KeySet([forge.key]), KeySet([replace(forge.key)])):
        assert [
            judge(verifier, found.seal(index), keys, clock.now()) for index in range(4)
        ] == [None] * 4
    assert checks.count == 2


def test_not_yet_valid_comes_to_be_valid(forge: Forge, clock: FakeClock) -> None:
    """A batch refused as too early is accepted at its time."""
    now = int(clock.now())
    keys = forge.keys
    verifier, found = forge.verifier(), batch_of(forge, claims={"nbf": now + 20})
    assert judge(verifier, found.seal(0), keys, now) is Reason.NOT_YET_VALID
    assert judge(verifier, found.seal(0), keys, now + 20) is None
    assert judge(verifier, found.seal(1), keys, now) is Reason.NOT_YET_VALID


def appended(message: Message, moment: float) -> Message:
    """Return a message with the broker's word on when it was appended."""
    origin = replace(
        message.origin, timestamp_ms=int(moment * 1000), timestamp_type="append"
    )
    return replace(message, origin=origin)


def test_with_append_time_each_sibling_has_its_own_moment(
    forge: Forge, clock: FakeClock
) -> None:
    """Siblings of one batch were appended at different times: life, age and revocation are each one's own."""
    now = int(clock.now())
    verifier, found = forge.verifier(at="append", max_queue_age=600), batch_of(forge)
    revoked, keys = (
        KeySet([replace(forge.key, revocation=Revocation(revoked_at=now + 30))]),
        forge.keys,
    )
    for moment, reason in (
        (now, None), (now + 65, Reason.EXPIRED), (now + 29, None), (now - 6, Reason.ISSUED_IN_FUTURE),
        (now + 64, None),
    ):  # fmt: skip
        assert judge(verifier, appended(found.seal(1), moment), keys, now + 100) is reason
    assert (
        judge(verifier, appended(found.seal(2), now), keys, now + 601)
        is Reason.QUEUE_AGE_EXCEEDED
    )
    for moment, reason in ((now + 29, None), (now + 30, Reason.KEY_REVOKED), (now, None)):
        assert (
            judge(verifier, appended(found.seal(3), moment), revoked, now + 100) is reason
        )


def test_two_verifiers_share_nothing(forge: Forge, clock: FakeClock) -> None:
    """What one consumer accepts another judges by its own audience and keys."""
    found = batch_of(forge)
    other = forge.verifier(audience="shipping")
    for index in range(2):
        assert (
            judge(
                forge.verifier(audience=AUDIENCE),
                found.seal(index),
                forge.keys,
                clock.now(),
            )
            is None
        )
        assert (
            judge(other, found.seal(index), forge.keys, clock.now())
            is Reason.AUDIENCE_MISMATCH
        )
        assert (
            judge(other, found.seal(index), KeySet([]), clock.now()) is Reason.KEY_UNKNOWN
        )
