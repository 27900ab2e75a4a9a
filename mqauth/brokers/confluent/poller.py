"""The calls of a ``confluent_kafka.Consumer``: consume, pause, seek, commit; and its rebalance callbacks.

librdkafka runs the callbacks inside ``consume``, and goes on with the rebalance when the callback has returned. So
the callback of a revocation waits for running handlers and commits, before the partitions go to another member.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from confluent_kafka import KafkaException, TopicPartition

from mqauth.brokers.confluent.client import COMES_AGAIN, error_of, membership_of
from mqauth.brokers.confluent.positions import KeptPositions, Place, native, places_of
from mqauth.brokers.confluent.replies import Replies
from mqauth.brokers.confluent.translate import Logs, from_native, heed
from mqauth.brokers.log.records import NO_LOG
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.partition import ClientCalls, offset_of
from mqauth.errors import ConfigurationError
from mqauth.wire.message import Message

IDLE: Final = 0.2
"""Most seconds of one ``consume``: nothing wakes it, so this is how soon ``stop()`` is seen."""
MOST: Final = 500
"""Most records of one ``consume``."""
_LOG: Final = logging.getLogger("mqauth.kafka")


class Poller:
    """The calls of one client, made by the thread that holds the poll lock (``LogClient``).

    Args:
        client: the ``confluent_kafka.Consumer``.
        assignment: says which calls to make, and gets the records.
        replies: send answers.
    """

    def __init__(self, client: Any, assignment: Assignment, *, replies: Replies | None) -> None:
        self._client = client
        self._assignment = assignment
        self._replies = replies
        self._logs = Logs(client)
        self._scope = membership_of(client).group
        self._held: set[Place] = set()
        self._paused: set[Place] = set()
        self._late: dict[Place, int] = {}  # seeks that the client has refused so far
        self._kept = KeptPositions()
        self._closed = False

    def listen(self, topics: Sequence[str], settle: Callable[[], None]) -> None:
        """Subscribe, or take the partitions that were assigned by hand.

        Args:
            topics: the topics to subscribe to.
            settle: waits for running handlers, and commits (``LogConsumer.settle``).

        Raises:
            ConfigurationError: no topic is named, and no partition is assigned.
        """
        self._settle: Callable[[], None] = settle
        if isinstance(topics, str):
            raise ConfigurationError(f"topics must be a list of names, not the text {topics!r}")
        if topics:
            self._client.subscribe(
                list(topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
            )
            return
        self._held = places_of(self._client.assignment())
        if not self._held or self._client.memberid():
            raise ConfigurationError("topics must name a topic, unless partitions were assigned by hand")

    def poll(self, *, joins: bool) -> None:
        """Make the calls that the assignment asks for, consume, and add the records to the assignment.

        Args:
            joins: not used: librdkafka cannot put a rebalance off, but its callback waits for handlers.

        Raises:
            PoisonRecordError: a record cannot be parsed.
            ProducerFatalError: the producer of answers can send nothing more.
            KafkaException: the broker refuses for good, for lack of rights for example.
        """
        if self._replies is not None:
            self._replies.check()
        self._ask(self._assignment.client_calls(self._held, self._paused))
        self._assignment.heartbeat()
        records = self._consume(self._assignment.poll_timeout(IDLE))
        self._assignment.heartbeat()
        for place, messages in self._messages(records).items():
            again = self._kept.read_again(place, offset_of(messages[0]))
            if not again and place in self._held and place not in self._late:
                self._assignment.receive(place, messages)

    def commit(self, *, last: bool = False) -> None:
        """Commit the offsets that are due.

        Args:
            last: whether this is the last commit.

        Raises:
            KafkaException: the broker refuses for good, for lack of rights for example.
        """
        due = self._assignment.due_commits(last=last)
        if not due:
            return
        began = self._assignment.commit_began()
        offsets = [native(partition.topic_partition, offset) for partition, offset in due.items()]
        try:
            for each in self._client.commit(offsets=offsets, asynchronous=False):
                if each.error is not None:
                    raise KafkaException(each.error)
        except KafkaException as error:
            if error_of(error).code() not in COMES_AGAIN:
                raise
            self._assignment.commit_failed()
            _LOG.warning("commit failed with %s; its records may come again", error_of(error).name())
        else:
            self._assignment.committed(due, began)

    def close(self) -> None:
        """Leave the client as it was given to us, but subscribed."""
        # Whoever goes on with the client commits for himself: a later revocation must not commit our offsets.
        self._closed = True
        self._ask(self._assignment.final_calls(self._held, self._paused))

    def rejoins(self) -> bool:
        """Return false: the client does not say so; its callback waits for handlers instead."""
        return False

    def _consume(self, seconds: float) -> list[Any]:
        # The cluster's id is part of a record's place in the replay store. A record that was judged without it
        # would be a replay of itself when it comes again.
        try:
            self._logs.of()
        except KafkaException as error:
            _LOG.warning("the broker did not tell its cluster's id (%s); asking again", error_of(error).name())
            return []
        # consume(500, 0.2) would wait for 500 records, or for the whole 0.2 s.
        found = self._client.consume(MOST, 0)
        if not found and seconds > 0:
            found = self._client.consume(1, seconds)
            found += self._client.consume(MOST, 0) if found else []
        return found  # type: ignore[no-any-return]

    def _messages(self, records: list[Any]) -> dict[Place, list[Message]]:
        found: dict[tuple[str, int], list[Message]] = {}
        log = self._logs.of() if records else NO_LOG
        for record in records:
            if record.error() is not None:
                heed(record)
                continue
            # A plain tuple for each record: a NamedTuple costs as much as all the other calls of a record.
            place = record.topic(), record.partition()
            if place not in found:
                found[place] = []
            found[place].append(from_native(record, scope=self._scope, log=log))
        return {Place(*place): messages for place, messages in found.items()}

    def _ask(self, wanted: ClientCalls) -> None:
        # Paused first and resumed last: a partition must not be fetched from its old position in between.
        if wanted.pause:
            self._client.pause([native(place) for place in wanted.pause])
        for place, offset in (self._late | dict(wanted.seek)).items():
            try:
                self._client.seek(native(place, offset))
            except KafkaException:
                # A partition that was assigned a moment ago refuses a seek. It is tried again before the next
                # consume, and records of the old position are dropped until then.
                self._late[place] = offset
            else:
                self._late.pop(place, None)
                self._kept.started(place, offset)
        if wanted.resume:
            self._client.resume([native(place) for place in wanted.resume])
        self._paused = (self._paused | wanted.pause) - wanted.resume

    def _assigned(self, client: Any, partitions: list[TopicPartition]) -> None:
        """Go on with partitions that came back from a rebalance, and drop those that did not."""
        places = places_of(partitions)
        self._assignment.lost(self._kept.lost(client))
        self._held |= places
        self._assignment.assigned(self._held)
        if self._kept.restore(client, places):
            self._ask(self._assignment.client_calls(self._held, self._paused))

    def _revoked(self, client: Any, partitions: list[TopicPartition]) -> None:
        """Wait for running handlers and commit; then suspend the partitions, or drop those that go elsewhere."""
        if not self._closed:
            self._settle()
            # A commit that failed a moment ago is not due yet, but it is the last one for these partitions: their
            # next owner would handle the records again.
            self.commit(last=True)
        places = places_of(partitions)
        # The cooperative protocol (KIP-429) revokes only the partitions that move.
        eager = places == self._held
        if eager:
            self._kept.keep(client, partitions, self._late)
        self._assignment.revoked(places, places if eager else self._held - places)
        self._drop(places)

    def _lost(self, _client: Any, partitions: list[TopicPartition]) -> None:
        """Drop partitions that another member has already."""
        places = places_of(partitions)
        self._assignment.lost(places)
        self._drop(places)

    def _drop(self, places: set[Place]) -> None:
        # librdkafka forgets seeks with the assignment but keeps pauses: what comes back would stand still.
        self._client.resume([native(place) for place in self._paused & places])
        self._kept.forget(places)
        self._held -= places
        self._paused -= places
        self._late = {place: offset for place, offset in self._late.items() if place not in places}
