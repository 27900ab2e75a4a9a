"""aiokafka's leaf on a real Kafka: what its client cannot parse, kills of its process, storms of rebalances."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import CommitFailedError
from aiokafka.protocol.commit import OffsetFetchRequest
from kafka import TopicPartition as Place

from integration.relay_kafka import Relay
from integration.services import Kafka
from integration.test_kafka_wrapper import NotUtf8
from mqauth import MemoryReplayStore, Pipeline
from mqauth.audit.file import AuditFile
from mqauth.brokers import aiokafka
from mqauth.brokers.aiokafka import membership
from mqauth.brokers.aiokafka.membership import Membership
from mqauth.judging.verified import Verified
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_aiokafka import AiokafkaClients, AiokafkaStage
from mqauth.wire.message import Message


class World:
    """A stage, an issuer, and a consumer's pipeline."""

    def __init__(self, url: str, folder: Path, **settings: Any) -> None:
        self.stage = AiokafkaStage(url, **settings)
        self.call = self.stage.thread.call
        self.forge = Forge(lifetime=600)
        self.audit = AuditFile(folder / "audit.jsonl", fsync=False)
        self.handled: list[bytes | None] = []
        self.started: list[Any] = []
        self.guard = Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy(self.stage.destination),
            replay=MemoryReplayStore(), audit=self.audit,
        )  # fmt: skip

    def handle(self, verified: Verified) -> None:
        """Note a message."""
        self.handled.append(verified.body)

    def send(self, *bodies: bytes) -> None:
        """Send signed messages."""
        for body in bodies:
            message = Message(destination=self.stage.destination, body=body, key=b"k")
            self.stage.produce(self.forge.signer(), message)

    async def consumer(
        self, handler: Any = None, servers: list[str] | None = None, **settings: Any
    ) -> tuple[AIOKafkaConsumer, aiokafka.Consumer]:
        """Return a client, and a consumer on it that runs; the clients are stopped in the end."""
        clients = AiokafkaClients(servers or self.stage.servers, self.stage.group)
        client = await clients.consumer(self.stage.topic, session_timeout_ms=6000)
        self.started.append(client)
        letters = aiokafka.DeadLetters(await self.producer(), self.stage.dead, 10)
        wrapped = aiokafka.Consumer(client, self.guard, handler or self.handle, dead_letters=letters, **settings)
        return client, await wrapped.__aenter__()

    async def producer(self) -> Any:
        """Return a producer's client."""
        self.started.append(await self.stage.clients.producer())
        return self.started[-1]

    def committed(self) -> int | None:
        """Return the group's committed offset of partition 0."""
        with warnings.catch_warnings():
            client = self.stage.consumer()
        try:
            offset: int | None = client.committed(Place(self.stage.topic, 0))
            return offset
        finally:
            client.close()

    def close(self) -> None:
        """Tidy up."""
        for client in self.started:
            self.call(client.stop())
        self.audit.close()
        self.stage.close()


@pytest.fixture
def world(kafka: Kafka, tmp_path: Path) -> Iterator[World]:
    """A fresh world."""
    world = World(kafka.url, tmp_path)
    yield world
    world.close()


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_header_that_cannot_be_parsed(world: World, policy: Any) -> None:
    """A header's name that is not UTF-8 ends the consumer by name, or its batch is audited and skipped."""
    world.send(b"0")
    future = world.stage._client.send(world.stage.topic, value=b"poison", headers=[(NotUtf8("x"), b"v")])
    future.get(timeout=30)
    world.send(b"1")
    client, consumer = world.call(world.consumer(on_poison=policy))
    wait_until(lambda: len(world.handled) == 2, lambda: not consumer.failed)
    if policy == "stop":
        with pytest.raises(aiokafka.PoisonRecordError, match="batch from offset 1 to 1 cannot be parsed"):
            world.call(consumer.__aexit__(None, None, None))
    else:
        world.call(consumer.stop())
    world.call(client.stop())
    expected = [b"0"] if policy == "stop" else [b"0", b"1"]
    assert (world.handled, world.committed(), world.stage.letters()) == (expected, 2 * len(expected) - 1, [])
    assert ("unparseable" in world.audit.path.read_text("utf-8")) is (policy == "skip")


