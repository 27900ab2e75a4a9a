"""What is asked of the ``confluent_kafka.Consumer`` itself, by the thread that has the turn; what it calls back.

librdkafka calls back inside ``consume``, where partitions are taken away or given, and goes on with the rebalance
once the call has returned. So a revocation waits there for what runs, and commits it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from confluent_kafka import KafkaException, TopicPartition

from mqauth.brokers.confluent.client import COMES_AGAIN, error_of, membership_of
from mqauth.brokers.confluent.positions import KeptPositions, Place, native, place_of
from mqauth.brokers.confluent.replies import Replies
from mqauth.brokers.confluent.translate import Logs, from_native, heed
from mqauth.brokers.log.records import NO_LOG
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.partition import ClientCalls, offset_of
from mqauth.errors import ConfigurationError
from mqauth.wire.message import Message

IDLE: Final = 0.2
"""Seconds one ``consume`` may wait, since nothing wakes it: how soon ``stop`` is seen."""
MOST: Final = 500
"""Records of one poll."""
_LOG: Final = logging.getLogger("mqauth.kafka")


class Poller:
    """Makes one client's calls.

    Args:
        client: the ``confluent_kafka.Consumer``.
        assignment: what is wished for, and what is told of what came of it.
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
        self._late: dict[Place, int] = {}  # seeks that the client has not taken yet
        self._kept = KeptPositions()
        self._settle: Callable[[], None]
        self._closed = False

    def listen(self, topics: Sequence[str], settle: Callable[[], None]) -> None:
        """Subscribe, or take the partitions that were assigned by hand.

        Args:
            topics: what to subscribe to.
            settle: lets what runs end, and commits it.

        Raises:
            ConfigurationError: no topic is named, and no partition is assigned.
        """
        self._settle = settle
        if isinstance(topics, str):
            raise ConfigurationError("topics is a list of names, not one name")
        if topics:
            self._client.subscribe(
                list(topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost
            )
            return
        self._held = _places(self._client.assignment())
        if not self._held or self._client.memberid():
            raise ConfigurationError("name topics, from which no client is subscribed yet, or assign partitions")

    def poll(self, *, joins: bool) -> None:
        """Ask the client for what is wished, and note what it returns.

        Args:
            joins: without meaning here: a rebalance that becomes due is told inside, and waits there.

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
        """Commit what is settled, where it is time.

        Args:
            last: there is no later time.

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
            _LOG.warning("commit: %s; what it covers may come again", error_of(error).name())
        else:
            self._assignment.committed(due, began)

    def close(self) -> None:
        """Leave the client as it was given to us, but subscribed; what it calls back from now on is not ours."""
        self._closed = True
        self._ask(self._assignment.final_calls(self._held, self._paused))

    def rejoins(self) -> bool:
        """Return false: a rebalance is told inside ``poll`` alone, and waits there."""
        return False

    def _consume(self, seconds: float) -> list[Any]:
        """Return what is there, or wait for the first: ``consume`` of many would wait for all of them."""
        try:
            self._logs.of()  # what is read before the cluster is known would stand somewhere else afterwards
        except KafkaException as error:
            _LOG.warning("the cluster's id: %s, asked again", error_of(error).name())
            return []
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
        """Pause, seek and resume as wished.

        A partition that was assigned a moment ago takes no seek yet: it is asked again, and what is read of it
        meanwhile is not noted.
        """
        if wanted.pause:
            self._client.pause([native(place) for place in wanted.pause])
        for place, offset in (self._late | dict(wanted.seek)).items():
            try:
                self._client.seek(native(place, offset))
                self._late.pop(place, None)
            except KafkaException:
                self._late[place] = offset
        if wanted.resume:
            self._client.resume([native(place) for place in wanted.resume])
        self._paused = (self._paused | wanted.pause) - wanted.resume

    def _assigned(self, client: Any, partitions: list[TopicPartition]) -> None:
        """Go on with what came back from a rebalance; drop what did not."""
        places = _places(partitions)
        self._assignment.lost(self._kept.lost(client))
        self._held |= places
        self._assignment.assigned(self._held)
        if self._kept.restore(client, places):
            self._ask(self._assignment.client_calls(self._held, self._paused))

    def _revoked(self, client: Any, partitions: list[TopicPartition]) -> None:
        """Let what runs end, and commit it; then drop what was revoked, or suspend it where all of it was."""
        if not self._closed:
            self._settle()
            self.commit(last=True)  # for these partitions it is: one that failed a moment ago would wait too long
        places = _places(partitions)
        eager = places == self._held  # under the cooperative protocol (KIP-429) only what moves is revoked
        if eager:
            self._kept.keep(client, partitions, self._late)
        self._assignment.revoked(places, places if eager else self._held - places)
        self._drop(places)

    def _lost(self, _client: Any, partitions: list[TopicPartition]) -> None:
        """Drop what was lost; somebody else has it already."""
        places = _places(partitions)
        self._assignment.lost(places)
        self._drop(places)

    def _drop(self, places: set[Place]) -> None:
        """Forget what was asked for partitions: librdkafka forgets it with their assignment, too."""
        self._held -= places
        self._paused -= places
        self._late = {place: offset for place, offset in self._late.items() if place not in places}


def _places(partitions: Iterable[Any]) -> set[Place]:
    """Return the places of partitions as the client names them."""
    return {place_of(each) for each in partitions}
