"""Pauses that keep what the client has fetched, which librdkafka 2.16 throws away.

After ``pause`` and ``resume`` some tenths of a second pass until records come again. So while handlers run for a
short time nothing is paused at the client: records that are read meanwhile are kept here, until their partition is
wanted again.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Any, Final

from mqauth.brokers.confluent.positions import Place, native
from mqauth.brokers.confluent.transaction import TransactionCalls
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.partition import offset_of
from mqauth.wire.message import Message

MOST: Final = 500
"""Most records of one ``consume``."""
KEPT: Final = 20
"""Records of a paused partition that are kept here, after which the client pauses it."""


class PausingCalls(TransactionCalls):
    """The calls of one client that pause partitions.

    Args:
        client: the ``confluent_kafka.Consumer``.
        assignment: says which calls to make, and gets the records.
        settings: as ``LogPoller`` has them.
    """

    def __init__(self, client: Any, assignment: Assignment, **settings: Any) -> None:
        super().__init__(client, assignment, **settings)
        self._held: set[Place] = set()
        self._paused: set[Place] = set()  # of them, some at the client
        self._stopped: set[Place] = set()
        self._read: dict[Place, list[Message]] = {}  # of paused partitions

    def held(self) -> tuple[Set[Any], Set[Any]]:
        """Return the partitions that the client holds now, and those of them that are paused."""
        return self._held, self._paused

    def pause(self, places: Set[Any]) -> None:
        """Return no more records of these partitions."""
        self._paused |= places

    def resume(self, places: Set[Any]) -> None:
        """Return records of these partitions again."""
        if stopped := self._stopped & places:
            self._client.resume([native(place) for place in stopped])
        self._stopped -= places
        self._paused -= places

    def _most(self) -> int:
        """Return how many records are wanted of one ``consume``."""
        return 1 if self._held and self._held == self._paused else MOST

    def _patience(self, seconds: float) -> float:
        """Return for how long ``consume`` may wait; where it waits, nothing runs and pauses are long."""
        if seconds > 0:
            self._stop(self._paused)
        return seconds if self._read.keys() <= self._paused else 0

    def _keep(self, place: Place, messages: list[Message]) -> None:
        """Keep what was read of a partition until ``_wanted`` is called."""
        self._read.setdefault(place, []).extend(messages)

    def _wanted(self) -> dict[Place, list[Message]]:
        """Return what was read of partitions that are not paused; where enough is kept of one, pause it."""
        found = {place: self._read.pop(place) for place in self._read.keys() - self._paused}
        self._stop({place for place, messages in self._read.items() if len(messages) >= KEPT})
        return found

    def _unread(self) -> dict[Place, int]:
        """Return for each partition of which records are kept the offset of the first."""
        return {place: offset_of(messages[0]) for place, messages in self._read.items()}

    def _forget(self, places: Set[Place]) -> None:
        """Drop what was read of partitions."""
        for place in self._read.keys() & places:
            del self._read[place]

    def _stop(self, places: Set[Place]) -> None:
        """Pause partitions at the client."""
        if running := places - self._stopped:
            self._client.pause([native(place) for place in running])
            self._stopped |= running
