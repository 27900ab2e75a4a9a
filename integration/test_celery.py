"""Celery on a real RabbitMQ: what is decoded and run, what becomes a dead letter, and who is refused."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import celery
import kombu
import kombu.asynchronous
import pika
import pytest
from celery import chain, chord, group
from celery.exceptions import Reject
from celery.worker import state
from celery.worker.worker import WorkController

from integration.services import RabbitMQ
from integration.task_parts import PATIENCE, Shop, TaskContract, WorkerAttacks
from mqauth import Allow, Pipeline
from mqauth.errors import ConfigurationError
from mqauth.integrations.celery import protect
from mqauth.testing.attack_probe import Probe
from mqauth.testing.forge import SUBJECT


class CeleryShop(Shop):
    """A queue of Celery's."""

    beside = (".other",)
    task_header = "task"
    unsigned = pika.BasicProperties(
        headers={"task": "pack", "id": "1", "compression": "zlib"},
        content_type="application/x-python-serialize", content_encoding="binary",
    )  # fmt: skip
    one_at_a_time: ClassVar = {"worker_concurrency": 1, "worker_prefetch_multiplier": 1}

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        self.going = threading.Event()
        self.going.set()
        self.queues = [
            kombu.Queue(name, routing_key=name)
            for name in (self.name, f"{self.name}.other")
        ]
        self.with_other = {"task_queues": self.queues}

    def app(self, **settings: Any) -> Any:
        """Return an application of the shop that is not protected yet."""
        app = celery.Celery("shop", broker=self.url, set_as_current=False)
        app.conf.update(
            {
                "task_default_queue": self.name,
                "task_create_missing_queues": True,
                "worker_enable_remote_control": False,
                "accept_content": ["json", "pickle"],
                "result_accept_content": ["json"],
                "task_ignore_result": True,
                "worker_concurrency": 2,
                **settings,
            }
        )

        @app.task(name="pack", bind=True, shared=False, max_retries=5)
        def pack(task: Any, order: Any, fails: str = "") -> Any:
            self.ran.put(order)
            assert self.going.wait(PATIENCE)
            if self.failures:
                self.failures -= 1
                if fails == "retry":
                    raise task.retry(countdown=0)
                if fails == "requeue":
                    raise Reject("later", requeue=True)
                raise ValueError("bad")
            return order

        return app

    @contextmanager
    def working(self, **settings: Any) -> Iterator[Any]:
        """Run a protected worker, and yield it."""
        app = self.app(**settings)
        protect(
            app,
            guard=lambda: self.guard,
            dead_letters=self.dead,
            signer=self.forge.signer(),
        )
        with working(app) as worker:
            yield worker
        app.close()

    @contextmanager
    def sending(self, signer: Any = None, **settings: Any) -> Iterator[Any]:
        """Yield the task of an application that signs, by default as the shop."""
        app = self.app(**settings)
        if signer is not False:
            protect(app, signer=signer or self.forge.signer())
        yield app.tasks["pack"]
        app.close()

    def send(self, task: Any, order: Any) -> None:
        """Send a task, pickled."""
        task.apply_async((order,), serializer="pickle", compression="zlib")

    def refused(
        self, why: str, *, app: Any = None, pool: str = "threads", **given: Any
    ) -> None:
        """Assert that an application is refused, where it is protected or as its worker starts."""

        def start() -> None:
            protected = protect(app or self.app(), **given)
            worker = WorkController(
                app=protected, pool=pool, concurrency=1, hostname="shop@here"
            )
            protected._mqauth.start(worker)

        with pytest.raises(ConfigurationError, match=why):
            start()
        kombu.asynchronous.set_event_loop(None)


@contextmanager
def working(app: Any) -> Iterator[Any]:
    """Run a worker with threads, and stop it as SIGTERM does."""
    ready = threading.Event()
    # The pool's threads look for their application there.
    app.set_default()
    worker = WorkController(
        app=app, pool="threads", hostname="shop@here", without_heartbeat=True,
        ready_callback=lambda _: ready.set(),
    )  # fmt: skip
    thread = threading.Thread(target=worker.start)
    thread.start()
    try:
        assert ready.wait(PATIENCE)
        yield worker
    finally:
        state.should_stop = 0
        thread.join(PATIENCE)
        state.should_stop = None
        # The next worker of this process has another timer.
        kombu.asynchronous.set_event_loop(None)


