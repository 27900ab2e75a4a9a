"""The replay store in a file: the store contract, what outlasts a restart, and what is refused."""

from __future__ import annotations

import asyncio
import errno
import itertools
import math
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from integration.scale import nightly
from mqauth import Cause, ConfigurationError, Message, Pipeline, Unavailable
from mqauth.flow import run
from mqauth.judging.selftest import starting
from mqauth.replay.rules import ClaimRequest
from mqauth.stores import sqlite_file
from mqauth.stores.file import BYTES_AN_ID, FileReplayStore
from mqauth.stores.sqlite_file import SQLiteFile
from mqauth.testing import FakeClock, Forge
from mqauth.testing.clock import START
from mqauth.testing.store_contract import (
    FRESH,
    HELD,
    HERE,
    LOST,
    REPLAYED,
    REREAD,
    THERE,
    BatchStoreContract,
    sibling,
    wish,
)
from tests.kit.store_machine import machine

STEPS = settings(
    max_examples=nightly(100, otherwise=20), stateful_step_count=40, deadline=None
)
PLACE = "rabbitmq:shop/orders"
Opener = Callable[..., Any]


@pytest.fixture
def opened(tmp_path: Path, clock: FakeClock) -> Iterator[Opener]:
    """Opens the store of this test, again and again; each is closed at the end."""
    stores: list[FileReplayStore] = []

    def opener(clock: FakeClock = clock) -> Any:
        stores.append(FileReplayStore(tmp_path / "replay.sqlite", clock=clock))
        return stores[-1]

    yield opener
    for store in stores:
        store.close()


@pytest.fixture
def store(opened: Opener) -> Any:
    """A store of the contract."""
    return opened()


class TestFile(BatchStoreContract):
    """The store in a file."""


class Restarting(machine(lambda clock: clock)):  # type: ignore[misc]
    """The machine of all stores, with restarts; the next process may have another time, and finds the claims."""

    clock: FakeClock
    folder: Path
    numbers = itertools.count()

    def __init__(self) -> None:
        super().__init__()
        self.path = self.folder / f"{next(self.numbers)}.sqlite"
        self.store = FileReplayStore(self.path, clock=self.clock)

    def teardown(self) -> None:
        """Close the store of an example."""
        self.store.close()

    @rule(drift=st.sampled_from([0, -90_000, 3000]))
    def restart(self, drift: int) -> None:
        """End the process, and with it what it held."""
        self.store.close()
        self.clock = FakeClock(self.clock.now() + drift)
        self.store = FileReplayStore(self.path, clock=self.clock)
        for key, entry in self.model.items():
            if entry.owner is not None:
                self.model[key] = entry._replace(owner="dead", lease_ends=-math.inf)


def test_machine(tmp_path: Path) -> None:
    """The store answers as the pure table does, whatever the order of calls and restarts."""
    Restarting.folder = tmp_path
    run_state_machine_as_test(Restarting, settings=STEPS)


def test_a_restart_forgets_nothing(opened: Opener) -> None:
    """What was done stays done, also in a batch, with its place; a copy of it is told where it was first."""
    requests = [
        wish(place=HERE),
        *(sibling(index, place=("c", "orders", 1, index)) for index in (0, 31, 32, 900)),
    ]
    store = opened()
    store.claim_many(requests)
    for request in requests:
        store.confirm(request)
    store.close()
    store = opened()
    assert (
        store.claim_many([replace(each, owner="again") for each in requests])
        == [REREAD] * 5
    )
    assert (
        store.claim_many([replace(each, owner="copy", place=THERE) for each in requests])
        == [REPLAYED] * 5
    )
    assert [store.first_place(each) for each in requests] == [
        each.place for each in requests
    ]


def test_a_message_that_is_confirmed_twice_in_one_call_is_done(store: Any) -> None:
    """One call may name a message twice; its siblings are done as well."""
    requests = [sibling(index, place=HERE) for index in (0, 1, 0)]
    store.claim_many(requests)
    store.confirm_many(requests)
    assert (
        store.claim_many([replace(each, owner="again") for each in requests])
        == [REREAD] * 3
    )


