"""The keystore: the ring's states, the folder on disk, and JWK Set files."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mqauth.audit import disk
from mqauth.errors import ConfigurationError, Unavailable
from mqauth.keystore import JWKSFile, KeyRing, Keystore, State, public_keys, signing_key
from mqauth.keystore.disk import ring
from mqauth.keystore.disk.ring import RETIREMENT_GRACE
from mqauth.testing.clock import FakeClock
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import ALGORITHMS, Key, KeySet

NOW = 1_900_000_000


@pytest.fixture
def store(tmp_path: Path) -> Keystore:
    return Keystore(folder=tmp_path / "keys", clock=FakeClock(NOW))


def ring_of(count: int, *, pending: bool = False, delay: int = 10) -> KeyRing:
    found = KeyRing(publish_delay=delay)
    for _ in range(count):
        found = ring.add(found, Key.generate(), NOW, pending=pending)
    return found


def states(found: KeyRing) -> list[str]:
    return [key.state.value for key in found.keys]


# --- the ring ---------------------------------------------------------------------------------------------


def test_first_key_is_active_and_later_ones_wait() -> None:
    """The first key signs at once, every later one is pending for the publish delay."""
    found = ring_of(3)
    assert states(found) == ["active", "pending", "pending"]
    assert [key.ready - NOW for key in found.keys] == [0, 10, 10]


def first(
    act: Callable[..., KeyRing], **settings: Any
) -> Callable[[KeyRing, float], KeyRing]:
    """Return an act on the first key of a ring."""
    return lambda found, now: act(found, found.keys[0].kid, now, **settings)


@pytest.mark.parametrize(
    ("before", "act", "after", "told"),
    [
        pytest.param(ring_of(1, pending=True), lambda found, _: found, 0, ["pending"],
                     id="--pending holds back even a first key"),
        pytest.param(ring_of(2), ring.rotate, 9, ["active", "pending"],
                     id="a key signs only once it has been published for its delay"),
        pytest.param(ring_of(2), ring.rotate, 10, ["retired", "active"],
                     id="after its delay the pending key signs and the old one retires"),
        pytest.param(ring_of(3), ring.rotate, 10, ["retired", "retired", "active"],
                     id="of several ready keys the newest signs: a second call finds nothing left to do"),
        pytest.param(ring_of(2), first(ring.retire), 10, ["retired", "active"],
                     id="retiring the active key makes a ready pending one active in the same step"),
        pytest.param(ring_of(2), first(ring.revoke, reason="stolen", since=NOW - 60), 0, ["revoked", "pending"],
                     id="a stolen key stops at once, even where nothing can sign in its place"),
        pytest.param(ring_of(2), first(ring.revoke, reason="stolen"), 10, ["revoked", "active"],
                     id="where a pending key is ready it signs from the revocation on"),
    ],
)  # fmt: skip
def test_states_after_an_act(
    before: KeyRing, act: Any, after: int, told: list[str]
) -> None:
    """An act changes the states of keys, and rotation a second time changes nothing more."""
    found = act(before, NOW + after)
    assert (states(found), found.active is not None) == (told, "active" in told)
    assert told != states(before) or found == before
    assert act is not ring.rotate or ring.rotate(found, NOW + after) == found


def test_retired_key_goes_after_retain() -> None:
    """A retired key stays published for ``retain`` beyond its end, and no longer."""
    rotated = ring.rotate(ring_of(2), NOW + 10)
    end = NOW + 10 + RETIREMENT_GRACE + rotated.retain
    assert len(ring.rotate(rotated, end - 1).keys) == 2
    assert states(ring.rotate(rotated, end)) == ["active"]


def test_active_key_cannot_retire_without_a_successor() -> None:
    """Retiring the only key that can sign is refused."""
    found = ring_of(2)
    with pytest.raises(ConfigurationError, match="no pending key is ready"):
        ring.retire(found, found.keys[0].kid, NOW)


def test_retire_of_an_ended_key_changes_nothing() -> None:
    """What has retired or been revoked keeps its times."""
    found = ring_of(2)
    ended = ring.retire(found, found.keys[1].kid, NOW)
    assert ring.retire(ended, found.keys[1].kid, NOW + 5) == ended


def test_unknown_kid_is_refused() -> None:
    """Retire and revoke name a key that exists."""
    for act in (
        lambda: ring.retire(ring_of(1), "x", NOW),
        lambda: ring.revoke(ring_of(1), "x", NOW, reason=""),
    ):
        with pytest.raises(ConfigurationError, match="no key has the kid 'x'"):
            act()


def test_a_ring_has_one_active_key() -> None:
    """Two active keys, or one kid twice, are refused wherever a ring comes from."""
    keys = ring_of(1).keys
    other = ring_of(1).keys
    with pytest.raises(ConfigurationError, match="two keys are active"):
        KeyRing(keys=(*keys, *other))
    with pytest.raises(ConfigurationError, match="a kid stands for two keys"):
        KeyRing(keys=(*keys, *keys))


# --- keyset.json ------------------------------------------------------------------------------------------


def test_every_state_survives_the_document() -> None:
    """What is written is what is read: all states, times, subjects and delays."""
    found = ring.add(ring.rotate(ring_of(2), NOW + 10), Key.generate(), NOW)
    found = ring.add(found, Key.generate("PS256", subjects=["b", "a"]), NOW)
    found = ring.revoke(found, found.keys[2].kid, NOW, reason="stolen", since=NOW)
    assert states(found) == ["retired", "active", "revoked", "pending"]
    assert ring.load(ring.dump(found), name="keyset.json") == found


def tampered(change: Callable[[dict[str, Any]], object]) -> bytes:
    members = json.loads(ring.dump(ring_of(1)))
    change(members)
    return json.dumps(members).encode()


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"{", "JSON"),
        (b"[]", "not a keyset"),
        (b"\xff", "JSON"),
        (tampered(lambda found: found.update(version=2)), "version"),
        (tampered(lambda found: found.update(more=1)), "not a keyset"),
        (tampered(lambda found: found.update(keys={})), "keys is not a list"),
        (tampered(lambda found: found.update(publish_delay=True)), "publish_delay"),
        (tampered(lambda found: found.update(retain=-1)), "retain"),
        (tampered(lambda found: found["keys"][0].update(state="resting")), "state"),
        (tampered(lambda found: found["keys"][0].update(activated=None)), "since when"),
        (tampered(lambda found: found["keys"][0].update(created="now")), "created"),
        (tampered(lambda found: found["keys"][0].update(kid="other")), "thumbprint"),
        (tampered(lambda found: found["keys"][0].update(kid="../x")), "thumbprint"),
        (tampered(lambda found: found["keys"][0].update(algorithm="HS256")), "algorithm"),
        (tampered(lambda found: found["keys"][0].update(public=None)), "members"),
        (tampered(lambda found: found["keys"][0]["public"].update(d="AA")), "private"),
        (tampered(lambda found: found["keys"][0].update(subjects=[1])), "mqauth_sub"),
        (tampered(lambda found: found["keys"][0].update(extra=1)), "members"),
        (
            tampered(lambda found: found["keys"][0].update(state="revoked", revoked=1)),
            "revocation",
        ),
        (
            tampered(
                lambda found: found["keys"][0].update(
                    revocation={"revoked_at": 1, "reason": ""}
                )
            ),
            "revoked",
        ),
        (
            tampered(
                lambda found: found["keys"][0].update(
                    state="revoked", revoked=1, revocation={}
                )
            ),
            "reason",
        ),
        (tampered(lambda found: found["keys"].append(found["keys"][0])), "two keys"),
    ],
)
def test_damaged_document_is_refused(raw: bytes, what: str) -> None:
    """A keyset.json that ``dump`` cannot have written is refused in one line that names the file."""
    with pytest.raises(ConfigurationError, match=rf"^keyset\.json: .*{what}") as caught:
        ring.load(raw, name="keyset.json")
    assert "\n" not in str(caught.value)


# --- the folder -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_created_key_signs_with_its_algorithm(store: Keystore, algorithm: str) -> None:
    """A key made for an algorithm is read back with that algorithm, its kid and its subjects."""
    made = store.create(algorithm=algorithm, subjects=["orders-api"])
    key = signing_key(store.folder)
    assert (key.kid, key.algorithm, key.subjects) == (made.kid, algorithm, {"orders-api"})
    assert key.private is not None


def test_modes_are_private_whatever_the_umask(store: Keystore) -> None:
    """The folder has mode 0700 and every file in it 0600."""
    before = os.umask(0)
    try:
        store.create()
    finally:
        os.umask(before)
    assert oct(store.folder.stat().st_mode & 0o777) == "0o700"
    assert {oct(path.stat().st_mode & 0o777) for path in store.folder.iterdir()} == {
        "0o600"
    }


def test_nothing_is_left_lying_around(store: Keystore) -> None:
    """After a write the folder holds the PEM, the keyset and the lock, and no temporary file."""
    made = store.create()
    assert {path.name for path in store.folder.iterdir()} == {
        f"{made.kid}.pem",
        "keyset.json",
        ".lock",
    }


def test_leftover_of_a_crash_is_removed(store: Keystore) -> None:
    """A temporary file that a crash left, which may hold a key, is gone after the next write."""
    store.create()
    (store.folder / ".writing").write_bytes(b"half a key")
    store.create()
    assert not (store.folder / ".writing").exists()


def test_lower_publish_delay_waits_for_what_consumers_were_told(store: Keystore) -> None:
    """Consumers reject unknown kids for as long as they were told; a lower delay counts once they can know it."""
    store.create(publish_delay=600)
    assert store.create(publish_delay=10).ready == NOW + 600
    assert store.create().ready == NOW + 600
    assert isinstance(store.clock, FakeClock)
    store.clock.advance(595)
    assert store.create().ready == NOW + 605


def test_later_key_speaks_for_the_same_subjects(store: Keystore) -> None:
    """A new key takes over the subjects of the newest one unless told, or a rotation would change who may sign."""
    store.create(subjects=["a"])
    assert store.create().key.subjects == {"a"}
    assert store.create(subjects=["b"]).key.subjects == {"b"}
    assert store.create().key.subjects == {"b"}


def test_what_root_writes_belongs_to_the_folders_owner(
    store: Keystore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cron job of root does not lock the producer out: lock and new files get the folder's owner."""
    given: dict[int, tuple[int, int]] = {}

    def give(descriptor: int, user: int, group: int) -> None:
        given[os.fstat(descriptor).st_ino] = (user, group)

    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", give)
    store.create()
    owner = store.folder.stat()
    assert given == {
        path.stat().st_ino: (owner.st_uid, owner.st_gid)
        for path in store.folder.iterdir()
    }


