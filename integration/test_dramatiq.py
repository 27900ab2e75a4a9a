"""dramatiq on a real RabbitMQ: what is decoded and run, what becomes a dead letter, and who is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dramatiq
import pika
import pytest
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.stub import StubBroker
from dramatiq.results import Results
from dramatiq.results.backends import StubBackend

from integration.services import RabbitMQ
from integration.task_parts import PATIENCE, Shop, TaskContract, WorkerAttacks
from mqauth import Pipeline
from mqauth.brokers import pika as wrapper
from mqauth.errors import ConfigurationError
from mqauth.integrations.dramatiq import protect
from mqauth.testing.attack_probe import Probe


class DramatiqShop(Shop):
    """A queue of dramatiq's, whose tasks are pickled."""

    beside = (".DQ", ".XQ")

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            wrapper.declare_dead_letters(connection.channel(), self.dead)

    def destinations(self) -> list[str]:
        """Return where tasks may be sent, the usual place first."""
        return [f"rabbitmq:/{self.name}", f"rabbitmq:/{self.name}.DQ"]

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
    def working(self, **settings: Any) -> Iterator[Any]:
        """Run a protected worker."""
        broker = self.broker(**settings)
        protect(
            broker,
            guard=lambda: self.guard,
            dead_letters=self.dead,
            signer=self.forge.signer(),
        )
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
        broker = self.broker()
        if signer is not False:
            protect(broker, signer=signer or self.forge.signer())
        yield broker.get_actor("pack")
        broker.close()

    def send(self, task: Any, order: Any) -> None:
        """Send a task."""
        task.send(order)

    def publish_elsewhere(self, body: bytes, properties: Any) -> None:
        """Publish a task to dramatiq's delay queue, which is there."""
        self.publish(body, properties, key=f"{self.name}.DQ")

    def refused(self, why: str, *, broker: Any = None, **given: Any) -> None:
        """Assert that a broker is refused, where it is protected or as its worker starts."""
        with pytest.raises(ConfigurationError, match=why):
            dramatiq.Worker(protect(broker or self.broker(), **given)).start()


@pytest.fixture
def shop(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[DramatiqShop]:
    """Yield a shop, and have tasks pickled."""
    encoder = dramatiq.get_encoder()
    dramatiq.set_encoder(dramatiq.PickleEncoder())
    shop = DramatiqShop(rabbitmq.url, tmp_path)
    yield shop
    shop.end()
    dramatiq.set_encoder(encoder)


class TestTasks(TaskContract):
    """Tasks of dramatiq."""


def test_a_delayed_task_and_a_retry_run(shop: DramatiqShop) -> None:
    """What waits in dramatiq's delay queue is verified there, and signed anew by the worker; so is a retry."""
    shop.failures = 1
    with shop.working(), shop.sending() as honest:
        honest.send_with_options(args=("late",), delay=100)
        assert shop.run(2) == ["late", "late"]
    assert shop.ran.empty()


def test_a_pipeline_of_tasks_runs(shop: DramatiqShop) -> None:
    """The worker signs the tasks that follow."""
    with shop.working(), shop.sending() as honest:
        second = honest.message_with_options(args=("second",), pipe_ignore=True)
        dramatiq.pipeline([honest.message("first"), second], broker=honest.broker).run()
        assert shop.run(2) == ["first", "second"]


def test_a_task_that_fails_for_good_is_dramatiqs(shop: DramatiqShop) -> None:
    """Its last failure puts it into dramatiq's own queue, not among the dead letters."""
    shop.failures = 99
    with shop.working() as broker, shop.sending() as honest:
        honest.send("bad")
        assert shop.run(3) == ["bad"] * 3
        while broker.get_queue_message_counts(shop.name)[2] < 1:
            broker.connection.sleep(0.05)


def test_what_cannot_be_protected_is_refused(shop: DramatiqShop) -> None:
    """Other brokers, one that is protected already, and pickled results."""
    signer = shop.forge.signer()
    shop.refused("RabbitmqBroker", broker=StubBroker(), signer=signer)
    shop.refused("already", broker=protect(shop.broker(), signer=signer), signer=signer)
    pickled = shop.broker()
    pickled.add_middleware(Results(backend=StubBackend(encoder=dramatiq.PickleEncoder())))
    shop.refused(
        "pickled",
        broker=pickled,
        signer=signer,
        dead_letters=shop.dead,
        guard=lambda: shop.guard,
    )
    waits = protect(shop.broker(), signer=signer)
    waits.add_middleware(Results(backend=StubBackend(encoder=dramatiq.PickleEncoder())))
    with pytest.raises(ConfigurationError, match="pickled"):
        waits.get_actor("pack").send(1)
    waits.close()


@contextmanager
def worker(target: Any, guard: Pipeline, probe: Probe) -> Iterator[None]:
    """Take deliveries as a worker's consumer does, and give each to a probe, in place of decoding it."""
    broker: Any = RabbitmqBroker(url=target.url)
    broker.queues.add(target.queue)
    protect(
        broker, guard=lambda: guard, dead_letters=target.dead, signer=probe.forge.signer()
    )
    with pytest.MonkeyPatch.context() as patch:
        # The stage has declared the queue, or has taken it away.
        patch.setattr(
            "mqauth.integrations.dramatiq.declare_dead_letters", lambda *_: None
        )
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
