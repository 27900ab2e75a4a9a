"""What people have in place of mqauth: nothing, a PyJWT wrapper written by hand, joserfc, Celery's ``auth``.

Each wrapper is as a competent user writes it, not as an opponent would: keys are prepared, nothing is done twice.
What they check is less than what mqauth checks, and stands in each docstring.
"""

from __future__ import annotations

import base64
import hashlib
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any, Final, Protocol

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from mqauth.bench.workload import LIFETIME
from mqauth.errors import ConfigurationError
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.wire.keys import Key

HEADER: Final = "authorization"
_LEEWAY: Final = 5
Opener = Callable[[bytes, str | None], bytes]
"""Takes body and token as delivered, returns the body it vouches for, or raises."""


class Wrapper(Protocol):
    """A way to authenticate messages: seals on one side, opens on the other, ``headed`` by a token."""

    name: str
    headed: bool

    def seal(self, destination: str, body: bytes, /) -> tuple[bytes, str | None]:
        """Return the body to send, and the token for its header."""
        ...

    def opener(self, destination: str, /) -> Opener:
        """Return what opens messages, with a fresh memory of what it saw."""
        ...


class WrongMessageError(Exception):
    """A wrapper refuses a message."""


class Bare:
    """Nothing: the client as it is."""

    name = "bare"
    headed = False

    def seal(self, _destination: str, body: bytes, /) -> tuple[bytes, str | None]:
        """Return the body."""
        return body, None

    def opener(self, _destination: str, /) -> Opener:
        """Return what returns the body."""
        return lambda body, _token: body


class Carried(Bare):
    """The bytes of a token in a header, and nothing made or checked: what they cost whoever carries them.

    Args:
        token: one of the size that is to be carried.
    """

    name = "carried"
    headed = True

    def __init__(self, token: str) -> None:
        self._token = token

    def seal(self, _destination: str, body: bytes, /) -> tuple[bytes, str | None]:
        """Return the body and the token."""
        return body, self._token


class Handwritten:
    """PyJWT around each message: EdDSA, audience, issuer, times, the body's hash, the destination, ids seen.

    Headers, record key and properties are not bound; a redelivery is taken for a replay.
    """

    name = "handwritten"
    headed = True

    def __init__(self, key: Key | None = None) -> None:
        self._key = key or Key.generate()
        self._private: Any = self._key.private
        self._public: Any = self._key.public

    def seal(self, destination: str, body: bytes, /) -> tuple[bytes, str | None]:
        """Return the body and a token for it."""
        return body, jwt.encode(claims(destination, body), self._private, "EdDSA", {"kid": self._key.kid})

    def opener(self, destination: str, /) -> Opener:
        """Return what decodes and checks a token."""
        seen: set[str] = set()
        required: Any = {"require": ["exp", "iat", "iss", "aud", "jti"]}

        def open_(body: bytes, token: str | None) -> bytes:
            found = jwt.decode(
                token or "", self._public, ["EdDSA"], required, audience=AUDIENCE, issuer=ISSUER,
                leeway=_LEEWAY,
            )  # fmt: skip
            return checked(found, destination, body, seen)

        return open_


class Joserfc:
    """joserfc in place of PyJWT, and everything else as in ``Handwritten``."""

    name = "joserfc"
    headed = True

    def __init__(self, key: Key | None = None) -> None:
        self._jwt: Any = import_module("joserfc.jwt")
        okp: Any = import_module("joserfc.jwk").OKPKey
        key = key or Key.generate()
        self._kid = key.kid
        self._private = okp.import_key(key.to_pem())
        self._public = okp.import_key(self._private.as_dict(private=False))

    def seal(self, destination: str, body: bytes, /) -> tuple[bytes, str | None]:
        """Return the body and a token for it."""
        header = {"alg": "Ed25519", "kid": self._kid}
        return body, self._jwt.encode(header, claims(destination, body), self._private, ["Ed25519"])

    def opener(self, destination: str, /) -> Opener:
        """Return what decodes and checks a token."""
        seen: set[str] = set()
        registry = self._jwt.JWTClaimsRegistry(
            leeway=_LEEWAY, iss={"essential": True, "value": ISSUER}, aud={"essential": True, "value": AUDIENCE},
            exp={"essential": True}, iat={"essential": True}, jti={"essential": True},
        )  # fmt: skip

        def open_(body: bytes, token: str | None) -> bytes:
            found = self._jwt.decode(token or "", self._public, ["Ed25519"])
            registry.validate(found.claims)
            return checked(found.claims, destination, body, seen)

        return open_


class Celery:
    """The serializer behind Celery's ``auth``: RSA-PSS over the body, a certificate in the consumer's store.

    The signature holds anywhere and for ever: no destination, no headers, no time, no replay.
    """

    name = "celery"
    headed = False

    def __init__(self) -> None:
        serializer: Any = import_module("celery.security.serialization").SecureSerializer
        certificates: Any = import_module("celery.security.certificate")
        private: Any = import_module("celery.security.key").PrivateKey
        pem, certificate = _certificate()
        found = certificates.Certificate(certificate)
        store = certificates.CertStore()
        store.add_cert(found)
        self._serializer = serializer(key=private(pem), cert=found, cert_store=store)

    def seal(self, _destination: str, body: bytes, /) -> tuple[bytes, str | None]:
        """Return the body in its envelope, as text."""
        sealed: str | bytes = self._serializer.serialize(body.decode("ascii"))
        return sealed if isinstance(sealed, bytes) else sealed.encode("ascii"), None

    def opener(self, _destination: str, /) -> Opener:
        """Return what verifies an envelope and takes the body out."""
        return lambda body, _token: str(self._serializer.deserialize(body)).encode("ascii")


def claims(destination: str, body: bytes) -> dict[str, Any]:
    """Return the claims a hand-written wrapper makes."""
    now = int(time.time())
    return {
        "iss": ISSUER, "sub": SUBJECT, "aud": AUDIENCE, "iat": now, "exp": now + LIFETIME,
        "jti": uuid.uuid4().hex, "dst": destination, "bod": _digest(body),
    }  # fmt: skip


def checked(found: Mapping[str, Any], destination: str, body: bytes, seen: set[str]) -> bytes:
    """Return the body, once the claims are found to be about it, and new.

    Raises:
        WrongMessageError: they are not.
    """
    if found.get("dst") != destination or found.get("bod") != _digest(body):
        raise WrongMessageError("signed for another message")
    if found["jti"] in seen:
        raise WrongMessageError("seen before")
    seen.add(found["jti"])
    return body


def rivals() -> tuple[list[Wrapper], dict[str, str]]:
    """Return the wrappers that can be measured here, and why others cannot."""
    found: list[Wrapper] = [Handwritten()]
    missing: dict[str, str] = {}
    for kind in (Joserfc, Celery):
        try:
            found.append(kind())
        except ImportError:
            missing[kind.name] = "not installed: pip install mqauth[bench]"
    return found, missing


def missing_client(extra: str) -> ConfigurationError:
    """Return the error of a client library that is not there."""
    return ConfigurationError(f"--{extra}: install mqauth[{extra}]")


def _digest(body: bytes) -> str:
    """Return the hash of a body."""
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode("ascii")


def _certificate() -> tuple[str, str]:
    """Return an RSA key and a certificate of it, as PEM."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return pem.decode("ascii"), made.public_bytes(serialization.Encoding.PEM).decode("ascii")
