"""The stage of a real Kafka for the delivery contract: several consumers of one group, and faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from kafka import TopicPartition
from kafka.errors import CommitFailedError

from mqauth.brokers import kafka
from mqauth.errors import Cause, Unavailable
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing.clock import RunningClock
from mqauth.testing.stage import PATIENCE
from mqauth.testing.stage_kafka import KafkaStage
from tests.kit.delivery_stage import CommitObserver

SESSION_MS: Final = 6000
"""The shortest session that a broker allows as it comes (``group.min.session.timeout.ms``)."""
HEARTBEAT_MS: Final = 300
PARTITIONS: Final = 4


class GoneError(Exception):
    """The consumer's process was killed."""


class LogMember:
    """A consumer in the background.

    Args:
        consumer: the wrapper.
    """

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        consumer.__enter__()

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return bool(self._consumer.failed)

    def health(self) -> Any:
        """Return its state."""
        return self._consumer.health()

    def close(self) -> None:
        """Stop it in order, and leave the group."""
        try:
            self._consumer.__exit__(None, None, None)
        finally:
            self.leave()

    def leave(self) -> None:
        """Close its clients."""
        raise NotImplementedError


class KafkaMember(LogMember):
    """A consumer in the background, whose client's calls can be refused, observed and blocked."""

    def __init__(
        self, stage: KafkaLogStage, consumer: Callable[[Any, Any], kafka.Consumer]
    ) -> None:
        self._stage = stage
        times = {"session_timeout_ms": SESSION_MS, "heartbeat_interval_ms": HEARTBEAT_MS}
        self._client = stage.consumer(**(times | stage.settings))
        self._letters = stage.dead_letter_client()
        self._connected = threading.Event()
        self._connected.set()
        self._dead = False
        self._calls = self._client.poll, self._client.commit
        self._client.poll, self._client.commit = self._poll, self._commit
        sink = kafka.DeadLetters(self._letters, stage.dead, timeout=10)
        super().__init__(consumer(self._client, Letters(stage, sink)))

    def kill(self) -> None:
        """Let nothing of it reach the broker any more."""
        self._dead = True
        self.heal()
        self._consumer.stop()
        self.leave()

    def cut(self) -> None:
        """Block the client's I/O, including heartbeats."""
        self._connected.clear()
        self._client._net.call_soon_threadsafe(lambda: self._connected.wait(PATIENCE))

    def heal(self) -> None:
        """Unblock the client's I/O."""
        self._connected.set()

    def _poll(self, *args: Any, **kwargs: Any) -> Any:
        """Poll, unless the process was killed."""
        if self._dead:
            raise GoneError
        return self._calls[0](*args, **kwargs)

    def _commit(self, offsets: Any, **kwargs: Any) -> None:
        """Commit, unless the process was killed or commits are refused, after the observers were called."""
        if self._dead:
            raise GoneError
        if self._stage.refuses_commits:
            raise CommitFailedError
        self._stage.observe({place: offset.offset for place, offset in offsets.items()})
        self._calls[1](offsets, **kwargs)

    def leave(self) -> None:
        """Close its clients."""
        self._client.close()
        self._letters.close()


class Letters:
    """The wrapper's own sink, which can lose letters on their way, without a confirm."""

    def __init__(self, stage: KafkaLogStage, sink: Any) -> None:
        self._stage = stage
        self._sink = sink
        self.name = stage.dead

    def publish(self, letter: DeadLetter, /) -> None:
        """Publish a letter, or lose it."""
        self._stage.count_letter()
        self._sink.publish(letter)


class KafkaLogStage(KafkaStage):
    """A source of four partitions and one group, on a broker that is running.

    Args:
        url: ``kafka://host:port``, or several servers with commas.
        settings: of the consumers' clients.
    """

    patience = 30.0

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, partitions=PARTITIONS)
        self.settings = settings
        self.clock = RunningClock()
        self.advance = self.clock.advance
        self.refuses_commits = self.refuses_letters = False
        self.observers: list[CommitObserver] = []
        self.sent = 0
        self._reading = threading.Lock()
        self._places = [
            TopicPartition(self.topic, number) for number in range(PARTITIONS)
        ]
        self._asking: Any = self.consumer()
        self._asking.unsubscribe()

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        time.sleep(seconds)

    def second(self, guard: Pipeline, handler: Handler, *, workers: int = 1) -> LogMember:
        """Start one more consumer of the group."""
        backoff = kafka.Backoff(first=0.3, longest=1)

        def consumer(client: Any, letters: Any) -> kafka.Consumer:
            return kafka.Consumer(
                client,
                guard,
                handler,
                dead_letters=letters,
                workers=workers,
                backoff=backoff,
            )

        return KafkaMember(self, consumer)

    def rebalance(self) -> None:
        """Have another client join the group and leave it."""
        stranger = self.consumer(session_timeout_ms=SESSION_MS)
        try:
            while not stranger.assignment():
                stranger.poll(timeout_ms=1000, max_records=1)
        finally:
            stranger.close()

    def kill(self, member: Any) -> None:
        """End a consumer like a killed process."""
        member.kill()

    def cut(self, member: Any) -> None:
        """Cut a consumer's connection."""
        member.cut()

    def heal(self, member: Any) -> None:
        """Let a consumer that was cut off continue."""
        member.heal()

    def refuse_commits(self, refusing: bool) -> None:
        """Refuse commits, or accept them again."""
        self.refuses_commits = refusing

    def refuse_letters(self, refusing: bool) -> None:
        """Lose letters, or deliver them again."""
        self.refuses_letters = refusing

    def observe(self, offsets: Mapping[Any, int]) -> None:
        """Tell the observers of a commit, by partition."""
        for place, offset in offsets.items():
            for observer in self.observers:
                observer(place.partition, offset)

    def count_letter(self) -> None:
        """Count a letter that is sent.

        Raises:
            Unavailable: letters are lost now.
        """
        self.sent += 1
        if self.refuses_letters:
            raise Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, "lost on its way")

    def attempts(self) -> int:
        """Return how many letters were sent."""
        return self.sent

    def letters(self) -> list[Any]:
        """Return every dead letter so far."""
        with self._reading:
            return super().letters()

    def committed(self) -> dict[int, int]:
        """Return the group's committed offsets."""
        found = {place.partition: self._asking.committed(place) for place in self._places}
        return {number: offset for number, offset in found.items() if offset}

    def ends(self) -> dict[int, int]:
        """Return the ends of the source's partitions."""
        return {
            place.partition: end
            for place, end in self._asking.end_offsets(self._places).items()
            if end
        }

    def watch(self, observer: CommitObserver) -> None:
        """Call an observer with every commit."""
        self.observers.append(observer)

    def close(self) -> None:
        """Delete the topics and close the clients."""
        self._asking.close()
        super().close()
