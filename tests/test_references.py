"""Keys of a keystore that something else holds: how they are entered, checked, asked again, and followed."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

import mqauth
from mqauth.audit import disk
from mqauth.check import check
from mqauth.cli import main
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.keystore import ActiveKey, Keystore, State, public_keys, signing_key
from mqauth.keystore.disk import ring
from mqauth.keystore.reference import key as reference
from mqauth.keystore.reference.key import ReferenceKey
from mqauth.keystore.reference.uri import TokenURI
from mqauth.keystore.remote.keyserver import KeyServer
from mqauth.letters.authorities import Releaser
from mqauth.testing.clock import FakeClock
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT, Forge
from mqauth.testing.signing_contract import RotationContract, SigningContract, accepted
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key, PublicKey, SigningKey

NOW = 1_900_000_000
MESSAGE = mqauth.Message(destination="kafka:orders", body=b"hello")


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


def out_of_reach() -> Unavailable:
    return Unavailable(Cause.KEYS_UNAVAILABLE, "hsm.example: gone")


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
    assert (made.state, made.uri, made.ready - NOW) == (
        State.PENDING,
        "held:1",
        ring.DEFAULT_PUBLISH_DELAY,
    )
    assert (made.kid, made.key.algorithm) == (holders["held:1"].key.kid, "EdDSA")
    assert store.ring().get(made.kid) == made


def test_adopted_key_leaves_no_file(store: Keystore) -> None:
    """A reference has no PEM file; its entry in the keyset names the URI, and entries of other keys do not."""
    store.create(subjects=[SUBJECT])
    store.adopt("held:1")
    assert len(list(store.folder.glob("*.pem"))) == 1
    found = json.loads((store.folder / "keyset.json").read_bytes())["keys"]
    assert [entry.get("uri") for entry in found] == [None, "held:1"]


def test_adopted_key_speaks_for_the_subjects_of_the_last(store: Keystore) -> None:
    """Without subjects it gets those of the newest key, as a new key does."""
    store.create(subjects=["a", "b"])
    assert store.adopt("held:1").key.subjects == {"a", "b"}


def test_a_key_is_adopted_once(store: Keystore, holders: Holders) -> None:
    """The same key under another URI is refused, and the keyset stays as it was."""
    store.adopt("held:1", subjects=[SUBJECT])
    holders["held:2"] = holders["held:1"]
    before = store.ring()
    with pytest.raises(ConfigurationError, match="a kid stands for two keys"):
        store.adopt("held:2")
    assert store.ring() == before


def test_a_key_that_signs_as_another_is_not_adopted(
    store: Keystore, holders: Holders
) -> None:
    """A holder whose signatures do not verify with the public half that it gave is refused at once."""
    held, other = holders["held:1"], Key.generate()
    held.public = lambda: other.public  # type: ignore[method-assign]
    with pytest.raises(
        ConfigurationError, match=f"held:1: signs with another key than {other.kid}"
    ):
        store.adopt("held:1", subjects=[SUBJECT])
    assert not (store.folder / "keyset.json").exists()


@pytest.mark.parametrize(
    "point", [bytes(32), b"\x01" + bytes(31), b"\xee" + b"\xff" * 30 + b"\x7f"]
)
def test_a_point_of_small_order_is_not_adopted(
    store: Keystore, holders: Holders, point: bytes
) -> None:
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


def test_command_adopts(
    tmp_path: Path,
    holders: Holders,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``mqauth keys adopt`` prints the key and its state; ``keys list`` shows the URI."""
    command = [
        "keys",
        "adopt",
        "--dir",
        str(tmp_path / "keys"),
        "--uri",
        "held:1",
        "--json",
    ]
    assert run(*command, "--subject", SUBJECT) == 0
    kid = holders["held:1"].key.kid
    assert json.loads(capsys.readouterr().out) == {
        "kid": kid,
        "algorithm": "EdDSA",
        "state": "pending",
    }
    assert run("keys", "list", "--dir", str(tmp_path / "keys"), "--json") == 0
    assert json.loads(capsys.readouterr().out)["keys"][0]["uri"] == "held:1"


