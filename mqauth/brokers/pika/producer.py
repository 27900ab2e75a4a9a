"""pika's producer: seals each message, alone or with others, and publishes it; signed answers."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from pika import BasicProperties, BlockingConnection
from pika.exceptions import AMQPConnectionError, ChannelWrongStateError

from mqauth.brokers.amqp_messages import deferring, mandatory_reply, new_message_id
from mqauth.brokers.amqp_values import headers_out
from mqauth.brokers.event_loop import tell
from mqauth.brokers.pika.confirmed import Publisher
from mqauth.brokers.pika.link import Link, drive
from mqauth.brokers.pika.translate import to_message
from mqauth.brokers.sealing import Sealing
from mqauth.errors import MqauthError, Unavailable, require
from mqauth.judging.verified import Responder, Verified
from mqauth.signer import DEFAULT_BATCH, Signer
from mqauth.threads import Closing, in_event_loop
from mqauth.wire.message import Message

OUT_OF_REACH: Final = (AMQPConnectionError, ChannelWrongStateError, OSError, Unavailable)
"""Errors of a publish where channel, connection or signing key are gone, and the broker has refused nothing."""


class ClosedByOwnerError(MqauthError, ChannelWrongStateError):
    """The producer was closed by its owner."""

    code = "closed"


class Producer(Closing):
    """Signs each message afresh and publishes it, with a confirm; the caller's properties are never changed.

    Any thread may publish. From the first publish until ``close`` a thread of the producer's own uses the
    connection, and answers its heartbeats: nobody else may use it meanwhile.

    Args:
        connection: a connected ``pika.BlockingConnection`` of its own.
        exchange: where to publish; empty for the default exchange.
        signer: signs as this producer.
        value_serializer: turns what ``publish`` is given, unless it is bytes already, into the body's bytes; runs
            before sealing.
        batch: messages that concurrent publishes may have sealed under one signature, 1 to 1,024; with 1 each has
            a token of its own.
        linger: seconds a message may wait for others to be sealed with, 0 to 10.

    Raises:
        ConfigurationError: ``batch`` or ``linger`` is out of its limits.
    """

    def __init__(
        self,
        connection: BlockingConnection | Link,
        exchange: str,
        signer: Signer,
        *,
        value_serializer: Callable[[Any], bytes] | None = None,
        batch: int = DEFAULT_BATCH,
        linger: float = 0,
    ) -> None:
        self._sealing = Sealing(
            signer, batch, linger, lambda: ClosedByOwnerError("the producer was closed")
        )
        self._publisher = Publisher(connection)
        self.link = self._publisher.link
        self._exchange = exchange
        self._serialize = value_serializer
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._end: Callable[[], object] = lambda: None
        self._closed = False

    def publish(
        self,
        body: bytes | Any,
        routing_key: str,
        properties: BasicProperties | None = None,
        *,
        mandatory: bool = True,
        timeout: float | None = None,
    ) -> None:
        """Sign a message and publish it; return once the broker has confirmed it.

        Args:
            body: bytes, or a value where there is a ``value_serializer``.
            routing_key: with the exchange it is the destination that the token binds.
            properties: pika's; those of the token are added to a copy.
            mandatory: have the broker return the message where no queue takes it.
            timeout: seconds for all of it.

        Raises:
            MalformedMessage: the message cannot be sent, or would arrive as something else.
            UnroutableError: no queue takes it; also pika's ``UnroutableError``.
            pika.exceptions.NackError: the broker refused it, because of a full queue for example.
            TimeoutError, pika.exceptions.AMQPError: the outcome is unknown. It is never tried again here: publish
                again yourself, which makes a new token, and expect duplicates.
            ClosedByOwnerError: the producer was closed.
        """
        sent = self.submit(body, routing_key, properties, mandatory=mandatory)
        try:
            sent.result(timeout)
        finally:
            sent.cancel()

    def submit(
        self,
        body: bytes | Any,
        routing_key: str,
        properties: BasicProperties | None = None,
        *,
        mandatory: bool = True,
    ) -> Future[None]:
        """Sign a message and publish it, as ``publish`` does; return a future of its confirm at once.

        Raises:
            MalformedMessage: the message cannot be sent, or would arrive as something else.
            ClosedByOwnerError: the producer was closed.
        """
        publishing, loop = (
            self.publishing(body, routing_key, properties, mandatory=mandatory),
            self.running(),
        )
        return asyncio.run_coroutine_threadsafe(publishing(), loop)

    def running(self) -> asyncio.AbstractEventLoop:
        """Return the event loop that drives the connection, started where there is none.

        Raises:
            ClosedByOwnerError: the producer was closed.
            pika.exceptions.AMQPError: the connection ended.
        """
        self._sealing.home.check()
        with self._lock:
            require(not self._closed, "the producer was closed", ClosedByOwnerError)
            return self.link.loop or self._start()

    def publishing(
        self,
        body: bytes | Any,
        routing_key: str,
        properties: BasicProperties | None,
        *,
        mandatory: bool,
    ) -> Callable[[], Coroutine[Any, Any, None]]:
        """Take a message as it is now; return what publishes it in the event loop that drives the connection.

        Raises:
            MalformedMessage: the message cannot be sent, or would arrive as something else.
        """
        taken = copy.deepcopy(properties) or BasicProperties()
        taken.message_id = taken.message_id or new_message_id()
        if self._serialize is not None and not isinstance(body, bytes):
            body = self._serialize(body)
        message = to_message(
            taken, body, exchange=self._exchange, routing_key=routing_key
        )
        return partial(
            self._sealing.publish,
            message,
            partial(self._confirmed, taken, routing_key, mandatory),
        )

    def responder(self) -> Responder:
        """Return what publishes signed answers: what a consumer takes from its ``replies=``.

        Raises:
            ConfigurationError: this producer is on no default exchange.
        """
        require(not self._exchange, "replies= takes a producer on the default exchange")
        return partial(_reply, self)

    def close(self) -> None:
        """Seal what waits, and return when every publish has its outcome; the connection is yours again."""
        self._sealing.home.check()
        with self._lock:
            self._closed = True
        self._end()
        if self._thread is not None:
            self._thread.join()

    async def _confirmed(
        self, taken: BasicProperties, routing_key: str, mandatory: bool, sealed: Message
    ) -> None:
        taken.headers = headers_out(sealed.headers, bytes)
        await self._publisher.publish(
            self._exchange, routing_key, sealed.body or b"", taken, mandatory=mandatory
        )

    def _start(self) -> asyncio.AbstractEventLoop:
        """Start the thread that uses the connection; return its event loop."""
        began: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=lambda: drive(self._serve(began)), name="mqauth-pika", daemon=True
        )
        self._thread.start()
        return began.result()

    async def _serve(self, began: Future[asyncio.AbstractEventLoop]) -> None:
        """Drive the connection until it is lost or the producer is closed, and every publish has its outcome."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        try:
            self.link.attach()
        except Exception as error:
            return began.set_exception(error)
        self.link.watch(lambda _: over.set())
        self._end = partial(tell, loop, over.set)
        began.set_result(loop)
        await over.wait()
        await self._sealing.close()


def _reply(producer: Producer, verified: Verified, body: bytes) -> Any:
    """Publish a signed answer to the message's reply-to: what ``Verified.reply`` calls.

    While the connection or the signing key cannot be reached the handler is deferred. An answer that the broker
    refuses, because no queue takes it or it is too large, fails the handler.
    """
    place = verified.native.properties.reply_to
    properties = BasicProperties(correlation_id=verified.properties.get("correlation-id"))
    publishing = producer.publishing(
        body, place, properties, mandatory=mandatory_reply(place)
    )
    if not in_event_loop():
        with deferring(OUT_OF_REACH):
            return asyncio.run_coroutine_threadsafe(
                publishing(), producer.running()
            ).result()

    async def awaited() -> None:
        with deferring(OUT_OF_REACH):
            await publishing()

    return awaited()
