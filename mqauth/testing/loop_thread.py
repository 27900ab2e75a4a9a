"""An event loop on a thread, for stages of asyncio clients: their plain calls wait for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

from mqauth.testing.stage import PATIENCE

R = TypeVar("R")


class LoopThread:
    """An event loop on a thread of its own, for those who have none."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, R], patience: float = PATIENCE) -> R:
        """Run a coroutine there, and return what it returns."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(patience)

    def close(self) -> None:
        """End the loop, with what its clients have left running."""
        self.call(self._cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(PATIENCE)
        self.loop.close()

    async def _cancel_all(self) -> None:
        # A client's tasks begin others as they end, which close what they had open.
        while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class ThreadedConsumer:
    """An asyncio consumer as a blocking one: it runs in an event loop on a thread of its own.

    Args:
        make: makes the consumer, inside the loop.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._thread = LoopThread()
        self._consumer = self._thread.call(self._made(make))

    async def _made(self, make: Callable[[], Any]) -> Any:
        return make()

    def __enter__(self) -> Self:
        self._thread.call(self._consumer.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it gracefully; raise the error that ended it."""
        try:
            self._thread.call(self._consumer.__aexit__(None, None, None))
        finally:
            self._thread.close()

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return bool(self._consumer.failed)

    def stop(self) -> None:
        """Begin to stop it; do not wait."""

        def begin() -> None:
            self._stopping = asyncio.ensure_future(self._consumer.stop())

        # The coroutine is made there: a loop that ends first would leave it, never awaited.
        self._thread.loop.call_soon_threadsafe(begin)

    def health(self) -> Any:
        """Return its state."""
        return self._consumer.health()
