"""Keys that a service holds, for tests: each with a keystore that names it, and those of a real OpenBao."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from integration.services.openbao import OpenBao
from mqauth import Signer, Unavailable
from mqauth.keystore import ActiveKey, Keystore
from mqauth.keystore.disk import ring
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.testing.signing_contract import SigningContract, accepted
from mqauth.wire.keys import Key
from mqauth.wire.message import Message

MESSAGE: Final = Message(destination="kafka:orders", body=b"hello", key=b"42")
MOUNT: Final = "team/signing"
POLICY: Final = """\
path "{mount}/keys/{name}" {{ capabilities = ["read"] }}
path "{mount}/sign/{name}" {{ capabilities = ["update"] }}
"""
TYPES: Final = {"EdDSA": "ed25519", "ES256": "ecdsa-p256", "ES384": "ecdsa-p384"}


@contextmanager
def engine(openbao: OpenBao) -> Iterator[None]:
    """Mount a transit engine while the block runs."""
    openbao.tell("POST", f"sys/mounts/{MOUNT}", {"type": "transit"})
    yield
    openbao.tell("DELETE", f"sys/mounts/{MOUNT}")


def private(path: Path, text: str) -> Path:
    """Write a file that its owner alone can read."""
    path.touch(0o600)
    path.write_text(text)
    return path


class Entered:
    """A key in a keystore; who inherits has ``store``, and the reference of the key in ``uri``."""

    store: Keystore

    def uri(self) -> str:
        """Return the reference of the key."""
        raise NotImplementedError

    def adopt(self, uri: str = "", *, pinned: bool = False) -> Key:
        """Adopt the key, for a producer or pinned by consumers, have it sign, and return its public half."""
        subjects = None if pinned else [SUBJECT]
        entry = self.store.adopt(uri or self.uri(), subjects=subjects, publish_delay=0)
        self.store.change(ring.rotate)
        return entry.key

    def signer(self) -> Signer:
        """Return a producer's signer that follows the keystore."""
        return Signer(
            key=ActiveKey(self.store.folder),
            issuer=ISSUER,
            subject=SUBJECT,
            audience=AUDIENCE,
        )


@dataclass
class Held(Entered):
    """A key in an OpenBao, with a token that may sign with it.

    Args:
        openbao: the server.
        folder: for the token, and a keystore.
        algorithm: of the key.
    """

    openbao: OpenBao
    folder: Path
    algorithm: str = "EdDSA"

    def __post_init__(self) -> None:
        self.name = f"key-{secrets.token_hex(6)}"
        self.openbao.tell(
            "POST", f"{MOUNT}/keys/{self.name}", {"type": TYPES[self.algorithm]}
        )
        self.policy = POLICY.format(mount=MOUNT, name=self.name)
        self.token = private(self.folder / "token", self.openbao.token(self.policy))
        self.store = Keystore(folder=self.folder / "keys")

    def uri(self, version: int = 1) -> str:
        """Return the reference of a version, by TLS."""
        place = f"transit:{self.openbao.secure}/{MOUNT}/{self.name}?key_version={version}"
        return f"{place}&token_file={self.token}&ca={self.openbao.ca}"


class OfAKeystore(SigningContract):
    """The contract, on a key that a keystore names; who inherits has a fixture ``adopted``, or ``store``."""

    @pytest.fixture
    def store(self, adopted: Entered) -> Keystore:
        """The keystore."""
        return adopted.store

    @pytest.fixture
    def signing_key(self, store: Keystore) -> Any:
        """The key of the keystore."""
        return ActiveKey(store.folder).signing_key()

    @pytest.fixture
    def public(self, store: Keystore) -> Key:
        """Its public half, as consumers get it."""
        (key,) = store.public_keys().keys
        return replace(key, subjects=None)


class Fault(NamedTuple):
    """What befalls a service, what mends it, and what a producer is told."""

    break_it: Callable[[Any], object]
    mend: Callable[[Any], object]
    says: str


def signs_nothing_through(fault: Fault, held: Entered) -> str:
    """See that nothing is signed through a fault, and the signer goes on once mended; return what was told."""
    public, signer = held.adopt(), held.signer()
    signer.sign(MESSAGE)
    fault.break_it(held)
    with pytest.raises(Unavailable, match=fault.says) as caught:
        signer.sign(MESSAGE)
    assert caught.value.cause == "keys_unavailable"
    fault.mend(held)
    assert accepted(signer.sign(MESSAGE), public) == public.kid
    return f"{caught.value!r}{caught.value.__cause__!r}"
