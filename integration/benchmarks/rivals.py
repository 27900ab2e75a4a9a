"""The rivals of mqauth: what people use in its place on RabbitMQ and Kafka.

They are a PyJWT wrapper written by hand, the same over joserfc, the serializer behind Celery's ``auth``, and
aio-pika with many publishes under way at once. Each wrapper is written as a competent user writes it: keys are
prepared, and nothing is done twice. They check less than mqauth does; each docstring says what is missing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
import tracemalloc
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Final

import jwt
from aio_pika.abc import AbstractIncomingMessage
from celery.security.certificate import Certificate, CertStore
from celery.security.key import PrivateKey
from celery.security.serialization import SecureSerializer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from joserfc import jwk as joserfc_jwk
from joserfc import jwt as joserfc_jwt

from integration.benchmarks.client import kafka, rabbitmq
from integration.benchmarks.client.contenders import Bare, Make, Opener, Wrapper
from integration.benchmarks.client.inprocess import PLACE
from integration.benchmarks.client.workload import LIFETIME, Tally, Workload
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.wire.keys import Key

PACKAGES: Final = ("joserfc", "celery")
_LEEWAY: Final = 5
_SOON: Final = 0.002
"""Seconds after which a coalesced ack is sent, however few deliveries it covers."""


class WrongMessageError(Exception):
    """A wrapper refuses a message."""


class Handwritten:
    """PyJWT around each message: EdDSA, audience, issuer, times, the body's hash, the destination, ids seen.

    It does not bind headers, record key or properties, and it takes a redelivery for a replay.
    """

    name = "handwritten"
    headed = True
    heavy = True

    def __init__(self, key: Key | None = None) -> None:
        self._key = key or Key.generate()
        self._private: Any = self._key.private
        self._public: Any = self._key.public

    def seal(self, destination: str, body: bytes, /) -> tuple[bytes, str | None]:
        """Return the body and a token for it."""
        return body, jwt.encode(
            claims(destination, body), self._private, "EdDSA", {"kid": self._key.kid}
        )

    def opener(self, destination: str, /) -> Opener:
        """Return a function that decodes and checks a token."""
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
    heavy = True

    def __init__(self, key: Key | None = None) -> None:
        key = key or Key.generate()
        self._kid = key.kid
        self._private: Any = joserfc_jwk.OKPKey.import_key(key.to_pem())
        self._public: Any = joserfc_jwk.OKPKey.import_key(
            self._private.as_dict(private=False)
        )

    def seal(self, destination: str, body: bytes, /) -> tuple[bytes, str | None]:
        """Return the body and a token for it."""
        header = {"alg": "Ed25519", "kid": self._kid}
        return body, joserfc_jwt.encode(
            header, claims(destination, body), self._private, ["Ed25519"]
        )

    def opener(self, destination: str, /) -> Opener:
        """Return a function that decodes and checks a token."""
        seen: set[str] = set()
        registry = joserfc_jwt.JWTClaimsRegistry(
            leeway=_LEEWAY, iss={"essential": True, "value": ISSUER}, aud={"essential": True, "value": AUDIENCE},
            exp={"essential": True}, iat={"essential": True}, jti={"essential": True},
        )  # fmt: skip

        def open_(body: bytes, token: str | None) -> bytes:
            found = joserfc_jwt.decode(token or "", self._public, ["Ed25519"])
            registry.validate(found.claims)
            return checked(found.claims, destination, body, seen)

        return open_


class Celery:
    """The serializer behind Celery's ``auth``: RSA-PSS over the body, a certificate in the consumer's store.

    Its signature holds anywhere and for ever: it binds no destination and no headers, and knows no time or replay.
    """

    name = "celery"
    headed = False
    heavy = True

    def __init__(self) -> None:
        pem, certificate = _certificate()
        found = Certificate(certificate)
        store = CertStore()
        store.add_cert(found)
        self._serializer: Any = SecureSerializer(
            key=PrivateKey(pem), cert=found, cert_store=store
        )

    def seal(self, _destination: str, body: bytes, /) -> tuple[bytes, str | None]:
        """Return the body in its envelope, as text."""
        sealed: str | bytes = self._serializer.serialize(body.decode("ascii"))
        return sealed if isinstance(sealed, bytes) else sealed.encode("ascii"), None

    def opener(self, _destination: str, /) -> Opener:
        """Return a function that verifies an envelope and takes the body out."""
        return lambda body, _token: str(self._serializer.deserialize(body)).encode(
            "ascii"
        )


class Pipelined(rabbitmq.Wrapped):
    """aio-pika with many publishes under way at once, and one ack for many deliveries, as mqauth does both."""

    at_once = rabbitmq.AT_ONCE

    def __init__(self, connections: rabbitmq.Connections) -> None:
        super().__init__(connections, Bare())
        self.name = "pipelined"

    async def consuming(self, tally: Tally, until: asyncio.Future[Any]) -> None:
        """Handle each message, and ack half a window at once, or what there is after a moment."""
        unacked: list[AbstractIncomingMessage] = []
        loop = asyncio.get_running_loop()

        async def ack() -> None:
            if unacked:
                last = unacked[-1]
                unacked.clear()
                await last.ack(multiple=True)

        async def on_message(message: AbstractIncomingMessage) -> None:
            with rabbitmq.failing(until):
                tally(message.body)
                if not unacked:
                    loop.call_later(_SOON, lambda: asyncio.ensure_future(ack()))
                unacked.append(message)
                if len(unacked) >= rabbitmq.PREFETCH // 2:
                    await ack()

        await rabbitmq.consumed(self.queue, on_message, until)


def rivals() -> dict[str, list[Make]]:
    """Return what makes the rivals on each broker."""
    wrappers: list[Wrapper] = [Handwritten(), Joserfc(), Celery()]
    return {
        "rabbitmq": [
            Pipelined,
            *(partial(rabbitmq.Wrapped, wrapper=one) for one in wrappers),
        ],
        "kafka": [partial(kafka.Wrapped, wrapper=one) for one in wrappers],
    }


def kept_bytes(count: int) -> float:
    """Return the bytes of memory that one message leaves behind in the hand-written wrapper."""
    wrapper, body = Handwritten(), Workload().body(0)
    open_ = wrapper.opener(PLACE)
    sealed = [wrapper.seal(PLACE, body) for _ in range(count)]
    open_(*wrapper.seal(PLACE, body))
    tracemalloc.start()
    for found in sealed:
        open_(*found)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return round(kept / count, 1)


def claims(destination: str, body: bytes) -> dict[str, Any]:
    """Return the claims that a hand-written wrapper makes."""
    now = int(time.time())
    return {
        "iss": ISSUER, "sub": SUBJECT, "aud": AUDIENCE, "iat": now, "exp": now + LIFETIME,
        "jti": uuid.uuid4().hex, "dst": destination, "bod": _digest(body),
    }  # fmt: skip


def checked(
    found: Mapping[str, Any], destination: str, body: bytes, seen: set[str]
) -> bytes:
    """Return the body, if the claims are about it and were not seen before.

    Raises:
        WrongMessageError: they are not about it, or were seen.
    """
    if found.get("dst") != destination or found.get("bod") != _digest(body):
        raise WrongMessageError("signed for another message")
    if found["jti"] in seen:
        raise WrongMessageError("seen before")
    seen.add(found["jti"])
    return body


def _digest(body: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(body).digest()).decode("ascii")


def _certificate() -> tuple[str, str]:
    """Return an RSA key and a certificate for it, both as PEM."""
    key = rsa.generate_private_key(public_exponent=65_537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bench")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(now).not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return pem.decode("ascii"), made.public_bytes(serialization.Encoding.PEM).decode(
        "ascii"
    )
