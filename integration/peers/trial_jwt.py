"""The usual wrapper around PyJWT against the attack classes."""

from __future__ import annotations

import base64
import hmac
import json
import time
import zlib
from dataclasses import replace
from typing import Any

import jwt
import usual_wrapper
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from mail import FORGED, OTHER, Mail, Trial, outcome  # isort: skip

NAME = "PyJWT"
PACKAGE = "pyjwt"
ISSUER, AUDIENCE = "https://auth.example", "billing"
KEYS = {name: Ed25519PrivateKey.generate() for name in ("orders", "stock")}
STRANGER = Ed25519PrivateKey.generate()
PUBLIC = {name: key.public_key() for name, key in KEYS.items()}


def encode(raw: bytes) -> bytes:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def claims(**changes: Any) -> dict[str, Any]:
    """Return honest claims with changes; ``None`` leaves one out."""
    now = int(time.time())
    usual = {
        "iss": ISSUER,
        "sub": "orders",
        "aud": AUDIENCE,
        "iat": now,
        "exp": now + 300,
    } | changes
    return {name: value for name, value in usual.items() if value is not None}


def token(
    payload: Any = None, key: Any = None, signature: bytes | None = None, **header: Any
) -> str:
    """Return a token of exactly this header and payload."""
    made = {"alg": "EdDSA", "typ": "JWT", "kid": "orders"} | header
    body = (
        payload
        if isinstance(payload, bytes)
        else json.dumps(payload or claims()).encode()
    )
    data = encode(json.dumps(made).encode()) + b"." + encode(body)
    signed = (key or KEYS["orders"]).sign(data) if signature is None else signature
    return (data + b"." + encode(signed)).decode()


def receive(text: str | None, mail: Mail | None = None) -> Any:
    """Return the claims that a handler is given."""
    headers = [] if text is None else [("Authorization", text.encode())]
    return usual_wrapper.verify([*headers, ("type", (mail or Mail()).headers["type"].encode())], PUBLIC, ISSUER,
                                AUDIENCE)  # fmt: skip


def both(first: str, second: str) -> Any:
    """Receive a message with two tokens."""
    pairs = [("Authorization", first.encode()), ("Authorization", second.encode())]
    return usual_wrapper.verify(pairs, PUBLIC, ISSUER, AUDIENCE)


def public_key_as_secret() -> Any:
    """Sign by HMAC with the public key as the secret."""
    pem = PUBLIC["orders"].public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    data = token(alg="HS256").rpartition(".")[0]
    return receive(f"{data}.{encode(hmac.digest(pem, data.encode(), 'sha256')).decode()}")


def twice(text: str) -> None:
    """Receive one message two times."""
    receive(text)
    receive(text)


def trials() -> dict[int, Trial]:
    """Return a trial for each class that can be mounted, by the number of the class."""
    good, mail = (
        usual_wrapper.sign(KEYS["orders"], "orders", ISSUER, "orders", AUDIENCE),
        Mail(),
    )
    now = int(time.time())
    own = {
        "kty": "OKP",
        "crv": "Ed25519",
        "x": encode(STRANGER.public_key().public_bytes_raw()).decode(),
    }
    again = json.dumps(claims())[:-1].encode() + b', "sub": "admin"}'
    loose = json.dumps(
        {"protected": good.split(".")[0], "payload": good.split(".")[1], "signatures": []}
    )
    return {
        0: lambda: receive(good),
        FORGED: lambda: receive(token(key=STRANGER)),
        1: lambda: receive(token(signature=b"", alg="none")),
        2: public_key_as_secret,
        3: lambda: receive(token(alg="RS256")),
        4: lambda: receive(token(alg="ES256")),
        5: lambda: receive(token(alg="RS256")),
        6: lambda: receive(token(key=STRANGER, jwk=own)),
        7: lambda: receive(token(key=STRANGER, jku="https://evil.example/jwks.json")),
        8: lambda: receive(token(key=STRANGER), mail.but(keys="https://evil.example")),
        9: lambda: receive(token(kid="../../etc/passwd")),
        11: lambda: receive(token(typ="at+jwt")),
        12: lambda: receive(token(key=KEYS["stock"], kid="stock")),
        17: lambda: receive(token(crit=["x"], x=1)),
        18: lambda: receive(good.replace(".", "..", 1) + ".AA"),
        19: lambda: receive(loose),
        20: lambda: receive(loose),
        21: lambda: receive(token(again)),
        22: lambda: receive(token(claims(note="x" * 100_000), STRANGER)),
        23: lambda: receive(token(b64=False)),
        24: lambda: receive(
            token(
                zlib.compress(b" " * 1_000_000 + json.dumps(claims()).encode()), zip="DEF"
            )
        ),
        25: lambda: receive(good + "=="),
        26: lambda: both(token(key=STRANGER), good),
        27: lambda: receive("Bearer " + good),
        30: lambda: receive(token(claims(iss=None))),
        31: lambda: receive(token(claims(aud=[AUDIENCE, "shipping", "stock"]))),
        32: lambda: receive(token(claims(exp=None))),
        33: lambda: receive(token(claims(iat=now + 3600, exp=now + 7200))),
        34: lambda: receive(token(claims(iat=now + 3600, exp=now + 7200))),
        35: lambda: receive(token(claims(jti=None))),
        36: lambda: receive(token(typ="id+jwt")),
        37: lambda: receive(token(claims(sub="a' OR 1=1 --\n"))),
        38: lambda: receive(token(claims(sub="orders"), key=KEYS["stock"], kid="stock")),
        40: lambda: receive(good, replace(mail, body=OTHER)),
        41: lambda: receive(good, replace(mail, body=OTHER)),
        42: lambda: receive(good, mail.but(type="refunds.pay")),
        43: lambda: receive(good, mail.but(content_type="application/x-yaml")),
        44: lambda: receive(good, replace(mail, place="refunds")),
        45: lambda: receive(good, replace(mail, key="8")),
        47: lambda: receive(good, replace(mail, body=b"")),
        48: lambda: receive(good, replace(mail, body=b'{"amount":10}')),
        49: lambda: receive(None),
        51: lambda: twice(good),
        52: lambda: twice(good),
        54: lambda: twice(good),
        60: lambda: both(token(key=STRANGER), good),
        61: lambda: receive(token(claims(sub="stock"), key=KEYS["stock"], kid="stock")),
    }


def run() -> dict[str, str]:
    """Return the outcome of each class."""
    return {
        str(number): outcome(trial, (jwt.InvalidTokenError,))
        for number, trial in trials().items()
    }
