"""What aiokafka's leaf costs: ``python -m integration.benchmarks.aiokafka kafka://host:port``.

CPU of this process for each record in microseconds, the best of alternating rounds: the client alone, the wrapper,
and the same verdicts without client and engine. Differences between them are the shares of engine and leaf.
"""

from __future__ import annotations

import argparse
import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from mqauth import MemoryReplayStore, Pipeline
from mqauth.bench.inprocess import judge_all
from mqauth.bench.workload import Refusals
from mqauth.brokers import aiokafka
from mqauth.judging.verified import Verified
from mqauth.testing.forge import Forge
from mqauth.testing.stage_kafka import KafkaStage

BODY: Final = b"x" * 1024
ROUNDS: Final = 7


class Bench:
    """A topic of honest records.

    Args:
        url: of the broker.
        records: how many.
    """

    def __init__(self, url: str, records: int) -> None:
        self.stage = KafkaStage(url)
        self._records = records
        self._forge = Forge(lifetime=3600)

    def guard(self) -> Pipeline:
        """Return a pipeline with a store of its own."""
        return Pipeline(
            verifier=self._forge.verifier(), policy=self._forge.policy(self.stage.destination),
            replay=MemoryReplayStore(), audit=Refusals(),
        )  # fmt: skip

    async def cost(self, work: Callable[[], Awaitable[Any]]) -> float:
        """Return the CPU of each record."""
        began = time.process_time()
        await work()
        return (time.process_time() - began) / self._records * 1e6

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
            for number in range(self._records):
                await client.send(self.stage.dead, BODY, b"%d" % number)
            await client.flush()

    async def produce(self, batch: int = 64) -> None:
        """Send by the wrapper."""
        client = self.producer()
        await client.start()
        async with aiokafka.Producer(client, self._forge.signer(), batch=batch) as producer:
            for number in range(self._records):
                await producer.send(self.stage.topic, BODY, b"%d" % number)

    async def consume_bare(self) -> list[Any]:
        """Read all by the client alone, committing each batch, and look at the bodies."""
        found: list[Any] = []
        async with self.consumer() as client:
            while len(found) < self._records:
                for records in (await client.getmany(timeout_ms=1000)).values():
                    assert all(record.value for record in records)
                    found += records
                await client.commit()
        return found

    async def consume(self) -> None:
        """Read all by the wrapper."""
        left, over = self._records, asyncio.Event()

        def handler(_verified: Verified) -> None:
            nonlocal left
            left -= 1
            if not left:
                over.set()

        async with (
            self.consumer() as client,
            aiokafka.Consumer(client, self.guard(), handler, dead_letters=Refusals()),
        ):
            await over.wait()

    async def judge(self, messages: list[Any]) -> None:
        """Judge all without a client."""
        judge_all(self.guard(), messages, Refusals())


async def measure(bench: Bench, fresh: Bench, rounds: int) -> dict[str, float]:
    """Return the least cost of each kind of work."""
    await bench.produce()
    messages = [aiokafka.from_native(record, scope="bench") for record in await bench.consume_bare()]
    costs: dict[str, list[float]] = {}
    for _ in range(rounds):
        for name, work in (
            ("consume, bare", bench.consume_bare), ("consume, wrapped", bench.consume),
            ("verdict", lambda: bench.judge(messages)),
            ("produce, bare", bench.produce_bare), ("produce, batches of 64", fresh.produce),
        ):  # fmt: skip
            costs.setdefault(name, []).append(await bench.cost(work))
    best = {name: min(found) for name, found in costs.items()}
    return best | {"engine and leaf": best["consume, wrapped"] - best["consume, bare"] - best["verdict"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    given = parser.parse_args()
    bench, fresh = Bench(given.url, given.records), Bench(given.url, given.records)
    for name, cost in asyncio.run(measure(bench, fresh, given.rounds)).items():
        print(f"{name:30}{cost:8.2f} us")
    for each in (bench, fresh):
        each.stage.close()


if __name__ == "__main__":
    main()
