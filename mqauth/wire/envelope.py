"""Where the token sits in a message and what it binds: sealing and checking, the two halves side by side.

The bytes hashed here are the wire profile's; a change is a new profile version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Final, NoReturn, TypeAlias

from mqauth.errors import MalformedMessage, Reason, Rejection
from mqauth.wire import base64url
from mqauth.wire.claims import Binding
from mqauth.wire.destination import is_kafka
from mqauth.wire.encoding import add_named, add_one, add_value, named
from mqauth.wire.jws import MAX_TOKEN
from mqauth.wire.message import PROTECTED_PROPERTIES, TOKEN_HEADER, HeaderValue, Message

_DOMAIN: Final = b"mqauth-hds-1"
_LENGTH: Final = len(TOKEN_HEADER)  # lower case makes no other length this one
_FEW: Final = 256
_SIZES: Final = [size.to_bytes(4, "big") for size in range(_FEW)]
_DIRECT_REPLY: Final = "amq.rabbitmq.reply-to"
_BROKER_WRITTEN: Final = frozenset(("x-death", "x-delivery-count", "x-acquired-count"))
_TRANSPORT: Final = _BROKER_WRITTEN | {
    "x-delay", "timestamp_in_ms", "BCC", "traceparent", "tracestate", "baggage",
}  # fmt: skip
_BROKER_PREFIXES: Final = ("x-first-death-", "x-last-death-", "x-stream-", "x-opt-")
_TRANSPORT_PREFIXES: Final = (*_BROKER_PREFIXES, "mqauth-")
_PROPERTIES: Final = frozenset(PROTECTED_PROPERTIES)


Cover: TypeAlias = Callable[[Message], bytes]
"""Makes the bytes that are bound of a message's properties and covered headers."""


def is_transport(name: str) -> bool:
    """Tell whether a header belongs to transports or to mqauth, which add, change or remove it."""
    return name in _TRANSPORT or name.lower().startswith(_TRANSPORT_PREFIXES)


def is_broker_written(name: str) -> bool:
    """Tell whether a header changes with each delivery, and so names no content."""
    return name in _BROKER_WRITTEN or name.startswith(_BROKER_PREFIXES)


def application_headers(message: Message) -> tuple[str, ...]:
    """Return the names of the application's headers, each once, in order of first appearance."""
    skip = _PROPERTIES if is_kafka(message.destination) else frozenset[str]()
    names = dict.fromkeys(name for name, _ in message.headers if name not in skip)
    return tuple(name for name in names if not is_transport(name))


@lru_cache(maxsize=256)
def _own_headers(names: tuple[str, ...], destination: str) -> tuple[str, ...]:
    """Return the same of a producer's own message, by its names: they are mostly the same."""
    return application_headers(
        Message(destination=destination, body=None, headers=tuple((name, None) for name in names))
    )


def bind(message: Message, cover: Iterable[str] | None = None) -> Binding:
    """Return what a token must say of a message.

    Args:
        message: as it will be sent.
        cover: names of the headers to cover; by default every application header present.

    Raises:
        MalformedMessage: two names differ in case only, or a value has no form on the wire.
    """
    if cover is None:
        names = _own_headers(tuple([name for name, _ in message.headers]), message.destination)
    else:
        names = tuple(dict.fromkeys(cover))
    refuse_case_twins(message, names)
    return Binding(
        dst=message.destination,
        bod=None if message.body is None else base64url.digest(message.body),
        key=None if message.key is None else base64url.digest(message.key),
        hdr=names,
        hds=headers_digest(message, names),
    )


def attach(message: Message, token: str) -> tuple[tuple[str, HeaderValue], ...]:
    """Return the headers with the token added, in the type its broker carries.

    Raises:
        MalformedMessage: the message has a token already, or the token is over its size.
    """
    refuse_token(message)
    if len(token) > MAX_TOKEN:
        raise MalformedMessage(f"the token is over {MAX_TOKEN} bytes: cover fewer headers")
    value: HeaderValue = token.encode("ascii") if is_kafka(message.destination) else token
    return (*message.headers, (TOKEN_HEADER, value))


def refuse_token(message: Message) -> None:
    """Refuse a message that carries a token already.

    Raises:
        MalformedMessage: it does, in whatever spelling.
    """
    for name, _ in message.headers:
        if len(name) == _LENGTH and name.lower() == TOKEN_HEADER:
            raise MalformedMessage("the message carries a token already")


