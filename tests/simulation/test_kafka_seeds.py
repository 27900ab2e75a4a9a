"""Fixed seeds of the whole leaves of Kafka's clients, and mistakes that they must find."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from integration.scale import is_nightly, nightly
from tests.simulation import kafka_mutants, kafka_play
from tests.simulation.engine_mutants import Mutant
from tests.simulation.faults import Fault
from tests.simulation.kafka_facilities import Ledger
from tests.simulation.kafka_play import KafkaPlay, run
from tests.simulation.runner import gravest, reduced
from tests.simulation.services import Behaviour

SHARD = 10
SEEDS = {
    client: nightly(full, otherwise=SHARD)
    for client, full in {
        "kafka-python": 100,
        "confluent": 40,
        "confluent-aio": 20,
        "aiokafka": 40,
    }.items()
}
REBALANCED = range(30) if is_nightly() else (0, 2, 19, 22)
"""Seeds of rebalances in one outage; the last three have found faults."""
WITHIN = 300
"""Seeds within which each mistake is found."""
FOUND_BY = {
    "kafka-python": {
        "settles all with the first": 1, "forgets what stands behind a deferral": 1, "runs a partition twice": 1,
        "gives nothing back": 5, "ignores a revoke": 6, "ignores a loss": 9, "ignores a stop": 159,
        "waits for no confirm of a letter": 14, "runs what was handled again": 281,
        "drops a letter while its sink is down": 14, "lets a rebalance wait for nothing": 112, "seeks nothing": 1,
        "dies of a commit that failed": 1, "goes to the end where it is out of range": 16,
    },
    "confluent": {
        "forgets what stands behind a deferral": 1, "runs a partition twice": 1, "gives nothing back": 5,
        "ignores a loss": 9, "waits for no confirm of a letter": 14, "runs what was handled again": 145,
        "drops a letter while its sink is down": 6, "lets a rebalance wait for nothing": 59, "seeks nothing": 1,
        "dies of a commit that failed": 1, "goes to the end where it is out of range": 16,
        "takes records of a position that it left": 87, "leaves what is revoked paused": 12,
    },
    "aiokafka": {
        "settles all with the first": 1, "forgets what stands behind a deferral": 1, "runs a partition twice": 1,
        "gives nothing back": 5, "ignores a revoke": 1,
        "waits for no confirm of a letter": 14, "runs what was handled again": 77,
        "drops a letter while its sink is down": 14, "lets a rebalance wait for nothing": 43, "seeks nothing": 1,
        "dies of a commit that failed": 1, "goes to the end where it is out of range": 16,
    },
}  # fmt: skip
"""The first seed that finds a mistake, where that is not 0: what comes before it is not played again."""


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Silence the logs of the simulated services."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "first"),
    [
        (client, first)
        for client, most in SEEDS.items()
        for first in range(0, most, SHARD)
    ],
)
def test_seeds(client: str, first: int) -> None:
    """No seed of a shard breaks an invariant on the leaf of a client."""
    played = {
        seed: run(KafkaPlay.of(seed, client)).problems
        for seed in range(first, first + SHARD)
    }
    assert {seed: problems for seed, problems in played.items() if problems} == {}


@pytest.mark.slow
@pytest.mark.parametrize("client", SEEDS)
def test_rebalances_while_the_store_is_away(client: str) -> None:
    """No record is lost, and none runs again, where partitions go and come back while the store is away."""
    found = {}
    for seed in REBALANCED:
        play = KafkaPlay.of(seed, client)
        how = ("refused", "silent", "answer lost")[seed % 3]
        faults = [
            Fault(kind="store", at=5.0 + seed / 10, seconds=20.0, target="", how=how),
            *(
                Fault(
                    kind="rebalance", at=6.5 + 2.5 * each, seconds=0.0, target="", how=""
                )
                for each in range(8)
            ),
        ]
        settings = replace(
            play.settings,
            consumers=2,
            work=0.5,
            many=False,
            workers=max(1, play.settings.workers),
        )
        found[seed] = run(replace(play, settings=settings, faults=faults)).problems
    assert {seed: problems for seed, problems in found.items() if problems} == {}


@pytest.mark.parametrize("client", SEEDS)
def test_a_seed(client: str) -> None:
    """A seed breaks no invariant on the leaf of a client, and two runs of it have the same trace."""
    result = run(KafkaPlay.of(1, client))
    assert result.problems == []
    assert result.digest == run(KafkaPlay.of(1, client)).digest


@pytest.mark.parametrize(
    ("how", "reasons", "copied", "holds"),
    [
        ("fail", ["handler_failed", "replayed"], True, True),
        ("fail", ["handler_failed", "replayed"], False, False),
        ("fail", ["handler_failed", "expired"], True, False),
        ("fail", ["replayed"], True, False),
        ("fail", [], True, False),
        ("slow", ["handler_failed", "replayed"], True, False),
    ],
)
def test_replayed_beside_a_failed_handler(
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    reasons: list[str],
    copied: bool,
    holds: bool,
) -> None:
    """A message that was not handled may have a letter as ``replayed`` only as a copy beside a failed handler."""
    ledger = Ledger(sent={b"order": 0}, copied={b"order"} if copied else set())
    play: Any = SimpleNamespace(
        ledger=ledger, behaviours={0: Behaviour(how)}, missed=lambda _: 0
    )
    monkeypatch.setattr(kafka_play, "_reasons", lambda _: {b"order": reasons})
    assert (not list(kafka_play.END["every honest message is handled"](play))) is holds


def mutants() -> Iterator[tuple[str, Mutant]]:
    """Yield every mistake on every client at night, else on one client each: the clients take turns."""
    by_name = defaultdict[str, list[tuple[str, Mutant]]](list)
    for client, mistakes in kafka_mutants.MUTANTS.items():
        for mutant in mistakes:
            by_name[mutant.name].append((client, mutant))
    for number, found in enumerate(by_name.values()):
        yield from found if is_nightly() else (found[number % len(found)],)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("client", "mutant"), [*mutants()], ids=lambda each: getattr(each, "name", each)
)
def test_mutant_is_found(client: str, mutant: Mutant) -> None:
    """A mistake in the engine or the leaf breaks an invariant within so many seeds."""
    first = FOUND_BY[client].get(mutant.name, 0)
    with mutant.made():
        assert any(
            run(KafkaPlay.of(seed, client)).problems for seed in range(first, WITHIN)
        )


@pytest.mark.slow
def test_a_finding_is_cut_down() -> None:
    """A failing seed is reported by fewer faults, with which the gravest broken invariant still breaks."""
    mutant = next(
        found
        for found in kafka_mutants.MUTANTS["kafka-python"]
        if found.name == "commits received, not settled"
    )
    with mutant.made():
        result = run(KafkaPlay.of(1))
        shown = reduced(result, run, most=6)
    assert gravest(result.broken) in shown.broken
    assert len(shown.play.faults) < len(result.play.faults)