@pytest.mark.parametrize("drift", [0, -1_000_000, 3000])
def test_what_a_dead_process_held_is_over(
    opened: Opener, clock: FakeClock, drift: int
) -> None:
    """A redelivery of what was being handled is handled at once, whatever both clocks say; a copy is a replay."""
    store = opened()
    store.claim_many([wish(), wish(id=bytes(16), place=HERE)])
    store.close()
    store = opened(FakeClock(clock.now() + drift))
    assert store.claim(wish("copy")) is REPLAYED
    assert store.claim(wish("copy", id=bytes(16), place=THERE)) is REPLAYED
    assert store.claim(wish("former", renew=True)) is LOST
    assert store.claim(wish("heir", redelivered=True)) is FRESH
    assert store.claim(wish("heir", id=bytes(16), place=HERE)) is FRESH
    assert store.claim(wish("third", redelivered=True)) is HELD


# --- forgetting ---------------------------------------------------------------------------------------------


def rows(store: FileReplayStore) -> int:
    """Return how many rows there are once the thread has been round twice."""
    for _ in range(4):
        store._tend()
    found: int = store._execute("SELECT count(*) FROM ids").fetchone()[0]
    return found


@pytest.mark.parametrize("done", [True, False], ids=["done", "held"])
def test_kept_until_expiry(store: Any, clock: FakeClock, done: bool) -> None:
    """An id is known to its last second and forgotten soon after, done or not, on the disk and in memory."""
    store.claim(wish())
    if done:
        store.confirm(wish())
    clock.advance(3600)
    assert rows(store) == 1
    assert store.claim(wish("second")) is REPLAYED
    clock.advance(3)
    assert rows(store) == 0
    assert store._rows == {}
    assert store.claim(wish("second")) is FRESH


@pytest.mark.parametrize(("seconds", "step"), [(299, 0), (250, 1000), (1000, -750)])
def test_a_batch_is_kept_as_long_as_its_longest_life(
    store: Any, clock: FakeClock, seconds: float, step: float
) -> None:
    """The messages of a row are forgotten together, the last of them in its time by both clocks."""
    batch = [sibling(n, expires=START + 100 * n) for n in (1, 3, 2)]
    store.claim_many(batch)
    clock.advance(seconds)
    clock.step(step)
    assert rows(store) == 1
    assert store.claim(sibling(3, "copy")) is REPLAYED
    clock.advance(60)
    assert rows(store) == 0


def test_a_batch_is_no_single_token(store: Any) -> None:
    """The id of a single token is none of a batch, even if it had the bytes of one."""
    assert store.claim(sibling(0, token=bytes(16))) is FRESH
    assert store.claim(wish("second", id=bytes(18))) is FRESH


@pytest.mark.parametrize("step", [10_000_000.0, -10_000_000.0])
def test_a_clock_that_is_wrong_for_a_while_forgets_nothing(
    store: Any, clock: FakeClock, step: float
) -> None:
    """A wall clock that is set forward or back, and right again later, lets no copy in."""
    store.claim(wish())
    clock.step(step)
    store.claim(wish(id=b"\x01" * 16))
    assert rows(store) == 2
    clock.step(-step)
    clock.advance(3500)
    assert rows(store) == 2
    assert store.claim(wish("second")) is REPLAYED


def test_a_clock_that_was_set_forward_between_two_processes_forgets_nothing(
    opened: Opener, clock: FakeClock
) -> None:
    """What counts beside the wall clock is how long the file was open, which a restart does not set forward."""
    store = opened()
    store.claim(wish())
    store.confirm(wish())
    store.close()
    store = opened(wrong := FakeClock(clock.now() + 10_000_000))
    assert rows(store) == 1
    wrong.step(-10_000_000)
    assert store.claim(wish("copy")) is REPLAYED


