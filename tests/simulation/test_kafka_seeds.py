"""Fixed seeds of the whole Kafka leaf, and mistakes that they must find."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.simulation import kafka_mutants
from tests.simulation.engine_mutants import Mutant
from tests.simulation.kafka_play import KafkaPlay, run
from tests.simulation.shrink import reduced

SEEDS = 100
SHARD = 10
WITHIN = 120
"""Seeds within which each mistake is found."""


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """Nobody reads what the simulated services log."""
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
    for seed in range(6):
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
    """A failing seed is told by the fewest faults that still break the invariant."""
    mutant = next(found for found in kafka_mutants.LOG if found.name == "never commits")
    with mutant.made():
        result = run(KafkaPlay.of(1))
        shown = reduced(result, run)  # type: ignore[arg-type,type-var]
    assert "all comes to rest" in shown.broken
    assert (len(result.play.faults) > 3, shown.play.faults) == (True, [])
