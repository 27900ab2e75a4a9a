"""Fixed seeds of the whole Kafka leaf, and mistakes that they must find."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator

import pytest

from tests.simulation.engine_mutants import Mutant

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from tests.simulation import kafka_mutants
    from tests.simulation.kafka_play import KafkaPlay, run
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


@pytest.mark.slow
@pytest.mark.parametrize("mutant", kafka_mutants.LOG, ids=lambda mutant: mutant.name)
def test_mutant_is_found(mutant: Mutant) -> None:
    """A mistake in the engine or the leaf breaks an invariant within so many seeds."""
    with mutant.made():
        assert any(run(KafkaPlay.of(seed)).problems for seed in range(WITHIN))


def test_a_finding_is_cut_down() -> None:
    """A failing seed is reported by fewer faults, with which the gravest broken invariant still breaks."""
    mutant = next(found for found in kafka_mutants.LOG if found.name == "commits received, not settled")
    with mutant.made():
        result = run(KafkaPlay.of(1))
        shown = reduced(result, run, most=6)  # type: ignore[arg-type,type-var]
    assert gravest(result.broken) in shown.broken
    assert len(shown.play.faults) < len(result.play.faults)
