"""``python -m integration.peers.task_queues``: attacks on workers of task queues, bare, with an HMAC, with ours.

Each attack is mounted on a worker that takes its tasks from a real RabbitMQ, and whose tasks are pickled; it has
succeeded if the worker ran what it should not have, or decoded what nobody signed. The recipes are the usual ones:
a middleware of taskiq, an encoder of dramatiq and a serializer of kombu, each with an HMAC of the whole body.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import pickle
import sys
import tempfile
import threading
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any, Final

import celery
import dramatiq
import kombu
import pika
import taskiq_aio_pika
from celery.worker import state
from celery.worker.worker import WorkController
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from kombu import serialization
from taskiq import TaskiqMessage, TaskiqMiddleware
from taskiq.api import run_receiver_task
from taskiq.serializers import PickleSerializer

from integration.peers.__main__ import PAGE
from integration.services import RabbitMQ
from integration.task_parts import PATIENCE, Hijack
from mqauth import Allow, AuditFile, FileReplayStore, Pipeline
from mqauth.brokers import pika as wrapper
from mqauth.brokers import rabbitmq
from mqauth.integrations.celery import protect as protect_celery
from mqauth.integrations.dramatiq import protect as protect_dramatiq
from mqauth.integrations.taskiq import protect as protect_taskiq
from mqauth.testing.clock import FakeClock
from mqauth.testing.forge import SUBJECT, Forge
from mqauth.testing.loop_thread import LoopThread

RESULTS: Final = Path(__file__).with_name("task_queues.json")
BEGIN: Final = "<!-- task queues: written by python -m integration.peers.task_queues -->"
END: Final = "<!-- end of task queues -->"
FRAMEWORKS: Final = ("taskiq", "dramatiq", "Celery")
BARE, HMAC, OURS = WAYS = ("as it comes", "HMAC", "mqauth")
FAMILIES: Final = (
    "unsigned", "signed by a stranger", "a pickle, unsigned", "altered", "renamed", "to another queue", "again",
    "a day old",
)  # fmt: skip
TIMES: Final = 5
"""How often each is mounted."""
_SECRET: Final = b"a secret that the whole application has"
_DAY: Final = 86_400


def sealed(body: bytes, secret: bytes = _SECRET) -> bytes:
    """Return a body behind its HMAC."""
    return base64.b64encode(hmac.digest(secret, body, hashlib.sha256)) + b"." + body


def opened(body: bytes) -> bytes:
    """Return a body whose HMAC holds.

    Raises:
        ValueError: it does not.
    """
    _, _, inner = body.partition(b".")
    if not hmac.compare_digest(sealed(inner), body):
        raise ValueError("the HMAC does not hold")
    return inner


class Application:
    """An application of one framework with two queues at RabbitMQ, in one of the ways.

    Args:
        way: of ``WAYS``.
        url: of RabbitMQ.
        name: of its queue.
        forge: has our keys.
        secret: of the HMAC.
        ago: seconds by which our signer's clock is late.
    """

    def __init__(
        self,
        way: str,
        url: str,
        name: str,
        forge: Forge,
        *,
        secret: bytes = _SECRET,
        ago: int = 0,
    ) -> None:
        self.way, self.url, self.name, self.forge = way, url, name, forge
        self.secret = secret
        self.queues = (name, f"{name}.other")
        self.dead = f"{name}.dead"
        self.exchange = ""
        self.signer = forge.signer(clock=FakeClock(forge.clock.now() - ago))
        self.ran: Queue[tuple[str, str]] = Queue()

    def guard(self) -> Pipeline:
        """Return the pipeline of a worker."""
        folder = Path(tempfile.mkdtemp())
        places = [f"rabbitmq:{self.exchange}/{queue}" for queue in self.queues]
        return Pipeline(
            verifier=self.forge.verifier(),
            policy=Allow({SUBJECT: places}),
            replay=FileReplayStore(folder / "claims.db"),
            audit=AuditFile(folder / "audit.jsonl", fsync=False),
        )

    def task(self, name: str) -> Callable[[str], None]:
        """Return the function of a task, which notes that it ran."""

        def run(order: str) -> None:
            self.ran.put((name, order))

        return run

    def send(self, order: str, place: int = 0) -> None:
        """Send a task to one of the queues."""
        raise NotImplementedError

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run a worker that runs one task after the other."""
        raise NotImplementedError

    def around(self, hijack: Hijack) -> object:
        """Return what a body would be made of that has this in it."""
        return hijack


