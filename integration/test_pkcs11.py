"""Keys in an HSM, on a real SoftHSM: the contract, what goes wrong, threads and forks."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import aio_pika
import pytest

from integration import conftest
from integration.documentation import Reader, blocks
from integration.held_key import OfAKeystore
from integration.services import RabbitMQ
from integration.services.softhsm import PIN, SoftHSM
from integration.test_faststream import Shop
from mqauth import AuditFile, Message, Signer
from mqauth.brokers.rabbitmq import Producer
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.integrations.faststream import VerifiedMessage
from mqauth.keystore import ActiveKey, Keystore
from mqauth.keystore.disk import ring
from mqauth.keystore.reference import pkcs11 as holder
from mqauth.keystore.reference.key import open_holder
from mqauth.testing.clock import FakeClock
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.testing.signing_contract import RotationContract, accepted, verify
from mqauth.wire import jws
from mqauth.wire.keys import Key
from tests.authority_world import World

NOW = 1_900_000_000
KINDS = {"ES256": "EC:prime256v1", "EdDSA": "EC:edwards25519"}
MESSAGE = Message(destination="kafka:orders", body=b"hello")
PAGE = "docs/how-to/keep-keys-in-an-hsm.md"


@contextmanager
def used(hsm: SoftHSM) -> Iterator[SoftHSM]:
    """Have this process use an HSM, as if it had just begun; SoftHSM reads its settings when it is initialised."""
    before = {name: os.environ.get(name) for name in hsm.environment}
    os.environ.update(hsm.environment)
    holder.SESSIONS.forked()
    try:
        yield hsm
    finally:
        holder.SESSIONS.forked()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SoftHSM:
    """An HSM for tests that do it no harm: a token with keys of both algorithms, and an empty one."""
    found = SoftHSM.launch(tmp_path_factory.mktemp("hsm"), "prod", "other")
    conftest._started.append(found)
    for number, (name, kind) in enumerate(KINDS.items(), 1):
        found.generate(name, kind, id=f"{number:02}")
    found.generate("next", id="03")
    return found


@pytest.fixture
def hsm(shared: SoftHSM) -> Iterator[SoftHSM]:
    """The shared HSM, used by this process."""
    with used(shared) as found:
        yield found


@pytest.fixture
def own(tmp_path: Path) -> Iterator[SoftHSM]:
    """An HSM that a test may break."""
    with used(SoftHSM.launch(tmp_path / "hsm", "prod")) as found:
        yield found


@contextmanager
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let no signature be made within the block, as an HSM does that takes its time; whoever signs waits."""
    monkeypatch.setattr(holder, "TIMEOUT", 60)
    monkeypatch.setattr(holder, "OPENING", 60)
    begun, end = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        begun.set()
        end.wait(60)

    uri = holder.TokenURI.parse("pkcs11:token=prod;object=ES256")
    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(holder.SESSIONS.call, uri, hold)
        assert begun.wait(30)
        try:
            yield
        finally:
            end.set()
            holding.result()


def adopted(folder: Path, name: str) -> Keystore:
    """Return a keystore in which an adopted key signs."""
    store = Keystore(folder=folder, clock=FakeClock(NOW))
    store.adopt(f"pkcs11:token=prod;object={name}", subjects=[SUBJECT], publish_delay=0)
    assert store.change(ring.rotate).active
    return store


def refused(uri: str) -> str:
    """Return why a key is not adopted for good."""
    with pytest.raises(ConfigurationError) as caught:
        open_holder(uri).public()
    return str(caught.value)


def away(uri: str) -> str:
    """Return why a key is out of reach."""
    with pytest.raises(Unavailable) as caught:
        open_holder(uri).sign(b"x", "ES256")
    assert caught.value.cause is Cause.KEYS_UNAVAILABLE
    return caught.value.detail


# --- the contract -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
class TestKeyInAnHSM(OfAKeystore):
    """A key in an HSM, by the URI in the keystore."""

    @pytest.fixture
    def store(self, hsm: SoftHSM, tmp_path: Path, name: str) -> Keystore:
        """A keystore in which its reference signs."""
        return adopted(tmp_path / "keys", name)


