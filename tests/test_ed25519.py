"""Both libraries give one verdict: what libsodium accepts OpenSSL accepts, and OpenSSL has the last word."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any, Final

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)
from nacl.bindings import crypto_sign, crypto_sign_open

from mqauth.wire import jws

Point = tuple[int, int]
FIELD: Final = 2**255 - 19
ORDER: Final = 2**252 + 27742317777372353535851937790883648493
D: Final = -121665 * pow(121666, -1, FIELD) % FIELD
ZERO: Final[Point] = (0, 1)
DATA: Final = b"what is signed"


def add(left: Point, right: Point) -> Point:
    """Return the sum of two points (RFC 8032, section 5.1.4), slowly."""
    (x1, y1), (x2, y2) = left, right
    k = D * x1 * x2 * y1 * y2 % FIELD
    return (x1 * y2 + x2 * y1) * pow(1 + k, -1, FIELD) % FIELD, (y1 * y2 + x1 * x2) * pow(
        1 - k, -1, FIELD
    ) % FIELD


def times(number: int, point: Point) -> Point:
    """Return a multiple of a point."""
    found = ZERO
    while number:
        if number & 1:
            found = add(found, point)
        point, number = add(point, point), number >> 1
    return found


def even(y: int) -> Point | None:
    """Return the point of this y with an even x, if there is one."""
    square = (y * y - 1) * pow(D * y * y + 1, -1, FIELD) % FIELD
    x = pow(square, (FIELD + 3) // 8, FIELD)
    x = (
        x
        if (x * x - square) % FIELD == 0
        else x * pow(2, (FIELD - 1) // 4, FIELD) % FIELD
    )
    if (x * x - square) % FIELD:
        return None
    return (x if x % 2 == 0 else FIELD - x, y)


def encoded(point: Point) -> bytes:
    """Return a point's 32 bytes."""
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def torsion() -> Point:
    """Return a point of order 8."""
    found = (times(ORDER, point) for y in range(2, 100) if (point := even(y)) is not None)
    return next(point for point in found if times(4, point) != ZERO)


BASE: Final = even(4 * pow(5, -1, FIELD) % FIELD) or ZERO
EIGHTH: Final = torsion()
SMALL: Final = [times(number, EIGHTH) for number in range(8)]


def number(*parts: bytes) -> int:
    """Return the hash of some bytes as a scalar."""
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % ORDER


def signed(secret: int, nonce: int, key: Point, commitment: Point) -> tuple[bytes, bytes]:
    """Return a key's bytes, and what its holder can sign with points and scalars of his choice."""
    hashed = number(encoded(commitment), encoded(key), DATA)
    scalar = (nonce + hashed * secret) % ORDER
    return encoded(key), encoded(commitment) + scalar.to_bytes(32, "little")


def edges() -> list[tuple[bytes, bytes]]:
    """Return keys and signatures on which implementations have differed (eprint 2020/1244, section 5)."""
    found = []
    for turn in range(16):
        secret, nonce = number(b"secret", bytes([turn])), number(b"nonce", bytes([turn]))
        key, commitment = times(secret, BASE), times(nonce, BASE)
        for small in SMALL:
            found.append(signed(secret, nonce, add(key, small), commitment))
            found.append(signed(secret, nonce, key, add(commitment, small)))
            found.append(signed(secret, nonce, add(key, small), add(commitment, small)))
            found.append(signed(secret, 0, key, small))
            found.append(signed(0, nonce, small, commitment))
            found.append(signed(0, 0, small, small))
        raw, good = signed(secret, nonce, key, commitment)
        beyond = int.from_bytes(good[32:], "little") + ORDER
        found.append((raw, good[:32] + beyond.to_bytes(32, "little")))
    return found + _unreduced()


def _unreduced() -> list[tuple[bytes, bytes]]:
    """Return the zero point in spellings that are not reduced, as key and as commitment."""
    odd = [(FIELD + 1).to_bytes(32, "little"), ((FIELD + 1) | 1 << 255).to_bytes(32, "little"),
           (1 | 1 << 255).to_bytes(32, "little")]  # fmt: skip
    zero = bytes(32)
    return [
        (key, commitment + zero) for key in odd for commitment in (*odd, encoded(ZERO))
    ]


def openssl(raw: bytes, signature: bytes) -> bool:
    """Return OpenSSL's verdict."""
    try:
        Ed25519PublicKey.from_public_bytes(raw).verify(signature, DATA)
    except (InvalidSignature, ValueError):
        return False
    return True


def libsodium(raw: bytes, signature: bytes) -> bool:
    """Return libsodium's verdict."""
    try:
        return bool(crypto_sign_open(signature + DATA, raw) == DATA)
    except Exception:
        return False


def test_what_libsodium_accepts_openssl_accepts() -> None:
    """On every edge; the edges are of all three kinds: both accept, both refuse, libsodium alone refuses."""
    verdicts = {
        (openssl(raw, signature), libsodium(raw, signature)) for raw, signature in edges()
    }
    assert verdicts == {(True, True), (False, False), (True, False)}


@pytest.mark.parametrize("installed", [True, False])
def test_the_verdict_is_openssls(
    monkeypatch: pytest.MonkeyPatch, *, installed: bool
) -> None:
    """With PyNaCl and without it the verdict on every edge is OpenSSL's."""
    monkeypatch.setattr(jws, "_OPEN", crypto_sign_open if installed else None)
    for raw, signature in edges():
        assert jws.ed25519_holds(
            DATA, Ed25519PublicKey.from_public_bytes(raw), signature
        ) is openssl(raw, signature)


def _raising(*_arguments: Any) -> bytes:
    raise RuntimeError("libsodium is broken")


@pytest.mark.parametrize("broken", [_raising, lambda *_: b"", lambda *_: DATA])
def test_a_broken_libsodium_condemns_nothing(
    monkeypatch: pytest.MonkeyPatch, broken: Callable[..., bytes]
) -> None:
    """An honest signature holds whatever libsodium says of it."""
    monkeypatch.setattr(jws, "_OPEN", broken)
    key = Ed25519PrivateKey.generate()
    assert jws.ed25519_holds(DATA, key.public_key(), key.sign(DATA))


# Seeds, messages and signatures of RFC 8032, section 7.1, tests 1 to 3.
RFC = (
    ("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", "",
     "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
     "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"),
    ("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb", "72",
     "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
     "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"),
    ("c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7", "af82",
     "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
     "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a"),
)  # fmt: skip


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize(("seed", "data", "signature"), RFC)
def test_signatures_of_the_rfc(
    monkeypatch: pytest.MonkeyPatch,
    seed: str,
    data: str,
    signature: str,
    *,
    installed: bool,
) -> None:
    """With PyNaCl and without it the RFC's signatures are made."""
    monkeypatch.setattr(jws, "_SIGN", crypto_sign if installed else None)
    sign = jws.ed25519_signer(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(seed)))
    assert sign(bytes.fromhex(data)).hex() == signature
