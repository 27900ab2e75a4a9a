"""Fixed seeds of the whole Kafka leaf, and mistakes that they must find."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.simulation.engine_mutants import Mutant

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from tests.simulation import kafka_mutants, kafka_play
    from tests.simulation.kafka_play import KafkaPlay, run
    from tests.simulation.kafka_services import Behaviour, Ledger
    from tests.simulation.shrink import gravest, reduced

SEEDS = 100
SHARD = 10
WITHIN = 120
"""Seeds within which each mistake is found."""


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Silence the logs of the simulated services."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, SHARD))
def test_seeds(first: int) -> None:
    """No seed of a shard breaks an invariant."""
    assert {
        seed: found for seed in range(first, first + SHARD) if (found := run(KafkaPlay.of(seed)).problems)
    } == {}


def test_some_seeds() -> None:
    """No seed of a few breaks an invariant, and two runs of a seed have the same trace."""
    for seed in range(2):
        result = run(KafkaPlay.of(seed))
        assert result.problems == []
        assert result.digest == run(KafkaPlay.of(seed)).digest


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
    monkeypatch: pytest.MonkeyPatch, how: str, reasons: list[str], copied: bool, holds: bool
) -> None:
    """A message that was not handled may have a letter as ``replayed`` only as a copy beside a failed handler."""
    ledger = Ledger(sent={b"order": 0}, copied={b"order"} if copied else set())
    play: Any = SimpleNamespace(ledger=ledger, behaviours={0: Behaviour(how)})
    monkeypatch.setattr(kafka_play, "_reasons", lambda _: {b"order": reasons})
    assert (not list(kafka_play.END["every honest message is handled"](play))) is holds


@pytest.mark.slow
@pytest.mark.parametrize("mutant", kafka_mutants.LOG, ids=lambda mutant: mutant.name)
def test_mutant_is_found(mutant: Mutant) -> None:
    """A mistake in the engine or the leaf breaks an invariant within so many seeds."""
    with mutant.made():
        assert any(run(KafkaPlay.of(seed)).problems for seed in range(WITHIN))


@pytest.mark.slow
def test_a_finding_is_cut_down() -> None:
    """A failing seed is reported by fewer faults, with which the gravest broken invariant still breaks."""
    mutant = next(found for found in kafka_mutants.LOG if found.name == "commits received, not settled")
    with mutant.made():
        result = run(KafkaPlay.of(1))
        shown = reduced(result, run, most=6)  # type: ignore[arg-type,type-var]
    assert gravest(result.broken) in shown.broken
    assert len(shown.play.faults) < len(result.play.faults)
