"""Celery's adapter at kombu and py-amqp: it signs, reads deliveries, publishes letters, and asks the broker."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, Final

from mqauth.errors import Cause, MalformedMessage, Unavailable, needs_extra, require

with needs_extra("celery"):
    from amqp import serialization, spec
    from amqp.basic_message import Message as Frame
    from amqp.exceptions import (
        AMQPError,
        ChannelError,
        MessageNacked,
        PreconditionFailed,
        RecoverableConnectionError,
    )
    from celery.backends.base import DisabledBackend
    from kombu.exceptions import OperationalError
    from kombu.transport import pyamqp

from mqauth.brokers import amqp_messages, amqp_values
from mqauth.brokers.amqp_messages import (
    DEFAULT_MAX_BODY,
    LETTERS,
    SHORT_STRINGS,
    Number,
    new_message_id,
)
from mqauth.brokers.dead_letters import burying
from mqauth.brokers.queue.client import refusals
from mqauth.flow import run
from mqauth.letters.dead_letter import DeadLetter
from mqauth.signer import Signer
from mqauth.wire.message import HeaderValue, Message

LOST: Final = (AMQPError, MessageNacked, OSError, OperationalError)
"""What kombu and py-amqp raise where the broker refuses or cannot be reached."""
_ANSWER: Final = 10.0
"""Seconds for the broker's answer on a channel."""
_CONFIRM: Final = 30.0
"""Seconds for the broker's confirm of a task or a dead letter."""
_RESULTS: Final = {"celery.backends.redis", "celery.backends.filesystem"}
_PICKLE: Final = "application/x-python-serialize"
_UNREADABLE: Final = "unreadable"
"""The one property of a message that py-amqp cannot read; AMQP has none of that name."""
_TOO_LARGE: Final = (ValueError, OverflowError)


def refuse_results(app: Any) -> None:
    """Refuse a result backend whose results are pickled, or are messages that nobody judges.

    Raises:
        ConfigurationError: it is refused.
    """
    backend = app.backend
    if isinstance(backend, DisabledBackend):
        return
    require(
        _RESULTS & {each.__module__ for each in type(backend).__mro__},
        "result_backend: results are kept by Redis or files alone; others are unsigned messages, or pickled",
    )
    require(
        backend.accept is not None
        and _PICKLE not in backend.accept
        and backend.content_type != _PICKLE,
        "whoever writes to the store of results runs code, for they may be pickled: set result_serializer ="
        ' "json" and result_accept_content = ["json"]',
    )


class Signing:
    """A kombu producer that signs what it publishes.

    Args:
        producer: kombu's.
        signer: signs.
        max_body: bytes of body that the broker takes.
    """

    def __init__(self, producer: Any, signer: Signer, max_body: int) -> None:
        self._producer = producer
        self._signer = signer
        self._max_body = max_body

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    def publish(
        self,
        body: Any,
        *,
        exchange: Any = "",
        routing_key: str = "",
        headers: Any = None,
        serializer: Any = None,
        compression: Any = None,
        **properties: Any,
    ) -> Any:
        """Serialize a task, sign it and publish it.

        Raises:
            ConfigurationError: it is to wait in Celery's delay queues, which move it elsewhere.
            MalformedMessage: it is too large, or a header cannot be sent, or would arrive as something else.
        """
        name = getattr(exchange, "name", exchange) or ""
        require(
            not name.startswith("celery_delayed"),
            "eta and countdown of a quorum queue with a topic exchange: Celery's delay queues move a task from"
            " where it was signed for; give the queue a direct exchange",
        )
        headers = _lists(headers or {})
        prepared = self._producer._prepare(
            body, serializer, None, None, compression, headers
        )
        body, properties["content_type"], properties["content_encoding"] = prepared
        if isinstance(body, str):
            body = body.encode(properties["content_encoding"])
        properties["message_id"] = properties.get("message_id") or new_message_id()
        properties["confirm_timeout"] = properties.get("confirm_timeout") or _CONFIRM
        message = amqp_messages.published(
            SimpleNamespace(
                **{
                    attribute: properties.get(attribute)
                    for attribute in SHORT_STRINGS.values()
                }
            ),
            headers,
            body,
            exchange=name,
            routing_key=routing_key,
            scalar=scalar_on_wire,
            max_body=self._max_body,
        )
        signed = amqp_values.headers_out(self._signer.sign(message).headers, bytes)
        # It is compressed already, and has its content type: kombu leaves the bytes alone.
        return self._producer.publish(
            body,
            exchange=exchange,
            routing_key=routing_key,
            headers=signed,
            compression="",
            **properties,
        )


