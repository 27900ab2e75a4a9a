"""Fixtures: one of each service for the whole session, started when it is first asked for."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from integration.services import Kafka, RabbitMQ, Redis, Service
from integration.services.keycloak import Keycloak
from integration.services.kms import LocalKms, MiniStack
from integration.services.opa import Agent
from integration.services.openbao import OpenBao
from integration.services.spire import Spire
from integration.spire_world import DOMAIN, settings

if TYPE_CHECKING:
    from _pytest.terminal import TerminalReporter

S = TypeVar("S", bound=Service)
_started: list[Service] = []


def _session(handle: S) -> Iterator[S]:
    _started.append(handle)
    with handle:
        yield handle


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ >= 4 that all tests share."""
    yield from _session(RabbitMQ.launch())


@pytest.fixture(scope="session")
def believing() -> Iterator[RabbitMQ]:
    """A RabbitMQ that leaves the time of a message as its sender wrote it."""
    line = "message_interceptors.incoming.set_header_timestamp.overwrite = false"
    yield from _session(RabbitMQ.launch(extra_config=[line]))


@pytest.fixture(scope="session")
def kafka() -> Iterator[Kafka]:
    """An Apache Kafka >= 4 that all tests share."""
    yield from _session(Kafka.launch())


@pytest.fixture(scope="session")
def redis() -> Iterator[Redis]:
    """A Redis or Valkey that all tests share."""
    yield from _session(Redis.launch())


def _ours(shared: Any, variable: str) -> Iterator[Any]:
    """Yield the shared service where it is ours, so that a test may stop it, else one more."""
    if shared.ours:
        yield shared
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(variable)
        server = type(shared).launch()
    yield from _session(server)


@pytest.fixture(scope="session")
def own_redis(redis: Redis) -> Iterator[Redis]:
    """A Redis that a test may stop or set up anew."""
    yield from _ours(redis, "MQAUTH_REDIS_URL")


@pytest.fixture(scope="session")
def own_rabbitmq(rabbitmq: RabbitMQ) -> Iterator[RabbitMQ]:
    """A RabbitMQ that a test may stop."""
    yield from _ours(rabbitmq, "MQAUTH_RABBITMQ_URL")


@pytest.fixture(scope="session")
def own_kafka(kafka: Kafka) -> Iterator[Kafka]:
    """A Kafka that a test may stop."""
    yield from _ours(kafka, "MQAUTH_KAFKA_URL")


@pytest.fixture(scope="session")
def openbao() -> Iterator[OpenBao]:
    """An OpenBao that all tests share."""
    yield from _session(OpenBao.launch())


@pytest.fixture(scope="session")
def local_kms() -> Iterator[LocalKms]:
    """A local-kms that all tests share."""
    yield from _session(LocalKms.launch())


@pytest.fixture(scope="session")
def ministack() -> Iterator[MiniStack]:
    """A MiniStack that all tests share."""
    yield from _session(MiniStack.launch())


@pytest.fixture(scope="session")
def agent() -> Iterator[Agent]:
    """An Open Policy Agent that all tests share."""
    yield from _session(Agent.launch())


@pytest.fixture(scope="session")
def spire() -> Iterator[Spire]:
    """A SPIRE server with the settings that its page tells."""
    yield from _session(Spire.launch(DOMAIN, settings()))


@pytest.fixture(scope="session")
def keycloak() -> Iterator[Keycloak]:
    """A Keycloak that all tests share; it takes a minute to start."""
    yield from _session(Keycloak.launch())


@pytest.fixture(autouse=True)
def _up_again() -> Iterator[None]:
    """Bring a service back that a test stopped, killed or paused: the next test needs it."""
    yield
    for service in _started:
        if service.ours:
            service.start()


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    """Leave tests on clusters out, unless they are asked for by `-m cluster`."""
    if "cluster" in config.option.markexpr:
        return
    left_out = [item for item in items if item.get_closest_marker("cluster")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]


@pytest.fixture(scope="session", autouse=True)
def _close_forgotten_sockets() -> None:
    """Let kafka-python's sockets close themselves; imported here, where its deprecated calls are forgiven."""
    importlib.import_module("integration.kafka_sockets").install()


def pytest_configure(config: pytest.Config) -> None:
    """Forgive kafka-python that it reads its schemas by deprecated functions."""
    config.addinivalue_line(
        "filterwarnings", "ignore:(read|open)_text is deprecated:DeprecationWarning"
    )


def pytest_keyboard_interrupt() -> None:
    """Let nothing interrupt the stopping of the services: one Ctrl-C may come here twice."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def pytest_terminal_summary(terminalreporter: TerminalReporter) -> None:
    """Tell which versions the tests ran on."""
    for service in _started:
        name = type(service).__name__
        terminalreporter.write_line(
            f"{name} {service.version} at {service.url} ({service.origin})"
        )
