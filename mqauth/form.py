"""What messages of one kind have in common: the destination, and the names of what they carry."""

from __future__ import annotations

from typing import Final, TypeAlias

from mqauth.destination import is_kafka
from mqauth.jws import MAX_TOKEN
from mqauth.message import NO_PROPERTIES, TOKEN_HEADER, Message

Form: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...]]
"""Destination, names of headers, names of properties."""
_NONE: Final[tuple[str, ...]] = ()
_NAMES: Final = 64
_CHARACTERS: Final = 1024


def form_of(message: Message) -> Form:
    """Return the form of a message."""
    names = tuple([name for name, _ in message.headers])
    return message.destination, names, _NONE if message.properties is NO_PROPERTIES else tuple(message.properties)


def token_in(message: Message) -> bytes:
    """Return a token of a message; that it has no other is said by its form.

    Raises:
        ValueError: it is too long, or of a type its broker does not carry.
        LookupError: there is none.
    """
    headers = message.headers
    value = headers[-1][1] if headers[-1][0] == TOKEN_HEADER else dict(headers)[TOKEN_HEADER]
    found = value.encode("ascii") if isinstance(value, str) else value
    if not isinstance(found, bytes) or isinstance(value, bytes) is not is_kafka(message.destination):
        raise ValueError("another type than its broker carries")
    if len(found) > MAX_TOKEN:
        raise ValueError("too long")
    return found


def is_small(form: Form) -> bool:
    """Tell whether a form may be remembered: who adds headers that nobody covers could make it any size."""
    names = (*form[1], *form[2])
    return len(names) <= _NAMES and sum(map(len, names)) <= _CHARACTERS
