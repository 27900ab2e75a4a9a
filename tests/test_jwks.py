"""The remote key cache over scripted answers and sockets: no network, no waiting, every bound on a fake clock."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import mqauth
from mqauth import JWKS, flow
from mqauth.audit.record import AuditRecord
from mqauth.errors import Cause, ConfigurationError, Reason, Unavailable
from mqauth.http.connection import Deadline, Endpoint, FetchFailed, tls_context
from mqauth.http.exchange import Response, request
from mqauth.judging.pipeline import Pipeline, Verdict
from mqauth.judging.verifier import Issuer
from mqauth.keystore.remote.fetch import (
    DiscoveredFetch,
    Ended,
    ThreadRefresher,
    URLFetch,
    load_snapshot,
    save_snapshot,
)
from mqauth.keystore.remote.rules import Answer
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing import FakeClock, Forge
from mqauth.testing.forge import ISSUER
from mqauth.wire.jwk import MAX_DOCUMENT, dump_key_set
from mqauth.wire.keys import Key, KeySet
from mqauth.wire.message import Message

URL = "https://auth.example/jwks.json"
A, B, C = (Key.generate() for _ in range(3))


class Script:
    """An issuer that says what it is told to, and counts."""

    def __init__(self, *keys: Key) -> None:
        self.answer: Answer | Exception = Answer(keys=KeySet(keys), etag='"1"')
        self.asked: list[str | None] = []

    def serve(self, *keys: Key, **said: Any) -> None:
        """Answer with these keys from now on."""
        self.answer = Answer(keys=KeySet(keys), **said)

    def fail(self, error: Exception | None = None) -> None:
        """Fail from now on."""
        self.answer = error or FetchFailed("out of reach")

    def __call__(self, etag: str | None, /) -> Answer:
        self.asked.append(etag)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class Inline(ThreadRefresher):
    """Does the work on the spot, or, while told to hang, not at all; waiting moves the clock."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(threading.Condition(), lambda: 0.0)
        self.clock = clock
        self.hang = False
        self.waited = 0.0
        self.work: Callable[[], float] = lambda: 0.0
        self.closed = False

    def ensure(self) -> None:
        if not self.hang and not self.closed:
            self.work()

    def wake(self) -> None:
        self.ensure()

    def wait(self, _ended: Ended, seconds: float, /) -> None:
        self.waited += seconds
        self.clock.advance(seconds)

    async def pause(self, ended: Ended, seconds: float, /) -> None:
        await asyncio.sleep(0)
        if not ended.done():
            self.wait(ended, seconds)

    def close(self) -> None:
        self.closed = True


class Bench:
    """One cache on a fake clock, with its issuer and its sets."""

    def __init__(self, clock: FakeClock, *keys: Key, **settings: Any) -> None:
        self.clock = clock
        self.issuer = Script(*keys)
        self.inline = Inline(clock)
        self.sets: list[KeySet] = []
        wanted: dict[str, Any] = {
            "fetch": self.issuer, "clock": clock, "randomness": bytes, "refresher": self._refresher,
        }  # fmt: skip
        self.jwks = JWKS(URL, **(wanted | settings))
        self.jwks.subscribe(self.sets.append)

    def _refresher(
        self, condition: threading.Condition, work: Callable[[], float]
    ) -> Inline:
        self.inline.work = work
        return self.inline

    def tick(self, seconds: float) -> None:
        """Let time pass, and the background do what is due."""
        self.clock.advance(seconds)
        self.jwks.start()

    def refresh(self, kid: str, *, received: float | None = None) -> KeySet:
        """Look again for a kid of a message received now, unless told otherwise."""
        return self.jwks.refresh(kid, self.clock.now() if received is None else received)

    def cause(self, kid: str, **settings: Any) -> Cause:
        """Return why a look-up is deferred."""
        with pytest.raises(Unavailable) as caught:
            self.refresh(kid, **settings)
        return caught.value.cause


@pytest.fixture
def bench(clock: FakeClock) -> Bench:
    """A cache whose issuer has A and B."""
    return Bench(clock, A, B)


@pytest.fixture
def warm(bench: Bench) -> Bench:
    """The same, with a set a minute old."""
    bench.jwks.start()
    bench.clock.advance(60)
    return bench


# Serving


def test_nothing_is_fetched_before_first_use(bench: Bench) -> None:
    """A cache that was only built asks nobody, so that a configuration can be checked offline."""
    assert bench.issuer.asked == []
    assert bench.jwks.key_set().get(A.kid) == A.public_only
    assert bench.issuer.asked == [None]


def test_a_cold_cache_whose_issuer_is_down_is_unavailable(bench: Bench) -> None:
    """Without any set every look-up is deferred as ``keys_unavailable``."""
    bench.issuer.fail()
    with pytest.raises(Unavailable) as caught:
        bench.jwks.key_set()
    assert caught.value.cause is Cause.KEYS_UNAVAILABLE
    assert bench.cause(A.kid) is Cause.KEYS_UNAVAILABLE