def _lists(value: Any) -> Any:
    """Return a header value with lists in place of tuples, as it arrives."""
    if isinstance(value, Mapping):
        return {name: _lists(each) for name, each in value.items()}
    return [_lists(each) for each in value] if isinstance(value, list | tuple) else value


def scalar_on_wire(value: object) -> HeaderValue:
    """Return a scalar as its consumers will read it, after py-amqp has sent it.

    Raises:
        MalformedMessage: it cannot be sent, or would arrive as something else.
    """
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, float | bytes | Decimal):
        raise MalformedMessage(
            f"py-amqp does not send a {type(value).__name__} in a header so that it arrives as such"
        )
    return amqp_values.plain_scalar(value)


def carries(name: str, value: HeaderValue) -> bool:
    """Return whether py-amqp can send a header so that it arrives as exactly the same value."""
    return amqp_values.arrives(
        name, value, amqp_values.value_out(value, bytes), scalar_on_wire
    )


class Letters:
    """Dead letters of a worker, published on a connection of their own.

    Args:
        connect: returns that connection, with publisher confirms.
        name: the queue.
    """

    def __init__(self, connect: Callable[[], Any], name: str) -> None:
        self._connect = connect
        self._connection: Any = None
        self.name = name

    def declare(self) -> None:
        """Declare the queue: quorum, no delivery limit, no TTL, refusing when full."""
        self._open().default_channel.queue_declare(
            self.name, durable=True, auto_delete=False, arguments=dict(LETTERS)
        )

    def publish(self, letter: DeadLetter, /) -> None:
        """Publish a letter in the first of its forms that fits; return once the broker has confirmed it.

        Raises:
            Unavailable: ``dead_letter_unavailable``.
        """
        try:
            run(
                burying(
                    letter, self._send, carries, _TOO_LARGE, DEFAULT_MAX_BODY, "reference"
                )
            )
        except LOST as error:
            # The next attempt opens another.
            self.close()
            raise Unavailable(
                Cause.DEAD_LETTER_UNAVAILABLE, type(error).__name__
            ) from error

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.release()

    def _open(self) -> Any:
        if self._connection is None:
            self._connection = self._connect()
        return self._connection

    def _send(self, form: Message) -> None:
        properties: dict[str, Any] = {
            name: form.properties.get(text) for text, name in SHORT_STRINGS.items()
        }
        properties |= {
            name: int(form.properties[name])
            for name in ("priority", "timestamp")
            if name in form.properties
        }
        properties |= {"message_id": new_message_id(), "delivery_mode": 2}
        headers, body = amqp_values.headers_out(form.headers, bytes), form.body or b""
        frame = Frame(body, application_headers=headers, **properties)
        try:
            self._open().default_channel.basic_publish(
                frame, routing_key=self.name, mandatory=True, confirm_timeout=_CONFIRM
            )
        except PreconditionFailed as error:
            if not amqp_messages.may_be_too_large(str(error), len(body)):
                raise
            self.close()
            raise ValueError("the broker closed the channel for the letter") from error


