"""Positions of partitions over an eager rebalance, which librdkafka 2.16 forgets.

An eager rebalance revokes all partitions of a consumer and assigns most of them again. librdkafka then reads from
the committed offset: records that are waiting here, and records whose handlers still run, would come a second
time, with a new time of receipt. So the position of each partition is kept, and given back with the assignment.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_INVALID, KafkaException, TopicPartition

from mqauth.brokers.confluent.client import membership_of


class Place(NamedTuple):
    """A partition, as a key: the client's ``TopicPartition`` also holds an offset and an error."""

    topic: str
    partition: int


def places_of(partitions: Iterable[Any]) -> set[Place]:
    """Return the places of the client's partitions."""
    return {Place(each.topic, each.partition) for each in partitions}


def native(place: Any, offset: int = OFFSET_INVALID, metadata: str = "") -> TopicPartition:
    """Return the client's ``TopicPartition`` of a place."""
    return TopicPartition(place.topic, place.partition, offset, metadata)


class KeptPositions:
    """The offsets at which the partitions of an eager rebalance are read next."""

    def __init__(self) -> None:
        self._kept: dict[Place, int] = {}
        # A client tells no position between a seek, or an assignment, and the first record that is read after it.
        self._starts: dict[Place, int] = {}
        self._generation = -1

    def started(self, place: Place, offset: int) -> None:
        """Note the offset that a partition was told to be read from."""
        self._starts[place] = offset

    def keep(self, client: Any, partitions: list[TopicPartition], wanted: Mapping[Place, int]) -> None:
        """Keep the positions of partitions that are being revoked.

        Args:
            client: the consumer.
            partitions: the partitions.
            wanted: offsets of seeks that the client has not made yet.
        """
        self._generation = membership_of(client).generation
        positions = {
            Place(each.topic, each.partition): each.offset
            for each in client.position(partitions)
            if each.offset >= 0
        }
        self._kept = self._starts | positions | dict(wanted)

    def forget(self, places: Set[Place]) -> None:
        """Forget the starts of partitions that are no longer assigned."""
        self._starts = {place: offset for place, offset in self._starts.items() if place not in places}

    def read_again(self, place: Place, offset: int) -> bool:
        """Move a kept position back to a record, where there is one; return whether there is.

        A call of ``consume`` may read a record and then have its partition revoked.
        """
        if place in self._kept:
            self._kept[place] = min(self._kept[place], offset)
        return place in self._kept

    def lost(self, client: Any) -> Set[Place]:
        """Return and forget all positions, unless this is the generation after the revocation.

        In a generation between them another member may have had the partitions, and committed.
        """
        if not self._kept or membership_of(client).generation == self._generation + 1:
            return frozenset()
        kept, self._kept = self._kept, {}
        return kept.keys()

    def restore(self, client: Any, places: Iterable[Place]) -> bool:
        """Assign partitions at their kept positions; return false, with no call made, where there are none."""
        kept, self._kept = self._kept, {}
        starts = {place: kept.get(place, OFFSET_INVALID) for place in places}
        self._starts |= {place: offset for place, offset in starts.items() if offset >= 0}
        partitions = [native(place, offset) for place, offset in starts.items()]
        if all(each.offset < 0 for each in partitions):
            return False
        try:
            client.assign(partitions)
        except KafkaException:
            # The protocol is cooperative, which the client does not tell.
            client.incremental_assign(partitions)
        return True
