"""Stream queues, which lose what is given back, on a real RabbitMQ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from integration.services import RabbitMQ
from integration.test_rabbitmq_wrapper import Bench, _bench, until
from mqauth import ConfigurationError
from mqauth.brokers.amqp_topology import is_stream
from mqauth.brokers.rabbitmq.confirmed import refusal

ARGUMENTS: list[dict[str, Any]] = [{}, {"x-max-length-bytes": 20_000_000, "x-max-age": "1D"}]


@pytest.fixture
async def bench(rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench on the shared broker, its dead-letter queue declared."""
    async with _bench(rabbitmq.url, tmp_path) as bench:
        await bench.letters().declare()
        yield bench


async def _declare(bench: Bench, arguments: dict[str, Any]) -> Any:
    """Return the source, declared anew."""
    name = bench.source.name
    await bench.channel.queue_delete(name)
    return await (await bench.consuming.channel()).declare_queue(name, durable=True, arguments=arguments)


@pytest.mark.parametrize("more", ARGUMENTS, ids=["bare", "bounded"])
async def test_declared(bench: Bench, more: dict[str, Any]) -> None:
    """A consumer of a queue that was declared as a stream is refused at once, by name."""
    bench.source = await _declare(bench, {"x-queue-type": "stream"} | more)
    with pytest.raises(ConfigurationError, match=f"{bench.source.name} is a stream"):
        bench.consumer()


@pytest.mark.parametrize("more", ARGUMENTS, ids=["bare", "bounded"])
async def test_got(bench: Bench, more: dict[str, Any]) -> None:
    """One of a stream that was got by its name ends with its first delivery."""
    await _declare(bench, {"x-queue-type": "stream"} | more)
    bench.source = await (await bench.consuming.channel()).get_queue(bench.source.name)
    running = asyncio.create_task(bench.consumer().run())

    async def published() -> bool:
        await bench.publish()
        return running.done()

    await until(published)
    with pytest.raises(ConfigurationError, match=f"{bench.source.name} is a stream"):
        await running


async def test_a_header_makes_no_stream(bench: Bench) -> None:
    """A publisher who writes the header of a stream ends no consumer."""
    for number in range(3):
        await bench.forge_one(headers={"x-stream-offset": number})
    async with bench.consumer() as consumer:
        await until(lambda: len(bench.outcomes) == 3)
        await bench.publish()
        await until(lambda: bench.handled == [b"honest"])
        assert consumer.health().consuming
    assert len(await bench.buried()) == 3


@pytest.mark.parametrize("kind", ["classic", "quorum", None])
@pytest.mark.parametrize("more", [{}, {"x-max-length-bytes": 20_000_000, "x-message-ttl": 60_000}])
async def test_no_stream(bench: Bench, kind: str | None, more: dict[str, Any]) -> None:
    """Other queues are none, nor is one that is missing, which stays missing."""
    queue = await _declare(bench, more | ({} if kind is None else {"x-queue-type": kind}))
    underlay = await queue.channel.get_underlay_channel()
    assert not await is_stream(partial(refusal, underlay, queue.name))
    await bench.channel.queue_delete(queue.name)
    assert not await is_stream(partial(refusal, underlay, queue.name))
    with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
        await bench.left()
