"""The letter box of a broker URL: connections of our own, for as long as a command runs."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

from mqauth.cli.broker import check_url, reached
from mqauth.cli.dlq_settings import BrokerSettings
from mqauth.errors import ConfigurationError
from mqauth.flow import Flow, arun, run
from mqauth.review.letterbox import LetterBox
from mqauth.review.recall import Originals

R = TypeVar("R")
_PATIENCE: Final = 60.0
_BACKOFF_MS: Final = 5000
"""At most so long kafka-python waits before it looks whether a broker that was lost is back; its own is 30 s."""
_MAX_REQUEST: Final = 64 * 1024 * 1024
"""Bytes of a record that is sent back; the broker's own limit decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Which dead letters.

    Args:
        broker: its URL.
        queue: on RabbitMQ.
        topic: on Kafka.
        settings: certificates and credentials.

    Raises:
        ConfigurationError: no broker URL, or a queue on Kafka or a topic on RabbitMQ.
    """

    broker: str
    queue: str | None = None
    topic: str | None = None
    settings: BrokerSettings = field(default_factory=BrokerSettings)

    def __post_init__(self) -> None:
        check_url("--broker", self.broker)
        wanted, other = ("--topic", "--queue") if self.on_kafka else ("--queue", "--topic")
        found, foreign = (self.topic, self.queue) if self.on_kafka else (self.queue, self.topic)
        if foreign is not None:
            raise ConfigurationError(f"{other}: this broker wants {wanted}")
        if not found:
            raise ConfigurationError(f"{wanted}: required with this broker")

    @property
    def on_kafka(self) -> bool:
        """Whether the broker is Kafka."""
        return self.broker.startswith("kafka:")


@dataclass(frozen=True, slots=True)
class Opened:
    """A letter box, what runs its flows, and where originals are read again, if the broker keeps them."""

    box: LetterBox
    run: Callable[[Flow[Any]], Any]
    originals: Originals | None = None


@contextlib.contextmanager
def opened(place: Place) -> Iterator[Opened]:
    """Connect to the broker, and give its letter box.

    Raises:
        ConfigurationError: the broker cannot be reached, its client is not installed, or there is no such
            queue or topic.
    """
    extra = "kafka" if place.on_kafka else "rabbitmq"
    try:
        opener = _kafka if place.on_kafka else _rabbitmq
        with reached("--broker"), opener(place) as found:
            yield found
    except ImportError as error:
        raise ConfigurationError(f'--broker: needs its client: install "mqauth[{extra}]"') from error


@contextlib.contextmanager
def _rabbitmq(place: Place) -> Iterator[Opened]:
    """Connect to RabbitMQ on a loop of our own, which answers heartbeats while people think."""
    queue, arguments = place.queue or "", place.settings.for_rabbitmq(place.broker)
    import aio_pika

    from mqauth.review.rabbitmq import RabbitMQLetterBox, is_unlimited

    connect = partial(aio_pika.connect, **arguments)
    with contextlib.ExitStack() as stack:
        loop = stack.enter_context(_Loop())
        connection = loop.call(connect(), _PATIENCE)
        stack.callback(loop.close, connection)
        unlimited = loop.call(is_unlimited(connection, queue), _PATIENCE)
        box = RabbitMQLetterBox(connection, queue, connect=connect, unlimited=unlimited)
        stack.callback(lambda: loop.close(box.connection))
        yield Opened(box, lambda flow: loop.call(arun(flow)))


@contextlib.contextmanager
def _kafka(place: Place) -> Iterator[Opened]:
    """Connect to Kafka, and make the topic of resolutions where it is missing."""
    servers = place.broker.partition("://")[2].strip("/")
    if "?" in servers:
        raise ConfigurationError("--broker: certificates and credentials for Kafka stand in --broker-settings")
    bootstrap = {"reconnect_backoff_max_ms": _BACKOFF_MS} | place.settings.for_kafka(servers.split(","))
    import kafka

    from mqauth.review.kafka import KafkaLetterBox, create_reviewed
    from mqauth.review.kafka_records import KafkaRecords

    client: Any = kafka
    topic = place.topic or ""
    reading = bootstrap | {"group_id": None, "enable_auto_commit": False, "allow_auto_create_topics": False}
    with contextlib.ExitStack() as stack:
        admin = client.KafkaAdminClient(**bootstrap)
        stack.callback(admin.close)
        if topic not in admin.list_topics():
            raise ConfigurationError(f"--topic: there is no topic {topic}")
        create_reviewed(admin, topic)
        consumer = client.KafkaConsumer(**reading)
        stack.callback(consumer.close)
        records = client.KafkaConsumer(**reading)
        stack.callback(records.close)
        producer = client.KafkaProducer(
            **bootstrap, acks="all", enable_idempotence=False, allow_auto_create_topics=False, max_block_ms=5000,
            max_request_size=_MAX_REQUEST,
        )  # fmt: skip
        stack.callback(producer.close)
        yield Opened(KafkaLetterBox(consumer, producer, topic), run, KafkaRecords(records))


class _Loop:
    """An event loop on a thread of its own."""

    def __enter__(self) -> _Loop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE)
        self._loop.close()

    def close(self, connection: Any) -> None:
        """Close a connection, if it still stands."""
        if not connection.is_closed:
            with contextlib.suppress(OSError, TimeoutError):
                self.call(connection.close(), _PATIENCE)

    def call(self, work: Coroutine[Any, Any, R], seconds: float | None = None) -> R:
        """Run a coroutine to its end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(seconds)
