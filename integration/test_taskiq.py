"""taskiq's workers on a real RabbitMQ: what is decoded and run, what becomes a dead letter, and who is refused."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pika
import pytest
from taskiq import BrokerMessage, InMemoryBroker, SimpleRetryMiddleware
from taskiq.api import run_receiver_task
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.serializers import PickleSerializer
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType

from integration.services import RabbitMQ
from integration.task_parts import Hijack, Shop, TaskContract, WorkerAttacks
from mqauth import Pipeline
from mqauth.brokers import rabbitmq as wrapper
from mqauth.errors import ConfigurationError
from mqauth.integrations.taskiq import protect
from mqauth.testing.attack_probe import Probe
from mqauth.testing.loop_thread import LoopThread


class TaskiqShop(Shop):
    """A queue of taskiq's, whose tasks are pickled; its calls wait for an event loop on a thread."""

    exchange = "its own"
    beside = (".taskiq", ".delay")
    task_header = "task_name"
    unsigned = pika.BasicProperties(headers={"task_id": "1", "task_name": "pack"})

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        self.thread = LoopThread()
        self.call = self.thread.call
        self.one_at_a_time = {"qos": 1}

    def destinations(self) -> list[str]:
        """Return where tasks may be sent."""
        return [f"rabbitmq:{self.name}/{self.name}"]

    def broker(self, **settings: Any) -> Any:
        """Return a broker of the shop that is not protected yet."""
        broker = AioPikaBroker(
            self.url,
            exchange=Exchange(self.name),
            task_queues=[Queue(name=self.name)],
            dead_letter_queue=Queue(name=f"{self.name}.taskiq"),
            delay_queue=Queue(name=f"{self.name}.delay"),
            **settings,
        ).with_serializer(PickleSerializer())

        @broker.task(task_name="pack")
        async def pack(order: Any) -> None:
            self.ran.put(order)
            if self.failures:
                self.failures -= 1
                raise ValueError("not yet")

        return broker

    def worker(self, **settings: Any) -> Any:
        """Return a broker of a worker."""
        broker = self.broker(**settings)
        broker.is_worker_process = True
        return broker

    @contextmanager
    def working(self, broker: Any = None, **settings: Any) -> Iterator[None]:
        """Run a protected worker."""
        broker = broker or self.worker(**settings)

        async def letters() -> wrapper.DeadLetters:
            sink = wrapper.DeadLetters(await broker.write_conn.channel(), self.dead)
            await sink.declare()
            return sink

        protect(
            broker,
            guard=lambda: self.guard,
            dead_letters=letters,
            signer=self.forge.signer(),
        )
        receiver = self.call(begun(run_receiver_task(broker, run_startup=True)))
        try:
            yield
        finally:
            self.call(ended(receiver))
            self.call(broker.shutdown())

    @contextmanager
    def sending(self, signer: Any = None) -> Iterator[Any]:
        """Yield the task of a broker that signs, by default as the shop, or of one that does not."""
        broker = self.broker()
        if signer is not False:
            protect(broker, signer=signer or self.forge.signer())
        self.call(broker.startup())
        yield broker.find_task("pack")
        self.call(broker.shutdown())

    def send(self, task: Any, order: Any) -> None:
        """Send a task; what taskiq cannot describe as JSON is what its worker would decode."""
        if isinstance(order, Hijack):
            self.call(
                task.broker.kick(
                    BrokerMessage(
                        task_id="1",
                        task_name="pack",
                        message=pickle.dumps(order),
                        labels={},
                    )
                )
            )
        else:
            self.call(task.kiq(order))

    def publish_elsewhere(self, body: bytes, properties: Any) -> None:
        """Publish a task to its queue by another exchange than it was signed for."""
        self.publish(body, properties, exchange="")

    def refused(self, why: str, *, broker: Any = None, **given: Any) -> None:
        """Assert that a broker is refused, where it is protected or as it starts."""

        async def start() -> None:
            await protect(broker or self.worker(), **given).startup()

        with pytest.raises(ConfigurationError, match=why):
            self.call(start())

    def end(self) -> None:
        """Leave nothing at the broker."""
        super().end()
        self.thread.close()


