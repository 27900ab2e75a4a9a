"""Queues and exchanges of a real RabbitMQ: missing, streams, passing on, and what aio-pika cannot read."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika import Queue, exceptions
from aio_pika.abc import AbstractChannel, AbstractExchange
from pamqp import commands

from integration.chaos.rabbitmq_scene import until
from integration.services import RabbitMQ
from integration.test_rabbitmq_wrapper import Bench, _bench, text
from mqauth import ConfigurationError, Reason
from mqauth.brokers import rabbitmq as wrapper
from mqauth.brokers.amqp_messages import is_stream
from mqauth.brokers.rabbitmq.channel import ready
from mqauth.brokers.rabbitmq.confirmed import refusal
from mqauth.brokers.rabbitmq.translate import MAX_HEADER_FRAME
from mqauth.cli import main
from mqauth.clock import SystemClock
from mqauth.errors import Cause
from mqauth.judging.policy import Allow
from mqauth.review.rabbitmq import RabbitMQLetterBox
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
    await channel.declare_queue(
        bench.source.name, durable=True, arguments=arguments, robust=False
    )  # type: ignore[call-arg]
    await channel.close()


@pytest.mark.parametrize(
    "cut", [False, True], ids=["connected", "connection lost meanwhile"]
)
@pytest.mark.parametrize("kind", ["classic", "quorum"])
async def test_queue(
    bench: Bench, kind: str, cut: bool, caplog: pytest.LogCaptureFixture
) -> None:
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
        assert (health.cause, health.stalled_since is not None) == (
            Cause.BROKER_UNAVAILABLE,
            True,
        )
        waits = "channel or connection lost" if cut else "cannot consume"
        assert any(
            waits in line and bench.source.name in line
            for line in caplog.text.splitlines()
        )
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
async def test_exchange(
    bench: Bench, batch: int, caplog: pytest.LogCaptureFixture
) -> None:
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


ARGUMENTS: list[dict[str, Any]] = [
    {},
    {"x-max-length-bytes": 20_000_000, "x-max-age": "1D"},
]


async def _declare_anew(bench: Bench, arguments: dict[str, Any]) -> Any:
    """Return the source, declared anew."""
    name = bench.source.name
    await bench.channel.queue_delete(name)
    return await (await bench.consuming.channel()).declare_queue(
        name, durable=True, arguments=arguments
    )


@pytest.mark.parametrize("more", ARGUMENTS, ids=["bare", "bounded"])
async def test_declared(bench: Bench, more: dict[str, Any]) -> None:
    """A consumer of a queue that was declared as a stream is refused at once, by name."""
    bench.source = await _declare_anew(bench, {"x-queue-type": "stream"} | more)
    with pytest.raises(ConfigurationError, match=f"{bench.source.name} is a stream"):
        bench.consumer()


@pytest.mark.parametrize("more", ARGUMENTS, ids=["bare", "bounded"])
async def test_got(bench: Bench, more: dict[str, Any]) -> None:
    """One of a stream that was got by its name ends with its first delivery."""
    await _declare_anew(bench, {"x-queue-type": "stream"} | more)
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
@pytest.mark.parametrize(
    "more", [{}, {"x-max-length-bytes": 20_000_000, "x-message-ttl": 60_000}]
)
async def test_no_stream(bench: Bench, kind: str | None, more: dict[str, Any]) -> None:
    """Other queues are none, nor is one that is missing, which stays missing."""
    queue = await _declare_anew(
        bench, more | ({} if kind is None else {"x-queue-type": kind})
    )
    underlay = await queue.channel.get_underlay_channel()
    assert not await is_stream(partial(refusal, underlay, queue.name))
    await bench.channel.queue_delete(queue.name)
    assert not await is_stream(partial(refusal, underlay, queue.name))
    with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
        await bench.left()


CONSUME = Queue.consume


async def _publish_mode(
    bench: Bench, mode: int, queue: str, message: aio_pika.Message | None = None
) -> None:
    """Publish a message with any octet for its delivery mode, as clients in other languages can."""
    message = message or aio_pika.Message(b"forged", message_id=f"m{mode}")
    channel, properties = await bench.channel.get_underlay_channel(), message.properties
    properties.delivery_mode = mode
    await channel.basic_publish(message.body, routing_key=queue, properties=properties)


def _property(letter: Any, name: str) -> str:
    """Return a property of the message in a letter."""
    found: dict[str, str] = json.loads(text(letter, "metadata"))["properties"]
    return found[name]


async def _traced(self: Queue, callback: Any, **settings: Any) -> str:
    """Consume as aio-pika does, and be no method of aio-pika's."""
    return await CONSUME(self, callback, **settings)


