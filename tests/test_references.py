"""Keys of a keystore that something else holds: how they are entered, checked, asked again, and followed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from mqauth.cli import main
from mqauth.errors import ConfigurationError
from mqauth.keystore import ActiveKey, Keystore, State
from mqauth.keystore.disk import files, ring
from mqauth.keystore.reference import key as reference
from mqauth.keystore.reference.key import ReferenceKey
from mqauth.testing.clock import FakeClock
from mqauth.testing.forge import SUBJECT
from mqauth.testing.signing_contract import RotationContract, SigningContract
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key, PublicKey, SigningKey

NOW = 1_900_000_000


class Held:
    """A holder in memory, which counts what it is asked, and fails as it is told."""

    def __init__(self, key: Key) -> None:
        self.key, self.generation = key, 1
        self.failures: list[Exception] = []
        self.asked = 0

    def public(self) -> PublicKey:
        self._fail()
        return self.key.public

    def sign(self, data: bytes, algorithm: str, /) -> bytes:
        self._fail()
        return LocalSigningKey(replace(self.key, algorithm=algorithm)).sign(data)

    def _fail(self) -> None:
        self.asked += 1
        if self.failures:
            raise self.failures.pop(0)


class Holders(dict[str, Held]):
    """Holders by their URI; each that is asked for exists."""

    def __missing__(self, uri: str) -> Held:
        found = self[uri] = Held(Key.generate("ES256" if "es256" in uri else "EdDSA"))
        return found


@pytest.fixture
def holders(monkeypatch: pytest.MonkeyPatch) -> Holders:
    found = Holders()
    monkeypatch.setitem(sys.modules, "held_keys", SimpleNamespace(make=found.__getitem__))
    monkeypatch.setitem(reference.SCHEMES, "held", ("held_keys:make", ""))
    return found


@pytest.fixture
def store(tmp_path: Path, holders: Holders) -> Keystore:
    return Keystore(folder=tmp_path / "keys", clock=FakeClock(NOW))


def adopted(store: Keystore, uri: str = "held:1") -> ring.RingKey:
    """Return an adopted key that signs."""
    store.adopt(uri, subjects=[SUBJECT], publish_delay=0)
    active = store.change(ring.rotate).active
    assert active is not None
    return active


# --- adopting ---------------------------------------------------------------------------------------------


def test_adopted_key_is_pending(store: Keystore, holders: Holders) -> None:
    """Even the first key of a folder is pending when it is adopted, under the thumbprint of its public half."""
    made = store.adopt("held:1", subjects=[SUBJECT])
    assert (made.state, made.uri, made.ready - NOW) == (State.PENDING, "held:1", ring.DEFAULT_PUBLISH_DELAY)
    assert (made.kid, made.key.algorithm) == (holders["held:1"].key.kid, "EdDSA")
    assert store.ring().get(made.kid) == made


def test_a_key_that_signs_as_another_is_not_adopted(store: Keystore, holders: Holders) -> None:
    """A holder whose signatures do not verify with the public half that it gave is refused at once."""
    held, other = holders["held:1"], Key.generate()
    held.public = lambda: other.public  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match=f"held:1: signs with another key than {other.kid}"):
        store.adopt("held:1", subjects=[SUBJECT])
    assert not (store.folder / "keyset.json").exists()


@pytest.mark.parametrize("point", [bytes(32), b"\x01" + bytes(31), b"\xee" + b"\xff" * 30 + b"\x7f"])
def test_a_point_of_small_order_is_not_adopted(store: Keystore, holders: Holders, point: bytes) -> None:
    """A holder that gives a key under which anything verifies is refused: consumers would skip that key."""
    held = holders["held:1"]
    held.public = lambda: Ed25519PublicKey.from_public_bytes(point)  # type: ignore[method-assign]
    held.sign = lambda *_: b"\x01" + bytes(63)  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match="its public key is malformed"):
        store.adopt("held:1", subjects=[SUBJECT])
    assert not (store.folder / "keyset.json").exists()


@pytest.mark.parametrize(
    ("uri", "refusal"),
    [
        ("other:1", "not 'other'"),
        ("no-scheme", "not 'no-scheme'"),
        ("held:" + "x" * 1020, "of at most 1024 ASCII"),
        ("held:a b", "of at most 1024 ASCII"),
        ("held:\u00e4", "of at most 1024 ASCII"),
    ],
)
def test_refused_uris(store: Keystore, uri: str, refusal: str) -> None:
    """A URI is of a known scheme, visible ASCII, and bounded."""
    with pytest.raises(ConfigurationError, match=refusal):
        store.adopt(uri, subjects=[SUBJECT])


@pytest.mark.parametrize("uri", [1, None, "", "held", ["held:1"]])
def test_keyset_with_a_bad_uri(store: Keystore, uri: object) -> None:
    """A keyset whose uri is no URI is refused as a whole."""
    store.adopt("held:1", subjects=[SUBJECT])
    path = store.folder / "keyset.json"
    found = json.loads(path.read_bytes())
    found["keys"][0]["uri"] = uri
    path.write_text(json.dumps(found))
    with pytest.raises(ConfigurationError, match="uri"):
        store.ring()


def test_command_wants_a_subject(tmp_path: Path, holders: Holders, capsys: pytest.CaptureFixture[str]) -> None:
    """The first key of a folder names whom it speaks for, or is pinned; nothing is asked before."""
    command = ["keys", "adopt", "--dir", str(tmp_path / "keys"), "--uri", "held:1"]
    assert run(*command) == 2
    assert "--subject: name the producer" in capsys.readouterr().err
    assert not holders
    assert run(*command, "--pinned") == 0


def run(*arguments: str) -> int:
    """Return the exit code of the command."""
    return main(list(arguments))


# --- states, publishing, signing --------------------------------------------------------------------------


def test_keyset_that_others_may_write(store: Keystore) -> None:
    """A URI may name a library, so it is not used where others than the owner may write it."""
    adopted(store)
    (store.folder / "keyset.json").chmod(0o620)
    with pytest.raises(ConfigurationError, match=r"keyset.json: others may write it \(mode 0620\)"):
        store.signing_key()


@pytest.mark.parametrize("place", ["", "keyset.json"])
def test_keyset_of_another_user(store: Keystore, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    """Neither the keyset with a URI nor its folder may belong to another user, who could name a library."""
    adopted(store)
    real, path = os.stat, store.folder / place

    def owned_by_another(asked: Any, **settings: Any) -> Any:
        found = list(real(asked, **settings))
        found[stat.ST_UID] += (asked == path) * 4711
        return os.stat_result(found)

    monkeypatch.setattr(files.os, "stat", owned_by_another)
    with pytest.raises(ConfigurationError, match=r"another user owns it \(uid \d+\)"):
        store.signing_key()


def test_keyset_in_a_folder_that_others_may_write(store: Keystore) -> None:
    """Who may write the folder could put another keyset there; with the sticky bit nobody else can."""
    adopted(store)
    store.folder.chmod(0o777)
    with pytest.raises(ConfigurationError, match=r"keys: others may write it \(mode 0777\)"):
        store.signing_key()
    store.folder.chmod(0o1777)
    assert store.signing_key().kid


# --- the first signature, and failures --------------------------------------------------------------------


def reference_key(held: Held, key: Key | None = None) -> ReferenceKey:
    return ReferenceKey(key or held.key, "held:1", held)


def test_mixed_up_key(holders: Holders) -> None:
    """A key that signs as another one signs nothing, at the first try and at the second."""
    other = Key.generate()
    key = reference_key(holders["held:1"], other)
    for _ in range(2):
        with pytest.raises(ConfigurationError, match=f"held:1: signs with another key than {other.kid}"):
            key.sign(b"x")


@pytest.mark.parametrize("changed", [False, True])
def test_checked_again_after_a_new_connection(holders: Holders, changed: bool) -> None:
    """The first signature is checked, later ones are not, but over a new connection."""
    held = holders["held:1"]
    key = reference_key(held)
    key.sign(b"x")
    held.key, held.generation = Key.generate(), 2 if changed else 1
    if changed:
        with pytest.raises(ConfigurationError, match="signs with another key"):
            key.sign(b"x")
    else:
        key.sign(b"x")


def test_checked_where_the_call_itself_connects_anew(holders: Holders, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lost connection that is opened again within a call is not trusted by what was checked before it."""
    held = holders["held:1"]
    key = reference_key(held)
    key.sign(b"x")
    key.sign(b"x")

    def reconnecting(data: bytes, algorithm: str) -> bytes:
        held.generation += 1
        return LocalSigningKey(Key.generate(algorithm)).sign(data)

    monkeypatch.setattr(held, "sign", reconnecting)
    with pytest.raises(ConfigurationError, match="signs with another key"):
        key.sign(b"x")


