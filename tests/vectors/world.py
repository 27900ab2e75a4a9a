"""The fixed keys, forges and messages that the vectors are made of.

The private keys here are known to everybody: they sign vectors and nothing else.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from mqauth.testing import BatchForge, FakeClock, Forge
from mqauth.testing.forge import AUDIENCE, ISSUER, NEIGHBOUR, SUBJECT, with_token
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import base64url, jwk
from mqauth.wire.json_form import to_form
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key, KeySet, PrivateKey, Revocation
from mqauth.wire.message import Message, Origin

NOW: Final = 1_900_000_000
RABBITMQ: Final = "rabbitmq:shop/orders.created"
KAFKA: Final = "kafka:orders"
STOCK: Final = "kafka:stock"
RSA_P: Final = int(
    "fe3bba8d09c2f619457534db2980ad4811672a67e82c17875440145fd3a39ee95948e245d583c58febba0d8cffb46c4e"
    "7bee47f05b13101bd944b13ed62f6fef7048e34e9a0c62b887fc93d2e4609048c6f796273056ad332a381bb74ead598b"
    "d4746c04e7407e6ab3b666f9a97d669b5a7a20e0908d92c653dde031751ba6b9",
    16,
)
RSA_Q: Final = int(
    "bb6b8f2124f9b948c724167f9fb92173ad9b73876999fb7df995f7958342e325018e245bcddffee99c3e470419696896"
    "b1b00df144b594ffc9219476f6017cfec91a418a91464727c451cd41871cbefbf80703dcd36ef51b68db1c74b37901a8"
    "273d3d5616f01d4618a9e9898e6eff4f08129e7244b8651029990b393dcf33bb",
    16,
)


def seed(name: str, size: int = 32) -> bytes:
    """Return fixed bytes for a name."""
    return hashlib.shake_256(b"mqauth vectors " + name.encode()).digest(size)


def edwards(name: str, **changes: Any) -> Key:
    """Return a fixed Ed25519 key of the honest producer."""
    return replace(
        Key.from_private(
            ed25519.Ed25519PrivateKey.from_private_bytes(seed(name)), subjects=[SUBJECT]
        ),
        **changes,
    )


def curve(algorithm: str, kind: ec.EllipticCurve) -> Key:
    """Return a fixed key on a curve."""
    secret = int.from_bytes(seed(algorithm), "big") >> 8
    return Key.from_private(ec.derive_private_key(secret, kind), subjects=[SUBJECT])


def rsa_key(algorithm: str) -> Key:
    """Return the fixed RSA key for one of its two algorithms; each has a kid of its own."""
    e, phi = 65537, (RSA_P - 1) * (RSA_Q - 1)
    d = pow(e, -1, phi)
    numbers = rsa.RSAPrivateNumbers(
        RSA_P,
        RSA_Q,
        d,
        d % (RSA_P - 1),
        d % (RSA_Q - 1),
        pow(RSA_Q, -1, RSA_P),
        rsa.RSAPublicNumbers(e, RSA_P * RSA_Q),
    )
    found = Key.from_private(
        numbers.private_key(), algorithm=algorithm, subjects=[SUBJECT]
    )
    return replace(found, kid=f"{algorithm}-{found.kid}")


KEYS: Final = {
    "EdDSA": edwards("honest"),
    "ES256": curve("ES256", ec.SECP256R1()),
    "ES384": curve("ES384", ec.SECP384R1()),
    "PS256": rsa_key("PS256"),
    "RS256": rsa_key("RS256"),
}


def pss(data: bytes, private: rsa.RSAPrivateKey, salt: bytes | None = None) -> bytes:
    """Return an RSASSA-PSS signature with a fixed salt (RFC 8017, sections 8.1.1 and 9.1.1)."""
    salt, size = seed("salt") if salt is None else salt, 256
    digest = hashlib.sha256(bytes(8) + hashlib.sha256(data).digest() + salt).digest()
    block = bytes(size - 32 - len(salt) - 2) + b"\x01" + salt
    blocks = (
        hashlib.sha256(digest + count.to_bytes(4, "big")).digest() for count in range(7)
    )
    mask = b"".join(blocks)[: len(block)]
    masked = bytearray(left ^ right for left, right in zip(block, mask, strict=True))
    masked[0] &= 0x7F
    numbers = private.private_numbers()
    encoded = int.from_bytes(bytes(masked) + digest + b"\xbc", "big")
    return pow(encoded, numbers.d, numbers.public_numbers.n).to_bytes(size, "big")


def signature(data: bytes, key: Key) -> bytes:
    """Return a signature that is the same each time."""
    private: PrivateKey | None = key.private
    if isinstance(private, ec.EllipticCurvePrivateKey):
        kind = hashes.SHA256() if key.algorithm == "ES256" else hashes.SHA384()
        r, s = decode_dss_signature(
            private.sign(data, ec.ECDSA(kind, deterministic_signing=True))
        )
        size = private.key_size // 8
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")
    if isinstance(private, rsa.RSAPrivateKey) and key.algorithm == "PS256":
        return pss(data, private)
    return LocalSigningKey(key).sign(data)


class FixedForge(Forge):
    """The forge with fixed keys and ids."""

    def __init__(self) -> None:
        super().__init__(FakeClock(NOW))
        self.key = KEYS["EdDSA"]
        self.neighbour = edwards("neighbour", subjects=frozenset([NEIGHBOUR]))
        self.stranger = edwards("stranger")
        self.retired = edwards("retired", expires=NOW - 3600)
        self.revoked = edwards("revoked", revocation=Revocation(reason="stolen"))
        self.count = 0

    @property
    def keys(self) -> KeySet:
        """Every key but the stranger's."""
        return KeySet([*KEYS.values(), self.neighbour, self.retired, self.revoked])

    def claims(self, message: Message, *, cover: Any = None) -> dict[str, Any]:
        """Return honest claims with the next id."""
        self.count += 1
        jti = base64url.encode(seed(f"jti {self.count}", 16)).decode()
        return super().claims(message, cover=cover) | {"jti": jti}

    def signed(
        self, message: Message, header: bytes, payload: bytes, key: Key
    ) -> Message:
        """Return the message with a token of exactly these bytes."""
        data = base64url.encode(header) + b"." + base64url.encode(payload)
        return with_token(
            message, (data + b"." + base64url.encode(signature(data, key))).decode()
        )


