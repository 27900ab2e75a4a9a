"""The records of a log that this process has finished and not committed yet, by place and content.

A consumer that is put out of its group while a handler runs cannot commit what that handler did. Where the
partition comes back to this process, the record is read again: it is settled without its handler. Otherwise a
handler that always takes longer than the group's session would run for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Final

from mqauth.delivery.partition import Partition, offset_of
from mqauth.logs import emit
from mqauth.wire.message import Message

MOST: Final = 10_000
"""Most records of all partitions; of those past it handlers run again."""


class Finished:
    """Bounded memory of finished records; the partition that waits longest for its commit is forgotten first."""

    def __init__(self) -> None:
        self._places: dict[Any, dict[int, int]] = {}
        self._size = 0

    def add(self, place: Any, message: Message) -> None:
        """Remember a record."""
        if self._size >= MOST and (oldest := next(iter(self._places))) != place:
            self.forget(oldest)
        if self._size < MOST:
            records = self._places.setdefault(place, {})
            self._size -= len(records)
            records[offset_of(message)] = _content(message)
            self._size += len(records)

    def settle(self, partition: Partition, messages: Sequence[Message]) -> int:
        """Settle the first of the records that a partition receives, as far as they were finished here.

        Returns:
            How many they are. Each has the content that is remembered: a topic may have been made anew.
        """
        place, records = partition.topic_partition, self._places.get(partition.topic_partition)
        went_back = offset_of(messages[0]) <= (-1 if partition.last is None else partition.last)
        if records is None or partition.waiting or partition.running or went_back:
            return 0
        known = list(takewhile(lambda each: records.get(offset_of(each)) == _content(each), messages))
        if known:
            partition.last = offset_of(known[-1])
            partition.next, partition.beyond = partition.last + 1, None
            emit(
                "client.handled_before", "%s-%d: %d records before offset %d come again, and were handled here: "
                "do handlers take longer than the session of the group?", place.topic, place.partition, len(known),
                partition.next, partition=place.partition, offset=partition.next,
            )  # fmt: skip
        return len(known)

    def forget(self, place: Any, upto: int | None = None) -> None:
        """Forget the records of a partition, or those below an offset that is committed."""
        if (records := self._places.pop(place, None)) is None:
            return
        self._size -= len(records)
        done = [] if upto is None else list(takewhile(lambda offset: offset < upto, records))
        for offset in done:
            del records[offset]
        if upto is not None and records:
            self._places[place] = records
            self._size += len(records)


def _content(message: Message) -> int:
    # The token is among the headers, and speaks for the body.
    origin = message.origin
    return hash((origin.topic_id, origin.timestamp_ms, message.key, message.headers, len(message.body or b"")))
