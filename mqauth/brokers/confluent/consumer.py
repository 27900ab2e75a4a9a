"""The Kafka consumer of confluent-kafka: a ``confluent_kafka.Consumer`` with the delivery engine.

In an event loop it is a ``confluent_kafka.aio.AIOConsumer`` with the engine. That client makes each call of the
``Consumer`` in it on a thread. So does the poller here, on one thread of its own, so that what happens inside a
call, such as a rebalance, is as it is without an event loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Unpack

import confluent_kafka

from mqauth.brokers.confluent.client import check_consumer
from mqauth.brokers.confluent.poller import Poller
from mqauth.brokers.confluent.producer import Producer, Replies
from mqauth.brokers.dead_letters import responder_of
from mqauth.brokers.event_loop import letters_on_thread
from mqauth.brokers.log.consumer import LogConsumer
from mqauth.brokers.log.event_loop import AsyncLogConsumer
from mqauth.brokers.log.transaction import TransactionalLetters
from mqauth.brokers.options import LogOptions
from mqauth.errors import require
from mqauth.flow import Flow, call
from mqauth.judging.pipeline import Handler, Pipeline, V
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.threads import DaemonThread, in_event_loop
from mqauth.wire.message import Message

if TYPE_CHECKING:
    from confluent_kafka.aio import AIOConsumer as Client

SESSION: Final = 6.0
"""Seconds of silence after which the broker may have given our partitions to others.

