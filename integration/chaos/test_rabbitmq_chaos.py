"""The chaos table on a real RabbitMQ: rows, stale deliveries, storms, poison, blocked connections."""

from __future__ import annotations

import asyncio
import logging
import re
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import aio_pika
import pytest
from aio_pika import exceptions
from aio_pika.abc import AbstractChannel
from pamqp import commands

from integration.chaos.faults import FastClock, fast_refresher, unreachable
from integration.chaos.rabbitmq_scene import PATIENCE, BlockingScene, Scene, scene, until
from integration.chaos.row import Count, Letter
from integration.chaos.rows import Rows
from integration.keyserver import KeyServer
from integration.scale import nightly
from integration.services import RabbitMQ, Redis
from integration.wire import Wire
from mqauth import JWKS, Allow, Pipeline, Verdict, Verified
from mqauth.audit.chain import verify_chain
from mqauth.brokers import rabbitmq
from mqauth.brokers.amqp_messages import DEFAULT_DELIVERY_LIMIT, UNPARSEABLE
from mqauth.brokers.rabbitmq.channel import LOST, is_blocked
from mqauth.errors import Cause, Unavailable
from mqauth.judging.policy import Rule
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.stores.redis import RedisReplayStore
from mqauth.testing.forge import ISSUER, SUBJECT, Forge

Report = Callable[[Count], Count]


