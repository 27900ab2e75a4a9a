"""What ``mqauth rollout up`` asks a broker: whether what was there before the last unsigned message is settled.

The reports of consumers say what came. They cannot say what still waits, or waits again after a restart. On Kafka
it can be read: every record behind the offsets that the group has committed, up to the end of each partition. So
nothing that a sender wrote is believed, no setting of the broker is needed, and no offset is exempted.

RabbitMQ shows nobody what a queue holds. With the interceptor the reports say how old the oldest delivery of the
last minute was. Without it the queue has to have been empty, and the consumers have to have reported after that.

What ``mqauth rollout`` changes in the file is here too: one entry of ``[[rollout]]``, by tomlkit, and all else
stays as it was written.
"""

from __future__ import annotations

import contextlib
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from datetime import date
from typing import Any, Final

import tomlkit

from mqauth.check.rollout import Standing, is_accepted
from mqauth.cli.broker import rabbitmq, reached, table_of
from mqauth.config.broker import BrokerSettings
from mqauth.config.consumer_settings import RolloutSettings
from mqauth.config.kinds import URLS, is_broker_url
from mqauth.config.settings import FileSettings
from mqauth.errors import Reason, refusing, require
from mqauth.judging.observing import group_of_message
from mqauth.judging.policy import matches
from mqauth.judging.rollout import Rollout, has_token
from mqauth.wire import destination as places

PATIENCE: Final = 90.0
"""Seconds for which a group's backlog is read, a queue is watched, or the reports of a minute are waited for."""
LOOK: Final = 1.0
"""Seconds between two looks."""


def broker_for(
    destination: str, named: str | None, config: FileSettings
) -> BrokerSettings:
    """Return the broker of a destination.

    Args:
        destination: of Kafka or RabbitMQ.
        named: a URL, or a name of ``[brokers.NAME]``; by default the first of the right kind.
        config: the configuration.

    Raises:
        ConfigurationError: none is named, or it is of the other kind.
    """
    tables = (
        [config.broker, *(config.brokers or {}).values()]
        if named is None
        else [
            BrokerSettings(url=named) if is_broker_url(named) else table_of(named, config)
        ]
    )
    known = [table.unlocked() for table in tables if table is not None]
    fits = [
        each
        for each in known
        if each.url and each.url.startswith("kafka:") is places.is_kafka(destination)
    ]
    return require(
        fits[0] if fits else None,
        "what is not settled yet is to be asked for: give --broker, or say --settled once you know"
        if named is None
        else f"--broker: must be {URLS}, and of the destination's kind",
    )


# Kafka


def unread(
    topic: str,
    group: str,
    entry: RolloutSettings,
    rollout: Rollout,
    broker: BrokerSettings,
) -> str | None:
    """Return what a group has not settled and would be dead-lettered, ``None`` where there is nothing.

    Args:
        topic: a name, or a pattern: then topics count of which the group has committed an offset.
        group: the consumer group.
        entry: the entry that goes up; groups of messages that it accepts do not count.
        rollout: what may lack a token at ``enforce``, too.
        broker: is read; nothing is committed.

    Raises:
        ConfigurationError: there is no such topic.
        CommandFailed: the broker cannot be reached.
    """
    import kafka

    from mqauth.brokers.kafka import from_native

    client: Any = kafka  # its classes have no types
    with (
        reached(broker.url, user=broker.user),
        contextlib.closing(
            client.KafkaConsumer(
                **broker.for_kafka(broker.url or ""),
                group_id=group,
                enable_auto_commit=False,
                allow_auto_create_topics=False,
            )
        ) as reader,
    ):
        # which topics, and how far the group has come in each partition
        wanted = places.kafka(topic)
        names = {
            name
            for name in reader.topics()
            if name == topic or matches(wanted, places.kafka(name))
        }
        require(names, f"--broker: there is no topic {topic}")
        partitions = [
            client.TopicPartition(name, each)
            for name in names
            for each in reader.partitions_for_topic(name) or ()
        ]
        committed = {
            topic_partition: reader.committed(topic_partition)
            for topic_partition in partitions
        }
        known = {
            topic_partition.topic
            for topic_partition, offset in committed.items()
            if offset is not None
        } | {topic}
        first, ends = reader.beginning_offsets(partitions), reader.end_offsets(partitions)
        left = {
            topic_partition: (
                max(committed[topic_partition] or 0, first[topic_partition]),
                ends[topic_partition],
            )
            for topic_partition in partitions
            if topic_partition.topic in known
        }
        left = {
            topic_partition: (start, end)
            for topic_partition, (start, end) in left.items()
            if start < end
        }
        # every record from there on to the end, as it was when it was asked for
        reader.assign(list(left))
        for topic_partition, (start, _) in left.items():
            reader.seek(topic_partition, start)
        over, unsigned = time.monotonic() + PATIENCE, Counter[int]()
        while waiting := [
            topic_partition
            for topic_partition, (_, end) in left.items()
            if reader.position(topic_partition) < end
        ]:
            if time.monotonic() > over:
                return f"group {group} lags too far behind to be read in {PATIENCE:g} s: let it catch up"
            for topic_partition, records in reader.poll(timeout_ms=1000).items():
                for message in (
                    from_native(each, scope=group)
                    for each in records
                    if each.offset < left[topic_partition][1]
                ):
                    # What would be dead-lettered for want of a token, and nobody has accepted.
                    unproven = (
                        not has_token(message) and rollout.exemption(message) is None
                    )
                    if unproven and not is_accepted(
                        entry, group_of_message(message, Reason.TOKEN_MISSING.value)
                    ):
                        unsigned[topic_partition.partition] += 1
            reader.pause(
                *(
                    topic_partition
                    for topic_partition in left
                    if topic_partition not in waiting
                )
            )
    total, where = unsigned.total(), ", ".join(map(str, sorted(unsigned)))
    return (
        f"group {group} has {total:,} records without a token to settle, in partitions {where}"
        if total
        else None
    )