@pytest.fixture
def shop(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[TaskiqShop]:
    """Yield a shop."""
    with ExitStack() as undo:
        shop = TaskiqShop(rabbitmq.url, tmp_path)
        undo.callback(shop.end)
        yield shop


class TestTasks(TaskContract):
    """Tasks of taskiq."""


def test_a_delayed_task_runs_once(shop: TaskiqShop) -> None:
    """A task that waited in the delay queue is where it was signed for."""
    with shop.working(), shop.sending() as honest:
        shop.call(honest.kicker().with_labels(delay=0.1).kiq("late"))
        assert shop.run(1) == ["late"]
    assert shop.ran.empty()


def test_a_retry_is_signed_by_the_worker(shop: TaskiqShop) -> None:
    """What the retry middleware sends is a task of its own, signed as the worker."""
    shop.failures = 1
    broker = shop.worker().with_middlewares(SimpleRetryMiddleware(default_retry_count=2))
    with shop.working(broker), shop.sending() as honest:
        shop.call(honest.kicker().with_labels(retry_on_error=True).kiq("again"))
        assert shop.run(2) == ["again", "again"]


def test_what_was_not_run_comes_again(shop: TaskiqShop) -> None:
    """A worker that stops gives back the tasks that it took and has not run; the next one runs them."""
    broker = protect(
        shop.worker(qos=3),
        guard=lambda: shop.guard,
        dead_letters=DROPPED,
        signer=shop.forge.signer(),
    )

    async def take_three() -> None:
        await broker.startup()
        listening = broker.listen()
        taken = [await anext(listening) for _ in range(3)]
        await taken[0].ack()
        await listening.aclose()
        await broker.shutdown()

    with shop.sending() as honest:
        for number in range(3):
            shop.send(honest, number)
        shop.call(take_three())
    with shop.working():
        assert sorted(shop.run(2)) == [1, 2]


def test_what_cannot_be_protected_is_refused(shop: TaskiqShop) -> None:
    """Other brokers, the delay plug-in, pickled results, streams."""
    signer = shop.forge.signer()
    shop.refused("AioPikaBroker", broker=InMemoryBroker(), signer=signer)
    shop.refused(
        "plug-in", broker=shop.broker(delayed_message_exchange_plugin=True), signer=signer
    )
    shop.refused("already", broker=protect(shop.broker(), signer=signer), signer=signer)
    settings: dict[str, Any] = {
        "signer": signer,
        "dead_letters": DROPPED,
        "guard": lambda: shop.guard,
    }
    pickled = shop.worker().with_result_backend(Results(PickleSerializer()))
    shop.refused("pickled", broker=pickled, **settings)
    waits = shop.broker().with_result_backend(Results(PickleSerializer()))
    shop.refused("pickled", broker=waits, signer=signer)
    streams = shop.worker().with_queues(Queue(name=shop.name, type=QueueType.STREAM))
    shop.refused("stream", broker=streams, **settings)


class Results(DummyResultBackend[Any]):
    """A result backend with a serializer."""

    def __init__(self, serializer: Any) -> None:
        self.serializer = serializer


class Dropped:
    """Dead letters of tests that expect none."""

    name = "none"

    async def publish(self, letter: Any, /) -> None:
        """Refuse one."""
        raise AssertionError(letter.rejection)

    async def exists(self) -> bool:
        """Say yes."""
        return True


DROPPED = Dropped()


async def begun(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """Begin something on this loop."""
    return asyncio.create_task(work)


async def ended(task: asyncio.Task[None]) -> None:
    """Cancel a task, and wait for its end."""
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@contextmanager
def worker(target: Any, guard: Pipeline, probe: Probe) -> Iterator[None]:
    """Run a worker that gives each task to a probe, in place of decoding it."""
    broker: Any = AioPikaBroker(
        target.url, qos=100, exchange=Exchange(target.queue),
        task_queues=[Queue(name=target.queue, declare=False)],
        dead_letter_queue=Queue(name=f"{target.queue}.taskiq", type=QueueType.CLASSIC, auto_delete=True),
    )  # fmt: skip
    broker.is_worker_process = True

    async def letters() -> wrapper.DeadLetters:
        return wrapper.DeadLetters(await broker.write_conn.channel(), target.dead)

    async def consume() -> None:
        async for task in broker.listen():
            await asyncio.to_thread(probe.handler, task.message)
            await task.ack()

    protect(
        broker, guard=lambda: guard, dead_letters=letters, signer=probe.forge.signer()
    )
    with closing(LoopThread()) as thread:
        thread.call(broker.startup())
        consuming = thread.call(begun(consume()))
        yield
        thread.call(ended(consuming))
        thread.call(broker.shutdown())


@pytest.mark.slow
class TestAttacks(WorkerAttacks):
    """The attack suite against what a worker is given."""

    worker = staticmethod(worker)