def test_the_file_grows_old_over_restarts(opened: Opener, clock: FakeClock) -> None:
    """Several short lives of the process count as one long one, so that ids leave in their time."""
    store = opened()
    store.claim(wish())
    for number in range(4):
        store.claim(wish(id=bytes([number]) * 16, expires=START))
        clock.advance(1000)
        store._tend()
        store.close()
        store = opened(clock := FakeClock(clock.now()))
    assert store.claim(wish("second")) is REPLAYED
    assert rows(store) == 0


def test_each_process_begins_its_round_elsewhere(opened: Opener) -> None:
    """Processes that live shortly come to all rows between them, since none begins where the one before did."""
    store = opened()
    first = store._looked_at
    store.close()
    assert opened()._looked_at != first


def test_rows_are_small(opened: Opener, tmp_path: Path) -> None:
    """A thousand done ids take no more than the page says, and 64 messages of a batch two rows."""
    store = opened()
    requests = [
        wish(id=os.urandom(16), place=("", "orders", 0, n)) for n in range(20_000)
    ]
    store.claim_many(requests)
    store.claim_many([sibling(n) for n in range(64)])
    store.confirm(requests[0])
    assert store._execute("SELECT count(*) FROM ids").fetchone() == (20_002,)
    store.close()
    assert (tmp_path / "replay.sqlite").stat().st_size < 20_000 * BYTES_AN_ID


# --- one owner, one machine ---------------------------------------------------------------------------------


def test_a_second_store_of_a_file_is_refused(opened: Opener, tmp_path: Path) -> None:
    """While one has the file, the line says who else might, and what several processes use; then it opens."""
    store = opened()
    with pytest.raises(
        ConfigurationError,
        match=r"already open, here or in another process; .*Redis or Valkey$",
    ):
        opened()
    store.close()
    assert opened().claim(wish()) is FRESH
    assert (tmp_path / "replay.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_link_is_no_other_file(opened: Opener, tmp_path: Path) -> None:
    """A second store is refused under another name of the file too."""
    opened()
    (tmp_path / "link.sqlite").symlink_to("replay.sqlite")
    with pytest.raises(ConfigurationError, match=r"replay\.sqlite: already open"):
        FileReplayStore(tmp_path / "link.sqlite")


def in_a_child(action: Callable[[], object]) -> str:
    """Return what a child after a fork says of an action: the type and text of its error."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = repr(action())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writes, said.encode())
        os._exit(0)
    os.close(writes)
    os.waitpid(child, 0)
    with os.fdopen(reads) as file:
        return file.read()


def pipeline(store: Any, forge: Forge, clock: FakeClock) -> Pipeline:
    """Return a pipeline on a store."""
    return Pipeline(
        verifier=forge.verifier(), policy=forge.policy(PLACE), replay=store, clock=clock
    )


def test_a_child_after_a_fork_refuses(store: Any, forge: Forge, clock: FakeClock) -> None:
    """A child can neither claim nor start a consumer, and closes nothing of its parent's."""
    guard = pipeline(store, forge, clock)
    refused = "opened before a fork; several processes (prefork, replicas) share a store on Redis or Valkey"
    assert in_a_child(lambda: store.claim(wish())).startswith(
        "Unavailable: replay_store_unavailable: "
    )
    assert refused in in_a_child(lambda: store.claim(wish()))
    assert refused in in_a_child(lambda: run(starting(guard)))
    assert in_a_child(lambda: run(starting(guard))).startswith("ConfigurationError: ")
    assert in_a_child(store.close) == "None"
    assert store.claim(wish()) is FRESH


def test_a_child_does_not_keep_the_lock(opened: Opener) -> None:
    """The next process may open the file although a child of the last one lives on."""
    reads, writes = os.pipe()
    there, is_there = os.pipe()
    store = opened()
    child = os.fork()
    if not child:
        os.close(writes)
        os.write(is_there, b"x")
        os.read(reads, 1)
        os._exit(0)
    try:
        os.read(there, 1)
        store.close()
        assert opened().claim(wish()) is FRESH
    finally:
        for descriptor in (reads, writes, there, is_there):
            os.close(descriptor)
        os.waitpid(child, 0)


@pytest.mark.parametrize(
    ("kind", "refused"), [("nfs4", True), ("cifs", True), ("ext4", False), ("", False)]
)
def test_a_network_file_system_is_refused(
    opened: Opener,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    refused: bool,
) -> None:
    """On a disk that other machines may have, too, no lock proves anything; any other disk is taken."""
    device = tmp_path.stat().st_dev
    mounts = tmp_path / "mountinfo"
    mount = f"36 35 {os.major(device)}:{os.minor(device)} / /mnt rw,noatime master:1 - {kind} server:/x rw\n"
    mounts.write_text("25 1 0:21 / /proc rw - nfs proc rw\n" + (mount if kind else ""))
    monkeypatch.setattr(sqlite_file, "MOUNTS", mounts)
    if refused:
        with pytest.raises(
            ConfigurationError, match=rf"needs a local disk, and this is {kind}; .*Redis"
        ):
            opened()
    else:
        assert opened().claim(wish()) is FRESH


# --- damage -------------------------------------------------------------------------------------------------


def overwritten(path: Path, start: int, size: int) -> None:
    """Put other bytes into a file."""
    with path.open("r+b") as file:
        file.seek(start)
        file.write(b"\xa5" * size)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: overwritten(path, 0, 100),
        lambda path: overwritten(path, 5 * 4096, 4096),
        lambda path: os.truncate(path, path.stat().st_size - 8192),
        lambda path: path.write_bytes(
            b"no database at all, and longer than a header" * 100
        ),
    ],
    ids=["header", "page", "cut short", "not a database"],
)
def test_a_damaged_file_stops_the_start(
    opened: Opener, tmp_path: Path, damage: Callable[[Path], Any]
) -> None:
    """The line says what to do, and what that costs; and the file is not locked by the attempt."""
    store, path = opened(), tmp_path / "replay.sqlite"
    store.claim_many([wish(id=os.urandom(16)) for _ in range(2000)])
    store.close()
    damage(path)
    for _ in range(2):
        with pytest.raises(
            ConfigurationError,
            match=r"replay\.sqlite: damaged\. Move it away, with its -wal and",
        ):
            opened()
    path.rename(tmp_path / "damaged.sqlite")
    assert opened().claim(wish()) is FRESH


