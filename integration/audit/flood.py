"""A flood of forgeries through a real broker: audit and alerts stay small, honest traffic goes on.

`python -m integration.audit.flood --messages 100000` starts RabbitMQ (or, with `--broker kafka`, Kafka) where
no URL in the environment names one, and prints the counts. One forgery in three has a bad signature under one
kid, one a kid drawn at random, one no token; every fiftieth message is honest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from integration.services import Kafka, RabbitMQ
from mqauth.audit.chain import verify_chain
from mqauth.audit.file import AuditFile
from mqauth.audit.sinks import DEFAULT_FLOOD_AFTER, FloodGate, MisuseWatch
from mqauth.clock import SYSTEM_RANDOMNESS
from mqauth.judging.pipeline import Pipeline, Verdict
from mqauth.judging.verified import Verified
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing.forge import Forge, with_token
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.message import Message

HONEST_EVERY = 50
WHOLE_BYTES = 2048
FLOODED_BYTES = 640
ALERTS = 16
_BATCH = 500
_STANDSTILL = 60.0
_TICK = 0.05


class Source(Protocol):
    """A broker with a source and a dead-letter queue, driven fast."""

    destination: str

    def publish(self, messages: Sequence[Message]) -> None:
        """Publish messages as they are, confirmed."""

    def consuming(self, guard: Pipeline, handler: Callable[[Verified], None]) -> AbstractContextManager[None]:
        """Run a consumer meanwhile."""

    def bodies(self, count: int) -> list[bytes]:
        """Return the bodies of so many dead letters, and of every one more."""

    def close(self) -> None:
        """Remove everything."""


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of a flood."""

    broker: str
    forged: int
    honest: int
    handled: int
    dead: int
    lost: int
    whole: int
    flooded: int
    alerts: int
    audit_bytes: int
    seconds: float
    intact: bool

    @property
    def bounds(self) -> dict[str, tuple[int, int]]:
        """What is bounded: how much there is, and how much there may be."""
        minutes = math.ceil(self.seconds / 60) + 1
        whole = (2 * DEFAULT_FLOOD_AFTER + 10 * DEFAULT_FLOOD_AFTER) * minutes
        return {
            "whole records": (self.whole, whole),
            "audit bytes": (self.audit_bytes, whole * WHOLE_BYTES + self.flooded * FLOODED_BYTES),
            "alerts": (self.alerts, ALERTS * math.ceil(self.seconds / 600)),
        }

    @property
    def good(self) -> bool:
        """Tell whether everything is as designed."""
        counted = self.handled == self.honest and self.dead == self.forged == self.whole + self.flooded
        return counted and not self.lost and self.intact and all(has <= may for has, may in self.bounds.values())

    def lines(self) -> list[str]:
        """Return the counts for people."""
        return [
            f"{self.broker}: {self.forged} forged, {self.dead} dead-lettered, {self.lost} lost; "
            f"{self.honest} honest, {self.handled} handled; {self.seconds:.0f} s, "
            f"{(self.forged + self.honest) / self.seconds:.0f} messages/s",
            f"audit: {self.whole} records whole, {self.flooded} without detail, {self.alerts} alerts, "
            f"{self.audit_bytes} bytes ({self.audit_bytes / self.forged:.0f} a forgery); "
            f"chain {'intact' if self.intact else 'BROKEN'}",
            *(f"{name}: {has} of at most {may}" for name, (has, may) in self.bounds.items()),
        ]


def flood(source: Source, broker: str, forged: int, folder: Path) -> Counts:
    """Publish forgeries with honest messages among them while a consumer runs, and count what became of them."""
    forge, handled, settled = Forge(lifetime=3600), Counter[bytes](), Counter[Verdict]()
    honest = forged // HONEST_EVERY
    path = folder / "audit.jsonl"
    started = time.monotonic()
    with AuditFile(path) as file:
        watch = MisuseWatch(FloodGate(file))
        guard = Pipeline(
            verifier=forge.verifier(), policy=forge.policy(source.destination), replay=MemoryReplayStore(),
            audit=watch, observers=[lambda outcome, *_: settled.update([outcome.verdict])],
        )  # fmt: skip
        with source.consuming(guard, lambda verified: handled.update([verified.body or b""])):
            for batch in _batches(_traffic(forge, source.destination, forged)):
                source.publish(batch)
            _until(lambda: (settled[Verdict.ACCEPTED], settled[Verdict.REJECTED]), (honest, forged))
        seconds = time.monotonic() - started
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    bodies = source.bodies(forged)
    return Counts(
        broker=broker, forged=forged, honest=honest, handled=len(handled), dead=len(bodies),
        lost=len({b"forged %d" % number for number in range(forged)} - {*bodies}),
        whole=sum(record["verdict"] == "rejected" and "flood" not in record for record in records),
        flooded=sum("flood" in record for record in records),
        alerts=sum(record["verdict"] == "alert" for record in records),
        audit_bytes=path.stat().st_size, seconds=seconds, intact=verify_chain(path).intact,
    )  # fmt: skip


