"""Health while a key server is really down: the state names what is gone.

The minute after which a consumer counts as stalled is a second here. Everything else is as it is in service.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.client_bench import ClientBench
from integration.every_client import CLIENTS
from integration.keyserver import KeyServer
from mqauth import JWKS
from mqauth.delivery import health as shape
from mqauth.delivery.health import State
from mqauth.errors import Cause
from mqauth.judging.verifier import Issuer
from mqauth.testing.forge import ISSUER
from mqauth.testing.stage_kafka import wait_until

SOON = 1.0


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count as stalled after a second."""
    monkeypatch.setattr(shape, "STALLED_AFTER", SOON)


@pytest.fixture
def keys() -> Iterator[KeyServer]:
    """A key server that refuses connections."""
    with KeyServer() as server:
        server.down()
        yield server


@pytest.fixture
def bench(
    client: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[ClientBench]:
    """A bench of a client's broker, which a test may stop."""
    bench = ClientBench(
        request.getfixturevalue(f"own_{client.partition(' ')[0]}"), tmp_path
    )
    with bench.ending:
        yield bench


@pytest.mark.parametrize("client", ["rabbitmq aio-pika", "kafka kafka-python"])
def test_a_consumer_without_its_key_server(
    client: str, bench: ClientBench, keys: KeyServer
) -> None:
    """A message waits, health is stalled and names the address; the server back, it is handled."""
    bench.send(b"honest")
    with JWKS(keys.url, unsafe_http_loopback=True, wait=0.2, timeout=1) as jwks:
        guard = bench.guard(
            verifier=bench.forge.verifier(keys={ISSUER: Issuer(keys=jwks)})
        )
        with CLIENTS[client](bench.wiring(guard=guard)) as running:
            health: Any = running.health
            wait_until(lambda: health().state is State.STALLED)
            assert health().cause is Cause.KEYS_UNAVAILABLE
            assert f"127.0.0.1:{keys.port}" in "; ".join(health().reasons)
            assert bench.handled == []
            keys.serve([bench.forge.key])
            keys.up()
            wait_until(lambda: health().state is State.OK)
    assert bench.handled == [b"honest"]
