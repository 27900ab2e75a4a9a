"""A running signer follows its keystore: by the clock, from any thread, and never with a key that has ended."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mqauth import Issuer, Message, Signer, Verifier
from mqauth.audit import disk
from mqauth.errors import Cause, ConfigurationError, KeyChanged, Unavailable
from mqauth.keystore import ActiveKey, Keystore, RingKey
from mqauth.keystore.disk import folder, ring
from mqauth.keystore.disk.ring import RETIREMENT_GRACE
from mqauth.keystore.disk.watch import MAX_LOOK
from mqauth.testing.clock import FakeClock
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.wire import envelope, jws
from mqauth.wire.keys import Key, SigningKey
from tests.conftest import together

EVERY = 5.0
STALE = 60.0
MESSAGE = Message(destination="kafka:orders", body=b"hello")


class World:
    """A keystore with one active key, and what follows it, on a clock of the test's."""

    def __init__(self, place: Path) -> None:
        self.clock = FakeClock()
        self.store = Keystore(folder=place, clock=self.clock)
        self.first = self.store.create(publish_delay=600, subjects=[SUBJECT])

    def follow(self, **settings: Any) -> ActiveKey:
        """Return the folder's active key, followed."""
        wanted: dict[str, Any] = {
            "look_every": EVERY,
            "max_stale": STALE,
            "clock": self.clock,
        }
        return ActiveKey(self.store.folder, **(wanted | settings))

    def signer(self, key: Any, **settings: Any) -> Signer:
        """Return a signer with a key or source."""
        wanted: dict[str, Any] = {
            "issuer": ISSUER,
            "subject": SUBJECT,
            "audience": AUDIENCE,
            "clock": self.clock,
        }
        return Signer(key=key, **(wanted | settings))

    def next_key(self) -> RingKey:
        """Make a key, let its publish delay pass, and rotate."""
        made = self.store.create()
        self.clock.advance(600)
        self.rotate()
        return made

    def rotate(self) -> None:
        """Rotate, as ``mqauth keys rotate`` does."""
        self.store.change(ring.rotate)

    def revoke(self, kid: str) -> None:
        """Revoke wholly."""
        self.store.change(
            lambda found, now: ring.revoke(found, kid, now, reason="stolen")
        )

    def break_keyset(self) -> Callable[[], None]:
        """Make ``keyset.json`` unreadable, and return what mends it."""
        path = self.store.folder / folder.KEYSET
        whole = path.read_bytes()
        path.write_bytes(b"{")
        return lambda: disk.write_whole(path, whole)


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "keys")


