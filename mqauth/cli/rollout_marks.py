"""What ``mqauth rollout up`` asks a broker: where new messages begin, and whether those before are settled.

A broker's answer counts, not this machine's clock. Kafka has end offsets and committed offsets, so both answers
are exact. RabbitMQ has no offsets: the mark is the stamp of its own interceptor on a message that is sent to find
out. It shows the messages that wait in a queue, and not those that consumers hold.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mqauth.brokers.amqp_messages import APPEND_HEADER
from mqauth.cli.broker import event_loop, reached, table_of
from mqauth.config.broker import URLS, BrokerSettings
from mqauth.config.kinds import is_broker_url
from mqauth.config.settings import FileSettings
from mqauth.errors import ConfigurationError, require
from mqauth.judging.rollout import LogMark
from mqauth.wire import destination as place

_PATIENCE: Final = 60.0
_LIE: Final = 1
"""Milliseconds that a sender claims; an interceptor that overwrites leaves nothing of it."""
Mark = float | datetime | LogMark | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """A broker that a command may ask.

    Args:
        url: where it is.
        settings: certificates and credentials.
    """

    url: str
    settings: BrokerSettings


def broker_for(destination: str, named: str | None, file: Path | None, config: FileSettings) -> Broker | None:
    """Return the broker of a destination; ``None`` where neither options nor the configuration name one.

    Args:
        destination: of Kafka or RabbitMQ.
        named: a URL, or a name of ``[brokers.NAME]``; by default the first of the right kind.
        file: of certificates and credentials, in place of the configuration's.
        config: the configuration.

    Raises:
        ConfigurationError: it is a broker of the other kind, or its settings are refused.
    """
    is_url = named is not None and is_broker_url(named)
    tables = [table_of(named, config)] if named is not None and not is_url else []
    if named is None:
        tables = [each for each in (config.broker, *(config.brokers or {}).values()) if each is not None]
    given = None if file is None else BrokerSettings.load(file)
    found = [(each.url, given or each) for each in (table.unlocked() for table in tables)]
    if is_url:
        found = [(named, given or BrokerSettings())]
    on_kafka = place.is_kafka(destination)
    fits = [Broker(url=url, settings=each) for url, each in found if url and url.startswith("kafka:") is on_kafka]
    require(fits or named is None, f"--broker: must be {URLS}, and of the destination's kind")
    return fits[0] if fits else None


def mark_of(destination: str, broker: Broker) -> str:
    """Return where new messages of a destination begin, in TOML.

    Raises:
        ConfigurationError: there is no such topic, or RabbitMQ has no interceptor that overwrites stamps.
        CommandFailed: the broker cannot be reached.
    """
    with reached(broker.url, user=broker.settings.user):
        if place.is_kafka(destination):
            return _offsets(place.parse(destination)[1], broker)
        return moment((_stamp(broker) // 1000) + 1)


def moment(seconds: float) -> str:
    """Return UTC seconds as TOML writes them."""
    return datetime.fromtimestamp(int(seconds), UTC).isoformat().replace("+00:00", "Z")


def unsettled(destination: str, broker: Broker, mark: Mark, scope: str | None) -> tuple[str | None, str | None]:
    """Return why not all before a mark is settled, ``None`` where it is; and what a reset would condemn.

    Args:
        destination: a topic; or one whose queue is the scope.
        broker: is asked.
        mark: of its entry.
        scope: the consumer group or queue.

    Raises:
        ConfigurationError: no scope is named, or the broker does not have it.
        CommandFailed: the broker cannot be reached.
    """
    scope = require(scope, "--scope: required, the consumer group or queue; or [consumer] scope; or --settled")
    with reached(broker.url, user=broker.settings.user):
        if isinstance(mark, LogMark):
            return _lag(place.parse(destination)[1], broker, mark, scope)
        return _waiting(broker, scope), None


# Kafka


@contextlib.contextmanager
def _log(broker: Broker, group: str | None) -> Iterator[Any]:
    import kafka

    client: Any = kafka  # its classes have no types
    servers = broker.url.partition("://")[2].strip("/").split(",")
    asking = client.KafkaConsumer(
        **broker.settings.for_kafka(servers), group_id=group, enable_auto_commit=False,
        allow_auto_create_topics=False,
    )  # fmt: skip
    with contextlib.closing(asking):
        yield asking


def _places(client: Any, topic: str) -> list[Any]:
    from kafka import TopicPartition

    numbers = require(client.partitions_for_topic(topic), f"--broker: there is no topic {topic}")
    return [TopicPartition(topic, number) for number in sorted(numbers)]


def _offsets(topic: str, broker: Broker) -> str:
    from mqauth.brokers.kafka import Logs

    with _log(broker, None) as client:
        ends = client.end_offsets(_places(client, topic))
        topic_id = require(Logs(client).of(topic).topic_id, f"--mark: the broker tells no id of topic {topic}")
    offsets = "".join(f', "{at.partition}" = {end}' for at, end in ends.items())
    return f'{{ topic_id = "{topic_id}"{offsets} }}'


def _lag(topic: str, broker: Broker, mark: LogMark, group: str) -> tuple[str | None, str | None]:
    with _log(broker, group) as client:
        places = [at for at in _places(client, topic) if at.partition in mark.offsets]
        first = client.beginning_offsets(places)
        done = {at: max(client.committed(at) or 0, first[at]) for at in places}
    left = sum(max(0, mark.offsets[at.partition] - done[at]) for at in places)
    kept = sum(max(0, mark.offsets[at.partition] - first[at]) for at in places)
    why = f"group {group} has {left:,} records before the mark to settle" if left else None
    note = f"{kept:,} records before the mark are in the log: an offset reset would condemn the unsigned ones"
    return why, note if kept else None


# RabbitMQ


def _stamp(broker: Broker) -> int:
    """Return when the broker takes in a message that is sent now, milliseconds by its own clock."""
    with _connected(broker) as (connection, call):
        found = call(_stamped(connection), _PATIENCE)
    if type(found) is not int or found == _LIE:
        raise ConfigurationError(
            "--mark: the broker has no message interceptor that overwrites timestamp_in_ms; set overwrite = true"
        )
    return found


async def _stamped(connection: Any) -> Any:
    import aio_pika

    channel = await connection.channel()
    queue = await channel.declare_queue(exclusive=True)
    probe = aio_pika.Message(b"", headers={APPEND_HEADER: _LIE})
    await channel.default_exchange.publish(probe, queue.name)
    found = await queue.get(no_ack=True)
    return found.headers.get(APPEND_HEADER)


def _waiting(broker: Broker, queue: str) -> str | None:
    with _connected(broker) as (connection, call):
        ready, consumers = call(_counted(connection, queue), _PATIENCE)
    if ready:
        return f"queue {queue} has {ready:,} messages: let it run empty, or say --settled"
    # RabbitMQ tells clients neither how old messages are nor what is delivered and not acked.
    held = f"queue {queue} has {consumers} consumers, which may hold messages: stop them, or say --settled"
    return held if consumers else None


async def _counted(connection: Any, queue: str) -> tuple[int, int]:
    channel = await connection.channel()
    found = (await channel.declare_queue(queue, passive=True)).declaration_result
    return found.message_count, found.consumer_count


@contextlib.contextmanager
def _connected(broker: Broker) -> Iterator[tuple[Any, Any]]:
    import aio_pika

    with event_loop() as call:
        connection = call(aio_pika.connect(**broker.settings.for_rabbitmq(broker.url)), _PATIENCE)
        try:
            yield connection, call
        finally:
            call(connection.close(), _PATIENCE)
