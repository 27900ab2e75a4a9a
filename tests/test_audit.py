"""The audit record: bounded, harmless, and never more than codes and digests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth.audit import record as audit
from mqauth.logs import harmless
from mqauth.wire.claims import Binding, Claims
from mqauth.wire.message import Message

CLAIMS = Claims(
    iss="i\n", sub="s\u202e", aud="a", iat=1, exp=2, jti="j" * 16,
    mqa=Binding(dst="kafka:a", bod=None, key=None, hdr=(), hds=""),
)  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ["\n", "\r", "\x00", "\x1b[31m", "\x7f", "\x85", "\x9b", "\u2028", "\u2029", "\u202e", "\u2066", "\u200b",
    "\u200f",
     "\ufeff", "\u061c", "\ud800", "\ue000", "\U000e0001", "\U0001f600", "\ufff9", "\u2060",
     "\xad", "\u0600", "\u06dd", "\u070f", "\u0890", "\u08e2", "\u034f", "\u115f", "\u17b4", "\u180e", "\u3164",
     "\ufe0f", "\uffa0", "\U000e0100"],
    ids=ascii,
)  # fmt: skip
def test_what_a_terminal_or_viewer_acts_on_is_escaped(text: str) -> None:
    """Line breaks, escapes, bidi controls, invisible characters and surrogates become visible ASCII."""
    assert harmless(f"a{text}b").isascii()
    assert harmless(f"a{text}b").startswith("a\\")


@given(st.text(max_size=400))
def test_harmless_text_is_bounded_and_stays_harmless(text: str) -> None:
    """At most 256 characters that print, whatever comes in; escaping twice changes nothing but the cut."""
    found = harmless(text)
    assert len(found) <= 256
    assert not re.search(
        r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", found
    )
    assert found.encode("utf-8").decode() == found
    assert harmless(found) == found or found.endswith("\u2026")


def test_cut_text_says_so() -> None:
    """257 characters are cut to 255 and an ellipsis."""
    assert harmless("x" * 257) == "x" * 255 + "\u2026"


@pytest.mark.parametrize(("verified", "member"), [(False, "claimed"), (True, "verified")])
def test_a_token_is_claimed_until_verified(verified: bool, member: str) -> None:
    """What it says stands under the one member or the other, made harmless, with a thumbprint of the whole."""
    found = audit.token_fields(b"t", "k\n", "EdDSA", CLAIMS, verified=verified)
    assert found.keys() == {member, "thumbprint"}
    assert found["thumbprint"] == hashlib.sha256(b"t").hexdigest()
    assert found[member] == {
        "kid": "k\\n", "alg": "EdDSA", "iss": "i\\n", "sub": "s\\u202e", "aud": "a", "jti": "j" * 16, "iat": 1,
        "exp": 2,
    }  # fmt: skip


def test_a_message_of_hostile_text_leaves_only_ascii(
    kafka: Callable[..., Message],
) -> None:
    """A destination is percent-encoded and bounded however long its names are."""
    found = audit.broker_fields(kafka(destination="rabbitmq:" + "%1B" * 300))
    assert len(found["destination"]) == 256
