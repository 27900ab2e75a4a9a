"""Keys of an HSM, by PKCS#11: one session with each token and one thread, for the whole process.

PKCS#11 is a C library of the HSM's vendor that is loaded into this process. python-pkcs11 initialises it without
locking of its own (``C_Initialize(NULL)``), and with a session for each thread SoftHSM crashed the process. So
every call of every key is made on one thread, over one session, which is logged in once. A session does not
outlive a fork: a child opens its own. After any error the session is dropped, and the next attempt initialises the
library again and opens another. While a library hangs, its caller gets ``Unavailable`` after 2 s and others at
once, and nothing else is asked of it; one that crashes takes the process along. Where that must not be, the key
belongs into a service: OpenBao or Vault (``transit``), or a KMS.

ES256 is ``CKM_ECDSA`` over a digest that is made here, for not every HSM has ``CKM_ECDSA_SHA256``; it returns
``R || S``, as JWS wants it (RFC 7518, section 3.4). Ed25519 is ``CKM_EDDSA`` over the whole input.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar, cast

import pkcs11
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pkcs11 import Attribute, KeyType, Mechanism, ObjectClass

from mqauth.errors import Cause, ConfigurationError, Unavailable, refusing, require
from mqauth.keystore.reference.uri import TIMEOUT, TokenURI
from mqauth.threads import DaemonThread
from mqauth.wire.keys import PublicKey

R = TypeVar("R")
_unavailable: Final = partial(Unavailable, Cause.KEYS_UNAVAILABLE)
OPENING: Final = 10.0
"""Seconds that a library may take to begin."""
_SHOWN: Final = 10
"""Labels that an error names at most."""
_PIN_REFUSED: Final = (
    pkcs11.PinIncorrect,
    pkcs11.PinInvalid,
    pkcs11.PinLenRange,
    pkcs11.PinLocked,
    pkcs11.PinExpired,
    pkcs11.UserPinNotInitialized,
)
_KEY_REFUSED: Final = (
    pkcs11.MechanismInvalid,
    pkcs11.MechanismParamInvalid,
    pkcs11.KeyTypeInconsistent,
    pkcs11.KeySizeRange,
    pkcs11.FunctionNotSupported,
    pkcs11.DataLenRange,
)
_CURVES: Final = {
    (KeyType.EC, bytes.fromhex("06082a8648ce3d030107")): "ES256",
    # its OID of RFC 8410; its name, as PKCS#11 3.0 wants it; the OID of before
    (KeyType.EC_EDWARDS, bytes.fromhex("06032b6570")): "EdDSA",
    (KeyType.EC_EDWARDS, b"\x13\x0cedwards25519"): "EdDSA",
    (KeyType.EC_EDWARDS, bytes.fromhex("06092b06010401da470f01")): "EdDSA",
}
"""The algorithm of a key, by its type and its ``CKA_EC_PARAMS``."""


class Sessions:
    """The sessions of this process, one for each token, on its one thread.

    Attributes:
        generation: how many sessions were opened.
    """

    _late: Future[Any] | None

    def __init__(self) -> None:
        self.generation = 0
        self._open: dict[tuple[str, str, str | None], pkcs11.Session] = {}
        self._stale: set[str] = set()
        self._loaded: set[str] = set()
        self._refused: dict[tuple[str, str, str | None], bytes] = {}
        self.forked()

    def call(self, uri: TokenURI, work: Callable[[pkcs11.Session], R]) -> R:
        """Return what work over the session with a token returns, once the work before it is done.

        Raises:
            Unavailable: the token is out of reach, or its library has not come back.
            ConfigurationError: the token refuses us or what was asked.
        """
        late, first = (
            self._late,
            f"{uri.where}: an earlier call in a PKCS#11 library has not come back",
        )
        require(late is None or late.done(), first, _unavailable)
        # A library begins once; that takes longer than a signature.
        seconds = TIMEOUT if self._open else OPENING
        with (
            self._lock,
            refusing(
                RuntimeError, f"{uri.where}: no thread can be started", _unavailable
            ),
        ):
            asked = self._thread.submit(self._made, uri, work)
        try:
            return cast(R, asked.result(seconds))
        except TimeoutError as error:
            # What has not begun waits for others, whose callers know of it.
            if not asked.cancel():
                self._late = asked
            raise _unavailable(f"{uri.where}: no answer for {seconds:g} s") from error

    def _made(self, uri: TokenURI, work: Callable[[pkcs11.Session], R]) -> R:
        """Do work over the session with a token; on the one thread."""
        try:
            return work(self._session(uri))
        except _PIN_REFUSED as error:
            self._drop()
            raise ConfigurationError(
                f"{uri.where}: refuses the PIN ({_name(error)})"
            ) from error
        except _KEY_REFUSED as error:
            self._drop()
            raise ConfigurationError(
                f"{uri.where}: key {uri.what} cannot sign so ({_name(error)})"
            ) from error
        except pkcs11.PKCS11Error as error:
            self._drop()
            raise _unavailable(f"{uri.where}: {_name(error)}") from error

    def forked(self) -> None:
        """Forget the parent's sessions, its thread, and the call that this may be in."""
        self._lock, self._thread, self._late = (
            threading.Lock(),
            DaemonThread("mqauth-pkcs11"),
            None,
        )
        self._drop()

    def _drop(self) -> None:
        """Forget all sessions; each library is initialised again before its next session."""
        self._open.clear()
        self._stale |= self._loaded

    def _session(self, uri: TokenURI) -> pkcs11.Session:
        """Return the session with a token, opened and logged in where there is none."""
        token = (uri.library(), uri.token, uri.serial)
        if token in self._open:
            return self._open[token]
        # Never twice with a PIN that was refused: the HSM counts them.
        pin = uri.pin()
        digest = hashlib.sha256(pin.encode()).digest()
        require(
            self._refused.get(token) != digest,
            f"{uri.where}: refused this PIN before, and is not asked again before a new PIN or a new start",
        )
        path = token[0]
        try:
            library = pkcs11.lib(path)
        except pkcs11.PKCS11Error as error:
            # Only what could not be loaded has no code of its own; a library may begin later than we do.
            require(
                type(error) is not pkcs11.PKCS11Error or path in self._loaded,
                f"{path}: no PKCS#11 library",
            )
            raise
        self._loaded.add(path)
        if path in self._stale:
            self._stale.discard(path)
            # What the library says of its end does not matter: it begins anew.
            with suppress(pkcs11.PKCS11Error):
                library.finalize()
            library.initialize()
        try:
            self._open[token] = _token(library, uri).open(user_pin=pin)
        except _PIN_REFUSED:
            self._refused[token] = digest
            raise
        self.generation += 1
        return self._open[token]