def test_a_known_kid_takes_no_lock(warm: Bench) -> None:
    """A look-up goes through while another thread holds the cache's lock."""
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with warm.jwks._condition:
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert held.wait(10)
    found = warm.jwks.key_set().get(A.kid)
    assert not done.is_set()
    done.set()
    thread.join()
    assert found == A.public_only


# Unknown kids, in both colours


def asynchronous(bench: Bench, kid: str) -> KeySet:
    """Look again as an event loop does."""
    return asyncio.run(bench.jwks.arefresh(kid, bench.clock.now()))


def synchronous(bench: Bench, kid: str) -> KeySet:
    """Look again as a plain thread does."""
    return bench.jwks.refresh(kid, bench.clock.now())


@pytest.fixture(params=[synchronous, asynchronous])
def look(request: pytest.FixtureRequest) -> Callable[[Bench, str], KeySet]:
    """A look-up in either colour."""
    found: Callable[[Bench, str], KeySet] = request.param
    return found


def test_a_new_key_is_found_at_once(
    warm: Bench, look: Callable[[Bench, str], KeySet]
) -> None:
    """A kid that the issuer published since the last fetch is there after one look."""
    warm.issuer.serve(A, B, C)
    assert look(warm, C.kid).get(C.kid) == C.public_only
    assert len(warm.issuer.asked) == 2


def test_an_unknown_kid_is_in_no_request(warm: Bench) -> None:
    """An issuer is asked with the entity tag alone: what a sender wrote stands in no URL."""
    warm.refresh("../../evil?kid=x")
    assert warm.issuer.asked[-1] == '"1"'


def test_a_kid_the_issuer_lacks_is_unknown(
    warm: Bench, look: Callable[[Bench, str], KeySet]
) -> None:
    """After one look the set comes back without the kid, and a second message makes no second look."""
    for _ in range(20):
        assert look(warm, C.kid).get(C.kid) is None
    assert len(warm.issuer.asked) == 2


def test_an_outage_defers_unknown_kids_for_as_long_as_it_lasts(
    warm: Bench, look: Callable[[Bench, str], KeySet]
) -> None:
    """``key_pending`` for each, and an attempt in half a minute: 40 in 20 minutes."""
    warm.issuer.fail()
    for _ in range(1200):
        with pytest.raises(Unavailable, match="key_pending: out of reach"):
            look(warm, C.kid)
        warm.clock.advance(1)
    assert len(warm.issuer.asked) == 1 + 40
    assert warm.jwks.key_set().get(A.kid) is not None


def test_a_hanging_issuer_is_waited_for_two_seconds_in_all(
    warm: Bench, look: Callable[[Bench, str], KeySet]
) -> None:
    """Twenty unknown kids behind one hanging attempt wait 2 s together, not each."""
    warm.inline.hang = True
    for number in range(20):
        with pytest.raises(Unavailable) as caught:
            look(warm, f"kid-{number}")
        assert caught.value.cause is Cause.KEY_PENDING
    assert warm.inline.waited == pytest.approx(2)


class Gate:
    """An issuer whose second answer, with C, comes when the gate is opened."""

    def __init__(self) -> None:
        self.issuer, self.opened = Script(A), threading.Event()

    def __call__(self, etag: str | None, /) -> Answer:
        if self.issuer.asked:
            self.issuer.serve(A, C)
            assert self.opened.wait(10)
        return self.issuer(etag)

    async def waiting(
        self, jwks: JWKS, clock: FakeClock, count: int
    ) -> list[asyncio.Task[KeySet]]:
        """Return tasks that wait for C."""
        await jwks.arefresh(A.kid, clock.now())
        clock.advance(60)
        tasks = [
            asyncio.create_task(jwks.arefresh(C.kid, clock.now())) for _ in range(count)
        ]
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)
        return tasks