@pytest.fixture
def errors(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    with caplog.at_level(logging.INFO, "mqauth.keystore"):
        yield lambda: [
            record.getMessage()
            for record in caplog.records
            if record.levelno >= logging.ERROR
        ]


def kid_of(message: Message) -> str:
    return jws.take_apart(envelope.token_of(message)).kid


# --- following --------------------------------------------------------------------------------------------


@pytest.fixture
def signer(world: World) -> Signer:
    """A producer that follows its folder."""
    return world.signer(world.follow())


def test_signer_follows_a_rotation_within_the_look_interval(
    signer: Signer, world: World
) -> None:
    """Until the next look the old key signs, from then on the new one; nothing is restarted."""
    second = world.next_key()
    world.follow()
    assert kid_of(signer.sign(MESSAGE)) == second.kid
    third = world.store.create()
    world.clock.advance(600)
    assert kid_of(signer.sign(MESSAGE)) == second.kid
    world.rotate()
    world.clock.advance(EVERY - 0.1)
    assert kid_of(signer.sign(MESSAGE)) == second.kid
    world.clock.advance(0.1)
    assert kid_of(signer.sign(MESSAGE)) == third.kid


def test_no_stat_a_token(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between looks a token costs no system call on the folder; a look at an unchanged one is one ``stat``."""
    active = world.follow()
    signer = world.signer(active)
    looks: list[Path] = []
    real = disk.stamp
    monkeypatch.setattr(disk, "stamp", lambda path: looks.append(path) or real(path))
    monkeypatch.setattr(Keystore, "ring", lambda self: pytest.fail("read"))
    for _ in range(1000):
        signer.sign(MESSAGE)
    assert looks == []
    world.clock.advance(EVERY)
    for _ in range(1000):
        signer.sign(MESSAGE)
    assert len(looks) == 1


def test_what_a_late_producer_signs_is_accepted(world: World) -> None:
    """A token made with the old key just before the latest look is within the retired key's published end."""
    signer = world.signer(world.follow(look_every=MAX_LOOK), lifetime=60)
    late = world.store.create()
    world.clock.advance(600)
    signer.sign(MESSAGE)
    world.rotate()
    world.clock.advance(MAX_LOOK - 0.1)
    message = signer.sign(MESSAGE)
    assert kid_of(message) == world.first.kid != late.kid
    verifier = Verifier(
        keys={ISSUER: Issuer(keys=world.store.public_keys())}, audience=AUDIENCE
    )
    candidate = verifier.open(message)
    verified = verifier.verify(
        message, candidate, world.store.public_keys(), world.clock.now()
    )
    assert verified.kid == world.first.kid
    assert MAX_LOOK + 60 < RETIREMENT_GRACE


def test_threads_follow_together(world: World) -> None:
    """Threads that sign through a rotation meet no error, and none signs with the old key once one has the new."""
    active = world.follow()
    signer = world.signer(active)
    second = world.next_key()
    world.clock.advance(EVERY)
    ready = threading.Barrier(8)
    found: list[list[str]] = []

    def work(_: int) -> None:
        ready.wait()
        kids = [kid_of(signer.sign(MESSAGE)) for _ in range(50)]
        while (
            kids[-1] != second.kid and len(kids) < 10_000
        ):  # another thread may be slow to read the folder
            kids.append(kid_of(signer.sign(MESSAGE)))
        found.append(kids)

    together(work, range(8))
    assert len(found) == 8
    for kids in found:
        assert set(kids) <= {world.first.kid, second.kid}
        assert kids == sorted(kids, key=[world.first.kid, second.kid].index)
        assert kids[-1] == second.kid


def test_child_after_a_fork_follows_too(world: World) -> None:
    """A child looks for itself, even where a thread of its parent was looking at the fork."""
    active = world.follow()
    second = world.next_key()
    world.clock.advance(EVERY)
    with active._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if active.signing_key().kid == second.kid else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# --- ends -------------------------------------------------------------------------------------------------


def test_revoked_key_signs_nothing_more(
    signer: Signer, world: World, errors: Callable[[], list[str]]
) -> None:
    """A revocation has signing refused, in one line that says what to do, until a next key is there."""
    world.revoke(world.first.kid)
    world.clock.advance(EVERY)
    with pytest.raises(ConfigurationError, match=r"no active key: run mqauth keys new"):
        signer.sign(MESSAGE)
    assert len(errors()) == 1
    second = world.next_key()
    assert kid_of(signer.sign(MESSAGE)) == second.kid


@pytest.mark.parametrize(
    "end", [World.next_key, World.revoke], ids=["retired", "revoked"]
)
def test_ended_key_does_not_sign_for_an_unreadable_successor(
    signer: Signer, world: World, end: Callable[..., Any], errors: Callable[[], list[str]]
) -> None:
    """Where the next key's PEM may not be used nothing signs, neither it nor the old one; mended, it goes on."""
    made = world.store.create()
    world.clock.advance(600)
    if end is World.revoke:
        world.revoke(world.first.kid)
    else:
        world.rotate()
    pem = world.store.folder / f"{made.kid}.pem"
    pem.chmod(0o644)
    world.clock.advance(EVERY)
    for _ in range(3):
        with pytest.raises(ConfigurationError, match="open to others"):
            signer.sign(MESSAGE)
    assert len(errors()) == 1
    pem.chmod(0o600)
    world.clock.advance(EVERY)
    assert kid_of(signer.sign(MESSAGE)) == made.kid


# --- the folder out of reach ------------------------------------------------------------------------------


def test_unreadable_folder_leaves_the_last_key_loudly(
    world: World, errors: Callable[[], list[str]]
) -> None:
    """While the keyset cannot be read the last key signs, and an error is logged once a minute."""
    signer = world.signer(world.follow(max_stale=3600))
    mend = world.break_keyset()
    for _ in range(24):
        world.clock.advance(EVERY)
        assert kid_of(signer.sign(MESSAGE)) == world.first.kid
    assert len(errors()) == 2
    assert "keyset.json" in errors()[0]
    mend()
    world.clock.advance(EVERY)
    assert kid_of(signer.sign(MESSAGE)) == world.first.kid


def test_unreadable_folder_ends_the_key_after_max_stale(
    signer: Signer, world: World
) -> None:
    """A key of which nothing was heard for ``max_stale`` may have ended, and signs nothing more until it is."""
    mend = world.break_keyset()
    world.clock.advance(STALE - 0.1)
    signer.sign(MESSAGE)
    world.clock.advance(EVERY)
    with pytest.raises(ConfigurationError, match="for too long to know"):
        signer.sign(MESSAGE)
    mend()
    world.clock.advance(EVERY)
    assert kid_of(signer.sign(MESSAGE)) == world.first.kid


def last_signed(signer: Signer, clock: FakeClock) -> float:
    """Sign each second until it is refused, and return when it last was not."""
    last = 0.0
    for _ in range(1000):
        clock.advance(1)
        try:
            signer.sign(MESSAGE)
        except ConfigurationError:
            return last
        last = clock.now()
    raise AssertionError("never refused")


def test_staleness_ends_before_consumers_refuse(world: World) -> None:
    """By default a key that retired unseen, in a folder nobody can read, stops before its grace is over."""
    signer = world.signer(ActiveKey(world.store.folder, clock=world.clock))
    world.store.create()
    world.clock.advance(600)
    signer.sign(MESSAGE)
    world.rotate()
    retired = world.store.ring().published[0]
    world.break_keyset()
    last = last_signed(signer, world.clock)
    assert retired.expires is not None
    assert 0 < last < retired.expires - MAX_LOOK


def test_idle_producer_is_not_stale(signer: Signer, world: World) -> None:
    """A producer that signed nothing for long looks first, and goes on if the folder can be read."""
    world.clock.advance(100 * STALE)
    assert kid_of(signer.sign(MESSAGE)) == world.first.kid


def test_missing_folder_counts_as_unreadable(
    signer: Signer, world: World, tmp_path: Path
) -> None:
    """A folder that is away for a moment, unmounted for example, changes nothing."""
    world.store.folder.rename(tmp_path / "away")
    world.clock.advance(EVERY)
    assert kid_of(signer.sign(MESSAGE)) == world.first.kid


# --- what is refused --------------------------------------------------------------------------------------


def test_a_start_without_active_key_is_refused(tmp_path: Path) -> None:
    """A producer whose folder has no active key, or is none, does not start."""
    store = Keystore(folder=tmp_path / "keys", clock=FakeClock())
    with pytest.raises(ConfigurationError, match="no keystore"):
        ActiveKey(store.folder)
    store.create(pending=True)
    with pytest.raises(ConfigurationError, match=r"run mqauth keys rotate in 600 s"):
        ActiveKey(store.folder, clock=store.clock)


@pytest.mark.parametrize(
    "bounds",
    [{"look_every": 0}, {"look_every": MAX_LOOK + 1}, {"max_stale": 1}, {"max_stale": 86_401},
     {"max_stale": float("inf")}, {"max_stale": float("nan")}],
    ids=repr,
)  # fmt: skip
def test_bounds_are_finite_and_shorter_than_the_grace(
    world: World, bounds: dict[str, Any]
) -> None:
    """No look interval that a retired key's grace would not cover, and no unbounded staleness."""
    with pytest.raises(ConfigurationError):
        world.follow(**bounds)


def test_rotation_to_another_subject_is_refused(signer: Signer, world: World) -> None:
    """A next key that does not speak for the producer is refused by the signer, not by every consumer."""
    world.store.create(subjects=["another"])
    world.clock.advance(600)
    world.rotate()
    with pytest.raises(
        ConfigurationError, match="does not speak for orders-api, but for another"
    ):
        signer.sign(MESSAGE)


def test_keystore_itself_is_no_source(world: World) -> None:
    """A folder that would be read for each token is refused, and the way named."""
    key: Any = world.store
    with pytest.raises(ConfigurationError, match=r"mqauth\.ActiveKey"):
        world.signer(key)


# --- any other source -------------------------------------------------------------------------------------


class Fickle:
    """A source whose key has changed each time it is to sign, so many times."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.key = Key.generate()

    def signing_key(self) -> SigningKey:
        if self.times:
            self.times -= 1
            return Changed(self.key)
        return jws.LocalSigningKey(self.key)


class Changed(jws.LocalSigningKey):
    """A key that signs no more."""

    def sign(self, data: bytes, /) -> bytes:
        raise KeyChanged("rotated")


def test_changed_key_is_asked_for_again(world: World) -> None:
    """A key that changes between head and signature costs another attempt, not the message."""
    assert world.signer(Fickle(2)).sign(MESSAGE).headers


def test_ever_changing_key_is_given_up(world: World) -> None:
    """A source that changes without end is unavailable, after three attempts."""
    source = Fickle(10)
    with pytest.raises(Unavailable, match="changes faster"):
        world.signer(source).sign(MESSAGE)
    assert source.times == 6


def test_source_out_of_reach_at_the_start_is_asked_later(world: World) -> None:
    """A signing service that is not up yet does not keep a producer from starting; signing says so."""

    class Down:
        def signing_key(self) -> SigningKey:
            raise Unavailable(Cause.KEYS_UNAVAILABLE, "down")

    signer = world.signer(Down())
    with pytest.raises(Unavailable, match="down"):
        signer.sign(MESSAGE)
