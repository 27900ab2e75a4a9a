"""Health while a key server or a broker is really down: the probes stay good, and the state names what is gone.

The minute after which a consumer counts as stalled is a second here. Everything else is as it is in service.
"""

from __future__ import annotations

import asyncio
import json
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.keyserver import KeyServer
from integration.services import RabbitMQ
from integration.test_kafka_wrapper import Bench as LogBench
from integration.test_kafka_wrapper import make  # noqa: F401
from integration.test_rabbitmq_wrapper import Bench, _bench, bench, until  # noqa: F401
from mqauth import JWKS
from mqauth.delivery import health as shape
from mqauth.delivery import window
from mqauth.errors import Cause
from mqauth.judging.verifier import Issuer
from mqauth.telemetry.prometheus import Endpoint
from mqauth.testing.forge import ISSUER, Forge
from mqauth.testing.stage_kafka import wait_until

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


def away(keys: KeyServer, forge: Forge) -> dict[str, Any]:
    """Return the settings of a guard whose issuer's keys are on that server."""
    jwks = JWKS(keys.url, unsafe_http_loopback=True, wait=0.2, timeout=1)
    return {"verifier": forge.verifier(keys={ISSUER: Issuer(keys=jwks)})}


async def test_a_queue_without_its_key_server(bench: Bench, keys: KeyServer, endpoint: Endpoint) -> None:  # noqa: F811
    """RabbitMQ: one message waits, health is stalled and names the address; the server back, it is handled."""
    consumer = bench.consumer(guard=bench.guard(**away(keys, bench.forge)))
    endpoint.telemetry.watch_consumer("billing", consumer.health)
    async with consumer:
        await bench.publish()
        await until(lambda: asked(endpoint)[0] == "stalled")
        assert consumer.health().cause is Cause.KEYS_UNAVAILABLE
        assert f"127.0.0.1:{keys.port}" in asked(endpoint)[1]
        assert bench.handled == []
        keys.serve([bench.forge.key])
        keys.up()
        await until(lambda: asked(endpoint) == ("ok", ""))
    assert bench.handled == [b"honest"]


def test_a_log_without_its_key_server(
    make: Callable[..., LogBench],  # noqa: F811
    keys: KeyServer,
    endpoint: Endpoint,
) -> None:
    """Kafka: the partition waits, health is stalled and names the address; the server back, it goes on."""
    log = make()
    log.send(b"honest")
    consumer = log.consumer(guard=log.guard(**away(keys, log.forge)))
    endpoint.telemetry.watch_consumer("billing", consumer.health)
    running = threading.Thread(target=consumer.run)
    running.start()
    try:
        wait_until(lambda: consumer.health().state == "stalled")
        assert asked(endpoint)[0] == "stalled"
        assert f"127.0.0.1:{keys.port}" in asked(endpoint)[1]
        keys.serve([log.forge.key])
        keys.up()
        wait_until(lambda: consumer.health().state == "ok" and log.handled == [b"honest"])
    finally:
        consumer.stop()
        running.join(60)


@pytest.mark.slow
async def test_a_queue_without_its_broker(
    tmp_path: Path, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ stopped: stalled by ``broker_unavailable``, alive and ready; started again, all is well."""
    # The shared one may be somebody else's, who does not want it stopped.
    monkeypatch.delenv("MQAUTH_RABBITMQ_URL", raising=False)
    with RabbitMQ.launch() as broker:
        async with _bench(broker.url, tmp_path) as found:
            await found.letters().declare()
            consumer = found.consumer()
            endpoint.telemetry.watch_consumer("billing", consumer.health)
            async with consumer:
                await found.publish()
                await until(lambda: found.handled == [b"honest"])
                await asyncio.to_thread(broker.control.stop)
                await until(lambda: asked(endpoint)[0] == "stalled")
                assert consumer.health().cause is Cause.BROKER_UNAVAILABLE
                assert "broker_unavailable" in asked(endpoint)[1]
                await asyncio.to_thread(broker.start)
                await until(lambda: asked(endpoint) == ("ok", ""))
                await found.publish(b"after")
                await until(lambda: found.handled == [b"honest", b"after"])
