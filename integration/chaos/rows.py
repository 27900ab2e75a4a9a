"""The rows of the chaos table that both brokers have: each prints and asserts its sums."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis as client_library

from integration.chaos.faults import (
    Disk,
    FastClock,
    SteppingClock,
    fast_refresher,
    may_mount,
    quota,
    small_disk,
)
from integration.chaos.row import Count
from integration.keyserver import KeyServer
from integration.scale import is_nightly, nightly
from integration.services import Redis
from integration.waiting import until
from mqauth import JWKS, JWKSFile, Verified
from mqauth.audit import disk
from mqauth.audit.chain import verify_chain
from mqauth.errors import Cause, Verdict
from mqauth.stores.file import FileReplayStore
from mqauth.testing.forge import ISSUER, NEIGHBOUR, SUBJECT
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import Key, KeySet

Report = Callable[[Count], Count]
WITHIN = 120
STEP = 300.0
HOW = ["stopped", "killed"] if is_nightly() else ["killed"]
"""A broker that is killed has no chance to do what one that is stopped does; the latter is tried at night."""
FLOOD = nightly(10_000, otherwise=500)
DISKS: list[Callable[[Path], AbstractContextManager[Disk]]] = [
    quota,
    *([small_disk] if may_mount() else []),
]


def key_cache(server: KeyServer) -> JWKS:
    """Return a key cache whose time runs faster."""
    return JWKS(
        server.url, fresh=30, timeout=1, unsafe_http_loopback=True, clock=FastClock(),
        refresher=fast_refresher,
    )  # fmt: skip


def dumped(*keys: Key) -> bytes:
    """Return a file of keys."""
    return json.dumps(dump_key_set(KeySet(keys))).encode()


def down_and_up(broker: Any, how: str) -> None:
    """Stop a broker, in order or by SIGKILL, and start it again."""
    broker.kill() if how == "killed" else broker.stop()
    broker.start()


class Rows:
    """Rows on a scene of their own (``row``), with ``at="append"`` and tokens that live an hour.

    Attributes:
        in_hand: how many messages may be handled again where the broker goes away.
    """

    in_hand = 0

    def test_consumers_race_on_copies(
        self, row: Any, redis: Redis, tmp_path: Path, report: Report
    ) -> None:
        """Of a message and its copies, taken by two processes, one is handled, once; the others are replays."""
        audit = str(tmp_path / "audit.{pid}.jsonl")
        racers = [row.orders(redis=redis.url, audit=audit).process() for _ in range(2)]
        # One that is ready first could handle all messages before the other has begun.
        until(lambda: row.consumed_by(racers), seconds=WITHIN)
        # Turned round, so that each copy is at another place than its original.
        for _ in range(4):
            row.copy(row.send(50)[::-1])
        row.copy(row.honest[:50])
        row.done(handled=row.handled_elsewhere, seconds=WITHIN)
        row.end(racers)
        assert all(path.stat().st_size for path in tmp_path.glob("audit.*.jsonl"))
        assert (
            report(
                row.count(
                    "two consumers racing on copies", handled=row.handled_elsewhere()
                )
            ).duplicates
            == 0
        )

    @pytest.mark.parametrize("how", HOW)
    def test_broker_down_while_consuming(
        self, row: Any, redis: Redis, report: Report, how: str
    ) -> None:
        """A broker stopped in order, or killed, under a consumer: it goes on by itself, and nothing is lost."""
        pace = threading.Event()
        row.settle_in(how)
        row.send(200)
        row.forge_some(50)
        row.send(200)

        def slowly(verified: Verified) -> None:
            pace.wait(0.01)
            row.handle(verified)

        with row.audit_file() as audit:
            guard = row.guard(audit, row.store(redis.url))
            with row.consumer(guard, slowly, **row.few_at_once) as consumer:
                until(lambda: len(row.handled) > 40, consumer)
                down_and_up(row.service, how)
                row.done(consumer)
        assert (
            report(row.count(f"broker {how} while consuming")).handled_again
            <= self.in_hand
        )

    @pytest.mark.parametrize("how", HOW)
    def test_broker_down_while_publishing(
        self, row: Any, redis: Redis, report: Report, how: str
    ) -> None:
        """What a producer was told is confirmed is not lost; what it publishes again may be handled again."""
        row.settle_in(how)
        failures = row.send_stubbornly(5)
        down = threading.Thread(target=down_and_up, args=(row.service, how))
        down.start()
        while down.is_alive() or len(row.honest) < 100:
            failures += row.send_stubbornly(5)
        assert failures > 0
        with (
            row.audit_file() as audit,
            row.consumer(row.guard(audit, row.store(redis.url))) as consumer,
        ):
            row.done(consumer)
        assert (
            report(row.count(f"broker {how} while publishing")).handled_again <= failures
        )

    def test_replay_store_down_and_back(
        self, row: Any, own_redis: Redis, report: Report
    ) -> None:
        """With its Redis down a consumer defers; Redis back, all is handled once and copies are still known."""
        first = row.send(50)
        with row.audit_file() as audit:
            guard = row.guard(audit, row.store(own_redis.url))
            with row.consumer(guard, **row.impatient) as consumer:
                row.done(consumer)
                own_redis.stop()
                row.send(50)
                row.copy(first)
                until(
                    lambda: consumer.health().cause is Cause.REPLAY_STORE_UNAVAILABLE,
                    consumer,
                )
                assert len(row.handled) == len(first)
                own_redis.start()
                row.done(consumer)
        assert report(row.count("replay store down and back")).duplicates == 0

    def test_replay_store_forgets(
        self, row: Any, own_redis: Redis, report: Report
    ) -> None:
        """Its Redis emptied, a consumer goes on once that is on record; nothing honest is lost."""
        row.send(50)
        with (
            row.audit_file() as audit,
            client_library.Redis.from_url(own_redis.url) as admin,
        ):
            store = row.store(own_redis.url)
            with row.consumer(row.guard(audit, store), **row.impatient) as consumer:
                row.done(consumer)
                admin.flushall()
                row.send(50)
                row.done(consumer)
            records = [json.loads(line) for line in audit.path.read_text().splitlines()]
        assert [record["verdict"] for record in records] == ["replay_memory_lost"]
        assert store.losses == 1
        deferred = [each for each in row.outcomes if each.verdict is Verdict.DEFERRED]
        assert {each.cause for each in deferred} == {Cause.REPLAY_STORE_UNAVAILABLE}
        assert report(row.count("replay store that forgot")).duplicates == 0

    def test_replay_file_deleted(self, row: Any, report: Report) -> None:
        """A replay file that is deleted under an idle consumer is on record when that has stopped."""
        row.send(20)
        store = FileReplayStore(row.folder / "replay.sqlite")
        with row.audit_file() as audit:
            with row.consumer(row.guard(audit, store)) as consumer:
                row.done(consumer)
                (row.folder / "replay.sqlite").unlink()
                until(lambda: store.losses, consumer)
            records = [json.loads(line) for line in audit.path.read_text().splitlines()]
        store.close()
        assert [record["verdict"] for record in records] == ["replay_memory_lost"]
        assert report(row.count("replay file deleted")).duplicates == 0

    def test_confirm_fails_after_the_handler(
        self, row: Any, own_redis: Redis, report: Report
    ) -> None:
        """The store going down between handler and confirm makes the message wait; no handler runs again."""
        gone = threading.Event()
        row.send(20)

        def last_straw(verified: Verified) -> None:
            row.handle(verified)
            if len(row.handled) == 5:
                own_redis.stop()
                gone.set()

        with row.audit_file() as audit:
            guard = row.guard(audit, row.store(own_redis.url))
            with row.consumer(guard, last_straw, **row.impatient) as consumer:
                until(
                    lambda: consumer.health().cause is Cause.REPLAY_STORE_UNAVAILABLE,
                    consumer,
                )
                # The handler stops the store on a thread of its own, and may not have seen its end yet.
                until(gone.is_set, consumer)
                own_redis.start()
                row.done(consumer)
        assert report(row.count("confirm failing after the handler")).duplicates == 0

    def test_jwks_down_warm(self, row: Any, report: Report) -> None:
        """With a set in hand a consumer goes on without its issuer; only what a new key signed waits for it."""
        new = Key.generate(subjects=[SUBJECT])
        with KeyServer() as server, key_cache(server) as keys, row.audit_file() as audit:
            server.serve([row.forge.key])
            guard = row.guard(audit, verifier=row.verifier(keys={ISSUER: keys}))
            with row.consumer(guard) as consumer:
                row.send(20)
                until(lambda: len(row.handled) == 20, consumer)
                server.down()
                until(
                    lambda: (
                        (keys.health().age or 0) > 30
                        and keys.health().failing_for is not None
                    ),
                    consumer,
                )
                row.send(8, signer=row.forge.signer(key=new), **row.one_partition)
                row.send(20, **row.other_partition)
                until(lambda: len(row.handled) == 40, consumer)
                until(lambda: consumer.health().cause is Cause.KEY_PENDING, consumer)
                server.serve([row.forge.key, new])
                server.up()
                row.done(consumer)
        assert report(row.count("JWKS down, warm")).duplicates == 0

    @pytest.mark.parametrize("content", [None, b"", b'{"keys":[{"kty"'])
    def test_key_file_unreadable(
        self, row: Any, report: Report, content: bytes | None
    ) -> None:
        """While its file of keys is gone, empty or half-written, only what a new key signed waits."""
        new = Key.generate(subjects=[SUBJECT])
        path = row.folder / "keys.json"
        disk.write_whole(path, dumped(row.forge.key))
        keys = JWKSFile(path)
        with row.audit_file() as audit:
            guard = row.guard(audit, verifier=row.verifier(keys={ISSUER: keys}))
            with row.consumer(guard) as consumer:
                row.send(20)
                until(lambda: len(row.handled) == 20, consumer)
                path.unlink() if content is None else path.write_bytes(content)
                row.send(8, signer=row.forge.signer(key=new), **row.one_partition)
                row.send(20, **row.other_partition)
                until(lambda: len(row.handled) == 40, consumer)
                until(lambda: consumer.health().cause is Cause.KEY_PENDING, consumer)
                assert str(path) in consumer.health().detail
                disk.write_whole(path, dumped(row.forge.key, new))
                row.done(consumer)
        assert report(row.count("key file unreadable")).duplicates == 0

    def test_jwks_back_with_a_key_removed(self, row: Any, report: Report) -> None:
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
        assert report(row.count("JWKS back with a key removed")).duplicates == 0

    @pytest.mark.parametrize("disk", DISKS)
    def test_audit_disk_full(
        self, row: Any, redis: Redis, tmp_path: Path, report: Report,
        disk: Callable[[Path], AbstractContextManager[Disk]],
    ) -> None:  # fmt: skip
        """While the audit's disk is full there is no dead letter; with room again each rejection is recorded."""
        log = tmp_path / "log"
        with disk(tmp_path / "disk") as place, log.open("wb") as stderr:
            audit = place.folder / "audit.jsonl"
            row.forge_some(6)
            victim = row.orders(redis=redis.url, audit=str(audit), hold=1).process(
                stderr=stderr
            )
            until(lambda: row.buried() == 6)
            place.fill(victim.pid)
            row.forge_some(14)
            row.send(30)
            until(lambda: "audit_unavailable" in log.read_text())
            # A page of the file may have had room for a record or two.
            assert row.buried() < 20
            place.free(victim.pid)
            row.done(handled=row.handled_elsewhere)
            row.end([victim])
            chain = verify_chain(audit)
            found = row.count(
                f"audit disk full ({disk.__name__})", handled=row.handled_elsewhere()
            )
            report(found)
            assert (chain.intact, chain.records, found.duplicates) == (True, 20, 0)

    def test_key_rotated_while_its_messages_wait(self, row: Any, report: Report) -> None:
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
        assert report(row.count("key rotated while its messages wait")).duplicates == 0

    @pytest.mark.parametrize("step", [STEP, -STEP])
    def test_clock_stepped(
        self, row: Any, redis: Redis, report: Report, step: float
    ) -> None:
        """A consumer's clock that steps by five minutes condemns nothing and lets no copy in."""
        clock = SteppingClock()
        row.forge.lifetime = 60
        first = row.send(40)
        with row.audit_file() as audit:
            store = row.store(redis.url, clock=clock)
            guard = row.guard(
                audit, store, clock=clock, verifier=row.verifier(max_queue_age=400)
            )
            with row.consumer(guard) as consumer:
                row.done(consumer)
                clock.offset = step
                row.copy(first)
                second = row.send(40)
                row.done(consumer)
                clock.offset = 0
                row.copy(second)
                row.done(consumer)
        assert report(row.count(f"clock stepped {step:+.0f} s")).duplicates == 0

    def test_flood_of_forgeries(self, row: Any, redis: Redis, report: Report) -> None:
        """Of forged messages among as many honest ones, 10,000 nightly, each is buried, each honest handled."""
        # The impostor's signature holds, and it may not publish here.
        impostor = row.forge.signer(key=row.forge.neighbour, subject=NEIGHBOUR)
        for _ in range(FLOOD // 500):
            row.send(500)
            row.forge_some(250)
            row.forge_some(250, signer=impostor)
        with row.audit_file() as audit:
            guard = row.guard(audit, row.store(redis.url))
            with row.consumer(guard, **row.many_at_once) as consumer:
                row.done(consumer, seconds=300)
        found = row.count(f"{FLOOD:,} forged among {FLOOD:,} honest")
        report(found)
        assert (found.sent, found.handled, found.dead_lettered, found.duplicates) == (
            2 * FLOOD,
            FLOOD,
            FLOOD,
            0,
        )
