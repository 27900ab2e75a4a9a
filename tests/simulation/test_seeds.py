"""Fixed seeds, played in processes of their own: the simulation takes the machine's clock and entropy away."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from integration import scale

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent
QUICK, SHARD = 3, 3
"""The first seeds are played in the quick form of the test command too."""
SEEDS, SLOW_SHARD = scale.nightly(2000, otherwise=43), 40
ON_PIKA = scale.nightly(50, otherwise=14)
SHARDS = [
    *((first, SHARD) for first in range(0, QUICK, SHARD)),
    *(
        pytest.param(first, SLOW_SHARD, marks=pytest.mark.slow)
        for first in range(QUICK, SEEDS, SLOW_SHARD)
    ),
]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the simulator's command; a failing plan is told whole, since to make it small takes minutes."""
    words = [sys.executable, "-m", "tests.simulation", "--no-shrink", *arguments]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("first", "count"), SHARDS)
def test_seeds(first: int, count: int) -> None:
    """No seed of a shard breaks an invariant."""
    run = command("--from", str(first), "--seeds", str(count))
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize(
    ("first", "count"),
    [
        (0, 2),
        *(
            pytest.param(first, 12, marks=pytest.mark.slow)
            for first in range(2, ON_PIKA, 12)
        ),
    ],
)
def test_seeds_on_pika(first: int, count: int) -> None:
    """No seed of a shard breaks an invariant where the consumers are on pika."""
    run = command("--client", "pika", "--from", str(first), "--seeds", str(count))
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.slow
def test_plans() -> None:
    """A plan that found a fault once finds none any more; one process plays them all."""
    plans = sorted(FOLDER.glob("plans/*.json"))
    run = command("--strict", "--plan", *map(str, plans))
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count(": holds\n") == len(plans) > 0


@pytest.mark.slow
def test_same_seed_same_trace() -> None:
    """Two runs of a seed have the same trace."""
    first, second = (
        command("--seeds", "3", "--from", "20", "--digests").stdout for _ in range(2)
    )
    digests = [line for line in first.splitlines() if len(line.split()[-1]) == 64]
    assert len(digests) == 3
    assert digests == [line for line in second.splitlines() if line in digests]


@pytest.mark.slow
def test_plan_is_the_seed() -> None:
    """The plan kept of a seed plays the same as the seed itself."""
    code = (
        "from tests.simulation import determinism; determinism.install()\n"
        "import json, logging; logging.disable(logging.CRITICAL)\n"
        "from tests.simulation.runner import Play, run\n"
        "play = Play.of(23)\n"
        "again = Play.from_dict(json.loads(json.dumps(play.as_dict())))\n"
        "print(json.dumps([run(play).digest, run(again).digest]))\n"
    )
    environment = {"PYTHONHASHSEED": "0"}
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    first, second = json.loads(found.stdout)
    assert first == second