# RabbitMQ


def emptied(
    queue: str,
    broker: BrokerSettings,
    consumers: int,
    look: Callable[[], Standing],
    now: Callable[[], float],
) -> str | None:
    """Return why a queue may hold something old, ``None`` once it was empty and consumers reported after that.

    Args:
        queue: its name.
        broker: is asked.
        consumers: processes that have to report.
        look: returns how the entry stands by now.
        now: returns UTC seconds.

    Raises:
        ConfigurationError: there is no such queue.
        CommandFailed: the broker cannot be reached.
    """
    over = time.monotonic() + PATIENCE
    with rabbitmq(broker) as (connection, call):
        while True:
            ready, attached = call(_counted(connection, queue))
            if not ready:
                break
            if time.monotonic() > over:
                return f"queue {queue} has {ready:,} messages: let it run empty, or say --settled"
            time.sleep(LOOK)
    # what was delivered last is in a report that is written within a minute, or was at a consumer's end
    empty = now()
    while attached:
        fresh = sum(told >= empty for told in look().reported.values())
        if fresh >= consumers:
            break
        if time.monotonic() > over:
            return f"queue {queue} is empty, and {fresh} of {consumers} consumers reported since: say --settled"
        time.sleep(LOOK)
    return None


async def _counted(connection: Any, queue: str) -> tuple[int, int]:
    channel = await connection.channel()
    declared = (await channel.declare_queue(queue, passive=True)).declaration_result
    await channel.close()
    return declared.message_count or 0, declared.consumer_count or 0


Value = str | date | None


def number_of(entries: list[Mapping[str, Any]], destination: str) -> int:
    """Return the number of the entry, from 0, that lists a destination or pattern.

    Raises:
        ConfigurationError: no entry lists it.
    """
    numbers = (
        number
        for number, each in enumerate(entries)
        if destination in each["destinations"]
    )
    return (
        require(next(numbers, -1) + 1, f"{destination} is in no [[rollout]] of the file")
        - 1
    )


def changed(
    text: str,
    number: int,
    destination: str | None,
    values: Mapping[str, Value],
    accepted: Mapping[str, str],
) -> str:
    """Return a text with some keys of an entry set, and others removed.

    Args:
        text: of the file.
        number: of the entry, from 0.
        destination: gets an entry of its own with this number, and what it stood in comes after that; a pattern
            that holds it stays there. ``None`` changes the entry itself.
        values: by key; ``None`` removes the key.
        accepted: what is added to the entry's table ``accepted``.
    """
    document: Any = tomlkit.parse(text)
    before = entry = document["rollout"][number]
    # Blank lines and comments behind an entry's last key belong to what comes after it.
    body, end = getattr(entry.value, "body", []), []
    while body and body[-1][0] is None:
        end.append(body.pop())
    if destination is not None and list(before["destinations"]) != [destination]:
        entry = deepcopy(before)
        entry["destinations"] = [destination]
        if destination in before["destinations"]:
            before["destinations"].remove(destination)
    for key, value in values.items():
        if value is None:
            entry.pop(key, None)
        else:
            entry[key] = value
    for key, why in accepted.items():
        if "accepted" in entry:
            entry["accepted"][key] = why
        else:
            entry.append(tomlkit.key(["accepted", key]), why)
    if entry is not before:
        entry.add(tomlkit.nl())
        document["rollout"].insert(number, entry)
    body.extend(reversed(end))
    # The text says what the document holds.
    form = "the entry cannot be changed: write it as [[rollout]] with a key a line"
    changed_text = str(tomlkit.dumps(document))
    with refusing(ValueError, form):
        require(tomllib.loads(changed_text) == document.unwrap(), form)
    return changed_text
