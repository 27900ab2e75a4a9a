"""The signing contract: a local key of each algorithm, and a folder's active key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from mqauth.keystore import ActiveKey, Keystore
from mqauth.keystore.disk import ring
from mqauth.testing.clock import FakeClock
from mqauth.testing.forge import SUBJECT
from mqauth.testing.signing_contract import RotationContract, SigningContract
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import ALGORITHMS, Key, SigningKey


@pytest.fixture(scope="module", params=ALGORITHMS)
def local(request: pytest.FixtureRequest) -> Key:
    return Key.generate(request.param)


class TestLocalKey(SigningContract):
    """A private key in memory, of each algorithm."""

    @pytest.fixture
    def signing_key(self, local: Key) -> SigningKey:
        return LocalSigningKey(local)

    @pytest.fixture
    def public(self, local: Key) -> Key:
        return local.public_only


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
