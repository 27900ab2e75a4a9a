"""Deliveries and publishes of AMQP 0-9-1 as ``Message``, for every client of RabbitMQ.

The wrapper of a client says where a delivery has its parts; reading them never raises. A message that is to be
published is converted to the form in which it will arrive before it is signed. RabbitMQ 4.0 itself rewrites only
``BCC`` (removed), a direct reply-to (gets a suffix) and its own ``x-`` headers.

The recommended queues are here too, and streams are refused. One message that a client cannot decode ends the
connection of whoever reads it, before any handler. With a delivery limit a quorum queue moves it, and with it
whatever else is in the prefetch window, to its dead-letter exchange. That must not lead to the dead-letter queue
that mqauth reads: the message would kill the reader there.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final, TypeAlias

from mqauth.brokers.amqp_values import (
    Scalar,
    header_name,
    headers_in,
    on_wire,
    short_string,
)
from mqauth.errors import (
    ConfigurationError,
    Errors,
    MalformedMessage,
    RetryLater,
    refusing,
)
from mqauth.logs import emit
from mqauth.wire import destination, envelope, memo
from mqauth.wire.message import Message, Origin, message_of

APPEND_HEADER: Final = "timestamp_in_ms"
SHORT_STRINGS: Final = {
    "content-type": "content_type",
    "content-encoding": "content_encoding",
    "type": "type",
    "message-id": "message_id",
    "correlation-id": "correlation_id",
    "reply-to": "reply_to",
    "app-id": "app_id",
    "user-id": "user_id",
}
"""AMQP's text properties, each with the attribute that clients keep it in."""
MAX_HEADER_FRAME: Final = 131_064
"""Bytes of properties and headers in one frame: RabbitMQ's ``frame_max`` of 131,072 less the frame's own 8."""
DEFAULT_MAX_BODY: Final = 16 * 1024 * 1024
"""RabbitMQ 4's default ``max_message_size``, bytes; AMQP 0-9-1 tells no client what it is."""
DIRECT_REPLY: Final = "amq.rabbitmq.reply-to."
_OVER_SIZE: Final = re.compile(
    r"message size \d+ (?:is )?larger than (?:configured )?max size (\d+)"
)
"""RabbitMQ's text for a body over its ``max_message_size``."""
Number: TypeAlias = tuple[str, str, Callable[[object], int | None]]
"""A number property: its name, the client's attribute, and the function that reads it or returns ``None``."""


def delivered(
    native_properties: Any,
    numbers: Iterable[Number],
    body: object,
    *,
    exchange: object,
    routing_key: object,
    redelivered: bool,
    queue: str,
    scope: str,
    native: object,
    faults: list[str],
) -> Message:
    """Return the message of a delivery.

    Args:
        native_properties: has AMQP's properties as attributes, and ``headers``.
        numbers: its number properties.
        body: the bytes.
        exchange: as the broker says; empty or ``None`` for the default exchange.
        routing_key: as the broker says.
        redelivered: as the broker says.
        queue: the queue it was taken from.
        scope: on whose behalf it was taken.
        native: the client's own object.
        faults: what cannot be represented so far; the first one makes the message malformed.

    Raises:
        Exception: exchange or routing key are no text; ``unreadable`` makes the message then.
    """
    headers = headers_in(native_properties.headers, faults)
    exchange, routing_key = _broker_name(exchange), _broker_name(routing_key)
    appended = append_time(native_properties.headers) if headers else None
    if not isinstance(body, (bytes, bytearray)):
        faults.append("the body is no bytes")
    # Those properties that are present, as text, by AMQP's hyphenated names.
    properties: dict[str, str] = {}
    for name, attribute in SHORT_STRINGS.items():
        value = getattr(native_properties, attribute, None)
        if isinstance(value, str):
            if value:
                properties[name] = value
        elif value:
            faults.append(f"property {name} is no text")
    for name, attribute, read in numbers:
        value = getattr(native_properties, attribute, None)
        if value and (number := read(value)):
            properties[name] = str(number)
    cluster = getattr(native_properties, "cluster_id", None)
    if cluster and isinstance(cluster, str):
        properties["cluster-id"] = cluster
    origin = _ORIGINS[scope, queue, exchange, routing_key, redelivered, appended]
    place, malformed = (
        destination.rabbitmq(exchange, routing_key),
        faults[0] if faults else None,
    )
    return message_of(
        place, _bytes_or_empty(body), None, properties, headers, origin, native, malformed
    )


def append_time(headers: Mapping[str, Any]) -> int | None:
    """Return when the broker took a message in by its interceptor's header, UTC milliseconds; ``None`` without.

    The interceptor writes a long, which pika reads as a class of its own below ``int``; before 1.4 it reads a
    negative one as 2**63 and more.
    """
    stamp = headers.get(APPEND_HEADER)
    return (
        int(stamp)
        if isinstance(stamp, int) and not isinstance(stamp, bool) and 0 <= stamp < 1 << 63
        else None
    )