class Taskiq(Application):
    """One of taskiq, whose recipe is a middleware."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.exchange = self.name
        self._thread = LoopThread()

    def _broker(self, *, works: bool) -> Any:
        broker: Any = taskiq_aio_pika.AioPikaBroker(
            self.url, qos=1000, exchange=taskiq_aio_pika.Exchange(self.name),
            task_queues=[taskiq_aio_pika.Queue(name=queue) for queue in self.queues],
            dead_letter_queue=taskiq_aio_pika.Queue(name=f"{self.name}.taskiq"), label_for_routing="queue_name",
        ).with_serializer(PickleSerializer())  # fmt: skip
        broker.is_worker_process = works
        if self.way == HMAC:
            broker = broker.with_middlewares(Mac(self.secret))
        if self.way == OURS:

            async def letters() -> rabbitmq.DeadLetters:
                letters = rabbitmq.DeadLetters(
                    await broker.write_conn.channel(), self.dead
                )
                await letters.declare()
                return letters

            protect_taskiq(
                broker, guard=self.guard, dead_letters=letters, signer=self.signer
            )

        async def pack(order: str) -> None:
            self.ran.put(("pack", order))

        async def burn(order: str) -> None:
            self.ran.put(("burn", order))

        for task in (pack, burn):
            broker.register_task(task, task.__name__)
        return broker

    def send(self, order: str, place: int = 0) -> None:
        """Send a task to one of the queues."""

        async def send() -> None:
            broker = self._broker(works=False)
            await broker.startup()
            await (
                broker.find_task("pack")
                .kicker()
                .with_labels(queue_name=self.queues[place])
                .kiq(order)
            )
            await broker.shutdown()

        self._thread.call(send())

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run a worker that runs one task after the other."""

        async def begin() -> Any:
            return asyncio.create_task(
                run_receiver_task(broker, run_startup=True, max_async_tasks=1)
            )

        async def end(task: Any) -> None:
            task.cancel()
            await asyncio.wait([task])
            await broker.shutdown()

        broker = self._broker(works=True)
        task = self._thread.call(begin())
        yield
        self._thread.call(end(task))


class Mac(TaskiqMiddleware):
    """An HMAC of a task's name and arguments, in a label."""

    def __init__(self, secret: bytes) -> None:
        super().__init__()
        self._secret = secret

    def _mac(self, message: TaskiqMessage) -> str:
        text = repr((message.task_name, message.args, message.kwargs)).encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()

    def pre_send(self, message: TaskiqMessage) -> TaskiqMessage:
        """Add it."""
        message.labels["mac"] = self._mac(message)
        return message

    def pre_execute(self, message: TaskiqMessage) -> TaskiqMessage:
        """Compare it."""
        if not hmac.compare_digest(str(message.labels.get("mac")), self._mac(message)):
            raise ValueError("the HMAC does not hold")
        return message


