"""Where the token stands in a message, and what it binds: sealing and checking, the two halves side by side.

Digests run over an encoding that is typed and length-prefixed, so no two lists of headers share their bytes. Every
value is a tag of one byte, its length in four bytes if it has one, and its bytes. A header that is absent differs
from one that is empty, and ``"1"`` from ``1``. The wire profile, section 5, fixes every byte; to change one is a
new version of the profile.

What depends on the names of a message alone, its *form*, is worked out once for all messages of that form: see
``encoder``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Final, NoReturn, TypeAlias

from mqauth.errors import MalformedMessage, Reason, Rejection, require
from mqauth.wire import base64url
from mqauth.wire.claims import Binding
from mqauth.wire.destination import is_kafka
from mqauth.wire.jws import MAX_TOKEN
from mqauth.wire.message import (
    PROTECTED_PROPERTIES,
    TOKEN_HEADER,
    Form,
    HeaderPair,
    HeaderValue,
    Message,
    fold,
    form_of,
)

MAX_DEPTH: Final = 32
EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_DOMAIN: Final = b"mqauth-hds-1"
_LENGTH: Final = len(TOKEN_HEADER)  # no name of another length is this one in lower case
_FEW: Final = 256
_SIZES: Final = [size.to_bytes(4, "big") for size in range(_FEW)]
_DIRECT_REPLY: Final = "amq.rabbitmq.reply-to"
_BROKER_WRITTEN: Final = frozenset(("x-death", "x-delivery-count", "x-acquired-count"))
_TRANSPORT: Final = _BROKER_WRITTEN | {
    "x-delay",
    "timestamp_in_ms",
    "traceparent",
    "tracestate",
    "baggage",
    "b3",
    "sentry-trace",
    "uber-trace-id",
    "x-amzn-trace-id",
    "x-cloud-trace-context",
    "newrelic",
    "elastic-apm-traceparent",
    "x-shovelled",
    "x-shovelled-timestamp",
    "x-received-from",
    "x-original-exchange",
    "x-original-routing-key",
}
_BROKER_PREFIXES: Final = ("x-first-death-", "x-last-death-", "x-stream-", "x-opt-")
_TRANSPORT_PREFIXES: Final = (
    *_BROKER_PREFIXES,
    "x-b3-",
    "x-datadog-",
    "uberctx-",
    "mqauth-",
)
_PROPERTIES: Final = frozenset(PROTECTED_PROPERTIES)

Encoder: TypeAlias = Callable[[Message], bytes]
"""Returns the bytes that are bound of a message's properties and covered headers."""


def is_transport(name: str) -> bool:
    """Tell whether a header belongs to transports or to mqauth, which add, change or remove it.

    What they add would be a covered header's twin in another case. ``BCC`` is removed, so ``bcc`` has no twin.
    """
    return (
        name == "BCC"
        or (folded := fold(name)) in _TRANSPORT
        or folded.startswith(_TRANSPORT_PREFIXES)
    )


def is_broker_written(name: str) -> bool:
    """Tell whether a header changes with each delivery, so that it does not identify the content."""
    return name in _BROKER_WRITTEN or name.startswith(_BROKER_PREFIXES)


def application_headers(form: Form) -> tuple[str, ...]:
    """Return the names of the application's headers, each once, in order of first appearance."""
    skip = _PROPERTIES if is_kafka(form[0]) else frozenset[str]()
    return tuple(
        name
        for name in dict.fromkeys(form[1])
        if name not in skip and not is_transport(name)
    )


def bind(message: Message, cover: Iterable[str] | None = None) -> Binding:
    """Return what a token must say of a message.

    Args:
        message: as it will be sent.
        cover: names of the headers to cover; by default every application header present.

    Raises:
        MalformedMessage: two names differ in case only, or a value has no form on the wire.
    """
    form = form_of(message)
    names = application_headers(form) if cover is None else tuple(dict.fromkeys(cover))
    refuse_case_twins(form, names)
    return Binding(
        dst=message.destination,
        bod=None if message.body is None else base64url.digest(message.body),
        key=None if message.key is None else base64url.digest(message.key),
        hdr=names,
        hds=base64url.digest(headers_input(message, names)),
    )


