"""taskiq's workers on a real RabbitMQ: what is decoded and run, what becomes a dead letter, and who is refused."""

from __future__ import annotations

import asyncio
import pickle
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from taskiq import BrokerMessage, InMemoryBroker, SimpleRetryMiddleware
from taskiq.api import run_receiver_task
from taskiq.result_backends.dummy import DummyResultBackend
from taskiq.serializers import PickleSerializer
from taskiq_aio_pika import AioPikaBroker, Exchange, Queue, QueueType

from integration.services import RabbitMQ
from integration.task_parts import PATIENCE, Hijack, Store, WorkerAttacks, buried
from mqauth import AuditFile, MemoryReplayStore, Pipeline
from mqauth.brokers import rabbitmq as wrapper
from mqauth.errors import ConfigurationError
from mqauth.integrations.taskiq import protect
from mqauth.judging.rollout import WEEK, Rollout, RolloutEntry, Rung
from mqauth.testing.attack_probe import Probe
from mqauth.testing.forge import NEIGHBOUR, Forge
from mqauth.testing.loop_thread import LoopThread


class Shop:
    """A broker's names at RabbitMQ, its protected worker, and what its tasks did.

    Args:
        url: of RabbitMQ.
        folder: for files.
        rung: of the ladder, below ``enforce``.
    """

    def __init__(self, url: str, folder: Path, rung: Rung | None = None) -> None:
        self.url = url
        self.forge = Forge()
        self.name = f"tasks-{uuid.uuid4().hex}"
        self.dead = f"{self.name}.dead"
        self.store = Store(folder / "claims.db")
        self.store.asked = threading.Event()
        self.audit = AuditFile(folder / "audit.jsonl")
        self.ran: asyncio.Queue[Any] = asyncio.Queue()
        place, day = f"rabbitmq:{self.name}/{self.name}", datetime.now(UTC).date()
        entries = [
            RolloutEntry(
                destinations=(place,), rung=each, since=day, until=day + timedelta(9), owner="team", window=WEEK
            )
            for each in (rung,)
            if each is not None
        ]
        self.guard = Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy(place), replay=self.store, audit=self.audit,
            rollout=Rollout(entries) if entries else None,
        )  # fmt: skip

    def broker(self, **settings: Any) -> Any:
        """Return a broker of the shop, which pickles its tasks, that is not protected yet."""
        broker = AioPikaBroker(
            self.url,
            exchange=Exchange(self.name),
            task_queues=[Queue(name=self.name)],
            dead_letter_queue=Queue(name=f"{self.name}.taskiq"),
            delay_queue=Queue(name=f"{self.name}.delay"),
            **settings,
        ).with_serializer(PickleSerializer())

        @broker.task(task_name="pack")
        async def pack(order: Any, failures: int = 0) -> None:
            self.ran.put_nowait(order)
            if self.ran.qsize() <= failures:
                raise ValueError("not yet")

        return broker

    @asynccontextmanager
    async def working(self, broker: Any = None) -> AsyncIterator[None]:
        """Run a protected worker."""
        broker = self.broker() if broker is None else broker
        broker.is_worker_process = True
        protect(
            broker,
            guard=lambda: self.guard,
            dead_letters=lambda: self._letters(broker),
            signer=self.forge.signer(),
        )
        receiver = asyncio.create_task(run_receiver_task(broker, run_startup=True))
        try:
            yield
        finally:
            receiver.cancel()
            await asyncio.wait([receiver])
            await broker.shutdown()

    async def _letters(self, broker: Any) -> wrapper.DeadLetters:
        letters = wrapper.DeadLetters(await broker.write_conn.channel(), self.dead)
        await letters.declare()
        return letters

    @asynccontextmanager
    async def sending(self, protected: bool = True, **signer: Any) -> AsyncIterator[Any]:
        """Yield a broker that sends tasks, signed or not."""
        broker = self.broker()
        if protected:
            protect(broker, signer=self.forge.signer(**signer))
        await broker.startup()
        yield broker
        await broker.shutdown()

    async def run(self, count: int) -> list[Any]:
        """Return what the next tasks were given, once they have run."""
        async with asyncio.timeout(PATIENCE):
            return [await self.ran.get() for _ in range(count)]

    async def buried(self, count: int) -> list[str]:
        """Return the reasons of so many dead letters, sorted, and take them."""
        return await asyncio.to_thread(buried, self.url, self.dead, count)

    async def end(self) -> None:
        """Leave nothing at the broker."""
        self.store.close()
        self.audit.close()
        async with await aio_pika.connect(self.url) as connection:
            channel = await connection.channel()
            for name in (self.name, self.dead, f"{self.name}.taskiq", f"{self.name}.delay"):
                await channel.queue_delete(name)
            await channel.exchange_delete(self.name)