def pem(store: Keystore) -> Path:
    """Return the PEM of a new key."""
    return store.folder / f"{store.create().kid}.pem"


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        *(pytest.param(lambda store, mode=mode: pem(store).chmod(mode),
                       rf"open to others \(mode {mode:04o}\); chmod 600", id=f"open to others, {mode:o}")
          for mode in (0o640, 0o604, 0o620, 0o666)),
        pytest.param(lambda store: pem(store).write_bytes(Key.generate().to_pem()),
                     "another key than its name says", id="another key than the keyset lists"),
        pytest.param(lambda store: pem(store).unlink(), r"\.pem: No such file", id="a lost PEM"),
        pytest.param(lambda store: store.create(pending=True, publish_delay=30),
                     r"no active key: run mqauth keys rotate in 30 s", id="the only key is pending"),
    ],
)  # fmt: skip
def test_what_cannot_sign_is_refused(store: Keystore, spoil: Any, said: str) -> None:
    """A key that others may know, that is another or that is not there does not sign; what is wrong is named."""
    spoil(store)
    with pytest.raises(ConfigurationError, match=said):
        store.signing_key()


def test_published_side_names_subjects_and_ends(store: Keystore) -> None:
    """The JWK Set has every key, retired ones with ``exp``, revoked ones with ``revoked``, subjects as
    ``mqauth_sub``, and no private member."""
    old = store.create(subjects=["a"], publish_delay=0)
    new = store.create(subjects=["a"])
    store.change(ring.rotate)
    store.change(lambda found, now: ring.revoke(found, new.kid, now, reason="stolen"))
    listed = {key["kid"]: key for key in dump_key_set(store.public_keys())["keys"]}
    assert listed[old.kid]["exp"] == NOW + RETIREMENT_GRACE
    assert listed[new.kid]["revoked"] == {"revoked_at": 0, "reason": "stolen"}
    assert all(key["mqauth_sub"] == ["a"] and "d" not in key for key in listed.values())