def test_one_waiter_that_is_cancelled_ends_nobody_elses_wait(clock: FakeClock) -> None:
    """Of two coroutines that wait for one attempt, the second gets its key although the first is cancelled."""
    gate = Gate()

    async def main(jwks: JWKS) -> KeySet:
        first, second = await gate.waiting(jwks, clock, 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        gate.opened.set()
        return await second

    with JWKS(URL, fetch=gate, clock=clock) as jwks:
        assert asyncio.run(main(jwks)).get(C.kid) == C.public_only


def test_an_attempt_may_outlive_the_loop_that_waits(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A loop that was closed while it waited is not called when the attempt ends, and nothing is logged."""
    gate = Gate()

    async def main(jwks: JWKS) -> None:
        await gate.waiting(jwks, clock, 1)

    with JWKS(URL, fetch=gate, clock=clock) as jwks:
        asyncio.run(main(jwks))
        gate.opened.set()
        jwks.refresh(C.kid, clock.now())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_plain_call_never_blocks_an_event_loop(warm: Bench) -> None:
    """``refresh`` on a loop's own thread begins the attempt and defers instead of waiting."""
    warm.inline.hang = True

    async def main() -> Cause:
        return warm.cause(C.kid)

    assert asyncio.run(main()) is Cause.KEY_PENDING
    assert warm.inline.waited == 0
    warm.inline.hang = False
    warm.issuer.serve(A, B, C)
    warm.jwks.start()
    assert warm.jwks.key_set().get(C.kid) is not None


def test_a_stepped_wall_clock_changes_no_age(warm: Bench) -> None:
    """Five minutes forth or back make a set neither older nor younger, and no message older than its set."""
    for step in (300, -300):
        warm.clock.step(step)
        assert warm.jwks.health().age == 60
        assert warm.refresh(C.kid, received=warm.clock.now() - 61).get(C.kid) is None
        assert len(warm.issuer.asked) == 1
    warm.refresh(C.kid)
    assert len(warm.issuer.asked) == 2


def test_a_fetch_that_breaks_is_a_failure_and_not_the_end(
    warm: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Any exception of the fetch is a failed attempt; the next one is made all the same."""
    warm.issuer.fail(RuntimeError("secret"))
    warm.tick(200)
    assert warm.jwks.health().last_failure == "the fetch broke: RuntimeError"
    warm.issuer.serve(C, A, B)
    warm.tick(60)
    assert warm.jwks.key_set().get(C.kid) is not None


# Telling


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the lines of the log about what a cache holds."""
    return [
        record.getMessage()
        for record in caplog.records
        if vars(record).get("event") == "keys.changed"
    ]


def test_a_change_is_a_line_with_source_and_keys(
    warm: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """A change of the set is a line of the log that names the source and the keys."""
    warm.issuer.serve(A, C)
    with caplog.at_level(logging.INFO, "mqauth.keys"):
        warm.tick(200)
    assert told(caplog) == [f"{URL}: refreshed added {C.kid}; removed {B.kid}"]


def test_subscribers_get_each_new_set_once(warm: Bench) -> None:
    """A change is handed to subscribers, an unchanged set is not, and who left hears nothing."""
    left: list[KeySet] = []
    leave = warm.jwks.subscribe(left.append)
    warm.tick(200)
    warm.issuer.serve(A, B, C)
    leave()
    warm.tick(300)
    assert [set(keys.by_kid) for keys in warm.sets] == [
        {A.kid, B.kid},
        {A.kid, B.kid, C.kid},
    ]
    assert left == []


def test_an_owner_who_raises_changes_nothing(
    clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """What a subscriber raises is logged, and the set is in use."""

    def broken(_thing: object) -> None:
        raise RuntimeError("broken")

    bench = Bench(clock, A)
    bench.jwks.subscribe(broken)
    assert bench.jwks.key_set().get(A.kid) is not None
    assert [record.levelno for record in caplog.records].count(logging.ERROR) == 1


def test_a_set_goes_stale_and_serves_on(bench: Bench) -> None:
    """Past its freshness the set is stale, past ``max_stale`` there is none."""
    bench.jwks.start()
    bench.issuer.fail()
    states = []
    for seconds in (299, 1, 3300, 1):
        bench.clock.advance(seconds)
        states.append(bench.jwks.health().state)
    assert states == ["fresh", "stale", "stale", "unavailable"]


def test_health_tells_state_ages_and_counters(warm: Bench) -> None:
    """Health of an outage: stale, its ages, how it fails, and what was counted."""
    warm.issuer.fail()
    warm.tick(200)
    warm.tick(60)
    found = warm.jwks.health()
    assert (found.state, found.keys, found.age, found.serves_for) == (
        "stale",
        2,
        320,
        3280,
    )
    assert (found.attempt_age, found.failing_for, found.last_failure) == (
        0,
        60,
        "out of reach",
    )
    assert found.counters == {"attempts": 3, "refreshed": 1, "failed": 2}


def test_health_before_the_first_attempt(bench: Bench) -> None:
    """A cache that was never used is unavailable and has no ages."""
    found = bench.jwks.health()
    assert (found.state, found.version, found.age, found.serves_for, found.attempt_age) == (
        "unavailable", None, None, None, None,
    )  # fmt: skip


def test_closing_ends_the_thread_and_leaves_the_set() -> None:
    """After ``close`` no thread is left, the set serves on, and an unknown kid is deferred."""
    clock = FakeClock()
    with JWKS(URL, fetch=Script(A), clock=clock) as jwks:
        jwks.refresh(A.kid, clock.now())
        assert any(thread.name == "mqauth-jwks" for thread in threading.enumerate())
    assert not any(thread.name == "mqauth-jwks" for thread in threading.enumerate())
    assert jwks.key_set().get(A.kid) is not None
    clock.advance(60)
    with pytest.raises(Unavailable, match="key_pending"):
        jwks.refresh(C.kid, clock.now())


def test_the_thread_is_one_and_a_daemon_and_can_be_closed_from_itself() -> None:
    """Many calls start one daemon thread; a subscriber on that thread may close the cache."""
    clock = FakeClock()
    names: list[tuple[str, bool]] = []
    jwks = JWKS(URL, fetch=Script(A), clock=clock)

    def close(_keys: KeySet) -> None:
        thread = threading.current_thread()
        names.append((thread.name, thread.daemon))
        jwks.close()

    jwks.subscribe(close)
    for _ in range(5):
        jwks.start()
    jwks.refresh(A.kid, clock.now())
    jwks.close()
    assert names == [("mqauth-jwks", True)]


def test_the_thread_sleeps_until_it_is_woken() -> None:
    """Between two pieces of work the thread sleeps; a wake-up during work is not lost."""
    condition, done = threading.Condition(), threading.Semaphore(0)

    def work() -> float:
        done.release()
        return 3600.0

    refresher = ThreadRefresher(condition, work)
    refresher.wake()
    assert done.acquire(timeout=10)
    refresher.wake()
    assert done.acquire(timeout=10)
    refresher.close()
    refresher.ensure()
    assert not any(thread.name == "mqauth-jwks" for thread in threading.enumerate())


# In the pipeline


def judged(
    world: Bench, forge: Forge, message: Message, *, asynchronous: bool
) -> tuple[Verdict, Any, AuditRecord]:
    """Judge a message against the cache, and return verdict, reason or cause, and the audit record."""
    records: list[AuditRecord] = []
    audit: Any = type(
        "Audit", (), {"write": lambda self, record: records.append(record)}
    )()
    pipeline = Pipeline(
        verifier=forge.verifier(keys={ISSUER: Issuer(keys=world.jwks)}), policy=forge.policy("kafka:orders"),
        replay=MemoryReplayStore(clock=world.clock), audit=audit, record="all", clock=world.clock,
    )  # fmt: skip
    letters: Any = type(
        "Letters", (), {"name": "dead", "publish": lambda self, letter: None}
    )()
    wish = pipeline.process(pipeline.receive(message), lambda verified: None, letters)
    outcome = asyncio.run(flow.arun(wish)) if asynchronous else flow.run(wish)
    return (
        outcome.verdict,
        outcome.reason or outcome.cause,
        records[0] if records else None,
    )  # type: ignore[return-value]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_pipeline_condemns_nothing_however_long_the_outage(
    clock: FakeClock, forge: Forge, kafka: Callable[..., Message], asynchronous: bool
) -> None:
    """An unknown kid waits for as long as its issuer is down, and is ``key_unknown`` once that has answered."""
    world = Bench(clock, forge.key)
    world.jwks.start()
    clock.advance(60)
    world.issuer.fail()
    assert world.cause("x") is Cause.KEY_PENDING
    sealed = forge.seal(kafka(), key=forge.stranger)
    clock.advance(1800)
    verdict, cause, _ = judged(world, forge, sealed, asynchronous=asynchronous)
    assert (verdict, cause) == (Verdict.DEFERRED, Cause.KEY_PENDING)
    world.issuer.serve(forge.key)
    clock.advance(60)
    verdict, reason, _ = judged(world, forge, sealed, asynchronous=asynchronous)
    assert (verdict, reason) == (Verdict.REJECTED, Reason.KEY_UNKNOWN)


# Snapshot


def saved(clock: FakeClock, path: Path, *keys: Key) -> None:
    """Run a cache that leaves a snapshot of these keys."""
    bench = Bench(clock, *keys, snapshot=path)
    bench.jwks.start()


def test_a_snapshot_survives_a_restart_during_an_outage(
    clock: FakeClock, tmp_path: Path
) -> None:
    """A new process whose issuer is down serves the last good set, and no longer than ``max_stale`` in all."""
    path = tmp_path / "set.json"
    saved(clock, path, A, B)
    assert path.stat().st_mode & 0o777 == 0o600
    clock.advance(3000)
    after = Bench(clock, snapshot=path)
    after.issuer.fail()
    assert after.jwks.key_set().version == KeySet([A, B]).version
    assert after.jwks.health().age == 3000
    clock.advance(601)
    with pytest.raises(Unavailable, match="keys_unavailable"):
        after.jwks.key_set()


def test_a_snapshot_is_refreshed_at_once_and_guarded(
    clock: FakeClock, tmp_path: Path
) -> None:
    """The set of a snapshot counts as good: the first answer replaces it, an empty one only when seen twice."""
    saved(clock, tmp_path / "set.json", A, B)
    clock.advance(100)
    after = Bench(clock, snapshot=tmp_path / "set.json")
    assert set(after.jwks.key_set().by_kid) == {A.kid, B.kid}
    after.tick(30)
    assert set(after.jwks.key_set().by_kid) == set()


def _other_url(path: Path) -> None:
    keys, _, delay = load_snapshot(path, source=URL, now=2e9, max_age=1e9)
    save_snapshot(
        path,
        keys,
        source="https://other.example/jwks.json",
        asked=2e9,
        publish_delay=delay,
    )


def _edited(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"EdDSA"', b'"ES256"'))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda path: path.chmod(0o640), "mode"),
        (lambda path: path.write_bytes(b"{"), "damaged"),
        (lambda path: path.write_bytes(b"[]"), "damaged"),
        (lambda path: path.write_bytes(b" " * 600_000), "over 524288 bytes"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "damaged"),
        (_edited, "damaged"),
        (_other_url, "another source"),
        (lambda path: (path.unlink(), path.mkdir()), "directory"),
    ],
)
def test_a_bad_snapshot_is_refused_and_told_of(
    clock: FakeClock,
    tmp_path: Path,
    spoil: Callable[[Path], object],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A snapshot open to others, torn, edited or of another URL serves nothing, with a line that says why."""
    path = tmp_path / "set.json"
    saved(clock, path, A)
    spoil(path)
    after = Bench(clock, snapshot=path)
    after.issuer.fail()
    with pytest.raises(Unavailable):
        after.jwks.key_set()
    first = told(caplog)[0].lower()
    assert "snapshot_failed refused" in first
    assert why in first


@pytest.mark.parametrize("age", [3601, -61])
def test_a_snapshot_is_bounded_in_age(
    clock: FakeClock, tmp_path: Path, age: float
) -> None:
    """One older than ``max_stale``, or of the future, is refused."""
    path = tmp_path / "set.json"
    saved(clock, path, A)
    clock.step(age)
    with pytest.raises(ConfigurationError, match="old"):
        load_snapshot(path, source=URL, now=clock.now(), max_age=3600)


def test_a_failed_write_leaves_the_old_snapshot(
    clock: FakeClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that breaks off leaves the file as it was and nothing beside it."""
    path = tmp_path / "set.json"
    saved(clock, path, A)
    before = path.read_bytes()

    def refuse(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    clock.advance(1)
    bench = Bench(clock, A, B, snapshot=path)
    bench.jwks.start()
    assert bench.jwks.health().counters["snapshot_failed"] == 1
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["set.json"]


# HTTP, over scripted sockets


class Wire:
    """A connected socket that gives scripted bytes, each read taking its time on the fake clock."""

    def __init__(
        self, raw: bytes, clock: FakeClock, *, step: int = 65536, pause: float = 0.0
    ) -> None:
        self.raw, self.clock, self.step, self.pause = raw, clock, step, pause
        self.sent = b""
        self.closed = False
        self.timeouts: list[float] = []

    def settimeout(self, seconds: float) -> None:
        self.timeouts.append(seconds)

    def sendall(self, data: bytes) -> None:
        self.sent += data

    def recv_into(self, buffer: memoryview) -> int:
        self.clock.advance(self.pause)
        chunk, self.raw = (
            self.raw[: min(self.step, len(buffer))],
            self.raw[min(self.step, len(buffer)) :],
        )
        buffer[: len(chunk)] = chunk
        return len(chunk)

    def close(self) -> None:
        self.closed = True


def response(
    body: bytes | None = None, *, status: str = "200 OK", **headers: str | None
) -> bytes:
    """Return an HTTP answer as bytes; a header given as ``None`` is left out."""
    body = document(A) if body is None else body
    found: dict[str, str | None] = {
        "Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }  # fmt: skip
    lines = [f"{name}: {value}" for name, value in found.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode("latin-1") + body


def document(*keys: Key, **members: Any) -> bytes:
    """Return a JWK Set."""
    return json.dumps(dump_key_set(KeySet(keys)) | members).encode()


def ask(
    wire: Any, clock: FakeClock, *, etag: str | None = None, url: str = URL
) -> Response:
    """Make one request over a scripted socket."""
    endpoint = Endpoint.parse(url, unsafe_http_loopback=True)
    return request(
        endpoint,
        deadline=Deadline(clock, 5),
        context=None,
        etag=etag,
        dial=lambda *_: wire,
    )


def test_a_good_answer_is_read_whole(clock: FakeClock) -> None:
    """Status, document, entity tag, freshness, age and date come out as the issuer sent them."""
    raw = response(
        ETag='"7"',
        Cache_Control='public, max-age="600"',
        Age="20",
        Date="Wed, 21 Oct 2015 07:28:00 GMT",
    )
    wire = Wire(raw, clock)
    found = ask(wire, clock)
    assert (found.etag, found.max_age, found.age, found.date) == (
        '"7"',
        600,
        20,
        1445412480,
    )
    assert found.document == dump_key_set(KeySet([A]))
    assert wire.closed


def test_the_request_is_small_and_plain(clock: FakeClock) -> None:
    """One GET with the query, no compression asked for, the connection closed after it, our entity tag."""
    wire = Wire(response(status="304 Not Modified"), clock)
    assert ask(wire, clock, etag='"7"', url=URL + "?tenant=1").document is None
    head = wire.sent.decode().split("\r\n")
    assert head[0] == "GET /jwks.json?tenant=1 HTTP/1.1"
    assert {
        "Host: auth.example",
        "Accept-Encoding: identity",
        "Connection: close",
        'If-None-Match: "7"',
    } <= set(head)


@pytest.mark.parametrize("drip", ["status", "headers", "body", "chunks", "100-continue"])
def test_five_seconds_bound_the_whole_exchange(clock: FakeClock, drip: str) -> None:
    """An answer that drips in one byte a tenth of a second is given up after 5 s, wherever it drips."""
    raw = {
        "status": b"HTTP/1.1 200 " + b"O" * 6000,
        "headers": b"HTTP/1.1 200 OK\r\n" + b"X-A: b\r\n" * 90,
        "body": response(b" " * 1000),
        "chunks": response(
            b"1\r\n \r\n" * 1000, Content_Length=None, Transfer_Encoding="chunked"
        ),
        "100-continue": b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
    }[drip]
    wire, began = Wire(raw, clock, step=1, pause=0.1), clock.monotonic()
    with pytest.raises(FetchFailed, match="within 5 s"):
        ask(wire, clock)
    assert clock.monotonic() - began == pytest.approx(5, abs=0.11)
    assert max(wire.timeouts) <= 5
    assert wire.closed


@pytest.mark.parametrize("length", ["declared", "undeclared", "chunked"])
def test_the_body_is_capped_while_streaming(clock: FakeClock, length: str) -> None:
    """256 KiB is read, one byte more is refused, and no more than a chunk beyond the cap is taken in."""
    whole = document(A)
    fits, over = (
        whole + b" " * (MAX_DOCUMENT - len(whole)),
        b" " * (MAX_DOCUMENT + 10_000_000),
    )

    def raw(body: bytes) -> bytes:
        if length == "chunked":
            chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            return response(chunks, Content_Length=None, Transfer_Encoding="chunked")
        return response(
            body, Content_Length=str(len(body)) if length == "declared" else None
        )

    assert ask(Wire(raw(fits), clock), clock).document is not None
    wire = Wire(raw(over), clock)
    with pytest.raises(FetchFailed, match="over 262144 bytes"):
        ask(wire, clock)
    assert len(wire.raw) > 9_500_000


def test_gzip_is_unpacked_within_the_same_cap(clock: FakeClock) -> None:
    """A server that compresses unasked is understood, and a bomb is refused after 256 KiB."""
    packed = gzip.compress(document(A))
    assert (
        ask(Wire(response(packed, Content_Encoding="gzip"), clock), clock).document
        is not None
    )
    bomb = gzip.compress(b" " * 20_000_000)
    assert len(bomb) < MAX_DOCUMENT
    with pytest.raises(FetchFailed, match="over 262144 bytes"):
        ask(Wire(response(bomb, Content_Encoding="gzip"), clock), clock)


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (response(status="302 Found", Location="https://elsewhere.example/"), "redirect"),
        (response(status="307 Temporary Redirect", Location="/x"), "redirect"),
        (response(status="500 Oops"), "status 500"),
        (response(status="206 Partial Content"), "status 206"),
        (response(status="304 Not Modified"), "status 304"),
        (response(Content_Type="text/html; charset=utf-8"), "content type"),
        (response(Content_Encoding="br"), "content encoding"),
        (response(b"\x1f\x8b garbage", Content_Encoding="gzip"), "content encoding"),
        (response(b"{"), "JSON"),
        (response(b"[]"), "JSON object"),
        (response(b"\xff\xfe"), "JSON"),
        (response(b'{"keys": [], "keys": []}'), "JSON"),
        (response(b"[" * 100_000), "JSON"),
        (response(document(A), Content_Length="100000"), "ends early"),
        (b"", "out of reach"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", "HTTP"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_anything_but_a_good_answer_is_a_failure(
    clock: FakeClock, raw: bytes, why: str
) -> None:
    """Redirects, other statuses, other types, broken bodies and no HTTP at all are failures that say why."""
    with pytest.raises(FetchFailed, match=why):
        ask(Wire(raw, clock), clock)


@pytest.mark.parametrize(
    "content_type", ["application/jwk-set+json", "Application/JSON;charset=UTF-8", None]
)
def test_json_by_any_of_its_names_is_read(
    clock: FakeClock, content_type: str | None
) -> None:
    """JSON types, and an answer that names none, are read."""
    assert (
        ask(Wire(response(Content_Type=content_type), clock), clock).document is not None
    )


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Cache_Control": "no-store, max-age=600"}, 0),
        ({"Cache_Control": "private, no-cache"}, 0),
        ({"Cache_Control": "max-age=forever"}, None),
        ({}, None),
    ],
)
def test_cache_control_is_read_with_suspicion(
    clock: FakeClock, headers: dict[str, Any], expected: float
) -> None:
    """``no-store`` and ``no-cache`` mean no freshness, and what is no number of seconds says nothing."""
    assert ask(Wire(response(**headers), clock), clock).max_age == expected


def test_odd_headers_say_nothing(clock: FakeClock) -> None:
    """An ``ETag`` that could not be sent back, an ``Age`` and a ``Date`` that are none, are passed over."""
    found = ask(
        Wire(response(ETag='"' + "x" * 300 + '"', Age="-5", Date="yesterday"), clock),
        clock,
    )
    assert (found.etag, found.age, found.date) == (None, 0, None)


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (
            ConnectionRefusedError(111, "Connection refused"),
            "out of reach: Connection refused",
        ),
        (ConnectionResetError(104, "Connection reset by peer"), "out of reach"),
        (TimeoutError("timed out"), "timed out"),
        (ssl.SSLError(1, "wrong version number"), "TLS failed"),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), "certificate"),
    ],
)
def test_what_the_network_does_is_named_without_detail(
    clock: FakeClock, error: Exception, why: str
) -> None:
    """Every error of the network is one failure with a short reason."""

    def dial(*_arguments: object) -> socket.socket:
        raise error

    with pytest.raises(FetchFailed, match=why):
        request(Endpoint.parse(URL), deadline=Deadline(clock, 5), context=None, dial=dial)


@pytest.mark.parametrize(
    "url",
    [
        "http://auth.example/jwks.json", "http://192.0.2.1/", "ftp://127.0.0.1/", "file:///etc/passwd", "data:,{}",
        "https://user:secret@auth.example/", "https://auth.example/#top", "https:///jwks.json", "jwks.json", "",
        "https://auth.example/a b", "https://auth.example:port/", "https://[::1/", "https://auth.example/\r\nX: y",
        "http://localhost.evil.example/", "http://127.0.0.1@evil.example/", None,
    ],
)  # fmt: skip
def test_only_https_is_a_source_of_keys(url: Any) -> None:
    """Other schemes, http off loopback, user names, fragments and control characters are refused."""
    with pytest.raises(ConfigurationError, match="JWKS URL"):
        JWKS(url, unsafe_http_loopback=True)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8080/k", "http://[::1]/k", "http://localhost/k"]
)
def test_http_on_loopback_needs_its_flag(url: str) -> None:
    """Plain http is allowed to this machine alone, and only by name."""
    with pytest.raises(ConfigurationError, match="unsafe_http_loopback"):
        JWKS(url)
    assert JWKS(url, unsafe_http_loopback=True).source.startswith("http://")


