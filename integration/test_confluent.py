"""confluent-kafka's leaf on a real Kafka: what kills its client, kills of its process, storms of rebalances."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from kafka import TopicPartition

from integration.relay_kafka import Relay
from integration.services import Kafka
from integration.stage_confluent import ConfluentLogStage
from integration.test_kafka_wrapper import NotUtf8
from mqauth import MemoryReplayStore, Pipeline
from mqauth.audit.file import AuditFile
from mqauth.brokers import confluent
from mqauth.judging.verified import Verified
from mqauth.testing.forge import Forge
from mqauth.testing.stage_confluent import ConfluentClients, ConfluentStage
from mqauth.testing.stage_kafka import wait_until
from mqauth.wire.message import Message
from tests.kit.delivery_contract import LogPlay


class World:
    """A stage, an issuer, and a consumer's pipeline."""

    def __init__(self, url: str, folder: Path, **settings: Any) -> None:
        self.stage = ConfluentStage(url, **settings)
        self.forge = Forge(lifetime=600)
        self.audit = AuditFile(folder / "audit.jsonl", fsync=False)
        self.handled: list[bytes | None] = []
        self.settings = self.stage.clients.producer_settings(enable_idempotence=True)
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

    def committed(self) -> int | None:
        """Return the group's committed offset of partition 0."""
        with warnings.catch_warnings():
            client = self.stage.consumer()
        try:
            offset: int | None = client.committed(TopicPartition(self.stage.topic, 0))
            return offset
        finally:
            client.close()

    def close(self) -> None:
        """Tidy up."""
        self.audit.close()
        self.stage.close()


@pytest.fixture
def world(kafka: Kafka, tmp_path: Path) -> Iterator[World]:
    """A fresh world."""
    world = World(kafka.url, tmp_path)
    yield world
    world.close()


def test_header_that_kills(world: World) -> None:
    """A header's name that is not UTF-8, which would end the process, is one dead letter; its neighbours go on."""
    # So many that the interpreter has specialised the call that reads headers, and then checks no error of it.
    before = [b"%d" % number for number in range(100)]
    world.send(*before)
    future = world.stage._client.send(world.stage.topic, value=b"poison", headers=[(NotUtf8("x"), b"v")])
    future.get(timeout=30)
    world.send(b"1")
    world.stage.consume(world.guard, world.handle, until=lambda: world.handled == [*before, b"1"])
    (letter,) = world.stage.letters()
    assert letter.body == b"poison"
    assert letter.occurrences("mqauth-dead-reason") == (b"message_malformed",)
    assert world.committed() == 102


def test_automatic_commits_commit_nothing(world: World) -> None:
    """With ``enable.auto.commit`` left on a record whose handler runs is not committed: no offset is stored."""
    settings = world.stage.clients.consumer_settings(enable_auto_commit=True, auto_commit_interval_ms=10)
    client = confluent_kafka.Consumer(settings)
    begun, over = threading.Event(), threading.Event()

    def handler(verified: Verified) -> None:
        world.handle(verified)
        if verified.body == b"1":
            begun.set()
            over.wait(30)
            raise SystemExit

    world.send(b"0", b"1", b"2")
    letters = world.stage.clients.letters(world.stage.dead)
    consumer = confluent.Consumer(
        client, world.guard, handler, config=settings, topics=[world.stage.topic], dead_letters=letters,
        commit_interval=0.05,
    )  # fmt: skip
    consumer.__enter__()
    assert begun.wait(30)
    wait_until(lambda: world.committed() == 1)
    threading.Event().wait(0.2)  # twenty automatic commits
    assert world.committed() == 1
    over.set()
    wait_until(lambda: consumer.failed)
    with pytest.raises(SystemExit):
        consumer.__exit__(None, None, None)
    client.close()
    assert world.committed() == 1