def test_damage_under_a_running_store_defers(opened: Opener, tmp_path: Path) -> None:
    """What is met while messages are handled rejects none, and says what to do."""
    store = opened()
    ids = [os.urandom(16) for _ in range(20_000)]
    store.claim_many([wish(id=each) for each in ids])
    for each in ids:
        store.confirm(wish(id=each))
    store._tend()
    store._file.connection.execute("PRAGMA cache_size = 1")
    overwritten(
        tmp_path / "replay.sqlite",
        4096,
        (tmp_path / "replay.sqlite").stat().st_size - 4096,
    )
    store._file.begin_anew()
    with pytest.raises(Unavailable, match=r"damaged\. Move it away") as caught:
        store.claim_many([wish("second", id=each) for each in ids])
    assert caught.value.cause is Cause.REPLAY_STORE_UNAVAILABLE
    store._tend()
    assert store.losses == 1


def _delete(path: Path) -> None:
    path.unlink()


def _move(path: Path) -> None:
    path.rename(path.with_name("moved.sqlite"))


def _replace(path: Path) -> None:
    """Put an older copy in its place, as who restores a backup does."""
    path.with_name("older.sqlite").write_bytes(path.read_bytes())
    path.with_name("older.sqlite").rename(path)


def _truncate(path: Path) -> None:
    os.truncate(path, 0)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 4096)


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"x" * 4096)


