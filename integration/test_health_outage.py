"""Health while a key server or a broker is really down: the probes stay good, and the state names what is gone.

The minute after which a consumer counts as stalled is a second here. Everything else is as it is in service.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pika
import pytest

from integration.client_bench import ClientBench
from integration.every_client import CLIENTS
from integration.keyserver import KeyServer
from mqauth import JWKS
from mqauth.delivery import health as shape
from mqauth.delivery import window
from mqauth.errors import Cause
from mqauth.judging.verifier import Issuer
from mqauth.telemetry.prometheus import Endpoint
from mqauth.testing.forge import ISSUER
from mqauth.testing.stage_kafka import wait_until
from mqauth.testing.stage_pika import connect
from mqauth.wire.destination import parse

SOON = 1.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count as stalled after a second."""
    monkeypatch.setattr(shape, "STALLED_AFTER", SOON)
    monkeypatch.setattr(window, "OUTAGE_AFTER", SOON)


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """An endpoint on a free port."""
    with Endpoint(0) as found:
        yield found


@pytest.fixture
def keys() -> Iterator[KeyServer]:
    """A key server that refuses connections."""
    with KeyServer() as server:
        server.down()
        yield server


def asked(endpoint: Endpoint) -> tuple[str, str]:
    """Return state and reason of the one consumer; a process that only waits is alive and ready."""
    for path in ("/live", "/ready"):
        with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}{path}") as answer:
            assert answer.status == 200
    with urllib.request.urlopen(f"http://127.0.0.1:{endpoint.port}/health") as answer:
        told = json.loads(answer.read())
    (consumer,) = told["consumers"].values()
    return told["state"], "; ".join(consumer["reasons"])


@pytest.fixture
def bench(client: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ClientBench]:
    """A bench of a client's broker, which a test may stop."""
    bench = ClientBench(request.getfixturevalue(f"own_{client.partition(' ')[0]}"), tmp_path)
    with bench.ending:
        yield bench


@pytest.mark.parametrize("client", ["rabbitmq aio-pika", "kafka kafka-python"])
def test_a_consumer_without_its_key_server(
    client: str, bench: ClientBench, keys: KeyServer, endpoint: Endpoint
) -> None:
    """A message waits, health is stalled and names the address; the server back, it is handled."""
    bench.send(b"honest")
    with JWKS(keys.url, unsafe_http_loopback=True, wait=0.2, timeout=1) as jwks:
        guard = bench.guard(verifier=bench.forge.verifier(keys={ISSUER: Issuer(keys=jwks)}))
        with CLIENTS[client](bench.wiring(guard=guard)) as running:
            health: Any = running.health
            endpoint.telemetry.watch_consumer("billing", health)
            wait_until(lambda: asked(endpoint)[0] == "stalled")
            assert health().cause is Cause.KEYS_UNAVAILABLE
            assert f"127.0.0.1:{keys.port}" in asked(endpoint)[1]
            assert bench.handled == []
            keys.serve([bench.forge.key])
            keys.up()
            wait_until(lambda: asked(endpoint) == ("ok", ""))
    assert bench.handled == [b"honest"]


@pytest.mark.slow
@pytest.mark.parametrize("client", ["rabbitmq aio-pika"])
def test_a_queue_without_its_broker(client: str, bench: ClientBench, endpoint: Endpoint) -> None:
    """RabbitMQ stopped: stalled by ``broker_unavailable``, alive and ready; started again, all is well."""
    with CLIENTS[client](bench.wiring()) as running:
        health: Any = running.health
        endpoint.telemetry.watch_consumer("billing", health)
        bench.send(b"honest")
        wait_until(lambda: bench.has_handled(1))
        bench.broker.stop()
        wait_until(lambda: asked(endpoint)[0] == "stalled")
        assert health().cause is Cause.BROKER_UNAVAILABLE
        assert "broker_unavailable" in asked(endpoint)[1]
        bench.broker.start()
        wait_until(lambda: asked(endpoint) == ("ok", ""))
        send_again(bench)
        wait_until(lambda: bench.handled == [b"honest", b"after"])


def send_again(bench: ClientBench) -> None:
    """Publish one more message once the bench is connected again."""
    with connect(bench.broker.url) as connection:
        exchange, key = parse(bench.stage.destination)[1:]
        sealed = bench.signed(b"after")
        names = {"headers": dict(sealed.headers), "message_id": sealed.properties.get("message-id")}
        connection.channel().basic_publish(exchange, key, sealed.body, pika.BasicProperties(**names))