def token_of(message: Message) -> bytes:
    """Return the one token of a message; step 1 of the verdict.

    Raises:
        Rejection: ``token_missing``, ``token_repeated``, ``token_oversize`` or ``token_malformed``.
    """
    place = place_of_token([name for name, _ in message.headers])
    return token_of_value(message.headers[place][1], on_kafka=is_kafka(message.destination))


def place_of_token(names: Sequence[str]) -> int:
    """Return where among the names of a message's headers its one token is.

    Raises:
        Rejection: ``token_missing`` or ``token_repeated``.
    """
    found = [at for at, name in enumerate(names) if len(name) == _LENGTH and name.lower() == TOKEN_HEADER]
    if len(found) > 1:
        raise Rejection(Reason.TOKEN_REPEATED, f"{len(found)} token headers")
    if not found or names[found[0]] != TOKEN_HEADER:
        raise Rejection(Reason.TOKEN_MISSING, "no token header" if not found else "the header is misspelt")
    return found[0]


def token_of_value(value: HeaderValue, *, on_kafka: bool) -> bytes:
    """Return the token that a header's value is.

    Raises:
        Rejection: ``token_oversize`` or ``token_malformed``.
    """
    if isinstance(value, str | bytes) and len(value) > MAX_TOKEN:
        raise Rejection(Reason.TOKEN_OVERSIZE, f"over {MAX_TOKEN} bytes")
    if on_kafka and isinstance(value, bytes):
        return value
    if not on_kafka and isinstance(value, str) and value.isascii():
        return value.encode("ascii")
    raise Rejection(Reason.TOKEN_MALFORMED, "the token header has another type")


def cover(first: Message, names: tuple[str, ...]) -> Cover:
    """Return how properties and covered headers are encoded, of messages that have the same names.

    Args:
        first: one of them.
        names: the covered headers.

    Returns:
        What makes ``headers_input`` of such a message; it raises ``MalformedMessage`` where two names differ in
        case only, or a value has no form on the wire.
    """
    try:
        refuse_case_twins(first, names)
    except MalformedMessage as error:
        return partial(_refused, str(error))
    return headers_inputs(first, names)


def check(message: Message, binding: Binding, cover: Cover) -> None:
    """Hold a verified binding against the message it came with; step 11 of the verdict.

    Args:
        message: as the broker delivered it.
        binding: of its token.
        cover: of messages with its names and of the names that the binding covers.

    Raises:
        Rejection: ``destination_mismatch``, ``record_key_mismatch``, ``body_mismatch`` or
            ``headers_mismatch``.
    """
    if binding.dst != message.destination:
        raise Rejection(Reason.DESTINATION_MISMATCH, "signed for another destination")
    if binding.key != (None if message.key is None else base64url.digest(message.key)):
        raise Rejection(Reason.RECORD_KEY_MISMATCH, "signed with another record key")
    if binding.bod != (None if message.body is None else base64url.digest(message.body)):
        raise Rejection(Reason.BODY_MISMATCH, "signed with another body")
    try:
        headers = cover(message)
    except MalformedMessage as error:
        raise Rejection(Reason.HEADERS_MISMATCH, str(error)) from error
    if binding.hds != base64url.digest(headers):
        raise Rejection(Reason.HEADERS_MISMATCH, "signed with other properties or headers")


def headers_digest(message: Message, names: Iterable[str]) -> str:
    """Return ``hds``: base64url SHA-256 over ``headers_input``.

    Raises:
        MalformedMessage: a value of a type no broker carries, or nested beyond 32.
    """
    return base64url.digest(headers_input(message, names))


def headers_input(message: Message, names: Iterable[str]) -> bytes:
    """Return the exact bytes ``hds`` is taken over: the seven properties and the named headers, encoded.

    Raises:
        MalformedMessage: a value of a type no broker carries, or nested beyond 32.
    """
    headers = message.headers
    single = dict(headers)
    if len(single) != len(headers):
        return _repeated_input(message, names)
    if is_kafka(message.destination):
        plain = _PROPERTIES.isdisjoint(single)
        parts = [_NO_PROPERTIES if plain else _protected({name: (value,) for name, value in headers})]
    else:
        parts = [_protected(_properties(message)) if message.properties else _NO_PROPERTIES]
    for name in names:
        if name in single:
            add_one(parts, name, single[name])
        else:
            add_named(parts, name, ())
    return b"".join(parts)