class TestRotationInAnHSM(RotationContract):
    """A rotation from one key of an HSM to the next."""

    @pytest.fixture
    def clock(self) -> FakeClock:
        """Tells when the producer looks at the folder."""
        return FakeClock(NOW)

    @pytest.fixture
    def store(self, hsm: SoftHSM, tmp_path: Path) -> Keystore:
        """A keystore in which its reference signs."""
        return adopted(tmp_path / "keys", "ES256")

    @pytest.fixture
    def source(self, store: Keystore, clock: FakeClock) -> ActiveKey:
        """What is under test."""
        return ActiveKey(store.folder, clock=clock)

    @pytest.fixture
    def rotate(self, store: Keystore, clock: FakeClock) -> Callable[[], Key]:
        """What rotates to the next key."""

        def rotate() -> Key:
            made = store.adopt("pkcs11:token=prod;object=next")
            store.change(ring.rotate)
            clock.advance(60)
            return made.key

        return rotate


# --- what an HSM holds ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "pkcs11:token=prod;object=ES256", "pkcs11:token=prod;id=%01", "pkcs11:object=ES256;token=prod;id=%01",
        "pkcs11:token=pr%6fd;object=ES256;type=private",
    ],
)  # fmt: skip
def test_one_key_by_several_names(hsm: SoftHSM, uri: str) -> None:
    """A key is named by its label, its id, or both, with escapes as in any URI."""
    assert (
        open_holder(uri).public()
        == open_holder("pkcs11:token=prod;object=ES256").public()
    )


def test_serial_of_a_token(own: SoftHSM) -> None:
    """Two tokens of one label are told by their serials, which the error names."""
    own.token("prod")
    said = refused("pkcs11:token=prod;object=a")
    assert "token 'prod': stands for 2: name one by its serial" in said
    serials = re.findall(r"serial (\w+)", said)
    assert len(serials) == 2
    said = refused(f"pkcs11:token=prod;serial={serials[0]};object=a")
    assert said == f"token 'prod' (serial {serials[0]}): has no private key 'a', but none"


def test_missing_object(hsm: SoftHSM) -> None:
    """An object that is not there is named, with those that are."""
    said = refused("pkcs11:token=prod;object=orders-1")
    assert said.startswith("token 'prod': has no private key 'orders-1', but ")
    assert {"'ES256'", "'EdDSA'", "'next'"} == set(said.split("but ")[1].split(", "))
    assert "has no private key 'ES256' of id 07" in refused(
        "pkcs11:token=prod;object=ES256;id=%07"
    )


def test_two_objects_of_one_label(own: SoftHSM) -> None:
    """Two keys of one label are refused with their ids, and each id alone is good."""
    own.generate("a", id="0a")
    own.generate("a", id="0b")
    said = refused("pkcs11:token=prod;object=a")
    assert re.fullmatch(
        r"token 'prod': has 2 private keys 'a': name one by its id \((0a, 0b|0b, 0a)\)",
        said,
    )
    assert (
        open_holder("pkcs11:token=prod;id=%0a").public()
        != open_holder("pkcs11:token=prod;id=%0b").public()
    )


@pytest.mark.parametrize(
    ("kind", "named"),
    [("EC:secp384r1", "EC of curve 06052b81040022"), ("rsa:2048", "RSA")],
)
def test_key_of_another_type(own: SoftHSM, kind: str, named: str) -> None:
    """A key of another type is refused: what it is, and what is wanted."""
    own.generate("a", kind)
    said = refused("pkcs11:token=prod;object=a")
    assert (
        said
        == f"token 'prod': private key 'a' is {named}; wanted is a P-256 or an Ed25519 key"
    )


def test_public_half_that_is_missing(own: SoftHSM) -> None:
    """A private key without its public object cannot be adopted."""
    own.generate("a")
    own.tool(
        "--token-label", "prod", "--delete-object", "--type", "pubkey", "--label", "a"
    )
    assert (
        refused("pkcs11:token=prod;object=a")
        == "token 'prod': has no public key 'a', but none"
    )


