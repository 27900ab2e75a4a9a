"""What librdkafka 2.16 forgets in an eager rebalance: where partitions stood that come back from it.

All is revoked at once, most of it is given back, and librdkafka reads again from the committed offset: records
that wait here, with the time they were received at, or whose handlers still run, would come a second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any, NamedTuple

from confluent_kafka import OFFSET_INVALID, KafkaException, TopicPartition

from mqauth.brokers.confluent.client import membership_of


class Place(NamedTuple):
    """A partition: what ``TopicPartition`` is to the client, which has an offset and an error beside it."""

    topic: str
    partition: int


def place_of(partition: Any) -> Place:
    """Return the place of a partition as the client names it."""
    return Place(partition.topic, partition.partition)


def native(place: Any, offset: int = OFFSET_INVALID) -> TopicPartition:
    """Return a place as the client names it."""
    return TopicPartition(place.topic, place.partition, offset)


class KeptPositions:
    """Where the partitions of an eager rebalance are to be gone on with."""

    def __init__(self) -> None:
        self._kept: dict[Place, int] = {}
        self._generation = -1

    def keep(self, client: Any, partitions: list[TopicPartition], wished: Mapping[Place, int]) -> None:
        """Keep where partitions stand that are being revoked.

        Args:
            client: the consumer.
            partitions: the partitions.
            wished: where they were to be read from, but are not yet.
        """
        self._generation = membership_of(client).generation
        found = {place_of(each): each.offset for each in client.position(partitions) if each.offset >= 0}
        self._kept = found | {place: offset for place, offset in wished.items() if place in found}

    def read_again(self, place: Place, offset: int) -> bool:
        """Note a record that was read by the call that revoked its partition; tell whether that may come back."""
        if place in self._kept:
            self._kept[place] = min(self._kept[place], offset)
        return place in self._kept

    def lost(self, client: Any) -> Set[Place]:
        """Forget all where a generation passed without us, and return it: somebody else may have had it."""
        if not self._kept or membership_of(client).generation == self._generation + 1:
            return frozenset()
        kept, self._kept = self._kept, {}
        return kept.keys()

    def restore(self, client: Any, places: Iterable[Place]) -> bool:
        """Have the partitions of a new assignment read from where they stood; tell whether any is."""
        kept, self._kept = self._kept, {}
        starts = [native(place, kept.get(place, OFFSET_INVALID)) for place in places]
        if all(each.offset < 0 for each in starts):
            return False  # the client assigns by itself what nothing is said of
        try:
            client.assign(starts)
        except KafkaException:  # the protocol is cooperative
            client.incremental_assign(starts)
        return True
