"""Ed25519 signatures by OpenSSL's verdict, in half the time where PyNaCl is installed (extra ``fast``).

libsodium refuses what OpenSSL refuses, and points of small order besides. What it accepts is accepted; what it
refuses is asked of OpenSSL, so that no verdict depends on what is installed (``docs/decisions/0075-pynacl.md``).
A signature made is the same to the last byte, whoever makes it (RFC 8032, section 5.1.6).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_Open = Callable[[bytes, bytes], bytes]
_Sign = Callable[[bytes, bytes], bytes]
_SIGNATURE: Final = 64


def _libsodium() -> tuple[_Open | None, _Sign | None]:
    """Return libsodium's ``crypto_sign_open`` and ``crypto_sign``, ``None`` where PyNaCl is not installed."""
    try:
        from nacl.bindings import crypto_sign, crypto_sign_open
    except ImportError:
        return None, None
    return crypto_sign_open, crypto_sign


_OPEN, _SIGN = _libsodium()


def signing(private: Ed25519PrivateKey) -> Callable[[bytes], bytes]:
    """Return what signs with a key, raw signatures of 64 bytes.

    libsodium takes a key's seed and public half together; the half is OpenSSL's of the same seed, for a signature
    with another's would give the key away.
    """
    if _SIGN is None:
        return private.sign
    sign, secret = _SIGN, private.private_bytes_raw() + private.public_key().public_bytes_raw()
    return lambda data: sign(data, secret)[:_SIGNATURE]


def holds(data: bytes, public: Ed25519PublicKey, signature: bytes) -> bool:
    """Tell whether a signature is one over ``data`` (RFC 8032, section 5.1.7)."""
    try:
        whole = len(signature) == _SIGNATURE
        accepted = _OPEN is not None and whole and _OPEN(signature + data, public.public_bytes_raw()) == data
    except Exception:
        accepted = False  # what libsodium says otherwise is no verdict
    if accepted:
        return True
    try:
        public.verify(signature, data)
    except InvalidSignature:
        return False
    return True
