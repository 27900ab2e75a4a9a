"""The original of a letter that is only a reference: read again where the broker still has it, and proven.

A reference letter names a place and the letter's id. Whoever may write to the dead-letter queue can name any
place: what is found there counts only if it has that very id, which a digest of its content is part of.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from mqauth.flow import Flow, call
from mqauth.letters.dead_letter import letter_id
from mqauth.review.letter import Reading, proven
from mqauth.wire.message import Message

ONLY_REFERENCE: Final = "reference_only"
GONE: Final = "original_gone"
CHANGED: Final = "original_changed"
FAULTS: Final = (ONLY_REFERENCE, GONE, CHANGED)
_PLACE = re.compile(r"((?!\.{1,2}/)[A-Za-z0-9._-]{1,249})/([0-9]{1,9})/([0-9]{1,18})(?:@.{0,90})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordPlace:
    """Where Kafka has a record."""

    topic: str
    partition: int
    offset: int


class Originals(Protocol):
    """Where originals can be read again; of either colour."""

    def fetch(self, place: RecordPlace, /) -> Message | None | Awaitable[Message | None]:
        """Return the record at a place, ``None`` where there is none any more.

        Raises:
            Unavailable: ``dead_letter_unavailable``, the broker cannot be asked.
        """
        ...


def recalled(reading: Reading, originals: Originals | None) -> Flow[Reading]:
    """Return the reading with its original read again, if it is a reference; else as it is.

    Where it cannot be had, or is not what the letter names, the reading says so in its ``fault``:
    ``reference_only``, ``original_gone`` or ``original_changed``.

    Args:
        reading: of any letter.
        originals: where to look; ``None`` where the broker keeps nothing, as RabbitMQ.
    """
    if reading.form != "reference" or reading.original is not None:
        return reading
    place = _place(reading.source)
    if originals is None or place is None:
        return replace(reading, fault=ONLY_REFERENCE)
    found = yield from call(originals.fetch, place)
    if found is None:
        return replace(reading, fault=GONE)
    original = replace(found, origin=replace(found.origin, scope=reading.scope), native=None)
    if original.malformed is not None or letter_id(original, reading.scope) != reading.id:
        return replace(reading, fault=CHANGED)
    return proven(reading, original)


def _place(source: str) -> RecordPlace | None:
    """Return the place a letter names, ``None`` where it names none."""
    found = _PLACE.fullmatch(source)
    if found is None:
        return None
    return RecordPlace(topic=found[1], partition=int(found[2]), offset=int(found[3]))