def test_the_query_of_a_url_is_never_shown() -> None:
    """``source`` and ``repr`` leave the query out, which may hold what is nobody's business."""
    jwks = JWKS("https://auth.example:8443/jwks.json?key=secret")
    assert repr(jwks) == "JWKS('https://auth.example:8443/jwks.json')"


@pytest.mark.parametrize("timeout", [0, -1, 5.1, float("inf"), True, None])
def test_an_attempt_is_bounded_by_five_seconds(timeout: Any) -> None:
    """A timeout is more than 0 and at most 5 s."""
    with pytest.raises(ConfigurationError, match="timeout"):
        JWKS(URL, timeout=timeout)


def test_a_ca_file_without_certificates_is_refused(tmp_path: Path) -> None:
    """An own CA is a PEM file; a missing or empty one is a configuration error that names it."""
    empty = tmp_path / "ca.pem"
    empty.write_text("")
    for path in (empty, tmp_path / "missing.pem"):
        with pytest.raises(ConfigurationError, match=path.name):
            JWKS(URL, ca=path)


def test_tls_checks_names_and_certificates() -> None:
    """The TLS settings verify certificate and host name, from TLS 1.2 on."""
    context = tls_context(None)
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_fetch_gives_keys_and_what_the_document_announces(clock: FakeClock) -> None:
    """Keys, the announced publish delay and the entity tag arrive as an answer; a 304 has no keys."""
    wires = [
        Wire(response(document(A, mqauth_publish_delay=600), ETag='"1"'), clock),
        Wire(response(b"", status="304 Not Modified"), clock),
        Wire(response(b'{"keys": 1}'), clock),
    ]
    fetch = URLFetch(
        Endpoint.parse(URL),
        timeout=5,
        context=None,
        clock=clock,
        dial=lambda *_: wires.pop(0),
    )  # type: ignore[arg-type]
    first = fetch(None)
    assert (set(first.keys.by_kid), first.publish_delay, first.etag) == (
        {A.kid},
        600,
        '"1"',
    )
    assert fetch('"1"').keys is None
    with pytest.raises(FetchFailed, match="list of keys"):
        fetch(None)


