"""A RabbitMQ consumer as a service runs it: with connections of its own, ``run()``, and ``stop()`` called twice.

It is the same on the real and on the simulated broker; the stage gives its event loop turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import aio_pika

from mqauth import Pipeline, Verified
from mqauth.brokers import rabbitmq
from tests.kit.delivery_stage import Steps

HOLD: Final = 1.0
"""Seconds of a cause of all after which the queue is suspended."""
LETTER_TIMEOUT: Final = 1.0
"""Seconds after which a dead letter without a confirm is taken for lost."""
IMPATIENCE: Final = 0.1
"""Seconds after which ``stop`` is called once more."""


class Service:
    """One consuming service.

    Args:
        source: the queue to consume from, which exists.
        dead: the queue of its dead letters, which exists.
        guard: the pipeline.
        handler: the handler.
        settings: arguments of ``Consumer``.
    """

    def __init__(
        self, source: str, dead: str, guard: Pipeline, handler: Steps, **settings: Any
    ) -> None:
        self._source = source
        self._dead = dead
        self._guard = guard
        self._handler = as_coroutine(handler)
        self._settings = {"hold": HOLD} | settings
        self._asked = asyncio.Event()
        self.consumer: rabbitmq.Consumer | None = None
        self.failure: BaseException | None = None

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.failure is not None

    def health(self) -> rabbitmq.Health:
        """Return its state.

        Raises:
            RuntimeError: it is not connected yet.
        """
        if self.consumer is None:
            raise RuntimeError("not connected yet")
        return self.consumer.health()

    def ask(self) -> None:
        """Ask it to stop; call this in its own event loop."""
        self._asked.set()

    async def live(self, url: str, letters_url: str) -> None:
        """Connect, consume until asked to stop, and close everything; an error that ended it is in ``failure``.

        Args:
            url: of the broker, to consume.
            letters_url: of the broker, to publish dead letters.
        """
        try:
            consuming, publishing = (
                await aio_pika.connect_robust(url),
                await aio_pika.connect_robust(letters_url),
            )
            async with consuming, publishing:
                await self._consume(await consuming.channel(), await publishing.channel())
        finally:
            await _end_others()

    async def _consume(self, channel: Any, letters_channel: Any) -> None:
        """Run the consumer until asked to stop; after an error, keep the connections open until then."""
        letters = rabbitmq.DeadLetters(
            letters_channel, self._dead, timeout=LETTER_TIMEOUT
        )
        queue = await channel.get_queue(self._source)
        self.consumer = rabbitmq.Consumer(
            queue, self._guard, self._handler, dead_letters=letters, **self._settings
        )
        running = asyncio.create_task(self.consumer.run())
        running.add_done_callback(self._ended)
        await self._asked.wait()
        await asyncio.gather(
            self.consumer.stop(), self._stop_again(), running, return_exceptions=True
        )

    async def _stop_again(self) -> None:
        """Call ``stop`` again while it is under way, as a second signal does."""
        await asyncio.sleep(IMPATIENCE)
        if self.consumer is not None:
            await self.consumer.stop()

    def _ended(self, running: asyncio.Task[None]) -> None:
        self.failure = running.exception()


def as_coroutine(handler: Steps) -> Callable[[Verified], Awaitable[None]]:
    """Return a handler as a coroutine function; a cancellation is thrown into the handler."""

    async def handle(verified: Verified) -> None:
        steps = handler(verified)
        seconds = next(steps, None)
        while seconds is not None:
            try:
                await asyncio.sleep(seconds)
            except asyncio.CancelledError as error:
                seconds = steps.throw(error)  # type: ignore[attr-defined]
            else:
                seconds = next(steps, None)

    return handle


async def _end_others() -> None:
    """Cancel every other task of this event loop, and wait until they end."""
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
