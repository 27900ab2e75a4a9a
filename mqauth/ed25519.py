"""Ed25519 signatures by OpenSSL's verdict, in half the time where PyNaCl is installed (extra ``fast``).

libsodium refuses what OpenSSL refuses, and points of small order besides. What it accepts is accepted; what it
refuses is asked of OpenSSL, so that no verdict depends on what is installed (``docs/decisions/0075-pynacl.md``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_Open = Callable[[bytes, bytes], bytes]
_SIGNATURE: Final = 64


def _libsodium() -> _Open | None:
    """Return libsodium's ``crypto_sign_open``, ``None`` where PyNaCl is not installed."""
    try:
        from nacl.bindings import crypto_sign_open
    except ImportError:
        return None
    return crypto_sign_open


_OPEN: Final = _libsodium()


def holds(data: bytes, public: Ed25519PublicKey, signature: bytes) -> bool:
    """Tell whether a signature is one over ``data`` (RFC 8032, section 5.1.7)."""
    if _OPEN is not None and _accepted(_OPEN, data, public, signature):
        return True
    try:
        public.verify(signature, data)
    except InvalidSignature:
        return False
    return True


def _accepted(opened: _Open, data: bytes, public: Ed25519PublicKey, signature: bytes) -> bool:
    """Tell whether libsodium accepts; what it says otherwise is no verdict."""
    try:
        return len(signature) == _SIGNATURE and opened(signature + data, public.public_bytes_raw()) == data
    except Exception:
        return False
