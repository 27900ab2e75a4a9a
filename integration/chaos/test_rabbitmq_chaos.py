"""The chaos table of delivery on a real RabbitMQ: a test a row, each prints and asserts its sums.

Rows run with ``at="append"`` on a broker that stamps what it receives, and tokens that live an hour.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from integration.chaos.count import Count, Letter
from integration.chaos.rabbitmq_scene import PATIENCE, Scene, scene, until
from integration.chaos.rabbitmq_world import (
    Disk,
    FastClock,
    SteppingClock,
    fast_refresher,
    may_mount,
    quota,
    small_disk,
    unreachable,
)
from integration.keyserver import KeyServer
from integration.scale import is_nightly, nightly
from integration.services import RabbitMQ, Redis
from integration.victim import Moment, Orders
from integration.wire import Wire
from mqauth import JWKS, Verified
from mqauth.audit.chain import verify_chain
from mqauth.brokers import rabbitmq
from mqauth.errors import Cause
from mqauth.testing.forge import ISSUER, NEIGHBOUR, SUBJECT
from mqauth.wire.keys import Key

Report = Callable[[Count], None]
LEASE = 2
WITHIN = 120
STEP = 300.0
FLOOD = nightly(10_000, otherwise=500)
KILLS = (3, 7) if is_nightly() else (3,)
"""The times that a moment comes for at which a process is killed."""
EACH = len(KILLS)
"""One message a kill: that in flight."""
DISKS: list[Callable[[Path], AbstractContextManager[Disk]]] = [quota, *([small_disk] if may_mount() else [])]


@pytest.fixture
async def row(own_rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Scene]:
    """A scene on a broker that gives evidence of append time."""
    async with scene(own_rabbitmq.url, tmp_path) as row:
        yield row


def orders(row: Scene, redis: Redis, **settings: Any) -> Orders:
    """Return what a consumer process of a row is to do."""
    wanted: dict[str, Any] = {"redis": redis.url, "lease": LEASE, "at_once": 10, "ends": True}
    return row.orders(**(wanted | settings))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "between", "again"),
    [
        pytest.param("handler", "handler and confirm", (EACH, 0), id="handler"),
        pytest.param("confirm", "confirm and ack", (0, 0), id="confirm"),
        pytest.param("audit", "audit and dead letter", (0, 0), id="audit"),
        pytest.param("letter", "dead letter and settle", (0, EACH), id="letter"),
    ],
)
async def test_consumer_killed(
    row: Scene, own_redis: Redis, report: Report, *, moment: Moment, between: str, again: tuple[int, int]
) -> None:
    """Killed at this moment nothing is lost, and only the one message in flight may come twice."""
    await row.send(40)
    await row.forge_some(20)
    for after in KILLS:
        victim = await orders(row, own_redis, moment=moment, after=after, at_once=1).aprocess()
        assert await asyncio.wait_for(victim.wait(), WITHIN) == -signal.SIGKILL
    survivor = await orders(row, own_redis).aprocess()
    assert await asyncio.wait_for(survivor.wait(), WITHIN) == 0
    found = await row.count(f"consumer killed between {between}", handled=row.handled_elsewhere())
    report(found)
    assert (found.handled_again, found.letters_again) == again
    chain = verify_chain(row.folder / "audit.jsonl")
    assert chain.intact
    assert chain.records == len(row.forged) + EACH * (moment in ("audit", "letter"))


async def test_consumers_race_on_copies(row: Scene, own_redis: Redis, report: Report) -> None:
    """Of a message and its copies, taken by two processes, one is handled, once, and the others are replays."""
    audit = str(row.folder / "audit.{pid}.jsonl")
    racers = [await orders(row, own_redis, audit=audit, lease=60, ends=False).aprocess() for _ in range(2)]
    # One that is ready first could handle all messages before the other has begun.
    await until(lambda: row.consumed_by(2), WITHIN)
    for _ in range(12):
        await row.copy(await row.send(50))
    await row.copy(row.honest[:50])
    await row.done(handled=row.handled_elsewhere, seconds=WITHIN)
    for racer in racers:
        racer.terminate()
    assert [await asyncio.wait_for(racer.wait(), WITHIN) for racer in racers] == [0, 0]
    assert all(path.stat().st_size for path in row.folder.glob("audit.*.jsonl"))
    found = await row.count("two consumers racing on copies", handled=row.handled_elsewhere())
    report(found)
    assert found.duplicates == 0


def _down_and_up(broker: RabbitMQ, how: str) -> None:
    """Stop a broker, in order or by SIGKILL, and start it again."""
    broker.kill() if how == "killed" else broker.stop()
    broker.start()


async def _settled_in(broker: RabbitMQ, how: str) -> None:
    """Restart a broker before it is killed.

    RabbitMQ 4.0.5 loses a quorum queue, and what it confirmed, where it is killed within a few minutes of
    the queue's declaration ("name_not_registered"; compare rabbitmq-server issue 15725).
    """
    if how == "killed":
        await asyncio.to_thread(_down_and_up, broker, "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_broker_down_while_consuming(
    row: Scene, own_rabbitmq: RabbitMQ, own_redis: Redis, report: Report, how: str
) -> None:
    """RabbitMQ stopped in order, or killed, under a consumer: it goes on by itself, nothing handled twice."""
    await _settled_in(own_rabbitmq, how)
    await row.send_stubbornly(200)
    await row.forge_some(50)

    async def slowly(verified: Verified) -> None:
        await asyncio.sleep(0.01)
        await row.handle(verified)

    with row.audit_file() as audit:
        async with await row.consumer(row.guard(audit, row.store(own_redis.url)), slowly) as consumer:
            await until(lambda: len(row.handled) > 40)
            await asyncio.to_thread(_down_and_up, own_rabbitmq, how)
            await row.done(consumer)
            assert consumer.health().connection_deaths > 0
    found = await row.count(f"RabbitMQ {how} while consuming")
    report(found)
    assert found.handled_again == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "killed"])
async def test_broker_down_while_publishing(
    row: Scene, own_rabbitmq: RabbitMQ, own_redis: Redis, report: Report, how: str
) -> None:
    """RabbitMQ stopped under a producer that publishes again what was not confirmed: nothing confirmed is lost."""
    await _settled_in(own_rabbitmq, how)
    down = asyncio.create_task(asyncio.to_thread(_down_and_up, own_rabbitmq, how))
    again = 0
    while not down.done() or len(row.honest) < 100:
        again += await row.send_stubbornly(5)
    await down
    assert again > 0
    with row.audit_file() as audit:
        async with await row.consumer(row.guard(audit, row.store(own_redis.url))) as consumer:
            await row.done(consumer)
    found = await row.count(f"RabbitMQ {how} while publishing")
    report(found)
    assert found.handled_again <= again


async def test_dead_letter_queue_missing(row: Scene, report: Report) -> None:
    """Without its queue nothing is dead-lettered and nothing lost: what is rejected waits, then is buried once."""
    await row.publishing.queue_delete(row.dead)
    await _no_dead_letters(row, lambda: rabbitmq.declare_dead_letters(row.publishing, row.dead))
    report(await row.count("dead-letter queue missing"))


async def test_dead_letter_queue_full(row: Scene, report: Report) -> None:
    """A queue that refuses is no dead letter: what is rejected waits until there is room."""
    await row.publishing.queue_delete(row.dead)
    full: dict[str, Any] = {"x-max-length": 5, "x-overflow": "reject-publish"}
    await row.publishing.declare_queue(row.dead, durable=True, arguments=full)
    taken: list[Letter] = []

    async def room() -> None:
        """Let someone work the full queue off, bit by bit."""
        async with asyncio.timeout(PATIENCE):
            while len(taken) < len(row.forged):
                taken.extend(await row.letters())

    await _no_dead_letters(row, room, until_done=False)
    report(await row.count("dead-letter queue full", letters=taken))


async def _no_dead_letters(row: Scene, remedy: Callable[[], Awaitable[Any]], *, until_done: bool = True) -> None:
    """Consume while dead letters cannot be published, and after the remedy to the end."""
    await row.forge_some(30)
    await row.send(60)
    with row.audit_file() as audit:
        async with await row.consumer(row.guard(audit), prefetch=50, hold=1) as consumer:
            await until(lambda: consumer.health().cause is Cause.DEAD_LETTER_UNAVAILABLE)
            await until(lambda: not consumer.health().consuming)
            await row.send(10)
            await remedy()
            await row.done(consumer) if until_done else await until(lambda: len(row.handled) == len(row.honest))
            await until(lambda: consumer.health().in_flight == 0)
    assert verify_chain(row.folder / "audit.jsonl").records == len(row.forged)


async def test_replay_store_down_and_back(row: Scene, own_redis: Redis, report: Report) -> None:
    """With its Redis down a consumer defers; Redis back, all is handled once and copies are still known."""
    first = await row.send(50)
    with row.audit_file() as audit:
        async with await row.consumer(row.guard(audit, row.store(own_redis.url)), hold=1) as consumer:
            await until(lambda: len(row.handled) == len(first))
            own_redis.stop()
            await row.send(50)
            await row.copy(first)
            await until(lambda: consumer.health().cause is Cause.REPLAY_STORE_UNAVAILABLE)
            await until(lambda: not consumer.health().consuming)
            assert len(row.handled) == len(first)
            own_redis.start()
            await row.done(consumer)
    found = await row.count("replay store down and back")
    report(found)
    assert found.duplicates == 0


async def test_confirm_fails_after_the_handler(row: Scene, own_redis: Redis, report: Report) -> None:
    """The store going down between handler and confirm makes the message wait, unacked; no handler runs again."""
    await row.send(20)

    async def last_straw(verified: Verified) -> None:
        await row.handle(verified)
        if len(row.handled) == 5:
            await asyncio.to_thread(own_redis.stop)

    with row.audit_file() as audit:
        guard = row.guard(audit, row.store(own_redis.url))
        async with await row.consumer(guard, last_straw, hold=1) as consumer:
            await until(lambda: consumer.health().cause is Cause.REPLAY_STORE_UNAVAILABLE)
            await until(lambda: not consumer.health().consuming)
            await until(lambda: 0 < consumer.health().in_flight <= len(row.handled))
            own_redis.start()
            await row.done(consumer)
    found = await row.count("confirm failing after the handler")
    report(found)
    assert found.duplicates == 0


def key_cache(server: KeyServer) -> JWKS:
    """Return a key cache whose time runs faster."""
    return JWKS(
        server.url, fresh=30, max_hold=3600, timeout=1, unsafe_http_loopback=True, clock=FastClock(),
        refresher=fast_refresher,
    )  # fmt: skip


async def test_jwks_down_cold(row: Scene, report: Report) -> None:
    """A consumer that never had a key set defers everything, forgeries too, until it gets one."""
    await row.send(30)
    await row.forge_some(10, signer=row.forge.signer(key=row.forge.stranger))
    with unreachable([row.forge.key]) as server, key_cache(server) as keys, row.audit_file() as audit:
        guard = row.guard(audit, verifier=row.verifier(keys={ISSUER: keys}))
        async with await row.consumer(guard, hold=1) as consumer:
            await until(lambda: consumer.health().cause is Cause.KEYS_UNAVAILABLE)
            await until(lambda: not consumer.health().consuming)
            assert row.handled == []
            server.up()
            await row.done(consumer)
    found = await row.count("JWKS down, cold")
    report(found)
    assert found.duplicates == 0


async def test_jwks_down_warm(row: Scene, report: Report) -> None:
    """With a set in hand a consumer goes on without its issuer; only what a new key signed waits for it."""
    new = Key.generate(subjects=[SUBJECT])
    with KeyServer() as server, key_cache(server) as keys, row.audit_file() as audit:
        server.serve([row.forge.key])
        guard = row.guard(audit, verifier=row.verifier(keys={ISSUER: keys}))
        async with await row.consumer(guard, prefetch=50, hold=30) as consumer:
            await row.send(20)
            await until(lambda: len(row.handled) == 20)
            server.down()
            await until(lambda: (keys.health().age or 0) > 30 and keys.health().failing_for is not None)
            await row.send(20, signer=row.forge.signer(key=new))
            await row.send(20)
            await until(lambda: len(row.handled) == 40)
            assert consumer.health().cause is Cause.KEY_PENDING
            server.serve([row.forge.key, new])
            server.up()
            await row.done(consumer)
    found = await row.count("JWKS down, warm")
    report(found)
    assert found.duplicates == 0


async def test_jwks_back_with_a_key_removed(row: Scene, report: Report) -> None:
    """An issuer that comes back without a key is believed: what that key signed is no longer handled."""
    gone = Key.generate(subjects=[SUBJECT])
    with KeyServer() as server, key_cache(server) as keys, row.audit_file() as audit:
        server.serve([row.forge.key, gone])
        guard = row.guard(audit, verifier=row.verifier(keys={ISSUER: keys}))
        async with await row.consumer(guard) as consumer:
            await row.send(20, signer=row.forge.signer(key=gone))
            await until(lambda: len(row.handled) == 20)
            server.down()
            await until(lambda: keys.health().failing_for is not None)
            await row.send(20, signer=row.forge.signer(key=gone))
            await until(lambda: len(row.handled) == 40)
            server.serve([row.forge.key])
            server.up()
            await until(lambda: keys.key_set().get(gone.kid) is None)
            await row.forge_some(20, signer=row.forge.signer(key=gone))
            await row.send(20)
            await row.done(consumer)
    found = await row.count("JWKS back with a key removed")
    report(found)
    assert found.duplicates == 0


@pytest.mark.parametrize("disk", DISKS)
async def test_audit_disk_full(
    row: Scene, own_redis: Redis, report: Report, disk: Callable[[Path], AbstractContextManager[Disk]]
) -> None:
    """While the audit's disk is full nothing is dead-lettered; with room again each rejection has its record."""
    log = row.folder / "log"
    with disk(row.folder / "disk") as place, log.open("wb") as stderr:
        audit = place.folder / "audit.jsonl"
        victim = await orders(row, own_redis, audit=str(audit), ends=False, hold=1).aprocess(stderr=stderr)
        await row.forge_some(5)
        await until(lambda: _waits(row, row.dead, 5))
        place.fill(victim.pid)
        await row.forge_some(15)
        await row.send(30)
        await until(lambda: "is stalled: audit_unavailable" in log.read_text())
        assert await row.waiting(row.dead) < 20  # a page of the file may have had room for a record or two
        place.free(victim.pid)
        await row.done(handled=row.handled_elsewhere)
        victim.terminate()
        assert await asyncio.wait_for(victim.wait(), WITHIN) == 0
        chain = verify_chain(audit)
    found = await row.count(f"audit disk full ({disk.__name__})", handled=row.handled_elsewhere())
    report(found)
    assert (chain.intact, chain.records, found.duplicates) == (True, 20, 0)


