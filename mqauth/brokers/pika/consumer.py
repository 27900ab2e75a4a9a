"""pika's consumer: a queue with the delivery engine, and handlers on threads of their own."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final, Unpack

from pika import BlockingConnection

from mqauth.brokers.amqp_topology import warn_of_shared_connection
from mqauth.brokers.background import BackgroundRun
from mqauth.brokers.event_loop import on_thread, on_threads
from mqauth.brokers.options import QueueOptions
from mqauth.brokers.pika.link import Link, drive, link_of, tell
from mqauth.brokers.pika.producer import Producer, as_responder
from mqauth.brokers.pika.queue import Queue
from mqauth.brokers.queue.consumer import QueueConsumer
from mqauth.brokers.queue.subscription import PREFETCH
from mqauth.delivery.health import QueueHealth
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.signer import Signer

MAX_THREADS: Final = 32
"""Most threads of one consumer's handlers; with a longer prefetch the rest waits for one."""


class Consumer(BackgroundRun):
    """Gives the verified messages of one queue to a handler, and dead-letters the rest.

    While it runs it alone uses its connection, that of its dead letters, and that of an ``AuditQueue``, in the
    thread of ``run``, and answers their heartbeats. Where one of them is lost, it ends with pika's error: nothing
    is lost or condemned, and what was not settled comes again. Connect anew, make another consumer and run it.

    Args:
        connection: a connected ``pika.BlockingConnection`` of its own; it consumes on channels of its own.
        queue: name of the queue; ``declare_source`` makes the recommended kind.
        guard: the pipeline.
        handler: takes a ``Verified``. A plain function runs on a thread of its own, and may take its time: a stop
            waits for it, as nothing can interrupt it. An asynchronous one runs in the event loop of ``run``.
        dead_letters: where rejected messages go, best on another connection.
        replies: signs what ``Verified.reply`` publishes, through the connection of ``dead_letters``; or a
            ``Producer`` on the default exchange.
        options: as ``mqauth.brokers.options.QueueOptions`` has them.

    Raises:
        ConfigurationError: the pipeline has no audit, or a setting is out of its limits.
    """

    def __init__(
        self,
        connection: BlockingConnection,
        queue: str,
        guard: Pipeline,
        handler: Handler,
        *,
        dead_letters: DeadLetterSink,
        replies: Signer | Producer | None = None,
        **options: Unpack[QueueOptions],
    ) -> None:
        link = link_of(connection)
        options["unverified"] = on_threads(options.get("unverified"))
        self._engine = QueueConsumer(
            Queue(link, queue),
            guard,
            on_thread(handler),
            dead_letters=dead_letters,
            responder=as_responder(replies, dead_letters),
            **options,
        )
        self._links = [link, *_links(dead_letters, guard.audit)]
        self._watched = [*self._links, *_links(replies)]
        self._threads = min(options.get("prefetch", PREFETCH), MAX_THREADS)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False
        if link in self._links[1:]:
            warn_of_shared_connection(queue)

    def run(self, *, signals: bool = False) -> None:
        """Consume until ``stop`` is called, then stop gracefully; the connections are the caller's again.

        Args:
            signals: whether to stop at SIGTERM and SIGINT too; only in a main thread. A second SIGINT
                (Ctrl-C) ends the process at once.

        Raises:
            ConfigurationError: the pipeline or a plug-in does not fit; nothing was lost.
            Exception: pika's own, where the queue cannot be consumed, or a connection was lost.
        """
        drive(self._run(signals), self._threads)

    def stop(self) -> None:
        """Let ``run`` end gracefully: take no new messages, let running handlers finish, give the rest back.

        May be called from any thread, a handler, or a signal handler; it does not wait.
        """
        self._stopped = True
        if self._loop is not None:
            tell(self._loop, self._stop)

    def health(self) -> QueueHealth:
        """Return how the consumer is doing now."""
        return self._engine.health()

    async def _run(self, signals: bool) -> None:
        self._loop = loop = asyncio.get_running_loop()
        for link in self._links:
            link.attach()
        for link in self._watched:
            link.watch(partial(tell, loop, self._engine.fail))
        if self._stopped:
            self._stop()
        await self._engine.run(signals=signals)

    def _stop(self) -> None:
        self._stopping = asyncio.ensure_future(self._engine.stop())


def _links(*wrappers: object) -> list[Link]:
    """Return the links of those wrappers that have a connection of pika's."""
    return [link for each in wrappers if isinstance(link := getattr(each, "link", None), Link)]
