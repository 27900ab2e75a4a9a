"""The calls of a ``confluent_kafka.Consumer``: consume, pause, seek, commit; and its rebalance callbacks.

librdkafka runs the callbacks inside ``consume``, and goes on with the rebalance when the callback has returned. So
the callback of a revocation waits for running handlers and commits, before the partitions go to another member. An
eager rebalance revokes all partitions of a consumer and assigns most of them again, at their committed offsets.

librdkafka 2.16 throws away what it has fetched of a partition that is paused. After ``pause`` and ``resume`` some
tenths of a second pass until records come again. So while handlers run for a short time nothing is paused at the
client: records that are read meanwhile are kept here, until their partition is wanted again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import replace
from typing import Any, Final

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from mqauth.brokers.confluent.client import (
    REBALANCING,
    Logs,
    error_of,
    heed,
    membership_of,
    translated,
)
from mqauth.brokers.confluent.positions import (
    Offsets,
    Place,
    left_out,
    native,
    places_of,
    reset_of,
)
from mqauth.brokers.log.poller import IDLE, LogPoller
from mqauth.brokers.log.records import RecordPlace
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.partition import ClientCalls, offset_of
from mqauth.delivery.start import Committed
from mqauth.errors import require
from mqauth.flow import run
from mqauth.logs import emit
from mqauth.wire.message import Message

MOST: Final = 500
"""Most records of one ``consume``."""
KEPT: Final = 20
"""Records of a paused partition that are kept here, after which the client pauses it."""
LOOK: Final = 1.0
"""Seconds after which partitions that bring nothing are looked at: the client may stand at their end, past records
that it left out."""


class Poller(Offsets, LogPoller):
    """The calls of one client, made by the thread that holds the poll lock.

    Args:
        client: the ``confluent_kafka.Consumer``.
        assignment: says which calls to make, and gets the records.
        config: the client's settings, which it does not tell.
        settings: as ``LogPoller`` has them.
    """

    def __init__(
        self,
        client: Any,
        assignment: Assignment,
        config: Mapping[str, Any],
        **settings: Any,
    ) -> None:
        super().__init__(client, assignment, **settings)
        self.reset = reset_of(config)
        self._looked = time.monotonic()
        self._logs = Logs(client)
        self.scope = membership_of(client).group
        self._late: dict[Place, int] = {}  # seeks that the client has refused so far
        self._held: set[Place] = set()
        self._paused: set[Place] = set()  # of them, some at the client
        self._stopped: set[Place] = set()
        self._read: dict[Place, list[Message]] = {}  # of paused partitions
        self._refused = self._closed = False

    def listen(self, topics: Sequence[str], settle: Callable[[], None]) -> None:
        """Subscribe, or take the partitions that were assigned by hand.

        Args:
            topics: the topics to subscribe to.
            settle: waits for running handlers, and commits (``LogConsumer.settle``).

        Raises:
            ConfigurationError: no topic is named, and no partition is assigned.
        """
        self._settle: Callable[[], None] = settle
        require(
            not isinstance(topics, str),
            f"topics must be a list of names, not the text {topics!r}",
        )
        if topics:
            self._client.subscribe(
                list(topics),
                on_assign=self._assigned,
                on_revoke=self._revoked,
                on_lost=self._lost,
            )
            return
        assigned = self._client.assignment()
        self._held = places_of(assigned)
        self.given = {Place(each.topic, each.partition): each.offset for each in assigned}
        require(
            self._held and not self._client.memberid(),
            "topics must name a topic, unless partitions were assigned by hand",
        )

    def fetch(self, seconds: float, joins: bool) -> Any:
        """Consume, and return the new messages by partition.

        Args:
            seconds: how long to wait for the first of them at most.
            joins: not used: librdkafka cannot put a rebalance off, but its callback waits for handlers.

        Raises:
            PoisonRecordError: a record cannot be parsed.
            KafkaException: the broker refuses for good, for lack of rights for example.
        """
        if seconds > 0:
            # Where it waits, nothing runs and pauses are long.
            self._stop(self._paused)
        batches = self._consume(seconds if self._read.keys() <= self._paused else 0)
        for place, messages in batches.items():
            if self._is_next(place, messages[0]):
                self._read.setdefault(place, []).extend(messages)
        if not batches and seconds > 0 and time.monotonic() - self._looked >= LOOK:
            # Nothing is on its way of these: their positions are what the client has.
            self._looked = time.monotonic()
            idle = self._held - self._paused - self._read.keys() - self._late.keys()
            self.outside |= {place for place in idle if self._left_out(place, None)}
        wanted = {
            place: self._read.pop(place) for place in self._read.keys() - self._paused
        }
        # Where enough is kept of a partition, the client pauses it.
        self._stop(
            {place for place, messages in self._read.items() if len(messages) >= KEPT}
        )
        return wanted

    def send_commit(self, offsets: Mapping[Any, Committed], /) -> Any:
        """Commit offsets by partition; return the name of an error that passes."""
        failure = super().send_commit(offsets)
        self._refused = failure in REBALANCING
        return failure

    def commit(self, *, last: bool = False) -> None:
        """Commit the offsets that are due; the last commit serves a rebalance to its end where one refuses it.

        Args:
            last: whether this is the last commit.
        """
        super().commit(last=last)
        # Most seconds for which the last commit waits for the end of a rebalance.
        until = time.monotonic() + 5.0
        while last and self._refused and time.monotonic() < until:
            # Callbacks are called in here; a record that is read meanwhile is to be read again.
            for record in self._client.consume(1, IDLE):
                if record.error() is None:
                    self._late.setdefault(
                        Place(record.topic(), record.partition()), record.offset()
                    )
            super().commit(last=True)

    def seek(self, place: Any, offset: int) -> None:
        """Read a partition from an offset next; if it has just been assigned, before the next ``consume``."""
        self._forget({place})
        try:
            self._client.seek(native(place, offset))
        except KafkaException:
            # Records of the old position are dropped until then.
            self._late[place] = offset
        else:
            self._late.pop(place, None)

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

    def ask(self, wanted: ClientCalls) -> None:
        """Make the calls that the assignment asks for, and seeks that the client has refused so far."""
        super().ask(replace(wanted, seek=self._late | dict(wanted.seek)))

    def close(self) -> None:
        """Leave the client as it was given to us, but subscribed."""
        # Whoever goes on with the client commits for himself: a later revocation must not commit our offsets. And
        # a callback that raises inside the client's close, since it calls a client that is closed, ends that with
        # SystemError.
        self.abandon()
        self._late |= {
            place: offset_of(messages[0]) for place, messages in self._read.items()
        }
        super().close()

    def abandon(self) -> None:
        """Ask nothing more of the client, whatever it calls back."""
        self._closed = True

    def _is_next(self, place: Place, first: Message) -> bool:
        """Return whether records go to the assignment: of a partition that is ours, and not to be read again."""
        if place not in self._held or place in self._late:
            return False
        if place not in self._read and self._left_out(place, offset_of(first)):
            self.outside.add(place)
        return place not in self.outside

    def _left_out(self, place: Place, offset: int | None) -> bool:
        """Return whether the client has left records out before the one that came, or before it came to rest."""
        partition = self._assignment.partition(place)
        expected = None if partition is None else partition.expected
        # Offsets have gaps, so that only another one than the next is a reason to look.
        if expected is None or offset == expected:
            return False
        return left_out(self._client, place, expected, offset) is not None

    def _consume(self, seconds: float) -> dict[Place, list[Message]]:
        # The cluster's id is part of a record's place in the replay store. A record that was judged without it
        # would be a replay of itself when it comes again.
        try:
            self._logs.of()
        except KafkaException as error:
            emit(
                "client.cluster_unknown",
                "the broker did not tell its cluster's id (%s); asking again",
                error_of(error).name(),
            )
            return {}
        # consume(500, 0.2) would wait for 500 records, or for the whole 0.2 s.
        records = self._client.consume(
            1 if self._held and self._held == self._paused else MOST, 0
        )
        if not records and seconds > 0:
            records = self._client.consume(1, seconds)
            records += self._client.consume(MOST, 0) if records else []
        batches: dict[tuple[str, int], tuple[RecordPlace, list[Message]]] = {}
        for record in records:
            if record.error() is not None:
                if record.error().code() == KafkaError._AUTO_OFFSET_RESET:
                    self.outside.add(Place(record.topic(), record.partition()))
                else:
                    heed(record)
                continue
            # A plain tuple for each record: a NamedTuple costs as much as all the other calls of a record.
            place = record.topic(), record.partition()
            if place not in batches:
                batches[place] = RecordPlace(*place, self.scope, self._logs.of()), []
            common, messages = batches[place]
            messages.append(translated(record, common))
        return {Place(*place): messages for place, (_, messages) in batches.items()}

    def _assigned(self, client: Any, partitions: list[TopicPartition]) -> None:
        """Go on with partitions that came back from a rebalance, and drop those that did not."""
        if self._closed:
            return
        self._held |= places_of(partitions)
        self._assignment.assigned(
            self._held, membership_of(client).generation, at_commits=True
        )
        # At once: the end of a partition is another one a moment later.
        run(self.beginning())

    def _revoked(self, client: Any, partitions: list[TopicPartition]) -> None:
        """Wait for running handlers and commit; then suspend the partitions, or drop those that go elsewhere."""
        if self._closed:
            return
        self._settle()
        # A commit that failed a moment ago is not due yet, but it is the last one for these partitions: their next
        # owner would handle the records again.
        super().commit(last=True)
        places = places_of(partitions)
        # The cooperative protocol (KIP-429) revokes only the partitions that move.
        held = places if places == self._held else self._held - places
        self._assignment.revoked(places, held, membership_of(client).generation)
        self._drop(places)

    def _lost(self, _client: Any, partitions: list[TopicPartition]) -> None:
        """Drop partitions that another member has already."""
        if self._closed:
            return
        places = places_of(partitions)
        self._assignment.lost(places)
        self._drop(places)

    def _drop(self, places: set[Place]) -> None:
        # librdkafka forgets seeks with the assignment but keeps pauses: what comes back would stand still.
        self.resume(places)
        self._forget(places)
        self._held -= places
        self._late = {
            place: offset for place, offset in self._late.items() if place not in places
        }

    def _forget(self, places: Set[Place]) -> None:
        """Drop what was read of partitions."""
        for place in self._read.keys() & places:
            del self._read[place]

    def _stop(self, places: Set[Place]) -> None:
        """Pause partitions at the client."""
        if running := places - self._stopped:
            self._client.pause([native(place) for place in running])
            self._stopped |= running