def attach(message: Message, token: str) -> tuple[HeaderPair, ...]:
    """Return the headers of a message with its token added, in the type that its broker carries.

    Raises:
        MalformedMessage: the token is over its size.
    """
    if len(token) > MAX_TOKEN:
        raise MalformedMessage(
            f"the token is over {MAX_TOKEN} bytes: cover fewer headers"
        )
    return (
        *message.headers,
        (TOKEN_HEADER, token.encode("ascii") if is_kafka(message.destination) else token),
    )


def refuse_token(names: Iterable[str]) -> None:
    """Refuse the names of headers among which a token is already, in whatever spelling.

    Raises:
        MalformedMessage: there is one.
    """
    require(
        not any(len(name) == _LENGTH and fold(name) == TOKEN_HEADER for name in names),
        "the message carries a token already",
        MalformedMessage,
    )


def token_of(message: Message) -> bytes:
    """Return the one token of a message: step 1 of the verdict.

    Raises:
        Rejection: ``token_missing``, ``token_repeated``, ``token_oversize`` or ``token_malformed``.
    """
    position = place_of_token([name for name, _ in message.headers])
    return token_of_value(
        message.headers[position][1], on_kafka=is_kafka(message.destination)
    )


def place_of_token(names: Sequence[str]) -> int:
    """Return where the one token stands among the names of a message's headers.

    Raises:
        Rejection: ``token_missing`` or ``token_repeated``.
    """
    positions = [
        at
        for at, name in enumerate(names)
        if len(name) == _LENGTH and fold(name) == TOKEN_HEADER
    ]
    if len(positions) > 1:
        raise Rejection(Reason.TOKEN_REPEATED, f"{len(positions)} token headers")
    if not positions or names[positions[0]] != TOKEN_HEADER:
        raise Rejection(
            Reason.TOKEN_MISSING,
            "no token header" if not positions else "the header is misspelt",
        )
    return positions[0]


def token_of_value(value: HeaderValue, *, on_kafka: bool) -> bytes:
    """Return the token that stands in a header's value: its type is judged, then its size, then its characters.

    Raises:
        Rejection: ``token_oversize`` or ``token_malformed``.
    """
    if not isinstance(value, bytes if on_kafka else str):
        raise Rejection(
            Reason.TOKEN_MALFORMED,
            "the header is not of the type that its broker carries",
        )
    raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    if len(raw) > MAX_TOKEN:
        raise Rejection(Reason.TOKEN_OVERSIZE, f"over {MAX_TOKEN} bytes")
    if not on_kafka and not raw.isascii():
        raise Rejection(Reason.TOKEN_MALFORMED, "the token is not ASCII")
    return raw


def check(message: Message, binding: Binding, encode: Encoder) -> None:
    """Hold a verified binding against the message it came with: step 11 of the verdict.

    Args:
        message: as the broker delivered it.
        binding: of its token.
        encode: of the message's form and the names that the binding covers.

    Raises:
        Rejection: ``destination_mismatch``, ``record_key_mismatch``, ``body_mismatch`` or ``headers_mismatch``.
    """
    if binding.dst != message.destination:
        raise Rejection(Reason.DESTINATION_MISMATCH, "signed for another destination")
    if binding.key != (None if message.key is None else base64url.digest(message.key)):
        raise Rejection(Reason.RECORD_KEY_MISMATCH, "signed with another record key")
    if binding.bod != (None if message.body is None else base64url.digest(message.body)):
        raise Rejection(Reason.BODY_MISMATCH, "signed with another body")
    try:
        headers = encode(message)
    except MalformedMessage as error:
        raise Rejection(Reason.HEADERS_MISMATCH, str(error)) from error
    if binding.hds != base64url.digest(headers):
        raise Rejection(
            Reason.HEADERS_MISMATCH, "signed with other properties or headers"
        )


