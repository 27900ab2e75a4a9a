"""Messages that aio-pika's own ``IncomingMessage`` cannot hold, on a real RabbitMQ."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika import Queue

from integration.services import RabbitMQ
from integration.test_rabbitmq_wrapper import Bench, _bench, until
from mqauth import Reason
from mqauth.brokers import rabbitmq as wrapper
from mqauth.cli import main
from mqauth.review.rabbitmq import RabbitMQLetterBox

CONSUME = Queue.consume


@pytest.fixture
async def bench(rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench on the shared broker, its dead-letter queue declared."""
    async with _bench(rabbitmq.url, tmp_path) as bench:
        await bench.letters().declare()
        yield bench


async def _publish(bench: Bench, mode: int, queue: str, message: aio_pika.Message | None = None) -> None:
    """Publish a message with any octet for its delivery mode, as clients in other languages can."""
    message = message or aio_pika.Message(b"forged", message_id=f"m{mode}")
    channel, properties = await bench.channel.get_underlay_channel(), message.properties
    properties.delivery_mode = mode
    await channel.basic_publish(message.body, routing_key=queue, properties=properties)


def _header(letter: Any, name: str) -> str:
    """Return one of our headers on a letter."""
    (value,) = letter.occurrences("mqauth-dead-" + name)
    return str(value)


def _property(letter: Any, name: str) -> str:
    """Return a property of the message in a letter."""
    found: dict[str, str] = json.loads(_header(letter, "metadata"))["properties"]
    return found[name]


async def _traced(self: Queue, callback: Any, **settings: Any) -> str:
    """Consume as aio-pika does, and be no method of aio-pika's."""
    return await CONSUME(self, callback, **settings)


@pytest.mark.parametrize("instrumented", [False, True], ids=["plain", "instrumented"])
async def test_every_delivery_mode(bench: Bench, instrumented: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the 256 is settled with record and letter, and none keeps a place of the window."""
    if instrumented:
        monkeypatch.setattr(Queue, "consume", _traced)
    async with bench.consumer() as consumer:
        for mode in range(256):
            await _publish(bench, mode, bench.source.name)
        await bench.publish()
        await until(lambda: len(bench.outcomes) == 257, 40)
        await until(lambda: consumer.health().in_flight == 0)
    letters = await bench.buried()
    reasons = Counter(_header(letter, "reason") for letter in letters)
    assert reasons == {"message_malformed": 253, "token_missing": 3}
    assert {_property(letter, "delivery-mode") for letter in letters} == set(map(str, range(1, 256)))
    assert bench.handled == [b"honest"]
    assert await bench.left() == 0
    assert len(bench.audit.path.read_bytes().splitlines()) == 256


async def test_signed(bench: Bench) -> None:
    """A token that holds does not make a message of it that a handler can be given."""
    producer = wrapper.Producer(bench.channel.default_exchange, bench.forge.signer())
    async with bench.consumer():
        await _publish(bench, 3, bench.source.name, producer.seal(aio_pika.Message(b"signed"), bench.source.name))
        await until(lambda: len(bench.outcomes) == 1)
    (letter,) = await bench.buried()
    assert (_header(letter, "reason"), letter.body, bench.handled) == ("message_malformed", b"signed", [])


async def test_own_consumers(bench: Bench) -> None:
    """``guarded`` and ``judge`` take a delivery as aiormq gives it, where aio-pika's message cannot be made."""
    channel, name = await bench.source.channel.get_underlay_channel(), bench.source.name
    for _ in range(2):
        await _publish(bench, 3, name)
    got = await channel.basic_get(name)
    judged = await wrapper.judge(bench.guard(), got, queue=name)
    assert judged.outcome.reason is Reason.MESSAGE_MALFORMED
    assert (await judged.dead_letter(bench.letters())).outcome.dead_letter is not None
    await judged.delivery.message.native.ack()
    callback = wrapper.guarded(bench.guard(), bench.handler, dead_letters=bench.letters(), queue=name)
    await channel.basic_consume(name, callback)

    async def are_buried() -> bool:
        return await bench.left(bench.dead) == 2

    await until(are_buried)
    assert await bench.left() == 0


async def test_dlq(bench: Bench, rabbitmq: RabbitMQ, capsys: pytest.CaptureFixture[str]) -> None:
    """One such message among dead letters is listed with them, and ends no command."""
    await _publish(bench, 3, bench.dead)
    async with bench.consumer():
        await bench.forge_one()
        await until(lambda: len(bench.outcomes) == 1)
    place = ["--broker", rabbitmq.url, "--queue", bench.dead, "--json"]
    assert await asyncio.to_thread(main, ["dlq", "groups", *place]) == 0
    (said,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert sum(group["count"] for group in said["groups"]) == 2


async def test_a_box_whose_queue_counts_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one letter that is asked for where the broker counts none yet may be such a message too."""
    await _publish(bench, 3, bench.dead)
    declare = Queue.declare

    async def counted(self: Queue, **settings: Any) -> Any:
        found = await declare(self, **settings)
        found.message_count = 0
        return found

    monkeypatch.setattr(Queue, "declare", counted)
    box = RabbitMQLetterBox(bench.publishing, bench.dead)
    assert [letter.message.malformed for letter in await box.browse(5)] == ["delivery-mode 3 is neither 1 nor 2"]
    assert await box.browse(0) == []
