"""Messages that arrive elsewhere than they were signed for: a real shovel, and a real MirrorMaker 2."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aio_pika
import pytest

from integration.services import Kafka, RabbitMQ
from integration.services.links import PREFIX, mirroring
from mqauth import MemoryReplayStore, Pipeline, Verified
from mqauth.audit.sinks import CallableSink
from mqauth.brokers import rabbitmq
from mqauth.flow import Attempts
from mqauth.judging.rollout import AcceptAs
from mqauth.testing.forge import Forge
from mqauth.testing.loop_thread import LoopThread
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.wire import destination
from mqauth.wire.message import Message

pytestmark = pytest.mark.slow
SHOP, EU, KEY = "shop", "eu", "orders.created"
SIGNED = destination.rabbitmq(SHOP, KEY)
ARRIVES = destination.rabbitmq(EU, KEY)
MANY = 20


class Desk:
    """A consumer's pipeline and what became of the messages: handled, or rejected for a reason."""

    def __init__(
        self, forge: Forge, signed: str, *aliases: AcceptAs, scope: str | None = None
    ) -> None:
        self.seen: Counter[str] = Counter()
        self.verified: list[Verified] = []
        self.signed_for: list[Any] = []
        self.guard = Pipeline(
            verifier=forge.verifier(accept_as=aliases, unsigned_headers="reject"), policy=forge.policy(signed),
            replay=MemoryReplayStore(), audit=CallableSink(self._note), attempts=Attempts(limit=1), record="all",
            scope=scope,
        )  # fmt: skip

    def handle(self, verified: Verified) -> None:
        """Keep what was handled."""
        self.verified.append(verified)
        self.seen["handled"] += 1

    def _note(self, record: Any) -> None:
        facts = record.as_dict()
        if facts["verdict"] == "rejected":
            self.seen[facts["reason"]] += 1
        if facts["verdict"] == "accepted":
            self.signed_for.append(facts.get("signed_for"))


@pytest.fixture(scope="module")
def forge() -> Forge:
    """The honest producer's keys."""
    return Forge(lifetime=600)


class Shovelled:
    """A source queue that a shovel empties into another exchange, with a queue behind that for each consumer."""

    def __init__(self, broker: RabbitMQ, forge: Forge) -> None:
        self._broker, self._forge = broker, forge
        self._thread = LoopThread()
        self._call(self._open())

    def _call(self, work: Any) -> Any:
        return self._thread.call(work)

    async def _open(self) -> None:
        self.connection = await aio_pika.connect_robust(self._broker.url)
        self.channel = await self.connection.channel()
        self.shop = await self.channel.declare_exchange(SHOP, aio_pika.ExchangeType.TOPIC)
        self.eu = await self.channel.declare_exchange(EU, aio_pika.ExchangeType.TOPIC)
        source = await self.channel.declare_queue("shop.orders", durable=True)
        await source.bind(self.shop, "#")

    def shovel(self) -> None:
        """Start a dynamic shovel, which adds its headers and publishes to another exchange."""
        # With a slash at its end RabbitMQ reads a virtual host without a name.
        url = self._broker.url.rstrip("/")
        self._broker.ctl("set_parameter", "shovel", "to-eu", json.dumps({
            "src-protocol": "amqp091", "src-uri": url, "src-queue": "shop.orders", "dest-protocol": "amqp091",
            "dest-uri": url, "dest-exchange": EU, "dest-exchange-key": KEY, "dest-add-forward-headers": True,
            "dest-add-timestamp-header": True,
        }))  # fmt: skip

    @contextlib.contextmanager
    def consuming(self, name: str, desk: Desk) -> Iterator[None]:
        """Consume from a queue of its own behind the second exchange."""
        consumer = self._call(self._consumer(name, desk))
        self._call(consumer.__aenter__())
        try:
            yield
        finally:
            self._call(consumer.__aexit__(None, None, None))

    async def _consumer(self, name: str, desk: Desk) -> rabbitmq.Consumer:
        queue = await rabbitmq.declare_source(await self.connection.channel(), name)
        await queue.bind(self.eu, KEY)
        letters = await aio_pika.connect_robust(self._broker.url)
        channel = await letters.channel()
        await rabbitmq.declare_dead_letters(channel, f"{name}.dead")
        return rabbitmq.Consumer(
            queue,
            desk.guard,
            desk.handle,
            dead_letters=rabbitmq.DeadLetters(channel, f"{name}.dead"),
        )

    def publish(self, number: int, key: str = KEY) -> None:
        """Publish signed messages to the first exchange."""
        self._call(self._publish(number, key))

    async def _publish(self, number: int, key: str) -> None:
        producer = rabbitmq.Producer(self.shop, self._forge.signer())
        for count in range(number):
            await producer.publish(aio_pika.Message(b"%d" % count), key)

    def close(self) -> None:
        """End the connection."""
        self._call(self.connection.close())
        self._thread.close()


