"""The Kafka wrapper on a real broker: poison, rebalances, slow handlers, dead letters, producers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import TopicPartition
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import MessageSizeTooLargeError

from integration.services import Kafka
from mqauth import AuditFile, MemoryReplayStore, Pipeline, Verified
from mqauth.brokers import kafka as wrapper
from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.flow import Attempts
from mqauth.testing.forge import Forge
from mqauth.testing.stage_kafka import KafkaStage, wait_until
from mqauth.wire.message import Message


class NotUtf8(str):
    """A header name that kafka-python sends as bytes that are no UTF-8."""

    def encode(self, *_: Any) -> bytes:  # type: ignore[override]
        """Return what no reader of kafka-python can decode."""
        return b"\xff\xfe"


@dataclass
class Bench:
    """A stage, its clients to be closed, and what was handled."""

    stage: KafkaStage
    audit: AuditFile
    forge: Forge = field(default_factory=lambda: Forge(lifetime=600))
    handled: list[bytes | None] = field(default_factory=list)
    clients: list[Any] = field(default_factory=list)

    def guard(self, **settings: Any) -> Pipeline:
        """Return a pipeline that trusts the forge's producer on the stage's source."""
        wanted: dict[str, Any] = {
            "verifier": self.forge.verifier(), "policy": self.forge.policy(self.stage.destination),
            "replay": MemoryReplayStore(), "audit": self.audit, "attempts": Attempts(limit=2, wait=0, wait_max=0),
        }  # fmt: skip
        return Pipeline(**(wanted | settings))

    def handler(self, verified: Verified) -> None:
        """Remember what was handled."""
        self.handled.append(verified.body)

    def message(self, body: bytes, key: bytes = b"k") -> Message:
        """Return an honest, unsigned message."""
        return Message(destination=self.stage.destination, body=body, key=key)

    def send(self, *bodies: bytes, partition: int = 0) -> None:
        """Send signed, to one partition, and wait for the broker."""
        for body in bodies:
            future: Any = self.producer().send(self.stage.topic, body, b"k", None, partition)
            future.get(timeout=30)

    def send_raw(self, *records: tuple[bytes, Any], partition: int = 0) -> None:
        """Send records in one batch past mqauth, each with its headers."""
        client = self.keep(self.stage.dead_letter_client(linger_ms=500))
        futures = [
            client.send(self.stage.topic, value=body, key=b"k", headers=headers, partition=partition)
            for body, headers in records
        ]
        client.flush()
        assert [future.get(timeout=30).offset for future in futures]

    def producer(self, **settings: Any) -> wrapper.Producer:
        """Return a wrapped producer."""
        return wrapper.Producer(self.stage._client, self.forge.signer(), **settings)

    def keep(self, client: Any) -> Any:
        """Have a client closed at the end."""
        self.clients.append(client)
        return client

    def consumer(self, handler: Callable[[Verified], Any] | None = None, /, **settings: Any) -> wrapper.Consumer:
        """Return a wrapped consumer; ``client`` holds settings of the client's own."""
        client = self.keep(self.stage.consumer(**settings.pop("client", {})))
        letters = wrapper.DeadLetters(self.keep(self.stage.dead_letter_client()), self.stage.dead, timeout=5)
        wanted: dict[str, Any] = {"dead_letters": letters, "backoff": wrapper.Backoff(first=0.1, longest=1)}
        guard = settings.pop("guard", None) or self.guard()
        return wrapper.Consumer(client, guard, handler or self.handler, **(wanted | settings))

    def committed(self, partition: int = 0) -> int | None:
        """Return the group's committed offset."""
        client = self.stage.consumer()
        try:
            offset: int | None = client.committed(TopicPartition(self.stage.topic, partition))
            return offset
        finally:
            client.close()


