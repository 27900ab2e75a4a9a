"""``mqauth.brokers.aiokafka.Consumer`` from its start to its end, on the simulated Kafka, in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from functools import wraps
from typing import Any

import pytest

from mqauth import ConfigurationError, MemoryReplayStore, Message, Pipeline, Verified
from mqauth.audit.record import AuditRecord
from mqauth.brokers import aiokafka
from mqauth.brokers.log.records import dead_letter_headers
from mqauth.flow import arun
from mqauth.logs import HANDLING
from mqauth.testing import Forge
from tests.simulation.aiokafka_client import Client
from tests.simulation.kafka_broker import PLACES, Broker
from tests.simulation.kafka_leaves import LEAVES
from tests.simulation.threads import Loop, Process, Threads

PATIENCE = 10.0
AIOKAFKA = LEAVES["aiokafka"]


class Room:
    """A broker, and a consumer to be made."""

    def __init__(self) -> None:
        self.threads = Threads(0)
        self.process = Process("room", self.threads)
        self.loop = Loop(self.process, self.threads)
        self.broker = Broker(self.threads, lambda *_: None, lambda *_: None)
        self.forge = Forge(self.process, lifetime=600)
        self.store: Any = MemoryReplayStore(clock=self.process)
        self.handled: list[bytes | None] = []
        self.clients: list[Client] = []

    def guard(self) -> Pipeline:
        """Return a pipeline."""
        return Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy("kafka:orders"), replay=self.store,
            audit=self, clock=self.process,
        )  # fmt: skip

    async def write(self, record: AuditRecord, /) -> None:
        """Take an audit record."""

    def send(self, *bodies: bytes) -> None:
        """Append signed messages of one key."""
        for body in bodies:
            signed = self.forge.signer().sign(
                Message(destination="kafka:orders", body=body, key=b"k")
            )
            self.broker.append(PLACES[0], body, b"k", dead_letter_headers(signed.headers))

    async def handle(self, verified: Verified) -> None:
        """Note a message."""
        self.handled.append(verified.body)

    def consumer(self, handler: Any = None, **settings: Any) -> aiokafka.Consumer:
        """Return a consumer on a client of its own."""
        client = Client(self.broker, self.process, 50)
        self.clients.append(client)
        backoff = {"backoff": aiokafka.Backoff(first=0.05, longest=0.1)}
        made: aiokafka.Consumer = AIOKAFKA.consumer(
            client,
            self.broker,
            self.process,
            self.guard(),
            handler or self.handle,
            **(backoff | settings),
        )
        return made

    async def until(self, condition: Any) -> None:
        """Wait until a condition holds."""
        async with asyncio.timeout(PATIENCE):
            while not condition():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.005)

    def committed(self) -> int:
        """Return how many records are committed."""
        return sum(self.broker.committed.values())


@pytest.fixture
def room() -> Iterator[Room]:
    """A room, with virtual time in the leaf's modules."""
    room = Room()
    with AIOKAFKA.in_virtual_time(room.threads):
        yield room