@pytest.mark.parametrize("instrumented", [False, True], ids=["plain", "instrumented"])
async def test_every_delivery_mode(
    bench: Bench, instrumented: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the 256 is settled with record and letter, and none keeps a place of the window."""
    if instrumented:
        monkeypatch.setattr(Queue, "consume", _traced)
    async with bench.consumer() as consumer:
        for mode in range(256):
            await _publish_mode(bench, mode, bench.source.name)
        await bench.publish()
        await until(lambda: len(bench.outcomes) == 257, 40)
        await until(lambda: consumer.health().in_flight == 0)
    letters = await bench.buried()
    reasons = Counter(text(letter, "reason") for letter in letters)
    assert reasons == {"message_malformed": 253, "token_missing": 3}
    assert {_property(letter, "delivery-mode") for letter in letters} == set(
        map(str, range(1, 256))
    )
    assert bench.handled == [b"honest"]
    assert await bench.left() == 0
    assert len(bench.audit.path.read_bytes().splitlines()) == 256


async def test_signed(bench: Bench) -> None:
    """A token that holds does not make a message of it that a handler can be given."""
    producer = wrapper.Producer(bench.channel.default_exchange, bench.forge.signer())
    async with bench.consumer():
        await _publish_mode(
            bench,
            3,
            bench.source.name,
            producer.seal(aio_pika.Message(b"signed"), bench.source.name),
        )
        await until(lambda: len(bench.outcomes) == 1)
    (letter,) = await bench.buried()
    assert (text(letter, "reason"), letter.body, bench.handled) == (
        "message_malformed",
        b"signed",
        [],
    )


async def test_own_consumers(bench: Bench) -> None:
    """``guarded`` and ``judge`` take a delivery as aiormq gives it, where aio-pika's message cannot be made."""
    channel, name = await bench.source.channel.get_underlay_channel(), bench.source.name
    for _ in range(2):
        await _publish_mode(bench, 3, name)
    got = await channel.basic_get(name)
    judged = await wrapper.judge(bench.guard(), got, queue=name)
    assert judged.outcome.reason is Reason.MESSAGE_MALFORMED
    assert (await judged.dead_letter(bench.letters())).outcome.dead_letter is not None
    await judged.delivery.message.native.ack()
    callback = wrapper.guarded(
        bench.guard(), bench.handler, dead_letters=bench.letters(), queue=name
    )
    await channel.basic_consume(name, callback)

    async def are_buried() -> bool:
        return await bench.left(bench.dead) == 2

    await until(are_buried)
    assert await bench.left() == 0


async def test_dlq(
    bench: Bench, rabbitmq: RabbitMQ, capsys: pytest.CaptureFixture[str]
) -> None:
    """One such message among dead letters is listed with them, and ends no command."""
    await _publish_mode(bench, 3, bench.dead)
    async with bench.consumer():
        await bench.forge_one()
        await until(lambda: len(bench.outcomes) == 1)
    place = ["--broker", rabbitmq.url, "--queue", bench.dead, "--json"]
    assert await asyncio.to_thread(main, ["dlq", "groups", *place]) == 0
    (said,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert sum(group["count"] for group in said["groups"]) == 2


async def test_a_box_whose_queue_counts_nothing(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one letter that is asked for where the broker counts none yet may be such a message too."""
    await _publish_mode(bench, 3, bench.dead)
    declare = Queue.declare

    async def counted(self: Queue, **settings: Any) -> Any:
        found = await declare(self, **settings)
        found.message_count = 0
        return found

    monkeypatch.setattr(Queue, "declare", counted)
    box = RabbitMQLetterBox(bench.publishing, bench.dead)
    assert [letter.message.malformed for letter in await box.browse(5)] == [
        "delivery-mode 3 is neither 1 nor 2"
    ]
    assert await box.browse(0) == []


KEY = "orders.created"
WAITS_MS = 100


@pytest.fixture
async def exchange(bench: Bench) -> AsyncIterator[AbstractExchange]:
    """An exchange that leads to the source by a key."""
    made = await bench.channel.declare_exchange(
        f"{bench.source.name}.shop", aio_pika.ExchangeType.TOPIC
    )
    await bench.source.bind(made, KEY)
    yield made
    await made.delete()


async def waits(bench: Bench, **arguments: str) -> aio_pika.abc.AbstractQueue:
    """Declare a queue whose messages leave it after a moment, for where its arguments say."""
    named = {
        f"x-dead-letter-{name.replace('_', '-')}": value
        for name, value in arguments.items()
    }
    return await bench.channel.declare_queue(
        exclusive=True, arguments=named | {"x-message-ttl": WAITS_MS}
    )


def signed_for(
    exchange: AbstractExchange, bench: Bench, **properties: Any
) -> aio_pika.Message:
    """Return a message that was signed for the exchange, and has these properties since."""
    native = wrapper.Producer(exchange, bench.forge.signer()).seal(
        aio_pika.Message(b"x"), KEY
    )
    for name, value in properties.items():
        setattr(native, name, value)
    return native


async def reason_at(exchange: AbstractExchange, bench: Bench) -> Reason | None:
    """Consume until a message has a verdict; return why it was rejected, if it was."""
    guard = bench.guard(policy=Allow({SUBJECT: [f"rabbitmq:{exchange.name}/{KEY}"]}))
    async with bench.consumer(guard=guard):
        await until(lambda: bool(bench.outcomes))
    return bench.outcomes[0].reason


async def test_parked_message_is_of_another_destination(
    exchange: AbstractExchange, bench: Bench
) -> None:
    """A message that waited in a queue which leads to the source by name is ``destination_mismatch``."""
    park = await waits(bench, exchange="", routing_key=bench.source.name)
    await park.bind(exchange, "orders.parked")
    await exchange.publish(signed_for(exchange, bench), "orders.parked")
    assert await reason_at(exchange, bench) is Reason.DESTINATION_MISMATCH


async def test_queue_that_leads_back_to_the_exchange_keeps_the_destination(
    exchange: AbstractExchange, bench: Bench
) -> None:
    """A message that comes back to its exchange under its own routing key is handled."""
    fanout = aio_pika.ExchangeType.FANOUT
    retry = await bench.channel.declare_exchange(
        f"{exchange.name}.retry", fanout, auto_delete=True
    )
    await (await waits(bench, exchange=exchange.name)).bind(retry)
    await retry.publish(signed_for(exchange, bench), KEY)
    assert await reason_at(exchange, bench) is None
    assert bench.handled == [b"x"]


async def test_message_whose_own_ttl_is_over(
    exchange: AbstractExchange, bench: Bench
) -> None:
    """A message with an ``expiration`` leaves the source unhandled, for the unparseable."""
    await exchange.publish(signed_for(exchange, bench, expiration=WAITS_MS / 1000), KEY)
    unparseable = await bench.channel.get_queue(
        f"{bench.source.name}.unparseable", ensure=False
    )
    async with unparseable.iterator(timeout=60) as messages:
        moved = await anext(messages)
        await moved.ack()
    assert moved.headers["x-first-death-reason"] == "expired"


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
            *(
                exchange.publish(aio_pika.Message(b"", message_id="same"), key)
                for key in ("nobody", queue.name)
            )
        )
        if isinstance(returned, commands.Basic.Ack) and not isinstance(
            taken, commands.Basic.Ack
        ):
            return
    pytest.fail("each publish had its own outcome")


async def test_a_header_frame_of_any_size_is_sent(channel: AbstractChannel) -> None:
    """``rabbitmq_frame``: a header frame over the agreed size costs the connection."""
    large = aio_pika.Message(b"", headers={"x": "a" * MAX_HEADER_FRAME})
    with pytest.raises(exceptions.AMQPConnectionError):
        await channel.default_exchange.publish(large, "nobody")


@pytest.mark.parametrize(
    ("wait", "written"), [(True, 1), (False, 3)], ids=["as aio-pika does", "as we do"]
)
async def test_one_publish_waits_for_the_socket_of_another(
    channel: AbstractChannel, monkeypatch: pytest.MonkeyPatch, wait: bool, written: int
) -> None:
    """``rabbitmq_outlet``: while a publish waits for the socket, aio-pika writes no other on its channel."""
    below: Any = await channel.get_underlay_channel()
    frames: asyncio.Queue[object] = asyncio.Queue()
    with monkeypatch.context() as patched:
        patched.setattr(below, "write_queue", frames)
        if wait:
            publishing = [
                channel.default_exchange.publish(aio_pika.Message(b""), "nobody")
                for _ in range(3)
            ]
        else:
            publishing = [
                below.basic_publish(b"", routing_key="nobody", wait=False)
                for _ in range(3)
            ]
        tasks = [asyncio.ensure_future(one) for one in publishing]
        for _ in range(20):
            await asyncio.sleep(0)
        assert frames.qsize() == written
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
