"""The audit record: bounded, harmless, and never more than codes and digests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth.audit import record as audit
from mqauth.audit.chain import chain_hash
from mqauth.audit.record import AuditRecord
from mqauth.logs import harmless
from mqauth.wire.claims import Binding, Claims
from mqauth.wire.message import Message, Origin

RECORD = AuditRecord(
    id="1", time=1_900_000_000.25, verdict="rejected", reason="expired", detail="late", scope="billing", broker={},
    token={}, body_sha256=None, body_size=None, key_set="k", policy="p", dead_letter="d", instance="i",
)  # fmt: skip
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


@pytest.mark.parametrize("text", ["", "orders-api", "é", "日本", "a b~", "x" * 256])
def test_ordinary_text_stays(text: str) -> None:
    """What people write in names is kept."""
    assert harmless(text) == text


@given(st.text(max_size=400))
def test_harmless_text_is_bounded_and_stays_harmless(text: str) -> None:
    """At most 256 characters that print, whatever comes in; escaping twice changes nothing but the cut."""
    found = harmless(text)
    assert len(found) <= 256
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", found)
    assert found.encode("utf-8").decode() == found
    assert harmless(found) == found or found.endswith("\u2026")


def test_cut_text_says_so() -> None:
    """257 characters are cut to 255 and an ellipsis."""
    assert harmless("x" * 257) == "x" * 255 + "\u2026"


def test_huge_text_costs_no_more_than_its_beginning() -> None:
    """Only the first 257 characters are looked at."""
    assert harmless("\x1b" * 10_000_000).count("\\x1b") <= 64


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "1970-01-01T00:00:00.000Z"), (1_900_000_000.25, "2030-03-17T17:46:40.250Z")]
)
def test_times_are_rfc_3339(seconds: float, text: str) -> None:
    """UTC with milliseconds."""
    assert audit.iso_time(seconds) == text


def test_a_record_has_one_schema() -> None:
    """Version 1, texts that may be hostile made harmless, extra members last."""
    found = replace(RECORD, detail="a\nb", scope="s\x1b", extra={"more": 1}).as_dict()
    assert list(found) == [
        "v", "id", "time", "verdict", "reason", "detail", "scope", "broker", "token", "body", "key_set", "policy",
        "dead_letter", "instance", "more",
    ]  # fmt: skip
    assert (found["v"], found["detail"], found["scope"]) == (1, "a\\nb", "s\\x1b")
    assert replace(RECORD, detail=None).as_dict()["detail"] is None


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


def test_an_unreadable_token_claims_nothing() -> None:
    """Without token, header or claims the members are empty, not absent."""
    assert audit.token_fields(None, None, None, None, verified=False) == {"claimed": {}, "thumbprint": None}


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        (Origin(), {}),
        (Origin(queue="q", exchange="e\n", routing_key="r\x1b"),
        {"queue": "q", "exchange": "e\\n", "routing_key": "r\\x1b"}),
        (Origin(topic="t", partition=0, offset=0), {"topic": "t", "partition": 0, "offset": 0}),
    ],
)  # fmt: skip
def test_broker_coordinates_that_are_known_are_kept(origin: Origin, expected: dict[str, Any]) -> None:
    """Zero is known; names a publisher chose are made harmless."""
    message = Message(destination="kafka:t", body=b"", origin=origin)
    assert audit.broker_fields(message) == {"destination": "kafka:t"} | expected


def test_the_chain_hash_depends_on_both_halves() -> None:
    """Another predecessor or another member is another hash."""
    assert len({chain_hash(a, b) for a in ("0", "1") for b in ({"x": 1}, {"x": 2})}) == 4


def test_a_message_of_hostile_text_leaves_only_ascii(kafka: Callable[..., Message]) -> None:
    """A destination is percent-encoded and bounded however long its names are."""
    found = audit.broker_fields(kafka(destination="rabbitmq:" + "%1B" * 300))
    assert len(found["destination"]) == 256