async def _waits(row: Scene, queue: str, number: int) -> bool:
    """Tell whether so many messages wait."""
    return await row.waiting(queue) == number


async def test_key_rotated_while_its_messages_wait(row: Scene, report: Report) -> None:
    """What a key signed before it retired is handled after; what it signs later is not."""
    old, new = row.forge.key, Key.generate(subjects=[SUBJECT])
    await row.send(40)
    retired = replace(old, expires=int(time.time()) + 1)
    await until(lambda: time.time() > (retired.expires or 0))
    await row.forge_some(10, signer=row.forge.signer(key=old))
    await row.send(40, signer=row.forge.signer(key=new))
    with KeyServer() as server, key_cache(server) as keys, row.audit_file() as audit:
        server.serve([retired, new])
        guard = row.guard(audit, verifier=row.verifier(keys={ISSUER: keys}))
        async with await row.consumer(guard) as consumer:
            await row.done(consumer)
    found = await row.count("key rotated while its messages wait")
    report(found)
    assert found.duplicates == 0


async def test_handler_always_raises(row: Scene, own_redis: Redis, report: Report) -> None:
    """What a handler cannot do is dead-lettered after its attempts, once, and holds nothing else up."""
    await row.send(20, failing=True)
    await row.send(40)
    tried: list[bytes] = []

    async def handler(verified: Verified) -> None:
        if (verified.body or b"").startswith(b"failing"):
            tried.append(verified.body or b"")
            raise ValueError("no")
        await row.handle(verified)

    with row.audit_file() as audit:
        async with await row.consumer(row.guard(audit, row.store(own_redis.url)), handler) as consumer:
            await row.done(consumer)
    found = await row.count("handler that always raises")
    report(found)
    assert (len(tried), found.duplicates) == (40, 0)