def headers_inputs(first: Message, names: Sequence[str]) -> Callable[[Message], bytes]:
    """Return what makes ``headers_input`` of messages with the names of another: those are encoded once.

    Args:
        first: the other.
        names: the covered headers.
    """
    single = {name: at for at, (name, _) in enumerate(first.headers)}
    if len(single) != len(first.headers):
        return lambda message: headers_input(message, names)
    properties, places, before = list[tuple[bytes, str]](), list[tuple[bytes, bytes, int]](), _DOMAIN
    for name in PROTECTED_PROPERTIES if not is_kafka(first.destination) else ():
        before += named(name, present=name in first.properties)
        if name in first.properties:
            properties.append((before, name))
            before = b""
    for name in names if not is_kafka(first.destination) else (*PROTECTED_PROPERTIES, *names):
        place = single.get(name)
        before += named(name, present=place is not None)
        if place is not None:
            places.append((before, before + b"b", place))
            before = b""
    return partial(_filled, properties, places, before)


def _filled(
    bound: list[tuple[bytes, str]], places: list[tuple[bytes, bytes, int]], tail: bytes, message: Message
) -> bytes:
    """Return the names' bytes with a message's values: of a property by its name, of a header by its place."""
    parts: list[bytes] = []
    for before, name in bound:
        text = message.properties[name]
        parts.append(before)
        add_value(parts, _without_suffix(text) if name == "reply-to" else text)
    headers = message.headers
    for before, before_bytes, place in places:
        value = headers[place][1]
        if type(value) is bytes:
            size = len(value)
            parts += (before_bytes, _SIZES[size] if size < _FEW else size.to_bytes(4, "big"), value)
        else:
            parts.append(before)
            add_value(parts, value)
    parts.append(tail)
    return b"".join(parts)


def _refused(why: str, _message: Message) -> NoReturn:
    """Encode no message of a form that is wrong."""
    raise MalformedMessage(why)


def _repeated_input(message: Message, names: Iterable[str]) -> bytes:
    """Return the same where a name stands more than once."""
    by_name: dict[str, list[HeaderValue]] = {}
    for header, value in message.headers:
        by_name.setdefault(header, []).append(value)
    parts = [_protected(by_name if is_kafka(message.destination) else _properties(message))]
    for name in names:
        add_named(parts, name, by_name.get(name, ()))
    return b"".join(parts)


def _protected(properties: Mapping[str, Sequence[HeaderValue]]) -> bytes:
    """Return the domain string and the seven properties, encoded."""
    parts: list[bytes] = [_DOMAIN]
    for name in PROTECTED_PROPERTIES:
        add_named(parts, name, properties.get(name, ()))
    return b"".join(parts)


_NO_PROPERTIES: Final = _protected({})


def _properties(message: Message) -> dict[str, list[HeaderValue]]:
    """Return the AMQP properties as they are bound."""
    return {name: [_without_suffix(value) if name == "reply-to" else value]
            for name, value in message.properties.items()}  # fmt: skip


def _without_suffix(value: HeaderValue) -> HeaderValue:
    """Return direct reply-to without the suffix RabbitMQ adds (broker manual, *Direct Reply-to*)."""
    if isinstance(value, str) and value.startswith(_DIRECT_REPLY + "."):
        return _DIRECT_REPLY
    return value


def refuse_case_twins(message: Message, covered: Sequence[str]) -> None:
    """Refuse a header whose name differs from a covered one in case only.

    Raises:
        MalformedMessage: there is one.
    """
    exact, folded = _folded(tuple(covered), is_kafka(message.destination))
    for name, _ in message.headers:
        if name not in exact and name.lower() in folded:
            raise MalformedMessage("two header names differ in case only")


@lru_cache(maxsize=64)  # of at most 1,000 names each
def _folded(covered: tuple[str, ...], on_kafka: bool) -> tuple[frozenset[str], frozenset[str]]:
    """Return the names that are covered, as they are and in lower case."""
    exact = frozenset(covered) | (_PROPERTIES if on_kafka else frozenset())
    folded = frozenset(name.lower() for name in exact)
    if len(folded) != len(exact):
        raise MalformedMessage("two covered names differ in case only")
    return exact, folded