class Dramatiq(Application):
    """One of dramatiq, whose recipe is an encoder."""

    def _broker(self) -> Any:
        broker: Any = RabbitmqBroker(url=self.url, confirm_delivery=True)
        encoder = MacEncoder() if self.way == HMAC else dramatiq.PickleEncoder()
        if isinstance(encoder, MacEncoder):
            encoder.secret = self.secret
        dramatiq.set_encoder(encoder)
        if self.way == OURS:
            protect_dramatiq(
                broker, guard=self.guard, dead_letters=self.dead, signer=self.signer
            )

        for name, queue in (
            ("pack", self.name),
            ("burn", self.name),
            ("other", self.queues[1]),
        ):
            dramatiq.actor(
                self.task(name),
                actor_name=name,
                broker=broker,
                queue_name=queue,
                max_retries=0,
            )
        return broker

    def send(self, order: str, place: int = 0) -> None:
        """Send a task to one of the queues."""
        broker = self._broker()
        broker.get_actor(("pack", "other")[place]).send(order)
        broker.close()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run a worker that runs one task after the other."""
        broker = self._broker()
        # What was sent to another queue is acked nowhere, and holds a place.
        dramatiq.worker.QUEUE_PREFETCH = 100
        worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=1)
        worker.start()
        yield
        worker.stop()
        broker.close()


class MacEncoder(dramatiq.PickleEncoder):
    """An HMAC before the body."""

    secret: bytes

    def encode(self, data: Any) -> bytes:
        """Encode a message, and add it."""
        return sealed(super().encode(data), self.secret)

    def decode(self, data: bytes) -> Any:
        """Compare it, and decode the message."""
        return super().decode(opened(data))


class Celery(Application):
    """One of Celery, whose recipe is a serializer of kombu, as paperless-ngx has one."""

    def _app(self) -> Any:
        app: Any = celery.Celery("peer", broker=self.url, set_as_current=False)
        serializer = "mac" if self.way == HMAC else "pickle"
        serialization.register(
            "mac", lambda sent: sealed(pickle.dumps(sent), self.secret),
            lambda body: pickle.loads(opened(bytes(body))),  # noqa: S301
            "application/x-mac", "binary",
        )  # fmt: skip
        app.conf.update(
            task_default_queue=self.name, task_create_missing_queues=True, worker_enable_remote_control=False,
            task_queues=[kombu.Queue(queue, routing_key=queue) for queue in self.queues],
            accept_content=[serializer], task_serializer=serializer, task_ignore_result=True,
            worker_concurrency=1, worker_prefetch_multiplier=100,
        )  # fmt: skip
        if self.way == OURS:
            protect_celery(
                app, guard=self.guard, dead_letters=self.dead, signer=self.signer
            )

        for name in ("pack", "burn"):
            app.task(self.task(name), name=name, shared=False)
        return app

    def send(self, order: str, place: int = 0) -> None:
        """Send a task to one of the queues."""
        app = self._app()
        app.tasks["pack"].apply_async((order,), queue=self.queues[place])
        app.close()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run a worker that runs one task after the other."""
        app, ready = self._app(), threading.Event()
        app.set_default()
        worker = WorkController(
            app=app, pool="threads", without_heartbeat=True, without_mingle=True, without_gossip=True,
            ready_callback=lambda _: ready.set(),
        )  # fmt: skip
        thread = threading.Thread(target=worker.start)
        thread.start()
        if not ready.wait(PATIENCE):
            raise TimeoutError
        yield
        state.should_stop = 0
        thread.join(PATIENCE)
        state.should_stop = None
        kombu.asynchronous.set_event_loop(None)
        app.close()

    def around(self, hijack: Hijack) -> object:
        """Return the arguments of a task: Celery itself fails for another body."""
        return (hijack,), {}, {}


KINDS: Final[dict[str, type[Application]]] = {
    "taskiq": Taskiq,
    "dramatiq": Dramatiq,
    "Celery": Celery,
}