def test_reads_on_after_a_stop(world: World) -> None:
    """Whoever goes on with the client after a stop reads on at the first record that is not settled."""
    config = world.stage.clients.consumer_settings()
    client = confluent_kafka.Consumer(config)
    world.send(b"0", b"1", b"2")
    letters = world.stage.clients.letters(world.stage.dead)

    def handler(verified: Verified) -> None:
        world.handle(verified)
        if verified.body == b"1":
            consumer.stop()

    consumer = confluent.Consumer(
        client, world.guard, handler, config=config, topics=[world.stage.topic], dead_letters=letters
    )
    consumer.run()
    found = [each.value() for each in client.consume(1, 10.0)]
    client.close()
    assert (world.handled, found, world.committed()) == ([b"0", b"1"], [b"2"], 2)


def test_answer(world: World) -> None:
    """What ``Verified.reply`` sends is signed, and on the topic that the request names."""
    world.stage.create(f"{world.stage.topic}.answers")
    message = Message(
        destination=world.stage.destination, body=b"ask", key=b"k",
        headers=(("reply-to", f"{world.stage.topic}.answers".encode()), ("correlation-id", b"7")),
    )  # fmt: skip
    world.stage.produce(world.forge.signer(), message)
    client = confluent_kafka.Producer(world.settings)
    answers: list[Any] = []

    def handler(verified: Verified) -> None:
        answers.append(verified.reply(b"yes").get(20))

    replies = confluent.Producer(client, world.forge.signer(), config=world.settings)
    world.stage.consume(world.guard, handler, until=lambda: bool(answers), replies=replies)
    client.close()
    assert answers[0].error() is None
    reader = confluent_kafka.Consumer(world.stage.clients.consumer_settings())
    reader.assign([confluent_kafka.TopicPartition(f"{world.stage.topic}.answers", 0, 0)])
    (answer,) = reader.consume(1, 20.0)
    reader.close()
    message = confluent.from_native(answer, scope="answers")
    verifier = world.forge.verifier()
    verified = verifier.verify(message, verifier.open(message), world.forge.keys, world.forge.clock.now())
    assert (verified.body, verified.properties) == (b"yes", {"correlation-id": "7"})


def letters_of(world: World, name: str) -> confluent.TransactionalDeadLetters:
    """Return a transactional sink."""
    settings = world.settings | {"transactional.id": f"{world.stage.group}.{name}"}
    return confluent.TransactionalDeadLetters(
        lambda: confluent_kafka.Producer(settings), world.stage.dead, 10, config=settings
    )


def consumer_of(world: World, letters: confluent.TransactionalDeadLetters) -> tuple[Any, confluent.Consumer]:
    """Return a client, and a consumer with transactional letters on it."""
    config = world.stage.clients.consumer_settings()
    client = confluent_kafka.Consumer(config)
    return client, confluent.Consumer(
        client, world.guard, world.handle, config=config, topics=[world.stage.topic], dead_letters=letters
    )


def forged(world: World, *bodies: bytes) -> None:
    """Send messages without tokens."""
    for body in bodies:
        world.stage.inject(Message(destination=world.stage.destination, body=body, key=b"k"))


def test_transaction(world: World) -> None:
    """Letters are committed with their offsets, in their order, one too large for the broker in a smaller form."""
    committed_in_transactions(world, consumer_of)


def committed_in_transactions(world: World, consumer_of: Callable[..., tuple[Any, Any]]) -> None:
    """Have a consumer with transactional letters reject messages."""
    world.stage.remove_dead_letters()
    world.stage.create(world.stage.dead, config={"max.message.bytes": "4000"})
    forged(world, b"a", b"x" * 5000, b"b")
    world.send(b"0")
    client, consumer = consumer_of(world, letters_of(world, "a"))
    with consumer:
        wait_until(lambda: world.committed() == 4, lambda: not consumer.failed)
    client.close()
    bodies = [letter.body for letter in world.stage.letters()]
    assert (len(bodies), bodies[0], bodies[2], world.handled) == (3, b"a", b"b", [b"0"])
    assert bodies[1] != b"x" * 5000