SESSIONS: Final = Sessions()
os.register_at_fork(after_in_child=SESSIONS.forked)


class TokenKey:
    """The private key in an HSM that a URI names; the ``Holder`` of ``pkcs11:``.

    Args:
        uri: as RFC 7512 has it; ``docs/how-to/keep-keys-in-an-hsm.md`` tells which parts.

    Raises:
        ConfigurationError: it is no such URI, or there is no library.
    """

    def __init__(self, uri: str) -> None:
        self._uri = TokenURI.parse(uri)
        self._uri.library()
        self._found: tuple[int, Any, str] | None = None

    @property
    def generation(self) -> int:
        """A number that changes with each session."""
        return SESSIONS.generation

    def public(self) -> PublicKey:
        """Return the public half, from the public key object of the same label and id.

        Raises:
            ConfigurationError: there is none, or it is none of a P-256 or an Ed25519 key.
            Unavailable: the token is out of reach.
        """
        point, algorithm = SESSIONS.call(self._uri, self._point)
        size, load = _POINTS[algorithm]
        with refusing(
            ValueError,
            f"{self._uri.where}: public key {self._uri.what} is no point of its curve",
        ):
            return load(
                point[2:]
                if len(point) == size + 2 and point[:2] == bytes((4, size))
                else point
            )

    def sign(self, data: bytes, algorithm: str, /) -> bytes:
        """Return the raw JWS signature over ``data``.

        Raises:
            ConfigurationError: the token refuses us, or has another key under this name.
            Unavailable: the token is out of reach.
        """

        def signature(session: pkcs11.Session) -> bytes:
            key, found = self._private(session)
            require(
                found == algorithm,
                f"{self._uri.where}: private key {self._uri.what} signs {found}, and the keystore has {algorithm}",
            )
            if algorithm == "ES256":
                return bytes(
                    key.sign(hashlib.sha256(data).digest(), mechanism=Mechanism.ECDSA)
                )
            return bytes(key.sign(data, mechanism=Mechanism.EDDSA))

        return SESSIONS.call(self._uri, signature)

    def _point(self, session: pkcs11.Session) -> tuple[bytes, str]:
        """Return the ``CKA_EC_POINT`` of the public key object, and the algorithm of the private one."""
        _, algorithm = self._private(session)
        return bytes(
            self._one(session, ObjectClass.PUBLIC_KEY, "public")[Attribute.EC_POINT]
        ), algorithm

    def _private(self, session: pkcs11.Session) -> tuple[Any, str]:
        """Return the private key object, looked up once in each session, and its algorithm."""
        if self._found is None or self._found[0] != SESSIONS.generation:
            key = self._one(session, ObjectClass.PRIVATE_KEY, "private")
            # The algorithm of a private key that may sign.
            here, kind = f"{self._uri.where}: private key {self._uri.what}", key.key_type
            curve = (
                bytes(key[Attribute.EC_PARAMS])
                if kind in (KeyType.EC, KeyType.EC_EDWARDS)
                else b""
            )
            named = getattr(kind, "name", str(kind)) + (
                f" of curve {curve.hex()}" if curve else ""
            )
            algorithm = require(
                _CURVES.get((kind, curve)),
                f"{here} is {named}; wanted is a P-256 or an Ed25519 key",
            )
            require(key[Attribute.SIGN], f"{here} may not sign (CKA_SIGN is false)")
            self._found = (SESSIONS.generation, key, algorithm)
        return self._found[1:]

    def _one(self, session: Any, kind: ObjectClass, name: str) -> Any:
        """Return the one object of a class that the URI names."""
        wanted = {
            Attribute.CLASS: kind,
            Attribute.LABEL: self._uri.label,
            Attribute.ID: self._uri.id,
        }
        # A search holds the session until it was read to its end.
        objects = list(
            session.get_objects(
                {name: value for name, value in wanted.items() if value is not None}
            )
        )
        if not objects:
            there = [
                repr(item.label) for item in session.get_objects({Attribute.CLASS: kind})
            ]
            has = (
                f"{', '.join(there[:_SHOWN])}{' and more' if there[_SHOWN:] else ''}"
                if there
                else "none"
            )
            raise ConfigurationError(
                f"{self._uri.where}: has no {name} key {self._uri.what}, but {has}"
            )
        ids = ", ".join(item.id.hex() for item in objects[:_SHOWN])
        require(
            len(objects) == 1,
            f"{self._uri.where}: has {len(objects)} {name} keys {self._uri.what}: name one by its id ({ids})",
        )
        return objects[0]