@pytest.fixture
async def row(own_rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene on a broker that gives evidence of append time."""
    async with scene(own_rabbitmq.url, tmp_path) as row:
        yield row


class TestRows(Rows):
    """What both brokers have."""

    @pytest.fixture
    def row(self, own_rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[BlockingScene]:
        """A scene on a broker that the row may stop."""
        row = BlockingScene(own_rabbitmq, tmp_path)
        yield row
        own_rabbitmq.start()
        row.strike()


async def test_dead_letter_queue_full(row: Scene, report: Report) -> None:
    """A queue that refuses is no dead letter: what is rejected waits until there is room."""
    await row.publishing.queue_delete(row.dead)
    full: dict[str, Any] = {"x-max-length": 5, "x-overflow": "reject-publish"}
    await row.publishing.declare_queue(row.dead, durable=True, arguments=full)
    taken: list[Letter] = []
    await row.forge_some(30)
    await row.send(60)
    with row.audit_file() as audit:
        async with await row.consumer(row.guard(audit), prefetch=50, hold=1) as consumer:
            await until(lambda: consumer.health().cause is Cause.DEAD_LETTER_UNAVAILABLE)
            await until(lambda: not consumer.health().consuming)
            await row.send(10)
            async with asyncio.timeout(PATIENCE):
                while len(taken) < len(row.forged):
                    taken.extend(await row.letters())
            await until(
                lambda: (
                    len(row.handled) == len(row.honest)
                    and consumer.health().in_flight == 0
                )
            )
    assert verify_chain(row.folder / "audit.jsonl").records == len(row.forged)
    report(await row.count("dead-letter queue full", letters=taken))


WITHIN = 60
LAST = b"\x08\0\0\0\0\0\0\xce"
"""A heartbeat frame."""


@asynccontextmanager
async def slow_and_quick(
    row: Scene, redis: Redis, **settings: Any
) -> AsyncIterator[Wire]:
    """Run a consumer on a slow wire, whose pipeline has these settings, and one beside it."""
    async with Wire(row.url) as wire, AsyncExitStack() as stack:
        audit = stack.enter_context(row.audit_file())
        slow = row.guard(audit, row.store(redis.url), **settings)
        await stack.enter_async_context(await row.consumer(slow, url=wire.url))
        await stack.enter_async_context(
            await row.consumer(row.guard(audit, row.store(redis.url)))
        )
        yield wire


async def _lost_underway(row: Scene, wire: Wire) -> None:
    """Have the broker lose the slow connection while deliveries are underway, and deliver them again."""
    await until(lambda: row.consumed_by(2))
    wire.slow()
    await row.send(40)
    await until(lambda: len(row.handled) >= len(row.honest) - 10)
    wire.lose_servers()
    await row.done()


async def test_slow_network(row: Scene, own_redis: Redis, report: Report) -> None:
    """Without any pause: deliveries that arrive after the broker has lost their connection were redelivered."""
    async with slow_and_quick(row, own_redis) as wire:
        await row.send(20)
        await row.done()
        for _ in range(2):
            await _lost_underway(row, wire)
            wire.arrive()
            await row.send(20)
            await row.done()
    found = await row.count("deliveries underway when their connection was lost")
    report(found)
    assert found.duplicates == 0


class Policy:
    """A policy that can be out of reach."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy
        self.asked = 0
        self.down = True
        self.version = policy.version

    def decide(self, verified: Verified, /) -> Any:
        """Decide, or be out of reach."""
        self.asked += 1
        if self.down:
            raise Unavailable(Cause.POLICY_UNAVAILABLE, "down")
        return self._policy.decide(verified)


async def test_connection_ended_between_frames(
    row: Scene, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection that ends in order while the consumer waits for an answer was lost: no error.

    aiormq fails what waits with a bare ``Exception()`` where it reads the last frame and the end at once, as TLS
    lets it; that is done here to a plain connection.
    """
    feed = asyncio.StreamReader.feed_data

    def and_end(reader: asyncio.StreamReader, data: bytes) -> None:
        feed(reader, data)
        if data == LAST:
            reader.feed_eof()

    monkeypatch.setattr(asyncio.StreamReader, "feed_data", and_end)
    await row.send(5)
    async with Wire(row.url) as wire:
        with row.audit_file() as audit:
            guard = row.guard(audit)
            policy = Policy(guard.policy)
            consumer = await row.consumer(
                row.guard(audit, guard.replay, policy=policy), url=wire.url, hold=1
            )
            running = asyncio.create_task(consumer.run())
            await until(lambda: consumer.health().deferred == 5)
            wire.mute()
            await until(lambda: not consumer.health().consuming)
            wire.end(LAST)
            policy.down = False
            await row.done(consumer, seconds=WITHIN)
            assert not running.done()
            await consumer.stop()
            await running
    report(await row.count("connection ended between frames"))


HONEST = nightly(1000, otherwise=200)


class GatedStore:
    """A store that answers no claim before its gate opens, and then not all at once."""

    def __init__(self, store: RedisReplayStore) -> None:
        self._store = store
        self._turns = asyncio.Semaphore(50)
        self.gate = asyncio.Event()
        self.release = store.release

    async def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Claim once the gate is open."""
        await self.gate.wait()
        async with self._turns:
            return await self._store.claim(request)

    async def confirm(self, request: ClaimRequest, /) -> None:
        """Confirm."""
        async with self._turns:
            await self._store.confirm(request)


async def lose(row: Scene, guard: Pipeline, store: GatedStore, *, after: bool) -> None:
    """Have every message delivered to a new consumer, and lose its connection before any ack arrives.

    Args:
        row: whose source is consumed.
        guard: of the consumer.
        store: the guard's.
        after: lose it after everything was handled and confirmed; else before anything is claimed.
    """
    store.gate.clear()
    async with Wire(row.url) as wire, await aio_pika.connect(wire.url) as connection:
        queue = await (await connection.channel()).get_queue(row.name, ensure=False)
        letters = rabbitmq.DeadLetters(row.publishing, row.dead)
        consumer = rabbitmq.Consumer(
            queue, guard, row.handle, dead_letters=letters, prefetch=HONEST, grace=0
        )
        with suppress(*LOST):
            async with consumer:
                await until(lambda: consumer.health().in_flight == HONEST)
                wire.mute()
                if after:
                    store.gate.set()
                    await until(lambda: consumer.health().in_flight == 0, 120)
                wire.cut()
    await until(lambda: _all_back(row))


async def _all_back(row: Scene) -> bool:
    """Tell whether the broker has taken every message back."""
    return await row.waiting() == HONEST


async def test_redelivery_storm(
    row: Scene, own_redis: Redis, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    """Messages delivered six times each, 1,000 nightly, are handled once each; of as many copies none is."""
    bodies = await row.send(HONEST)
    # All claims wait for one event loop: a store asked by it is not out of reach because the loop is busy.
    store = GatedStore(row.store(own_redis.url, timeout=30))
    with row.audit_file() as audit:
        guard = row.guard(audit, store)
        for after in (False, True, True, True, True):
            await lose(row, guard, store, after=after)
        store.gate.set()
        async with await row.consumer(guard, prefetch=100) as consumer:
            await row.done(consumer, seconds=300)
            verdicts = Counter(outcome.verdict for outcome in row.outcomes)
            assert verdicts == {Verdict.ACCEPTED: HONEST, Verdict.DUPLICATE: 4 * HONEST}
            await row.copy(bodies)
            await row.done(consumer, seconds=300)
    with capsys.disabled():
        print(
            f"\nrabbitmq, redelivery storm: {HONEST} messages redelivered 5 times, settled as duplicates 4 times"
        )
    found = await row.count("redelivery storm and an attacker's copies")
    report(found)
    assert (found.handled, found.dead_lettered, found.duplicates) == (HONEST, HONEST, 0)
    assert sum(outcome.verdict is Verdict.REJECTED for outcome in row.outcomes) == HONEST


_DEPTH: Final = 3000
_MODE_AND_ID: Final = b"\x02\x06poison"


def _short(raw: bytes) -> bytes:
    """Return AMQP's short string."""
    return bytes([len(raw)]) + raw


def _table(raw: bytes) -> bytes:
    """Return AMQP's table around fields."""
    return struct.pack(">I", len(raw)) + raw


def _deep() -> bytes:
    """Return a table in a table in a table."""
    raw = _table(b"")
    for _ in range(_DEPTH):
        raw = _table(_short(b"t") + b"F" + raw)
    return raw


POISONS: Final[Mapping[str, tuple[tuple[str, ...], bytes]]] = {
    "absurd timestamp": (("timestamp",), _MODE_AND_ID + b"\xff" * 8),
    "header name no UTF-8": (
        ("headers",),
        _table(_short(b"\xff\xfe") + b"t\x01") + _MODE_AND_ID,
    ),
    "content type no UTF-8": (("content_type",), _short(b"\xff\xfe") + _MODE_AND_ID),
    "deep table": (("headers",), _deep() + _MODE_AND_ID),
}
"""By name: the properties that are set beside delivery mode and message id, and all of them as bytes."""


class _Raw(commands.Basic.Properties):
    """Properties that go out as they are given."""

    raw: tuple[tuple[str, ...], bytes]

    def marshal(self) -> bytes:
        """Return the flags and the bytes."""
        names, raw = self.raw
        flags = sum(self.flags[name] for name in ("delivery_mode", "message_id", *names))
        return struct.pack(">H", flags) + raw


async def publish_poison(channel: AbstractChannel, queue: str, kind: str) -> None:
    """Publish one poison message of a kind, confirmed."""
    properties = _Raw(message_id="poison", delivery_mode=2)
    properties.raw = POISONS[kind]
    underlay: Any = await channel.get_underlay_channel()
    await underlay.basic_publish(b"poison", routing_key=queue, properties=properties)


SPINS = 6


@pytest.fixture
async def poisoned(believing: RabbitMQ, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene on that broker."""
    async with scene(believing.url, tmp_path) as poisoned:
        yield poisoned


@pytest.mark.parametrize("kind", POISONS)
async def test_poison_on_the_recommended_queue(
    poisoned: Scene,
    report: Report,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """At prefetch 10 every healthy message around the poison is handled, and only the poison is put aside."""
    await poisoned.send(15)
    await publish_poison(poisoned.publishing, poisoned.name, kind)
    await poisoned.send(15)
    aside = poisoned.name + UNPARSEABLE
    with (
        poisoned.audit_file() as audit,
        caplog.at_level(logging.CRITICAL, "mqauth.rabbitmq"),
    ):
        async with await poisoned.consumer(
            poisoned.guard(audit, verifier=poisoned.forge.verifier()), prefetch=10
        ) as consumer:
            await poisoned.done(consumer)
            await until(lambda: _waits(poisoned, aside, 1))
            await poisoned.send(5)
            await poisoned.done(consumer)
            health = consumer.health()
    report(await poisoned.count(f"poison ({kind}) on a quorum queue"))
    with capsys.disabled():
        print(
            f"  connection deaths {health.connection_deaths}, put aside 1: the poison, prefetch {health.prefetch}"
        )
    assert await poisoned.waiting(aside) == 1
    assert health.prefetch == 1
    assert health.connection_deaths == DEFAULT_DELIVERY_LIMIT + 1
    assert "prefetch falls to 1" in caplog.text


@pytest.mark.parametrize("kind", ["absurd timestamp"])
async def test_poison_on_a_classic_queue(
    poisoned: Scene,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    kind: str,
) -> None:
    """On a classic queue the poison comes again for ever: what is behind it waits, not lost, and we warned."""
    await poisoned.publishing.queue_delete(poisoned.name)
    channel = await poisoned.channel()
    source = await channel.declare_queue(
        poisoned.name, durable=True, arguments={"x-queue-type": "classic"}, robust=False
    )
    before = await poisoned.send(6)
    await publish_poison(poisoned.publishing, poisoned.name, kind)
    behind = await poisoned.send(6)
    letters = rabbitmq.DeadLetters(poisoned.publishing, poisoned.dead)
    with (
        poisoned.audit_file() as audit,
        caplog.at_level(logging.WARNING, "mqauth.rabbitmq"),
    ):
        consumer = rabbitmq.Consumer(
            source,
            poisoned.guard(audit, verifier=poisoned.forge.verifier()),
            poisoned.handle,
            dead_letters=letters,
        )
        assert "no quorum queue" in caplog.text
        async with consumer:
            await until(
                lambda: (
                    {*before} <= {*poisoned.handled} and consumer.health().prefetch == 1
                )
            )
            deaths = consumer.health().connection_deaths
            await until(lambda: consumer.health().connection_deaths >= deaths + SPINS)
        health = consumer.health()
    await until(lambda: _waits(poisoned, poisoned.name, 1 + len(behind)))
    assert sorted(poisoned.handled) == sorted(before)
    assert await poisoned.letters() == []
    with capsys.disabled():
        print(
            f"\nrabbitmq, poison ({kind}) on a classic queue: sent 12, handled {len(poisoned.handled)},"
            f" waiting behind it {len(behind)}, connection deaths {health.connection_deaths} and counting, lost 0"
        )


async def _waits(poisoned: Scene, queue: str, number: int) -> bool:
    """Tell whether so many messages wait."""
    found: Any = await poisoned.waiting(queue)
    return bool(found == number)


QUEUE = "mqauth-blocked"
UNBLOCKED = 60.0


@pytest.fixture
async def wire(own_rabbitmq: RabbitMQ) -> AsyncIterator[Wire]:
    """A wire to a broker of this test's own, with a queue on it."""
    async with await aio_pika.connect(own_rabbitmq.url) as connection:
        await (await connection.channel()).declare_queue(
            QUEUE, durable=True, arguments={"x-queue-type": "quorum"}
        )
    async with Wire(own_rabbitmq.url) as wire:
        yield wire


async def _blocked(channel: aio_pika.abc.AbstractChannel) -> None:
    """Return once the broker has blocked a channel's connection."""
    connection = channel._connection  # type: ignore[attr-defined]
    while not is_blocked(connection.transport):  # noqa: ASYNC110
        await asyncio.sleep(0.05)


async def test_lost_while_blocked(own_rabbitmq: RabbitMQ, wire: Wire) -> None:
    """A producer whose blocked connection is lost has that publish fail, and publishes again afterwards."""
    async with await aio_pika.connect_robust(
        wire.url, reconnect_interval=0.2
    ) as connection:
        channel = await connection.channel()
        producer = rabbitmq.Producer(channel.default_exchange, Forge().signer())
        await producer.publish(aio_pika.Message(b"first"), QUEUE)
        own_rabbitmq.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        under_way = asyncio.ensure_future(
            producer.publish(aio_pika.Message(b"under way"), QUEUE)
        )
        async with asyncio.timeout(UNBLOCKED):
            await _blocked(channel)
        waiting = asyncio.ensure_future(
            producer.publish(aio_pika.Message(b"waiting"), QUEUE)
        )
        await asyncio.sleep(0)
        wire.cut()
        own_rabbitmq.ctl("set_vm_memory_high_watermark", "0.6")
        async with asyncio.timeout(UNBLOCKED):
            await asyncio.gather(under_way, waiting, return_exceptions=True)
            while True:
                with suppress(*LOST, exceptions.DeliveryError):
                    await producer.publish(aio_pika.Message(b"after"), QUEUE)
                    break
                await asyncio.sleep(0.1)


DEAD = "https://dead.example"
PREFETCH = 10


@contextmanager
def issuer_out_of_reach(row: Scene) -> Iterator[tuple[KeyServer, Pipeline]]:
    """Trust a second issuer too, whose server is down and has never been up."""
    rule = Rule(subject=SUBJECT, destinations=("rabbitmq:/" + row.name,), issuer=ISSUER)
    with (
        unreachable([row.forge.neighbour]) as server,
        JWKS(
            server.url,
            timeout=1,
            unsafe_http_loopback=True,
            clock=FastClock(),
            refresher=fast_refresher,
        ) as keys,
        row.audit_file() as audit,
    ):
        verifier = row.verifier(keys={ISSUER: row.forge.keys, DEAD: keys})
        yield server, row.guard(audit, verifier=verifier, policy=Allow([rule]))


async def test_beyond_the_bound_the_queue_waits(
    row: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    """Where more is held than may be, the consumer says whose fault it is, how many, and that nothing comes."""
    await row.forge_some(
        4 * PREFETCH, signer=row.forge.signer(key=row.forge.stranger, issuer=DEAD)
    )
    with issuer_out_of_reach(row) as (server, guard):
        async with await row.consumer(
            guard, prefetch=PREFETCH, max_held=PREFETCH
        ) as consumer:
            await until(
                lambda: "no more can be held" in caplog.text, WITHIN
            )  # it consumes anew beside it first
            health = consumer.health()
            assert (health.consuming, health.party) == (False, DEAD)
            assert health.held == {f"keys_unavailable of {DEAD}": health.deferred}
            assert PREFETCH <= health.deferred <= 2 * PREFETCH
            full = re.compile(rf"no more can be held: (\d+) keys_unavailable of {DEAD}\n")
            await until(
                lambda: full.search(caplog.text) is not None, WITHIN
            )  # it is logged a moment later
            assert {
                PREFETCH <= int(number) <= 2 * PREFETCH
                for number in full.findall(caplog.text)
            } == {True}
            server.up()
            await row.done(consumer, seconds=WITHIN)
            assert consumer.health().consuming
