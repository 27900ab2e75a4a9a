"""What RabbitMQ does by itself, as docs/operations-rabbitmq.md says: queues that pass messages on, and TTLs."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest

from integration.services import RabbitMQ
from mqauth import MemoryReplayStore, Pipeline, Verified
from mqauth.audit.record import AuditRecord
from mqauth.audit.sinks import CallableSink
from mqauth.brokers import rabbitmq
from mqauth.brokers.rabbitmq.translate import to_native
from mqauth.testing.forge import Forge
from mqauth.wire.destination import rabbitmq as destination
from mqauth.wire.message import Message

KEY = "orders.created"
WAITS_MS = 100
WITHIN = 60


class Scene:
    """An exchange, a source as recommended, and a consumer's verdicts."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.name = f"moves-{uuid.uuid4().hex[:8]}"
        self.forge = Forge(lifetime=600)
        self.verdicts: asyncio.Queue[str | None] = asyncio.Queue()

    async def open(self) -> None:
        """Declare everything."""
        self.exchange = await self.channel.declare_exchange(self.name, aio_pika.ExchangeType.TOPIC)
        self.source = await rabbitmq.declare_source(self.channel, self.name)
        await self.source.bind(self.exchange, KEY)
        await rabbitmq.declare_dead_letters(self.channel, f"{self.name}.dead")

    async def close(self) -> None:
        """Delete it again."""
        for queue in (self.name, f"{self.name}.unparseable", f"{self.name}.dead"):
            await self.channel.queue_delete(queue)
        await self.exchange.delete()

    async def waits(self, **arguments: str) -> aio_pika.abc.AbstractQueue:
        """Declare a queue whose messages leave it after a moment, for where its arguments say."""
        wanted = {"x-message-ttl": WAITS_MS} | {
            f"x-dead-letter-{name}": value for name, value in arguments.items()
        }
        queue: aio_pika.abc.AbstractQueue = await self.channel.declare_queue(exclusive=True, arguments=wanted)
        return queue

    async def publish(self, exchange: str, routing_key: str, **properties: Any) -> None:
        """Publish a message signed for the scene's exchange, wherever to."""
        named = {"message-id": uuid.uuid4().hex}
        message = Message(destination=destination(self.name, KEY), body=b"x", properties=named)
        native = to_native(self.forge.seal(message), message_id=named["message-id"])
        for name, value in properties.items():
            setattr(native, name, value)
        await (await self.channel.get_exchange(exchange, ensure=False)).publish(native, routing_key)

    async def verdict(self) -> str | None:
        """Consume until a message has a verdict, and return it."""
        guard = Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy(destination(self.name, KEY)),
            replay=MemoryReplayStore(), audit=CallableSink(self._note),
        )  # fmt: skip
        letters = rabbitmq.DeadLetters(self.channel, f"{self.name}.dead")
        async with rabbitmq.Consumer(self.source, guard, self._handle, dead_letters=letters):
            return await asyncio.wait_for(self.verdicts.get(), WITHIN)

    def _note(self, record: AuditRecord) -> None:
        self.verdicts.put_nowait(record.reason)

    def _handle(self, _verified: Verified) -> None:
        self.verdicts.put_nowait("handled")


@pytest.fixture
async def scene(rabbitmq: RabbitMQ) -> AsyncIterator[Scene]:
    """A scene on a connection of its own."""
    async with await aio_pika.connect_robust(rabbitmq.url) as connection:
        made = Scene(await connection.channel())
        await made.open()
        yield made
        await made.close()


async def test_parked_message_is_of_another_destination(scene: Scene) -> None:
    """A message that waited in a queue which leads to the source by name is ``destination_mismatch``."""
    park = await scene.waits(exchange="", **{"routing-key": scene.name})
    await park.bind(scene.exchange, "orders.parked")
    await scene.publish(scene.name, "orders.parked")
    assert await scene.verdict() == "destination_mismatch"


async def test_queue_that_leads_back_to_the_exchange_keeps_the_destination(scene: Scene) -> None:
    """A message that comes back to its exchange under its own routing key is handled."""
    retry = await scene.channel.declare_exchange(
        f"{scene.name}.retry", aio_pika.ExchangeType.FANOUT, auto_delete=True
    )
    await (await scene.waits(exchange=scene.name)).bind(retry)
    await scene.publish(retry.name, KEY)
    assert await scene.verdict() == "handled"


async def test_message_whose_own_ttl_is_over(scene: Scene) -> None:
    """A message with an ``expiration`` leaves the source unhandled, for the unparseable."""
    await scene.publish(scene.name, KEY, expiration=WAITS_MS / 1000)
    unparseable = await scene.channel.get_queue(f"{scene.name}.unparseable", ensure=False)
    async with unparseable.iterator(timeout=WITHIN) as messages:
        moved = await anext(messages)
        await moved.ack()
    assert moved.headers["x-first-death-reason"] == "expired"
