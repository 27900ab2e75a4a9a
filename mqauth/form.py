"""What messages of one kind have in common: the destination, and the names of what they carry."""

from __future__ import annotations

from typing import Final, TypeAlias

from mqauth.destination import is_kafka
from mqauth.jws import MAX_TOKEN
from mqauth.message import NO_PROPERTIES, TOKEN_HEADER, Message

Form: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...]]
"""Destination, names of headers, names of properties."""
_NONE: Final[tuple[str, ...]] = ()


def form_of(message: Message) -> Form:
    """Return the form of a message."""
    names = tuple([name for name, _ in message.headers])
    return message.destination, names, _NONE if message.properties is NO_PROPERTIES else tuple(message.properties)


def token_in(message: Message) -> bytes:
    """Return a token of a message; that it has no other is said by its form.

    Raises:
        ValueError: it is too long, or has none.
        Exception: it is no token as brokers carry it.
    """
    headers = message.headers
    token = headers[-1][1] if headers[-1][0] == TOKEN_HEADER else dict(headers)[TOKEN_HEADER]
    found: bytes = token if is_kafka(message.destination) else token.encode("ascii")  # type: ignore[assignment, union-attr]
    if len(found) > MAX_TOKEN:
        raise ValueError("too long")
    return found
