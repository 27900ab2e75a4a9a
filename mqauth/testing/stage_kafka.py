"""The stage of a real Kafka: topics of its own on a broker that is running."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import kafka as kafka_python
import kafka.admin as kafka_admin
from kafka import TopicPartition
from kafka.errors import KafkaError, TopicAlreadyExistsError

from mqauth.brokers import kafka
from mqauth.brokers.log.records import dead_letter_headers
from mqauth.errors import ConfigurationError
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.signer import Signer
from mqauth.testing.stage import PATIENCE, wait_until
from mqauth.wire import destination
from mqauth.wire.message import Message

_PYTHON: Any = kafka_python  # its classes have no types
_ADMIN: Any = kafka_admin


class KafkaStage:
    """A source topic and a dead-letter topic with unique names.

    Args:
        url: ``kafka://host:port``, or several servers with commas.
        partitions: of the source.
        config: of the source topic, for example ``{"message.timestamp.type": "LogAppendTime"}``.

    Raises:
        ConfigurationError: the URL is of another kind.
    """

    name = "kafka"

    def __init__(
        self, url: str, *, partitions: int = 1, config: dict[str, str] | None = None
    ) -> None:
        self.servers = servers(url)
        self.topic = f"orders.{uuid.uuid4().hex[:12]}"
        self.dead = f"{self.topic}.dead"
        self.group = f"{self.topic}.group"
        self.destination = destination.kafka(self.topic)
        self.admin = _PYTHON.KafkaAdminClient(bootstrap_servers=self.servers)
        self._client = _PYTHON.KafkaProducer(bootstrap_servers=self.servers)
        self._reader: Any = None
        self._letters: list[Message] = []
        self.create(self.topic, partitions, config)
        self.create(self.dead)

    def produce(self, signer: Signer, message: Message) -> None:
        """Send through the producer wrapper and wait for the broker."""
        _, topic = destination.parse(message.destination)
        headers = dead_letter_headers(message.headers)
        future: Any = kafka.Producer(self._client, signer).send(
            topic, message.body, message.key, headers
        )
        future.get(timeout=PATIENCE)

    def inject(self, message: Message) -> None:
        """Send past mqauth and wait for the broker."""
        headers = dead_letter_headers(message.headers)
        future = self._client.send(
            self.topic, value=message.body, key=message.key, headers=headers
        )
        future.get(timeout=PATIENCE)

    def consume(
        self,
        guard: Pipeline,
        handler: Handler,
        *,
        until: Callable[[], bool],
        **settings: Any,
    ) -> None:
        """Run the consumer wrapper until the condition holds.

        Raises:
            TimeoutError: the condition did not hold within a minute.
        """
        client = self.consumer()
        letters = self.dead_letter_client()
        wrapped = kafka.Consumer(
            client,
            guard,
            handler,
            dead_letters=kafka.DeadLetters(letters, self.dead, timeout=10),
            **settings,
        )
        try:
            with wrapped:
                wait_until(until, lambda: not wrapped.failed)
        finally:
            client.close()
            letters.close()

    def consumer(self, **settings: Any) -> Any:
        """Return a client of the stage's group, subscribed to the source."""
        wanted: dict[str, Any] = {
            "bootstrap_servers": self.servers,
            "group_id": self.group,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
        }
        return _PYTHON.KafkaConsumer(self.topic, **(wanted | settings))

    def dead_letter_client(self, **settings: Any) -> Any:
        """Return a client for dead letters that does not create topics by itself."""
        wanted: dict[str, Any] = {
            "bootstrap_servers": self.servers,
            "enable_idempotence": False,
            "acks": "all",
            "allow_auto_create_topics": False,
        }
        return _PYTHON.KafkaProducer(**(wanted | settings))

    def letters(self) -> list[Message]:
        """Return every committed dead letter so far."""
        partition = TopicPartition(self.dead, 0)
        if self._reader is None:
            self._reader = _PYTHON.KafkaConsumer(
                bootstrap_servers=self.servers,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
            )
            self._reader.assign([partition])
            self._letters = []
        end = self._reader.end_offsets([partition])[partition]
        while self._reader.position(partition) < end:
            for records in self._reader.poll(timeout_ms=100).values():
                self._letters += [
                    kafka.from_native(record, scope=self.group) for record in records
                ]
        return list(self._letters)

    def remove_dead_letters(self) -> None:
        """Delete the dead-letter topic, and wait until the broker has deleted it."""
        self._forget_reader()
        self.admin.delete_topics([self.dead])
        wait_until(lambda: self.dead not in self.admin.list_topics())

    def restore_dead_letters(self) -> None:
        """Create the dead-letter topic again."""
        self.create(self.dead)

    def close(self) -> None:
        """Delete the topics and close the clients."""
        self._forget_reader()
        self._client.close()
        for topic in (self.topic, self.dead):
            try:
                self.admin.delete_topics([topic])
            except KafkaError:  # gone already
                continue
        self.admin.close()

    def create(
        self, topic: str, partitions: int = 1, config: dict[str, str] | None = None
    ) -> None:
        """Create a topic with the broker's default number of replicas; wait for one that is being deleted."""

        def created() -> bool:
            try:
                self.admin.create_topics(
                    [_ADMIN.NewTopic(topic, partitions, topic_configs=config or {})]
                )
            except TopicAlreadyExistsError:
                return False
            return True

        wait_until(created)

    def _forget_reader(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


def servers(url: str) -> list[str]:
    """Return the bootstrap servers of a ``kafka://`` URL.

    Raises:
        ConfigurationError: the URL is of another kind.
    """
    scheme, mark, rest = url.partition("://")
    if scheme != "kafka" or not mark or not rest.strip("/"):
        raise ConfigurationError("a Kafka URL is kafka://host:port")
    return rest.strip("/").split(",")