class Trial:
    """All attacks on one framework in one way.

    Args:
        url: of RabbitMQ.
        kind: the framework's.
        way: of ``WAYS``.
    """

    def __init__(self, url: str, kind: type[Application], way: str) -> None:
        self._url, self._kind, self._way = url, kind, way
        self._name, self._forge = f"peer-{uuid.uuid4().hex}", Forge()
        self._app = kind(way, url, self._name, self._forge)
        self._marks = Path(tempfile.mkdtemp())

    def outcomes(self) -> dict[str, int]:
        """Return how many attacks of each family succeeded; of a family that does not fit, none is there."""
        families = [
            family
            for family in FAMILIES
            if (self._way, family) != (BARE, "signed by a stranger")
        ]
        with pika.BlockingConnection(pika.URLParameters(self._url)) as connection:
            channel = connection.channel()
            wrapper.declare_dead_letters(channel, self._app.dead)
            hostile = [
                self._hostile(channel, family, n)
                for family in families
                for n in range(TIMES)
            ]
            channel.confirm_delivery()
            # Now both queues are there.
            self._app.send("first", 1)
            for publish in hostile:
                publish()
            # What is signed for a queue runs there, after all else.
            for place in (0, 1):
                self._app.send("last", place)
            with self._app.working():
                ran = Counter[tuple[str, str]]()
                while sum(ran[task, "last"] for task in ("pack", "other")) < 2:
                    ran[self._app.ran.get(timeout=PATIENCE)] += 1
            while not self._app.ran.empty():
                ran[self._app.ran.get()] += 1
            for name in (*self._app.queues, self._app.dead):
                channel.queue_delete(name)
        return {
            family: sum(
                self._succeeded(family, f"{family}-{n}", ran) for n in range(TIMES)
            )
            for family in families
        }

    def _succeeded(self, family: str, name: str, ran: Counter[tuple[str, str]]) -> bool:
        if family == "a pickle, unsigned":
            return (self._marks / name).exists()
        if family == "renamed":
            return ran["burn", f"honest {name}"] > 0
        if family == "again":
            return ran["pack", f"honest {name}"] > 1
        if family in {"to another queue", "a day old"}:
            return ran["pack", f"honest {name}"] > 0
        return ran["pack", f"forged {name}"] > 0

    def _hostile(self, channel: Any, family: str, n: int) -> Callable[[], None]:
        """Return what publishes an attack, made of what an honest application sent."""
        name = f"{family}-{n}"
        ways = {"unsigned": BARE, "a pickle, unsigned": BARE}
        strange: dict[str, Any] = (
            {"secret": b"another"} if family == "signed by a stranger" else {}
        )
        forge = Forge() if strange else self._forge
        ago = _DAY if family == "a day old" else 0
        sender = self._kind(
            ways.get(family, self._way), self._url, self._name, forge, ago=ago, **strange
        )
        sender.send(
            f"{'forged' if family in {'unsigned', 'signed by a stranger'} else 'honest'} {name}"
        )
        # Celery does not wait for the broker.
        method, properties, body = next(
            channel.consume(self._name, auto_ack=True, inactivity_timeout=PATIENCE)
        )
        channel.cancel()
        assert method is not None
        queue = self._app.queues[family == "to another queue"]
        if family == "a pickle, unsigned":
            body = pickle.dumps(sender.around(Hijack(self._marks / name)))
        if family == "altered":
            body = body.replace(b"honest", b"forged")
        if family == "renamed":
            body = body.replace(b"pack", b"burn")
            properties.headers = {
                key: "burn" if value == "pack" else value
                for key, value in (properties.headers or {}).items()
            }

        def publish() -> None:
            for _ in range(1 + (family == "again")):
                channel.basic_publish(
                    self._app.exchange, queue, body, properties, mandatory=True
                )

        return publish


def outcomes(url: str) -> dict[str, dict[str, dict[str, int]]]:
    """Return the outcomes of each way and framework."""
    return {
        way: {name: Trial(url, KINDS[name], way).outcomes() for name in FRAMEWORKS}
        for way in WAYS
    }


def written(page: str, results: dict[str, dict[str, dict[str, int]]]) -> str:
    """Return a page with the table of these results: families that are alike, and against whom they succeeded."""
    alike = defaultdict[str, list[str]](list)
    for family in FAMILIES:
        against = []
        for way, names in results.items():
            counts = {name: found.get(family, 0) for name, found in names.items()}
            if {*counts.values()} == {TIMES}:
                against.append(way)
            elif any(counts.values()):
                against.append(
                    f"{way}: {', '.join(f'{name} {count}' for name, count in counts.items() if count)}"
                )
        alike["; ".join(against) or "none"].append(family)
    tried = sum(TIMES * len(found) for found in results[OURS].values())
    lines = [f"| of {TIMES} attacks each | all succeeded, or so many |", "|---|---|"]
    lines += [
        f"| {', '.join(families)} | {against} |" for against, families in alike.items()
    ]
    lines += [
        "",
        f"Against mqauth {sum(sum(found.values()) for found in results[OURS].values())} of {tried} succeeded.",
    ]
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    table = "\n".join(lines)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main() -> int:
    """Run the command."""
    with RabbitMQ.launch() as rabbitmq:
        results = outcomes(rabbitmq.url)
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    PAGE.write_text(written(PAGE.read_text("utf-8"), results), "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
