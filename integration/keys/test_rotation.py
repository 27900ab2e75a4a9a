"""Keys in use: rotations, owners of folders, and floods of random kids."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from integration.keys.flood import HONEST_EVERY, Bounds, flood
from integration.keys.scene import ATTEMPT, LANES, SEEN_WITHIN, Lane, Scene, staged
from integration.scale import nightly
from integration.services import Kafka
from integration.waiting import until
from mqauth import AuditFile, Key, Message
from mqauth.clock import Backoff
from mqauth.keystore import Keystore, State, signing_key
from mqauth.keystore.disk import ring
from mqauth.keystore.remote import rules as jwks_rules

MESSAGES = nightly(10_000, otherwise=1_000)
TENTH = MESSAGES // 10
CHUNK = MESSAGES // 100


@pytest.fixture(params=LANES)
def lane(request: pytest.FixtureRequest) -> Iterator[Lane]:
    """A lane on each broker."""
    url = request.getfixturevalue(request.param).url
    with closing(LANES[request.param](url)) as found:
        yield found


@pytest.fixture
def scene(lane: Lane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A producer, its issuer, and consumers to come."""
    with staged(lane, tmp_path, monkeypatch) as found:
        yield found


class Stream(threading.Thread):
    """The honest producer, at a pace that each phase of the rotation sees some of its messages."""

    def __init__(self, scene: Scene) -> None:
        super().__init__(name="producer", daemon=True)
        self._scene = scene
        self.sent = 0
        self.may_send = 0
        self.failed: BaseException | None = None
        self._more = threading.Condition()

    def let(self, total: int) -> None:
        """Let it send up to so many."""
        with self._more:
            self.may_send = total
            self._more.notify()

    def run(self) -> None:
        """Send, in chunks, what it may."""
        try:
            signer = self._scene.signer()
            while self.sent < MESSAGES:
                with self._more:
                    self._more.wait_for(lambda: self.may_send > self.sent)
                bodies = [
                    b"%d" % number
                    for number in range(self.sent, min(self.sent + CHUNK, self.may_send))
                ]
                self._scene.lane.send(signer, bodies)
                self.sent += len(bodies)
        except BaseException as error:
            self.failed = error

    def reach(self, total: int) -> None:
        """Let it send up to so many, and wait until it has."""
        self.let(total)
        until(lambda: self.sent >= total or self.failed is not None)
        assert self.failed is None