# Discovery


class Site:
    """Documents by host and path, and what was asked for."""

    def __init__(self, clock: FakeClock, documents: dict[str, bytes]) -> None:
        self.clock = clock
        self.documents = documents
        self.asked: list[str] = []

    def dial(self, endpoint: Endpoint, _deadline: Deadline, _context: object) -> Any:
        self.asked.append(endpoint.shown)
        return Wire(
            self.documents.get(endpoint.shown, response(b"{}", status="404 Not Found")),
            self.clock,
        )

    def fetch(self, issuer: str = "https://auth.example") -> DiscoveredFetch:
        """Return the fetch of an issuer on this site."""
        return DiscoveredFetch(
            issuer,
            unsafe_http_loopback=False,
            timeout=5,
            context=None,
            clock=self.clock,
            dial=self.dial,
        )


CONFIGURATION = "https://auth.example/.well-known/openid-configuration"
ELSEWHERE = "https://keys.example/set"


@pytest.fixture
def site(clock: FakeClock) -> Site:
    """An issuer whose keys are on another host."""
    configuration = json.dumps(
        {"issuer": "https://auth.example", "jwks_uri": ELSEWHERE}
    ).encode()
    return Site(
        clock,
        {
            CONFIGURATION: response(configuration),
            ELSEWHERE: response(document(A), ETag='"1"'),
        },
    )