@pytest.mark.parametrize("step", [STEP, -STEP])
async def test_clock_stepped(row: Scene, own_redis: Redis, report: Report, step: float) -> None:
    """A consumer's clock that steps by five minutes condemns nothing and lets no copy in."""
    clock = SteppingClock()
    row.forge.lifetime = 60
    first = await row.send(40)
    with row.audit_file() as audit:
        store = row.store(own_redis.url, clock=clock)
        guard = row.guard(audit, store, clock=clock, verifier=row.verifier(max_queue_age=400))
        async with await row.consumer(guard) as consumer:
            await until(lambda: len(row.handled) == len(first))
            clock.offset = step
            await row.copy(first)
            second = await row.send(40)
            await row.done(consumer)
            clock.offset = 0
            await row.copy(second)
            await row.done(consumer)
    found = await row.count(f"clock stepped {step:+.0f} s")
    report(found)
    assert found.duplicates == 0


@pytest.mark.slow
async def test_flood_of_forgeries(row: Scene, own_redis: Redis, report: Report) -> None:
    """Of forged messages among as many honest ones, 10,000 nightly, each is buried, and each honest handled."""
    for _ in range(FLOOD // 500):
        impostor = row.forge.signer(key=row.forge.neighbour, subject=NEIGHBOUR)  # known, and not allowed here
        await asyncio.gather(row.send(500), row.forge_some(250), row.forge_some(250, signer=impostor))
    with row.audit_file() as audit:
        guard = row.guard(audit, row.store(own_redis.url))
        async with await row.consumer(guard, prefetch=200) as consumer:
            await row.done(consumer, seconds=300)
    found = await row.count(f"{FLOOD:,} forged among {FLOOD:,} honest")
    report(found)
    assert (found.sent, found.handled, found.dead_lettered, found.duplicates) == (2 * FLOOD, FLOOD, FLOOD, 0)


@pytest.mark.slow
async def test_long_handler_loses_its_connection(row: Scene, own_redis: Redis, report: Report) -> None:
    """A handler three leases long whose connection is lost is run once: its claim is renewed meanwhile."""
    await row.send(5)
    begun = asyncio.Event()

    async def handler(verified: Verified) -> None:
        begun.set()
        await asyncio.sleep(3 * LEASE)
        await row.handle(verified)

    async with Wire(row.url) as wire:
        with row.audit_file() as audit:
            guard = row.guard(audit, row.store(own_redis.url), lease=LEASE)
            async with await row.consumer(guard, handler, url=wire.url) as consumer:
                await begun.wait()
                wire.cut()
                await row.done(consumer)
                assert consumer.health().connection_deaths == 1
    found = await row.count("connection lost under long handlers")
    report(found)
    assert found.duplicates == 0
