"""What a consumer does with deliveries that are no longer its own, on a real RabbitMQ: it condemns nothing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from integration.chaos.count import Count
from integration.chaos.rabbitmq_scene import Scene, scene, until
from integration.chaos.rabbitmq_world import SteppingClock
from integration.services import RabbitMQ, Redis
from integration.wire import Wire
from mqauth import Verified
from mqauth.errors import Cause, RetryLater, Unavailable

Report = Callable[[Count], None]
WITHIN = 60
HEARTBEAT = 2
LAST = b"\x08\0\0\0\0\0\0\xce"
"""A heartbeat frame."""


@pytest.fixture
async def row(own_rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene on a broker that gives evidence of append time."""
    async with scene(own_rabbitmq.url, tmp_path) as row:
        yield row


@asynccontextmanager
async def consumers(row: Scene, redis: Redis, number: int) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Run consumer processes on connections with a short heartbeat, and end them in order."""
    orders = row.orders(
        url=f"{row.url}?heartbeat={HEARTBEAT}", redis=redis.url, at_once=10,
        audit=str(row.folder / "audit.{pid}.jsonl"),
    )  # fmt: skip
    processes = [await orders.aprocess() for _ in range(number)]
    try:
        await until(lambda: row.consumed_by(number))
        yield processes
        for process in processes:
            process.terminate()
            assert await asyncio.wait_for(process.wait(), WITHIN) == 0
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()


@pytest.mark.slow
async def test_paused_consumer(row: Scene, own_redis: Redis, report: Report) -> None:
    """A process that stood still longer than its heartbeat finds in its buffers what its neighbour has handled."""

    def handled() -> list[bytes]:
        return row.handled_file.read_bytes().split(b"\n")[:-1]

    async with consumers(row, own_redis, 2) as (first, _):
        for _ in range(2):
            await until(lambda: row.consumed_by(2))
            first.send_signal(signal.SIGSTOP)
            await row.send(40)
            await row.done(handled=handled)
            first.send_signal(signal.SIGCONT)
            await row.send(20)
            await row.done(handled=handled)
    found = await row.count("consumer paused beyond its heartbeat", handled=handled())
    report(found)
    assert found.duplicates == 0


@asynccontextmanager
async def slow_and_quick(row: Scene, redis: Redis, **settings: Any) -> AsyncIterator[Wire]:
    """Run a consumer on a slow wire, whose pipeline has these settings, and one beside it."""
    async with Wire(row.url) as wire, AsyncExitStack() as stack:
        audit = stack.enter_context(row.audit_file())
        slow = row.guard(audit, row.store(redis.url), **settings)
        await stack.enter_async_context(await row.consumer(slow, url=wire.url))
        await stack.enter_async_context(await row.consumer(row.guard(audit, row.store(redis.url))))
        yield wire


async def _lost_underway(row: Scene, wire: Wire) -> None:
    """Have the broker lose the slow connection while deliveries are underway, and deliver them again."""
    await until(lambda: row.consumed_by(2))
    wire.slow()
    await row.send(40)
    await until(lambda: len(row.handled) >= len(row.honest) - 10)
    wire.lose_servers()
    await row.done()


async def test_slow_network(row: Scene, own_redis: Redis, report: Report) -> None:
    """Without any pause: deliveries that arrive after the broker has lost their connection were redelivered."""
    async with slow_and_quick(row, own_redis) as wire:
        await row.send(20)
        await row.done()
        for _ in range(2):
            await _lost_underway(row, wire)
            wire.arrive()
            await row.send(20)
            await row.done()
    found = await row.count("deliveries underway when their connection was lost")
    report(found)
    assert found.duplicates == 0


async def test_expired_underway(row: Scene, own_redis: Redis, report: Report) -> None:
    """What arrives when its token's life is over, and was redelivered before, is not dead-lettered as expired."""
    clock = SteppingClock()
    judged = row.forge.verifier()
    async with slow_and_quick(row, own_redis, clock=clock, verifier=judged) as wire:
        await _lost_underway(row, wire)
        clock.offset = 24 * 3600
        wire.arrive()
        await until(lambda: row.consumed_by(2))
        clock.offset = 0
        await row.send(20)
        await row.done()
    found = await row.count("deliveries that expired underway")
    report(found)
    assert found.duplicates == 0


