"""What waits stays held, on a real RabbitMQ: it starves nobody, and its delivery limit is not spent."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from integration.chaos.count import Count
from integration.chaos.rabbitmq_scene import Scene, scene, until
from integration.chaos.rabbitmq_world import FastClock, fast_refresher, unreachable
from integration.keyserver import KeyServer
from integration.services import RabbitMQ
from mqauth import JWKS, Allow, Pipeline, Verified
from mqauth.brokers import rabbitmq
from mqauth.errors import Cause, RetryLater
from mqauth.judging.policy import Rule
from mqauth.testing.forge import ISSUER, SUBJECT

Report = Callable[[Count], None]
WITHIN = 60
DEAD = "https://dead.example"
PREFETCH = 10


@pytest.fixture
async def row(own_rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene on a broker that gives evidence of append time."""
    async with scene(own_rabbitmq.url, tmp_path) as row:
        yield row


async def limited(row: Scene, limit: int) -> None:
    """Give the source another delivery limit."""
    await row.publishing.queue_delete(row.name)
    await rabbitmq.declare_source(await row.channel(), row.name, delivery_limit=limit)


class Patient:
    """A handler that waits for something, with these bodies or with every one, until it is ready."""

    def __init__(self, row: Scene, waiting: Collection[bytes] | None = None) -> None:
        self._row = row
        self._waiting = waiting
        self.calls = 0
        self.ready = False

    async def __call__(self, verified: Verified) -> None:
        """Handle a message, or ask for another time."""
        if not self.ready and (self._waiting is None or verified.body in self._waiting):
            self.calls += 1
            raise RetryLater("database")
        await self._row.handle(verified)


async def test_retry_later_spends_no_delivery(row: Scene, report: Report) -> None:
    """On a queue with a delivery limit of 1 a message that waits for five holds is handled all the same."""
    await limited(row, 1)
    await row.send(3)
    handler = Patient(row)
    with row.audit_file() as audit:
        async with await row.consumer(row.guard(audit), handler, hold=1) as consumer:
            asyncio.get_running_loop().call_later(5, setattr, handler, "ready", True)
            await row.done(consumer, seconds=WITHIN)
    assert await row.waiting(row.name + ".unparseable") == 0
    found = await row.count("RetryLater on a queue with a limit of 1")
    report(found)
    assert found.duplicates == 0


async def test_restarts_put_nothing_away(row: Scene) -> None:
    """Twenty-five restarts under RetryLater: at the last delivery a record and a letter, nothing unparseable."""
    await row.send(2)
    handler = Patient(row)
    with row.audit_file() as audit:
        guard = row.guard(audit)
        for _ in range(25):
            tried = partial(_tried_or_buried, row, handler, handler.calls)
            async with await row.consumer(guard, handler):
                await until(tried, WITHIN)
            if await _waits(row, row.dead, len(row.honest)):
                break
    assert await row.waiting(row.name + ".unparseable") == 0
    letters = await row.letters()
    assert [letter.reason for letter in letters] == ["handler_failed"] * 2


async def _tried_or_buried(row: Scene, handler: Patient, before: int) -> bool:
    """Tell whether the handler was called again, or nothing is left: both begin after the first delivery."""
    return handler.calls > before or await _waits(row, row.dead, len(row.honest))


@pytest.mark.slow
async def test_the_last_delivery_is_buried(row: Scene) -> None:
    """A message that is put off to the end of its last delivery is dead-lettered with its record, by us."""
    await limited(row, 2)
    await row.send(1)
    handler = Patient(row)
    with row.audit_file() as audit:
        settings: dict[str, Any] = {"hold": 1, "consumer_timeout": 3, "delivery_limit": 2}
        async with await row.consumer(row.guard(audit), handler, **settings) as consumer:
            await until(lambda: consumer.health().at_limit == 1, WITHIN)
            await until(lambda: _waits(row, row.dead, 1), WITHIN)
    assert await row.waiting(row.name + ".unparseable") == 0
    assert [letter.reason for letter in await row.letters()] == ["handler_failed"]


