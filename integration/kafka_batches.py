"""What a batching Kafka producer must do, for a client of our own making and for kafka-python on a real broker."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any, NamedTuple, Protocol

import pytest
from kafka import TopicPartition
from kafka.errors import IllegalStateError, KafkaTimeoutError, MessageSizeTooLargeError
from kafka.producer.future import (
    FutureProduceResult,
    FutureRecordMetadata,
    RecordMetadata,
)

from mqauth.brokers.kafka.producer import Producer
from mqauth.errors import Cause, ConfigurationError, MalformedMessage, Unavailable
from mqauth.judging.verified import Verified
from mqauth.testing.forge import Forge
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.message import Message

FOREVER: Any = 10
PATIENCE: Any = 60


class Seen(NamedTuple):
    """A record as it stands in its log."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    timestamp_ms: int


class World(Protocol):
    """A topic of two partitions, and clients for it."""

    topic: str

    def client(self, **settings: Any) -> Any:
        """Return a new client."""

    def settle(self) -> None:
        """Have acknowledged what was sent."""

    def log(self) -> list[Seen]:
        """Return every committed record, each partition in its order."""


class Vault:
    """A key that can be out of reach."""

    algorithm = "EdDSA"

    def __init__(self, forge: Forge) -> None:
        self.kid = forge.key.kid
        self.error: BaseException | None = None
        self._key = LocalSigningKey(forge.key)

    def sign(self, data: bytes, /) -> bytes:
        """Sign, or raise."""
        if self.error is not None:
            raise self.error
        return self._key.sign(data)


class FakeClient:
    """As much of a ``KafkaProducer`` as the producer uses; a test says when records are acknowledged."""

    def __init__(self, **config: Any) -> None:
        self.config = {
            "enable_idempotence": True, "key_serializer": None, "value_serializer": None, "max_block_ms": 60_000,
            "max_request_size": 1_048_576, "transactional_id": None, "batch_size": 262_144, "linger_ms": 0,
        } | config  # fmt: skip
        self.topics = {"orders": 2}
        self.logs: defaultdict[tuple[str, int], list[Seen]] = defaultdict(list)
        self.sends: list[str] = []
        self._pending: list[tuple[TopicPartition, int, FutureProduceResult]] = []
        self._open: list[tuple[TopicPartition, int, FutureProduceResult]] | None = None
        self._closed = False

    def send(
        self,
        topic: str,
        *,
        value: Any,
        key: Any,
        headers: Any,
        partition: int | None,
        timestamp_ms: int | None,
    ) -> Any:
        """Append a record."""
        self.sends.append(topic)
        if self._closed or (self.config["transactional_id"] and self._open is None):
            raise IllegalStateError("closed, or no transaction")
        if topic not in self.topics:
            raise KafkaTimeoutError("no metadata")
        if partition is not None and partition >= self.topics[topic]:
            raise ValueError("no such partition")
        if len(value or b"") > self.config["max_request_size"]:
            raise MessageSizeTooLargeError
        place: Any = TopicPartition(
            topic, sum(key or b"") % 2 if partition is None else partition
        )
        log = self.logs[place]
        log.append(
            Seen(place.partition, len(log), key, value, tuple(headers), timestamp_ms or 0)
        )
        result: Any = FutureProduceResult(place)  # type: ignore[no-untyped-call]
        self._pending.append((place, len(log) - 1, result))
        return FutureRecordMetadata(result, 0, timestamp_ms, None, -1, -1, -1)  # type: ignore[no-untyped-call]

    def partitions_for(self, topic: str) -> set[int]:
        """Return a topic's partitions; wait for none."""
        if topic not in self.topics:
            raise KafkaTimeoutError("no metadata")
        return set(range(self.topics[topic]))

    def _partition(self, topic: str, *_: Any) -> int | None:
        """Return a partition for a record without a key, each in its turn; ``None`` without metadata."""
        return len(self.sends) % self.topics[topic] if topic in self.topics else None

    def acknowledge(self) -> None:
        """Resolve the futures of all that was sent."""
        pending, self._pending = self._pending, []
        for _, offset, result in pending:
            result.success((offset, -1, None))

    def flush(self, _timeout: float | None = None) -> None:
        """Acknowledge."""
        self.acknowledge()

    def close(self, _timeout: float | None = None) -> None:
        """Acknowledge, and take no more."""
        self.acknowledge()
        self._closed = True

    def init_transactions(self) -> None:
        """Do nothing."""

    def begin_transaction(self) -> None:
        """Note where the logs end."""
        self._open = []
        self._marks = {place: len(log) for place, log in self.logs.items()}

    def commit_transaction(self) -> None:
        """Keep what was sent."""
        self.acknowledge()
        self._open = None

    def abort_transaction(self) -> None:
        """Forget what was sent."""
        self.acknowledge()
        self._open = None
        for place, log in self.logs.items():
            del log[self._marks.get(place, 0) :]


