"""Destinations in their one canonical form: ``rabbitmq:<exchange>/<routing key>`` or ``kafka:<topic>``.

Percent-encoded UTF-8 with the unreserved characters of RFC 3986, section 2.3, literal and everything
else as ``%XX`` in upper case, so that two spellings of one destination cannot exist.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from mqauth.errors import MalformedMessage

RABBITMQ: Final = "rabbitmq"
KAFKA: Final = "kafka"
_SEGMENT = re.compile(r"(?:[A-Za-z0-9\-._~]|%[0-9A-F]{2})*")


def encode(text: str) -> str:
    """Return ``text`` percent-encoded, unreserved characters literal.

    Raises:
        MalformedMessage: ``text`` has a lone surrogate and no UTF-8 form.
    """
    try:
        return quote(text, safe="")
    except UnicodeEncodeError as error:
        raise MalformedMessage("a destination has no UTF-8 form") from error


@lru_cache(maxsize=1024)
def rabbitmq(exchange: str, routing_key: str) -> str:
    """Return the destination of a routing key on an exchange; the default exchange is empty."""
    return f"{RABBITMQ}:{encode(exchange)}/{encode(routing_key)}"


@lru_cache(maxsize=1024)
def kafka(topic: str) -> str:
    """Return the destination of a topic."""
    return f"{KAFKA}:{encode(topic)}"


def is_kafka(destination: str) -> bool:
    """Tell whether a destination is on Kafka."""
    return destination.startswith("kafka:")


@lru_cache(maxsize=1024)
def parse(text: str) -> tuple[str, ...]:
    """Return ``("rabbitmq", exchange, routing key)`` or ``("kafka", topic)`` of a canonical destination.

    Raises:
        MalformedMessage: the text is not canonical, or names neither broker.
    """
    scheme, colon, rest = text.partition(":")
    names = rest.split("/")
    wanted = {RABBITMQ: 2, KAFKA: 1}.get(scheme)
    if not colon or wanted is None or len(names) != wanted or not rest:
        raise MalformedMessage("a destination is rabbitmq:<exchange>/<routing key> or kafka:<topic>")
    return (scheme, *(_decode(name) for name in names))


@lru_cache(maxsize=1024)
def check(text: str) -> None:
    """Refuse a destination that ``parse`` refuses; remembers those that pass, for the producer's fast path."""
    parse(text)


def _decode(segment: str) -> str:
    """Return the text of one canonical segment."""
    try:
        text = unquote_to_bytes(segment).decode("utf-8") if _SEGMENT.fullmatch(segment) else None
    except UnicodeDecodeError:
        text = None
    if text is None or quote(text, safe="") != segment:
        raise MalformedMessage("a destination is not percent-encoded in the canonical form")
    return text