def test_discovery_finds_the_keys_and_remembers_where_for_an_hour(
    site: Site, clock: FakeClock
) -> None:
    """The configuration is read first, then the set alone for an hour, then the configuration again."""
    fetch = site.fetch()
    for at in (0, 1, 3598, 1):
        clock.advance(at)
        assert fetch(None).keys is not None
    assert site.asked == [CONFIGURATION, *[ELSEWHERE] * 3, CONFIGURATION, ELSEWHERE]


def test_discovery_starts_over_after_a_failure(site: Site) -> None:
    """A set that is no longer where it was makes the next attempt read the configuration again."""
    fetch = site.fetch()
    fetch(None)
    moved = json.dumps(
        {"issuer": "https://auth.example", "jwks_uri": ELSEWHERE + "2"}
    ).encode()
    site.documents = {
        CONFIGURATION: response(moved),
        ELSEWHERE + "2": response(document(B)),
    }
    with pytest.raises(FetchFailed, match="404"):
        fetch(None)
    found = fetch('"1"').keys
    assert set(found.by_kid) == {B.kid}


@pytest.mark.parametrize(
    ("configuration", "why"),
    [
        ({"issuer": "https://evil.example", "jwks_uri": ELSEWHERE}, "another issuer's"),
        ({"issuer": "https://auth.example/", "jwks_uri": ELSEWHERE}, "another issuer's"),
        ({"jwks_uri": ELSEWHERE}, "another issuer's"),
        ({"issuer": "https://auth.example"}, "jwks_uri"),
        (
            {"issuer": "https://auth.example", "jwks_uri": "http://keys.example/set"},
            "jwks_uri",
        ),
        ({"issuer": "https://auth.example", "jwks_uri": 7}, "jwks_uri"),
    ],
)
def test_a_configuration_that_is_not_the_issuers_is_refused(
    site: Site, configuration: Any, why: str
) -> None:
    """The configuration must repeat the issuer exactly and name an https URL (OIDC Discovery, 4.3)."""
    site.documents[CONFIGURATION] = response(json.dumps(configuration).encode())
    with pytest.raises(FetchFailed, match=why):
        site.fetch()(None)