@pytest.mark.parametrize(
    ("lose", "words"),
    [
        (_delete, "deleted or moved while it was open"),
        (_move, "deleted or moved while it was open"),
        (_replace, "replaced while it was open"),
        (_truncate, "damaged"),
        (_cut, "damaged"),
        (_overwrite, "damaged"),
    ],
)
def test_a_file_that_is_lost_while_it_is_open(
    opened: Opener,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    lose: Callable[[Path], None],
    words: str,
) -> None:
    """Within a second nothing is claimed any more, on record or not, and one line says what to do."""
    store = opened()
    store.claim(wish())
    store._tend()
    assert store.lost is None
    lose(tmp_path / "replay.sqlite")
    for _ in range(3):
        store._tend()
        with pytest.raises(Unavailable, match=words) as caught:
            store.claim(wish("second", id=b"\1" * 16))
        assert caught.value.cause is Cause.REPLAY_STORE_UNAVAILABLE
        if store.lost is not None:
            assert store.lost.until == START
            assert (store.lost.scope, store.lost.since) == (None, None)
            store.recorded(store.lost)
    assert store.losses == 1
    told = [record for record in caplog.records if record.levelname == "CRITICAL"]
    assert [record.name for record in told] == ["mqauth.replay"]
    assert words in told[0].getMessage()


def test_a_file_that_is_put_back(opened: Opener, tmp_path: Path) -> None:
    """The file itself under its name again is what it was: claims go on, and copies are told."""
    store, path = opened(), tmp_path / "replay.sqlite"
    store.claim(wish(place=HERE))
    path.rename(tmp_path / "elsewhere.sqlite")
    store._tend()
    with pytest.raises(Unavailable):
        store.claim(wish())
    (tmp_path / "elsewhere.sqlite").rename(path)
    store._tend()
    assert store.claim(wish("second", place=THERE)) is REPLAYED


def test_another_programs_database_is_refused(opened: Opener, tmp_path: Path) -> None:
    """A database that is sound and not ours is left as it is."""
    with closing(sqlite3.connect(tmp_path / "replay.sqlite")) as connection:
        connection.execute("CREATE TABLE theirs (x)")
    with pytest.raises(ConfigurationError, match="another program's file"):
        opened()


def test_a_path_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """A folder, and a folder that is missing, are told by the system's words."""
    with pytest.raises(ConfigurationError, match=r"Is a directory|is a directory"):
        FileReplayStore(tmp_path)
    with pytest.raises(ConfigurationError, match=r"[Nn]o such file"):
        FileReplayStore(tmp_path / "none" / "replay.sqlite")


# --- a disk that is slow, or refuses ------------------------------------------------------------------------


@contextmanager
def busy(store: FileReplayStore) -> Iterator[None]:
    """Let another thread have the store to itself, for five seconds at most."""
    begun, done = threading.Event(), threading.Event()

    def work() -> None:
        with store._lock:
            begun.set()
            done.wait(5)

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_an_event_loop_does_not_wait_for_the_disk(store: Any) -> None:
    """While the thread has the store, a loop gets awaitables, which come true once the thread is done."""

    async def calls() -> list[Any]:
        with busy(store):
            asked = [store.claim(wish()), store.claim_many([sibling(1), sibling(2)])]
            assert all(map(asyncio.iscoroutine, asked))
        found = [await each for each in asked]
        with busy(store):
            asked = [store.confirm(wish()), store.release(sibling(1))]
            assert all(map(asyncio.iscoroutine, asked))
            assert store.first_place(wish()) is None
        return [
            *found,
            *[await each for each in asked],
            store.claim(wish("copy")),
            store.claim(sibling(1, "b")),
        ]

    assert asyncio.run(calls()) == [FRESH, [FRESH, FRESH], None, None, REPLAYED, FRESH]


def test_a_thread_waits_for_the_disk(store: Any) -> None:
    """Without an event loop a claim waits until the thread is done."""
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(store.claim(wish())))
    with busy(store):
        waiting.start()
    waiting.join()
    assert found == [FRESH]


