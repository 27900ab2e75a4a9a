"""What each further client does on its broker by the same words: the demo, and the benchmark."""

from __future__ import annotations

import json

import pytest

from integration.benchmarks.client import aiokafka, confluent, confluent_aio, pika
from integration.benchmarks.client.contenders import Effort
from integration.services import Kafka, RabbitMQ
from mqauth import cli

pytestmark = pytest.mark.slow

CLIENTS = {
    "pika": pika,
    "confluent": confluent,
    "confluent+aio": confluent_aio,
    "aiokafka": aiokafka,
}
OURS = ["bare", "message", "batch", "carried"]


@pytest.fixture(params=CLIENTS)
def client(request: pytest.FixtureRequest) -> str:
    """The name of each client, which is a scheme of the demo's."""
    return str(request.param)


@pytest.fixture
def broker(client: str, request: pytest.FixtureRequest) -> RabbitMQ | Kafka:
    """Its broker."""
    service: RabbitMQ | Kafka = request.getfixturevalue(
        "rabbitmq" if client == "pika" else "kafka"
    )
    return service


def test_demo(
    client: str, broker: RabbitMQ | Kafka, capsys: pytest.CaptureFixture[str]
) -> None:
    """The demo runs on this client: every attack is dead-lettered, and nothing is lost."""
    address = f"{client}://{broker.url.partition('://')[2]}"
    assert cli.main(["demo", "--json", "--broker", address]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["broker"], report["audit_chain"], report["lost"]) == (
        client,
        "intact",
        0,
    )


def test_bench(client: str, broker: RabbitMQ | Kafka) -> None:
    """The benchmark has the bare client and ours, a token for each message and in batches, and none fails."""
    effort = Effort(rounds=1, publish=64, consume=64, paced=4, paced_rounds=1)
    address = broker.url if client == "pika" else broker.url.removeprefix("kafka://")
    with CLIENTS[client].Connections(address) as connections:
        found = CLIENTS[client].measure(connections, effort)
    assert {
        name: rounds.failed for name, rounds in found.comparisons.items() if rounds.failed
    } == {}
    assert [*found.comparisons["consume"].measured] == OURS
    assert (list(found.added), found.added["bare"]) == (OURS, 0)
