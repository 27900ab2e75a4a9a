"""Base64url without padding, in its canonical form only (RFC 4648, section 5; RFC 7515, section 2).

Two texts of the same bytes would be two tokens with one signature, so there must be one text.
"""

from __future__ import annotations

import binascii
import hashlib
from typing import Final

_TO_URLSAFE: Final = bytes.maketrans(b"+/", b"-_")
_TO_STANDARD: Final = bytes.maketrans(
    b"-_+/=", b"+/!!!"
)  # characters of base64 alone become ones of neither
_PADDING: Final = (b"", b"", b"==", b"=")
_LAST: Final = (None, b"", b"AQgw", b"AEIMQUYcgkosw048")
"""By length modulo 4, the last characters whose unused bits are zero; no text is one character too long."""


def encode(raw: bytes) -> bytes:
    """Return the canonical text of ``raw``, as ASCII bytes."""
    return binascii.b2a_base64(raw, newline=False).rstrip(b"=").translate(_TO_URLSAFE)


def decode(text: bytes) -> bytes:
    """Return the bytes of a canonical text.

    Raises:
        ValueError: it has other characters, padding, or unused bits that are not zero.
    """
    last = _LAST[len(text) % 4]
    if last is not None and text[-1] not in last:
        raise ValueError("not canonical base64url")
    return binascii.a2b_base64(
        text.translate(_TO_STANDARD) + _PADDING[len(text) % 4], strict_mode=True
    )


def digest(raw: bytes) -> str:
    """Return the base64url SHA-256 of ``raw``."""
    text = binascii.b2a_base64(hashlib.sha256(raw).digest(), newline=False)
    return (
        text[:-1].translate(_TO_URLSAFE).decode("ascii")
    )  # 32 bytes end in one character of padding
