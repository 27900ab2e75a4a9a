"""The signing contract: a local key of each algorithm, a folder's active key, and a key in another process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mqauth.keystore import ActiveKey, Keystore
from mqauth.keystore.disk import ring
from mqauth.keystore.socket.server import SigningServer
from mqauth.keystore.socket.signer import SocketSigner
from mqauth.testing.clock import FakeClock
from mqauth.testing.forge import SUBJECT
from mqauth.testing.signing_contract import RotationContract, SigningContract
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import ALGORITHMS, Key, SigningKey

SERVER = """
import sys
from mqauth.keystore import ActiveKey
from mqauth.keystore.socket.server import SigningServer
with SigningServer(sys.argv[1], ActiveKey(sys.argv[2])):
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module", params=ALGORITHMS)
def local(request: pytest.FixtureRequest) -> Key:
    return Key.generate(request.param)


@pytest.fixture(scope="module", params=["EdDSA", "ES256"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = Keystore(folder=tmp_path_factory.mktemp("signing") / "keys")
    store.create(algorithm=request.param, subjects=[SUBJECT])
    return store.folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[Path]:
    path = folder.parent / "signer.sock"
    command = [sys.executable, "-c", SERVER, str(path), str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield path
    assert not path.exists()


class TestLocalKey(SigningContract):
    """A private key in memory, of each algorithm."""

    @pytest.fixture
    def signing_key(self, local: Key) -> SigningKey:
        return LocalSigningKey(local)

    @pytest.fixture
    def public(self, local: Key) -> Key:
        return local.public_only


class TestKeyInAnotherProcess(SigningContract):
    """A key that another process holds, over its Unix socket."""

    @pytest.fixture
    def signing_key(self, address: Path) -> Iterator[SigningKey]:
        signer = SocketSigner(address, timeout=30)
        yield signer.signing_key()
        signer.close()

    @pytest.fixture
    def public(self, folder: Path) -> Key:
        active = Keystore(folder=folder).ring().active
        assert active is not None
        return active.key


class Rotating:
    """A folder on a fake clock with a key that follows it."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.store = Keystore(folder=folder, clock=self.clock)
        self.store.create(publish_delay=10, subjects=[SUBJECT])
        self.active = ActiveKey(folder, clock=self.clock)

    def rotate(self) -> Key:
        made = self.store.create()
        self.clock.advance(10)
        self.store.change(ring.rotate)
        self.clock.advance(10)
        return made.key


@pytest.fixture
def rotating(tmp_path: Path) -> Rotating:
    return Rotating(tmp_path / "keys")


class TestActiveKeyRotates(RotationContract):
    """The active key of a folder."""

    @pytest.fixture
    def source(self, rotating: Rotating) -> ActiveKey:
        return rotating.active

    @pytest.fixture
    def rotate(self, rotating: Rotating) -> Callable[[], Key]:
        return rotating.rotate


class TestSocketRotates(RotationContract):
    """A signing process whose folder is rotated."""

    @pytest.fixture
    def source(self, rotating: Rotating, tmp_path: Path) -> Iterator[SocketSigner]:
        with SigningServer(tmp_path / "s", rotating.active):
            signer = SocketSigner(tmp_path / "s", timeout=30)
            yield signer
            signer.close()

    @pytest.fixture
    def rotate(self, rotating: Rotating) -> Callable[[], Key]:
        return rotating.rotate
