"""A worker process of a task queue that ends on SIGTERM; ``TaskOrders`` says what it does, by the environment.

A framework's own command imports its application from here: ``celery -A integration.task_victim:celery worker``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from integration.forked import ROOT
from mqauth import Allow, AuditFile, Issuer, Pipeline, Verifier
from mqauth.brokers import rabbitmq
from mqauth.signer import Signer
from mqauth.stores.redis import RedisReplayStore
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT, Forge
from mqauth.wire.jwk import load_key_set

_VARIABLE: Final = "MQAUTH_TASK_ORDERS"


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskOrders:
    """What a worker is to do.

    Args:
        framework: a key of ``BROKERS``.
        url: of RabbitMQ.
        queue: of the tasks.
        redis: URL of the replay store.
        keys: file of the issuer's public keys.
        folder: of the audit files, and of ``handled``, to which each task adds a line.
        work: seconds that a task takes.
        lease: seconds of a claim.
        settings: of Celery.
        more: words of the command.
        dies: of so many tasks one kills its process, before it is written down, when it first runs; 0 for none.
        bare: whether nothing is protected.
    """

    framework: str
    url: str
    queue: str
    redis: str
    keys: str
    folder: str
    work: float = 0.05
    lease: float = 600
    settings: dict[str, Any] = field(default_factory=dict)
    more: tuple[str, ...] = ()
    dies: int = 0
    bare: bool = False

    @property
    def dead(self) -> str:
        """The queue of dead letters."""
        return f"{self.queue}.dead"

    def process(self, **settings: Any) -> subprocess.Popen[bytes]:
        """Start a worker; the settings are those of ``Popen``."""
        variables = os.environ | {
            _VARIABLE: json.dumps(asdict(self)),
            "C_FORCE_ROOT": "1",
        }
        command = [sys.executable, *WORDS[self.framework], *self.more]
        return subprocess.Popen(command, cwd=ROOT, env=variables, **settings)

    def pipeline(self) -> Pipeline:
        """Return what a process of the worker judges by."""
        places = [f"rabbitmq:/{self.queue}", f"rabbitmq:{self.queue}/{self.queue}"]
        return Pipeline(
            verifier=Verifier(
                keys={ISSUER: Issuer(keys=load_key_set(Path(self.keys).read_bytes()))},
                audience=AUDIENCE,
            ),
            policy=Allow({SUBJECT: places}),
            replay=RedisReplayStore.from_url(self.redis, timeout=1, namespace=self.queue),
            audit=AuditFile(
                Path(self.folder) / f"audit-{os.getpid()}.jsonl", fsync=False
            ),
            lease=self.lease,
        )

    def task(self) -> Callable[[int], None]:
        """Return a plain function that writes a task down, and works."""

        def pack(order: int) -> None:
            mark = Path(self.folder) / f"died-{order}"
            if self.dies and order % self.dies == 0 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            with (Path(self.folder) / "handled").open("ab", buffering=0) as file:
                file.write(b"%d\n" % order)
            time.sleep(self.work)

        return pack


def celery_app(orders: TaskOrders, signer: Signer) -> Any:
    """Return an application of Celery; its task is ``pack``."""
    from celery import Celery

    from mqauth.integrations.celery import protect

    app = Celery("shop", broker=orders.url, set_as_current=False)
    app.conf.update(
        {
            "task_default_queue": orders.queue,
            "task_ignore_result": True,
            "worker_enable_remote_control": False,
            "task_acks_late": True,
            **orders.settings,
        }
    )
    app.task(orders.task(), name="pack", shared=False)
    if not orders.bare:
        protect(app, signer=signer, guard=orders.pipeline, dead_letters=orders.dead)
    return app


def dramatiq_broker(orders: TaskOrders, signer: Signer) -> Any:
    """Return a broker of dramatiq; its actor is ``pack``."""
    from dramatiq import Actor
    from dramatiq.brokers.rabbitmq import RabbitmqBroker

    from mqauth.integrations.dramatiq import protect

    broker = RabbitmqBroker(url=orders.url, confirm_delivery=True)
    if not orders.bare:
        protect(broker, signer=signer, guard=orders.pipeline, dead_letters=orders.dead)
    settings: Any = {"actor_name": "pack", "queue_name": orders.queue, "priority": 0}
    broker.declare_actor(Actor(orders.task(), broker=broker, options={}, **settings))
    return broker


def taskiq_broker(orders: TaskOrders, signer: Signer) -> Any:
    """Return a broker of taskiq; its task is ``pack``."""
    from taskiq_aio_pika import AioPikaBroker, Exchange, Queue

    from mqauth.integrations.taskiq import protect

    async def letters() -> rabbitmq.DeadLetters:
        made = rabbitmq.DeadLetters(await broker.write_conn.channel(), orders.dead)
        await made.declare()
        return made

    broker: Any = AioPikaBroker(
        orders.url,
        exchange=Exchange(name=orders.queue),
        task_queues=[Queue(name=orders.queue, routing_key=orders.queue)],
        dead_letter_queue=Queue(name=f"{orders.queue}.XQ"),
    )
    broker.task("pack")(orders.task())
    if not orders.bare:
        protect(broker, signer=signer, guard=orders.pipeline, dead_letters=letters)
    return broker


BROKERS: Final[dict[str, Callable[[TaskOrders, Signer], Any]]] = {
    "celery": celery_app,
    "dramatiq": dramatiq_broker,
    "taskiq": taskiq_broker,
}
WORDS: Final = {
    "celery": ["-m", "celery", "-A", "integration.task_victim:made", "worker", "-c", "2"],
    "dramatiq": ["-m", "dramatiq", "integration.task_victim:made", "-p", "2", "-t", "2"],
    "taskiq": ["-m", "taskiq", "worker", "integration.task_victim:made", "-w", "2"],
}
"""What starts a worker of a framework."""

if _VARIABLE in os.environ:
    _ORDERS: Final = TaskOrders(**json.loads(os.environ[_VARIABLE]))
    made: Any = BROKERS[_ORDERS.framework](_ORDERS, Forge().signer())