def test_batch_that_cannot_be_parsed(world: World) -> None:
    """A batch with a wrong checksum ends the consumer by name; nothing of it is begun or committed, or lost."""
    relay = Relay(world.stage.servers[0])
    relay.swaps = {b"rotten apple": b"rotten pears"}
    world.send(b"0", b"rotten apple", b"2")
    client, consumer = world.call(world.consumer(servers=[relay.server]))
    wait_until(lambda: consumer.failed)
    with pytest.raises(aiokafka.PoisonRecordError, match="batch from offset 1 to 1 cannot be parsed"):
        world.call(consumer.__aexit__(None, None, None))
    world.call(client.stop())
    relay.close()
    assert (world.handled, world.committed(), world.stage.letters()) == ([b"0"], 1, [])
    world.stage.consume(world.guard, world.handle, until=lambda: len(world.handled) == 3)
    assert world.handled == [b"0", b"rotten apple", b"2"]


def test_reads_on_after_a_stop(world: World) -> None:
    """Whoever goes on with the client after a stop reads on at the first record that is not settled."""
    world.send(b"0", b"1", b"2")
    stopped, made = asyncio.Event(), asyncio.Event()

    async def handler(verified: Verified) -> None:
        await made.wait()
        world.handle(verified)
        if verified.body == b"1":
            consumer._stop()
            stopped.set()

    client, consumer = world.call(world.consumer(handler))
    world.stage.thread.loop.call_soon_threadsafe(made.set)
    world.call(stopped.wait())
    world.call(consumer.stop())
    found = world.call(client.getone())
    world.call(client.stop())
    assert (world.handled, found.value, world.committed()) == ([b"0", b"1"], b"2", 2)


def test_handler_that_stops_its_consumer(world: World) -> None:
    """A handler may stop its consumer and is not waited for meanwhile; what it did counts."""
    world.send(b"0", b"1")

    made = asyncio.Event()

    async def handler(verified: Verified) -> None:
        await made.wait()
        world.handle(verified)
        await consumer.stop()

    client, consumer = world.call(world.consumer(handler))
    world.stage.thread.loop.call_soon_threadsafe(made.set)
    wait_until(lambda: world.handled == [b"0"] and not consumer.health().consuming)
    world.call(client.stop())
    assert world.handled == [b"0"]


@pytest.mark.slow
def test_handlers_that_never_wait(world: World) -> None:
    """Synchronous handlers that take longer than the session, one after the other, cost no rebalance."""
    world.send(*(b"%d" % number for number in range(64)))
    beats = threading.Event()

    def handler(verified: Verified) -> None:
        world.handle(verified)
        beats.wait(0.1)

    client, consumer = world.call(world.consumer(handler))
    generation = client._coordinator.generation
    wait_until(lambda: len(world.handled) == 64, lambda: not consumer.failed)
    assert client._coordinator.generation == generation
    world.call(consumer.stop())
    world.call(client.stop())
    assert (len(set(world.handled)), world.committed()) == (64, 64)


def test_answer(world: World) -> None:
    """What ``Verified.reply`` sends is signed, and on the topic that the request names."""
    answers = f"{world.stage.topic}.answers"
    world.stage.create(answers)
    message = Message(
        destination=world.stage.destination, body=b"ask", key=b"k",
        headers=(("reply-to", answers.encode()), ("correlation-id", b"7")),
    )  # fmt: skip
    world.stage.produce(world.forge.signer(), message)
    sent: list[Any] = []

    async def handler(verified: Verified) -> None:
        sent.append(await verified.reply(b"yes"))

    replies = aiokafka.Producer(world.call(world.producer()), world.forge.signer())
    client, consumer = world.call(world.consumer(handler, replies=replies))
    wait_until(lambda: bool(sent), lambda: not consumer.failed)
    world.call(consumer.stop())
    world.call(client.stop())

    async def read() -> Any:
        reader = await AiokafkaClients(world.stage.servers, f"{world.stage.group}.answers").consumer(answers)
        try:
            return await reader.getone(TopicPartition(answers, 0))
        finally:
            await reader.stop()

    message = aiokafka.from_native(world.call(read()), scope="answers")
    verifier = world.forge.verifier()
    verified = verifier.verify(message, verifier.open(message), world.forge.keys, world.forge.clock.now())
    assert (verified.body, verified.properties) == (b"yes", {"correlation-id": "7"})


def forged(world: World, *bodies: bytes) -> None:
    """Send messages without tokens."""
    for body in bodies:
        world.stage.inject(Message(destination=world.stage.destination, body=body, key=b"k"))


async def letters_of(world: World, name: str) -> aiokafka.TransactionalDeadLetters:
    """Return transactional letters."""
    servers, group = world.stage.servers, world.stage.group
    return aiokafka.TransactionalDeadLetters(
        lambda: AIOKafkaProducer(bootstrap_servers=servers, transactional_id=f"{group}.{name}"),
        world.stage.dead, 10,
    )  # fmt: skip


