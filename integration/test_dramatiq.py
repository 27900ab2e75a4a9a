"""dramatiq on a real RabbitMQ: what is decoded and run, what becomes a dead letter, and who is refused."""

from __future__ import annotations

import pickle
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import dramatiq
import pika
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from integration.services import RabbitMQ
from integration.task_parts import PATIENCE, Hijack, Store, WorkerAttacks, buried
from mqauth import Allow, AuditFile, MemoryReplayStore, Pipeline
from mqauth.brokers import pika as wrapper
from mqauth.errors import ConfigurationError
from mqauth.integrations.dramatiq import protect
from mqauth.testing.attack_probe import Probe
from mqauth.testing.forge import NEIGHBOUR, SUBJECT, Forge


class Shop:
    """A broker's queue at RabbitMQ, its protected worker, and what its tasks did."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.forge = Forge()
        self.name = f"tasks-{uuid.uuid4().hex}"
        self.dead = f"{self.name}.dead"
        self.store = Store(folder / "claims.db")
        self.store.asked = threading.Event()
        self.audit = AuditFile(folder / "audit.jsonl")
        self.ran: Queue[Any] = Queue()
        self.failures = 0
        places = [f"rabbitmq:/{self.name}", f"rabbitmq:/{self.name}.DQ"]
        self.guard = Pipeline(
            verifier=self.forge.verifier(), policy=Allow({SUBJECT: places}), replay=self.store, audit=self.audit
        )
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            wrapper.declare_dead_letters(connection.channel(), self.dead)

    def broker(self, **settings: Any) -> Any:
        """Return a broker of the shop that is not protected yet."""
        broker = RabbitmqBroker(url=self.url, confirm_delivery=True, **settings)
        for each in broker.middleware:
            if isinstance(each, dramatiq.middleware.Retries):
                each.min_backoff = 1
        broker.declare_actor(
            dramatiq.Actor(
                self._pack, broker=broker, actor_name="pack", queue_name=self.name, priority=0,
                options={"max_retries": 2, "min_backoff": 1, "max_backoff": 1},
            )
        )  # fmt: skip
        return broker

    def _pack(self, order: Any) -> None:
        self.ran.put(order)
        if self.failures:
            self.failures -= 1
            raise ValueError("not yet")

    @contextmanager
    def working(self, broker: Any = None) -> Iterator[Any]:
        """Run a protected worker."""
        broker = self.broker() if broker is None else broker
        protect(broker, guard=lambda: self.guard, dead_letters=self.dead, signer=self.forge.signer())
        worker = dramatiq.Worker(broker, worker_timeout=100, worker_threads=2)
        worker.start()
        try:
            yield broker
        finally:
            worker.stop()
            broker.close()

    @contextmanager
    def sending(self, signer: Any = None) -> Iterator[Any]:
        """Yield the task of a broker that signs, by default as the shop."""
        broker = protect(self.broker(), signer=signer or self.forge.signer())
        yield broker.get_actor("pack")
        broker.close()

    def run(self, count: int) -> list[Any]:
        """Return what the next tasks were given, once they have run."""
        return [self.ran.get(timeout=PATIENCE) for _ in range(count)]

    def publish(self, body: bytes, queue: str = "", properties: Any = None) -> None:
        """Publish what nobody signed."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            connection.channel().basic_publish("", queue or self.name, body, properties)

    def buried(self, count: int) -> list[str]:
        """Return the reasons of so many dead letters, sorted, and take them."""
        return buried(self.url, self.dead, count)

    def end(self) -> None:
        """Leave nothing at the broker."""
        self.store.close()
        self.audit.close()
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            for name in (self.name, self.dead, f"{self.name}.DQ", f"{self.name}.XQ"):
                connection.channel().queue_delete(name)


@pytest.fixture
def shop(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Shop]:
    """Yield a shop."""
    shop = Shop(rabbitmq.url, tmp_path)
    yield shop
    shop.end()


@pytest.fixture
def pickling() -> Iterator[None]:
    """Have tasks pickled."""
    encoder = dramatiq.get_encoder()
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    yield
    dramatiq.set_encoder(encoder)


def test_only_signed_tasks_are_decoded(shop: Shop, pickling: None, tmp_path: Path) -> None:
    """A pickle that nobody, or a stranger, signed is a letter, and is never decoded; a signed task runs once."""
    mark = tmp_path / "decoded"
    neighbour = shop.forge.signer(key=shop.forge.neighbour, subject=NEIGHBOUR)
    strangers = (Forge().signer(), shop.forge.signer(audience="others"), neighbour)
    with shop.working(), shop.sending() as honest:
        for signer in strangers:
            with shop.sending(signer) as task:
                task.send(Hijack(mark))
        # The queue is there by now.
        shop.publish(pickle.dumps(Hijack(mark)))
        honest.send("honest")
        assert shop.run(1) == ["honest"]
        refused = ["audience_mismatch", "key_unknown", "producer_forbidden", "token_missing"]
        assert shop.buried(4) == refused
    assert not mark.exists()
    assert shop.ran.empty()


