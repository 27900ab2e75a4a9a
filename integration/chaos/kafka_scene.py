"""A topic and a dead-letter topic of a row's own, what was sent to them, and what became of it."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import kafka as kafka_python
from kafka import OffsetAndMetadata, TopicPartition
from kafka.errors import KafkaError

from integration.chaos.row import Count, Letter, Row
from integration.waiting import until
from mqauth import Pipeline
from mqauth.brokers import kafka
from mqauth.brokers.log.records import native_headers, to_message
from mqauth.signer import Signer
from mqauth.stores.redis import RedisReplayStore
from mqauth.testing.stage_kafka import KafkaStage

APPEND: dict[str, Any] = {"at": "append", "max_queue_age": 3600}
"""Verifier settings for a topic whose broker stamps what it receives."""
STAMPED = {"message.timestamp.type": "LogAppendTime"}
PATIENCE = 60.0
_PYTHON: Any = kafka_python


class Scene(Row):
    """What a row publishes and finds; its topics are on one broker and have names of their own.

    Args:
        url: of the broker.
        folder: for files.
        partitions: of the source.
        lifetime: seconds an honest token lives.
    """

    broker, client, append, place = "kafka", "kafka-python", APPEND, "kafka:"
    few_at_once: ClassVar = {"client": {"max_poll_records": 50}}
    many_at_once: ClassVar = {"workers": 2}
    one_partition: ClassVar = {"partition": 0}
    other_partition: ClassVar = {"partition": 1}

    def __init__(
        self, url: str, folder: Path, *, partitions: int = 2, lifetime: int = 3600
    ) -> None:
        self.stage = KafkaStage(url, partitions=partitions, config=STAMPED)
        super().__init__(
            url, self.stage.topic, self.stage.dead, folder, lifetime=lifetime
        )
        self.group = self.stage.group
        self.places = [TopicPartition(self.name, number) for number in range(partitions)]
        self._sealed: dict[bytes, list[tuple[str, bytes]]] = {}
        self._closing: list[Any] = []
        self.process = {"at_once": 500, "assigned": str(folder)}
        self._hasty: kafka.Producer | None = None
        self.publishing = self.keep(
            _PYTHON.KafkaProducer(bootstrap_servers=self.stage.servers, linger_ms=5)
        )
        self._asking = self.keep(self._asker(self.group))

    def strike(self) -> None:
        """Close everything and delete the topics."""
        for each in self._closing:
            each.close()
        self.stage.close()

    def keep(self, closing: Any) -> Any:
        """Have a client or store closed at the end."""
        self._closing.append(closing)
        return closing

    def send(
        self,
        number: int,
        *,
        signer: Signer | None = None,
        failing: bool = False,
        partition: int | None = None,
    ) -> list[bytes]:
        """Publish so many honest messages, over all partitions or to one, and return their bodies."""
        bodies = self.named(number, failing=failing)
        signer = signer or self.forge.signer()
        for body in bodies:
            self._sealed[body] = self._seal(body, signer)
        self._publish(bodies, partition)
        return bodies

    def send_stubbornly(self, number: int) -> int:
        """Publish honest messages by a client that gives up within a second, each anew until it is confirmed.

        Once it has failed as many go by a patient client too, which waits for the whole outage.

        Returns:
            the sends that failed.
        """
        if self._hasty is None:
            client = _PYTHON.KafkaProducer(
                bootstrap_servers=self.stage.servers, enable_idempotence=False, acks="all", retries=0,
                linger_ms=0, delivery_timeout_ms=1000, request_timeout_ms=500, max_block_ms=1000,
            )  # fmt: skip
            self._hasty = kafka.Producer(self.keep(client), self.forge.signer())
        failures = 0
        waiting = self.named(number)
        while waiting:
            waiting = _unconfirmed(self._hasty, self.name, waiting)
            failures += len(waiting)
        if failures:
            self.send(number)
        return failures

    def forge_some(
        self, number: int, *, signer: Signer | None = None, partition: int | None = None
    ) -> None:
        """Publish so many forged messages: with a token of a signer nobody should believe, or with none."""
        bodies = self.named_forged(number)
        for body in bodies:
            self._sealed[body] = [] if signer is None else self._seal(body, signer)
        self._publish(bodies, partition)

    def copy(self, bodies: Iterable[bytes], *, partition: int | None = None) -> None:
        """Publish a copy of each of these honest messages, bit by bit the same."""
        wanted = list(bodies)
        self.copies += Counter(wanted)
        self._publish(wanted, partition)

    def _seal(self, body: bytes, signer: Signer) -> list[tuple[str, bytes]]:
        """Return the headers of a signed record."""
        return native_headers(signer.sign(to_message(self.name, body, b"k")).headers)

    def _publish(self, bodies: Iterable[bytes], partition: int | None) -> None:
        """Publish many, each confirmed; without a partition to each of them in turn."""
        futures = [
            self.publishing.send(
                self.name, value=body, key=b"k", headers=self._sealed[body],
                partition=number % len(self.places) if partition is None else partition,
            )
            for number, body in enumerate(bodies)
        ]  # fmt: skip
        for future in futures:
            future.get(timeout=PATIENCE)

    def store(self, url: str, **settings: Any) -> RedisReplayStore:
        """Return a store on a real Redis, of this row's own."""
        store = RedisReplayStore.from_url(url, timeout=1, namespace=self.name, **settings)
        self._closing.append(store)
        return store

    def consuming(self, **settings: Any) -> Any:
        """Return a client of the row's group, subscribed to the source."""
        return self.keep(self.stage.consumer(**settings))

    def letter_client(self) -> Any:
        """Return a client for dead letters that sends each at once."""
        return self.keep(self.stage.dead_letter_client(linger_ms=0))

    def consumer(
        self, guard: Pipeline, handler: Any = None, *, client: Any = None, **settings: Any
    ) -> kafka.Consumer:
        """Return a consumer of the source; its client is a new one, of these settings, or one there is."""
        if client is None or isinstance(client, dict):
            client = self.consuming(**(client or {}))
        wanted: dict[str, Any] = {"backoff": kafka.Backoff(first=0.1, longest=0.5)}
        if "dead_letters" not in settings:
            wanted["dead_letters"] = kafka.DeadLetters(
                self.letter_client(), self.dead, timeout=5
            )
        return kafka.Consumer(
            client, guard, handler or self.handle, **(wanted | settings)
        )

    def reset(self) -> None:
        """Set the group's committed offsets to the beginning; it has no members now."""
        self._asking.commit(
            {place: OffsetAndMetadata(0) for place in self.places}, timeout_ms=10_000
        )

    def uncommitted(self) -> int:
        """Return how many records the group has still to commit."""
        ends = self._asking.end_offsets(self.places)
        return sum(
            ends[place] - (self._asking.committed(place) or 0) for place in self.places
        )

    def done(
        self, consumer: kafka.Consumer | None = None, handled: Callable[[], Iterable[bytes]] | None = None,
        *, seconds: float = PATIENCE,
    ) -> None:  # fmt: skip
        """Wait until every honest message is handled, every other buried, and every offset committed."""

        def all_handled() -> bool:
            return {*self.honest} <= {*(self.handled if handled is None else handled())}

        def quiet() -> bool:
            try:
                return self.uncommitted() == 0
            except KafkaError:  # not connected again yet
                return False

        until(all_handled, consumer, seconds=seconds)
        until(quiet, consumer, seconds=seconds)

    def consumed_by(self, racers: Iterable[subprocess.Popen[bytes]]) -> bool:
        """Tell whether each of these processes has one partition."""
        places = [self.folder / f"assigned.{racer.pid}" for racer in racers]
        return all(place.exists() and place.read_text() == "1" for place in places)

    def buried(self) -> int:
        """Return how many dead letters there are."""
        return len(self.letters())

    def letters(self) -> list[Letter]:
        """Return every dead letter so far."""
        return [Letter.of(message) for message in self.stage.letters()]

    def count(
        self,
        row: str,
        *,
        handled: Iterable[bytes] | None = None,
        letters: Iterable[Letter] = (),
    ) -> Count:
        """Return the sums of the row; ``letters`` are those of a topic that is gone."""
        return self.summed(row, handled, [*letters, *self.letters()])

    def _asker(self, group: str) -> Any:
        """Return a client that asks for offsets of a group and never joins it."""
        return _PYTHON.KafkaConsumer(
            bootstrap_servers=self.stage.servers, group_id=group, enable_auto_commit=False
        )


def _unconfirmed(
    producer: kafka.Producer, topic: str, bodies: Iterable[bytes]
) -> list[bytes]:
    """Send each once, and return those without the broker's confirm."""
    failed: list[bytes] = []
    sent: list[tuple[bytes, Any]] = []
    for body in bodies:
        try:
            sent.append((body, producer.send(topic, body, b"k")))
        except KafkaError:
            failed.append(body)
    for body, future in sent:
        try:
            future.get(timeout=PATIENCE)
        except KafkaError:
            failed.append(body)
    return failed


@contextmanager
def scene(url: str, folder: Path, **settings: Any) -> Iterator[Scene]:
    """Set a scene, and strike it at the end."""
    row = Scene(url, folder, **settings)
    try:
        yield row
    finally:
        row.strike()
