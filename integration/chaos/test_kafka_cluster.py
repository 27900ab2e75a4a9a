"""Rows of the chaos table on a Kafka cluster of three, one of which dies."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kafka as kafka_python
import pytest

from integration.chaos.count import Count
from integration.chaos.kafka_scene import Scene, scene, until
from integration.services import Redis
from integration.services.kafka_cluster import KafkaCluster
from mqauth import Verified
from mqauth.brokers import kafka

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
Report = Callable[[Count], None]
PATIENCE = 120.0
_PYTHON: Any = kafka_python


@pytest.fixture(scope="module")
def cluster() -> Iterator[KafkaCluster]:
    """Three brokers; each topic has three replicas, and two of them confirm."""
    with KafkaCluster.launch() as cluster:
        yield cluster


def test_broker_killed(cluster: KafkaCluster, redis: Redis, tmp_path: Path, report: Report) -> None:
    """The broker dies that leads a partition, under `acks=all`: a patient producer and a consumer go on."""
    with scene(cluster.url, tmp_path) as row:
        client = row.keep(_PYTHON.KafkaProducer(bootstrap_servers=row.stage.servers, acks="all"))
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
    futures: list[Any] = [producer.send(row.name, body, b"%d" % place) for place, body in enumerate(bodies)]
    for future in futures:
        future.get(timeout=PATIENCE)
