"""A plugin for pytest: what a framework's own tests make of its broker class is protected."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mqauth import AuditFile, FileReplayStore, Pipeline
from mqauth.brokers import rabbitmq
from mqauth.judging.policy import Decision
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until

FRAMEWORK = os.environ["MQAUTH_FRAMEWORK"]
URL = os.environ["MQAUTH_FRAMEWORK_URL"]
FORGE = Forge()
LETTERS = "mqauth.dead"


@cache
def guard() -> Pipeline:
    """Return the one pipeline of this process."""
    folder = Path(tempfile.mkdtemp())
    return Pipeline(
        verifier=FORGE.verifier(),
        policy=SimpleNamespace(version="all", decide=lambda _verified: Decision.ALLOW),
        replay=FileReplayStore(folder / "claims.db"),
        audit=AuditFile(folder / "audit.jsonl", fsync=False),
    )


def _dramatiq() -> None:
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    from mqauth.integrations.dramatiq import protect

    kind: Any = RabbitmqBroker
    make = kind.__init__

    def made(broker: Any, *arguments: Any, **options: Any) -> None:
        make(broker, *arguments, **options)
        protect(broker, guard=guard, dead_letters=LETTERS, signer=FORGE.signer())

    kind.__init__ = made


def _taskiq() -> None:
    from taskiq_aio_pika import AioPikaBroker

    from mqauth.integrations.taskiq import protect

    kind: Any = AioPikaBroker
    make = kind.__init__

    def made(broker: Any, *arguments: Any, **options: Any) -> None:
        async def letters() -> rabbitmq.DeadLetters:
            letters = rabbitmq.DeadLetters(await broker.write_conn.channel(), LETTERS)
            await letters.declare()
            return letters

        make(broker, *arguments, **options)
        protect(broker, guard=guard, dead_letters=letters, signer=FORGE.signer())

    kind.__init__ = made


def _celery() -> None:
    from celery.contrib.testing import app as testing
    from celery.contrib.testing import manager
    from celery.worker import state

    from mqauth.integrations.celery import protect

    # What these ask by remote control, which is refused; the worker is in this process.
    def wait_until_idle(_manager: Any) -> None:
        wait_until(lambda: not state.reserved_requests)

    def inspect(_manager: Any) -> Any:
        return SimpleNamespace(ping=lambda: {"worker": {"ok": "pong"}})

    make: Any = testing.TestApp

    def made(*arguments: Any, **options: Any) -> Any:
        app = make(*arguments, **options)
        app.conf.update(
            worker_enable_remote_control=False, result_serializer="json", result_accept_content=["json"]
        )
        return protect(app, guard=guard, dead_letters=LETTERS, signer=FORGE.signer())

    testing.TestApp = made
    kind: Any = manager.Manager
    kind.wait_until_idle, kind.inspect = wait_until_idle, inspect


def _kombu() -> None:
    from mqauth.integrations.celery_kombu import read_all_headers

    # All that the adapter changes for kombu; its producers and consumers are classes of their own.
    read_all_headers()


@pytest.fixture
def rabbitmq_broker() -> Iterator[Any]:
    """A broker of dramatiq, as its tests make it."""
    import dramatiq
    import pika
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    credentials = pika.credentials.PlainCredentials("guest", "guest")
    broker: Any = RabbitmqBroker(host="127.0.0.1", max_priority=10, credentials=credentials, confirm_delivery=True)
    broker.emit_after("process_boot")
    dramatiq.set_broker(broker)
    yield broker
    broker.flush_all()
    broker.emit_before("process_stop")
    broker.close()


@pytest.fixture
def rabbitmq_worker(rabbitmq_broker: Any) -> Iterator[Any]:
    """A worker of dramatiq, as its tests make it."""
    import dramatiq

    worker = dramatiq.Worker(rabbitmq_broker, worker_threads=32)
    worker.start()
    yield worker
    worker.stop()


if FRAMEWORK == "dramatiq":
    import pika

    # Its tests name the default port.
    pika.connection.Parameters.DEFAULT_PORT = pika.URLParameters(URL).port
if not os.environ.get("MQAUTH_FRAMEWORK_BARE"):
    {"dramatiq": _dramatiq, "taskiq": _taskiq, "celery": _celery, "kombu": _kombu}[FRAMEWORK]()