def simulated(scene: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Return a test that plays a scene in its room's event loop."""

    @wraps(scene)
    def test(room: Room, **fixtures: Any) -> None:
        room.loop.play(scene(room, **fixtures))

    return test


@simulated
async def test_from_start_to_end(room: Room, caplog: pytest.LogCaptureFixture) -> None:
    """It says what it trusts, handles, commits at its end, says what became of it, and runs once."""
    caplog.set_level("INFO")
    room.send(b"0", b"1")
    async with room.consumer() as consumer:
        await room.until(lambda: len(room.handled) == 2)
        assert consumer.health().consuming
    assert (room.handled, room.committed(), consumer.health().consuming) == (
        [b"0", b"1"],
        2,
        False,
    )
    assert [
        word in caplog.text
        for word in ("consumes topics as billing", "billing: stopped after")
    ] == [True] * 2
    with pytest.raises(ConfigurationError, match="runs once"):
        await consumer.run()


@simulated
async def test_grace_over(room: Room) -> None:
    """A handler that takes longer than the grace is cancelled, its claim released; its record comes again."""
    begun, cancelled = asyncio.Event(), []

    async def hanging(_verified: Verified) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    room.send(b"0")
    async with room.consumer(hanging, grace=0.01):
        await begun.wait()
    assert room.loop.time() < PATIENCE
    assert (cancelled, len(room.store), room.committed()) == ([True], 0, 0)
    await room.clients[0].stop()
    async with room.consumer():
        await room.until(lambda: room.committed() == 1)
    assert room.handled == [b"0"]


async def polled(room: Room) -> tuple[Client, Any]:
    """Return a client that has its partitions and serves no rebalance, and its poller, which polled once."""
    poller: Any = room.consumer().calls
    (client,) = room.clients
    room.send(b"0")
    await room.until(client.assignment)
    await arun(poller.polling())
    client._coordinating.cancel()
    return client, poller


@simulated
async def test_asks_for_nothing_in_a_rebalance(room: Room) -> None:
    """A poll between a new assignment and the listener's call pauses nothing: that pause would have no end."""
    client, poller = await polled(room)
    client.generation = -1
    await poller.revoked(set(client.assignment()))
    await arun(poller.polling())
    await poller.assigned(set(client.assignment()))
    # Until they are begun anew.
    assert client.paused() == client.assignment()
    await arun(poller.polling())
    assert not client.paused()


@simulated
async def test_asks_after_a_rebalance(room: Room) -> None:
    """A partition that came back with records that wait is paused at once, and none of it is read twice."""
    client, poller = await polled(room)
    await poller.revoked(set(client.assignment()))
    client.generation += 1
    await poller.assigned(set(client.assignment()))
    assert len(client.paused()) == 1


@simulated
async def test_handler_that_stops_it(room: Room) -> None:
    """A handler may stop its consumer; what it did is settled, and nothing more is begun."""
    consumers: list[aiokafka.Consumer] = []

    async def handler(verified: Verified) -> None:
        room.handled.append(verified.body)
        asyncio.get_running_loop().call_soon(consumers[0]._stop)

    room.send(b"0", b"1")
    consumers.append(room.consumer(handler))
    await consumers[0].run()
    assert (room.handled[0], room.committed()) == (b"0", len(room.handled))


@pytest.mark.parametrize("asynchronous", [False, True])
@simulated
async def test_what_ends_it(room: Room, asynchronous: bool) -> None:
    """What is no ``Exception`` ends the consumer, whichever task it comes from; the record is not settled."""

    class EndError(BaseException):
        """The end."""

    def plain(_verified: Verified) -> None:
        raise EndError

    async def awaited(_verified: Verified) -> None:
        await asyncio.sleep(0)
        raise EndError

    room.send(b"0")
    consumer = room.consumer(awaited if asynchronous else plain)
    with pytest.raises(EndError):
        async with asyncio.timeout(PATIENCE):
            await consumer.run()
    assert consumer.failed
    assert room.committed() == 0


@pytest.mark.parametrize("where", ["client", "handler", "awaiting handler"])
@simulated
async def test_cancelled_by_others(room: Room, where: str) -> None:
    """A call of a client or a handler that others cancel ends the consumer: it does not stand still or repeat."""

    def plain(_verified: Verified) -> None:
        raise asyncio.CancelledError

    async def awaited(_verified: Verified) -> None:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    async def getmany(*_places: Any, **_settings: Any) -> Any:
        raise asyncio.CancelledError

    room.send(b"0")
    consumer = room.consumer({"handler": plain, "awaiting handler": awaited}.get(where))
    if where == "client":
        room.clients[0].getmany = getmany  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="was cancelled"):
        async with asyncio.timeout(PATIENCE):
            await consumer.run()
    assert room.committed() == 0


@simulated
async def test_what_is_handled_shows_nowhere_else(room: Room) -> None:
    """While a handler waits, the task that polls and a second handler do not pass for handling its message."""
    seen: list[bytes | None] = []
    other = asyncio.Event()

    async def handler(verified: Verified) -> None:
        room.handled.append(verified.body)
        await other.wait()

    async def getmany(*places: Any, **settings: Any) -> Any:
        delivery = HANDLING.get()
        seen.append(None if delivery is None else delivery.message.body)
        if room.handled:
            other.set()
        return await get(*places, **settings)

    room.send(b"0")
    consumer = room.consumer(handler)
    get, room.clients[0].getmany = room.clients[0].getmany, getmany  # type: ignore[method-assign]
    async with consumer:
        await room.until(lambda: room.committed() == 1)
    assert set(seen) == {None}


@simulated
async def test_cancelled(room: Room) -> None:
    """A cancelled ``run`` stops in order: what is settled is committed."""
    room.send(b"0")
    task = asyncio.create_task(room.consumer().run())
    await room.until(lambda: room.handled == [b"0"])
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert room.committed() == 1


@simulated
async def test_a_handler_that_costs_the_membership_runs_once(room: Room) -> None:
    """Records whose handlers each cost the membership are handled once, and committed."""
    room.send(b"0", b"1", b"2")

    async def handle(verified: Verified) -> None:
        room.handled.append(verified.body)
        room.broker.evict(room.clients[0])

    async with room.consumer(handle):
        await room.until(lambda: room.committed() == 3)
    assert room.handled == [b"0", b"1", b"2"]
