"""The delivery contract is not blind: each mistake in the engine or in Kafka's leaf fails one of its tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mqauth.audit.file import AuditFile
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.partition import Backoff, Partition
from mqauth.errors import Unavailable
from mqauth.testing import delivery_contract
from mqauth.testing.delivery_contract import LogDeliveryContract, LogPlay
from tests.log_broker import Confirmed, MemoryLogStage, kafka_repair
from tests.log_broker import kafka as leaf

DeadLetters: Any = leaf.DeadLetters
CONTRACT = LogDeliveryContract


@dataclass(frozen=True)
class Mutant:
    """A mistake: what it replaces, by what, and the test of the contract that finds it."""

    name: str
    owner: Any
    attribute: str
    mutation: Callable[[Any], Any]
    test: Callable[..., Any]


def received_as_settled(_: Any) -> Any:
    """Commit what was received."""
    return property(lambda partition: None if partition.last is None else partition.last + 1)


def settled_at_once(_: Any) -> Any:
    """Take what was put off for settled."""
    return lambda assignment, partition, outcome: (partition.settle(), True)[1]


def skipping(original: Any) -> Any:
    """Go on with what stands behind a deferred record, and come back to that later."""

    def attempted(assignment: Assignment, partition: Partition, outcome: Any) -> bool:
        if outcome.cause is None or len(partition.waiting) == 1:
            return bool(original(assignment, partition, outcome))
        partition.waiting.rotate(-1)
        return True

    return attempted


def swallowing(original: Any) -> Any:
    """Drop a letter while its sink is down."""

    def publish(sink: Any, letter: Any) -> None:
        try:
            original(sink, letter)
        except Unavailable:
            return

    return publish


def unwaited(_: Any) -> Any:
    """Send a record without waiting for its confirm."""

    def send(records: Any, _name: str, **record: Any) -> None:
        records._client.send(records._topic, **record)

    return send


def unmarked(original: Any) -> Any:
    """Choose a partition without marking it."""

    def choose(assignment: Assignment) -> Partition | None:
        partition: Partition | None = original(assignment)
        if partition is not None:
            partition.running = False
        return partition

    return choose


def without(name: str, empty: Any) -> Callable[[Any], Any]:
    """Return what leaves one wish out."""
    return lambda original: lambda *args: replace(original(*args), **{name: empty})


def returning(value: Any) -> Callable[[Any], Any]:
    """Return what always returns a value."""
    return lambda _: lambda *_args, **_kwargs: value


MUTANTS = (
    Mutant("commits received, not settled", Partition, "settled", received_as_settled,
           CONTRACT.test_a_commit_covers_what_is_settled),
    Mutant("letter not confirmed", Confirmed, "send", unwaited, CONTRACT.test_a_letter_is_confirmed),
    Mutant("letter dropped while the sink is down", DeadLetters, "publish", swallowing,
           CONTRACT.test_a_letter_is_confirmed),
    Mutant("deferred treated as settled", Assignment, "attempted", settled_at_once,
           CONTRACT.test_what_is_put_off_is_not_settled),
    Mutant("skips behind a deferral", Assignment, "attempted", skipping, CONTRACT.test_nothing_overtakes),
    Mutant("forgets what stands behind a deferral", Assignment, "client_calls", without("seek", {}),
           CONTRACT.test_nothing_overtakes),
    Mutant("ignores back-off", Backoff, "wait", returning(0.0), CONTRACT.test_what_is_put_off_is_not_tried_hotly),
    Mutant("never commits", Assignment, "due_commits", returning({}),
           CONTRACT.test_everything_is_committed_in_the_end),
    Mutant("never resumes", Assignment, "client_calls", without("resume", frozenset()),
           CONTRACT.test_nothing_overtakes),
    Mutant("partition run twice", Assignment, "choose", unmarked, CONTRACT.test_one_handler_of_a_partition),
    Mutant("no release on stop", LogWork, "give_back", returning(None), CONTRACT.test_no_claim_outlives_the_stop),
    Mutant("receipt time lost", Partition, "_received_at", lambda _: lambda _part, _offset, now: now,
           CONTRACT.test_the_time_of_receipt_survives),
    Mutant("revoke ignored", Assignment, "revoked", returning(None), CONTRACT.test_a_revoke_waits_for_what_runs),
    Mutant("revoke does not wait", kafka_repair, "rejoins", returning(False),
           CONTRACT.test_a_revoke_waits_for_what_runs),
    Mutant("loss ignored", Assignment, "lost", returning(None), CONTRACT.test_what_is_stale_is_not_condemned),
    Mutant("condemns what is stale for its time", Assignment, "heartbeat", returning(None),
           CONTRACT.test_what_is_stale_is_not_condemned),
)  # fmt: skip


@pytest.fixture
def play(tmp_path: Path) -> Iterator[LogPlay]:
    """A play on a stage in memory."""
    stage = MemoryLogStage()
    stage.patience = 4.0
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        play = LogPlay(stage, audit)
        yield play
        delivery_contract._end(play)
    stage.close()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Mutant, play: LogPlay, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mistake fails the test that is there for it."""
    original = getattr(mutant.owner, mutant.attribute)
    monkeypatch.setattr(mutant.owner, mutant.attribute, mutant.mutation(original))
    with pytest.raises((AssertionError, TimeoutError)):
        mutant.test(CONTRACT(), play)