def verified(forge: Forge, topic: str, seen: Seen) -> Verified:
    """Return a record of the log, verified."""
    message = Message(
        destination=f"kafka:{topic}", body=seen.value, key=seen.key, headers=seen.headers
    )
    verifier = forge.verifier()
    return verifier.verify(message, verifier.open(message), forge.keys, forge.clock.now())


def tokens(log: list[Seen]) -> set[bytes]:
    """Return the different tokens, without their proofs."""
    return {dict(seen.headers)["mqauth-token"].partition(b"~")[0] for seen in log}


class BatchContract:
    """Inherit it and give a fixture ``world``."""

    @pytest.fixture
    def forge(self) -> Forge:
        """An honest producer."""
        return Forge(lifetime=600)

    @pytest.fixture
    def vault(self, forge: Forge) -> Vault:
        """Its key."""
        return Vault(forge)

    @pytest.fixture
    def producer(self, world: World, forge: Forge, vault: Vault) -> Iterator[Producer]:
        """A producer of batches of 8 that wait 10 seconds; its topic is known, and a record is in flight."""
        found = Producer(
            world.client(linger_ms=5000), forge.signer(key=vault), batch=8, linger=FOREVER
        )
        found.send(world.topic, b"first", b"k", None, 0)
        yield found
        vault.error = None
        with suppress(Unavailable):
            found.close(PATIENCE)

    def test_together(self, producer: Producer, world: World, forge: Forge) -> None:
        """Twenty records are 3 batches; each verifies, resolves where it stands, and partitions keep the order."""
        futures = [
            producer.send(world.topic, b"%d" % n, b"k%d" % n, [("n", b"1")], n % 2)
            for n in range(20)
        ]
        assert not any(future.is_done for future in futures[16:])
        producer.flush(PATIENCE)
        log = world.log()
        assert [verified(forge, world.topic, seen).body for seen in log if seen.partition == 0] == [
            b"first", *(b"%d" % n for n in range(0, 20, 2))]  # fmt: skip
        assert [verified(forge, world.topic, seen).body for seen in log if seen.partition == 1] == [
            b"%d" % n for n in range(1, 20, 2)]  # fmt: skip
        places = {seen.value: (seen.partition, seen.offset) for seen in log}
        metadata = [future.get(timeout=PATIENCE) for future in futures]
        assert [(found.partition, found.offset) for found in metadata] == [
            places[b"%d" % n] for n in range(20)
        ]
        assert len(tokens(log)) == 4

    def test_arguments(self, world: World, forge: Forge) -> None:
        """Key, headers, partition and timestamp reach the log as given, the value as it was serialized."""
        then, headers = int(forge.clock.now()) * 1000, [("a", b"1"), ("a", b"2")]
        producer = Producer(
            world.client(),
            forge.signer(),
            batch=8,
            value_serializer=lambda n: b"<%d>" % n,
        )
        for n in range(4):
            producer.send(world.topic, n, b"k", headers, partition=1, timestamp_ms=then)
        producer.close(PATIENCE)
        assert [
            (seen[:4], list(seen.headers[:-1]), seen.timestamp_ms) for seen in world.log()
        ] == [((1, n, b"k", b"<%d>" % n), headers, then) for n in range(4)]

    def test_futures(self, producer: Producer, world: World) -> None:
        """A future is the client's in all its ways, whether it is asked before or after its batch was sealed."""
        future: Any = producer.send(world.topic, b"v", b"k", None, 1)
        told: list[Any] = []
        chained: Any = FutureProduceResult(TopicPartition(world.topic, 1))  # type: ignore[no-untyped-call]
        future.add_callback(told.append).add_errback(told.append)
        future.add_callback(lambda a, _: told.append(a), "before")
        future.add_both(lambda _: told.append("both")).chain(chained)
        assert (future.is_done, future.succeeded(), future.failed(), future.value, future.exception) == (
            False, False, False, None, None)  # fmt: skip
        with pytest.raises(KafkaTimeoutError):
            future.get(timeout=0)
        producer.flush(PATIENCE)
        found = future.get(timeout=PATIENCE)
        assert isinstance(found, RecordMetadata)
        assert told == [found, "before", "both"]
        future.add_callback(told.append).add_errback(told.append)
        assert told[3:] == [found]
        assert (future.is_done, future.succeeded(), future.failed(), future.value, future.retriable()) == (
            True, True, False, found, False)  # fmt: skip
        assert chained.value == found

    def test_close(self, producer: Producer, world: World) -> None:
        """Nothing is held back by ``close``, and nothing is taken after it."""
        future = producer.send(world.topic, b"last", b"k")
        producer.close(PATIENCE)
        assert future.succeeded()
        assert [seen.value for seen in world.log() if seen.value == b"last"] == [b"last"]
        for topic in (world.topic, "another"):
            with pytest.raises(IllegalStateError):
                producer.send(topic, b"late", b"k")

    def test_at_once(self, world: World, forge: Forge) -> None:
        """While nothing is in flight a record waits for no other: it is sent with a token of its own."""
        producer = Producer(world.client(), forge.signer(), batch=8, linger=FOREVER)
        for n in range(3):
            future = producer.send(world.topic, b"%d" % n, b"k", None, 0)
            world.settle()
            assert future.get(timeout=FOREVER / 2).offset == n
        producer.close(PATIENCE)
        assert len(tokens(world.log())) == 3

    def test_linger(self, world: World, forge: Forge) -> None:
        """A record waits no longer than ``linger`` for others, though nobody flushes or keeps the producer."""
        producer = Producer(
            world.client(linger_ms=5000), forge.signer(), batch=8, linger=0.001
        )
        producer.send(world.topic, b"first", b"k", None, 0)
        future: Any = producer.send(world.topic, b"second", b"k", None, 0)
        client = producer.client
        del producer
        assert future.sealing.is_sent(future, PATIENCE)
        client.close()
        assert future.get(timeout=PATIENCE).offset == 1

    def test_no_key(
        self, producer: Producer, world: World, vault: Vault, forge: Forge
    ) -> None:
        """A batch without a signature fails whole, by its cause, and is never sent; the next one is."""
        vault.error = Unavailable(Cause.KEYS_UNAVAILABLE, "socket")
        told: list[Any] = []
        failed: list[Any] = [producer.send(world.topic, b"lost", b"k") for _ in range(11)]
        failed[0].add_errback(told.append)
        producer.flush(PATIENCE)
        assert [future.exception for future in failed] == [vault.error] * 11
        assert told == [vault.error]
        with pytest.raises(Unavailable):
            failed[0].get()
        vault.error = None
        later = [producer.send(world.topic, b"later", b"k") for _ in range(3)]
        producer.flush(PATIENCE)
        assert all(future.succeeded() for future in later)
        assert sorted(verified(forge, world.topic, seen).body or b"" for seen in world.log()) == [
            b"first", *[b"later"] * 3]  # fmt: skip

    def test_refused(self, producer: Producer, world: World) -> None:
        """What cannot be signed is told to its sender; what the client refuses fails alone."""
        good = [producer.send(world.topic, b"good", b"k")]
        with pytest.raises(MalformedMessage):
            producer.send(
                world.topic,
                b"v",
                headers=[("a", b"1"), ("A", b"2"), ("mqauth-token", b"mine")],
            )
        large = producer.send(world.topic, bytes(1_048_577), b"k")
        nowhere = producer.send(world.topic, b"v", b"k", None, 7)
        good.append(producer.send(world.topic, b"good", b"k"))
        producer.flush(PATIENCE)
        assert all(future.succeeded() for future in good)
        assert isinstance(large.exception, MessageSizeTooLargeError)
        assert isinstance(nowhere.exception, ValueError)
        assert len(world.log()) == 3

    def test_threads(self, producer: Producer, world: World, forge: Forge) -> None:
        """Threads share a producer: each one's records keep their order, and none is lost."""

        def send(thread: int) -> None:
            for n in range(50):
                producer.send(world.topic, b"%d %d" % (thread, n), b"k", None, n % 2)

        threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        producer.flush(PATIENCE)
        log = [verified(forge, world.topic, seen).body or b"" for seen in world.log()]
        log.remove(b"first")
        for partition in (0, 1):
            for number in range(4):
                mine = [
                    int(body.split()[1])
                    for body in log
                    if body.startswith(b"%d " % number)
                ]
                assert [n for n in mine if n % 2 == partition] == list(
                    range(partition, 50, 2)
                )
        assert len(log) == 200

    @pytest.fixture
    def transactional(
        self, world: World, forge: Forge, vault: Vault
    ) -> Iterator[Producer]:
        """A producer whose client has transactions."""
        client = world.client(transactional_id=f"{world.topic}.writer")
        client.init_transactions()
        found = Producer(client, forge.signer(key=vault), batch=8, linger=FOREVER)
        yield found
        found.close(PATIENCE)

    def test_commit(self, transactional: Producer, world: World, forge: Forge) -> None:
        """A commit seals first; an abort takes with it what waits."""
        transactional.begin_transaction()
        for n in range(11):
            transactional.send(world.topic, b"%d" % n, b"k", None, 0)
        transactional.commit_transaction()
        transactional.begin_transaction()
        for _ in range(11):
            transactional.send(world.topic, b"aborted", b"k", None, 0)
        transactional.abort_transaction()
        assert [verified(forge, world.topic, seen).body for seen in world.log()] == [
            b"%d" % n for n in range(11)
        ]

    def test_incomplete_transaction(
        self, transactional: Producer, world: World, vault: Vault
    ) -> None:
        """A transaction that lacks a record is not committed; the next one is."""
        transactional.begin_transaction()
        transactional.send(world.topic, b"1", b"k")
        transactional.send(world.topic, b"2", b"k")
        vault.error = Unavailable(Cause.KEYS_UNAVAILABLE, "socket")
        transactional.send(world.topic, b"3", b"k")
        with pytest.raises(Unavailable):
            transactional.commit_transaction()
        transactional.abort_transaction()
        vault.error = None
        transactional.begin_transaction()
        transactional.send(world.topic, b"4", b"k")
        transactional.commit_transaction()
        assert [seen.value for seen in world.log()] == [b"4"]

    def test_transaction_of_the_client(
        self, transactional: Producer, world: World
    ) -> None:
        """A transaction begun past the producer, which could end without what waits, is refused."""
        transactional.client.begin_transaction()
        with pytest.raises(ConfigurationError, match="begin"):
            transactional.send(world.topic, b"v", b"k")
        transactional.client.abort_transaction()
