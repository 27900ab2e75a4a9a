"""The services themselves: real, of the right versions, and under control."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest

from integration.services import (
    Kafka,
    NotOursError,
    NotReadyError,
    RabbitMQ,
    Redis,
    Service,
)
from integration.services.machine import docker_answers

pytestmark = pytest.mark.slow
KINDS = pytest.mark.parametrize("name", ["rabbitmq", "kafka", "redis"])
VARIABLES = {
    "rabbitmq": "MQAUTH_RABBITMQ_URL",
    "kafka": "MQAUTH_KAFKA_URL",
    "redis": "MQAUTH_REDIS_URL",
}
LAUNCH: dict[str, Callable[[], Service]] = {
    "rabbitmq": RabbitMQ.launch, "kafka": Kafka.launch, "redis": Redis.launch,
}  # fmt: skip


@pytest.fixture
def service(name: str, request: pytest.FixtureRequest) -> Service:
    """The session's service of that name, if it is ours to stop."""
    found = request.getfixturevalue(name)
    assert isinstance(found, Service)
    return _ours(found)


def _ours(service: Service) -> Service:
    if not service.ours:
        pytest.skip(f"needs a server of its own to stop; this one is {service.origin}")
    return service


def _refused(url: str) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection(
            (parts.hostname or "", parts.port or 0), timeout=1
        ).close()
    except OSError:
        return True
    return False


@KINDS
def test_paused_is_silent_and_resumed_answers(service: Service) -> None:
    """A paused server lets a probe time out with its port open; a resumed one answers."""
    service.pause()
    with pytest.raises(NotReadyError, match="timed out"):
        service.probe(timeout=0.3)
    service.resume()
    assert service.probe()


@pytest.mark.parametrize("name", ["redis"])
def test_stopped_or_killed_refuses_and_started_answers_on_its_port(
    service: Service,
) -> None:
    """A killed server, and one that is stopped while it is paused, refuses connections; both come back.

    The same control ends each service; what RabbitMQ and Kafka do about it is in the chaos table.
    """
    service.kill()
    assert _refused(service.url)
    with pytest.raises(NotReadyError):
        service.probe(timeout=0.3)
    service.start()
    assert service.probe()
    service.pause()
    service.stop()
    service.stop()
    assert _refused(service.url)
    service.start()
    assert service.probe()


@pytest.mark.parametrize("name", ["redis"])
def test_closed_leaves_nothing(
    name: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second instance runs beside the first on a port of its own, and nothing of it is left after close."""
    first = request.getfixturevalue(name)
    monkeypatch.delenv(VARIABLES[name], raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    with LAUNCH[name]() as second:
        assert second.url != first.url
        assert second.probe()
    assert second.control.ended()
    assert _refused(second.url)
    assert not list(tmp_path.iterdir())
    assert not getattr(second.control, "folder", tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["rabbitmq", "redis"])
def test_a_killed_run_leaves_no_server(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that dies by SIGKILL, with no chance to clean up, takes its servers with it."""
    if docker_answers():
        pytest.skip("containers outlive the process that started them")
    monkeypatch.delenv(VARIABLES[name], raising=False)
    kind = LAUNCH[name].__self__.__name__  # type: ignore[attr-defined]
    script = f"from integration.services import {kind} as k; print(k.launch().url, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as run:  # fmt: skip
        assert run.stdout is not None
        url = run.stdout.readline().strip()
        assert not _refused(url)
        run.kill()
    deadline = time.monotonic() + 20
    while not _refused(url):
        assert time.monotonic() < deadline, f"{url} still answers"


@KINDS
def test_a_server_given_by_its_url_is_used_and_left_alone(
    name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A URL in the environment is taken as it is; stopping that server is refused, its variable named."""
    first = request.getfixturevalue(name)
    monkeypatch.setenv(VARIABLES[name], first.url)
    with LAUNCH[name]() as given:
        assert given.url == first.url
        with pytest.raises(NotOursError, match=VARIABLES[name]):
            given.stop()
    assert first.probe()


async def test_the_broker_stamps_what_it_takes(rabbitmq: RabbitMQ) -> None:
    """The configuration that Docker Compose gives it overwrites a publisher's timestamp, here of the year 1970."""
    async with await aio_pika.connect(rabbitmq.url) as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await channel.default_exchange.publish(
            aio_pika.Message(b"", timestamp=1), routing_key=queue.name
        )
        received = await queue.get(timeout=10)
    assert received is not None
    assert received.timestamp is not None
    assert received.timestamp.year > 2000