class FixedBatchForge(FixedForge, BatchForge):
    """The forge that seals each message in a batch, with fixed keys and ids."""


FORGE: Final = FixedForge()
BATCH_FORGE: Final = FixedBatchForge()
EVERY_TYPE: Final[tuple[tuple[str, Any], ...]] = (
    ("null", None), ("true", True), ("false", False), ("zero", 0), ("negative", -1), ("int64", 2**63 - 1),
    ("least", -(2**63)), ("float", 0.5), ("minus zero", -0.0), ("nan", float("nan")),
    ("infinity", float("inf")), ("text", "é\U0001f600"), ("empty text", ""), ("bytes", b"\x00\xff"),
    ("no bytes", b""),
    ("time", datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)), ("decimal", Decimal("12.50")),
    ("list", (1, ("a", b"b"), None)),
    ("empty list", ()), ("table", {"b": 1, "a": {"é": (True,)}}), ("empty table", {}),
)  # fmt: skip


def rabbit(**changes: Any) -> Message:
    """Return an honest message on RabbitMQ."""
    return replace(honest_message(RABBITMQ), **changes)


def kafka(**changes: Any) -> Message:
    """Return an honest message on Kafka."""
    return replace(honest_message(KAFKA), **changes)


def added(message: Message, name: str, value: Any) -> Message:
    """Return a message with one more header."""
    return replace(message, headers=(*message.headers, (name, value)))


def at(message: Message, offset: int) -> Message:
    """Return a record at an offset."""
    return replace(message, origin=Origin(topic="orders", partition=0, offset=offset))


Case = tuple[str, Message, str, str | None]
Deliveries = list[tuple[Message, str, str | None]]


def judged(cases: list[Case], deliveries: dict[str, Deliveries]) -> dict[str, Any]:
    """Return messages with their verdicts, and the consumer that gives them."""
    return {
        "received": NOW,
        "consumer": {
            "issuer": ISSUER, "audience": AUDIENCE, "leeway": 5, "max_lifetime": 3600,
            "allow": {SUBJECT: [KAFKA, RABBITMQ], NEIGHBOUR: [STOCK]}, "jwks": jwk.dump_key_set(FORGE.keys),
        },
        "vectors": [
            {"name": name, "message": to_form(message), "verdict": verdict, "reason": reason}
            for name, message, verdict, reason in cases
        ],
        "sequences": [
            {"name": name, "deliveries": [
                {"message": to_form(message), "verdict": verdict, "reason": reason}
                for message, verdict, reason in steps]}
            for name, steps in deliveries.items()
        ],
    }  # fmt: skip