@pytest.fixture
def shovelled(forge: Forge) -> Iterator[Shovelled]:
    """A broker of its own, with the plug-in."""
    with (
        RabbitMQ.launch(plugin="rabbitmq_shovel") as broker,
        contextlib.closing(Shovelled(broker, forge)) as made,
    ):
        yield made


def test_a_shovelled_queue(shovelled: Shovelled, forge: Forge) -> None:
    """What a shovel moves is accepted by its alias, also where unsigned headers are rejected, and not without."""
    alias = Desk(forge, SIGNED, AcceptAs(at=ARRIVES, signed_for=(SIGNED,)))
    plain, other = (
        Desk(forge, SIGNED),
        Desk(forge, "rabbitmq:stock/#", AcceptAs(at=ARRIVES, signed_for=(SIGNED,))),
    )
    with (
        shovelled.consuming("alias", alias),
        shovelled.consuming("plain", plain),
        shovelled.consuming("other", other),
    ):
        shovelled.publish(MANY)
        shovelled.publish(1, "orders.cancelled")
        shovelled.shovel()
        wait_until(
            lambda: all(desk.seen.total() == MANY + 1 for desk in (alias, plain, other))
        )
    # What was signed for another key of the exchange is none of the alias.
    assert alias.seen == {"handled": MANY, "destination_mismatch": 1}
    assert plain.seen == {"destination_mismatch": MANY + 1}
    # Policy is of the destination that was signed.
    assert other.seen == {"producer_forbidden": MANY, "destination_mismatch": 1}
    assert {found.destination for found in alias.verified} == {SIGNED}
    assert {found.origin.exchange for found in alias.verified} == {EU}
    assert alias.signed_for == [SIGNED] * MANY
    headers = dict(alias.verified[0].native.headers)
    assert {"x-shovelled", "x-shovelled-timestamp"} <= set(headers)


def test_a_mirrored_topic(kafka: Kafka, forge: Forge) -> None:
    """What MirrorMaker 2 mirrors is accepted by its alias, and not without; with its original it is one."""
    with (
        contextlib.closing(KafkaStage(kafka.url)) as source,
        contextlib.closing(KafkaStage(kafka.url)) as mirror,
    ):
        alias = AcceptAs(
            at=f"kafka:{PREFIX}.{source.topic}", signed_for=(source.destination,)
        )
        desks = {
            "alias": Desk(forge, source.destination, alias),
            "plain": Desk(forge, source.destination),
            "one scope": Desk(forge, source.destination, alias, scope="billing"),
        }
        for number in range(MANY):
            source.produce(
                forge.signer(),
                Message(destination=source.destination, body=b"%d" % number, key=b"k"),
            )
        consume(source, "one scope", desks["one scope"], MANY)
        mirror.admin.delete_topics([mirror.topic])
        mirror.topic = f"{PREFIX}.{source.topic}"
        with mirroring(kafka, source.topic):
            wait_until(lambda: mirror.topic in mirror.admin.list_topics())
            for name, desk in desks.items():
                consume(mirror, name, desk, desk.seen.total() + MANY)
        assert desks["alias"].seen == {"handled": MANY}
        assert desks["plain"].seen == {"destination_mismatch": MANY}
        assert desks["one scope"].seen == {"handled": MANY, "replayed": MANY}
        assert {found.destination for found in desks["alias"].verified} == {
            source.destination
        }
        assert {found.origin.topic for found in desks["alias"].verified} == {mirror.topic}


def consume(stage: KafkaStage, group: str, desk: Desk, number: int) -> None:
    """Consume as a group of its own until so many messages have a verdict."""
    stage.group = f"{stage.topic}.{group}"
    stage.consume(desk.guard, desk.handle, until=lambda: desk.seen.total() >= number)
