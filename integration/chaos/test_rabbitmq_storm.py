"""A storm of redeliveries on a real RabbitMQ, and the copies an attacker slips into it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import aio_pika
import pytest

from integration.chaos.count import Count
from integration.chaos.rabbitmq_scene import Scene, scene, until
from integration.services import RabbitMQ, Redis
from integration.wire import Wire
from mqauth import Pipeline, Verdict
from mqauth.brokers import rabbitmq
from mqauth.brokers.rabbitmq.channel import LOST
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.stores.redis import RedisReplayStore

Report = Callable[[Count], None]
HONEST = 1000


@pytest.fixture
async def row(own_rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene on a broker that gives evidence of append time."""
    async with scene(own_rabbitmq.url, tmp_path) as row:
        yield row


class GatedStore:
    """A store that answers no claim before its gate opens, and then not all at once."""

    def __init__(self, store: RedisReplayStore) -> None:
        self._store = store
        self._turns = asyncio.Semaphore(50)
        self.gate = asyncio.Event()
        self.release = store.release

    async def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Claim once the gate is open."""
        await self.gate.wait()
        async with self._turns:
            return await self._store.claim(request)

    async def confirm(self, request: ClaimRequest, /) -> None:
        """Confirm."""
        async with self._turns:
            await self._store.confirm(request)


async def lose(row: Scene, guard: Pipeline, store: GatedStore, *, after: bool) -> None:
    """Have every message delivered to a new consumer, and lose its connection before any ack arrives.

    Args:
        row: whose source is consumed.
        guard: of the consumer.
        store: the guard's.
        after: lose it after everything was handled and confirmed; else before anything is claimed.
    """
    store.gate.clear()
    async with Wire(row.url) as wire, await aio_pika.connect(wire.url) as connection:
        queue = await (await connection.channel()).get_queue(row.name, ensure=False)
        letters = rabbitmq.DeadLetters(row.publishing, row.dead)
        consumer = rabbitmq.Consumer(queue, guard, row.handle, dead_letters=letters, prefetch=HONEST, grace=0)
        with suppress(*LOST):
            async with consumer:
                await until(lambda: consumer.health().in_flight == HONEST)
                wire.mute()
                if after:
                    store.gate.set()
                    await until(lambda: consumer.health().in_flight == 0, 120)
                wire.cut()
    await until(lambda: _all_back(row))


async def _all_back(row: Scene) -> bool:
    """Tell whether the broker has taken every message back."""
    return await row.waiting() == HONEST


@pytest.mark.slow
async def test_redelivery_storm(
    row: Scene, own_redis: Redis, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    """A thousand messages delivered six times each are handled once each; of a thousand copies none is handled."""
    bodies = await row.send(HONEST)
    # A thousand claims wait for one event loop: a store asked by it is not out of reach because the loop is busy.
    store = GatedStore(row.store(own_redis.url, timeout=30))
    with row.audit_file() as audit:
        guard = row.guard(audit, store)
        for after in (False, True, True, True, True):
            await lose(row, guard, store, after=after)
        store.gate.set()
        async with await row.consumer(guard, prefetch=100) as consumer:
            await row.done(consumer, seconds=300)
            verdicts = Counter(outcome.verdict for outcome in row.outcomes)
            assert verdicts == {Verdict.ACCEPTED: HONEST, Verdict.DUPLICATE: 4 * HONEST}
            await row.copy(bodies)
            await row.done(consumer, seconds=300)
    with capsys.disabled():
        print(
            f"\nrabbitmq, redelivery storm: {HONEST} messages redelivered 5 times, settled as duplicates 4 times"
        )
    found = await row.count("redelivery storm and an attacker's copies")
    report(found)
    assert (found.handled, found.dead_lettered, found.duplicates) == (HONEST, HONEST, 0)
    assert sum(outcome.verdict is Verdict.REJECTED for outcome in row.outcomes) == HONEST
