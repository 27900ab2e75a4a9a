"""Poison messages on a real RabbitMQ: what the recommended quorum queue saves, and what a classic one does."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.chaos.count import Count
from integration.chaos.rabbitmq_poison import POISONS, publish_poison
from integration.chaos.rabbitmq_scene import Scene, scene, until
from integration.services import RabbitMQ
from mqauth.brokers import rabbitmq
from mqauth.brokers.amqp_topology import DEFAULT_DELIVERY_LIMIT, UNPARSEABLE

Report = Callable[[Count], None]
SPINS = 6


@pytest.fixture(scope="module")
def believing() -> Iterator[RabbitMQ]:
    """A RabbitMQ that leaves a timestamp as it is; the others' would put a sound one over the absurd one."""
    with RabbitMQ.launch(
        extra_config=["message_interceptors.incoming.set_header_timestamp.overwrite = false"]
    ) as broker:
        yield broker


@pytest.fixture
async def row(believing: RabbitMQ, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene on that broker."""
    async with scene(believing.url, tmp_path) as row:
        yield row


@pytest.mark.parametrize("kind", POISONS)
async def test_poison_on_the_recommended_queue(
    row: Scene, report: Report, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """At prefetch 10 every healthy message around the poison is handled, and only the poison is put aside."""
    await row.send(15)
    await publish_poison(row.publishing, row.name, kind)
    await row.send(15)
    aside = row.name + UNPARSEABLE
    with row.audit_file() as audit, caplog.at_level(logging.CRITICAL, "mqauth.rabbitmq"):
        async with await row.consumer(row.guard(audit, verifier=row.forge.verifier()), prefetch=10) as consumer:
            await row.done(consumer)
            await until(lambda: _waits(row, aside, 1))
            await row.send(5)
            await row.done(consumer)
            health = consumer.health()
    report(await row.count(f"poison ({kind}) on a quorum queue"))
    with capsys.disabled():
        print(
            f"  connection deaths {health.connection_deaths}, put aside 1: the poison, prefetch {health.prefetch}"
        )
    assert await row.waiting(aside) == 1
    assert health.prefetch == 1
    assert health.connection_deaths == DEFAULT_DELIVERY_LIMIT + 1
    assert "prefetch falls to 1" in caplog.text


@pytest.mark.parametrize("kind", POISONS)
async def test_poison_on_a_classic_queue(
    row: Scene, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """On a classic queue the poison comes again for ever: what is behind it waits, not lost, and we warned."""
    await row.publishing.queue_delete(row.name)
    channel = await row.channel()
    source = await channel.declare_queue(
        row.name, durable=True, arguments={"x-queue-type": "classic"}, robust=False
    )
    before = await row.send(6)
    await publish_poison(row.publishing, row.name, kind)
    behind = await row.send(6)
    letters = rabbitmq.DeadLetters(row.publishing, row.dead)
    with row.audit_file() as audit, caplog.at_level(logging.WARNING, "mqauth.rabbitmq"):
        consumer = rabbitmq.Consumer(
            source, row.guard(audit, verifier=row.forge.verifier()), row.handle, dead_letters=letters
        )
        assert "no quorum queue" in caplog.text
        async with consumer:
            await until(lambda: {*before} <= {*row.handled} and consumer.health().prefetch == 1)
            deaths = consumer.health().connection_deaths
            await until(lambda: consumer.health().connection_deaths >= deaths + SPINS)
        health = consumer.health()
    await until(lambda: _waits(row, row.name, 1 + len(behind)))
    assert sorted(row.handled) == sorted(before)
    assert await row.letters() == []
    with capsys.disabled():
        print(
            f"\nrabbitmq, poison ({kind}) on a classic queue: sent 12, handled {len(row.handled)},"
            f" waiting behind it {len(behind)}, connection deaths {health.connection_deaths} and counting, lost 0"
        )


async def _waits(row: Scene, queue: str, number: int) -> bool:
    """Tell whether so many messages wait."""
    found: Any = await row.waiting(queue)
    return bool(found == number)
