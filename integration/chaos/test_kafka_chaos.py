"""The chaos table of delivery on a real Kafka: a test a row, each prints and asserts its sums.

Rows run with ``at="append"`` on topics with LogAppendTime, and tokens that live an hour.
"""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytest
from kafka.coordinator.assignors.cooperative_sticky import CooperativeStickyAssignor
from kafka.coordinator.assignors.range import RangePartitionAssignor

from integration.chaos.count import Count
from integration.chaos.kafka_scene import Scene, scene, until
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
from integration.services import Kafka, Redis
from integration.victim import Moment, Orders
from mqauth import JWKS, Verified
from mqauth.audit.chain import verify_chain
from mqauth.errors import Cause
from mqauth.testing.forge import ISSUER, NEIGHBOUR, SUBJECT
from mqauth.wire.keys import Key

Report = Callable[[Count], None]
WITHIN = 60
STEP = 300.0
FLOOD = nightly(10_000, otherwise=500)
DAY = 86_400
KILLS = (3, 7) if is_nightly() else (3,)
"""The times that a moment comes for at which a process is killed."""
NONE, FEW, SOME = range(1), range(len(KILLS) + 1), range(len(KILLS), 2 * len(KILLS) + 1)
"""How many may come twice after them: none, those before, those in hand and perhaps those before."""
DISKS: list[Callable[[Path], AbstractContextManager[Disk]]] = [quota, *([small_disk] if may_mount() else [])]


@pytest.fixture
def row(kafka: Kafka, tmp_path: Path) -> Iterator[Scene]:
    """A scene with a source of two partitions whose records the broker stamps."""
    with scene(kafka.url, tmp_path) as row:
        yield row


@pytest.fixture
def short(kafka: Kafka, tmp_path: Path) -> Iterator[Scene]:
    """A scene whose tokens live a minute."""
    with scene(kafka.url, tmp_path, lifetime=60) as row:
        yield row


@pytest.fixture
def stopping(own_kafka: Kafka, tmp_path: Path) -> Iterator[Scene]:
    """A scene on a broker that the row may stop."""
    with scene(own_kafka.url, tmp_path) as row:
        yield row
        own_kafka.start()


def orders(row: Scene, redis: Redis, **settings: Any) -> Orders:
    """Return what a consumer process of a row is to do."""
    wanted: dict[str, Any] = {"redis": redis.url, "assigned": str(row.folder), "at_once": 500}
    return row.orders(**(wanted | settings))


def ended(*processes: subprocess.Popen[bytes]) -> None:
    """Let consumer processes end gracefully."""
    for process in processes:
        process.terminate()
    assert [process.wait(WITHIN) for process in processes] == [0] * len(processes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "between", "reread", "again"),
    [
        pytest.param("handler", "handler and confirm", "handle", (SOME, NONE), id="handler"),
        pytest.param("confirm", "confirm and commit", "handle", (SOME, NONE), id="confirm"),
        pytest.param("confirm", "confirm and commit, reread=duplicate", "duplicate", (NONE, NONE), id="duplicate"),
        pytest.param("audit", "audit and dead letter", "handle", (NONE, FEW), id="audit"),
        pytest.param("letter", "dead letter and commit", "handle", (NONE, SOME), id="letter"),
    ],
)
def test_consumer_killed(
    kafka: Kafka, redis: Redis, tmp_path: Path, report: Report,
    *, moment: Moment, between: str, reread: Literal["handle", "duplicate"], again: tuple[range, range],
) -> None:  # fmt: skip
    """Killed at this moment nothing is lost; what may come twice is the record in hand and the one before.

    The one before may have ended while its commit was still on its way.
    """
    with scene(kafka.url, tmp_path, partitions=1) as row:
        row.send(20)
        row.forge_some(20)
        row.send(20)
        for after in KILLS:
            victim = orders(row, redis, moment=moment, after=after, reread=reread, at_once=1).process()
            assert victim.wait(WITHIN) == -signal.SIGKILL
        survivor = orders(row, redis, reread=reread).process()
        row.done(handled=row.handled_elsewhere)
        ended(survivor)
        found = row.count(f"consumer killed between {between}", handled=row.handled_elsewhere())
        report(found)
        assert found.handled_again in again[0]
        assert found.letters_again in again[1]
        chain = verify_chain(tmp_path / "audit.jsonl")
        assert chain.intact
        assert chain.records == len(row.forged) + found.letters_again + len(KILLS) * (moment == "audit")