def test_a_discovered_source_is_a_cache_like_any_other() -> None:
    """``discovery`` shows the issuer, and refuses what is no https issuer."""
    assert (
        repr(JWKS("https://auth.example/tenant", discovery=True))
        == "JWKS('https://auth.example/tenant')"
    )
    for bad in ("http://auth.example", "https://auth.example?x", "auth.example"):
        with pytest.raises(ConfigurationError):
            JWKS(bad, discovery=True)


# Configuration


def configured(folder: Path, source: str) -> mqauth.Pipeline:
    """Return the pipeline of a consumer that trusts one issuer by a source."""
    (folder / "mqauth.toml").write_text(
        '[consumer]\naudience = "billing"\n[[consumer.issuers]]\nissuer = "https://auth.example"\n'
        f'vouches = true\n{source}\n[[consumer.allow]]\nsubject = "a"\ndestinations = ["kafka:orders"]\n'
    )
    return mqauth.load(folder / "mqauth.toml").judge


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ('jwks = "https://auth.example/jwks.json"\nmax_stale = 60\npublish_delay = 0', "https://auth.example/jwks.json"),
        ("discovery = true\nmax_stale = 900", "https://auth.example/"),
        ('jwks = "http://127.0.0.1:8080/k"\nunsafe_http_loopback = true\nsnapshot = "s.json"', "http://127.0.0.1:8080/k"),
    ],
)  # fmt: skip
def test_a_file_configures_a_cache_and_fetches_nothing(
    tmp_path: Path, source: str, shown: str
) -> None:
    """``jwks`` and ``discovery`` give a cache that has not asked anybody yet."""
    keys: Any = configured(tmp_path, source).verifier.issuers["https://auth.example"].keys
    assert isinstance(keys, JWKS)
    assert (keys.source, keys.health().counters) == (shown, {})


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    """Every test ends with the threads it began with."""
    before = set(threading.enumerate())
    yield
    assert not [
        each
        for each in threading.enumerate()
        if each.name.startswith("mqauth") and each not in before
    ]
