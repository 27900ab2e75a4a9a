"""What of each framework's brokers is protected, and what is left out."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest

from mqauth import AuditFile, FileReplayStore, Pipeline
from mqauth.brokers import rabbitmq
from mqauth.judging.policy import Decision
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until

_BARE: Final = "fails without the adapter, too"
_CONTROL: Final = "asks the worker by remote control, which a protected worker refuses"
_CELERY: Final = "t/integration/test_tasks.py::test_tasks::"
_CANVAS: Final = "t/integration/test_canvas.py::test_chain::"
_ROUTING: Final = "tests/test_routing.py::TestRouting::"
_PLUGIN: Final = "the delayed-message plug-in is refused"
LEFT_OUT: Final[Mapping[str, Mapping[str, str]]] = {
    "dramatiq": {},
    "celery": {
        f"{_CELERY}test_revoked": _CONTROL,
        f"{_CELERY}test_revoke_keeps_state_of_task_started_elsewhere": _CONTROL,
        f"{_CELERY}test_revoked_by_headers_simple_canvas": _CONTROL,
        f"{_CELERY}test_revoked_by_headers_complex_canvas": _CONTROL,
        f"{_CELERY}test_revoke_by_stamped_headers_no_match": _CONTROL,
        f"{_CANVAS}test_chord_header_id_duplicated_on_rabbitmq_msg_duplication": "publishes an unsigned copy",
        "t/integration/test_tasks.py::test_trace_log_arguments": _BARE,
        # It clears its flag after it has sent, and the worker may have set it by then; alone it passes.
        "t/integration/test_tasks.py::test_task_replacement::test_replaced_task_nesting_level_0": "a race",
    },
    "kombu": {
        f"t/integration/test_py_amqp.py::test_PyAMQP{name}::test_simple_{kind}_publish_consume": _BARE
        for name in ("BasicFunctionality", "Failover")
        for kind in ("queue", "buffer")
    },
    "taskiq": {
        f"{_ROUTING}test_when_message_has_wrong_format__then_message_still_can_be_received": "nobody signs it",
        "tests/test_delay_with_plugin.py": _PLUGIN,
        **{
            f"tests/test_startup.py::TestStartup::test_when_delayed_message_exchange_plugin_{name}": _PLUGIN
            for name in (
                "enabled__broker_declares_exchange_on_startup",
                "enabled_and_custom_exchange_not_declared__broker_raise_error",
            )
        },
    },
}
"""By framework: a test, as pytest names it, and why it is not run."""


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
            worker_enable_remote_control=False,
            result_serializer="json",
            result_accept_content=["json"],
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
    broker: Any = RabbitmqBroker(
        host="127.0.0.1", max_priority=10, credentials=credentials, confirm_delivery=True
    )
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
    {"dramatiq": _dramatiq, "taskiq": _taskiq, "celery": _celery, "kombu": _kombu}[
        FRAMEWORK
    ]()