def headers_input(message: Message, names: Sequence[str]) -> bytes:
    """Return the bytes that ``hds`` is the digest of: the seven properties and the named headers, encoded.

    Raises:
        MalformedMessage: a value has a type that no broker carries, or is nested beyond 32.
    """
    return encoder(form_of(message), names)(message)


def encoder(form: Form, names: Sequence[str]) -> Encoder:
    """Return the function that makes ``headers_input`` of messages of one form.

    All that depends on names is encoded here, once, and the function only puts the values in between. For the
    headers ``a`` and ``b``, ``values`` becomes: the domain and the name ``a``, then the value of header 0; the
    name ``b``, then the value of header 1.

    Args:
        form: of the messages.
        names: the covered headers; one that is absent is covered as absent.
    """
    destination, present, properties = form
    texts, values, before = (
        list[tuple[bytes, str]](),
        list[tuple[bytes, bytes, int]](),
        _DOMAIN,
    )
    places: dict[str, list[int]] = {}
    for at, name in enumerate(present):
        places.setdefault(name, []).append(at)
    if is_kafka(destination):
        names = (*PROTECTED_PROPERTIES, *names)  # there the seven properties are headers
    else:
        for name in PROTECTED_PROPERTIES:
            before += named(name, int(name in properties))
            if name in properties:
                texts.append((before, name))
                before = b""
    for name in names:
        occurrences = places.get(name, ())
        before += named(name, len(occurrences))
        for at in occurrences:
            values.append((before, before + b"b", at))
            before = b""
    return partial(_encoded, texts, values, before)


def checked_encoder(form: Form, names: tuple[str, ...]) -> Encoder:
    """Return ``encoder``, or a function that refuses every message because two names differ in case only."""
    try:
        refuse_case_twins(form, names)
    except MalformedMessage as error:
        why = str(error)

        def refused(_message: Message) -> NoReturn:
            raise MalformedMessage(why)

        return refused
    return encoder(form, names)


def _encoded(
    texts: list[tuple[bytes, str]],
    values: list[tuple[bytes, bytes, int]],
    tail: bytes,
    message: Message,
) -> bytes:
    parts: list[bytes] = []
    for before, name in texts:
        text = message.properties[name]
        # RabbitMQ adds a suffix to direct reply-to that the sender does not know (broker manual)
        direct = (
            name == "reply-to"
            and isinstance(text, str)
            and text.startswith(_DIRECT_REPLY + ".")
        )
        parts.append(before)
        add_value(parts, _DIRECT_REPLY if direct else text)
    headers = message.headers
    for before, before_bytes, position in values:
        value = headers[position][1]
        if type(value) is bytes:
            size = len(value)
            parts += (
                before_bytes,
                _SIZES[size] if size < _FEW else size.to_bytes(4, "big"),
                value,
            )
        else:
            parts.append(before)
            add_value(parts, value)
    parts.append(tail)
    return b"".join(parts)


def refuse_case_twins(form: Form, covered: Iterable[str]) -> None:
    """Refuse a header whose name differs from a covered one in case only: a reader might take one for the other.

    Raises:
        MalformedMessage: there is one.
    """
    exact = {*covered, *PROTECTED_PROPERTIES} if is_kafka(form[0]) else set(covered)
    folded = {fold(name) for name in exact}
    require(
        len(folded) == len(exact),
        "two covered names differ in case only",
        MalformedMessage,
    )
    require(
        not any(name not in exact and fold(name) in folded for name in form[1]),
        "two header names differ in case only",
        MalformedMessage,
    )


def named(name: str, count: int) -> bytes:
    """Return the encoding of a name and of how often it occurs; its values follow.

    Raises:
        MalformedMessage: the name has a lone surrogate.
    """
    return _sized(b"h", utf8(name)) + count.to_bytes(4, "big")