@pytest.fixture
async def shop(rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Shop]:
    """Yield a shop."""
    shop = Shop(rabbitmq.url, tmp_path)
    yield shop
    await shop.end()


def hijack(path: Path) -> BrokerMessage:
    """Return a task that writes a file where it is decoded."""
    return BrokerMessage(task_id="1", task_name="pack", message=pickle.dumps(Hijack(path)), labels={})


async def test_only_signed_tasks_are_decoded(shop: Shop, tmp_path: Path) -> None:
    """A pickle that nobody, or a stranger, signed is a letter, and is never decoded; a signed task runs once."""
    mark = tmp_path / "decoded"
    pickle.loads(pickle.dumps(Hijack(mark)))  # noqa: S301 - the oracle writes
    mark.unlink()
    stranger = Forge()
    async with shop.working(), shop.sending() as honest, shop.sending(protected=False) as bare:
        await bare.kick(hijack(mark))
        neighbour = shop.forge.signer(key=shop.forge.neighbour, subject=NEIGHBOUR)
        for signer in (stranger.signer(), shop.forge.signer(audience="others"), neighbour):
            broker = protect(shop.broker(), signer=signer)
            await broker.startup()
            await broker.kick(hijack(mark))
            await broker.shutdown()
        await honest.find_task("pack").kiq("honest")
        assert await shop.run(1) == ["honest"]
        refused = ["audience_mismatch", "key_unknown", "producer_forbidden", "token_missing"]
        assert await shop.buried(4) == refused
    assert not mark.exists()
    assert shop.ran.empty()


async def test_a_task_changed_on_its_way_is_a_letter(shop: Shop) -> None:
    """Another name, another body, another queue, and a second copy: each is rejected with its reason."""
    async with shop.sending() as honest:
        await honest.find_task("pack").kiq("caught")
        connection = await aio_pika.connect(shop.url)
        channel = await connection.channel()
        queue = await channel.declare_queue(shop.name, passive=True)
        caught = await queue.get(timeout=PATIENCE)
        exchange = await channel.get_exchange(shop.name)
        copies = {
            "altered": replace_body(caught, pickle.dumps({"task_name": "other"})),
            "renamed": with_header(caught, "task_name", "other"),
            "first": caught,
            "second": caught,
        }
        for copy in copies.values():
            await exchange.publish(copy, shop.name)
        await channel.default_exchange.publish(caught, shop.name)
        await caught.ack()
        await connection.close()
    async with shop.working():
        assert await shop.run(1) == ["caught"]
        assert await shop.buried(4) == ["body_mismatch", "destination_mismatch", "headers_mismatch", "replayed"]
    assert shop.ran.empty()


def replace_body(message: Any, body: bytes) -> aio_pika.Message:
    """Return a message with another body."""
    return aio_pika.Message(body, **_properties(message), headers=message.headers)


def with_header(message: Any, name: str, value: str) -> aio_pika.Message:
    """Return a message with another header."""
    return aio_pika.Message(message.body, **_properties(message), headers={**message.headers, name: value})


def _properties(message: Any) -> dict[str, Any]:
    return {"message_id": message.message_id, "delivery_mode": message.delivery_mode}


async def test_a_delayed_task_runs_once(shop: Shop) -> None:
    """A task that waited in the delay queue is where it was signed for."""
    async with shop.working(), shop.sending() as honest:
        await honest.find_task("pack").kicker().with_labels(delay=0.1).kiq("late")
        assert await shop.run(1) == ["late"]
    assert shop.ran.empty()