class Task(pyamqp.Message):  # type: ignore[misc]
    """A message that was accepted; Celery settles it in the worker's main thread.

    Args:
        held: its delivery.
        consumer: took it.
    """

    headers: Any

    def __init__(self, held: Any, consumer: Any) -> None:
        super().__init__(held.native, channel=held.native.channel, accept=consumer.accept)
        # What Celery sends after a task, a retry for example, has its headers, and a token of its own.
        self.headers = {
            name: value
            for name, value in self.headers.items()
            if not str(name).lower().startswith("mqauth-")
        }
        self.held = held
        self._protection = consumer.protection

    def ack(self, multiple: bool = False) -> None:
        """Confirm the claim, and ack."""
        self._protection.settle(self.held, super().ack)

    def reject(self, requeue: bool = False) -> None:
        """Confirm the claim, and reject; or release it, and have the broker deliver the message again."""
        if requeue:
            self.requeue()
        else:
            self._protection.settle(self.held, super().reject)

    def requeue(self) -> None:
        """Release the claim, and have the broker deliver the message again."""
        self._protection.give_back(self.held)
        super().requeue()


def read_all_headers() -> None:
    """Have py-amqp give a message whose properties it cannot read, which would end its connection, with none.

    Such a message is rejected: ``message_malformed``.
    """
    serialization.PROPERTY_CLASSES[spec.Basic.CLASS_ID] = _properties


def _properties(buffer: Any, offset: int) -> tuple[dict[str, Any], int]:
    try:
        properties, end = serialization.decode_properties_basic(buffer, offset)
        return properties, end
    except Exception as error:
        return {_UNREADABLE: type(error).__name__}, len(buffer)


def read(frame: Any, queue: str) -> Message:
    """Return a delivery as a ``Message``; never raises.

    Args:
        frame: py-amqp's message.
        queue: the queue it was taken from.
    """
    try:
        properties, info = frame.properties, frame.delivery_info
        expires = properties.get("expiration")
        faults = (
            ["the expiration is no number"]
            if expires and _number(expires) is None
            else []
        )
        if _UNREADABLE in properties:
            faults.append("py-amqp cannot read its properties")
        return amqp_messages.delivered(
            SimpleNamespace(headers=properties.get("application_headers"), **properties),
            _NUMBERS,
            # An empty one is text.
            frame.body or b"",
            exchange=info["exchange"],
            routing_key=info["routing_key"],
            redelivered=bool(info["redelivered"]),
            queue=queue,
            scope=queue,
            native=frame,
            faults=faults,
        )
    except Exception as error:
        return amqp_messages.unreadable(error, frame, queue=queue, scope=queue)


def _number(text: object) -> int | None:
    return (
        int(text)
        if isinstance(text, str) and text.isdecimal() and text.isascii()
        else None
    )


_NUMBERS: Final[tuple[Number, ...]] = (
    ("priority", "priority", amqp_messages.whole),
    ("delivery-mode", "delivery_mode", amqp_messages.whole),
    ("timestamp", "timestamp", amqp_messages.whole),
    ("expiration", "expiration", _number),
)


def ended(channel: Any) -> bool:
    """Return whether a channel has ended, as far as py-amqp knows."""
    return channel.connection is None or not channel.is_open


def answers(channel: Any) -> bool:
    """Return whether a channel lives: the broker answers on it.

    Raises:
        RecoverableConnectionError: it does not answer in time: the worker connects again.
    """
    try:
        # It is active anyway (AMQP 0-9-1, 1.5.2.3).
        channel.send_method(spec.Channel.Flow, "b", (True,))
        channel.wait(spec.Channel.FlowOk, timeout=_ANSWER)
    except TimeoutError as error:
        raise RecoverableConnectionError(
            "the broker did not answer on a channel"
        ) from error
    except LOST:
        return False
    return True


async def echoed(
    connection: Any, headers: dict[str, Any], body: bytes
) -> Mapping[str, Any]:
    """Send a message to an exclusive queue of a connection, and return the headers that it comes back with.

    Raises:
        ConfigurationError: the broker refuses.
        UnansweredError: the connection was lost.
    """
    returned: list[Any] = []
    with refusals(ChannelError, LOST):
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).queue
        channel.basic_consume(queue, no_ack=True, callback=returned.append)
        channel.basic_publish(Frame(body, application_headers=headers), routing_key=queue)
        # Whoever knows the queue's name may send to it, too.
        while not (own := [frame for frame in returned if frame.body == body]):
            connection.drain_events(timeout=_ANSWER)
        channel.close()
    stamped: Mapping[str, Any] = own[0].properties.get("application_headers") or {}
    return stamped