def test_pem_of_a_gone_key_goes_too(store: Keystore) -> None:
    """Once a retired key is no longer published its private half leaves the disk, and no other does."""
    clock = FakeClock(NOW)
    store = Keystore(folder=store.folder, clock=clock)
    old, new = store.create(publish_delay=0), store.create()
    clock.advance(store.change(ring.rotate).retain + RETIREMENT_GRACE)
    store.change(ring.rotate)
    assert [path.stem for path in store.folder.glob("*.pem")] == [new.kid]
    assert old.kid not in {key.kid for key in store.public_keys()}


def test_passphrase_is_needed_and_the_right_one(store: Keystore) -> None:
    """An encrypted key opens with its passphrase only, and the public side needs none."""
    Keystore(folder=store.folder, passphrase=b"right").create()
    for wrong in (None, b"wrong"):
        with pytest.raises(ConfigurationError, match="passphrase"):
            signing_key(store.folder, passphrase=wrong)
    assert signing_key(store.folder, passphrase=b"right").private is not None
    assert len(public_keys(store.folder).keys) == 1


def test_one_folder_has_one_passphrase(store: Keystore) -> None:
    """A key is not added under another passphrase than the active one: its user can name only one."""
    store.create()
    with pytest.raises(ConfigurationError, match="passphrase"):
        Keystore(folder=store.folder, passphrase=b"second").create()
    assert len(store.ring().keys) == 1


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    """A keystore cannot be made where a file has its name."""
    (tmp_path / "keys").write_bytes(b"")
    with pytest.raises(ConfigurationError, match="keys: File exists"):
        Keystore(folder=tmp_path / "keys").create()


