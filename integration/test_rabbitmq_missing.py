"""A queue or an exchange that was got, went missing, and is back, on a real RabbitMQ."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika import exceptions

from integration.services import RabbitMQ
from integration.test_rabbitmq_wrapper import Bench, _bench, until
from mqauth.brokers import rabbitmq as wrapper
from mqauth.brokers.rabbitmq.channel import ready
from mqauth.clock import SystemClock
from mqauth.errors import Cause
from mqauth.judging.policy import Allow
from mqauth.testing.forge import SUBJECT

AWAY = 2
"""Seconds."""


@pytest.fixture
async def bench(rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench on the shared broker, its dead-letter queue declared."""
    async with _bench(rabbitmq.url, tmp_path) as bench:
        await bench.letters().declare()
        yield bench


class Shifted(SystemClock):
    """The system's clock, which can be set on."""

    def __init__(self) -> None:
        self.by = 0.0

    def monotonic(self) -> float:
        """Return monotonic seconds."""
        return super().monotonic() + self.by


async def _delete(bench: Bench) -> None:
    """Delete the source."""
    await bench.channel.queue_delete(bench.source.name)


async def _declare(bench: Bench, kind: str = "classic") -> None:
    """Make the source anew."""
    channel = await bench.publishing.channel()
    arguments = {"x-queue-type": kind}
    await channel.declare_queue(bench.source.name, durable=True, arguments=arguments, robust=False)  # type: ignore[call-arg]
    await channel.close()


@pytest.mark.parametrize("cut", [False, True], ids=["connected", "connection lost meanwhile"])
@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_queue(bench: Bench, kind: str, cut: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A consumer of ``get_queue`` goes on when its queue is back, and says what it waits for until then.

    Consumed again while it is being deleted, a quorum queue of RabbitMQ 4.0 takes the connection with it (541).
    """
    clock = Shifted()
    await _delete(bench)
    await _declare(bench, kind)
    bench.source = await (await bench.consuming.channel()).get_queue(bench.source.name)
    async with bench.consumer(guard=bench.guard(clock=clock)) as consumer:
        await _delete(bench)
        await until(lambda: not consumer.health().consuming)
        if cut:
            bench.wire.cut()
        with caplog.at_level(logging.WARNING, "mqauth.rabbitmq"):
            await asyncio.sleep(AWAY)
        assert consumer.health().cause is None
        clock.by = 61
        health = consumer.health()
        assert (health.cause, health.stalled_since is not None) == (Cause.BROKER_UNAVAILABLE, True)
        waits = "channel or connection lost" if cut else "cannot consume"
        assert any(waits in line and bench.source.name in line for line in caplog.text.splitlines())
        if kind == "classic" and not cut:
            assert "no queue" in str(health.detail)
        await until(_declared(bench, kind), 30)
        await until(lambda: consumer.health().consuming, 30)
        assert consumer.health().cause is None
        await bench.publish()
        await until(lambda: bench.handled == [b"honest"])


def _declared(bench: Bench, kind: str) -> Any:
    """Return what declares the source, once the connection is back."""

    async def declared() -> bool:
        with suppress(exceptions.AMQPError, RuntimeError, OSError):
            await _declare(bench, kind)
            return True
        return False

    return declared


@pytest.mark.parametrize("batch", [1, 8])
async def test_exchange(bench: Bench, batch: int, caplog: pytest.LogCaptureFixture) -> None:
    """A producer of ``get_exchange`` publishes again when its exchange is back; until then each publish fails."""
    name = bench.source.name + ".exchange"
    await _exchange(bench, name)
    exchange = await (await bench.publishing.channel()).get_exchange(name)
    producer = wrapper.Producer(exchange, bench.forge.signer(), batch=batch)
    await producer.publish(aio_pika.Message(b"1"), "k")
    await bench.channel.exchange_delete(name)
    for _ in range(20):
        with pytest.raises((exceptions.AMQPError, exceptions.ChannelInvalidStateError)):
            await producer.publish(aio_pika.Message(b"2"), "k")
    await asyncio.sleep(AWAY)
    with pytest.raises(exceptions.ChannelNotFoundEntity, match="no exchange"):
        await producer.publish(aio_pika.Message(b"2"), "k")
    assert caplog.text.count("no exchange") >= 1
    assert caplog.text.count("cannot be opened again") == 1
    await _exchange(bench, name)

    async def published() -> bool:
        with suppress(exceptions.AMQPError, RuntimeError):
            await producer.publish(aio_pika.Message(b"3"), "k")
            return True
        return False

    await until(published)
    guard = bench.guard(policy=Allow({SUBJECT: [f"rabbitmq:{name}/k"]}))
    async with bench.consumer(guard=guard):
        await until(lambda: bench.handled == [b"1", b"3"])
    await bench.channel.exchange_delete(name)


async def _exchange(bench: Bench, name: str) -> None:
    """Declare an exchange and bind the source to it."""
    channel = await bench.publishing.channel()
    exchange = await channel.declare_exchange(name, durable=True, robust=False)  # type: ignore[call-arg]
    await bench.source.bind(exchange, "k", robust=False)  # type: ignore[call-arg]
    await channel.close()


async def test_the_repair_is_needed(bench: Bench) -> None:
    """aio-pika leaves a robust channel closed whose passive queue was missing: if this fails, it does not."""
    channel = await bench.publishing.channel()
    await channel.get_queue(bench.source.name)
    await _delete(bench)
    with pytest.raises(exceptions.ChannelNotFoundEntity):
        await channel.declare_queue("no-such-queue", passive=True)
    await until(lambda: not channel.is_initialized)
    await _declare(bench)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(channel.ready(), AWAY)
    await ready(channel)
    assert not channel.is_closed
