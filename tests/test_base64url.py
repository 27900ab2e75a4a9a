"""Base64url in its only canonical form."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth.wire import base64url


@given(st.binary(max_size=100))
def test_it_round_trips_and_agrees_with_the_standard_library(raw: bytes) -> None:
    """Encoding is the library's without padding, and decoding gives the bytes back."""
    assert base64url.encode(raw) == base64.urlsafe_b64encode(raw).rstrip(b"=")
    assert base64url.decode(base64url.encode(raw)) == raw


@given(st.binary(max_size=12))
def test_only_one_text_decodes_to_any_bytes(text: bytes) -> None:
    """Whatever decodes is exactly what its bytes encode to, so no second spelling exists."""
    try:
        raw = base64url.decode(text)
    except ValueError:
        return
    assert base64url.encode(raw) == text


@pytest.mark.parametrize(
    "text",
    [b"AA==", b"AA=", b"A", b"AAAAA", b"AB", b"AAB", b"A+", b"A/", b"AA\n", b" AA", b"A A", b"\xff\xff", b"A.AA"],
)
def test_other_spellings_are_refused(text: bytes) -> None:
    """Padding, the other alphabet, blanks, impossible lengths and stray bits are refused."""
    with pytest.raises(ValueError, match=r"."):
        base64url.decode(text)


def test_digest_is_sha256() -> None:
    """The digest of nothing is that of FIPS 180-4, 43 characters."""
    assert base64url.digest(b"") == "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU"