def test_a_task_changed_on_its_way_is_a_letter(shop: Shop) -> None:
    """Another body, another queue, and a second copy: each is rejected with its reason."""
    with shop.sending() as honest:
        honest.send("caught")
    with pika.BlockingConnection(pika.URLParameters(shop.url)) as connection:
        method, properties, body = connection.channel().basic_get(shop.name, auto_ack=True)
        assert method is not None
    for queue, other in (
        (shop.name, body),
        (shop.name, body),
        (shop.name, body + b" "),
        (f"{shop.name}.DQ", body),
    ):
        shop.publish(other, queue, properties)
    with shop.working():
        assert shop.run(1) == ["caught"]
        assert shop.buried(3) == ["body_mismatch", "destination_mismatch", "replayed"]
    assert shop.ran.empty()


def test_a_delayed_task_and_a_retry_run(shop: Shop) -> None:
    """What waits in dramatiq's delay queue is verified there, and signed anew by the worker; so is a retry."""
    shop.failures = 1
    with shop.working(), shop.sending() as honest:
        honest.send_with_options(args=("late",), delay=100)
        assert shop.run(2) == ["late", "late"]
    assert shop.ran.empty()


def test_a_pipeline_of_tasks_runs(shop: Shop) -> None:
    """The worker signs the tasks that follow."""
    with shop.working(), shop.sending() as honest:
        second = honest.message_with_options(args=("second",), pipe_ignore=True)
        dramatiq.pipeline([honest.message("first"), second], broker=honest.broker).run()
        assert shop.run(2) == ["first", "second"]


def test_a_task_that_fails_for_good_is_dramatiqs(shop: Shop) -> None:
    """Its last failure puts it into dramatiq's own queue, not among the dead letters."""
    shop.failures = 99
    with shop.working() as broker, shop.sending() as honest:
        honest.send("bad")
        assert shop.run(3) == ["bad"] * 3
        while broker.get_queue_message_counts(shop.name)[2] < 1:
            broker.connection.sleep(0.05)


@pytest.mark.parametrize("away", ["claim", "confirm"])
def test_a_task_waits_for_the_store(shop: Shop, away: str) -> None:
    """While the replay store is away a task is no letter; it runs once, and is acked once the store is back."""
    shop.store.away = away
    with shop.working() as broker, shop.sending() as honest:
        honest.send("waits")
        assert shop.store.asked.wait(PATIENCE)
        assert shop.ran.qsize() == (away == "confirm")
        shop.store.away = ""
        assert shop.run(1) == ["waits"]
        while broker.get_queue_message_counts(shop.name)[0]:
            broker.connection.sleep(0.05)
    assert shop.ran.empty()


def refused(broker: Any, why: str, **given: Any) -> None:
    """Assert that a broker is refused, where it is protected or as its worker starts."""
    with pytest.raises(ConfigurationError, match=why):
        dramatiq.Worker(protect(broker, **given)).start()


def test_what_cannot_be_protected_is_refused(shop: Shop) -> None:
    """Other brokers, a worker without a pipeline or dead letters, a store in memory, pickled results."""
    signer = shop.forge.signer()

    def guard(replay: Any) -> Callable[[], Pipeline]:
        policy = shop.forge.policy("rabbitmq:/x")
        return lambda: Pipeline(verifier=shop.forge.verifier(), policy=policy, replay=replay, audit=shop.audit)

    refused(StubBroker(), "RabbitmqBroker", signer=signer)
    refused(protect(shop.broker(), signer=signer), "already", signer=signer)
    refused(shop.broker(), "guard=", signer=signer)
    refused(shop.broker(), "dead_letters=", signer=signer, guard=guard(shop.store))
    settings: dict[str, Any] = {"signer": signer, "dead_letters": shop.dead}
    for replay in (None, MemoryReplayStore()):
        refused(shop.broker(), "store on Redis", guard=guard(replay), **settings)
    pickled = shop.broker()
    pickled.add_middleware(Results(backend=StubBackend(encoder=dramatiq.PickleEncoder())))
    refused(pickled, "pickled", guard=guard(shop.store), **settings)


@contextmanager
def worker(target: Any, guard: Pipeline, probe: Probe) -> Iterator[None]:
    """Take deliveries as a worker's consumer does, and give each to a probe, in place of decoding it."""
    broker: Any = RabbitmqBroker(url=target.url)
    broker.queues.add(target.queue)
    protect(broker, guard=lambda: guard, dead_letters=target.dead, signer=probe.forge.signer())
    with pytest.MonkeyPatch.context() as patch:
        # The stage has declared the queue, or has taken it away.
        patch.setattr("mqauth.integrations.dramatiq.declare_dead_letters", lambda *_: None)
        broker._mqauth.start(broker)
    over = threading.Event()

    def consume() -> None:
        consumer = broker.consume(target.queue, prefetch=100, timeout=50)
        while not over.is_set():
            method, _, _ = next(consumer.iterator)
            if method is not None:
                held = consumer._accepted
                probe.handler(held.delivery.verified)
                held.go_on()
                consumer.channel.basic_ack(method.delivery_tag)
        consumer.close()

    thread = threading.Thread(target=consume)
    thread.start()
    yield
    over.set()
    thread.join(PATIENCE)
    broker.close()


@pytest.mark.slow
class TestAttacks(WorkerAttacks):
    """The attack suite against what a worker is given."""

    worker = staticmethod(worker)