def _traffic(forge: Forge, place: str, forged: int) -> Iterator[Message]:
    """Yield the flood, and every fiftieth an honest message."""
    for number in range(forged):
        yield _forgery(forge, replace(honest_message(place, number), body=b"forged %d" % number), number)
        if number % HONEST_EVERY == HONEST_EVERY - 1:
            yield forge.signer().sign(replace(honest_message(place, number), body=b"honest %d" % number))


def _forgery(forge: Forge, message: Message, number: int) -> Message:
    """Return one of three kinds of forgery."""
    if number % 3 == 0:
        return with_token(message, forge.token(message, signature=SYSTEM_RANDOMNESS(64)))
    if number % 3 == 1:
        kid = SYSTEM_RANDOMNESS(16).hex()
        return with_token(message, forge.token(message, header={"kid": kid}, signature=SYSTEM_RANDOMNESS(64)))
    return message


def _batches(messages: Iterator[Message]) -> Iterator[list[Message]]:
    """Yield messages in batches."""
    batch: list[Message] = []
    for message in messages:
        batch.append(message)
        if len(batch) == _BATCH:
            yield batch
            batch = []
    yield batch


def _until(count: Callable[[], tuple[int, int]], wanted: tuple[int, int]) -> None:
    """Wait until counts are reached; give up where nothing moves for a minute."""
    last, deadline = count(), time.monotonic() + _STANDSTILL
    while last != wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"standstill at {last} of {wanted}")
        time.sleep(_TICK)
        now = count()
        if now != last:
            last, deadline = now, time.monotonic() + _STANDSTILL


class RabbitMQSource:
    """The flood's RabbitMQ."""

    def __init__(self, url: str) -> None:
        from mqauth.testing.stage_rabbitmq import RabbitMQStage

        self._stage = RabbitMQStage(url, prefetch=50)
        self.destination = self._stage.destination

    def publish(self, messages: Sequence[Message]) -> None:
        """Publish messages side by side."""

        async def publish() -> None:
            await asyncio.gather(*(self._stage._inject(message) for message in messages))

        self._stage._call(publish())

    @contextmanager
    def consuming(self, guard: Pipeline, handler: Callable[[Verified], None]) -> Iterator[None]:
        """Run a consumer meanwhile."""
        consumer = self._stage._call(self._stage._consumer(guard, handler))
        try:
            yield
        finally:
            self._stage._call(consumer.__aexit__(None, None, None))

    def bodies(self, count: int) -> list[bytes]:
        """Take every dead letter out of its queue, and return their bodies."""
        return self._stage._call(self._taken(count), 600)

    async def _taken(self, count: int) -> list[bytes]:
        channel = await self._stage._publishing.channel()
        await channel.set_qos(1000)
        queue = await channel.get_queue(self._stage.dead, ensure=False)
        found: list[bytes] = []
        async with queue.iterator(no_ack=True) as letters:
            async for letter in letters:
                found.append(letter.body)
                if len(found) == count:
                    break
        while (more := await queue.get(no_ack=True, fail=False)) is not None:
            found.append(more.body)
        await channel.close()
        return found

    def close(self) -> None:
        """Remove everything."""
        self._stage.close()


class KafkaSource:
    """The flood's Kafka."""

    def __init__(self, url: str) -> None:
        from mqauth.testing.stage_kafka import KafkaStage

        self._stage = KafkaStage(url)
        self.destination = self._stage.destination

    def publish(self, messages: Sequence[Message]) -> None:
        """Send messages side by side."""
        from mqauth.brokers.log.records import dead_letter_headers

        client, topic = self._stage._client, self._stage.topic
        futures = [
            client.send(topic, value=one.body, key=one.key, headers=dead_letter_headers(one.headers))
            for one in messages
        ]
        for future in futures:
            future.get(timeout=60)

    @contextmanager
    def consuming(self, guard: Pipeline, handler: Callable[[Verified], None]) -> Iterator[None]:
        """Run a consumer meanwhile."""
        from mqauth.brokers import kafka

        client, letters = self._stage.consumer(), self._stage.dead_letter_client()
        try:
            with kafka.Consumer(client, guard, handler, dead_letters=kafka.DeadLetters(letters, self._stage.dead)):
                yield
        finally:
            client.close()
            letters.close()

    def bodies(self, count: int) -> list[bytes]:
        """Return the body of every dead letter."""
        return [letter.body or b"" for letter in self._stage.letters()]

    def close(self) -> None:
        """Remove everything."""
        self._stage.close()


def main() -> int:
    """Run a flood, print its counts, and return 0 only if everything is as designed."""
    parser = argparse.ArgumentParser(prog="python -m integration.audit.flood", description=__doc__)
    parser.add_argument("--broker", choices=["rabbitmq", "kafka"], default="rabbitmq")
    parser.add_argument("--messages", type=int, default=100_000)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    service: Any = RabbitMQ if options.broker == "rabbitmq" else Kafka
    kind: Any = RabbitMQSource if options.broker == "rabbitmq" else KafkaSource
    with service.launch() as broker, tempfile.TemporaryDirectory() as folder:
        source = kind(broker.url)
        try:
            counts = flood(source, options.broker, options.messages, Path(folder))
        finally:
            source.close()
    print("\n".join(counts.lines()))
    return 0 if counts.good else 1


if __name__ == "__main__":
    sys.exit(main())
