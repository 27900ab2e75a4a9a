"""Where a group stands at a client of confluent-kafka, and where partitions begin and end (``OffsetCalls``)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, NamedTuple

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    OFFSET_INVALID,
    KafkaException,
    TopicPartition,
)

from mqauth.brokers.confluent.client import PASSES, error_of, name_of
from mqauth.brokers.log.offsets import OffsetCalls
from mqauth.delivery.start import Committed
from mqauth.errors import Errors


class Place(NamedTuple):
    """A partition, as a key: the client's ``TopicPartition`` also holds an offset and an error."""

    topic: str
    partition: int


def places_of(partitions: Iterable[Any]) -> set[Place]:
    """Return the places of the client's partitions."""
    return {Place(each.topic, each.partition) for each in partitions}


def native(
    place: Any, offset: int = OFFSET_INVALID, metadata: str = ""
) -> TopicPartition:
    """Return the client's ``TopicPartition`` of a place."""
    return TopicPartition(place.topic, place.partition, offset, metadata)


FETCH_TIMEOUT: Final = 5.0
"""Most seconds of one question."""
_RESETS: Final = {
    "smallest": "earliest",
    "earliest": "earliest",
    "beginning": "earliest",
    "error": "none",
}


def reset_of(config: Mapping[str, Any]) -> str:
    """Return where a client begins without an offset, ``latest``, ``earliest`` or ``none``, by its settings."""
    return _RESETS.get(str(config.get("auto.offset.reset")), "latest")


def left_out(client: Any, place: Place, expected: int, offset: int | None) -> int | None:
    """Return the first offset that is left, where the one that was to be read next is out of range; else ``None``.

    librdkafka then goes to the end, or where ``auto.offset.reset`` says, and tells nobody. But each fetch of a
    partition has told its bounds, which the client remembers.

    Args:
        client: the consumer.
        place: the partition.
        expected: the offset that was to be read next.
        offset: of the record that came; ``None`` where none comes.
    """
    bounds = client.get_watermark_offsets(native(place), cached=True)
    if bounds is None or bounds[0] < 0:
        return None
    first, end = bounds
    cut_off = offset is not None and offset < expected and end < expected
    return int(first) if first > expected or cut_off else None


def bounds(client: Any, places: Iterable[Place], *, end: bool) -> dict[Place, int]:
    """Return the first offset of each partition, or the one behind the last record that may be read.

    Raises:
        KafkaException: the broker does not tell.
    """
    # Its times may be logical offsets: one request for each broker, where ``get_watermark_offsets`` takes one for
    # each partition.
    wanted = [native(place, OFFSET_END if end else OFFSET_BEGINNING) for place in places]
    checked = _checked(client.offsets_for_times(wanted, timeout=FETCH_TIMEOUT))
    return {Place(each.topic, each.partition): each.offset for each in checked}


class Offsets(OffsetCalls):
    """Those calls, for a leaf that has the client as ``_client``."""

    _client: Any
    failed: Errors = KafkaException
    given: Mapping[Any, int] = {}
    """Where partitions that were assigned by hand are to begin, where their owner said it."""

    def send_commit(self, offsets: Mapping[Any, Committed], /) -> Any:
        """Commit offsets by partition; return the name of an error that passes."""
        natives = [native(place, *commit) for place, commit in offsets.items()]
        try:
            _checked(self._client.commit(offsets=natives, asynchronous=False))
        except KafkaException as error:
            if not self.passes(error):
                raise
            return name_of(error)
        return None

    def committed(self, places: Collection[Any], /) -> Any:
        """Return the group's commits by partition."""
        commits = _checked(
            self._client.committed(
                [native(place) for place in places], timeout=FETCH_TIMEOUT
            )
        )
        return {
            Place(each.topic, each.partition): Committed(each.offset, each.metadata or "")
            for each in commits
            if each.offset >= 0
        }

    def places(self, topic: str, /) -> Any:
        """Return all partitions of a topic."""
        metadata = self._client.list_topics(topic, timeout=FETCH_TIMEOUT).topics[topic]
        if metadata.error is not None:
            raise KafkaException(metadata.error)
        return {Place(topic, number) for number in metadata.partitions}

    def position(self, place: Any, /) -> Any:
        """Return where its owner has told a partition to begin; the client tells no position before a record."""
        offset = self.given.get(place, OFFSET_INVALID)
        if offset in (OFFSET_BEGINNING, OFFSET_END):
            return bounds(self._client, [place], end=offset == OFFSET_END)[place]
        return offset if offset >= 0 else None

    def bounds(self, places: Collection[Any], end: bool, /) -> Any:
        """Return the first offset of each partition, or the one behind the last record that may be read."""
        return bounds(self._client, places, end=end)

    def passes(self, error: BaseException, /) -> bool:
        """Return whether the same call may succeed later, or the client is being closed."""
        return error_of(error).code() in PASSES


def _checked(partitions: Iterable[Any]) -> list[Any]:
    """Return partitions as the client gave them; raise the error of the first that has one."""
    listed = list(partitions)
    for each in listed:
        if each.error is not None:
            raise KafkaException(each.error)
    return listed
