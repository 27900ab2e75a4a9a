"""SIGKILL in the middle of ``mqauth dlq redrive`` and ``discard``, at random moments, and what came of it all."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import aio_pika
from kafka import TopicPartition

from integration.review.scene import WHY, Scene
from mqauth.audit.chain import verify_chain
from mqauth.audit.query import read_records
from mqauth.review import Ledger
from mqauth.testing.stage_kafka import KafkaStage

ACTS: Final = {"redrive": "redriven", "discard": "discarded"}
_START: Final = 0.5
"""Seconds in which a command starts and reads letters, about; kills fall there too."""
_PATIENCE: Final = 60.0
_JITTER: Final = 0.01
_SLOW: Final = 5
"""Letters a second of a run that is killed: on a busy machine its killer may stand still for seconds."""
_FAST: Final = 100
_TICK: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What was counted; ``lost`` and ``difference`` are to be 0, and ``dropped`` is to be ``duplicates``.

    Args:
        acts: of the act on record, repeated ones too.
        published: messages that came back to the source; ``duplicates`` of them are beyond one a letter.
        dropped: settled unhandled as duplicates, by the consumer's own count.
        rejected: of what came back.
        worst: the account's largest difference after any of the kills.
        chain: ``intact``, of both audit files, whatever line a kill tore.
    """

    kills: int
    letters: int
    acts: int
    published: int = 0
    handled: int = 0
    duplicates: int = 0
    dropped: int = 0
    rejected: int = 0
    lost: int
    worst: int
    difference: int
    chain: str

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, handled twice, rejected, or left unexplained."""
        settled = self.handled == (self.letters if self.published else 0)
        unexplained = self.lost or self.worst or self.difference or self.rejected
        return (
            settled
            and not unexplained
            and self.dropped == self.duplicates
            and self.chain == "intact"
        )

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())


def play_kills(scene: Scene, act: str, kills: int, letters: int, seed: int) -> Tally:
    """Kill an act at random moments, let one run finish, and return what the consumer made of it all."""
    rng = random.Random(seed)
    for number in range(letters):
        scene.stage.inject(scene.message("expired", number))
    scene.consume(letters)
    more = _releasing(scene) if act == "redrive" else ()
    arguments = command(scene, act, *more, rate=_SLOW)
    worst = 0
    for number in range(kills):
        code = killed(scene, arguments, rng, letters // 4)
        worst = max(worst, ledger(scene).difference)
        # On a busy machine an act may reach its end before a late kill does; it must have been killed before.
        assert code == -signal.SIGKILL or (code == 0 and number), (
            f"it ended by itself with {code}"
        )
        if code == 0:
            break
    else:
        subprocess.run(
            line(command(scene, act, *more)),
            stdout=subprocess.DEVNULL,
            timeout=300,
            check=True,
        )
    return _counted(scene, act, kills, letters, worst)


def _releasing(scene: Scene) -> tuple[str, ...]:
    """Return what a redrive wants to be told beyond other acts."""
    config, key = str(scene.write_config()), str(scene.write_key())
    return ("--config", config, "--key", key, "--reviewer", "ada", "--waive", "expired")


def _counted(scene: Scene, act: str, kills: int, letters: int, worst: int) -> Tally:
    """Consume what came back, and hold it against what was there."""
    published = waiting(scene) - (letters if scene.place.on_kafka else 0)
    before = Counter(scene.outcomes)
    if published:
        scene.consume(published)
    after = scene.outcomes - before
    handled = Counter(bytes(verified.body or b"") for verified in scene.handled)
    account = ledger(scene)
    done = {"redriven": len(handled), "discarded": account.discarded}[ACTS[act]]
    return Tally(
        kills=kills, letters=letters, acts=acts(scene, ACTS[act]), published=published,
        handled=handled.total(), duplicates=max(0, published - letters), dropped=after["duplicate"],
        rejected=after["rejected"], lost=letters - done - account.open, worst=worst,
        difference=account.difference,
        chain="intact" if all(verify_chain(path).intact for path in scene.audits) else "broken",
    )  # fmt: skip


def command(scene: Scene, act: str, *more: str, rate: int = _FAST) -> list[str]:
    """Return the command line of an act on everything."""
    name = (
        ("--topic", scene.place.name)
        if scene.place.on_kafka
        else ("--queue", scene.place.name)
    )
    return ["dlq", act, "--broker", scene.place.broker, *map(str, name), "--why", WHY, "--yes", "--json",
            "--rate", str(rate), "--audit", str(scene.folder / "reviewer.jsonl"), *more]  # fmt: skip


def line(arguments: list[str]) -> list[str]:
    """Return the command line of the ``mqauth`` beside us."""
    return [sys.executable, "-m", "mqauth", *arguments]


def killed(scene: Scene, arguments: list[str], rng: random.Random, most: int) -> int:
    """Run the command, kill it at a random moment before it has made so many acts, and return its exit code.

    The moment is a number of acts on record and a little time beyond it; with none, a time since the start, that
    many acts at the latest.
    """
    audit = scene.folder / "reviewer.jsonl"
    before, after = lines(audit), rng.randint(0, max(1, most - 1))
    latest = time.monotonic() + (_PATIENCE if after else rng.uniform(0, _START))
    process = subprocess.Popen(
        line(arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while (
            lines(audit) < before + (after or most)
            and time.monotonic() < latest
            and process.poll() is None
        ):
            time.sleep(_TICK)
        time.sleep(rng.uniform(0, _JITTER))
    finally:
        process.send_signal(signal.SIGKILL)
    return process.wait(_PATIENCE)


def lines(path: Path) -> int:
    """Return how many lines a file has."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def acts(scene: Scene, what: str) -> int:
    """Return how many acts of a kind are on record."""
    return sum(record.get("verdict") == what for record in read_records(scene.audits))


def ledger(scene: Scene) -> Ledger:
    """Hold the audit files against the letters."""
    with scene.session() as found:
        return scene.ledger(found)


def waiting(scene: Scene) -> int:
    """Return how many messages lie in the source queue, or were ever sent to the source topic."""
    if not isinstance(scene.stage, KafkaStage):
        return asyncio.run(_in_queue(scene.place.broker, scene.stage.queue))
    consumer = scene.stage.consumer()
    try:
        partitions = [TopicPartition(scene.stage.topic, 0)]
        return int(sum(consumer.end_offsets(partitions).values()))
    finally:
        consumer.close()


async def _in_queue(url: str, queue: str) -> int:
    """Return how many messages a queue holds."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        found: Any = await channel.declare_queue(queue, passive=True)
        return int(found.declaration_result.message_count)