@pytest.mark.parametrize(
    ("error", "cause", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            Cause.REPLAY_STORE_FULL,
            "the disk is full",
        ),
        (
            OSError(errno.EIO, "Input/output error"),
            Cause.REPLAY_STORE_UNAVAILABLE,
            "Input/output error",
        ),
        (
            sqlite3.OperationalError("disk I/O error"),
            Cause.REPLAY_STORE_UNAVAILABLE,
            "disk I/O error",
        ),
    ],
)
def test_a_disk_that_does_not_sync_defers(
    store: Any, monkeypatch: pytest.MonkeyPatch, error: Exception, cause: Cause, said: str
) -> None:
    """What a power cut would take is not promised: everything waits until a sync has succeeded."""

    def refusing(_: SQLiteFile) -> bool:
        raise error

    store.claim(wish())
    with monkeypatch.context() as broken:
        broken.setattr(SQLiteFile, "sync", refusing)
        store._tend()
        for call in (store.claim, store.confirm, store.release):
            with pytest.raises(Unavailable, match=said) as caught:
                call(wish())
            assert caught.value.cause is cause
    store._tend()
    assert store.confirm(wish()) is None
    assert store.claim(wish("copy")) is REPLAYED


class Disk:
    """A connection whose next statements fail, some of them in the middle of a transaction."""

    def __init__(self, connection: Any, failing: str) -> None:
        self._connection = connection
        self._failing = failing

    def execute(self, statement: str, *given: Any) -> Any:
        """Run a statement, unless it is to fail."""
        if statement.startswith(self._failing):
            raise sqlite3.OperationalError("told to")
        return self._connection.execute(statement, *given)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


@pytest.mark.parametrize(
    "failing", ["BEGIN", "COMMIT", "REPLACE", "UPDATE", "DELETE", "INSERT"]
)
def test_a_write_that_fails_is_made_again(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """Whichever write fails, the same calls by the same owners succeed later, and all of it is on the disk."""
    store = opened()
    calls: list[tuple[str, Any]] = [
        ("claim", wish()), ("claim_many", [sibling(1, place=HERE), sibling(2), sibling(40)]), ("confirm", wish()),
        ("confirm", sibling(1)), ("release", sibling(2)), ("release", sibling(40)),
    ]  # fmt: skip
    for name, given in calls:
        with monkeypatch.context() as broken:
            disk = Disk(store._file.connection, failing)
            broken.setattr(store, "_execute", disk.execute)
            with suppress(Unavailable):
                getattr(store, name)(given)
        getattr(store, name)(given)
    store.close()
    store = opened()
    again: list[ClaimRequest] = [
        wish("b"),
        sibling(1, "b", place=HERE),
        sibling(2, "b"),
        sibling(40, "b"),
    ]
    assert store.claim_many(again) == [REPLAYED, REREAD, FRESH, FRESH]


def test_a_closed_store_defers(store: Any) -> None:
    """What comes after ``close`` waits for another process."""
    store.close()
    store.close()
    with pytest.raises(Unavailable, match="closed"):
        store.claim(wish())


def test_the_log_begins_anew(
    store: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite's log does not grow for ever where messages come all the time, also while it is copied."""
    monkeypatch.setattr(sqlite_file, "_FRAMES", 100)
    claims = threading.Thread(
        target=lambda: [store.claim(wish(id=os.urandom(16))) for _ in range(6000)]
    )
    claims.start()
    while claims.is_alive():
        store._tend()
    # Each claim writes at least one page.
    assert (tmp_path / "replay.sqlite-wal").stat().st_size < 6000 * 4096 / 2
    assert store._execute("SELECT count(*) FROM ids").fetchone() == (6000,)


def test_a_deferral_names_the_file(store: Any, forge: Forge, clock: FakeClock) -> None:
    """What a consumer's log and ``health()`` say of a full disk is which file it is."""
    store._trouble = (Cause.REPLAY_STORE_FULL, f"{store.where}: the disk is full")
    guard = pipeline(store, forge, clock)
    outcome = run(
        guard.judge(guard.receive(forge.seal(Message(destination=PLACE, body=b""))))
    )
    assert (outcome.cause, outcome.detail) == (
        Cause.REPLAY_STORE_FULL,
        f"{store.where}: the disk is full",
    )
