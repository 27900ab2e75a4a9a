"""Celery with a token on every task, as far as kombu allows, and why mqauth has no leaf for Celery (decision 21).

kombu's producer signs a task when it is encoded, and kombu's consumer verifies it before Celery's worker sees it.
A stranger's task is refused by that. The promise breaks all the same:

* A body names the tasks that come after it (``chain``, ``link``, ``chord``), and the worker signs those as itself.
  So whoever may have one task run can have every task run that the worker may publish.
* Remote control is consumed by ``kombu.pidbox``, past the verdict.
* By default a task is acked before it runs, and settled by Celery's own rules else.
* A task with an ``eta`` waits in the worker for longer than its token lives.
* The worker's loop is one thread: a message that cannot be judged yet has no place to wait.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import Queue
from types import SimpleNamespace
from typing import Any

import kombu
import kombu.pools
from celery import Celery
from celery.app.amqp import AMQP
from celery.contrib.testing.worker import start_worker
from celery.signals import setup_logging

import mqauth
from mqauth.brokers import amqp_messages
from mqauth.brokers.judge import judged
from mqauth.wire.message import Message

OPEN, CLOSED = "web", "billing"
"""The queue that the shop may use, and the one that the worker alone may use."""
_UNBOUND = ("timelimit", "stamps", "stamped_headers")
"""Headers of lists and tables, which this example leaves out."""


@dataclass
class Seen:
    """What came to pass.

    Args:
        verdicts: task, reason or ``None``, and the verified subject, of each delivery.
        executed: the tasks that were run.
    """

    verdicts: Queue[tuple[str | None, str | None, str | None]] = field(default_factory=Queue)
    executed: Queue[str] = field(default_factory=Queue)


@setup_logging.connect
def keep_logging(**_: Any) -> None:
    """Leave the program's logging as it is: with a receiver of this signal, Celery's worker changes none of it."""


def signing(signer: mqauth.Signer) -> type[kombu.Producer]:
    """Return kombu's producer that signs what it publishes."""

    class Signing(kombu.Producer):  # type: ignore[misc]
        def _publish(self, *parts: Any, **options: Any) -> Any:
            body, _, kind, coding, headers, properties, routing_key, _, _, exchange, *_ = parts
            for name in _UNBOUND:
                headers.pop(name, None)
            properties["message_id"] = amqp_messages.new_message_id()
            message = amqp_messages.published(
                _texts(properties | {"content_type": kind, "content_encoding": coding}), headers, _encoded(body),
                exchange=exchange or "", routing_key=routing_key, scalar=lambda value: value,
            )  # fmt: skip
            headers.update(header for header in signer.sign(message).headers if header[0] not in headers)
            return super()._publish(*parts, **options)

    return Signing


def verifying(guard: mqauth.Pipeline, seen: Seen) -> type[kombu.Consumer]:
    """Return kombu's consumer that gives on what was accepted, and acks the rest."""

    class Verifying(kombu.Consumer):  # type: ignore[misc]
        def _receive_callback(self, message: Any) -> Any:
            native = self.channel.message_to_python(message)
            judgement = judged(guard, _delivered(native))
            subject = judgement.verified and judgement.verified.subject
            seen.verdicts.put((native.headers.get("task"), judgement.reason, subject))
            if judgement.verified is None:
                return native.ack()
            judgement.confirm()
            native.accept = self.accept
            return self.on_message(native)

    return Verifying


def _texts(properties: dict[str, Any]) -> SimpleNamespace:
    return SimpleNamespace(**{name: properties.get(name) for name in amqp_messages.SHORT_STRINGS.values()})


def _encoded(body: str | bytes) -> bytes:
    return body.encode() if isinstance(body, str) else body


def _delivered(native: Any) -> Message:
    kind = {"content_type": native.content_type, "content_encoding": native.content_encoding}
    found, where = _texts(native.properties | kind), native.delivery_info
    found.headers = native.headers
    return amqp_messages.delivered(
        found, (), _encoded(native.body), exchange=where["exchange"], routing_key=where["routing_key"],
        redelivered=where["redelivered"], queue="tasks", scope="tasks", native=native, faults=[],
    )  # fmt: skip


def application(url: str) -> Celery:
    """Return an application with two queues."""
    app = Celery("tasks", broker=url)
    app.conf.task_queues = [kombu.Queue(name, kombu.Exchange(name), routing_key=name) for name in (OPEN, CLOSED)]
    app.conf.task_default_queue = OPEN
    app.conf.task_routes = {"refund": {"queue": CLOSED}}
    app.conf.task_ignore_result = True
    return app


@contextmanager
def worker(url: str, signer: mqauth.Signer, guard: mqauth.Pipeline) -> Iterator[Seen]:
    """Run a worker that verifies what it consumes and signs what it publishes, and yield what it sees.

    Args:
        url: of the broker.
        signer: the worker's own.
        guard: the pipeline.
    """
    seen, app = Seen(), application(url)
    for name in ("log", "refund"):
        app.task(name=name, shared=False)(_task(name, seen))
    app.amqp.__class__ = type("Amqp", (AMQP,), {"Consumer": verifying(guard, seen)})
    app.amqp._producer_pool = _pool(app, signer)
    with start_worker(app, perform_ping_check=False, pool="threads", concurrency=1):
        try:
            yield seen
        finally:
            app.control.shutdown()


def _task(name: str, seen: Seen) -> Callable[[], None]:
    def execute() -> None:
        seen.executed.put(name)

    return execute


def producing(url: str, signer: mqauth.Signer) -> Celery:
    """Return an application that signs the tasks that it sends."""
    app = application(url)
    app.amqp._producer_pool = _pool(app, signer)
    return app


def _pool(app: Celery, signer: mqauth.Signer) -> kombu.pools.ProducerPool:
    pool: Any = type("Pool", (kombu.pools.ProducerPool,), {"Producer": signing(signer)})
    return pool(kombu.pools.connections[kombu.Connection(app.conf.broker_url)], limit=2)