def _token(library: Any, uri: TokenURI) -> pkcs11.Token:
    """Return the one token that a URI names."""
    there = [token for token in library.get_tokens() if token.label]
    serial = None if uri.serial is None else uri.serial.encode()
    tokens = [
        each
        for each in there
        if each.label == uri.token and serial in (None, each.serial)
    ]
    has = ", ".join(
        f"{each.label!r} (serial {each.serial.decode('ascii', 'replace')})"
        for each in there[:_SHOWN]
    )
    require(tokens, f"{uri.where}: not there; there is {has or 'none'}", _unavailable)
    require(
        len(tokens) == 1,
        f"{uri.where}: stands for {len(tokens)}: name one by its serial; there is {has}",
    )
    return cast(pkcs11.Token, tokens[0])


_POINTS: Final[dict[str, tuple[int, Callable[[bytes], PublicKey]]]] = {
    "ES256": (65, partial(ec.EllipticCurvePublicKey.from_encoded_point, ec.SECP256R1())),
    "EdDSA": (32, ed25519.Ed25519PublicKey.from_public_bytes),
}
"""Bytes of a point, and what reads it, by algorithm."""


def _name(error: pkcs11.PKCS11Error) -> str:
    """Return what a library says went wrong: the name of its code, and words where there are some."""
    return ": ".join(filter(None, (type(error).__name__, str(error))))