@pytest.mark.parametrize("arguments", [{"algorithm": "HS256"}, {"subjects": []}, {"subjects": [""]},
                                       {"publish_delay": -1}, {"publish_delay": 2**40}])  # fmt: skip
def test_bad_argument_makes_no_key(store: Keystore, arguments: dict[str, Any]) -> None:
    """An algorithm, subject or delay out of its limits leaves no key behind."""
    with pytest.raises(ConfigurationError):
        store.create(**arguments)
    assert not (store.folder / "keyset.json").exists()


def test_single_pem_serves_as_keystore(tmp_path: Path) -> None:
    """A single private PEM file signs and publishes, where it is as private as any."""
    path, key = tmp_path / "one.pem", Key.generate("ES256")
    path.write_bytes(key.to_pem())
    path.chmod(0o600)
    assert signing_key(path).kid == key.kid
    assert [found.kid for found in public_keys(path)] == [key.kid]
    path.chmod(0o644)
    with pytest.raises(ConfigurationError, match="open to others"):
        public_keys(path)


def test_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the disk refuses, the file that was there stays whole and no temporary one remains."""
    path = tmp_path / "keyset.json"
    disk.write_whole(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        ConfigurationError, match=r"keyset\.json: No space left on device"
    ):
        disk.write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["keyset.json"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (os.mkfifo, "odd"), (Path.mkdir, "odd"), (lambda path: path.write_bytes(b"x" * 101), "over 100 bytes"),
    ],
    ids=["fifo", "folder", "too large"],
)  # fmt: skip
def test_what_is_no_small_file_is_not_read(tmp_path: Path, make: Any, said: str) -> None:
    """A FIFO or a folder in place of a file is refused and hangs nobody; so is a file over its limit."""
    make(tmp_path / "odd")
    with pytest.raises(ConfigurationError, match=said):
        disk.read_bounded(tmp_path / "odd", 100)


def test_file_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the owner decides what is believed, root does not read the private file of somebody else."""
    (tmp_path / "own").write_bytes(b"x")
    (tmp_path / "own").chmod(0o600)
    assert disk.read_bounded(tmp_path / "own", 100, private=True, own=True) == b"x"
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    with pytest.raises(ConfigurationError, match="belongs to user"):
        disk.read_bounded(tmp_path / "own", 100, private=True, own=True)


_CREATE = """
import sys
from pathlib import Path
from mqauth.keystore import Keystore
sys.stdin.read(1)
for _ in range(5):
    Keystore(folder=Path(sys.argv[1])).create()
"""


def test_processes_at_once_do_not_corrupt(tmp_path: Path) -> None:
    """Four processes that make keys in one new folder at once lose none, and one key is active."""
    folder = tmp_path / "keys"
    command = [sys.executable, "-c", _CREATE, str(folder)]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(4)]
    for worker in workers:
        worker.communicate(b"x", timeout=300)
    found = Keystore(folder=folder).ring()
    assert [worker.returncode for worker in workers] == [0, 0, 0, 0]
    assert sorted(states(found)) == ["active"] + ["pending"] * 19
    assert {f"{key.kid}.pem" for key in found.keys} == {
        path.name for path in folder.glob("*.pem")
    }


