"""Positions of partitions over an eager rebalance, which librdkafka 2.16 forgets.

An eager rebalance revokes all partitions of a consumer and assigns most of them again. librdkafka then reads from
the committed offset: records that are waiting here, and records whose handlers still run, would come a second
time, with a new time of receipt. So the position of each partition is kept, and given back with the assignment.

``Offsets`` has the calls that say and move where its group stands (``OffsetCalls``). ``PausingCalls`` keeps what
the client has fetched, which librdkafka 2.16 throws away with a pause. After ``pause`` and ``resume`` some tenths
of a second pass until records come again. So while handlers run for a short time nothing is paused at the client:
records that are read meanwhile are kept here, until their partition is wanted again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Set
from typing import Any, Final, NamedTuple

from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, OFFSET_INVALID, KafkaException, TopicPartition

from mqauth.brokers.confluent.client import COMES_AGAIN, error_of, membership_of, name_of
from mqauth.brokers.dead_letters import Errors
from mqauth.brokers.log.poller import LogPoller
from mqauth.brokers.log.starting import OffsetCalls
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.partition import offset_of
from mqauth.delivery.start import Committed
from mqauth.wire.message import Message


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


FETCH_TIMEOUT: Final = 5.0
"""Most seconds of one question."""
_RESETS: Final = {"smallest": "earliest", "earliest": "earliest", "beginning": "earliest", "error": "none"}


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
        commits = _checked(self._client.committed([native(place) for place in places], timeout=FETCH_TIMEOUT))
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
        """Return whether the same call may succeed later."""
        return error_of(error).code() in COMES_AGAIN


class OffsetsOnThread(Offsets):
    """The same on a thread, each to be awaited."""

    def here(self, work: Callable[..., Any], *args: Any) -> Any:
        """Make a call on the thread."""
        raise NotImplementedError

    def send_commit(self, offsets: Mapping[Any, Committed], /) -> Any:
        """Commit offsets by partition; return the name of an error that passes."""
        return self.here(super().send_commit, offsets)

    def committed(self, places: Collection[Any], /) -> Any:
        """Return the group's commits by partition."""
        return self.here(super().committed, places)

    def places(self, topic: str, /) -> Any:
        """Return all partitions of a topic."""
        return self.here(super().places, topic)

    def position(self, place: Any, /) -> Any:
        """Return where its owner has told a partition to begin."""
        return self.here(super().position, place) if place in self.given else None

    def bounds(self, places: Collection[Any], end: bool, /) -> Any:
        """Return the first offset of each partition, or the one behind the last record that may be read."""
        return self.here(super().bounds, places, end)


def _checked(partitions: Iterable[Any]) -> list[Any]:
    """Return partitions as the client gave them; raise the error of the first that has one."""
    listed = list(partitions)
    for each in listed:
        if each.error is not None:
            raise KafkaException(each.error)
    return listed


MOST: Final = 500
"""Most records of one ``consume``."""
KEPT: Final = 20
"""Records of a paused partition that are kept here, after which the client pauses it."""


class PausingCalls(Offsets, LogPoller):
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

    def membership(self) -> Any:
        """Return the membership to commit by, ``None`` during a rebalance."""
        # Partitions assigned by hand have no generation either, and no member.
        if self._client.memberid() and membership_of(self._client).generation < 0:
            return None
        return self._client.consumer_group_metadata()

    def pause(self, places: Set[Any]) -> None:
        """Return no more records of these partitions."""
        self._paused |= places

    def resume(self, places: Set[Any]) -> None:
        """Return records of these partitions again."""
        if stopped := self._stopped & places:
            self._client.resume([native(place) for place in stopped])
        self._stopped -= places
        self._paused -= places

    def _keep(self, place: Place, messages: list[Message]) -> None:
        """Keep what was read of a partition until ``fetch`` returns it."""
        self._read.setdefault(place, []).extend(messages)

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