@pytest.fixture
def shop(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[CeleryShop]:
    """Yield a shop."""
    with ExitStack() as undo:
        shop = CeleryShop(rabbitmq.url, tmp_path)
        undo.callback(shop.end)
        yield shop


class TestTasks(TaskContract):
    """Tasks of Celery, acked before they run or after."""

    @pytest.mark.parametrize("late", [False, True])
    @pytest.mark.parametrize("away", ["claim", "confirm"])
    def test_a_task_waits_for_the_store(
        self, shop: CeleryShop, away: str, late: bool
    ) -> None:
        """While the replay store is away a task is no letter; it runs once, and is acked after that."""
        shop.one_at_a_time = CeleryShop.one_at_a_time | {"task_acks_late": late}
        super().test_a_task_waits_for_the_store(shop, away)


def test_backlogs_of_two_queues(
    shop: CeleryShop, caplog: pytest.LogCaptureFixture
) -> None:
    """A copy in one queue has the worker give nothing of its next queue back; a quorum queue would drop it."""
    names = (shop.name, f"{shop.name}.other")
    queues, policy = (
        shop.queues,
        Allow({SUBJECT: [f"rabbitmq:/{name}" for name in names]}),
    )
    shop.guard = shop.pipeline(shop.store, policy=policy)
    with shop.sending(task_queues=queues) as honest:
        honest.delay(0)
        properties, body = shop.take()
        for _ in range(5):
            shop.publish(body, properties)
        for number in range(1, 20):
            honest.apply_async((number,), queue=names[1])
    with shop.working(task_queues=queues):
        assert sorted(shop.run(20)) == [*range(20)]
        assert shop.buried(4) == ["replayed"] * 4
    assert "having no callbacks" not in caplog.text


class Never(datetime):
    """A time that no year has, which py-amqp cannot read."""

    def utctimetuple(self) -> Any:
        """Return it."""
        return (1970, 1, 10**9, 0, 0, 0)


def test_a_header_that_cannot_be_read_is_a_letter(shop: CeleryShop) -> None:
    """A worker outlives what py-amqp cannot read, which would end each connection that it comes to."""
    with shop.working(), shop.sending() as honest:
        # The queue is there by now.
        shop.publish(b"", pika.BasicProperties(headers={"when": Never(2026, 1, 1)}))
        honest.delay("after")
        assert shop.run(1) == ["after"]
        assert shop.buried(1) == ["message_malformed"]


def test_a_retry_and_a_countdown_run(shop: CeleryShop) -> None:
    """What waits for its time in the worker was verified before; a retry is signed anew by the worker."""
    shop.failures = 1
    with shop.working(), shop.sending() as honest:
        honest.apply_async(("late", "retry"), countdown=1)
        assert shop.run(2) == ["late", "late"]
    assert shop.ran.empty()


def test_canvas(shop: CeleryShop) -> None:
    """The worker signs what follows a task: of a chain, a chord, a link and a link_error."""
    results = shop.folder / "results"
    results.mkdir()
    settings: dict[str, Any] = {
        "result_backend": f"file://{results}",
        "task_ignore_result": False,
    }
    with shop.working(**settings), shop.sending(**settings) as honest:
        chain(honest.si("first"), honest.si("second")).apply_async()
        assert shop.run(2) == ["first", "second"]
        honest.apply_async(("parent",), link=honest.si("child"))
        assert shop.run(2) == ["parent", "child"]
        chord(group(honest.si(1), honest.si(1)), honest.s()).apply_async()
        assert shop.run(3) == [1, 1, [1, 1]]
        shop.failures = 1
        honest.apply_async(("bad",), link_error=honest.si("consoled"))
        assert shop.run(2) == ["bad", "consoled"]
    assert shop.ran.empty()


def test_a_task_that_is_acked_late_and_not_done_runs_again(shop: CeleryShop) -> None:
    """A task that is rejected to come again gives its claim back, and runs once more."""
    shop.failures = 1
    with shop.working(task_acks_late=True), shop.sending() as honest:
        honest.delay("again", "requeue")
        assert shop.run(2) == ["again", "again"]
    assert shop.take() == (None, None)


@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
def test_a_task_outlives_its_connection(shop: CeleryShop) -> None:
    """A task that runs while the connection is lost runs once: what the broker delivers again is a duplicate."""
    shop.going.clear()
    shop.guard = shop.pipeline(shop.store, lease=2)
    with shop.working(task_acks_late=True) as worker, shop.sending() as honest:
        honest.delay("long")
        honest.apply_async(("scheduled",), countdown=2)
        assert shop.run(1) == ["long"]
        with suppress(OSError):
            worker.consumer.connection.connection.sock.shutdown(socket.SHUT_RDWR)
        # Without these its lease would be over.
        for _ in range(4):
            shop.store.renewals.get(timeout=PATIENCE)
        assert shop.run(1) == ["scheduled"]
        assert shop.ran.empty()
        shop.going.set()
    assert shop.take() == (None, None)
    assert shop.ran.empty()


def test_what_cannot_be_protected_is_refused(shop: CeleryShop) -> None:
    """Other brokers and pools, and doors that nobody judges."""
    signer = shop.forge.signer()
    settings: dict[str, Any] = {
        "signer": signer,
        "dead_letters": shop.dead,
        "guard": lambda: shop.guard,
    }
    shop.refused("celery.Celery", app=object(), signer=signer)
    shop.refused("already", app=protect(shop.app(), signer=signer), signer=signer)
    shop.refused(
        "worker_enable_remote_control",
        app=shop.app(worker_enable_remote_control=True),
        **settings,
    )
    shop.refused("amqp://", app=shop.app(broker_url="memory://"), **settings)
    shop.refused("prefork or threads", pool="solo", **settings)
    shop.refused(
        "no_ack",
        app=shop.app(task_queues=[kombu.Queue(shop.name, no_ack=True)]),
        **settings,
    )
    listening = shop.app()
    listening.steps["consumer"].add(Listening)
    shop.refused("Listening", app=listening, **settings)


class Listening(celery.bootsteps.ConsumerStep):
    """A step that consumes what nobody judges."""

    def get_consumers(self, channel: Any) -> list[Any]:
        """Return none, this time."""
        return []


@pytest.mark.parametrize(
    ("backend", "why"),
    [
        ("rpc://", "result_backend"),
        ("cache+memory://", "result_backend"),
        ("file:///tmp", "result_accept_content"),
        ("redis://localhost", "result_accept_content"),
    ],
)
def test_results_that_others_may_have_decoded_are_refused(
    shop: CeleryShop, backend: str, why: str
) -> None:
    """A worker does not start, and a program sends nothing, with results that are messages, or pickled."""
    settings = {"result_backend": backend, "result_accept_content": ["json", "pickle"]}
    given = {
        "signer": shop.forge.signer(),
        "dead_letters": "x",
        "guard": lambda: shop.guard,
    }
    shop.refused(why, app=shop.app(**settings), **given)
    with shop.sending(**settings) as task, pytest.raises(ConfigurationError, match=why):
        task.delay("unsent")


@contextmanager
def judging(target: Any, guard: Pipeline, probe: Probe) -> Iterator[None]:
    """Take deliveries as a worker does, and give each to a probe, in place of Celery's handler."""
    app = celery.Celery("target", broker=target.url, set_as_current=False)
    queue = kombu.Queue(target.queue, no_declare=True)
    app.conf.update(
        {
            "worker_enable_remote_control": False,
            "task_queues": [queue],
            "worker_prefetch_multiplier": 50,
        }
    )
    protect(
        app, guard=lambda: guard, dead_letters=target.dead, signer=probe.forge.signer()
    )
    with pytest.MonkeyPatch.context() as patch:

        def handler(_consumer: Any) -> Callable[[Any], None]:
            def handle(message: Any) -> None:
                probe.handler(message.held.delivery.verified)
                message.ack()

            return handle

        patch.setattr(
            "celery.worker.consumer.consumer.Consumer.create_task_handler", handler
        )
        # The stage has declared the queue, or has taken it away.
        patch.setattr("mqauth.integrations.celery.Letters.declare", lambda _letters: None)
        with working(app):
            yield
    app.close()


@pytest.mark.slow
class TestAttacks(WorkerAttacks):
    """The attack suite against what a worker is given."""

    worker = staticmethod(judging)