async def transactional(
    world: World, name: str, letters: aiokafka.TransactionalDeadLetters | None = None
) -> tuple[Any, aiokafka.Consumer, aiokafka.TransactionalDeadLetters]:
    """Return a client, a consumer on it that runs, and its transactional letters."""
    clients = AiokafkaClients(world.stage.servers, world.stage.group)
    client = await clients.consumer(world.stage.topic, session_timeout_ms=6000, isolation_level="read_committed")
    world.started.append(client)
    letters = letters or await letters_of(world, name)
    consumer = aiokafka.Consumer(client, world.guard, world.handle, dead_letters=letters)
    return client, await consumer.__aenter__(), letters


def test_transaction(world: World) -> None:
    """Letters are committed with their offsets, in their order, one too large for the broker in a smaller form."""
    world.stage.remove_dead_letters()
    world.stage.create(world.stage.dead, config={"max.message.bytes": "4000"})
    forged(world, b"a", b"x" * 5000, b"b")
    world.send(b"0")
    _, consumer, _ = world.call(transactional(world, "a"))
    wait_until(lambda: world.committed() == 4, lambda: not consumer.failed)
    world.call(consumer.stop())
    bodies = [letter.body for letter in world.stage.letters()]
    assert (len(bodies), bodies[0], bodies[2], world.handled) == (3, b"a", b"b", [b"0"])
    assert bodies[1] != b"x" * 5000


def test_fenced(world: World) -> None:
    """A second consumer with the same transactional id shuts the first one out, which stops at once."""
    forged(world, b"a")
    client, old, _ = world.call(transactional(world, "same"))
    wait_until(lambda: len(world.stage.letters()) == 1, lambda: not old.failed)

    letters = world.call(letters_of(world, "same"))
    letters.prepare()
    forged(world, b"b")
    wait_until(lambda: old.failed)
    with pytest.raises(aiokafka.ProducerFatalError, match="transactional id"):
        world.call(old.__aexit__(None, None, None))
    world.call(client.stop())
    _, heir, _ = world.call(transactional(world, "same", letters))
    wait_until(lambda: len(world.stage.letters()) == 2, lambda: not heir.failed)
    world.call(heir.stop())
    assert [letter.body for letter in world.stage.letters()] == [b"a", b"b"]


def test_transaction_of_a_former_member(world: World) -> None:
    """The broker refuses letters with offsets of a consumer of a generation that is over."""
    forged(world, b"a")
    _, consumer, letters = world.call(transactional(world, "former"))
    wait_until(lambda: world.committed() == 1, lambda: not consumer.failed)
    member = consumer.calls.membership()
    offsets: dict[Any, Any] = {TopicPartition(world.stage.topic, 0): 7}
    group = Membership(str(member), member.generation - 1, member.member)
    world.call(consumer.stop())
    letters.prepare()
    with pytest.raises(CommitFailedError):
        letters.write([], offsets, group)
    letters.discard()
    world.call(letters.closed())
    assert world.committed() == 1


def test_offsets_are_final(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a transaction that would commit an offset is open its partition is not begun, and then behind it."""
    world.send(b"0", b"1")
    asked: list[type] = []
    send = membership._send

    async def noting(theirs: Any, request: Any) -> Any:
        asked.append(type(request))
        return await send(theirs, request)

    monkeypatch.setattr(membership, "_send", noting)
    letters = world.call(letters_of(world, "other"))
    letters.prepare()
    place = TopicPartition(world.stage.topic, 0)
    letters.write([], {place: 1}, Membership(world.stage.group, -1, ""))
    _, consumer, _ = world.call(transactional(world, "reader"))
    wait_until(lambda: asked.count(OffsetFetchRequest) > 3)
    assert world.handled == []
    letters.commit()
    wait_until(lambda: world.committed() == 2, lambda: not consumer.failed)
    world.call(consumer.stop())
    letters.discard()
    world.call(letters.closed())
    assert world.handled == [b"1"]


def test_audit_topic(world: World) -> None:
    """An audit record on a topic is one that the broker has confirmed."""
    sink = aiokafka.AuditTopic(world.call(world.producer()), world.stage.dead)
    world.guard = Pipeline(
        verifier=world.forge.verifier(), policy=world.forge.policy(world.stage.destination),
        replay=MemoryReplayStore(), audit=sink,
    )  # fmt: skip
    world.stage.inject(Message(destination=world.stage.destination, body=b"forged"))
    world.stage.consume(world.guard, world.handle, until=lambda: len(world.stage.letters()) == 2)
    bodies = [letter.body or b"" for letter in world.stage.letters()]
    assert b'"token_missing"' in bodies[0]
    assert bodies[1] == b"forged"