def test_fenced(world: World) -> None:
    """A second consumer with the same transactional id shuts the first one out, which stops at once."""
    shut_out(world, consumer_of)


def shut_out(world: World, consumer_of: Callable[..., tuple[Any, Any]]) -> None:
    """Have a second consumer take over a transactional id."""
    forged(world, b"a")
    client, old = consumer_of(world, letters_of(world, "same"))
    old.__enter__()
    wait_until(lambda: len(world.stage.letters()) == 1)
    young = letters_of(world, "same")
    young.prepare()
    forged(world, b"b")
    wait_until(lambda: old.failed)
    with pytest.raises(confluent.ProducerFatalError, match="transactional id"):
        old.__exit__(None, None, None)
    client.close()
    client, heir = consumer_of(world, young)
    with heir:
        wait_until(lambda: len(world.stage.letters()) == 2)
    client.close()
    assert [letter.body for letter in world.stage.letters()] == [b"a", b"b"]


def test_audit_topic(world: World) -> None:
    """An audit record on a topic is one that the broker has confirmed."""
    client = confluent_kafka.Producer(world.settings)
    sink = confluent.AuditTopic(client, world.stage.dead, config=world.settings)
    guard = Pipeline(
        verifier=world.forge.verifier(), policy=world.forge.policy(world.stage.destination),
        replay=MemoryReplayStore(), audit=sink,
    )  # fmt: skip
    world.stage.inject(Message(destination=world.stage.destination, body=b"forged"))
    world.stage.consume(guard, world.handle, until=lambda: len(world.stage.letters()) == 2)
    client.close()
    bodies = [letter.body or b"" for letter in world.stage.letters()]
    assert b'"token_missing"' in bodies[0]
    assert bodies[1] == b"forged"


def test_batch_that_cannot_be_parsed(world: World) -> None:
    """A batch with a wrong checksum ends the consumer by name; nothing of it is begun or committed, or lost."""
    relay = Relay(world.stage.servers[0])
    relay.swaps = {b"rotten apple": b"rotten pears"}
    clients = ConfluentClients([relay.server], world.stage.group)
    config = clients.consumer_settings(check_crcs=True, session_timeout_ms=6000)
    client = confluent_kafka.Consumer(config)
    world.send(b"0")
    letters = world.stage.clients.letters(world.stage.dead)
    consumer = confluent.Consumer(
        client, world.guard, world.handle, config=config, topics=[world.stage.topic], dead_letters=letters
    )
    consumer.__enter__()
    wait_until(lambda: world.committed() == 1)
    world.send(b"rotten apple")
    world.send(b"2")
    wait_until(lambda: consumer.failed)
    with pytest.raises(confluent.PoisonRecordError, match="batch at offset 1 cannot be parsed"):
        consumer.__exit__(None, None, None)
    client.close()
    relay.close()
    assert (world.handled, world.committed(), world.stage.letters()) == ([b"0"], 1, [])
    world.stage.consume(world.guard, world.handle, until=lambda: len(world.handled) == 3)
    assert world.handled == [b"0", b"rotten apple", b"2"]


def test_stopped_in_a_rebalance(kafka: Kafka, tmp_path: Path) -> None:
    """A member that stops in a cooperative rebalance serves it to its end and commits: nothing comes again."""
    stage = ConfluentLogStage(kafka.url, partition_assignment_strategy="cooperative-sticky")
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        play = LogPlay(stage, audit)
        for _ in range(3):
            play.start()
            bodies = len(play.send(20))
            play.wait(lambda bodies=bodies: len(play.handled) >= bodies)  # type: ignore[misc]
            play.start()
            play.members.pop(0).close()
        play.wait(play.all_committed)
        for member in play.members:
            member.close()
    stage.close()
    assert len(play.handled) == 60
