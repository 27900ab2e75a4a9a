"""Base64url without padding, and only its canonical form (RFC 4648, section 5; RFC 7515, section 2)."""

from __future__ import annotations

import binascii
import hashlib
import re
from typing import Final

_TO_STANDARD: Final = bytes.maketrans(b"-_", b"+/")
_TO_URLSAFE: Final = bytes.maketrans(b"+/", b"-_")
_ALPHABET = re.compile(rb"[A-Za-z0-9\-_]*")


def encode(raw: bytes) -> bytes:
    """Return the canonical text of ``raw``, as ASCII bytes."""
    return binascii.b2a_base64(raw, newline=False).rstrip(b"=").translate(_TO_URLSAFE)


def decode(text: bytes) -> bytes:
    """Return the bytes of a canonical text.

    Raises:
        ValueError: another alphabet, padding, or unused bits that are not zero.
    """
    if not _ALPHABET.fullmatch(text):
        raise ValueError("not base64url")
    raw = binascii.a2b_base64(text.translate(_TO_STANDARD) + b"=" * (-len(text) % 4), strict_mode=True)
    if encode(raw) != text:
        raise ValueError("not canonical base64url")
    return raw


def digest(raw: bytes) -> str:
    """Return the base64url SHA-256 of ``raw``."""
    return encode(hashlib.sha256(raw).digest()).decode("ascii")