The client does not tell its ``session.timeout.ms``. This is the shortest one that brokers allow by default; after
a pause in between, one commit more than needed is made."""


class Consumer(LogConsumer):
    """Judges the records of a ``confluent_kafka.Consumer`` and gives the accepted ones to a handler.

    A long handler costs no rebalance, since another thread polls meanwhile. Offsets are committed explicitly, and
    only up to the first record that is not settled.

    Args:
        client: with ``"enable.auto.offset.store": False``, not subscribed; the consumer alone uses it until
            ``run`` has returned. It is not closed.
        guard: the pipeline, with an audit sink.
        handler: takes a ``Verified``; runs on a worker thread.
        config: the settings that the client was made with, which it does not tell.
        topics: the topics to subscribe to, or patterns that begin with ``^``; empty where partitions were
            assigned by hand. The wrapper subscribes, since the client tells nobody else of rebalances.
        dead_letters: where rejected messages go: ``DeadLetters``, or ``TransactionalDeadLetters`` for letters that
            are committed in one transaction with their offsets.
        replies: sends what ``Verified.reply`` is given to the topic in ``reply-to``. Where its client fails for
            good, ``run`` ends with ``ProducerFatalError``.
        options: as ``mqauth.brokers.options.LogOptions`` has them.

    Raises:
        ConfigurationError: the client or a setting is not as said, or a plug-in is asynchronous.
    """

    def __init__(
        self,
        client: confluent_kafka.Consumer,
        guard: Pipeline,
        handler: Handler[V],
        *,
        config: Mapping[str, Any],
        topics: Sequence[str],
        dead_letters: DeadLetterSink,
        replies: Producer | None = None,
        **options: Unpack[LogOptions[V]],
    ) -> None:
        settings = check_consumer(
            client, config, isinstance(dead_letters, TransactionalLetters)
        )
        answer = responder_of(replies)
        super().__init__(
            guard, handler, dead_letters, answer=answer, session=SESSION, **options
        )
        poller = Poller(client, self._assignment, settings, replies=answer)
        self.attach(poller)
        poller.listen(topics, self.settle)


BESIDE: Final = 0.05
"""Most seconds between two polls while handlers run."""
ANSWER: Final = 10.0
"""Most seconds that an answer waits for the broker."""


class AIOConsumer(AsyncLogConsumer):
    """Judges the records of a ``confluent_kafka.aio.AIOConsumer`` and gives the accepted ones to a handler.

    A long handler costs no rebalance, since the client is polled meanwhile. Offsets are committed explicitly, and
    only up to the first record that is not settled.

    Args:
        client: with ``"enable.auto.offset.store": False``, not subscribed; the consumer alone uses it until
            ``run`` has returned. It is not closed.
        guard: the pipeline, with an audit sink.
        handler: takes a ``Verified``; may be asynchronous. A synchronous one blocks the event loop.
        config: the settings that the client was made with, which it does not tell.
        topics: the topics to subscribe to, or patterns that begin with ``^``; empty where partitions were
            assigned by hand. The wrapper subscribes, since the client tells nobody else of rebalances.
        dead_letters: where rejected messages go: ``DeadLetters``, which are waited for on a thread, or
            ``TransactionalDeadLetters`` for letters that are committed in one transaction with their offsets.
        replies: sends what ``Verified.reply`` is given to the topic in ``reply-to``, which is to be awaited. Where
            its client fails for good, ``run`` ends with ``ProducerFatalError``.
        options: as ``mqauth.brokers.options.LogOptions`` has them.

    Raises:
        ConfigurationError: the client or a setting is not as said.
    """

    def __init__(
        self,
        client: Client,
        guard: Pipeline,
        handler: Handler[V],
        *,
        config: Mapping[str, Any],
        topics: Sequence[str],
        dead_letters: DeadLetterSink,
        replies: Producer | None = None,
        **options: Unpack[LogOptions[V]],
    ) -> None:
        # Releases before 2.13 have no such client, and the rest of this package works with them.
        from confluent_kafka.aio import AIOConsumer as Client

        require(
            isinstance(client, Client),
            f"an AIOConsumer is needed, not {type(client).__name__}",
        )
        transactional = isinstance(dead_letters, TransactionalLetters)
        settings = check_consumer(client._consumer, config, transactional)
        answer = None if replies is None else AIOReplies(replies)
        dead_letters = dead_letters if transactional else letters_on_thread(dead_letters)
        super().__init__(
            guard, handler, dead_letters, answer=answer, session=SESSION, **options
        )
        self.attach(
            poller := AIOPoller(
                client._consumer, self._assignment, settings, replies=answer
            )
        )
        loop = asyncio.get_running_loop()

        def settle() -> None:
            # Before a rebalance: begin nothing more, and let what runs end; the client's thread then commits.
            self._assignment.hold_back(True)
            idle = asyncio.run_coroutine_threadsafe(
                self._visits.wait_until_idle(self._patience), loop
            )
            # A loop that stands still, or has ended in between, would never answer.
            with suppress(TimeoutError):
                idle.result(self._patience + BESIDE)

        poller.listen(topics, settle)


class AIOPoller(Poller):
    """The calls of the ``Consumer`` in an ``AIOConsumer``, made on one thread; the rest as ``Poller`` has it."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._thread = DaemonThread("mqauth-kafka")
        self._woken = asyncio.Event()

    async def fetch(self, seconds: float, joins: bool) -> Any:
        """Consume, and return the new messages by partition; where handlers run, once one ends or after a moment.

        Args:
            seconds: as ``Poller.fetch`` has it.
            joins: likewise.
        """
        if not seconds:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), BESIDE)
        self._woken.clear()

        def keep(batches: Mapping[Any, list[Message]]) -> None:
            # It was read after a stop: ``close`` goes back to it.
            for place, messages in batches.items():
                self._read.setdefault(place, []).extend(messages)

        try:
            return await self._on_thread(super().fetch, seconds, joins, unwanted=keep)
        finally:
            self._assignment.hold_back(False)

    def committing(self, *, last: bool = False) -> Flow[None]:
        """Return ``commit`` as a flow; the last one serves a rebalance to its end, as without an event loop."""
        if last and in_event_loop():
            yield from call(self._on_thread, partial(self.commit, last=True))
        else:
            yield from super().committing(last=last)

    def wait(self, over: threading.Event, seconds: float, /) -> Any:
        """Wait for the end of a transaction, at most so many seconds, in an event loop to be awaited."""
        return self.here(over.wait, seconds)

    def wake(self) -> None:
        """End the wait for handlers."""
        self._woken.set()

    def close(self) -> None:
        """Leave the client as it was given to us, but subscribed; ``closed`` waits for it."""
        self._closing = self._thread.submit(super().close)
        self._thread.shutdown(wait=False)

    def closed(self) -> Any:
        """Return once all that ``close`` began has ended, to be awaited."""
        return asyncio.wrap_future(self._closing)

    def here(self, work: Callable[..., Any], /, *args: Any) -> Any:
        """Make a call on the thread; at once where this is the thread, inside a callback of the client."""
        return self._on_thread(work, *args) if in_event_loop() else work(*args)

    async def _on_thread(
        self,
        work: Callable[..., Any],
        *args: Any,
        unwanted: Callable[[Any], object] = lambda _: None,
    ) -> Any:
        """Make a call on the thread; whoever is cancelled meanwhile ends once the call has ended.

        Args:
            work: the call.
            args: its arguments.
            unwanted: takes its result where the caller was cancelled.
        """
        running = asyncio.get_running_loop().run_in_executor(self._thread, work, *args)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            await asyncio.wait((running,))
            if running.exception() is None:
                unwanted(running.result())
            raise


class AIOReplies(Replies):
    """Sends signed answers to the topic in reply-to, each to be awaited."""

    def send(self, *parts: Any) -> Any:
        """Send an answer; return its message, to be awaited, once the broker has acknowledged it."""
        send = super().send
        return asyncio.to_thread(lambda: send(*parts).get(ANSWER))