def test_consumers_race_on_copies(kafka: Kafka, redis: Redis, tmp_path: Path, report: Report) -> None:
    """Of a record and its copies, read by two processes of a group, one is handled; the others are replays."""
    with scene(kafka.url, tmp_path) as row:
        audit = str(tmp_path / "audit.{pid}.jsonl")
        racers = [orders(row, redis, audit=audit).process() for _ in range(2)]
        places = [tmp_path / f"assigned.{racer.pid}" for racer in racers]
        until(lambda: [place.read_text() if place.exists() else "" for place in places] == ["1", "1"])
        for number in range(0, 200, 50):
            some = row.send(50, partition=number % 4 // 2)
            row.copy(some, partition=1 - number % 4 // 2)
        row.copy(row.honest[:50])
        row.done(handled=row.handled_elsewhere)
        ended(*racers)
        assert all(path.stat().st_size for path in tmp_path.glob("audit.*.jsonl"))
        found = row.count("two consumers racing on copies", handled=row.handled_elsewhere())
        report(found)
        assert found.duplicates == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "assignor", [RangePartitionAssignor, CooperativeStickyAssignor], ids=["eager", "cooperative"]
)
def test_rebalance_in_the_middle(row: Scene, redis: Redis, report: Report, assignor: Any) -> None:
    """A consumer that joins and leaves in the middle of a batch costs nothing but a batch handled again."""
    row.send(300)
    row.forge_some(20)
    row.send(300)
    settings = {"partition_assignment_strategy": [assignor], "max_poll_records": 100}
    begun, joined = threading.Event(), threading.Event()

    def handler(verified: Verified) -> None:
        row.handle(verified)
        begun.set()
        if len(row.handled) == 40:
            joined.wait(WITHIN)

    with row.audit_file() as audit:
        guard = row.guard(audit, row.store(redis.url))
        with row.consumer(guard, handler, client=settings) as first:
            assert begun.wait(WITHIN)
            client = row.consuming(**settings)
            with row.consumer(guard, client=client) as second:
                until(lambda: bool(client.assignment()), second)
                joined.set()
                until(lambda: len({*row.handled}) > 300, first)
            client.close()
            row.done(first)
    found = row.count(f"rebalance in the middle of a batch ({assignor.name})")
    report(found)
    assert found.handled_again <= 200  # at most the batches in hand


@pytest.mark.parametrize(("reread", "again"), [("handle", 5 * 100), ("duplicate", 0)])
def test_offset_reset_same_group(
    short: Scene, redis: Redis, report: Report, *, reread: Literal["handle", "duplicate"], again: int
) -> None:
    """Read from the beginning five times, a day later: nothing honest is rejected; ``reread`` decides."""
    row, clock = short, SteppingClock()
    row.send(100)
    row.forge_some(10)
    row.copy(row.honest[:10])
    with row.audit_file() as audit:
        store = row.store(redis.url, clock=clock)
        verifier = row.verifier(max_queue_age=7 * DAY)
        guard = row.guard(audit, store, clock=clock, reread=reread, verifier=verifier)
        client = row.consuming()
        for _ in range(6):
            seen = len(row.outcomes)
            with row.consumer(guard, client=client) as consumer:
                until(lambda: len(row.outcomes) == seen + 120, consumer)  # noqa: B023 - ends within
                row.done(consumer)
            client.seek_to_beginning()
            clock.offset = DAY
    found = row.count(f"offset reset, same group, reread={reread}")
    report(found)
    assert (found.handled_again, found.letters_again) == (again, 5 * 20)
    assert len({letter.id for letter in row.letters()}) == 20


def test_offset_reset_new_group(short: Scene, redis: Redis, report: Report) -> None:
    """A group that begins at the beginning a day later handles everything once more, and copies no more."""
    row, clock = short, SteppingClock()
    bodies = row.send(100)
    with row.audit_file() as audit:
        store = row.store(redis.url, clock=clock)
        guard = row.guard(audit, store, clock=clock, verifier=row.verifier(max_queue_age=7 * DAY))
        with row.consumer(guard) as consumer:
            row.done(consumer)
        clock.offset = DAY
        with row.consumer(guard, client={"group_id": row.group + ".new"}) as consumer:
            until(lambda: len(row.handled) == 200, consumer)
            row.copy(bodies)
            until(lambda: len(row.letters()) == 100, consumer)
    assert Counter(row.handled) == {body: 2 for body in bodies}
    found = row.count("offset reset, a new group")
    report(found)
    assert (found.handled_again, found.letters_again) == (100, 0)


@pytest.mark.slow
def test_redelivery_storm(row: Scene, redis: Redis, report: Report) -> None:
    """Of 1,000 honest records each delivered six times none is rejected, and of 1,000 copies none is handled."""
    bodies = row.send(1000, partition=0)
    with row.audit_file() as audit:
        guard = row.guard(audit, row.store(redis.url))
        client = row.consuming()
        for times in range(6):
            with row.consumer(guard, client=client) as consumer:
                until(lambda: len(row.handled) == 1000 * (times + 1), consumer)  # noqa: B023 - ends within
                row.done(consumer)
            client.seek(row.places[0], 0)
        row.copy(bodies, partition=1)
        client.seek_to_end(row.places[0])
        with row.consumer(guard, client=client) as consumer:
            row.done(consumer)
    found = row.count("1,000 records delivered six times, and 1,000 copies")
    report(found)
    assert (found.handled, found.dead_lettered) == (1000, 1000)
    assert (found.handled_again, found.letters_again) == (5000, 0)


def _down_and_up(broker: Kafka, how: str) -> None:
    """Stop a broker, in order or by SIGKILL, and start it again."""
    broker.kill() if how == "killed" else broker.stop()
    broker.start()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_broker_down_while_consuming(
    stopping: Scene, own_kafka: Kafka, redis: Redis, report: Report, how: str
) -> None:
    """Kafka stopped in order, or killed, under a consumer: it goes on; uncommitted records come again."""
    row, pace = stopping, threading.Event()
    row.send(200)
    row.forge_some(50)
    row.send(200)

    def slowly(verified: Verified) -> None:
        pace.wait(0.01)
        row.handle(verified)

    with row.audit_file() as audit:
        guard = row.guard(audit, row.store(redis.url))
        with row.consumer(guard, slowly, client={"max_poll_records": 50}) as consumer:
            until(lambda: len(row.handled) > 40, consumer)
            _down_and_up(own_kafka, how)
            row.done(consumer)
    found = row.count(f"broker {how} while consuming")
    report(found)
    assert found.duplicates <= 100  # at most the batches in hand


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_broker_down_while_publishing(
    stopping: Scene, own_kafka: Kafka, redis: Redis, report: Report, how: str
) -> None:
    """What a producer was told is written is not lost; a patient one needs no second send, a hasty one does."""
    row, failures, hasty = stopping, 0, stopping.hasty()
    down = threading.Thread(target=_down_and_up, args=(own_kafka, how))
    down.start()
    while down.is_alive() or len(row.honest) < 100:
        failures += row.send_stubbornly(hasty, 5)
        # The patient client waits for the whole outage, under one sequence number: so the hasty one fails first.
        if failures or not down.is_alive():
            row.send(5)
    assert failures > 0
    with row.audit_file() as audit, row.consumer(row.guard(audit, row.store(redis.url))) as consumer:
        row.done(consumer)
    found = row.count(f"broker {how} while publishing")
    report(found)
    assert found.handled_again <= failures


@pytest.mark.slow
def test_dead_letter_topic_gone(row: Scene, redis: Redis, report: Report) -> None:
    """A topic that goes away in the middle takes its letters; what is rejected after waits, and is buried once."""
    row.send(20)
    row.forge_some(10, partition=0)
    with row.audit_file() as audit, row.consumer(row.guard(audit, row.store(redis.url))) as consumer:
        row.done(consumer)
        gone = row.letters()
        row.stage.remove_dead_letters()
        row.forge_some(10, partition=0)
        row.send(20, partition=0)
        row.send(30, partition=1)
        until(lambda: consumer.health().cause is Cause.DEAD_LETTER_UNAVAILABLE, consumer)
        until(lambda: len(row.handled) == 50, consumer)
        row.stage.restore_dead_letters()
        row.done(consumer)
    found = row.count("dead-letter topic gone in the middle", letters=gone)
    report(found)
    assert found.duplicates == 0


@pytest.mark.slow
def test_dead_letter_topic_missing(row: Scene, report: Report) -> None:
    """Without its topic nothing is dead-lettered and nothing lost: what is rejected waits, then is buried once."""
    row.stage.remove_dead_letters()
    row.forge_some(30, partition=0)
    row.send(30, partition=0)
    row.send(30, partition=1)
    with row.audit_file() as audit, row.consumer(row.guard(audit)) as consumer:
        until(lambda: consumer.health().cause is Cause.DEAD_LETTER_UNAVAILABLE, consumer)
        until(lambda: len(row.handled) == 30, consumer)
        row.stage.restore_dead_letters()
        row.done(consumer)
    found = row.count("dead-letter topic missing")
    report(found)
    assert found.duplicates == 0


def test_replay_store_down_and_back(row: Scene, own_redis: Redis, report: Report) -> None:
    """With its Redis down a consumer defers; Redis back, all is handled once and copies are still known."""
    first = row.send(50)
    with row.audit_file() as audit, row.consumer(row.guard(audit, row.store(own_redis.url))) as consumer:
        row.done(consumer)
        own_redis.stop()
        row.send(50)
        row.copy(first)
        until(
            lambda: (health := consumer.health()).deferred == 2 and health.cause is Cause.REPLAY_STORE_UNAVAILABLE,
            consumer,
        )
        assert len(row.handled) == len(first)
        own_redis.start()
        row.done(consumer)
    found = row.count("replay store down and back")
    report(found)
    assert found.duplicates == 0


def test_confirm_fails_after_the_handler(row: Scene, own_redis: Redis, report: Report) -> None:
    """The store going down between handler and confirm makes the record wait; its handler is not run again."""
    row.send(20)

    def last_straw(verified: Verified) -> None:
        row.handle(verified)
        if len(row.handled) == 5:
            own_redis.stop()

    with row.audit_file() as audit:
        guard = row.guard(audit, row.store(own_redis.url))
        with row.consumer(guard, last_straw) as consumer:
            until(lambda: consumer.health().cause is Cause.REPLAY_STORE_UNAVAILABLE, consumer)
            own_redis.start()
            row.done(consumer)
    found = row.count("confirm failing after the handler")
    report(found)
    assert found.duplicates == 0


def key_cache(server: KeyServer) -> JWKS:
    """Return a key cache whose time runs faster."""
    return JWKS(
        server.url, fresh=30, max_hold=3600, timeout=1, unsafe_http_loopback=True, clock=FastClock(),
        refresher=fast_refresher,
    )  # fmt: skip


def test_jwks_down_cold(row: Scene, report: Report) -> None:
    """A consumer that never had a key set defers everything, forgeries too, until it gets one."""
    row.send(30)
    row.forge_some(10, signer=row.forge.signer(key=row.forge.stranger))
    with unreachable([row.forge.key]) as server, key_cache(server) as keys, row.audit_file() as audit:
        guard = row.guard(audit, verifier=row.verifier(keys={ISSUER: keys}))
        with row.consumer(guard) as consumer:
            # both partitions wait, but each is tried again at times of its own: seldom held at one moment
            until(lambda: consumer.health().cause is Cause.KEYS_UNAVAILABLE, consumer)
            assert row.handled == []
            server.up()
            row.done(consumer)
    found = row.count("JWKS down, cold")
    report(found)
    assert found.duplicates == 0


def test_jwks_down_warm(row: Scene, report: Report) -> None:
    """With a set in hand a consumer goes on without its issuer; only what a new key signed waits for it."""
    new = Key.generate(subjects=[SUBJECT])
    with KeyServer() as server, key_cache(server) as keys, row.audit_file() as audit:
        server.serve([row.forge.key])
        guard = row.guard(audit, verifier=row.verifier(keys={ISSUER: keys}))
        with row.consumer(guard) as consumer:
            row.send(20)
            until(lambda: len(row.handled) == 20, consumer)
            server.down()
            until(lambda: (keys.health().age or 0) > 30 and keys.health().failing_for is not None, consumer)
            row.send(20, signer=row.forge.signer(key=new), partition=0)
            row.send(20, partition=1)
            until(lambda: len(row.handled) == 40, consumer)
            until(lambda: consumer.health().cause is Cause.KEY_PENDING, consumer)
            server.serve([row.forge.key, new])
            server.up()
            row.done(consumer)
    found = row.count("JWKS down, warm")
    report(found)
    assert found.duplicates == 0


def test_jwks_back_with_a_key_removed(row: Scene, report: Report) -> None:
    """An issuer that comes back without a key is believed: what that key signed is no longer handled."""
    gone = Key.generate(subjects=[SUBJECT])
    with KeyServer() as server, key_cache(server) as keys, row.audit_file() as audit:
        server.serve([row.forge.key, gone])
        guard = row.guard(audit, verifier=row.verifier(keys={ISSUER: keys}))
        with row.consumer(guard) as consumer:
            row.send(20, signer=row.forge.signer(key=gone))
            until(lambda: len(row.handled) == 20, consumer)
            server.down()
            until(lambda: keys.health().failing_for is not None, consumer)
            row.send(20, signer=row.forge.signer(key=gone))
            until(lambda: len(row.handled) == 40, consumer)
            server.serve([row.forge.key])
            server.up()
            until(lambda: keys.key_set().get(gone.kid) is None, consumer)
            row.forge_some(20, signer=row.forge.signer(key=gone))
            row.send(20)
            row.done(consumer)
    found = row.count("JWKS back with a key removed")
    report(found)
    assert found.duplicates == 0


@pytest.mark.parametrize("disk", DISKS)
def test_audit_disk_full(
    kafka: Kafka, redis: Redis, tmp_path: Path, report: Report,
    disk: Callable[[Path], AbstractContextManager[Disk]],
) -> None:  # fmt: skip
    """While the audit's disk is full nothing is dead-lettered; with room again each rejection has its record."""
    log = tmp_path / "log"
    with (
        scene(kafka.url, tmp_path) as row,
        disk(tmp_path / "disk") as place,
        log.open("wb") as stderr,
    ):
        audit = place.folder / "audit.jsonl"
        row.forge_some(6)
        victim = orders(row, redis, audit=str(audit)).process(stderr=stderr)
        until(lambda: len(row.letters()) == 6)
        place.fill(victim.pid)
        row.forge_some(14)
        row.send(30)
        until(lambda: "audit_unavailable" in log.read_text())
        assert len(row.letters()) < 20  # a page of the file may have had room for a record or two
        place.free(victim.pid)
        row.done(handled=row.handled_elsewhere)
        ended(victim)
        chain = verify_chain(audit)
        found = row.count(f"audit disk full ({disk.__name__})", handled=row.handled_elsewhere())
        report(found)
        assert (chain.intact, chain.records, found.duplicates) == (True, 20, 0)


def test_key_rotated_while_its_messages_wait(row: Scene, report: Report) -> None:
    """What a key signed before it retired is handled after; what it signs later is not."""
    old, new = row.forge.key, Key.generate(subjects=[SUBJECT])
    row.send(40)
    retired = replace(old, expires=int(time.time()) + 1)
    until(lambda: time.time() > (retired.expires or 0))
    row.forge_some(10, signer=row.forge.signer(key=old))
    row.send(40, signer=row.forge.signer(key=new))
    with KeyServer() as server, key_cache(server) as keys, row.audit_file() as audit:
        server.serve([retired, new])
        guard = row.guard(audit, verifier=row.verifier(keys={ISSUER: keys}))
        with row.consumer(guard) as consumer:
            row.done(consumer)
    found = row.count("key rotated while its messages wait")
    report(found)
    assert found.duplicates == 0


def test_handler_always_raises(row: Scene, redis: Redis, report: Report) -> None:
    """What a handler cannot do is dead-lettered after its attempts, once, and holds nothing else up."""
    row.send(20, failing=True)
    row.send(40)
    tried: list[bytes] = []

    def handler(verified: Verified) -> None:
        if (verified.body or b"").startswith(b"failing"):
            tried.append(verified.body or b"")
            raise ValueError("no")
        row.handle(verified)

    with row.audit_file() as audit, row.consumer(row.guard(audit, row.store(redis.url)), handler) as consumer:
        row.done(consumer)
    found = row.count("handler that always raises")
    report(found)
    assert (len(tried), found.duplicates) == (40, 0)


@pytest.mark.parametrize("step", [STEP, -STEP])
def test_clock_stepped(short: Scene, redis: Redis, report: Report, step: float) -> None:
    """A consumer's clock that steps by five minutes condemns nothing and lets no copy in."""
    row, clock = short, SteppingClock()
    first = row.send(40)
    with row.audit_file() as audit:
        store = row.store(redis.url, clock=clock)
        guard = row.guard(audit, store, clock=clock, verifier=row.verifier(max_queue_age=400))
        with row.consumer(guard) as consumer:
            row.done(consumer)
            clock.offset = step
            row.copy(first)
            second = row.send(40)
            row.done(consumer)
            clock.offset = 0
            row.copy(second)
            row.done(consumer)
    found = row.count(f"clock stepped {step:+.0f} s")
    report(found)
    assert found.duplicates == 0


@pytest.mark.slow
def test_flood_of_forgeries(row: Scene, redis: Redis, report: Report) -> None:
    """Of forged records among as many honest ones, 10,000 nightly, each is buried; the honest ones are handled."""
    impostor = row.forge.signer(
        key=row.forge.neighbour, subject=NEIGHBOUR
    )  # whose signature holds, and who may not publish here
    for _ in range(FLOOD // 500):
        row.send(500)
        row.forge_some(250)
        row.forge_some(250, signer=impostor)
    with row.audit_file() as audit, row.consumer(row.guard(audit, row.store(redis.url)), workers=2) as consumer:
        row.done(consumer, seconds=180)
    found = row.count(f"{FLOOD:,} forged among {FLOOD:,} honest")
    report(found)
    assert (found.sent, found.handled, found.dead_lettered, found.duplicates) == (2 * FLOOD, FLOOD, FLOOD, 0)


@pytest.mark.slow
def test_long_pause_is_no_rebalance(row: Scene, own_redis: Redis, report: Report) -> None:
    """A partition that waits four times ``max_poll_interval_ms`` long is still ours, in the same generation."""
    row.send(20)
    limits = {"max_poll_interval_ms": 1500, "session_timeout_ms": 3000, "heartbeat_interval_ms": 300}
    client = row.consuming(**limits)
    generation = client._coordinator.generation_if_stable
    with row.audit_file() as audit:
        guard = row.guard(audit, row.store(own_redis.url))
        with row.consumer(guard, client=client) as consumer:
            row.done(consumer)
            before = generation()
            own_redis.stop()
            row.send(20)
            until(lambda: time.time() - (consumer.health().stalled_since or time.time()) > 6, consumer)
            own_redis.start()
            row.done(consumer)
            after = generation()
    found = row.count("partitions paused for four poll intervals")
    report(found)
    assert before.member_id
    assert (after, found.duplicates) == (before, 0)
