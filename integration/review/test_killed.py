"""SIGKILL in the middle of ``mqauth dlq redrive`` and ``discard``: nothing lost, every duplicate recognised."""

from __future__ import annotations

import random

import pytest

from integration import scale
from integration.review.kills import play_kills
from integration.review.scene import Scene

pytestmark = pytest.mark.slow

LETTERS = 40
KILLS = scale.nightly(3, otherwise=1)


def test_killed_while_redriving(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed at random moments, three at night: every letter handled once, duplicates dropped, zero difference."""
    seed = scale.nightly(random.randrange(10**6), otherwise=1)
    tally = play_kills(scene, "redrive", KILLS, LETTERS, seed)
    with capsys.disabled():
        print(f"\n{scene.stage.name} redrive, seed {seed}: {tally}")
    assert tally.holds
    assert (tally.handled, tally.duplicates <= KILLS) == (LETTERS, True)


@pytest.mark.slow
def test_killed_while_discarding(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed at random moments: every letter is open or discarded on record, at each moment."""
    seed = scale.nightly(random.randrange(10**6), otherwise=1)
    tally = play_kills(scene, "discard", KILLS, LETTERS, seed)
    with capsys.disabled():
        print(f"\n{scene.stage.name} discard, seed {seed}: {tally}")
    assert tally.holds
    assert tally.published == 0
    assert LETTERS <= tally.acts <= LETTERS + KILLS
