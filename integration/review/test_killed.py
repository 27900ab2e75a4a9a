"""SIGKILL in the middle of ``mqauth dlq redrive`` and ``discard``: nothing lost, every duplicate recognised."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from integration.review.scene import WHY, Scene
from mqauth.cli import main
from mqauth.testing.stage_kafka import wait_until

LETTERS = 40
KILLS = 3


def command(scene: Scene, act: str, *more: str) -> list[str]:
    """Return the command line of an act on everything."""
    name = ("--topic", scene.place.topic) if scene.place.on_kafka else ("--queue", scene.place.queue)
    line = [act, "--broker", scene.place.broker, *map(str, name), "--why", WHY, "--yes", "--json",
            "--audit", str(scene.folder / "reviewer.jsonl"), *more]  # fmt: skip
    return ["dlq", *line]


def killed(scene: Scene, arguments: list[str], after: int) -> int:
    """Run the command, kill it after so many more acts are on record, and return its exit code."""
    audit = scene.folder / "reviewer.jsonl"
    before = lines(audit)
    process = subprocess.Popen(
        [sys.executable, "-m", "mqauth", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(lambda: lines(audit) >= before + after or process.poll() is not None)
    finally:
        process.send_signal(signal.SIGKILL)
    return process.wait(30)


def lines(path: Path) -> int:
    """Return how many lines a file has."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def play_kills(scene: Scene, kills: int, letters: int) -> Counter[str]:
    """Kill redrives at random moments, let one finish, and return what the consumer made of it all."""
    for number in range(letters):
        scene.stage.inject(scene.message("expired", number))
    scene.consume(letters)
    scene.keys.append(scene.forge.stranger)
    config, key = scene.write_config(), scene.write_key()
    arguments = command(
        scene, "redrive", "--config", str(config), "--key", str(key), "--reviewer", "ada", "--waive", "expired"
    )
    codes = {killed(scene, arguments, random.randint(1, max(1, letters // (kills + 1)))) for _ in range(kills)}
    assert codes == {-signal.SIGKILL}
    assert main(arguments) == 0
    wanted = {f"expired {number}".encode() for number in range(letters)}
    scene.consume_until(lambda: {verified.body for verified in scene.handled} == wanted)
    return scene.outcomes


def test_killed_while_redriving(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed three times at random moments: every letter handled once, duplicates settled, zero difference."""
    outcomes = play_kills(scene, KILLS, LETTERS)
    assert Counter(verified.body for verified in scene.handled).most_common(1)[0][1] == 1
    assert outcomes["accepted"] == LETTERS
    assert outcomes["rejected"] == LETTERS  # when they came first; none since
    assert outcomes["duplicate"] <= KILLS
    with scene.desk() as (found, _):
        ledger: Any = scene.ledger(found)
    assert (ledger.open, ledger.redriven, ledger.difference) == (0, LETTERS, 0)
    with capsys.disabled():
        print(f"\nkilled {KILLS} times while redriving on {scene.stage.name}: {dict(outcomes)}, lost 0")


def test_killed_while_discarding(scene: Scene) -> None:
    """Killed at random moments: every letter is open or discarded on record, at each moment."""
    scene.fill(5)
    for _ in range(KILLS):
        assert killed(scene, command(scene, "discard"), random.randint(1, 8)) == -signal.SIGKILL
        with scene.desk() as (found, _):
            ledger: Any = scene.ledger(found)
            assert (ledger.open + ledger.discarded, ledger.difference) == (40, 0)
    assert main(command(scene, "discard")) == 0
    with scene.desk() as (found, _):
        ledger = scene.ledger(found)
    assert (ledger.open, ledger.discarded, ledger.difference) == (0, 40, 0)