def add_named(parts: list[bytes], name: str, values: Sequence[HeaderValue]) -> None:
    """Append a name with every value it has; a name without values is not a name with an empty value.

    Raises:
        MalformedMessage: a value has a type that no broker carries, or is nested beyond 32.
    """
    parts.append(named(name, len(values)))
    for value in values:
        add_value(parts, value)


def add_value(parts: list[bytes], value: HeaderValue, depth: int = MAX_DEPTH) -> None:
    """Append one value.

    Args:
        parts: what is joined in the end.
        value: of a header or a property.
        depth: how many containers may still stand within each other.

    Raises:
        MalformedMessage: the value has a type that no broker carries, or is nested too deep.
    """
    if type(value) is bytes:  # every value on Kafka
        parts += (b"b", len(value).to_bytes(4, "big"), value)
    elif type(value) is str and value.isascii():  # most values on RabbitMQ
        parts += (b"s", len(value).to_bytes(4, "big"), value.encode())
    elif isinstance(value, tuple):
        require(depth > 0, "a header value is nested too deep", MalformedMessage)
        parts.append(b"l" + len(value).to_bytes(4, "big"))
        for item in value:
            add_value(parts, item, depth - 1)
    elif isinstance(value, Mapping):
        require(depth > 0, "a header value is nested too deep", MalformedMessage)
        parts.append(b"m" + len(value).to_bytes(4, "big"))
        texts = all(isinstance(name, str) for name in value)
        require(texts, "a table has a name that is no text", MalformedMessage)
        # brokers may reorder a table, so its order means nothing
        for raw, name in sorted((utf8(name), name) for name in value):
            parts.append(_sized(b"k", raw))
            add_value(parts, value[name], depth - 1)
    else:
        parts.append(_scalar(value))


def _scalar(value: object) -> bytes:
    if value is None:
        return b"n"
    if isinstance(value, str):
        return _sized(b"s", utf8(value))
    if isinstance(value, bytes):
        return _sized(b"b", value)
    if isinstance(value, bool):
        return b"t\x01" if value else b"t\x00"
    if isinstance(value, int) and is_carried_integer(value):
        return _sized(b"i", str(value).encode("ascii"))
    if isinstance(value, float):
        # every NaN is the same one: clients keep neither its sign nor its payload
        return b"d" + struct.pack(">d", math.nan if math.isnan(value) else value)
    if isinstance(value, datetime) and 0 <= (seconds := epoch_seconds(value)) < 2**32:
        return _sized(b"T", str(seconds).encode("ascii"))
    if isinstance(value, Decimal) and is_carried_decimal(value):
        return _sized(b"D", format(value, "f").encode("ascii"))
    raise MalformedMessage(
        f"a header value is {type(value).__name__}, of a type or size that no broker carries"
    )


def epoch_seconds(value: datetime) -> int:
    """Return whole UTC seconds, rounded down as AMQP does; a time without a zone is UTC, never local."""
    aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    return (aware - EPOCH) // _SECOND


def is_carried_decimal(value: Decimal) -> bool:
    """Tell whether AMQP holds a decimal: an integer of 32 bits over a scale of 0 to 255, so no negative zero."""
    sign, digits, exponent = value.as_tuple()
    # it is bounded before it is written out, for it may be as long as it likes
    return (
        isinstance(exponent, int)
        and exponent >= -255
        and len(digits) + max(exponent, 0) <= 10
        and -(2**31) <= int(format(value, "f").replace(".", "")) < 2**31
        and not (sign and value == 0)
    )


def is_carried_integer(value: int) -> bool:
    """Tell whether an integer fits 64 bits with its sign: brokers and clients disagree about larger ones."""
    return -(2**63) <= value < 2**63


def utf8(text: str) -> bytes:
    """Return text in UTF-8.

    Raises:
        MalformedMessage: the text has a lone surrogate.
    """
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise MalformedMessage("a header has no UTF-8 form") from error


def _sized(tag: bytes, raw: bytes) -> bytes:
    return tag + len(raw).to_bytes(4, "big") + raw
