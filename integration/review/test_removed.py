"""What a reviewer removed from a RabbitMQ queue is gone, also where the queue is behind with its acks."""

from __future__ import annotations

import asyncio

import aio_pika
import pytest

from integration.scale import nightly
from integration.services import RabbitMQ
from mqauth.brokers.rabbitmq.confirmed import declare_dead_letters
from mqauth.review.rabbitmq import RabbitMQLetterBox

LETTERS = 400
PASSES = nightly(40, otherwise=10)


@pytest.mark.slow
async def test_what_was_removed_does_not_come_again(rabbitmq: RabbitMQ) -> None:
    """RabbitMQ forgets acks that its channel keeps back when that is closed; a pass waits for them."""
    async with await aio_pika.connect(rabbitmq.url) as connection:
        publishing, left = await connection.channel(), list[int]()
        for number in range(PASSES):
            name = f"removed-{number}"
            queue = await declare_dead_letters(publishing, name)
            letter = aio_pika.Message(b"x" * 2000)
            await asyncio.gather(*(publishing.default_exchange.publish(letter, name) for _ in range(LETTERS)))
            box = RabbitMQLetterBox(connection, name, unlimited=True)
            for each in await box.browse(LETTERS):
                await box.remove(each)
            # An act ends its pass once it is through; the next one sees what came again.
            await box.browse(0)
            left.append(len(await box.browse(LETTERS)))
            await queue.delete(if_empty=False, if_unused=False)
    assert left == [0] * PASSES
