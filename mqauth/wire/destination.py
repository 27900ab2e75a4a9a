"""Destinations in their one canonical form: ``rabbitmq:<exchange>/<routing key>`` or ``kafka:<topic>``.

Each part is percent-encoded UTF-8: the unreserved characters of RFC 3986, section 2.3, stand for themselves and
everything else is ``%XX`` in upper case. So a destination has one spelling, and comparing two is comparing text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import quote, unquote_to_bytes

from mqauth.errors import MalformedMessage, refusing, require
from mqauth.wire.memo import Memo

RABBITMQ: Final = "rabbitmq"
KAFKA: Final = "kafka"
_PARTS: Final = {RABBITMQ: 2, KAFKA: 1}


def encode(text: str) -> str:
    """Return ``text`` percent-encoded, with the unreserved characters as they are.

    Raises:
        MalformedMessage: ``text`` has a lone surrogate, so it has no UTF-8 form.
    """
    with refusing(
        UnicodeEncodeError, "a destination has no UTF-8 form", MalformedMessage
    ):
        return quote(text, safe="")


def is_kafka(destination: str) -> bool:
    """Tell whether a destination is on Kafka."""
    return destination.startswith("kafka:")


def rabbitmq(exchange: str, routing_key: str) -> str:
    """Return the destination of a routing key on an exchange; the default exchange is empty."""
    return _ROUTES[exchange, routing_key]


def _parse(text: str) -> tuple[str, ...]:
    scheme, colon, rest = text.partition(":")
    names = rest.split("/")
    require(
        colon and rest and len(names) == _PARTS.get(scheme),
        "a destination is rabbitmq:<exchange>/<routing key> or kafka:<topic>",
        MalformedMessage,
    )
    return (scheme, *map(_decode, names))


def _decode(segment: str) -> str:
    refusal = "a destination is not percent-encoded in the canonical form"
    with refusing(UnicodeError, refusal, MalformedMessage):
        text = unquote_to_bytes(segment).decode("utf-8")
    # another spelling of the same text, such as %61 for a, would be another destination to whoever compares text
    require(quote(text, safe="") == segment, refusal, MalformedMessage)
    return text


_ROUTES: Final = Memo[tuple[str, str], str](
    lambda route: f"{RABBITMQ}:{encode(route[0])}/{encode(route[1])}"
)
kafka: Final[Callable[[str], str]] = Memo[str, str](
    lambda topic: f"{KAFKA}:{encode(topic)}"
).__getitem__
"""Return the destination of a topic."""
parse: Final[Callable[[str], tuple[str, ...]]] = Memo(_parse).__getitem__
"""Return ``("rabbitmq", exchange, routing key)`` or ``("kafka", topic)`` of a canonical destination.

Raises ``MalformedMessage`` if the text is not canonical or names neither broker.
"""