@pytest.mark.slow
def test_rotation_costs_no_message_and_revocation_is_seen(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through a rotation, four consumers and an outage all messages are handled, and none is dead-lettered.

    Then a key is revoked while a thief goes on signing with it: from the stated bound on, none is handled.
    """
    started = time.monotonic()
    first = signing_key(scene.store.folder)
    stream = Stream(scene)
    stream.start()
    with scene.consumer(snapshot=True):
        stream.reach(TENTH)
        second = scene.store.create()
        ready = time.monotonic() + second.ready - second.created + 1
        stream.reach(3 * TENTH)
    with scene.consumer(snapshot=True) as keys:
        stream.reach(4 * TENTH)
        until(lambda: second.kid in keys.key_set().by_kid)
        scene.issuer.kill()
    with scene.consumer(snapshot=True):  # from the snapshot: nobody can be asked
        stream.reach(5 * TENTH)
        until(lambda: time.monotonic() > ready)
        scene.rotate()
        # It looks each half a second, in which it may send all that it may.
        until(lambda: scene.active.signing_key().kid == second.kid)
        stream.let(7 * TENTH)
        until(lambda: scene.kids.get(second.kid, 0) > CHUNK)
        stream.reach(7 * TENTH)
    before = len(scene.handled)
    with scene.consumer(
        snapshot=False
    ) as keys:  # with nothing, and nobody to ask: deferred, not condemned
        stream.reach(8 * TENTH)
        assert len(scene.handled) == before
        scene.issuer.up()
        third = scene.store.create()
        until(lambda: keys.health().state == "fresh")
        back = time.monotonic()
        until(lambda: len(scene.handled) > before)
        resumed = time.monotonic() - back
        ready = time.monotonic() + third.ready - third.created + 1
        stream.reach(MESSAGES)
        until(lambda: len(scene.handled) == MESSAGES)
        stream.join()
        flowed = time.monotonic() - started
        assert scene.lane.letters() == []
        until(lambda: time.monotonic() > ready)
        seen = revocation(scene, signing_key(scene.store.folder))
    assert set(scene.kids) >= {first.kid, second.kid, third.kid}
    assert {reason(letter) for letter in scene.lane.letters()} == {"key_revoked"}
    assert scene.store.signing_key().kid == third.kid
    with capsys.disabled():
        print(
            f"\n{scene.lane.name}: {MESSAGES} messages in {flowed:.0f} s through a rotation, an outage and 4"
            f" consumers: {scene.kids[first.kid]} by the old key, {scene.kids[second.kid]} by the new one;"
            f" rejected 0, lost 0; deferred ones went on {resumed:.2f} s after the issuer's first answer;"
            f" revocation seen after {seen:.1f} s (bound {SEEN_WITHIN:.0f} + {ATTEMPT:.0f} s)"
        )


def revocation(scene: Scene, stolen: Key) -> float:
    """Revoke the active key while a thief signs with it; return the seconds until nothing of his is handled.

    The successor is ready, so that the honest producer goes on.
    """
    thief = scene.signer(stolen)
    scene.lane.send(thief, [b"before"])
    until(lambda: b"before" in scene.handled)
    scene.revoke(stolen.kid)
    revoked = time.monotonic()
    sent: dict[bytes, float] = {}
    while not scene.lane.letters():
        body = b"thief %d" % len(sent)
        sent[body] = time.monotonic() - revoked
        scene.lane.send(thief, [body])
    late = [b"late %d" % number for number in range(200)]
    scene.lane.send(thief, late)
    scene.lane.send(scene.signer(), [b"honest"])
    until(lambda: b"honest" in scene.handled)
    until(lambda: set(late) <= {letter.body for letter in scene.lane.letters()})
    assert not set(late) & scene.handled.keys()
    last = max(
        (moment for body, moment in sent.items() if body in scene.handled), default=0.0
    )
    assert last < SEEN_WITHIN + ATTEMPT
    return last


def reason(letter: Message) -> str:
    """Return why a message was dead-lettered."""
    (found,) = letter.occurrences("mqauth-dead-reason")
    return found.decode() if isinstance(found, bytes) else str(found)


RANDOM = nightly(10_000, otherwise=600)
BOUNDS = Bounds(publish_delay=0.5, backoff=Backoff(first=0.2, longest=1))
MEMORY = 24.0  # MiB; of 100,000 messages it is none


@pytest.mark.slow
@pytest.mark.parametrize("up", [True, False], ids=["up", "down"])
def test_flood_of_random_kids(
    kafka: Kafka,
    up: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every honest message is handled and every forged one ``key_unknown``, at a bounded price.

    Requests to the issuer, growth of memory and, while it answers, stalls of the partition stay within the cache's
    bounds; its cooldown is shortened to 1 s. While it is down nobody is condemned.
    """
    monkeypatch.setattr(jwks_rules, "COOLDOWN", 1.0)
    figures = flood(kafka.url, tmp_path, up=up, messages=RANDOM, bounds=BOUNDS)
    with capsys.disabled():
        print(f"\n{figures}")
    assert figures.honest == RANDOM // HONEST_EVERY
    assert figures.reasons == {"key_unknown": RANDOM - figures.honest}
    assert figures.attempts <= figures.allowed
    assert not up or figures.stall <= BOUNDS.stall
    assert figures.growth < MEMORY


SERVICE = 65534
"""The user and group ``nobody`` of Debian."""
AS_SERVICE = """
import os, sys
from pathlib import Path
from mqauth.audit.file import AuditFile
from mqauth.keystore import ActiveKey, Keystore
from mqauth.keystore.disk import ring

os.setgroups([])
os.setgid({user})
os.setuid({user})
folder = Path(sys.argv[1])
{act}
"""


def as_service(act: str, folder: Path) -> None:
    """Run Python as the user of the service; it starts as root, which alone may read the interpreter."""
    program = AS_SERVICE.format(user=SERVICE, act=act)
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, timeout=60)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder of the service's, which its user can reach."""
    with tempfile.TemporaryDirectory(prefix="mqauth-owner-") as top:
        Path(top).chmod(0o711)
        made = Path(top) / "service"
        made.mkdir(mode=0o700)
        os.chown(made, SERVICE, SERVICE)
        yield made


def test_service_rotates_and_revokes_what_root_made(folder: Path) -> None:
    """``keys new`` by root makes the first key; the service then signs, makes, rotates and revokes."""
    Keystore(folder=folder).create(publish_delay=0)
    as_service(
        "store = Keystore(folder=folder); store.signing_key(); store.create(); store.change(ring.rotate)",
        folder,
    )
    as_service(
        "store = Keystore(folder=folder); kid = store.ring().active.kid;"
        " store.change(lambda keys, now: ring.revoke(keys, kid, now, reason='stolen'))", folder,
    )  # fmt: skip
    states = sorted(key.state.value for key in Keystore(folder=folder).ring().keys)
    assert states == [State.RETIRED.value, State.REVOKED.value]


def test_next_run_of_root_mends_a_lock_that_was_roots(folder: Path) -> None:
    """A lock file that an earlier version left to root becomes the owner's when root changes the folder again."""
    as_service("Keystore(folder=folder).create(publish_delay=0)", folder)
    os.chown(folder / ".lock", 0, 0)
    Keystore(folder=folder).change(ring.rotate)
    as_service("Keystore(folder=folder).change(ring.rotate)", folder)
    assert {path.stat().st_uid for path in folder.iterdir()} == {SERVICE}


def test_root_gives_no_other_users_file_away(folder: Path) -> None:
    """A file of root's that the service linked to the lock's name stays root's."""
    Keystore(folder=folder).create(publish_delay=0)
    secret = folder.parent / "secret"
    secret.write_bytes(b"root's")
    (folder / ".lock").unlink()
    os.link(secret, folder / ".lock")
    Keystore(folder=folder).change(ring.rotate)
    assert secret.stat().st_uid == 0


def test_service_writes_an_audit_file_that_root_began(folder: Path) -> None:
    """A command of root's that begins the audit file does not keep the service from writing it."""
    AuditFile(folder / "audit.jsonl").close()
    as_service("AuditFile(folder / 'audit.jsonl').close()", folder)
    assert (folder / "audit.jsonl").stat().st_uid == SERVICE
