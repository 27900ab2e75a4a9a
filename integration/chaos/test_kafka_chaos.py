"""The chaos table on a real Kafka, and on a cluster of three: rebalances, resets, storms, long pauses."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import kafka as kafka_python
import pytest
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor

from integration.chaos.faults import (
    SteppingClock,
)
from integration.chaos.kafka_scene import Scene, scene
from integration.chaos.row import Count
from integration.chaos.rows import Rows
from integration.scale import nightly
from integration.services import Kafka, Redis
from integration.services.cluster import KafkaCluster
from integration.waiting import until
from mqauth import Verified
from mqauth.brokers import kafka

Report = Callable[[Count], Count]
WITHIN = 60
DAY = 86_400


@pytest.fixture
def row(kafka: Kafka, tmp_path: Path) -> Iterator[Scene]:
    """A scene with a source of two partitions whose records the broker stamps."""
    with scene(kafka.url, tmp_path) as row:
        yield row


@pytest.fixture
def short(kafka: Kafka, tmp_path: Path) -> Iterator[Scene]:
    """A scene whose tokens live a minute."""
    with scene(kafka.url, tmp_path, lifetime=60) as row:
        yield row


class TestRows(Rows):
    """What both brokers have; Kafka gives the batches in hand again."""

    in_hand = 100

    @pytest.fixture
    def row(self, own_kafka: Kafka, tmp_path: Path) -> Iterator[Scene]:
        """A scene on a broker that the row may stop."""
        with scene(own_kafka.url, tmp_path) as row:
            row.service = own_kafka
            yield row
            own_kafka.start()


@pytest.mark.parametrize(
    "assignor",
    [RangePartitionAssignor, CooperativeStickyAssignor],
    ids=["eager", "cooperative"],
)
def test_rebalance_in_the_middle(
    row: Scene, redis: Redis, report: Report, assignor: Any
) -> None:
    """A consumer that joins and leaves in the middle of a batch costs nothing but a batch handled again."""
    row.send(300)
    row.forge_some(20)
    row.send(300)
    settings = {"partition_assignment_strategy": [assignor], "max_poll_records": 100}
    begun, joined = threading.Event(), threading.Event()

    def handler(verified: Verified) -> None:
        row.handle(verified)
        begun.set()
        if len(row.handled) == 40:
            joined.wait(WITHIN)

    with row.audit_file() as audit:
        guard = row.guard(audit, row.store(redis.url))
        with row.consumer(guard, handler, client=settings) as first:
            assert begun.wait(WITHIN)
            client = row.consuming(**settings)
            with row.consumer(guard, client=client) as second:
                until(lambda: bool(client.assignment()), second)
                joined.set()
                until(lambda: len({*row.handled}) > 300, first)
            client.close()
            row.done(first)
    found = row.count(f"rebalance in the middle of a batch ({assignor.name})")
    report(found)
    assert found.handled_again <= 200  # at most the batches in hand


@pytest.mark.parametrize(("reread", "again"), [("handle", 5 * 100), ("duplicate", 0)])
def test_offset_reset_same_group(
    short: Scene,
    redis: Redis,
    report: Report,
    *,
    reread: Literal["handle", "duplicate"],
    again: int,
) -> None:
    """Read from the beginning five times, a day later: nothing honest is rejected; ``reread`` decides."""
    row, clock = short, SteppingClock()
    row.send(100)
    row.forge_some(10)
    row.copy(row.honest[:10])
    with row.audit_file() as audit:
        store = row.store(redis.url, clock=clock)
        verifier = row.verifier(max_queue_age=7 * DAY)
        guard = row.guard(audit, store, clock=clock, reread=reread, verifier=verifier)
        client = row.consuming()
        for _ in range(6):
            seen = len(row.outcomes)
            with row.consumer(guard, client=client) as consumer:
                until(lambda: len(row.outcomes) == seen + 120, consumer)  # noqa: B023 - ends within
                row.done(consumer)
            client.seek_to_beginning()
            clock.offset = DAY
    found = row.count(f"offset reset, same group, reread={reread}")
    report(found)
    assert (found.handled_again, found.letters_again) == (again, 5 * 20)
    assert len({letter.id for letter in row.letters()}) == 20


def test_offset_reset_new_group(short: Scene, redis: Redis, report: Report) -> None:
    """A group that begins at the beginning a day later handles everything once more, and copies no more."""
    row, clock = short, SteppingClock()
    bodies = row.send(100)
    with row.audit_file() as audit:
        store = row.store(redis.url, clock=clock)
        guard = row.guard(
            audit, store, clock=clock, verifier=row.verifier(max_queue_age=7 * DAY)
        )
        with row.consumer(guard) as consumer:
            row.done(consumer)
        clock.offset = DAY
        with row.consumer(guard, client={"group_id": row.group + ".new"}) as consumer:
            until(lambda: len(row.handled) == 200, consumer)
            row.copy(bodies)
            until(lambda: len(row.letters()) == 100, consumer)
    assert Counter(row.handled) == {body: 2 for body in bodies}
    found = row.count("offset reset, a new group")
    report(found)
    assert (found.handled_again, found.letters_again) == (100, 0)


HONEST = nightly(1000, otherwise=200)


def test_redelivery_storm(row: Scene, redis: Redis, report: Report) -> None:
    """Of records each delivered six times, 1,000 nightly, none is rejected; of as many copies none is handled."""
    bodies = row.send(HONEST, partition=0)
    with row.audit_file() as audit:
        guard = row.guard(audit, row.store(redis.url))
        client = row.consuming()
        for times in range(6):
            with row.consumer(guard, client=client) as consumer:
                until(lambda: len(row.handled) == HONEST * (times + 1), consumer)  # noqa: B023 - ends within
                row.done(consumer)
            client.seek(row.places[0], 0)
        row.copy(bodies, partition=1)
        client.seek_to_end(row.places[0])
        with row.consumer(guard, client=client) as consumer:
            row.done(consumer)
    found = row.count(f"{HONEST} records delivered six times, and as many copies")
    report(found)
    assert (found.handled, found.dead_lettered) == (HONEST, HONEST)
    assert (found.handled_again, found.letters_again) == (5 * HONEST, 0)


def test_long_pause_is_no_rebalance(row: Scene, own_redis: Redis, report: Report) -> None:
    """A partition that waits four times ``max_poll_interval_ms`` long is still ours, in the same generation."""
    row.send(20)
    limits = {
        "max_poll_interval_ms": 1500,
        "session_timeout_ms": 3000,
        "heartbeat_interval_ms": 300,
    }
    client = row.consuming(**limits)
    generation = client._coordinator.generation_if_stable
    with row.audit_file() as audit:
        guard = row.guard(audit, row.store(own_redis.url))
        with row.consumer(guard, client=client) as consumer:
            row.done(consumer)
            before = generation()
            own_redis.stop()
            row.send(20)
            until(
                lambda: (
                    time.time() - (consumer.health().stalled_since or time.time()) > 6
                ),
                consumer,
            )
            own_redis.start()
            row.done(consumer)
            after = generation()
    found = row.count("partitions paused for four poll intervals")
    report(found)
    assert before.member_id
    assert (after, found.duplicates) == (before, 0)


PATIENCE = 120.0
_PYTHON: Any = kafka_python


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    """Three brokers; each topic has three replicas, and two of them confirm."""
    with KafkaCluster.launch() as cluster:
        yield cluster


@pytest.mark.cluster
def test_broker_killed(
    cluster: KafkaCluster, redis: Redis, tmp_path: Path, report: Report
) -> None:
    """The broker dies that leads a partition, under `acks=all`: a patient producer and a consumer go on."""
    with scene(cluster.url, tmp_path) as row:
        client = row.keep(
            _PYTHON.KafkaProducer(bootstrap_servers=row.stage.servers, acks="all")
        )
        producer = kafka.Producer(client, row.forge.signer())
        row.forge_some(50)
        _send(producer, row, 200)
        leading, pace = cluster.leader(row.stage.admin, row.name), threading.Event()

        def slowly(verified: Verified) -> None:
            pace.wait(0.01)
            row.handle(verified)

        with row.audit_file() as audit:
            guard = row.guard(audit, row.store(redis.url))
            with row.consumer(guard, slowly, client={"max_poll_records": 50}) as consumer:
                until(lambda: len(row.handled) > 40, consumer)
                leading.kill()
                _send(producer, row, 200)
                assert cluster.leader(row.stage.admin, row.name) is not leading
                row.done(consumer, seconds=PATIENCE)
        leading.start()
        found = row.count("broker killed in a cluster, acks=all")
        report(found)
        assert found.duplicates <= 100  # at most the batches in hand


def _send(producer: kafka.Producer, row: Scene, number: int) -> None:
    """Publish honest messages once each, and wait until every one is confirmed."""
    bodies = [b"honest %d" % (len(row.honest) + n) for n in range(number)]
    row.honest += bodies
    futures: list[Any] = [
        producer.send(row.name, body, b"%d" % place) for place, body in enumerate(bodies)
    ]
    for future in futures:
        future.get(timeout=PATIENCE)
