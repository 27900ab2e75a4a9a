"""A connection that RabbitMQ has blocked by an alarm, and that is lost before it is unblocked."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import aio_pika
import pytest
from aio_pika import exceptions

from integration.services import RabbitMQ
from integration.wire import Wire
from mqauth.brokers import rabbitmq
from mqauth.brokers.rabbitmq.channel import LOST, is_blocked
from mqauth.testing.forge import Forge

QUEUE = "mqauth-blocked"
WITHIN = 60.0


@pytest.fixture
async def wire(own_rabbitmq: RabbitMQ) -> AsyncIterator[Wire]:
    """A wire to a broker of this test's own, with a queue on it."""
    async with await aio_pika.connect(own_rabbitmq.url) as connection:
        await (await connection.channel()).declare_queue(QUEUE, durable=True, arguments={"x-queue-type": "quorum"})
    async with Wire(own_rabbitmq.url) as wire:
        yield wire


async def _blocked(channel: aio_pika.abc.AbstractChannel) -> None:
    """Return once the broker has blocked a channel's connection."""
    connection = channel._connection  # type: ignore[attr-defined]
    while not is_blocked(connection.transport):  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def test_lost_while_blocked(own_rabbitmq: RabbitMQ, wire: Wire) -> None:
    """A producer whose blocked connection is lost has that publish fail, and publishes again afterwards."""
    async with await aio_pika.connect_robust(wire.url, reconnect_interval=0.2) as connection:
        channel = await connection.channel()
        producer = rabbitmq.Producer(channel.default_exchange, Forge().signer())
        await producer.publish(aio_pika.Message(b"first"), QUEUE)
        own_rabbitmq.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        under_way = asyncio.ensure_future(producer.publish(aio_pika.Message(b"under way"), QUEUE))
        async with asyncio.timeout(WITHIN):
            await _blocked(channel)
        waiting = asyncio.ensure_future(producer.publish(aio_pika.Message(b"waiting"), QUEUE))
        await asyncio.sleep(0)
        wire.cut()
        own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.6")
        async with asyncio.timeout(WITHIN):
            await asyncio.gather(under_way, waiting, return_exceptions=True)
            while True:
                with suppress(*LOST, exceptions.DeliveryError):
                    await producer.publish(aio_pika.Message(b"after"), QUEUE)
                    break
                await asyncio.sleep(0.1)
