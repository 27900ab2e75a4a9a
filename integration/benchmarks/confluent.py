"""What confluent-kafka's leaf costs: ``python -m integration.benchmarks.confluent kafka://host:port``.

CPU of this process for each record, librdkafka's threads included, in microseconds, the best of alternating
rounds: the client alone, the same where each field of a record is read, as a handler does, the wrapper, and the
same verdicts without client and engine, with the engine, and with engine and translation of records. Differences
between them are the shares of engine and leaf. ``--count`` counts instructions of Python in place of time.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from confluent_kafka import Consumer, Message, Producer, TopicPartition

from integration.benchmarks.client.inprocess import judge_all
from integration.benchmarks.client.workload import Refusals
from integration.benchmarks.counting import instructions, told
from integration.benchmarks.leaf import BODY, LeafBench, command, tell
from mqauth.brokers import confluent
from mqauth.brokers.confluent.client import translated
from mqauth.brokers.log.records import NO_LOG, RecordPlace
from mqauth.clock import SYSTEM_CLOCK
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.start import Committed, Start
from mqauth.wire import message as wire

MOST: Final = 500


class Bench(LeafBench):
    """A topic of honest records, and what confluent-kafka does with it.

    Args:
        url: of the broker.
        records: how many.
    """

    def __init__(self, url: str, records: int) -> None:
        super().__init__(url, records)
        self._servers = {"bootstrap.servers": ",".join(self.stage.servers), "log_level": 2}
        self._config = self._servers | {"enable.idempotence": True}

    def consumer(self) -> Consumer:
        """Return a client of a group of its own."""
        return Consumer(self.settings())

    def settings(self) -> dict[str, Any]:
        """Return the settings of a group of its own."""
        group = {"group.id": uuid.uuid4().hex, "auto.offset.reset": "earliest", "enable.auto.offset.store": False}
        return self._servers | group

    def produce_bare(self) -> None:
        """Send by the client alone."""
        client = Producer(self._config)
        for number in range(self.records):
            client.produce(self.stage.dead, BODY, b"%d" % number)
            client.poll(0)
        client.flush()

    def produce(self) -> None:
        """Send by the wrapper, in batches of 64."""
        client = Producer(self._config)
        producer = confluent.Producer(client, self.forge.signer(), config=self._config, batch=64)
        for number in range(self.records):
            producer.produce(self.stage.topic, BODY, b"%d" % number)
            producer.poll(0)
        producer.flush()

    def consume_bare(self, look: Callable[[Any], Any] = Message.value) -> list[Any]:
        """Read all by the client alone, and look at each record."""
        client, found = self.consumer(), list[Any]()
        client.assign([TopicPartition(self.stage.topic, 0, 0)])
        while len(found) < self.records:
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
        config = self.settings()
        client = Consumer(config)
        client.assign([TopicPartition(self.stage.topic, 0, 0)])
        handler = self.handler(lambda: consumer.stop())  # noqa: PLW0108 - made below
        consumer = confluent.Consumer(
            client, self.guard(), handler, config=config, topics=[], dead_letters=Refusals(), workers=workers
        )
        consumer.run()
        client.close()

    def judge(self, records: list[Any], made: Callable[[Any], wire.Message]) -> None:
        """Judge all by the engine, without a client."""
        guard, assignment = self.guard(), Assignment(SYSTEM_CLOCK)
        work = LogWork(guard, assignment, lambda _: None, lambda _: Refusals())
        place = TopicPartition(self.stage.topic, 0)
        assignment.begin({place: Start(0, Committed(0, ""), seek=False)}, (place,))
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


def count(bench: Bench) -> None:
    """Print how many instructions of Python a record takes, by module."""
    # Without a thread for the handlers, since those of one thread alone are counted.
    kinds = works(bench) | {"consume, wrapped": lambda: bench.consume(workers=0)}
    print(told({name: instructions(work) for name, work in kinds.items()}, bench.records))


def measure(bench: Bench, fresh: Bench, rounds: int) -> None:
    """Print the least CPU time of each kind of work."""
    kinds: dict[str, Callable[[], Any]] = {
        "consume, bare": bench.consume_bare, "consume, bare, all fields": bench.consume_fields,
        "consume, wrapped": bench.consume, **works(bench), "produce, bare": bench.produce_bare,
        "produce, batches of 64": fresh.produce,
    }  # fmt: skip
    best = bench.least(kinds, rounds)
    beside = best["consume, wrapped"] - best["consume, bare, all fields"] - best["verdict"]
    tell(best | {"engine and leaf, beside all fields": beside})


def main() -> None:
    """Measure, or count, and print."""
    with command(__doc__, Bench, counts=True) as given:
        given.bench.produce()
        if given.count:
            count(given.bench)
        else:
            measure(given.bench, given.fresh, given.rounds)


if __name__ == "__main__":
    main()
