"""What messages of one kind have in common: the destination, and the names of what they carry."""

from __future__ import annotations

from operator import itemgetter
from typing import Final, TypeAlias

from mqauth.message import NO_PROPERTIES, Message

Form: TypeAlias = tuple[str, tuple[str, ...], tuple[str, ...]]
"""Destination, names of headers, names of properties."""
_NAME: Final = itemgetter(0)
_NONE: Final[tuple[str, ...]] = ()


def form_of(message: Message) -> Form:
    """Return the form of a message."""
    names = tuple(map(_NAME, message.headers))
    return message.destination, names, _NONE if message.properties is NO_PROPERTIES else tuple(message.properties)
