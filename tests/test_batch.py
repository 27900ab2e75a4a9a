"""Batch tokens: every message of a batch is judged by itself, whatever became of the others."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from mqauth.audit.redaction import redact
from mqauth.errors import Reason, Rejection
from mqauth.flow import run
from mqauth.judging.pipeline import Outcome, Pipeline, Verdict
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Verifier
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import ATTACKS, BATCH_ATTACKS, BatchForge, FakeClock, Forge
from mqauth.testing.batchforge import ForgedBatch, forge_batch
from mqauth.testing.token_attacks import changed_header, honest_message
from mqauth.wire.message import Message, Origin
from tests.conftest import together

ReasonOf = Callable[[Callable[[], object]], Reason]
PLACES = ("kafka:orders", "rabbitmq:shop/orders.created")
CLOCK = FakeClock()
FORGE = Forge(CLOCK)


def judged(
    verifier: Verifier, message: Message, received: float | None = None
) -> Verified:
    """Open and verify a message."""
    candidate = verifier.open(message)
    keys = verifier.issuer(candidate.token).keys.key_set()
    return verifier.verify(
        message, candidate, keys, CLOCK.now() if received is None else received
    )


def verdict(verifier: Verifier, message: Message) -> Reason | int | None:
    """Return why a message is rejected, or its index."""
    try:
        return judged(verifier, message).index
    except Rejection as rejection:
        return rejection.reason


# --- attacks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("attack", "place"),
    [(attack, place) for attack in (*ATTACKS, *BATCH_ATTACKS) for place in PLACES
     if attack.fits(place) and attack.reason is not Reason.PRODUCER_FORBIDDEN],
    ids=lambda value: getattr(value, "name", value),
)  # fmt: skip
def test_each_attack_meets_its_reason(
    attack: Any, place: str, clock: FakeClock, reason_of: ReasonOf
) -> None:
    """Every attack of the single form passes unchanged in batch mode, and those on batches beside them."""
    forge = BatchForge(clock)
    hostile = attack.mount(forge, honest_message(place))
    verifier = forge.verifier()
    assert reason_of(lambda: judged(verifier, hostile, clock.now())) is attack.reason


def test_attack_names_are_stable_and_unique() -> None:
    """An attack is named once over both suites, so that tables and vectors can name it."""
    names = [(attack.name, attack.scheme) for attack in (*ATTACKS, *BATCH_ATTACKS)]
    assert len(set(names)) == len(names)


# --- each by itself ---------------------------------------------------------------------------------------


def batch_of(size: int, place: str = "kafka:orders") -> ForgedBatch:
    """Return an honest batch whose messages all differ."""
    return forge_batch(FORGE, [honest_message(place, number) for number in range(size)])


BATCHES = [batch_of(size, place) for size in (1, 2, 3, 5, 8) for place in PLACES]
OTHERS = {
    id(found): batch_of(len(found.messages), found.messages[0].destination)
    for found in BATCHES
}


def _bit(raw: bytes, at: int) -> bytes:
    """Return bytes with a bit changed, where there are any."""
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at:][1:] if raw else raw


def _path(found: ForgedBatch, index: int, path: bytes) -> Message:
    """Return a message with another path."""
    return found.seal(index, proof=found.proof(index, path=path))


BENDS: dict[str, Callable[[ForgedBatch, int, int], Message]] = {
    "honest": lambda b, i, j: b.seal(i),
    "honest again": lambda b, i, j: b.seal(i),
    "other shorts": lambda b, i, j: b.seal(i, proof=b.proof(i, shorts=bytes(12))),
    "edited body": lambda b, i, j: b.seal(i, replace(b.messages[i], body=b"evil")),
    "edited header": lambda b, i, j: b.seal(i, changed_header(b.messages[i], "evil")),
    "rerouted": lambda b, i, j: replace(
        b.seal(i), destination=b.messages[i].destination + "2"
    ),
    "head of path": lambda b, i, j: _path(b, i, _bit(b.tree.paths()[i], 0)),
    "tail of path": lambda b, i, j: _path(
        b, i, _bit(b.tree.paths()[i], len(b.tree.paths()[i]) - 1)
    ),
    "middle of path": lambda b, i, j: _path(
        b, i, _bit(b.tree.paths()[i], len(b.tree.paths()[i]) // 2)
    ),
    "path of another": lambda b, i, j: _path(b, i, b.tree.paths()[j]),
    "number of another": lambda b, i, j: b.seal(i, number=str(j)),
    "header of another": lambda b, i, j: b.seal(j, b.messages[i]),
    "path of another tree": lambda b, i, j: _path(b, i, OTHERS[id(b)].tree.paths()[i]),
    "path too long": lambda b, i, j: _path(b, i, b.tree.paths()[i] + bytes(32)),
    "no proof": lambda b, i, j: b.seal(i, number="", proof=""),
    "token of another batch": lambda b, i, j: OTHERS[id(b)].seal(i, b.messages[j]),
    "bent signature": lambda b, i, j: replace(b, jws=b.jws[:-4] + "AAAA").seal(i),
    "bent payload": lambda b, i, j: replace(b, jws=b.jws.replace(".", ".A", 1)).seal(i),
}


def test_threads_share_a_verifier() -> None:
    """Siblings, honest and forged, judged by several threads at once get the verdicts they get alone."""
    found, verifier, said = batch_of(8), FORGE.verifier(), set()
    kinds = sorted(BENDS)

    def judge(shift: int) -> None:
        for number in range(len(kinds) * 4):
            kind, index = kinds[(number + shift) % len(kinds)], number % 8
            said.add(
                (kind, index, verdict(verifier, BENDS[kind](found, index, 7 - index)))
            )

    OTHERS[id(found)] = batch_of(8)
    together(judge, range(4))
    assert all(answer == verdict(FORGE.verifier(), BENDS[kind](found, index, 7 - index))
               for kind, index, answer in said)  # fmt: skip


# --- what a leaf covers -----------------------------------------------------------------------------------


def test_only_covered_headers_are_shown_and_required_ones_must_be(
    reason_of: ReasonOf,
) -> None:
    """Coverage is the batch's list: what is not on it is hidden, or refused."""
    found = forge_batch(
        FORGE, [honest_message("kafka:orders", number) for number in range(3)], cover=[]
    )
    assert judged(FORGE.verifier(), found.seal(1)).headers == ()
    for settings in ({"require_headers": ["tenant"]}, {"unsigned_headers": "reject"}):
        strict = FORGE.verifier(**settings)
        assert (
            reason_of(lambda v=strict: judged(v, found.seal(1)))
            is Reason.COVERAGE_INSUFFICIENT
        )


