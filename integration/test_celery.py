"""Celery on a real RabbitMQ: what is decoded and run, what becomes a dead letter, and who is refused."""

from __future__ import annotations

import pickle
import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Queue
from typing import Any

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
from integration.task_parts import PATIENCE, Hijack, Store, WorkerAttacks, buried
from mqauth import Allow, AuditFile, MemoryReplayStore, Pipeline
from mqauth.errors import ConfigurationError
from mqauth.integrations.celery import protect
from mqauth.judging.rollout import WEEK, Rollout, RolloutEntry, Rung
from mqauth.testing.attack_probe import Probe
from mqauth.testing.forge import NEIGHBOUR, SUBJECT, Forge


class Shop:
    """A queue at RabbitMQ, its protected worker, and what its tasks did."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.folder = folder
        self.forge = Forge()
        self.name = f"tasks-{uuid.uuid4().hex}"
        self.dead = f"{self.name}.dead"
        self.store = Store(folder / "claims.db")
        self.store.asked = threading.Event()
        self.store.renewals = Queue()
        self.audit = AuditFile(folder / "audit.jsonl")
        self.ran: Queue[Any] = Queue()
        self.failures = 0
        self.going = threading.Event()
        self.going.set()
        self.guard = self.pipeline(self.store)

    def pipeline(self, replay: Any, **settings: Any) -> Pipeline:
        """Return a pipeline for the queue."""
        settings = {"policy": Allow({SUBJECT: [f"rabbitmq:/{self.name}"]})} | settings
        return Pipeline(verifier=self.forge.verifier(), replay=replay, audit=self.audit, **settings)

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
            return self._pack(task, order, fails)

        return app

    def _pack(self, task: Any, order: Any, fails: str = "") -> Any:
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

    @contextmanager
    def working(self, **settings: Any) -> Iterator[Any]:
        """Run a protected worker, and yield it."""
        app = self.app(**settings)
        protect(app, guard=lambda: self.guard, dead_letters=self.dead, signer=self.forge.signer())
        with working(app) as worker:
            yield worker
        app.close()

    @contextmanager
    def sending(self, signer: Any = None, **settings: Any) -> Iterator[Any]:
        """Yield the task of an application that signs, by default as the shop."""
        app = protect(self.app(**settings), signer=signer or self.forge.signer())
        yield app.tasks["pack"]
        app.close()

    def run(self, count: int) -> list[Any]:
        """Return what the next tasks were given, once they have run."""
        return [self.ran.get(timeout=PATIENCE) for _ in range(count)]

    def publish(self, body: bytes, queue: str = "", properties: Any = None) -> None:
        """Publish what nobody signed."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            channel = connection.channel()
            channel.queue_declare(queue or self.name, durable=True)
            channel.basic_publish("", queue or self.name, body, properties)

    def take(self) -> Any:
        """Take a message of the queue."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            return connection.channel().basic_get(self.name, auto_ack=True)

    def buried(self, count: int) -> list[str]:
        """Return the reasons of so many dead letters, sorted, and take them."""
        return buried(self.url, self.dead, count)

    def end(self) -> None:
        """Leave nothing at the broker."""
        self.store.close()
        self.audit.close()
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            for name in (self.name, f"{self.name}.other", self.dead):
                connection.channel().queue_delete(name)


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
def shop(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Shop]:
    """Yield a shop."""
    shop = Shop(rabbitmq.url, tmp_path)
    yield shop
    shop.end()


def test_only_signed_tasks_are_decoded(shop: Shop, tmp_path: Path) -> None:
    """A pickle that nobody, or a stranger, signed is a letter, and is never decoded; a signed task runs once."""
    mark = tmp_path / "decoded"
    neighbour = shop.forge.signer(key=shop.forge.neighbour, subject=NEIGHBOUR)
    strangers = (Forge().signer(), shop.forge.signer(audience="others"), neighbour)
    unsigned = pika.BasicProperties(
        headers={"task": "pack", "id": "1", "compression": "zlib"},
        content_type="application/x-python-serialize", content_encoding="binary",
    )  # fmt: skip
    with shop.working(), shop.sending() as honest:
        for signer in strangers:
            with shop.sending(signer) as task:
                task.apply_async((Hijack(mark),), serializer="pickle", compression="zlib")
        shop.publish(pickle.dumps(Hijack(mark)), properties=unsigned)
        honest.apply_async(("honest",), serializer="pickle", compression="zlib")
        assert shop.run(1) == ["honest"]
        refused = ["audience_mismatch", "key_unknown", "producer_forbidden", "token_missing"]
        assert shop.buried(4) == refused
    assert not mark.exists()
    assert shop.ran.empty()


def test_a_task_changed_on_its_way_is_a_letter(shop: Shop) -> None:
    """Another body, another task, another queue, and a second copy: each is rejected with its reason."""
    with shop.sending() as honest:
        honest.delay("caught")
    _, properties, body = shop.take()
    renamed = pika.BasicProperties(**vars(properties) | {"headers": properties.headers | {"task": "other"}})
    other = f"{shop.name}.other"
    for queue, named, content in (
        (shop.name, properties, body),
        (shop.name, properties, body),
        (shop.name, properties, body + b" "),
        (shop.name, renamed, body),
        (other, properties, body),
    ):
        shop.publish(content, queue, named)
    queues = [kombu.Queue(name, routing_key=name) for name in (shop.name, other)]
    with shop.working(task_queues=queues):
        assert shop.run(1) == ["caught"]
        refused = ["body_mismatch", "destination_mismatch", "headers_mismatch", "replayed"]
        assert shop.buried(4) == refused
    assert shop.ran.empty()


def test_backlogs_of_two_queues(shop: Shop, caplog: pytest.LogCaptureFixture) -> None:
    """A copy in one queue has the worker give nothing of its next queue back; a quorum queue would drop it."""
    names = (shop.name, f"{shop.name}.other")
    queues = [kombu.Queue(name, routing_key=name) for name in names]
    policy = Allow({SUBJECT: [f"rabbitmq:/{name}" for name in names]})
    shop.guard = shop.pipeline(shop.store, policy=policy)
    with shop.sending(task_queues=queues) as honest:
        honest.delay(0)
        _, properties, body = shop.take()
        for _ in range(5):
            shop.publish(body, properties=properties)
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


def test_a_header_that_cannot_be_read_is_a_letter(shop: Shop) -> None:
    """A worker outlives what py-amqp cannot read, which would end each connection that it comes to."""
    shop.publish(b"", properties=pika.BasicProperties(headers={"when": Never(2026, 1, 1)}))
    with shop.working(), shop.sending() as honest:
        honest.delay("after")
        assert shop.run(1) == ["after"]
        assert shop.buried(1) == ["message_malformed"]


def test_a_retry_and_a_countdown_run(shop: Shop) -> None:
    """What waits for its time in the worker was verified before; a retry is signed anew by the worker."""
    shop.failures = 1
    with shop.working(), shop.sending() as honest:
        honest.apply_async(("late", "retry"), countdown=1)
        assert shop.run(2) == ["late", "late"]
    assert shop.ran.empty()


def test_canvas(shop: Shop) -> None:
    """The worker signs what follows a task: of a chain, a chord, a link and a link_error."""
    results = shop.folder / "results"
    results.mkdir()
    settings: dict[str, Any] = {"result_backend": f"file://{results}", "task_ignore_result": False}
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


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("away", ["claim", "confirm"])
def test_a_task_waits_for_the_store(shop: Shop, away: str, late: bool) -> None:
    """While the replay store is away a task is no letter; it runs once, and is acked once the store is back."""
    shop.store.away = away
    with (
        shop.working(task_acks_late=late, worker_concurrency=1, worker_prefetch_multiplier=1),
        shop.sending() as honest,
    ):
        honest.delay("waits")
        assert shop.store.asked.wait(PATIENCE)
        if away == "confirm":
            assert shop.run(1) == ["waits"]
        assert shop.ran.empty()
        shop.store.away = ""
        if away == "claim":
            assert shop.run(1) == ["waits"]
        # With a prefetch of 1 the next one comes once it is acked.
        honest.delay("next")
        assert shop.run(1) == ["next"]
    assert shop.take() == (None, None, None)


def test_a_task_that_is_acked_late_and_not_done_runs_again(shop: Shop) -> None:
    """A task that is rejected to come again gives its claim back, and runs once more."""
    shop.failures = 1
    with shop.working(task_acks_late=True), shop.sending() as honest:
        honest.delay("again", "requeue")
        assert shop.run(2) == ["again", "again"]
    assert shop.take() == (None, None, None)


@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
def test_a_task_outlives_its_connection(shop: Shop) -> None:
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
    assert shop.take() == (None, None, None)
    assert shop.ran.empty()


def test_unsigned_tasks_run_at_observe(shop: Shop) -> None:
    """On the first rung of the ladder a task that nobody signed runs."""
    day = datetime.now(UTC).date()
    entry = RolloutEntry(
        destinations=(f"rabbitmq:/{shop.name}",), rung=Rung.OBSERVE, since=day, until=day + timedelta(9),
        owner="team", window=WEEK,
    )  # fmt: skip
    shop.guard = shop.pipeline(shop.store, rollout=Rollout([entry]))
    with shop.working():
        plain = shop.app()
        plain.tasks["pack"].delay("unsigned")
        assert shop.run(1) == ["unsigned"]
        plain.close()
    assert shop.take() == (None, None, None)


def refused(app: Any, why: str, **given: Any) -> None:
    """Assert that an application is refused, where it is protected or as its worker starts."""
    options = {"pool": given.pop("pool", "threads"), "concurrency": 1, "hostname": "shop@here"}

    def start() -> None:
        worker = WorkController(app=protect(app, **given), **options)
        app._mqauth.start(worker)

    with pytest.raises(ConfigurationError, match=why):
        start()
    kombu.asynchronous.set_event_loop(None)


def test_what_cannot_be_protected_is_refused(shop: Shop) -> None:
    """Other brokers and pools, doors that nobody judges, a worker without a pipeline, a store in memory."""
    signer = shop.forge.signer()
    settings: dict[str, Any] = {"signer": signer, "dead_letters": shop.dead, "guard": lambda: shop.guard}
    refused(object(), "celery.Celery", signer=signer)
    refused(protect(shop.app(), signer=signer), "already", signer=signer)
    refused(shop.app(), "guard=", signer=signer)
    refused(shop.app(), "dead_letters=", signer=signer, guard=lambda: shop.guard)
    for replay in (None, MemoryReplayStore()):
        refused(shop.app(), "store on Redis", **settings | {"guard": lambda: shop.pipeline(replay)})  # noqa: B023
    refused(shop.app(worker_enable_remote_control=True), "worker_enable_remote_control", **settings)
    refused(shop.app(broker_url="memory://"), "amqp://", **settings)
    refused(shop.app(), "prefork or threads", pool="solo", **settings)
    refused(shop.app(task_queues=[kombu.Queue(shop.name, no_ack=True)]), "no_ack", **settings)
    listening = shop.app()
    listening.steps["consumer"].add(Listening)
    refused(listening, "Listening", **settings)


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
def test_results_that_others_may_have_decoded_are_refused(shop: Shop, backend: str, why: str) -> None:
    """A worker does not start, and a program sends nothing, with results that are messages, or pickled."""
    settings = {"result_backend": backend, "result_accept_content": ["json", "pickle"]}
    refused(shop.app(**settings), why, signer=shop.forge.signer(), dead_letters="x", guard=lambda: shop.guard)
    with shop.sending(**settings) as task, pytest.raises(ConfigurationError, match=why):
        task.delay("unsent")


@contextmanager
def judging(target: Any, guard: Pipeline, probe: Probe) -> Iterator[None]:
    """Take deliveries as a worker does, and give each to a probe, in place of Celery's handler."""
    app = celery.Celery("target", broker=target.url, set_as_current=False)
    queue = kombu.Queue(target.queue, no_declare=True)
    app.conf.update(
        {"worker_enable_remote_control": False, "task_queues": [queue], "worker_prefetch_multiplier": 50}
    )
    protect(app, guard=lambda: guard, dead_letters=target.dead, signer=probe.forge.signer())
    with pytest.MonkeyPatch.context() as patch:

        def handler(_consumer: Any) -> Callable[[Any], None]:
            def handle(message: Any) -> None:
                probe.handler(message.held.delivery.verified)
                message.ack()

            return handle

        patch.setattr("celery.worker.consumer.consumer.Consumer.create_task_handler", handler)
        # The stage has declared the queue, or has taken it away.
        patch.setattr("mqauth.integrations.celery.Letters.declare", lambda _letters: None)
        with working(app):
            yield
    app.close()


@pytest.mark.slow
class TestAttacks(WorkerAttacks):
    """The attack suite against what a worker is given."""

    worker = staticmethod(judging)