class Policy:
    """A policy that can be out of reach."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.asked = 0
        self.down = True
        self.version = policy.version

    def decide(self, verified: Verified, /) -> Any:
        """Decide, or be out of reach."""
        self.asked += 1
        if self.down:
            raise Unavailable(Cause.POLICY_UNAVAILABLE, "down")
        return self._policy.decide(verified)


async def test_connection_lost_while_deferred(row: Scene, report: Report) -> None:
    """What waits out a back-off while its redelivery is handled is not judged once more."""
    await row.send(30)
    async with Wire(row.url) as wire:
        with row.audit_file() as audit:
            guard = row.guard(audit)
            policy = Policy(guard.policy)
            guard = row.guard(audit, guard.replay, policy=policy)
            async with await row.consumer(guard, url=wire.url, prefetch=30) as consumer:
                await until(lambda: policy.asked > 30 * 5)
                policy.down = False
                wire.cut()
                await row.done(consumer)
    found = await row.count("connection lost while deferred")
    report(found)
    assert found.duplicates == 0


class Away(BaseException):
    """What ends a process, a thread or a test, and is no ``Exception``."""


@pytest.mark.parametrize("plain", [True, False])
async def test_a_handler_that_ends_the_consumer(row: Scene, report: Report, *, plain: bool) -> None:
    """A ``BaseException`` at prefetch 1 ends the consumer with that error; the next one handles everything."""
    await row.send(10)

    def now(verified: Verified) -> None:
        raise Away

    async def later(verified: Verified) -> None:
        raise Away

    with row.audit_file() as audit:
        guard = row.guard(audit)
        ended = await row.consumer(guard, now if plain else later, prefetch=1)
        with pytest.raises(Away):
            await asyncio.wait_for(ended.run(), WITHIN)
        assert (ended.health().in_flight, ended.health().consuming) == (0, False)
        async with await row.consumer(guard, prefetch=1) as consumer:
            await row.done(consumer, seconds=WITHIN)
    report(await row.count("a handler that ends its consumer"))


async def test_stop_beside_run(row: Scene, report: Report) -> None:
    """A handler that outlasts the grace is cancelled once: its clean-up runs, and its claim is released."""
    await row.send(3)
    begun, cleaned = list[bytes](), list[bytes]()

    async def handler(verified: Verified) -> None:
        begun.append(verified.body or b"")
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.3)
            cleaned.append(verified.body or b"")

    with row.audit_file() as audit:
        guard = row.guard(audit)
        consumer = await row.consumer(guard, handler, grace=0.2)
        running = asyncio.create_task(consumer.run())
        await until(lambda: len(begun) == 3)
        await asyncio.gather(consumer.stop(), consumer.stop(), running)
        assert sorted(cleaned) == sorted(begun)
        async with await row.consumer(guard) as after:
            await row.done(after, seconds=WITHIN)
    found = await row.count("stop beside run")
    report(found)
    assert found.duplicates == 0


async def test_connection_ended_between_frames(
    row: Scene, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that ends in order while the consumer waits for an answer was lost: no error.

    aiormq fails what waits with a bare ``Exception()`` where it reads the last frame and the end at once, as TLS
    lets it; that is done here to a plain connection.
    """
    feed = asyncio.StreamReader.feed_data

    def and_end(reader: asyncio.StreamReader, data: bytes) -> None:
        feed(reader, data)
        if data == LAST:
            reader.feed_eof()

    monkeypatch.setattr(asyncio.StreamReader, "feed_data", and_end)
    await row.send(5)
    async with Wire(row.url) as wire:
        with row.audit_file() as audit:
            guard = row.guard(audit)
            policy = Policy(guard.policy)
            consumer = await row.consumer(row.guard(audit, guard.replay, policy=policy), url=wire.url, hold=1)
            running = asyncio.create_task(consumer.run())
            await until(lambda: consumer.health().deferred == 5)
            wire.mute()
            await until(lambda: not consumer.health().consuming)
            wire.end(LAST)
            policy.down = False
            await row.done(consumer, seconds=WITHIN)
            assert not running.done()
            await consumer.stop()
            await running
    report(await row.count("connection ended between frames"))


class Audit:
    """An audit that can be out of reach."""

    def __init__(self, sink: Any) -> None:
        self._sink = sink
        self.down = True

    def write(self, record: Any, /) -> None:
        """Write a record, or be out of reach."""
        if self.down:
            raise Unavailable(Cause.AUDIT_UNAVAILABLE, "down")
        self._sink.write(record)


async def test_a_message_given_back_is_not_buried(row: Scene, own_redis: Redis) -> None:
    """What a consumer could not record and gave back, its neighbour handles; the first leaves it alone."""
    bodies = await row.send(5)

    def fails(verified: Verified) -> None:
        raise ValueError("no")

    with row.audit_file() as file:
        audit: Any = Audit(file)
        async with await row.consumer(row.guard(audit, row.store(own_redis.url)), fails, hold=1) as first:
            await until(lambda: not first.health().consuming)
            async with await row.consumer(row.guard(file, row.store(own_redis.url))) as second:
                await until(lambda: len(row.handled) >= len(bodies) - first.health().in_flight)
                await second.stop()
            audit.down = False
            await until(lambda: first.health().consuming and first.health().in_flight == 0)
    buried = [letter.body for letter in await row.letters()]
    assert sorted([*row.handled, *buried]) == sorted(bodies)


async def test_retry_later_beside_a_lost_connection(row: Scene, report: Report) -> None:
    """A handler that asked for another time gives its claim back when its channel ends, and is asked again."""
    await row.send(10)
    ready = False

    async def handler(verified: Verified) -> None:
        if not ready:
            raise RetryLater("database")
        await row.handle(verified)

    async with Wire(row.url) as wire:
        with row.audit_file() as audit:
            async with await row.consumer(row.guard(audit), handler, url=wire.url) as consumer:
                await until(lambda: consumer.health().deferred == 10)
                ready = True
                wire.cut()
                await row.done(consumer, seconds=WITHIN)
    found = await row.count("connection lost under RetryLater")
    report(found)
    assert found.duplicates == 0