# --- once each --------------------------------------------------------------------------------------------


def guard(store: MemoryReplayStore | None = None, **settings: Any) -> Pipeline:
    """Return a consumer of this forge."""
    wanted: dict[str, Any] = {
        "verifier": FORGE.verifier(), "policy": FORGE.policy(*PLACES), "clock": CLOCK,
        "replay": MemoryReplayStore(clock=CLOCK) if store is None else store,
    }  # fmt: skip
    return Pipeline(**(wanted | settings))


def consume(pipeline: Pipeline, message: Message) -> Outcome:
    """Judge a message and confirm it where it was accepted."""
    delivery = pipeline.receive(message)
    outcome = run(pipeline.judge(delivery))
    if outcome.verdict is Verdict.ACCEPTED:
        run(pipeline.confirm(delivery))
    return outcome


def at(message: Message, offset: int) -> Message:
    """Return a record at an offset."""
    return replace(message, origin=Origin(topic="orders", partition=0, offset=offset))


def test_on_kafka_the_same_record_again_is_a_reread() -> None:
    """Coordinates tell a redelivered sibling from a copy, each by itself."""
    found, pipeline = batch_of(3), guard(reread="duplicate")
    assert [
        consume(pipeline, at(found.seal(index), index)).verdict for index in (0, 1)
    ] == [Verdict.ACCEPTED] * 2
    assert consume(pipeline, at(found.seal(1), 1)).verdict is Verdict.DUPLICATE
    assert consume(pipeline, at(found.seal(2), 2)).verdict is Verdict.ACCEPTED
    assert consume(pipeline, at(found.seal(0), 7)).reason is Reason.REPLAYED


def test_a_log_shows_neither_token_nor_proof() -> None:
    """What client libraries log of a batch's header is replaced whole."""
    record = logging.LogRecord(
        "kafka", logging.DEBUG, "x", 1, "headers: [%s, 1]", (batch_of(3).header(1),), None
    )
    redact(record)
    assert record.getMessage() == "headers: [<token>, 1]"