def may_be_too_large(why: str, size: int) -> bool:
    """Return whether a channel that RabbitMQ closed with 406 may have been closed for a message of so many bytes.

    The channel takes with it all messages that were open on it, and names none of them; but where the size was the
    fault it names the limit. Any other fault, a ``CC`` header of the wrong type for example, may be of each that
    was open.

    Args:
        why: the broker's text.
        size: bytes of the body.
    """
    limit = _OVER_SIZE.search(why)
    return limit is None or size > int(limit[1])


def unreadable(error: Exception, native: object, *, queue: str, scope: str) -> Message:
    """Return the message of a delivery that cannot be read, with its body where there is one.

    Args:
        error: what reading it raised.
        native: the client's own object.
        queue: the queue it was taken from.
        scope: on whose behalf it was taken.
    """
    try:
        body = _bytes_or_empty(getattr(native, "body", b""))
    except Exception:
        body = b""
    return Message(
        destination="rabbitmq:/",
        body=body,
        origin=Origin(scope=scope, queue=queue),
        native=native,
        malformed=f"the delivery could not be read: {type(error).__name__}",
    )


def whole(value: object) -> int | None:
    """Return a number property that clients keep as an integer."""
    return int(value) if isinstance(value, int) else None


def failures(headers: Mapping[str, Any], *, redelivered: bool) -> int:
    """Return how many deliveries of a message its queue counts against the delivery limit, as far as known.

    Up to RabbitMQ 4.2 ``x-delivery-count`` counts each return. RabbitMQ 4.3 counts each return in
    ``x-acquired-count``, and only failed ones in ``x-delivery-count``; until one has failed it leaves there what
    was published.

    Args:
        headers: of the delivery.
        redelivered: as the broker says.
    """
    # A publisher can write both headers. So they are believed only where the broker itself says that the message
    # was delivered before, and the smaller number counts.
    failed = headers.get("x-delivery-count")
    if not redelivered or not isinstance(failed, int):
        return 0
    acquired = headers.get("x-acquired-count")
    return min(failed, acquired) if isinstance(acquired, int) else failed


def new_message_id() -> str:
    """Return a unique message id: some clients would add one after signing, or match returned messages by it."""
    return os.urandom(16).hex()


def published(
    properties: object,
    headers: object,
    body: object,
    *,
    exchange: str,
    routing_key: str,
    scalar: Scalar,
    message_id: str | None = None,
    max_body: int = DEFAULT_MAX_BODY,
) -> Message:
    """Return the ``Message`` that consumers will get of a message that is to be published.

    For a body over its size RabbitMQ would close the channel, and with it fail what is published beside it.

    Args:
        properties: has AMQP's text properties as attributes.
        headers: a dict, or ``None``.
        body: the bytes.
        exchange: empty for the default exchange.
        routing_key: at most 255 bytes.
        scalar: converts the client's header values, see ``on_wire``.
        message_id: used where the message has no id of its own.
        max_body: bytes of body that the broker takes.

    Raises:
        MalformedMessage: a part cannot be sent, or would arrive as something else.
    """
    if short_string("the routing key", routing_key) is None and routing_key != "":
        raise MalformedMessage("the routing key must be text")
    given = {
        name: short_string(name, getattr(properties, key))
        for name, key in SHORT_STRINGS.items()
    }
    texts = {name: text for name, text in given.items() if text is not None}
    if message_id is not None:
        texts.setdefault("message-id", message_id)
    if not isinstance(body, (bytes, bytearray)):
        raise MalformedMessage("the body must be bytes")
    if len(body) > max_body:
        raise MalformedMessage(
            f"the body is {len(body)} bytes: the broker takes {max_body} bytes (max_body=)"
        )
    if headers is not None and not isinstance(headers, dict):
        raise MalformedMessage("the headers must be a dict")
    return Message(
        destination=destination.rabbitmq(exchange, routing_key),
        body=bytes(body),
        properties=texts,
        headers=tuple(
            [
                (header_name(name), on_wire(value, scalar, envelope.MAX_DEPTH))
                for name, value in (headers or {}).items()
            ]
        ),
    )


def check_frame(size: int, limit: int = MAX_HEADER_FRAME) -> None:
    """Refuse a message for whose header frame RabbitMQ would close the connection.

    Args:
        size: bytes of its properties, encoded.
        limit: most bytes of the frame.

    Raises:
        MalformedMessage: it is over the limit.
    """
    # Bytes of a header frame before its properties: class, weight and body size.
    size += 12
    if size > limit:
        raise MalformedMessage(
            f"properties and headers, token included, are {size} bytes: the broker takes {limit} bytes"
        )