async def test_a_retry_is_signed_by_the_worker(shop: Shop) -> None:
    """What the retry middleware sends is a task of its own, signed as the worker."""
    broker = shop.broker().with_middlewares(SimpleRetryMiddleware(default_retry_count=2))
    async with shop.working(broker), shop.sending() as honest:
        await honest.find_task("pack").kicker().with_labels(retry_on_error=True).kiq("again", failures=1)
        assert await shop.run(2) == ["again", "again"]


async def test_a_task_waits_for_the_store(shop: Shop) -> None:
    """While the replay store is away a task is neither run nor a letter; it runs once the store is back."""
    shop.store.away = "claim"
    async with shop.working(), shop.sending() as honest:
        await honest.find_task("pack").kiq("waits")
        async with asyncio.timeout(PATIENCE):
            await asyncio.to_thread(shop.store.asked.wait)
        assert shop.ran.empty()
        shop.store.away = ""
        assert await shop.run(1) == ["waits"]


async def test_what_was_not_run_comes_again(shop: Shop) -> None:
    """A worker that stops gives back the tasks that it took and has not run; the next one runs them."""
    async with shop.sending() as honest:
        broker = protect(
            shop.broker(qos=3), guard=lambda: shop.guard, dead_letters=DROPPED, signer=shop.forge.signer()
        )
        broker.is_worker_process = True
        for number in range(3):
            await honest.find_task("pack").kiq(number)
        await broker.startup()
        listening = broker.listen()
        async with asyncio.timeout(PATIENCE):
            taken = [await anext(listening) for _ in range(3)]
            await taken[0].ack()
        await listening.aclose()
        await broker.shutdown()
    async with shop.working():
        assert sorted(await shop.run(2)) == [1, 2]


async def test_observe_runs_unsigned_tasks(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """On the rung ``observe`` tasks that nobody signed run, and are counted."""
    shop = Shop(rabbitmq.url, tmp_path, Rung.OBSERVE)
    async with shop.working(), shop.sending(protected=False) as bare, shop.sending() as honest:
        await bare.find_task("pack").kiq("unsigned")
        await honest.find_task("pack").kiq("signed")
        assert sorted(await shop.run(2)) == ["signed", "unsigned"]
    await shop.end()
    told = (tmp_path / "audit.jsonl").read_text("utf-8")
    assert "token_missing" in told


async def refused(broker: Any, why: str, **given: Any) -> None:
    """Assert that a broker is refused, where it is protected or as it starts."""
    with pytest.raises(ConfigurationError, match=why):
        await protect(broker, **given).startup()


async def test_what_cannot_be_protected_is_refused(shop: Shop, tmp_path: Path) -> None:
    """Other brokers, the delay plug-in, a store in memory, pickled results, streams, no pipeline."""
    signer = shop.forge.signer()

    def guard(replay: Any) -> Callable[[], Pipeline]:
        policy = shop.forge.policy("rabbitmq:/x")
        return lambda: Pipeline(verifier=shop.forge.verifier(), policy=policy, replay=replay, audit=shop.audit)

    def worker(**settings: Any) -> Any:
        broker = shop.broker(**settings)
        broker.is_worker_process = True
        return broker

    await refused(InMemoryBroker(), "AioPikaBroker", signer=signer)
    await refused(shop.broker(delayed_message_exchange_plugin=True), "plug-in", signer=signer)
    await refused(protect(shop.broker(), signer=signer), "already", signer=signer)
    await refused(worker(), "guard=", signer=signer)
    await refused(worker(), "dead_letters=", signer=signer, guard=guard(shop.store))
    settings: dict[str, Any] = {"signer": signer, "dead_letters": DROPPED}
    for replay in (None, MemoryReplayStore()):
        await refused(worker(), "store on Redis", guard=guard(replay), **settings)
    settings["guard"] = guard(shop.store)
    await refused(worker().with_result_backend(Results(PickleSerializer())), "pickled", **settings)
    await refused(worker().with_queues(Queue(name=shop.name, type=QueueType.STREAM)), "stream", **settings)


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

    protect(broker, guard=lambda: guard, dead_letters=letters, signer=probe.forge.signer())
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