async def _waits(row: Scene, queue: str, number: int) -> bool:
    """Tell whether so many messages wait."""
    return await row.waiting(queue) == number


async def test_retry_later_starves_nobody(row: Scene, report: Report) -> None:
    """A window full of messages that wait for something of their own, and more, lets the others be handled."""
    waiting = await row.send(2 * PREFETCH)
    handler = Patient(row, waiting)

    with row.audit_file() as audit:
        async with await row.consumer(row.guard(audit), handler, prefetch=PREFETCH) as consumer:
            await until(lambda: consumer.health().deferred >= PREFETCH)
            others = await row.send(50)
            await until(lambda: {*others} <= {*row.handled}, WITHIN)
            assert consumer.health().cause is Cause.HANDLER_DEFERRED
            handler.ready = True
            await row.done(consumer, seconds=WITHIN)
    found = await row.count("RetryLater beside others")
    report(found)
    assert found.duplicates == 0


@contextmanager
def issuer_out_of_reach(row: Scene) -> Iterator[tuple[KeyServer, Pipeline]]:
    """Trust a second issuer too, whose server is down and has never been up."""
    rule = Rule(subject=SUBJECT, destinations=("rabbitmq:/" + row.name,), issuer=ISSUER)
    with (
        unreachable([row.forge.neighbour]) as server,
        JWKS(
            server.url, timeout=1, unsafe_http_loopback=True, clock=FastClock(), refresher=fast_refresher
        ) as keys,
        row.audit_file() as audit,
    ):
        verifier = row.verifier(keys={ISSUER: row.forge.keys, DEAD: keys})
        yield server, row.guard(audit, verifier=verifier, policy=Allow([rule]))


async def test_an_issuer_out_of_reach_stops_nobody_else(row: Scene, report: Report) -> None:
    """Unsigned messages that name an issuer out of reach wait beside the window; others are handled meanwhile."""
    await row.forge_some(2 * PREFETCH, signer=row.forge.signer(key=row.forge.stranger, issuer=DEAD))
    with issuer_out_of_reach(row) as (server, guard):
        async with await row.consumer(guard, prefetch=PREFETCH) as consumer:
            await until(lambda: consumer.health().deferred >= PREFETCH // 2)
            others = await row.send(50)
            await until(lambda: {*others} <= {*row.handled}, WITHIN)
            assert consumer.health().cause is Cause.KEYS_UNAVAILABLE
            server.up()
            await row.done(consumer, seconds=WITHIN)
    found = await row.count("an issuer out of reach")
    report(found)
    assert found.duplicates == 0


async def test_beyond_the_bound_the_queue_waits(row: Scene, caplog: pytest.LogCaptureFixture) -> None:
    """Where more is held than may be, the consumer says whose fault it is, how many, and that nothing comes."""
    await row.forge_some(4 * PREFETCH, signer=row.forge.signer(key=row.forge.stranger, issuer=DEAD))
    with issuer_out_of_reach(row) as (server, guard):
        async with await row.consumer(guard, prefetch=PREFETCH, max_held=PREFETCH) as consumer:
            await until(lambda: "no more can be held" in caplog.text, WITHIN)  # it consumes anew beside it first
            health = consumer.health()
            assert (health.consuming, health.party) == (False, DEAD)
            assert health.held == {f"keys_unavailable of {DEAD}": health.deferred}
            assert PREFETCH <= health.deferred <= 2 * PREFETCH
            full = re.compile(rf"no more can be held: (\d+) keys_unavailable of {DEAD}\n")
            await until(lambda: full.search(caplog.text) is not None, WITHIN)  # it is logged a moment later
            assert {PREFETCH <= int(number) <= 2 * PREFETCH for number in full.findall(caplog.text)} == {True}
            server.up()
            await row.done(consumer, seconds=WITHIN)
            assert consumer.health().consuming