def test_checked_again_in_a_child(holders: Holders) -> None:
    """The first signature in a child after a fork is checked."""
    held = holders["held:1"]
    key = reference_key(held)
    key.sign(b"x")
    held.key = Key.generate()
    child = os.fork()
    if not child:
        try:
            key.sign(b"x")
        except ConfigurationError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_refusal_is_final(holders: Holders) -> None:
    """What the holder refuses is not tried again: an HSM locks itself after a few wrong PINs."""
    held = holders["held:1"]
    held.failures = [ConfigurationError("wrong PIN")]
    with pytest.raises(ConfigurationError, match="wrong PIN"):
        reference_key(held).sign(b"x")
    assert held.asked == 1


def test_nothing_is_imported_before_it_is_needed(tmp_path: Path) -> None:
    """A keystore of PEM files imports nothing of keys in an HSM or a service."""
    script = (
        "import sys, pathlib, mqauth.keystore as k; s = k.Keystore(folder=pathlib.Path(sys.argv[1]));"
        "s.create(subjects=['a']); k.ActiveKey(sys.argv[1]).signing_key().sign(b'x');"
        "print([m for m in sys.modules if m.startswith('pkcs11') or m.startswith('mqauth.keystore.reference.')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "keys")], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


# --- the contracts ----------------------------------------------------------------------------------------


class TestReference(SigningContract):
    """A reference, of each algorithm that an HSM has."""

    @pytest.fixture(params=["held:1", "held:es256"])
    def uri(self, request: pytest.FixtureRequest) -> str:
        found: str = request.param
        return found

    @pytest.fixture
    def signing_key(self, store: Keystore, uri: str) -> SigningKey:
        adopted(store, uri)
        return ActiveKey(store.folder).signing_key()

    @pytest.fixture
    def public(self, holders: Holders, uri: str) -> Key:
        return holders[uri].key.public_only


class TestReferencesInAFolder(RotationContract):
    """A folder whose keys are all references."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        return FakeClock(NOW)

    @pytest.fixture
    def source(self, store: Keystore, clock: FakeClock) -> ActiveKey:
        adopted(store)
        return ActiveKey(store.folder, clock=clock)

    @pytest.fixture
    def rotate(self, store: Keystore, clock: FakeClock, source: ActiveKey) -> Callable[[], Key]:
        def rotate() -> Key:
            made: Any = store.adopt("held:next")
            store.change(ring.rotate)
            clock.advance(60)
            return made.key

        return rotate
