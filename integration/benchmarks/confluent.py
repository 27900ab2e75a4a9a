"""What confluent-kafka's leaf costs: ``python -m integration.benchmarks.confluent kafka://host:port``.

CPU of this process for each record, librdkafka's threads included, in microseconds, the best of alternating
rounds: the client alone, the same where each field of a record is read, as a handler does, the wrapper, and the
same verdicts without client and engine, with the engine, and with engine and translation of records. Differences
between them are the shares of engine and leaf. ``--count`` counts instructions of Python in place of time.
"""

from __future__ import annotations

import argparse
import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from integration.benchmarks.counting import instructions, told
from mqauth import MemoryReplayStore, Pipeline
from mqauth.bench.inprocess import judge_all
from mqauth.bench.workload import Refusals
from mqauth.brokers import confluent
from mqauth.brokers.confluent.translate import translated
from mqauth.brokers.log.records import NO_LOG, RecordPlace
from mqauth.clock import SYSTEM_CLOCK
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LogWork
from mqauth.judging.verified import Verified
from mqauth.testing.forge import Forge
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.wire import message as wire

BODY: Final = b"x" * 1024
ROUNDS: Final = 7
MOST: Final = 500


class Sink:
    """An audit sink and a dead-letter sink that nothing reaches."""

    name = "none"

    def write(self, _record: Any, /) -> None:
        """Take an audit record."""

    def publish(self, _letter: Any, /) -> None:
        """Refuse a letter: all are honest."""
        raise AssertionError("an honest record was rejected")


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
        self._servers = {"bootstrap.servers": ",".join(self.stage.servers), "log_level": 2}
        self._config = self._servers | {"enable.idempotence": True}

    def guard(self) -> Pipeline:
        """Return a pipeline with a store of its own."""
        return Pipeline(
            verifier=self._forge.verifier(), policy=self._forge.policy(self.stage.destination),
            replay=MemoryReplayStore(), audit=Sink(),
        )  # fmt: skip

    def consumer(self) -> Consumer:
        """Return a client of a group of its own."""
        group = {"group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest", "enable.auto.offset.store": False}
        return Consumer(self._servers | group)

    def cost(self, work: Callable[[], None]) -> float:
        """Return the CPU of each record."""
        began = time.process_time()
        work()
        return (time.process_time() - began) / self._records * 1e6

    def produce_bare(self) -> None:
        """Send by the client alone."""
        client = Producer(self._config)
        for number in range(self._records):
            client.produce(self.stage.dead, BODY, b"%d" % number)
            client.poll(0)
        client.flush()

    def produce(self) -> None:
        """Send by the wrapper, in batches of 64."""
        client = Producer(self._config)
        producer = confluent.Producer(client, self._forge.signer(), config=self._config, batch=64)
        for number in range(self._records):
            producer.produce(self.stage.topic, BODY, b"%d" % number)
            producer.poll(0)
        producer.flush()

    def consume_bare(self, look: Callable[[Any], Any] = Message.value) -> list[Any]:
        """Read all by the client alone, and look at each record."""
        client, found = self.consumer(), list[Any]()
        client.assign([TopicPartition(self.stage.topic, 0, 0)])
        while len(found) < self._records:
            batch = client.consume(MOST, 0) or client.consume(1, 1.0)
            assert all(look(record) for record in batch)
            found += batch
        client.close()
        return found

    def consume_fields(self) -> None:
        """Read all by the client alone, and look at each field of each record."""
        self.consume_bare(fields)

    def consume(self, workers: int = 1) -> None:
        """Read all by the wrapper."""
        left = self._records

        def handler(_verified: Verified) -> None:
            nonlocal left
            left -= 1
            if not left:
                consumer.stop()

        client = self.consumer()
        client.assign([TopicPartition(self.stage.topic, 0, 0)])
        consumer = confluent.Consumer(
            client, self.guard(), handler, topics=[], dead_letters=Sink(), workers=workers
        )
        consumer.run()
        client.close()

    def judge(self, records: list[Any], made: Callable[[Any], wire.Message]) -> None:
        """Judge all by the engine, without a client."""
        guard, assignment = self.guard(), Assignment(SYSTEM_CLOCK)
        work = LogWork(guard, assignment, lambda _: None, lambda _: Sink())
        place = TopicPartition(self.stage.topic, 0)
        for first in range(0, len(records), MOST):
            assignment.receive(place, [made(each) for each in records[first : first + MOST]])
            partition = assignment.choose()
            assert partition is not None
            work.visit(partition)


def fields(record: Any) -> tuple[Any, ...]:
    """Return what a handler reads of a record."""
    return (
        record.error(), record.topic(), record.partition(), record.offset(), record.timestamp(), record.key(),
        record.value(), record.headers(),
    )  # fmt: skip


def works(bench: Bench) -> dict[str, Callable[[], Any]]:
    """Return the verdicts of a topic's records by what is around them; the records must be there."""
    records = bench.consume_bare()
    place = RecordPlace(bench.stage.topic, 0, "bench", NO_LOG)
    messages = [translated(record, place) for record in records]
    return {
        "verdict": lambda: judge_all(bench.guard(), messages, Refusals()),
        "verdict, engine": lambda: bench.judge(messages, lambda each: each),
        "verdict, engine, translation": lambda: bench.judge(records, partial(translated, place=place)),
    }


def count(bench: Bench, records: int) -> None:
    """Print how many instructions of Python a record takes, by module."""
    bench.produce()
    # Without a thread for the handlers, since those of one thread alone are counted.
    kinds = works(bench) | {"consume, wrapped": lambda: bench.consume(workers=0)}
    print(told({name: instructions(work) for name, work in kinds.items()}, records))


def measure(bench: Bench, fresh: Bench, rounds: int) -> None:
    """Print the least CPU time of each kind of work."""
    bench.produce()
    kinds: dict[str, Callable[[], Any]] = {
        "consume, bare": bench.consume_bare, "consume, bare, all fields": bench.consume_fields,
        "consume, wrapped": bench.consume, **works(bench), "produce, bare": bench.produce_bare,
        "produce, batches of 64": fresh.produce,
    }  # fmt: skip
    costs: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(rounds):
        for name, work in kinds.items():
            costs[name].append(bench.cost(work))
    best = {name: min(found) for name, found in costs.items()}
    for bare, told_as in (("consume, bare", ""), ("consume, bare, all fields", ", beside all fields")):
        best[f"engine and leaf{told_as}"] = best["consume, wrapped"] - best[bare] - best["verdict"]
    for name, cost in best.items():
        print(f"{name:34}{cost:8.2f} us")


def main() -> None:
    """Measure, or count, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--count", action="store_true", help="count instructions of Python in place of time")
    given = parser.parse_args()
    bench, fresh = Bench(given.url, given.records), Bench(given.url, given.records)
    if given.count:
        count(bench, given.records)
    else:
        measure(bench, fresh, given.rounds)
    for each in (bench, fresh):
        each.stage.close()


if __name__ == "__main__":
    main()
