"""The pure engines under random facts: thousands of schedules, and mistakes that such schedules must find."""

from __future__ import annotations

import pytest

from integration import scale
from tests.simulation import engine_mutants
from tests.simulation.engine_mutants import Mutant
from tests.simulation.engines import (
    ENGINES,
    LOG,
    QUEUE,
    Engine,
    broken,
    findings,
    reduced,
    schedule,
    told,
    traced,
)

SHARD = 1000
SHARDS = {"log": scale.nightly(100, otherwise=3), "queue": scale.nightly(50, otherwise=3)}
WITHIN = 6000
"""Schedules within which each mistake is found."""
FOUND_BY = {
    "takes a refused commit for taken": 258, "forgets which claims it asked for": 1272,
    "gives back what was answered alone": 266, "goes on before a rebalance": 473, "holds without bounds": 619,
    "passes nothing by": 363, "releases what was handled": 5328, "gives back what was handled": 1138,
}  # fmt: skip
"""Mistakes that few schedules find, and the first that does: what comes before it is not played again."""


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_some_schedules(engine: Engine) -> None:
    """No schedule of the first shard breaks an invariant."""
    assert findings(range(SHARD), engine) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shard"),
    [(name, shard) for name in ENGINES for shard in range(1, SHARDS[name])],
)
def test_schedules(name: str, shard: int) -> None:
    """No schedule of a shard breaks an invariant; all shards together are 6,000, and 150,000 at night."""
    assert findings(range(shard * SHARD, (shard + 1) * SHARD), ENGINES[name]) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "mutant"),
    [
        pytest.param(engine, mutant, id=f"{engine.name}-{mutant.name}")
        for engine, mutants in ((LOG, engine_mutants.LOG), (QUEUE, engine_mutants.QUEUE))
        for mutant in mutants
    ],
)
def test_mutant_is_found(engine: Engine, mutant: Mutant) -> None:
    """A mistake in an engine breaks an invariant within so many schedules."""
    with mutant.made():
        first = FOUND_BY.get(mutant.name, 0)
        assert any(
            broken(schedule(seed, engine), engine) for seed in range(first, WITHIN)
        )


@pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)
def test_same_seed_same_trace(engine: Engine) -> None:
    """Two plays of a schedule have the same trace, to its end."""
    for seed in range(20):
        trace = traced(seed, engine)
        assert trace == traced(seed, engine)
        assert len(trace) > len(schedule(seed, engine).facts)


def test_a_finding_is_cut_down() -> None:
    """A failing schedule is reported by the fewest facts that break the same invariant."""
    mutant = next(found for found in engine_mutants.LOG if found.name == "never commits")
    with mutant.made():
        finding = findings(range(1))[0]
        shorter = reduced(schedule(finding.seed), finding.invariant)
        lines = list(told(finding, LOG))
        assert broken(shorter) is not None
    assert 1 <= len(shorter.facts) < 5 < len(schedule(finding.seed).facts)
    assert lines[1:] == [f"    {fact.name} {fact.number}" for fact in shorter.facts]
    assert broken(shorter) is None
