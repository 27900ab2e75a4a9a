"""What contenders on an event loop have in common: sends at a pace, and the end of a round."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

from integration.benchmarks.client.rounds import Measured
from integration.benchmarks.client.workload import Tally

Send = Callable[[int], Awaitable[object]]
"""Sends the message of a number."""


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


def with_latencies(measured: Measured, sent: dict[int, float], tally: Tally) -> Measured:
    """Return a round together with the time from each publish to its handler."""
    arrivals = tally.arrivals or {}
    latencies = tuple(arrivals[number] - began for number, began in sent.items() if number in arrivals)
    return Measured(messages=measured.messages, wall=measured.wall, cpu=measured.cpu, latencies=latencies)


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


def settle(until: asyncio.Future[Measured], measured: Measured) -> None:
    """End the round with a measurement."""
    if not until.done():
        until.set_result(measured)
