"""The delivery contract is not blind: each mistake in the engine or in Kafka's leaf fails one of its tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mqauth.audit.file import AuditFile
from mqauth.brokers.log.consumer import LogConsumer
from mqauth.clock import Backoff
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.partition import Partition
from tests.kit import delivery_contract
from tests.kit.delivery_contract import LogDeliveryContract, LogPlay
from tests.simulation.engine_mutants import (
    Mutant,
    left_out,
    received_as_settled,
    received_just_now,
    returning,
    settled_at_once,
    unmarked,
    without,
)
from tests.simulation.kafka_leaves import kafka
from tests.simulation.kafka_mutants import TopicSink, swallowing, unwaited
from tests.simulation.kafka_stage import simulated_log

CONTRACT = LogDeliveryContract
SEEDS = 10


@dataclass(frozen=True)
class Caught(Mutant):
    """A mistake, and the test of the contract that finds it."""

    test: Callable[..., Any]


def skipping(original: Any) -> Any:
    """Go on with what stands behind a deferred record, and come back to that later."""

    def attempted(assignment: Assignment, partition: Partition, outcome: Any) -> bool:
        if outcome.cause is None or len(partition.waiting) == 1:
            return bool(original(assignment, partition, outcome))
        partition.waiting.rotate(-1)
        return True

    return attempted


MUTANTS = (
    Caught("commits received, not settled", Partition, "settled", received_as_settled,
           CONTRACT.test_a_commit_covers_what_is_settled),
    Caught("letter not confirmed", TopicSink, "sending", unwaited, CONTRACT.test_a_letter_is_confirmed),
    Caught("letter dropped while the sink is down", kafka.DeadLetters, "publish", swallowing,
           CONTRACT.test_a_letter_is_confirmed),
    Caught("deferred treated as settled", Assignment, "attempted", settled_at_once,
           CONTRACT.test_what_is_put_off_is_not_settled),
    Caught("skips behind a deferral", Assignment, "attempted", skipping, CONTRACT.test_nothing_overtakes),
    Caught("forgets what stands behind a deferral", Assignment, "client_calls", without("seek", {}),
           CONTRACT.test_nothing_overtakes),
    Caught("ignores back-off", Backoff, "wait", returning(0.001),
           CONTRACT.test_what_is_put_off_is_not_tried_hotly),
    Caught("never commits", Assignment, "due_commits", returning({}),
           CONTRACT.test_everything_is_committed_in_the_end),
    Caught("never resumes", Assignment, "client_calls", without("resume", frozenset()),
           CONTRACT.test_nothing_overtakes),
    Caught("partition run twice", Assignment, "choose", unmarked, CONTRACT.test_one_handler_of_a_partition),
    Caught("no release on stop", LogWork, "giving_back", lambda _: left_out,
           CONTRACT.test_no_claim_outlives_the_stop),
    Caught("receipt time lost", Partition, "receive", received_just_now,
           CONTRACT.test_the_time_of_receipt_survives),
    Caught("revoke ignored", Assignment, "revoked", returning(None), CONTRACT.test_a_revoke_waits_for_what_runs),
    Caught("revoke does not wait", LogConsumer, "settle", returning(None),
           CONTRACT.test_a_revoke_waits_for_what_runs),
    Caught("loss ignored", Assignment, "lost", returning(None), CONTRACT.test_what_is_stale_is_not_condemned),
)  # fmt: skip


def is_found(mutant: Caught, seed: int, path: Path) -> bool:
    """Tell whether the mistake fails its test in a play of a seed."""
    with (
        simulated_log("kafka-python", seed) as stage,
        AuditFile(path / f"{seed}.jsonl", fsync=False) as audit,
    ):
        stage.patience = 20.0
        play = LogPlay(stage, audit)
        try:
            with mutant.made():
                mutant.test(CONTRACT(), play)
        except (AssertionError, TimeoutError):
            return True
        finally:
            delivery_contract._end(play)
        return False


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Caught, tmp_path: Path) -> None:
    """The mistake fails the test that is there for it, in one of the first seeds."""
    assert any(is_found(mutant, seed, tmp_path) for seed in range(SEEDS))
