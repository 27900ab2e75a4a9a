"""A queue is kept consumed, and is not while it is suspended, also where a consumer is being started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from mqauth.brokers.queue.client import OpenChannel
from mqauth.brokers.queue.subscription import AFTER_CANCEL, Subscription
from mqauth.errors import Cause
from mqauth.judging.token import Times
from mqauth.testing import FakeClock
from tests.delivery_parts import held


class Early:
    """A client whose broker cancels the first consumer before the call that starts it has returned its tag."""

    queue, reopens, ended = "q", False, None

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []

    def watch(self, _closed: object, cancelled: Callable[[str], None]) -> None:
        """Remember who is told of a cancel."""
        self.tell = cancelled

    async def ready(self) -> None:
        """Be ready."""

    async def open(self, _prefetch: int) -> OpenChannel:
        """Open a channel."""
        return OpenChannel(object(), None, None, None)  # type: ignore[arg-type]

    async def consume(self, _channel: object, _take: object) -> str:
        """Start a consumer; the first is cancelled at once."""
        tag = f"consumer {len(self.started)}"
        self.started.append(tag)
        if len(self.started) == 1:
            self.tell(tag)
        return tag

    async def cancel(self, consumer: str) -> None:
        """Cancel a consumer."""
        self.cancelled.append(consumer)


def made(calls: Any, clock: FakeClock, sleep: Any) -> Subscription:
    """Return a subscription that takes no delivery."""
    guard: Any = SimpleNamespace(
        clock=clock, lease=60, handlers=lambda *_: None, verifier=SimpleNamespace(times=Times(), issuers=())
    )
    return Subscription(calls, guard, print, fail=print, dead_letters=None, coalesce_acks=False, sleep=sleep)


async def test_cancelled_before_its_tag_is_known() -> None:
    """A cancel that comes in one read with the answer to ``basic.consume`` has the queue consumed anew, later."""
    calls, clock, slept = Early(), FakeClock(), list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    subscription = made(calls, clock, sleep)
    window = subscription.window
    running = asyncio.create_task(subscription.run())
    for _ in range(100):
        await asyncio.sleep(0)
    assert (window.consumer, calls.started, slept) == ("consumer 1", ["consumer 0", "consumer 1"], [AFTER_CANCEL])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class Slow(Early):
    """A client whose broker starts a consumer, and whose calls return when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_ready, self.answers = asyncio.Event(), asyncio.Event()

    async def ready(self) -> None:
        """Be ready later."""
        await self.is_ready.wait()

    async def consume(self, _channel: object, _take: object) -> str:
        """Start a consumer; its tag comes later."""
        self.started.append(tag := f"consumer {len(self.started)}")
        await self.answers.wait()
        return tag


class Suspending:
    """A subscription whose queue is suspended for one delivery."""

    def __init__(self) -> None:
        self.calls, clock = Slow(), FakeClock()
        self.probed = 0
        self.subscription = made(self.calls, clock, asyncio.sleep)
        self.subscription.probe = self.probe  # type: ignore[method-assign]
        self.window = self.subscription.window
        self.held = held(Cause.REPLAY_STORE_UNAVAILABLE)
        self.running = asyncio.create_task(self.subscription.run())
        self.suspending: Any = None

    async def probe(self, _delivery: object) -> bool:
        """Find that the cause is over."""
        self.probed += 1
        return True

    async def suspend(self) -> bool:
        """Begin to suspend; tell whether that has ended."""
        self.suspending = asyncio.create_task(self.subscription.suspend(self.held))
        return await self.ended()

    async def ended(self) -> bool:
        """Let everything go on, and tell whether suspending has ended."""
        for _ in range(20):
            await asyncio.sleep(0)
        return bool(self.suspending.done())

    async def give_back(self) -> None:
        """End the waiting of the delivery, as whoever gives it back does."""
        self.held.end()
        self.subscription.look()
        await self.ended()

    async def stop(self) -> None:
        """End the task."""
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


async def test_a_consumer_being_started_is_cancelled_before_the_queue_is_suspended() -> None:
    """It runs at the broker before its tag is known here; what goes back would come to it."""
    at = Suspending()
    at.calls.is_ready.set()
    await asyncio.sleep(0)
    assert not await at.suspend()
    assert (at.calls.started, at.calls.cancelled) == (["consumer 0"], [])
    at.calls.answers.set()
    assert await at.ended()
    assert at.calls.cancelled == ["consumer 0"]
    await at.stop()


async def test_no_consumer_is_started_in_a_suspended_queue() -> None:
    """Where the channel becomes ready after the queue was suspended, it is consumed once the cause is over."""
    at = Suspending()
    await asyncio.sleep(0)
    assert await at.suspend()
    at.calls.is_ready.set()
    at.calls.answers.set()
    await at.ended()
    assert (at.calls.started, at.window.is_out) == ([], False)
    await at.give_back()
    assert (at.probed, at.calls.started, at.window.stalled) == (1, ["consumer 0"], None)
    await at.stop()


async def test_a_delivery_is_probed_with_once_it_goes_back() -> None:
    """A probe that settled it before would have it neither given back nor acked."""
    at = Suspending()
    at.calls.is_ready.set()
    at.calls.answers.set()
    await asyncio.sleep(0)
    assert await at.suspend()
    assert at.probed == 0
    await at.give_back()
    assert at.probed == 1
    await at.stop()
