"""What aio-pika 10.2 and aiormq 7.2 do that our producer works around; a failure says which repair may go."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import aio_pika
import pytest
from aio_pika import exceptions
from aio_pika.abc import AbstractChannel
from pamqp import commands

from integration.services import RabbitMQ
from mqauth.brokers.rabbitmq.translate import MAX_HEADER_FRAME

ROUNDS = 50


@pytest.fixture
async def channel(rabbitmq: RabbitMQ) -> AsyncIterator[AbstractChannel]:
    """A plain channel on a connection of its own."""
    connection = await aio_pika.connect(rabbitmq.url)
    yield await connection.channel()
    await connection.close()


async def test_outcomes_of_one_message_id_are_swapped(channel: AbstractChannel) -> None:
    """``rabbitmq_returns``: of two messages of one id on a channel, the wrong one is told that it was returned."""
    queue = await channel.declare_queue(exclusive=True)
    exchange = channel.default_exchange
    for _ in range(ROUNDS):
        returned, taken = await asyncio.gather(
            *(exchange.publish(aio_pika.Message(b"", message_id="same"), key) for key in ("nobody", queue.name))
        )
        if isinstance(returned, commands.Basic.Ack) and not isinstance(taken, commands.Basic.Ack):
            return
    pytest.fail("each publish had its own outcome")


async def test_a_header_frame_of_any_size_is_sent(channel: AbstractChannel) -> None:
    """``rabbitmq_frame``: a header frame over the agreed size costs the connection."""
    large = aio_pika.Message(b"", headers={"x": "a" * MAX_HEADER_FRAME})
    with pytest.raises(exceptions.AMQPConnectionError):
        await channel.default_exchange.publish(large, "nobody")


@pytest.mark.parametrize(("wait", "written"), [(True, 1), (False, 3)], ids=["as aio-pika does", "as we do"])
async def test_one_publish_waits_for_the_socket_of_another(
    channel: AbstractChannel, monkeypatch: pytest.MonkeyPatch, wait: bool, written: int
) -> None:
    """``rabbitmq_outlet``: while a publish waits for the socket, aio-pika writes no other on its channel."""
    below: Any = await channel.get_underlay_channel()
    frames: asyncio.Queue[object] = asyncio.Queue()
    with monkeypatch.context() as patched:
        patched.setattr(below, "write_queue", frames)
        if wait:
            publishing = [channel.default_exchange.publish(aio_pika.Message(b""), "nobody") for _ in range(3)]
        else:
            publishing = [below.basic_publish(b"", routing_key="nobody", wait=False) for _ in range(3)]
        tasks = [asyncio.ensure_future(one) for one in publishing]
        for _ in range(20):
            await asyncio.sleep(0)
        assert frames.qsize() == written
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
