"""A broker with small frames (``frame_max``): what is too large for them breaks no connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import aio_pika
import pytest

from integration.services import RabbitMQ
from integration.test_rabbitmq_wrapper import Bench, _bench, until
from mqauth import MalformedMessage, Verdict
from mqauth.brokers import rabbitmq as wrapper

FRAME_MAX = 16_384


@pytest.fixture(scope="module")
def broker() -> Iterator[RabbitMQ]:
    """A broker of our own, with small frames."""
    with RabbitMQ.launch(extra_config=[f"frame_max = {FRAME_MAX}"]) as broker:
        yield broker


@pytest.fixture
async def bench(broker: RabbitMQ, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench whose connections are never lost."""
    async with _bench(broker.url, tmp_path) as bench:
        await bench.letters().declare()
        lost: list[object] = []
        for connection in (bench.consuming, bench.publishing):
            connection.close_callbacks.add(lambda closed, *_: lost.append(closed))
        yield bench
        assert lost == []


@pytest.mark.parametrize("batch", [1, 4])
async def test_a_publish_over_the_agreed_size_is_refused(bench: Bench, batch: int) -> None:
    """Headers that fill a frame of the broker's are refused with both sizes, and the next message is published."""
    producer = wrapper.Producer(bench.channel.default_exchange, bench.forge.signer(), batch=batch)
    with pytest.raises(MalformedMessage, match="the broker takes 16376 bytes"):
        await producer.publish(aio_pika.Message(b"", headers={"x": "a" * 16_000}), bench.source.name)
    await producer.publish(aio_pika.Message(b"", headers={"x": "a" * 15_000}), bench.source.name)
    assert await bench.left() == 1


async def test_a_letter_over_the_agreed_size_takes_another_form(bench: Bench) -> None:
    """A forged message that leaves no room for a letter's own headers is dead-lettered within the body."""
    await bench.forge_one(headers={"x": "a" * 16_200})
    async with bench.consumer():
        await until(lambda: bool(bench.outcomes))
    (letter,) = await bench.buried()
    assert bench.outcomes[0].verdict is Verdict.REJECTED
    assert letter.occurrences("mqauth-dead-form") == ("json",)