def test_key_changed_under_its_name(own: SoftHSM, tmp_path: Path) -> None:
    """A key that was replaced in the HSM under the same label signs nothing: its type, or its first signature."""
    own.generate("a")
    folder = adopted(tmp_path / "keys", "a").folder
    for kind, said in (
        ("EC:edwards25519", "private key 'a' signs EdDSA, and the keystore has ES256"),
        ("EC:prime256v1", "signs with another key than"),
    ):
        for part in ("privkey", "pubkey"):
            own.tool(
                "--token-label", "prod", "--delete-object", "--type", part, "--label", "a"
            )
        own.generate("a", kind)
        holder.SESSIONS.forked()
        with pytest.raises(ConfigurationError, match=said):
            ActiveKey(folder).signing_key().sign(b"x")


# --- PINs and libraries -----------------------------------------------------------------------------------


def test_wrong_pin_is_tried_once(own: SoftHSM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong PIN is refused and never sent again, for HSMs lock themselves; another PIN is tried at once."""
    own.generate("a")
    asked: list[str] = []

    class Watched:
        """A token that notes the PINs it is opened with."""

        def __init__(self, token: Any) -> None:
            self._token = token

        def open(self, *, user_pin: str) -> Any:
            asked.append(user_pin)
            return self._token.open(user_pin=user_pin)

    found = holder._token
    monkeypatch.setattr(
        holder, "_token", lambda library, uri: Watched(found(library, uri))
    )
    monkeypatch.setenv("MQAUTH_PKCS11_PIN", "9999")
    assert (
        refused("pkcs11:token=prod;object=a")
        == "token 'prod': refuses the PIN (PinIncorrect)"
    )
    for _ in range(3):
        assert "refused this PIN before" in refused("pkcs11:token=prod;object=a")
    monkeypatch.setenv("MQAUTH_PKCS11_PIN", PIN)
    open_holder("pkcs11:token=prod;object=a").public()
    assert asked == ["9999", PIN]


def test_pin_of_a_file(
    hsm: SoftHSM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A PIN comes from a private file or a variable that the URI names; nobody else may read the file."""
    monkeypatch.delenv("MQAUTH_PKCS11_PIN")
    file = tmp_path / "pin"
    file.write_text(f"{PIN}\n")
    uri = f"pkcs11:token=prod;object=ES256?pin-source=file:{file}"
    file.chmod(0o644)
    assert (
        refused(uri) == f"{file}: private, but open to others (mode 0644); chmod 600 it"
    )
    file.chmod(0o600)
    open_holder(uri).public()
    holder.SESSIONS.forked()
    assert "token 'prod': no PIN in env MY_PIN" in refused(
        "pkcs11:token=prod;object=ES256?pin-source=env:MY_PIN"
    )
    monkeypatch.setenv("MY_PIN", PIN)
    open_holder("pkcs11:token=prod;object=ES256?pin-source=env:MY_PIN").public()


def test_no_pin(hsm: SoftHSM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a PIN the error says where it may stand, and no session is opened."""
    monkeypatch.delenv("MQAUTH_PKCS11_PIN")
    said = refused("pkcs11:token=prod;object=ES256")
    assert said.startswith(
        "token 'prod': no PIN in env MQAUTH_PKCS11_PIN: give pin-source=file:/path in the uri"
    )


def test_missing_library(
    hsm: SoftHSM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library that is missing, or is none, is named; so is where it may be named."""
    uri = "pkcs11:token=prod;object=ES256"
    assert (
        refused(f"{uri}?module-path=/nowhere.so")
        == "token 'prod': there is no library /nowhere.so"
    )
    none = tmp_path / "none.so"
    none.write_bytes(b"no library")
    assert refused(f"{uri}?module-path={none}") == f"{none}: no PKCS#11 library"
    assert "is not absolute: libx.so" in refused(f"{uri}?module-path=libx.so")
    monkeypatch.delenv("PKCS11_MODULE")
    assert "name it by module-path in the uri, or in PKCS11_MODULE" in refused(uri)


# --- lost and found ---------------------------------------------------------------------------------------


def test_token_that_is_not_there(hsm: SoftHSM) -> None:
    """A token that is not there is out of reach, and may come back; the error names those that are."""
    said = away("pkcs11:token=backup;object=ES256")
    assert re.fullmatch(
        r"token 'backup': not there; there is '(prod|other)' \(serial \w+\), '(prod|other)' \(serial \w+\)",
        said,
    )


def test_token_that_goes_and_comes_back(own: SoftHSM, tmp_path: Path) -> None:
    """While its token is gone a key is ``Unavailable`` and names it; it signs again once the token is back."""
    own.generate("a")
    store = adopted(tmp_path / "keys", "a")
    signer = Signer(
        key=ActiveKey(store.folder), issuer=ISSUER, subject=SUBJECT, audience=AUDIENCE
    )
    assert accepted(signer.sign(MESSAGE), store.ring().keys[0].key)
    shutil.move(own.tokens, tmp_path / "elsewhere")
    for _ in range(2):
        with pytest.raises(Unavailable, match="keys_unavailable: token 'prod': "):
            signer.sign(MESSAGE)
    shutil.move(tmp_path / "elsewhere", own.tokens)
    assert accepted(signer.sign(MESSAGE), store.ring().keys[0].key)


def test_session_that_was_lost(hsm: SoftHSM, tmp_path: Path) -> None:
    """A session that the HSM ended costs no message: another is opened, and its first signature is checked."""
    store = adopted(tmp_path / "keys", "ES256")
    key = ActiveKey(store.folder).signing_key()
    key.sign(b"x")
    before = holder.SESSIONS.generation
    for session in list(holder.SESSIONS._open.values()):
        session.close()
    verify(jws.compact(b"x", key), store.ring().keys[0].key)
    assert holder.SESSIONS.generation > before


def test_two_keys_share_a_session(hsm: SoftHSM, tmp_path: Path) -> None:
    """All keys of a token share its one session, whichever thread asks."""
    keys = [
        ActiveKey(adopted(tmp_path / name, name).folder).signing_key() for name in KINDS
    ]
    with ThreadPoolExecutor(8) as pool:
        for found in [pool.submit(key.sign, b"x") for key in keys * 20]:
            found.result()
    assert len(holder.SESSIONS._open) == 1


def test_a_library_that_hangs(
    own: SoftHSM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Who waits for a library that hangs gets ``Unavailable`` in time, and others at once; then it goes on."""
    own.generate("a")
    store, uri = adopted(tmp_path / "keys", "a"), "pkcs11:token=prod;object=a"
    signer = Signer(
        key=ActiveKey(store.folder), issuer=ISSUER, subject=SUBJECT, audience=AUDIENCE
    )
    settings, pipe = Path(os.environ["SOFTHSM2_CONF"]).read_text(), tmp_path / "pipe"
    os.mkfifo(pipe)
    monkeypatch.setenv("SOFTHSM2_CONF", str(pipe))
    monkeypatch.setattr(holder, "OPENING", 0.05)
    # The library begins again, and opens its settings, which nobody writes.
    holder.SESSIONS.forked()
    assert away(uri) == "token 'prod': no answer for 0.05 s"
    assert (
        away(uri)
        == "token 'prod': an earlier call in a PKCS#11 library has not come back"
    )
    with pytest.raises(
        Unavailable, match="keys_unavailable: token 'prod': an earlier call"
    ):
        signer.sign(MESSAGE)
    assert "nothing is signed with key" in caplog.text
    late = holder.SESSIONS._late
    assert late is not None
    pipe.write_text(settings)
    late.result(30)
    assert accepted(signer.sign(MESSAGE), store.ring().keys[0].key)


def test_who_waits_for_others_is_told(
    hsm: SoftHSM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many that ask at once wait for each other, and no longer than allowed; none of their calls is made then."""
    uri = holder.TokenURI.parse("pkcs11:token=prod;object=ES256")
    made: list[str] = []
    with held(monkeypatch):
        monkeypatch.setattr(holder, "TIMEOUT", 0.01)
        with pytest.raises(Unavailable, match=r"no answer for 0\.01 s"):
            holder.SESSIONS.call(uri, lambda _: made.append("call"))
        assert holder.SESSIONS._late is None
    monkeypatch.setattr(holder, "TIMEOUT", 60)
    holder.SESSIONS.call(uri, lambda _: made.append("next"))
    assert made == ["next"]


def test_where_no_thread_starts(hsm: SoftHSM, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process at its limit of threads cannot sign; it is told so as of any outage, and signs later."""
    with monkeypatch.context() as patch:
        patch.setattr(
            threading.Thread,
            "start",
            mock.Mock(side_effect=RuntimeError("can't start new thread")),
        )
        assert (
            away("pkcs11:token=prod;object=ES256")
            == "token 'prod': no thread can be started"
        )
    assert open_holder("pkcs11:token=prod;object=ES256").sign(b"x", "ES256")


@pytest.mark.parametrize("busy", [False, True])
def test_child_after_a_fork(
    hsm: SoftHSM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    """A child opens a session of its own, even in the middle of a call of its parent; the parent goes on."""
    store = adopted(tmp_path / "keys", "ES256")
    key, public = ActiveKey(store.folder).signing_key(), store.ring().keys[0].key
    verify(jws.compact(b"x", key), public)
    with held(monkeypatch) if busy else nullcontext():
        child = os.fork()
        if not child:
            try:
                assert not holder.SESSIONS._open
                verify(jws.compact(b"y", key), public)
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    verify(jws.compact(b"z", key), public)


async def test_a_faststream_app_does_not_wait_for_an_hsm(
    hsm: SoftHSM, rabbitmq: RabbitMQ, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While an app waits for the HSM with what it publishes, its handler takes messages of others."""
    store = adopted(tmp_path / "keys", "ES256")
    signer = Signer(
        key=ActiveKey(store.folder), issuer=ISSUER, subject=SUBJECT, audience=AUDIENCE
    )
    with AuditFile(tmp_path / "audit.jsonl") as audit:
        shop = Shop(rabbitmq.url, audit, signer=signer, trusts=[store.ring().keys[0].key])

        @shop.broker.subscriber(shop.name)
        async def take(body: bytes, verified: VerifiedMessage) -> None:
            shop.handled.put_nowait(verified)

        await shop.broker.start()
        channel = await (await shop.broker.connect()).channel()
        other = Producer(channel.default_exchange, shop.forge.signer())
        async with asyncio.timeout(60):
            with held(monkeypatch):
                task = asyncio.create_task(shop.broker.publish(b"hsm", shop.name))
                for _ in range(20):
                    await other.publish(aio_pika.Message(b"local"), shop.name)
                    assert (await shop.handled.get()).body == b"local"
                assert not task.done()
            await task
            assert (await shop.handled.get()).body == b"hsm"
        await shop.end()


def test_an_authority_whose_key_is_in_an_hsm(own: SoftHSM, tmp_path: Path) -> None:
    """An authority signs identities with a key in an HSM; while that is gone it answers 503, and goes on then."""
    own.generate("authority")
    store = Keystore(folder=tmp_path / "hsm-keys", clock=FakeClock(NOW))
    store.adopt("pkcs11:token=prod;object=authority", publish_delay=0)
    store.change(ring.rotate)
    world = World(tmp_path, keys=ActiveKey(store.folder))
    wit = world.ask().body["wit"]
    jws.verify(jws.take_apart(wit.encode(), typ="wit+jwt"), store.ring().keys[0].key)
    shutil.move(own.tokens, tmp_path / "elsewhere")
    found = world.ask()
    assert (found.status, found.body) == (503, {"error": "temporarily_unavailable"})
    shutil.move(tmp_path / "elsewhere", own.tokens)
    assert world.ask().status == 200


# --- the command and the page -----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page(tmp_path: Path) -> None:
    """Who follows the page has a producer that signs with an HSM."""
    hsm = SoftHSM.launch(tmp_path / "hsm")
    folder = tmp_path / "reader"
    folder.mkdir()
    with used(hsm):
        del os.environ["MQAUTH_PKCS11_PIN"]
        reader, printed = (
            Reader(folder, {"/usr/lib/softhsm/libsofthsm2.so": hsm.url}),
            list[str](),
        )
        for block in blocks(PAGE):
            if block.mark == "softhsm":
                printed.append(reader.run(block))
            elif block.language == "toml":
                reader.write(block)
    assert any("accepted" in text for text in printed), printed
    assert (len(printed), len(list((folder / "keys").glob("*.pem")))) == (6, 0)