@pytest.fixture
def make(kafka: Kafka, tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """A maker of benches."""
    made: list[Bench] = []

    def bench(**settings: Any) -> Bench:
        audit = AuditFile(tmp_path / f"audit-{len(made)}.jsonl", fsync=False)
        made.append(Bench(KafkaStage(kafka.url, **settings), audit))
        return made[-1]

    yield bench
    for each in made:
        for client in each.clients:
            client.close()
        each.stage.close()
        each.audit.close()


@pytest.fixture
def bench(make: Callable[..., Bench]) -> Bench:
    """A bench with a source of one partition."""
    return make()


def test_a_response_that_has_just_come(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A response that lands between the client's two looks is delivered by that very poll, without a sleep."""
    bench.send(b"0")
    place, client = TopicPartition(bench.stage.topic, 0), bench.keep(bench.stage.consumer())
    while not client.assignment():
        kafka_repair.before_poll(client)
        client.poll(timeout_ms=50)
    client.seek(place, 0)
    fetcher, slept = client._fetcher, list[float]()
    wait_until(lambda: bool(fetcher.send_fetches() is not None and fetcher._completed_fetches))
    look = fetcher.fetched_records

    def too_early(*_: Any, **__: Any) -> tuple[dict[Any, Any], bool]:
        monkeypatch.setattr(fetcher, "fetched_records", look)
        return {}, False

    monkeypatch.setattr(fetcher, "fetched_records", too_early)
    monkeypatch.setattr("kafka.consumer.group.time", SimpleNamespace(sleep=slept.append, monotonic=time.monotonic))
    kafka_repair.before_poll(client)
    assert [record.value for record in client.poll(timeout_ms=30_000)[place]] == [b"0"]
    assert slept == []


def test_poison_stops(bench: Bench) -> None:
    """A record whose header name is not UTF-8, which the broker takes, ends the run by name; nothing spins."""
    bench.send(b"0", b"1")
    bench.send_raw((b"good", [("a", b"b")]), (b"poison", [(NotUtf8("x"), b"v")]), (b"behind", []))
    consumer = bench.consumer()
    with pytest.raises(wrapper.PoisonRecordError, match="from offset 3 to 4 cannot be parsed"):
        consumer.run()
    assert bench.handled == [b"0", b"1"]
    assert [letter.body for letter in bench.stage.letters()] == [b"good"]
    assert bench.committed() == 3


def test_poison_skipped(make: Callable[..., Bench]) -> None:
    """With ``skip`` the range is audited and stepped over; what follows and other partitions go on."""
    bench = make(partitions=2)
    bench.send_raw((b"poison", [(NotUtf8("x"), b"v")]), (b"lost with its batch", []))
    bench.send(b"after")
    bench.send(b"other", b"another", partition=1)
    with bench.consumer(on_poison="skip") as consumer:
        wait_until(lambda: len(bench.handled) == 3 or consumer.failed)
    assert sorted(filter(None, bench.handled)) == [b"after", b"another", b"other"]
    assert "offsets 0 to 1 skipped" in bench.audit.path.read_text()
    assert (bench.committed(0), bench.committed(1)) == (3, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "assignor", [RangePartitionAssignor, CooperativeStickyAssignor], ids=["eager", "cooperative"]
)
def test_rebalance(make: Callable[..., Bench], assignor: Any) -> None:
    """A second consumer that comes and goes while a handler outlasts the grace time costs no message."""
    bench = make(partitions=4)
    total = 400
    for number in range(total):
        bench.send(b"%d" % number, partition=number % 4)
    started, joined = threading.Event(), threading.Event()

    def handler(verified: Verified) -> None:
        bench.handler(verified)
        started.set()
        if len(bench.handled) == 20:
            joined.wait(timeout=30)

    client = {"partition_assignment_strategy": [assignor], "max_poll_records": 50}
    store = MemoryReplayStore()
    with bench.consumer(handler, client=client, guard=bench.guard(replay=store), grace=1) as first:
        assert started.wait(timeout=30)
        with bench.consumer(client=client, guard=bench.guard(replay=store)) as second:
            wait_until(lambda: bool(second.calls._client.assignment()))
            joined.set()
            wait_until(lambda: len(set(bench.handled)) >= total // 2 or first.failed or second.failed)
        second.calls._client.close()
        wait_until(lambda: len(set(bench.handled)) == total or first.failed)
    assert set(bench.handled) == {b"%d" % number for number in range(total)}
    assert bench.stage.letters() == []
    assert [bench.committed(partition) for partition in range(4)] == [total // 4] * 4


def test_slow_handler(bench: Bench) -> None:
    """A handler longer than ``max_poll_interval_ms`` keeps its partition, and its record is handled once."""
    bench.send(b"slow", b"next")
    slow = threading.Event()

    def handler(verified: Verified) -> None:
        if verified.body == b"slow":
            slow.wait(timeout=4)
        bench.handler(verified)

    client = {"max_poll_interval_ms": 1500, "session_timeout_ms": 6000, "heartbeat_interval_ms": 300}
    with bench.consumer(handler, client=client) as consumer:
        wait_until(lambda: len(bench.handled) >= 2 or consumer.failed)
    assert bench.handled == [b"slow", b"next"]
    assert bench.committed() == 2


def test_stop_hands_back(bench: Bench) -> None:
    """After ``stop`` the client stands at the first unsettled record, and the next consumer goes on from there."""
    bench.send(*(b"%d" % number for number in range(10)))

    def handler(verified: Verified) -> None:
        bench.handler(verified)
        if len(bench.handled) == 4:
            consumer.stop()

    consumer = bench.consumer(handler)
    consumer.run()
    assert consumer.calls._client.position(TopicPartition(bench.stage.topic, 0)) == 4
    assert bench.committed() == 4
    consumer.calls._client.close()
    with bench.consumer() as after:
        wait_until(lambda: len(bench.handled) == 10 or after.failed)
    assert bench.handled == [b"%d" % number for number in range(10)]


def test_large_letters(bench: Bench) -> None:
    """A letter the dead-letter topic refuses as too large goes by reference at once, and nothing stalls."""
    bench.stage.remove_dead_letters()
    bench.stage.create(bench.stage.dead, config={"max.message.bytes": "3000"})
    bench.send_raw((b"x" * 10_000, []))
    bench.send(b"behind")
    with bench.consumer() as consumer:
        wait_until(lambda: bench.handled == [b"behind"] or consumer.failed)
    (letter,) = bench.stage.letters()
    assert letter.occurrences("mqauth-dead-form") == (b"reference",)
    assert b'"body_size":10000' in (letter.body or b"")
    assert bench.committed() == 2


def test_tombstone_letter(bench: Bench) -> None:
    """A rejected tombstone is dead-lettered as a tombstone of the same key."""
    bench.stage.inject(replace(bench.message(b""), body=None))
    with bench.consumer() as consumer:
        wait_until(lambda: bool(bench.stage.letters()) or consumer.failed)
    (letter,) = bench.stage.letters()
    assert (letter.body, letter.key) == (None, b"k")


def test_reply(bench: Bench) -> None:
    """A signed answer reaches the topic in reply-to with the correlation id, and verifies there."""
    answers = bench.stage.dead
    headers = [("reply-to", answers.encode()), ("correlation-id", b"7")]
    future: Any = bench.producer().send(bench.stage.topic, b"ping", b"k", headers)
    future.get(timeout=30)
    with bench.consumer(
        lambda verified: verified.reply(b"pong").get(timeout=30), replies=bench.producer()
    ) as consumer:
        wait_until(lambda: bool(bench.stage.letters()) or consumer.failed)
    (answer,) = bench.stage.letters()
    verifier = bench.forge.verifier()
    verified = verifier.verify(answer, verifier.open(answer), bench.forge.keys, bench.forge.clock.now())
    assert (verified.body, verified.properties) == (b"pong", {"correlation-id": "7"})


def test_poisoned_producer(bench: Bench) -> None:
    """One record refused for good poisons an idempotent producer; we say so instead of sending into the void."""
    small = bench.stage.topic + ".small"
    bench.stage.create(small, config={"max.message.bytes": "2000"})
    client = bench.keep(type(bench.stage._client)(bootstrap_servers=bench.stage.servers))
    producer = wrapper.Producer(client, bench.forge.signer())
    future: Any = producer.send(small, b"x" * 5000, b"k")
    with pytest.raises(MessageSizeTooLargeError):
        future.get(timeout=30)
    with pytest.raises(wrapper.ProducerFatalError, match="MessageSizeTooLargeError"):
        producer.send(bench.stage.topic, b"small", b"k")
    bench.stage.admin.delete_topics([small])


def test_in_flight_bound(bench: Bench) -> None:
    """Records in flight are bounded, and room is given back as the broker acknowledges them."""
    producer = bench.producer(max_in_flight=3)
    futures: list[Any] = [producer.send(bench.stage.topic, b"%d" % number, b"k") for number in range(50)]
    producer.flush(30)
    assert [future.get(timeout=30).offset for future in futures] == list(range(50))
