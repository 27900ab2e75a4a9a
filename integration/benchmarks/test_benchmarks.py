"""Every contender does its work on real brokers: tiny counts, nothing about time."""

from __future__ import annotations

import pytest

from integration.benchmarks import scale_kafka, storage
from integration.benchmarks.client import identity
from integration.benchmarks.client import kafka as on_kafka
from integration.benchmarks.client import rabbitmq as on_rabbitmq
from integration.benchmarks.client.contenders import BrokerResult, Effort
from integration.benchmarks.client.run import address_of
from integration.benchmarks.rivals import rivals
from integration.services import Kafka, RabbitMQ

pytestmark = pytest.mark.slow

TINY = Effort(rounds=1, publish=96, consume=192, paced=8, paced_rounds=1)
OURS = ["bare", "message", "batch", "carried"]
RIVALS = ["handwritten", "joserfc", "celery"]
IDENTITY = ["identity", "padded", "identity_batch", "padded_batch"]


def check(found: BrokerResult, contenders: list[str]) -> None:
    """Hold what was found against the contenders: each came to its end, and says what it adds."""
    for name, rounds in found.comparisons.items():
        assert rounds.failed == {}, name
        assert list(rounds.measured) == contenders
    assert found.added["bare"] == 0
    assert all(found.added[who] > 100 for who in (*OURS[1:], *RIVALS))
    # As many bytes as the identity form has, to the one or two by which the digits of an id differ.
    for direct, whole, padded in (
        ("message", "identity", "padded"),
        ("batch", "identity_batch", "padded_batch"),
    ):
        assert abs(found.added[whole] - found.added[padded]) <= 3
        assert 380 < found.added[whole] - found.added[direct] < 420
    latencies = found.comparisons["paced"].measured
    assert {
        who: [len(one.latencies) for one in rounds] for who, rounds in latencies.items()
    } == {who: [TINY.paced] for who in contenders}


def test_every_contender_on_rabbitmq(rabbitmq: RabbitMQ) -> None:
    """All contenders publish, consume and are timed on RabbitMQ, and no honest message is refused."""
    with on_rabbitmq.Connections(rabbitmq.url) as connections:
        found = on_rabbitmq.measure(
            connections, TINY, [*rivals()["rabbitmq"], *identity.makes(on_rabbitmq)]
        )
    assert list(found.comparisons) == ["publish", "consume", "paced"]
    check(found, [*OURS, "pipelined", *RIVALS, *IDENTITY])


def test_every_contender_on_kafka(kafka: Kafka) -> None:
    """All contenders publish, consume with either handler and are timed on Kafka, none refused."""
    with on_kafka.Connections(address_of(kafka.url)) as connections:
        found = on_kafka.measure(
            connections, TINY, [*rivals()["kafka"], *identity.makes(on_kafka)]
        )
    assert list(found.comparisons) == ["publish", "consume", "consume_100us", "paced"]
    check(found, [*OURS, *RIVALS, *IDENTITY])


def test_two_consumers_share_a_topic(
    kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second process takes half of the partitions, and together they handle every record."""
    monkeypatch.setattr(scale_kafka, "_RECORDS", 256)
    said: list[str] = []
    rows = scale_kafka.by_group(address_of(kafka.url), (2,), said.append)
    assert [row["consumers"] for row in rows] == [2]
    assert len(said) == 1


def test_storage(kafka: Kafka) -> None:
    """A token adds hundreds of bytes on the broker's disk, and compression takes most of them back."""
    found = storage.measure(address_of(kafka.url), 128, 0, 64)
    assert list(found) == list(storage.FORMS)
    assert found["a token each"]["none"] > found["no token"]["none"] + 400
    assert all(
        sizes["none"] > sizes["lz4"] > sizes["zstd"] > 30 for sizes in found.values()
    )
    assert found["batches of 64"]["zstd"] < found["a token each"]["zstd"]
    assert storage.table(found).count("\n") == 5
