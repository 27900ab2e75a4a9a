"""pika's consumer: a queue with the delivery engine, and handlers on threads of their own."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Final

from pika import BlockingConnection

from mqauth.brokers.amqp_topology import DEFAULT_DELIVERY_LIMIT, warn_of_shared_connection
from mqauth.brokers.background import BackgroundRun
from mqauth.brokers.event_loop import Sleep, on_thread, on_threads
from mqauth.brokers.pika.link import Link, drive, link_of, tell
from mqauth.brokers.pika.producer import Producer, as_responder
from mqauth.brokers.pika.queue import Queue
from mqauth.brokers.queue.consumer import QueueConsumer
from mqauth.delivery.health import QueueHealth
from mqauth.delivery.hold import CONSUMER_TIMEOUT, SUSPENDS_AFTER
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.judging.unverified import Unverifieds
from mqauth.judging.verified import Decode
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.signer import Signer

DEFAULT_PREFETCH: Final = 10
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
        prefetch: deliveries at once; their handlers run concurrently, so that 1 keeps the order.
        coalesce_acks: whether to ack many deliveries in one frame, at most 5 ms late; without, each by itself as
            soon as it is settled.
        decode: makes ``Verified.value`` of the body, after verification; what it raises dead-letters the
            message as ``handler_failed``, at once.
        replies: signs what ``Verified.reply`` publishes, through the connection of ``dead_letters``; or a
            ``Producer`` on the default exchange.
        grace: seconds that running handlers may take at ``stop``.
        hold: seconds, at least 1, of a cause that concerns everyone after which the queue is suspended and the
            held deliveries go back to the broker. What waits for a cause of its own, or of one issuer, is held in
            any case.
        consumer_timeout: seconds after which the broker closes a channel for a delivery that is not acked, as it
            is set there (``consumer_timeout``); what is held goes back a tenth before.
        delivery_limit: of the queue; by default RabbitMQ's 20. Negative for none. A message at its last delivery
            is not given back.
        max_held: deliveries held beside the window, by default ten times ``prefetch`` and at most 1,000, and
            16 MiB of their bodies; beyond it the queue waits for all.
        sleep: waits so many seconds.
        unverified: takes an ``Unverified``, where a rung below ``enforce`` or an exemption lets such messages
            pass; or a table of handlers by kind. It is another function than ``handler``.

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
        prefetch: int = DEFAULT_PREFETCH,
        coalesce_acks: bool = True,
        decode: Decode | None = None,
        replies: Signer | Producer | None = None,
        grace: float = 30,
        hold: float = SUSPENDS_AFTER,
        consumer_timeout: float = CONSUMER_TIMEOUT,
        delivery_limit: int = DEFAULT_DELIVERY_LIMIT,
        max_held: int | None = None,
        sleep: Sleep = asyncio.sleep,
        unverified: Unverifieds | None = None,
    ) -> None:
        link = link_of(connection)
        self._engine = QueueConsumer(
            Queue(link, queue), guard, on_thread(handler),
            dead_letters=dead_letters, prefetch=prefetch, coalesce_acks=coalesce_acks, grace=grace, hold=hold,
            consumer_timeout=consumer_timeout, delivery_limit=delivery_limit, max_held=max_held,
            decode=decode, responder=as_responder(replies, dead_letters), sleep=sleep,
            unverified=on_threads(unverified),
        )  # fmt: skip
        self._links = [link, *_links(dead_letters, guard.audit)]
        self._watched = [*self._links, *_links(replies)]
        self._threads = min(prefetch, MAX_THREADS)
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
