"""Celery's ``auth`` serializer against the attack classes. Its envelope is the body; all else is outside of it."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

from celery.exceptions import SecurityError
from celery.security.certificate import Certificate, CertStore
from celery.security.key import PrivateKey
from celery.security.serialization import DEFAULT_SEPARATOR, SecureSerializer
from celery.utils.serialization import b64decode, b64encode
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from kombu.exceptions import DecodeError
from kombu.serialization import loads, registry
from kombu.utils.encoding import ensure_bytes

from mail import FORGED, Mail, Trial, outcome  # isort: skip

NAME = "Celery `auth`"
PACKAGE = "celery"


def party(name: str, days: int = 1) -> tuple[Any, Any]:
    """Return a private key and its certificate; negative days make one that has expired."""
    key, now = rsa.generate_private_key(65537, 2048), datetime.datetime.now(datetime.UTC)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    start, end = sorted(
        (now - datetime.timedelta(hours=1), now + datetime.timedelta(days=days))
    )
    certificate = (
        x509.CertificateBuilder().subject_name(subject).issuer_name(subject).public_key(key.public_key())
        .serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = serialization.Encoding.PEM
    raw = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return PrivateKey(raw), Certificate(certificate.public_bytes(pem).decode())


HONEST, NEIGHBOUR, STRANGER, RETIRED = (
    party("orders"),
    party("stock"),
    party("evil"),
    party("old", -1),
)
STORE = CertStore()
for _, known in (HONEST, NEIGHBOUR, RETIRED):
    STORE.add_cert(known)


registry.register(
    "auth",
    None,
    SecureSerializer(None, None, STORE).deserialize,
    "application/data",
    "utf-8",
)


def seal(mail: Mail, who: tuple[Any, Any] = HONEST) -> Mail:
    """Return the mail as Celery sends it."""
    made = SecureSerializer(who[0], who[1], STORE).serialize({"amount": 10})
    return replace(mail, body=ensure_bytes(made))


def receive(mail: Mail) -> Any:
    """Return what a worker is given."""
    return loads(mail.body, "application/data", "utf-8", accept=["application/data"])


def repacked(mail: Mail, **parts: bytes) -> Mail:
    """Return the mail with other fields in its envelope."""
    names = ("signer", "signature", "content_type", "content_encoding", "body")
    fields = (
        dict(zip(names, b64decode(mail.body).split(DEFAULT_SEPARATOR, 4), strict=True))
        | parts
    )
    return replace(
        mail,
        body=ensure_bytes(
            b64encode(DEFAULT_SEPARATOR.join(map(ensure_bytes, fields.values())))
        ),
    )


def twice(mail: Mail) -> None:
    """Receive the mail two times."""
    receive(mail)
    receive(mail)


def trials() -> dict[int, Trial]:
    """Return a trial for each class that can be mounted, by the number of the class."""
    honest = seal(Mail())
    forged = seal(Mail(), (STRANGER[0], HONEST[1]))
    return {
        0: lambda: receive(honest),
        FORGED: lambda: receive(forged),
        9: lambda: receive(repacked(honest, signer=b64encode(b"../../etc/passwd"))),
        12: lambda: receive(seal(Mail().but(producer="orders"), NEIGHBOUR)),
        14: lambda: receive(seal(Mail(), RETIRED)),
        22: lambda: receive(repacked(forged, body=b"[" * 100_000)),
        25: lambda: twice(
            replace(honest, body=honest.body[:8] + b"\n" + honest.body[8:])
        ),
        # Nothing in an envelope says when it was made, so one of any age is the same bytes.
        32: lambda: receive(honest),
        35: lambda: receive(honest.but(id=None)),
        40: lambda: receive(repacked(honest, body=b'{"amount": 1000000}')),
        42: lambda: receive(
            honest.but(type="refunds.pay", reply_to="evil", task="danger.delete")
        ),
        43: lambda: receive(repacked(honest, content_type=b"text/plain")),
        44: lambda: receive(replace(honest, place="refunds")),
        46: lambda: receive(
            repacked(honest, content_encoding=b"utf-8" + DEFAULT_SEPARATOR)
        ),
        47: lambda: receive(repacked(honest, body=b"")),
        48: lambda: receive(repacked(honest, body=b'{"amount":10}')),
        49: lambda: receive(replace(honest, body=b'{"amount": 10}')),
        50: lambda: receive(
            repacked(
                forged,
                content_type=b"application/x-python-serialize",
                body=b"cos\nabort\n(tR.",
            )
        ),
        51: lambda: twice(honest),
        52: lambda: twice(honest),
        54: lambda: twice(honest),
        61: lambda: receive(seal(Mail(), NEIGHBOUR)),
    }


def run() -> dict[str, str]:
    """Return the outcome of each class."""
    return {
        str(number): outcome(trial, (DecodeError, SecurityError))
        for number, trial in trials().items()
    }