def deferring(out_of_reach: Errors) -> AbstractContextManager[None]:
    """Defer a handler whose answer is sent within the block, while connection or signing key cannot be reached."""
    return refusing(
        out_of_reach,
        lambda error: f"the answer could not be sent: {type(error).__name__}",
        RetryLater,
    )


def mandatory_reply(place: object) -> bool:
    """Return whether an answer to a reply-to is to be mandatory.

    RabbitMQ appends a suffix to a reply-to of ``amq.rabbitmq.reply-to``, and the token of a request binds that
    without the suffix: whoever can publish a request again can redirect its answer. The answer is bound to the
    place that it is sent to.

    Raises:
        MalformedMessage: there is no reply-to.
    """
    if not isinstance(place, str) or not place:
        raise MalformedMessage("the message cannot be answered: it has no reply-to")
    # RabbitMQ returns a mandatory direct reply although it delivers it (manual, Direct Reply-to).
    return not place.startswith(DIRECT_REPLY)


def _origin(facts: tuple[str, str, str, str, bool, int | None]) -> Origin:
    """Return what the broker says of a delivery: scope, queue, exchange, routing key, redelivered, append time."""
    scope, queue, exchange, routing_key, redelivered, appended = facts
    return Origin(
        scope=scope,
        queue=queue,
        exchange=exchange,
        routing_key=routing_key,
        redelivered=redelivered,
        timestamp_ms=appended,
        timestamp_type=None if appended is None else "append",
    )


_ORIGINS: Final = memo.Memo(_origin)
"""Most deliveries of a queue share their origin, which takes longer to make than the rest of their message."""


def _broker_name(name: object) -> str:
    if name is None:
        return ""
    if not isinstance(name, str):
        raise TypeError(
            f"an exchange or routing key must be text, not {type(name).__name__}"
        )
    return name


def _bytes_or_empty(body: object) -> bytes:
    if type(body) is bytes:
        return body
    return bytes(body) if isinstance(body, (bytes, bytearray)) else b""


DEFAULT_DELIVERY_LIMIT: Final = 20
"""RabbitMQ 4's own default; a lower one condemns healthy messages in ordinary network failures."""
UNPARSEABLE: Final = ".unparseable"
LETTERS: Final = {
    "x-queue-type": "quorum",
    "x-delivery-limit": -1,
    "x-overflow": "reject-publish",
}
"""Arguments of a queue that keeps its messages: no delivery limit, no TTL, refusing when full."""
OFFSET: Final = "x-stream-offset"
"""Header that RabbitMQ adds to what it delivers from a stream; any publisher can write it too."""
_OTHER: Final = re.compile(
    r"arg '([\w-]+)' .* current is the value '([^']*)' of type '(\w+)'"
)


def source_arguments(name: str, delivery_limit: int) -> dict[str, Any]:
    """Return the arguments of a quorum queue to consume from, whose unparseable messages go to a queue apart.

    Args:
        name: of the queue.
        delivery_limit: deliveries after which RabbitMQ moves a message to the unparseable ones.
    """
    return {
        "x-queue-type": "quorum",
        "x-delivery-limit": delivery_limit,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": name + UNPARSEABLE,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
    }


def stream_refused(name: str) -> ConfigurationError:
    """Return the error for a stream, since RabbitMQ forgets a delivery of a stream that is given back."""
    return ConfigurationError(
        f"{name} is a stream, which loses what is given back to it: consume a quorum queue"
    )


async def exists(refusal: Callable[..., Awaitable[str]]) -> bool:
    """Return whether a queue exists, or the broker does not tell.

    Args:
        refusal: declares the queue with properties, and returns the broker's answer; empty where it agrees.
    """
    return "NOT_FOUND" not in await refusal(passive=True)


async def is_stream(refusal: Callable[..., Awaitable[str]]) -> bool:
    """Return whether a queue is known to be a stream; nothing is declared.

    A queue that was got by its name has no arguments that we know. But RabbitMQ compares the arguments of a
    declaration with those of the queue that exists, and says which one differs. No stream can be made with a
    priority, so that none comes into being where the queue is missing.

    Args:
        refusal: as ``exists`` has it.
    """
    wanted: dict[str, Any] = {"x-queue-type": "stream", "x-max-priority": 1}
    # More than the number of arguments that a stream can have.
    for _ in range(10):
        answer = await refusal(arguments=wanted)
        if not answer:
            return True
        differs = _OTHER.search(answer)
        if differs is None or differs[1] in wanted:
            return False
        argument, value, kind = differs.groups()
        wanted[argument] = int(value) if value.isdigit() and kind != "longstr" else value
    return False


def warn_of_shared_connection(queue: str) -> None:
    """Warn that the dead letters of a queue go over its consumer's connection."""
    text = "%s: dead letters share its connection; under a memory alarm acks will stall"
    emit("client.shared_connection", text, queue)