def test_command_wants_a_subject(
    tmp_path: Path, holders: Holders, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first key of a folder names whom it speaks for, or is pinned; nothing is asked before."""
    command = ["keys", "adopt", "--dir", str(tmp_path / "keys"), "--uri", "held:1"]
    assert run(*command) == 2
    assert "--subject: name the producer" in capsys.readouterr().err
    assert not holders
    assert run(*command, "--pinned") == 0


def test_command_says_what_is_out_of_reach(
    tmp_path: Path, holders: Holders, capsys: pytest.CaptureFixture[str]
) -> None:
    """A holder out of reach ends the command without a keystore, and is named."""
    holders["held:1"].failures = [out_of_reach() for _ in range(3)]
    command = [
        "keys",
        "adopt",
        "--dir",
        str(tmp_path / "keys"),
        "--uri",
        "held:1",
        "--subject",
        SUBJECT,
    ]
    assert run(*command) == 3
    assert "keys_unavailable: hsm.example: gone" in capsys.readouterr().err
    assert not (tmp_path / "keys" / "keyset.json").exists()


def run(*arguments: str) -> int:
    """Return the exit code of the command."""
    return main(list(arguments))


# --- states, publishing, signing --------------------------------------------------------------------------


def test_states_are_those_of_any_key(store: Keystore) -> None:
    """A reference goes through all states, and a rotation leaves files of other keys alone."""
    first = store.create(subjects=[SUBJECT])
    made = store.adopt("held:1", publish_delay=0)
    store = replace(store, clock=FakeClock(NOW + ring.DEFAULT_PUBLISH_DELAY))
    after = store.change(ring.rotate)
    assert [key.state for key in after.keys] == [State.RETIRED, State.ACTIVE]
    assert (
        store.change(
            lambda found, now: ring.revoke(found, made.kid, now, reason="stolen")
        ).active
        is None
    )
    gone = replace(store, clock=FakeClock(NOW + 30 * 86_400)).change(ring.rotate)
    assert [key.kid for key in gone.keys] == [made.kid]
    assert first.kid not in {path.stem for path in store.folder.glob("*.pem")}


def test_public_half_is_published(store: Keystore) -> None:
    """The JWK Set and its server name the public half alone: neither the URI nor what it names."""
    made = store.adopt("held:1", subjects=[SUBJECT])
    assert [key.kid for key in public_keys(store.folder)] == [made.kid]
    served = KeyServer([store.folder]).current.body
    assert json.loads(served)["keys"][0]["kid"] == made.kid
    assert b"held" not in served


def test_signing_key_is_a_reference(store: Keystore) -> None:
    """``Keystore.signing_key``, ``private_key`` and ``signing_key`` give what signs, with kid and subjects."""
    made = adopted(store)
    for found in (
        store.signing_key(),
        store.private_key(made),
        signing_key(store.folder),
    ):
        assert isinstance(found, ReferenceKey)
        assert (found.kid, found.algorithm, found.subjects) == (
            made.kid,
            "EdDSA",
            {SUBJECT},
        )


def test_running_producer_follows_from_file_to_reference(store: Keystore) -> None:
    """A running producer goes on with an adopted key once it is active, and knows that it may block."""
    first, clock = store.create(subjects=[SUBJECT]), FakeClock(NOW)
    source = ActiveKey(store.folder, clock=clock)
    signer = mqauth.Signer(key=source, issuer=ISSUER, subject=SUBJECT, audience=AUDIENCE)
    assert not signer.blocking
    made = store.adopt("held:1")
    replace(store, clock=FakeClock(NOW + 600)).change(ring.rotate)
    clock.advance(60)
    assert signer.blocking
    assert (accepted(signer.sign(MESSAGE), made.key), source.signing_key().kid) == (
        made.kid,
        made.kid,
    )
    assert first.kid != made.kid


def test_producer_starts_while_the_holder_is_away(
    store: Keystore, holders: Holders
) -> None:
    """A signer is made without asking the holder; its first message is told what is out of reach."""
    adopted(store)
    asked = holders["held:1"].asked
    signer = mqauth.Signer(
        key=ActiveKey(store.folder), issuer=ISSUER, subject=SUBJECT, audience=AUDIENCE
    )
    assert holders["held:1"].asked == asked
    holders["held:1"].failures = [out_of_reach() for _ in range(3)]
    with pytest.raises(Unavailable, match=r"keys_unavailable: hsm\.example: gone"):
        signer.sign(MESSAGE)
    assert accepted(signer.sign(MESSAGE), holders["held:1"].key)


@pytest.mark.parametrize(
    ("place", "mode", "said"),
    [
        pytest.param("keyset.json", 0o620, r"keyset.json: others may write it \(mode 0620\)",
                     id="a URI may name a library"),
        pytest.param("", 0o777, r"keys: others may write it \(mode 0777\)",
                     id="who may write the folder could put another keyset there"),
        pytest.param("", 0o1777, None, id="with the sticky bit nobody else can"),
    ],
)  # fmt: skip
def test_where_others_may_write(
    store: Keystore, place: str, mode: int, said: str | None
) -> None:
    """A keyset with a URI is not used where others than the owner may write it, or put another in its place."""
    adopted(store)
    (store.folder / place).chmod(mode)
    with pytest.raises(ConfigurationError, match=said) if said else nullcontext():
        assert store.signing_key().kid


@pytest.mark.parametrize("place", ["", "keyset.json"])
def test_keyset_of_another_user(
    store: Keystore, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Neither the keyset with a URI nor its folder may belong to another user, who could name a library."""
    adopted(store)
    real, path = os.stat, store.folder / place

    def owned_by_another(asked: Any, **settings: Any) -> Any:
        found = list(real(asked, **settings))
        found[stat.ST_UID] += (asked == path) * 4711
        return os.stat_result(found)

    monkeypatch.setattr(disk.os, "stat", owned_by_another)
    with pytest.raises(ConfigurationError, match=r"another user owns it \(uid \d+\)"):
        store.signing_key()


def test_new_key_beside_a_reference_asks_nothing(
    store: Keystore, holders: Holders
) -> None:
    """``keys new`` beside an active reference needs neither its holder nor a passphrase."""
    adopted(store)
    asked = holders["held:1"].asked
    encrypted = replace(store, passphrase=b"secret")
    assert encrypted.create().state is State.PENDING
    assert holders["held:1"].asked == asked


def test_check_takes_a_reference(store: Keystore, tmp_path: Path) -> None:
    """``mqauth check`` judges references as any keys: no finding is about a file that is missing."""
    adopted(store)
    (tmp_path / "mqauth.toml").write_text(
        f'[producer]\nissuer = "{ISSUER}"\nsubject = "{SUBJECT}"\naudience = "{AUDIENCE}"\nkeys = "keys"\n'
    )
    (tmp_path / "mqauth.toml").chmod(0o600)
    report = check(tmp_path / "mqauth.toml")
    assert {found.code.name for found in report.findings} == {"publish_delay_short"}
    assert mqauth.load(tmp_path / "mqauth.toml").signer.sign(MESSAGE).headers


def test_scheme_that_is_gone(store: Keystore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A keystore with a scheme that this version does not know can be listed, and cannot sign."""
    adopted(store)
    monkeypatch.delitem(reference.SCHEMES, "held")
    assert store.ring().active is not None
    with pytest.raises(ConfigurationError, match="not 'held'"):
        ActiveKey(store.folder)


# --- the first signature, and failures --------------------------------------------------------------------


def reference_key(held: Held, key: Key | None = None) -> ReferenceKey:
    return ReferenceKey(key or held.key, "held:1", held)


def test_mixed_up_key(holders: Holders) -> None:
    """A key that signs as another one signs nothing, at the first try and at the second."""
    other = Key.generate()
    key = reference_key(holders["held:1"], other)
    for _ in range(2):
        with pytest.raises(
            ConfigurationError, match=f"held:1: signs with another key than {other.kid}"
        ):
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


def test_checked_where_the_call_itself_connects_anew(
    holders: Holders, monkeypatch: pytest.MonkeyPatch
) -> None:
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


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_tried_three_times(holders: Holders, failures: int) -> None:
    """What is out of reach once or twice costs no message; then it is ``Unavailable``, with the holder's words."""
    held = holders["held:1"]
    held.failures = [out_of_reach() for _ in range(failures)]
    with (
        pytest.raises(Unavailable, match=r"hsm\.example: gone")
        if failures == 3
        else nullcontext()
    ):
        reference_key(held).sign(b"x")
    assert held.asked == min(failures + 1, 3)


def test_a_refusal_is_final(holders: Holders) -> None:
    """What the holder refuses is not tried again: an HSM locks itself after a few wrong PINs."""
    held = holders["held:1"]
    held.failures = [ConfigurationError("wrong PIN")]
    with pytest.raises(ConfigurationError, match="wrong PIN"):
        reference_key(held).sign(b"x")
    assert held.asked == 1


def test_releases_are_signed_by_references(holders: Holders) -> None:
    """A reviewer's releases can be signed by a reference, and its subjects count."""
    held = holders["held:1"]
    key = reference_key(held, replace(held.key, subjects=frozenset(("ann",))))
    message = Forge().signer().sign(MESSAGE)
    releaser = Releaser(key=key, issuer="https://review.example", reviewer="ann")
    _, release = releaser.release(message, letter="l", scope="billing", reason="a test")
    assert release.letter == "l"
    with pytest.raises(ConfigurationError, match="does not speak for "):
        Releaser(key=key, issuer="https://review.example", reviewer="bob")


def test_nothing_is_imported_before_it_is_needed(tmp_path: Path) -> None:
    """A keystore of PEM files imports nothing of keys in an HSM or a service."""
    script = (
        "import sys, pathlib, mqauth.keystore as k; s = k.Keystore(folder=pathlib.Path(sys.argv[1]));"
        "s.create(subjects=['a']); k.ActiveKey(sys.argv[1]).signing_key().sign(b'x');"
        "print([m for m in sys.modules if m.startswith('pkcs11') or m.startswith('mqauth.keystore.reference.')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "keys")],
        capture_output=True,
        text=True,
        check=True,
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
    def rotate(
        self, store: Keystore, clock: FakeClock, source: ActiveKey
    ) -> Callable[[], Key]:
        def rotate() -> Key:
            made: Any = store.adopt("held:next")
            store.change(ring.rotate)
            clock.advance(60)
            return made.key

        return rotate


# The URI of a key in an HSM (RFC 7512): what is read, and what is refused.


def test_all_parts() -> None:
    """Each part is read, with its escapes, in any order."""
    found = TokenURI.parse(
        "pkcs11:id=%00%ff;serial=12;object=a%3Bb;token=my%20token;type=private"
        "?pin-source=file:/run/pin&module-path=/usr/lib/hsm.so"
    )
    assert found == TokenURI(
        token="my token", serial="12", label="a;b", id=b"\0\xff", module_path="/usr/lib/hsm.so",
        pin_source="file:/run/pin",
    )  # fmt: skip
    assert (found.where, found.what) == (
        "token 'my token' (serial 12)",
        "'a;b' of id 00ff",
    )


@pytest.mark.parametrize(
    ("uri", "refusal"),
    [
        ("pkcs12:token=a;object=b", "not a pkcs11 URI"),
        ("pkcs11:token=a;object=%zz", "a % that escapes nothing"),
        ("pkcs11:token=a;object=b%4", "a % that escapes nothing"),
        ("pkcs11:object=b", "names its token"),
        ("pkcs11:token=;object=b", "names its token"),
        ("pkcs11:token=a", "names its object, or its id"),
        ("pkcs11:token=a;object=", "names its object, or its id"),
        ("pkcs11:token=a;object=b;object=c", "object stands twice"),
        ("pkcs11:token=a;object=b;type=public", "type=private"),
        ("pkcs11:token=a;object=b;slot-id=1", "not 'slot-id'"),
        ("pkcs11:token=a;object=b;pin-source=file:/x", "not 'pin-source'"),
        ("pkcs11:token=a;object=b?object=c", "not 'object'"),
        ("pkcs11:token=a;object=b?module-name=x", "not 'module-name'"),
        (
            "pkcs11:token=a;object=b?pin-source=file:/x&pin-source=env:Y",
            "pin-source stands twice",
        ),
        (
            "pkcs11:token=a;object=b?pin-source=file:relative",
            "pin-source is file: and a full path, or env:NAME",
        ),
        (
            "pkcs11:token=a;object=b?pin-source=|command",
            "pin-source is file: and a full path, or env:NAME",
        ),
        (
            "pkcs11:token=a;object=b?pin-source=1234",
            "pin-source is file: and a full path, or env:NAME",
        ),
        ("pkcs11:token=%ff;object=b", "token is no UTF-8"),
        ("pkcs11:token=a;object=b?pin-source=file:/x%00", "pin-source has a NUL"),
    ],
)
def test_refused(uri: str, refusal: str) -> None:
    """What is missing, repeated, unknown or malformed is refused by its name."""
    with pytest.raises(ConfigurationError, match=refusal.replace("|", r"\|")):
        TokenURI.parse(uri)


@pytest.mark.parametrize(
    "uri", ["pkcs11:token=a;object=b?pin-value=4711", "pkcs11:token=a?x=y&pin-value=4711"]
)
def test_a_pin_is_refused_and_not_repeated(uri: str) -> None:
    """A PIN in a URI is refused, and the error does not have it."""
    with pytest.raises(ConfigurationError, match="a PIN never stands in a uri") as caught:
        TokenURI.parse(uri)
    assert "4711" not in str(caught.value)


def test_pin_of_a_file(tmp_path: Path) -> None:
    """One newline at the end of the file is not part of the PIN; an empty file has none."""
    file = tmp_path / "pin"
    found = TokenURI.parse(f"pkcs11:token=a;object=b?pin-source=file:{file}")
    file.touch(0o600)
    with pytest.raises(ConfigurationError, match="token 'a': no PIN in file"):
        found.pin()
    file.write_text("12 34\r\n")
    assert found.pin() == "12 34"
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match="is no UTF-8"):
        found.pin()


def test_pin_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable that the URI names comes before the common one, which is not asked then."""
    monkeypatch.setenv("MQAUTH_PKCS11_PIN", "1")
    assert TokenURI.parse("pkcs11:token=a;object=b").pin() == "1"
    with pytest.raises(ConfigurationError, match="token 'a': no PIN in env OTHER"):
        TokenURI.parse("pkcs11:token=a;object=b?pin-source=env:OTHER").pin()


def test_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library of the URI comes before that of the environment; it is a file under a full path."""
    monkeypatch.setenv("PKCS11_MODULE", "/nowhere")
    library = tmp_path / "hsm.so"
    library.touch()
    assert TokenURI.parse(
        f"pkcs11:token=a;object=b?module-path={library}"
    ).library() == str(library)
    with pytest.raises(
        ConfigurationError, match="token 'a': there is no library /nowhere"
    ):
        TokenURI.parse("pkcs11:token=a;object=b").library()
