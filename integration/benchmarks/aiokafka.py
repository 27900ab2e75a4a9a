"""What aiokafka's leaf costs: ``python -m integration.benchmarks.aiokafka kafka://host:port``.

CPU of this process for each record in microseconds, the best of alternating rounds: the client alone, the wrapper,
and the same verdicts without client and engine. Differences between them are the shares of engine and leaf.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from integration.benchmarks.client.inprocess import judge_all
from integration.benchmarks.client.workload import Refusals
from integration.benchmarks.leaf import BODY, LeafBench, command, tell
from mqauth.brokers import aiokafka


class Bench(LeafBench):
    """A topic of honest records, and what aiokafka does with it."""

    def producer(self) -> AIOKafkaProducer:
        """Return a client."""
        return AIOKafkaProducer(bootstrap_servers=self.stage.servers, enable_idempotence=True, linger_ms=5)

    def consumer(self) -> AIOKafkaConsumer:
        """Return a client of a group of its own, with the topic's partition."""
        client = AIOKafkaConsumer(
            bootstrap_servers=self.stage.servers, group_id=uuid.uuid4().hex, enable_auto_commit=False,
            auto_offset_reset="earliest",
        )  # fmt: skip
        client.assign([TopicPartition(self.stage.topic, 0)])
        return client

    async def produce_bare(self) -> None:
        """Send by the client alone."""
        async with self.producer() as client:
            for number in range(self.records):
                await client.send(self.stage.dead, BODY, b"%d" % number)
            await client.flush()

    async def produce(self, batch: int = 64) -> None:
        """Send by the wrapper."""
        client = self.producer()
        await client.start()
        async with aiokafka.Producer(client, self.forge.signer(), batch=batch) as producer:
            for number in range(self.records):
                await producer.send(self.stage.topic, BODY, b"%d" % number)

    async def consume_bare(self) -> list[Any]:
        """Read all by the client alone, committing each batch, and look at the bodies."""
        found: list[Any] = []
        async with self.consumer() as client:
            while len(found) < self.records:
                for records in (await client.getmany(timeout_ms=1000)).values():
                    assert all(record.value for record in records)
                    found += records
                await client.commit()
        return found

    async def consume(self) -> None:
        """Read all by the wrapper."""
        over = asyncio.Event()
        handler = self.handler(over.set)
        async with (
            self.consumer() as client,
            aiokafka.Consumer(client, self.guard(), handler, dead_letters=Refusals()),
        ):
            await over.wait()


def works(bench: Bench, fresh: Bench) -> dict[str, Callable[[], Any]]:
    """Return what is measured; the records must be there."""
    messages = [aiokafka.from_native(record, scope="bench") for record in asyncio.run(bench.consume_bare())]
    return {
        "consume, bare": lambda: asyncio.run(bench.consume_bare()),
        "consume, wrapped": lambda: asyncio.run(bench.consume()),
        "verdict": lambda: judge_all(bench.guard(), messages, Refusals()),
        "produce, bare": lambda: asyncio.run(bench.produce_bare()),
        "produce, batches of 64": lambda: asyncio.run(fresh.produce()),
    }


def main() -> None:
    """Measure and print."""
    with command(__doc__, Bench) as given:
        asyncio.run(given.bench.produce())
        tell(given.bench.least(works(given.bench, given.fresh), given.rounds))


if __name__ == "__main__":
    main()