def test_active_state_is_one_of_the_enum() -> None:
    """State strings are a contract: they stand in keyset.json and in ``--json``."""
    assert [state.value for state in State] == ["pending", "active", "retired", "revoked"]


# --- JWK Set files ----------------------------------------------------------------------------------------


def write_jwks(path: Path, *keys: Key) -> None:
    """Write a set as an operator would: a new file moved over the old one."""
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps(dump_key_set(KeySet(keys))))
    temporary.replace(path)


@pytest.fixture
def jwks(tmp_path: Path) -> Path:
    return tmp_path / "jwks.json"


OLD, NEW = Key.generate(), Key.generate()


@pytest.mark.parametrize(
    ("bad", "keys"),
    [
        pytest.param(False, (OLD, NEW), id="a new key serves at once"),
        pytest.param(True, (NEW,), id="after a bad state the next good one is taken"),
        pytest.param(
            False,
            (),
            id="a set emptied on purpose means what it says: no key serves any more",
        ),
    ],
)
def test_file_that_changed_is_read_at_once(
    jwks: Path, bad: bool, keys: tuple[Key, ...]
) -> None:
    """``refresh`` reads a file that changed, with no waiting."""
    write_jwks(jwks, OLD)
    source = JWKSFile(jwks, clock=FakeClock())
    if bad:
        jwks.write_text("{")
        with pytest.raises(Unavailable, match="key_pending"):
            source.refresh("unknown", 0.0)
    write_jwks(jwks, *keys)
    assert [key.kid for key in source.refresh("unknown", 0.0)] == [
        key.kid for key in keys
    ]


def test_known_kid_sees_a_revocation_within_a_second(jwks: Path) -> None:
    """``key_set`` looks at the file once a second, so that a key taken out stops serving."""
    gone, kept = Key.generate(), Key.generate()
    write_jwks(jwks, gone, kept)
    clock = FakeClock()
    source = JWKSFile(jwks, clock=clock)
    write_jwks(jwks, kept)
    assert source.key_set().get(gone.kid) is not None
    clock.advance(1.0)
    assert source.key_set().get(gone.kid) is None


def test_file_that_did_not_change_is_not_read(
    jwks: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flood of unknown kids costs one stat each, not a parse."""
    write_jwks(jwks, Key.generate())
    source = JWKSFile(jwks, clock=FakeClock())
    monkeypatch.setattr(
        disk, "read_bounded", lambda *_arguments: pytest.fail("read again")
    )
    assert source.refresh("unknown", 0.0) is source.refresh("other", 0.0)


@pytest.mark.parametrize("damage", ["garbage", "missing", "unusable", "oversize"])
def test_last_good_set_stays_and_it_is_loud(
    jwks: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that goes bad or missing later leaves the last good set in use, logged as one error a change."""
    key = Key.generate()
    write_jwks(jwks, key)
    source = JWKSFile(jwks, clock=FakeClock())
    jwks.unlink()
    if damage != "missing":
        text = {
            "garbage": "{",
            "unusable": '{"keys":[{"kty":"oct","k":"AA"}]}',
            "oversize": " " * 300_000,
        }
        jwks.write_text(text[damage])
    with caplog.at_level(logging.ERROR, "mqauth.keystore"):
        for _ in range(3):
            assert source.refresh(key.kid, 0.0).get(key.kid) is not None
    assert len(caplog.records) == 1
    assert "the last good set of 1 keys stays in use" in caplog.text


@pytest.mark.parametrize(
    "text", [None, "{", '{"keys": []}', '{"keys":[{"kty":"oct","k":"AA"}]}', "[]"]
)
def test_unusable_file_at_the_start_is_refused(jwks: Path, text: str | None) -> None:
    """A file that is missing or has no usable key at the start is a configuration error of one line."""
    if text is not None:
        jwks.write_text(text)
    with pytest.raises(ConfigurationError, match=r"jwks\.json: ") as caught:
        JWKSFile(jwks)
    assert "\n" not in str(caught.value)


def test_skipped_keys_are_reported(jwks: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A key that cannot be used is named in the log while the others serve."""
    good = dump_key_set(KeySet([Key.generate()]))["keys"]
    jwks.write_text(json.dumps({"keys": [*good, {"kty": "oct", "k": "AA"}]}))
    with caplog.at_level(logging.WARNING, "mqauth.keystore"):
        assert len(JWKSFile(jwks).key_set().keys) == 1
    assert "skipped key 1: a private or symmetric key in a public set" in caplog.text
