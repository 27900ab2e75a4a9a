"""The stages of a real Kafka for confluent-kafka's leaf; topics and letters are looked after by kafka-python's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer

from integration.relay_kafka import Relay
from mqauth.brokers import confluent
from mqauth.brokers.log.records import dead_letter_headers
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.signer import Signer
from mqauth.testing.stage_kafka import PATIENCE, KafkaStage, wait_until
from mqauth.testing.stage_kafka_log import (
    HEARTBEAT_MS,
    SESSION_MS,
    GoneError,
    KafkaLogStage,
    Letters,
    LogMember,
)
from mqauth.wire import destination
from mqauth.wire.message import Message

POLLING: Final = {"max_poll_interval_ms": 10_000}
"""For so long a rebalance waits for a member that is in the middle of one and dies."""
QUIET: Final = {"log_level": 2}
"""librdkafka writes what it logs to standard error, where the tests break connections on purpose."""


class ConfluentClients:
    """Makes the clients of a stage.

    Args:
        servers: the broker's.
        group: the consumers'.
    """

    def __init__(self, servers: list[str], group: str) -> None:
        self._settings: dict[str, Any] = {"bootstrap.servers": ",".join(servers), **QUIET}
        self._group = group

    def consumer_settings(self, **settings: Any) -> dict[str, Any]:
        """Return the settings of a consumer of the group; names with ``_`` for dots."""
        wanted = {"group.id": self._group, "auto.offset.reset": "earliest", "enable.auto.offset.store": False}
        return self._settings | wanted | _dotted(settings)

    def producer_settings(self, **settings: Any) -> dict[str, Any]:
        """Return the settings of a producer."""
        return self._settings | {"allow.auto.create.topics": False, "linger.ms": 0} | _dotted(settings)

    def letters(self, topic: str) -> confluent.DeadLetters:
        """Return a sink of dead letters with a client of its own."""
        settings = self.producer_settings()
        return confluent.DeadLetters(Producer(settings), topic, timeout=10, config=settings)


def _dotted(settings: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "."): value for name, value in settings.items()}


class ConfluentStage(KafkaStage):
    """A source topic and a dead-letter topic with unique names.

    Args:
        url: ``kafka://host:port``, more servers after commas.
        settings: as ``KafkaStage`` has them.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self.clients = ConfluentClients(self.servers, self.group)
        self._config = self.clients.producer_settings(enable_idempotence=True)
        self._producer = Producer(self._config)

    def produce(self, signer: Signer, message: Message) -> None:
        """Send through the producer wrapper and wait for the broker."""
        _, topic = destination.parse(message.destination)
        headers = dead_letter_headers(message.headers)
        told: list[KafkaError | None] = []
        producer = confluent.Producer(self._producer, signer, config=self._config)
        producer.produce(
            topic, message.body, message.key, on_delivery=lambda error, _: told.append(error), headers=headers
        )
        assert producer.flush(PATIENCE) == 0
        assert told == [None]

    def consume(self, guard: Pipeline, handler: Handler, *, until: Callable[[], bool], **settings: Any) -> None:
        """Run the consumer wrapper until the condition holds.

        Raises:
            TimeoutError: it did not come to hold within a minute.
        """
        client = Consumer(self.clients.consumer_settings())
        letters = self.clients.letters(self.dead)
        wrapped = confluent.Consumer(client, guard, handler, topics=[self.topic], dead_letters=letters, **settings)
        try:
            with wrapped:
                wait_until(until, lambda: not wrapped.failed)
        finally:
            client.close()
            letters.client.close()


class WatchedConsumer(Consumer):
    """A client whose commits can be refused and watched, and that can be killed."""

    def __init__(self, stage: ConfluentLogStage, settings: dict[str, Any]) -> None:
        super().__init__(settings)
        self._stage = stage
        self.dead = False

    def consume(self, num_messages: int = 1, timeout: float = -1) -> Any:
        """Consume, while alive."""
        if self.dead:
            raise GoneError
        return super().consume(num_messages, timeout)

    def commit(self, *, offsets: Any, asynchronous: Any) -> Any:  # type: ignore[override]
        """Commit, while alive and not refused, and once it was told."""
        if self.dead or self._stage.refuses_commits:
            raise KafkaException(KafkaError(KafkaError.UNKNOWN_MEMBER_ID))
        self._stage.observe({each: each.offset for each in offsets})
        return super().commit(offsets=offsets, asynchronous=asynchronous)


class ConfluentMember(LogMember):
    """A consumer in the background, behind a relay of its own."""

    def __init__(self, stage: ConfluentLogStage, consumer: Callable[[Any, Any], confluent.Consumer]) -> None:
        self._relay = Relay(stage.servers[0])
        clients = ConfluentClients([self._relay.server], stage.group)
        times = {"session_timeout_ms": SESSION_MS, "heartbeat_interval_ms": HEARTBEAT_MS, **POLLING}
        self._client = WatchedConsumer(stage, clients.consumer_settings(**times, **stage.settings))
        self._letters = clients.letters(stage.dead)
        super().__init__(consumer(self._client, Letters(stage, self._letters)))

    def kill(self) -> None:
        """Let nothing of it reach the broker any more."""
        self._client.dead = True
        self._relay.close()
        self._consumer.stop()
        # The client waits for ever where it is closed while another thread commits: librdkafka drops that commit.
        threading.Thread(target=self._bury, daemon=True).start()

    def cut(self) -> None:
        """Have the wire stand still."""
        self._relay.stand_still()

    def heal(self) -> None:
        """Let it go on."""
        self._relay.go_on()

    def _bury(self) -> None:
        with suppress(BaseException):
            self._consumer.__exit__(None, None, None)
        self.leave()

    def leave(self) -> None:
        """Close the clients."""
        self._client.close()
        self._letters.client.close()
        self._relay.close()


class ConfluentLogStage(KafkaLogStage):
    """A source of four partitions and one group, on a broker that runs already.

    Args:
        url: ``kafka://host:port``, more servers after commas.
        settings: of the consumers' clients, names with ``_`` for dots.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url)
        self.settings = settings

    def second(self, guard: Pipeline, handler: Handler, *, workers: int = 1) -> Any:
        """Start one more consumer of the group."""
        backoff = confluent.Backoff(first=0.3, longest=1)

        def consumer(client: Any, letters: Any) -> confluent.Consumer:
            return confluent.Consumer(
                client, guard, handler, topics=[self.topic], dead_letters=letters, workers=workers, backoff=backoff
            )

        return ConfluentMember(self, consumer)

    def rebalance(self) -> None:
        """Have a stranger join the group, and leave it."""
        clients = ConfluentClients(self.servers, self.group)
        stranger = Consumer(clients.consumer_settings(session_timeout_ms=SESSION_MS, **self.settings))
        stranger.subscribe([self.topic])
        try:
            while not stranger.assignment():
                stranger.consume(1, 1.0)
        finally:
            stranger.close()
