"""A queue is kept consumed: what the broker says while a consumer is being started is not lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from mqauth.brokers.queue.client import OpenChannel
from mqauth.brokers.queue.subscription import Subscription
from mqauth.delivery.window import Window
from mqauth.testing import FakeClock
from tests.delivery_parts import hold


class Early:
    """A client whose broker cancels the first consumer before the call that starts it has returned its tag."""

    reopens = False

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
        return OpenChannel(object(), None)  # type: ignore[arg-type]

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


async def test_cancelled_before_its_tag_is_known() -> None:
    """A cancel that comes in one read with the answer to ``basic.consume`` has the queue consumed anew."""
    calls, clock = Early(), FakeClock()
    window, nothing = Window("q", clock, hold(clock), 10), Any
    subscription = Subscription(
        calls, window, nothing, nothing, coalesce=False, sleep=asyncio.sleep  # type: ignore[arg-type]
    )  # fmt: skip
    running = asyncio.create_task(subscription.run())
    for _ in range(100):
        await asyncio.sleep(0)
    assert (window.consumer, calls.started) == ("consumer 1", ["consumer 0", "consumer 1"])
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
