"""A contender on an event loop: what it does in each kind of round."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from integration.benchmarks.client.rounds import Measured, Stopwatch
from integration.benchmarks.client.workload import PATIENCE, Tally

Send = Callable[[int], Awaitable[object]]
"""Sends the message of a number."""
Flush = Callable[[], Awaitable[object]]
"""Waits until everything that was sent is confirmed."""


class LoopContender:
    """A contender whose client is on an event loop, that of its connections.

    Subclasses say how a message is sent, which messages wait, and how they are consumed.

    Attributes:
        fill: has so many messages wait.
        at_once: how many sends are under way at once.
    """

    connections: Any
    fill: Callable[[int], object]
    at_once = 1

    def publish(self, count: int, /) -> Measured:
        """Send messages until all are confirmed."""
        self.fill(0)
        found: Measured = self.connections.runner.run(self._publish(count))
        return found

    def consume(self, count: int, work: float, /) -> Measured:
        """Consume messages that wait already."""
        self.fill(count)
        found: Measured = self.connections.runner.run(self._consume(count, work))
        return found

    def paced(self, count: int, pace: float, /) -> Measured:
        """Send messages at a pace while consuming."""
        self.fill(0)
        found: Measured = self.connections.runner.run(self._paced(count, pace))
        return found

    def sending(self, *, scratch: bool) -> tuple[Send, Flush]:
        """Return what sends the message of a number, and what waits for all of them.

        Args:
            scratch: whether nobody consumes them.
        """
        raise NotImplementedError

    async def ready(self, *, at_end: bool) -> None:
        """Have the consumer take what waits next, or what is sent from now on."""

    async def consuming(self, tally: Tally, until: asyncio.Future[Measured]) -> None:
        """Consume until the tally has seen all messages."""
        raise NotImplementedError

    async def _publish(self, count: int) -> Measured:
        send, flush = self.sending(scratch=True)
        watch = Stopwatch()
        watch.start()
        await at_once(send, count, self.at_once)
        await flush()
        return watch.stop(count)

    async def _consume(self, count: int, work: float) -> Measured:
        await self.ready(at_end=False)
        watch = Stopwatch()
        watch.start()
        return await self._consumed(count, watch, work=work)

    async def _paced(self, count: int, pace: float) -> Measured:
        await self.ready(at_end=True)
        watch, sent, arrivals = Stopwatch(), dict[int, float](), dict[int, float]()
        consumer = asyncio.ensure_future(self._consumed(count, watch, arrivals=arrivals))
        watch.start()
        send, flush = self.sending(scratch=False)
        await at_pace(send, count, pace, sent)
        await flush()
        measured = await consumer
        return replace(
            measured,
            latencies=tuple(arrivals[number] - sent[number] for number in arrivals),
        )

    async def _consumed(self, count: int, watch: Stopwatch, **settings: Any) -> Measured:
        until: asyncio.Future[Measured] = asyncio.get_running_loop().create_future()

        def done() -> None:
            if not until.done():
                until.set_result(watch.stop(count))

        async with asyncio.timeout(PATIENCE):
            await self.consuming(Tally(count, done, **settings), until)
            return await until


async def at_once(send: Send, count: int, workers: int) -> None:
    """Send ``count`` messages with ``workers`` sends under way at once."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await send(number)

    await asyncio.gather(*(work() for _ in range(min(workers, count))))


async def at_pace(send: Send, count: int, pace: float, sent: dict[int, float]) -> None:
    """Publish ``pace`` messages a second, and note the time at which each was sent."""

    async def one(number: int) -> None:
        sent[number] = time.perf_counter()
        await send(number)

    loop, tasks = asyncio.get_running_loop(), []
    began = loop.time()
    for number in range(count):
        await asyncio.sleep(max(0.0, began + number / pace - loop.time()))
        tasks.append(asyncio.create_task(one(number)))
    await asyncio.gather(*tasks)


@contextmanager
def failing(until: asyncio.Future[Measured]) -> Iterator[None]:
    """End the round if a handler raises; a client may only log the error."""
    try:
        yield
    except Exception as error:
        if not until.done():
            until.set_exception(error)


def fail(until: asyncio.Future[Measured], why: str) -> None:
    """End the round with an error."""
    if not until.done():
        until.set_exception(AssertionError(f"an honest message was {why}"))
