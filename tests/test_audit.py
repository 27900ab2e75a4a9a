"""The audit record: bounded, harmless, and never more than codes and digests."""

from __future__ import annotations

import re
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from mqauth.audit import record as audit
from mqauth.logs import harmless
from mqauth.wire.message import Message


@given(st.text(max_size=400))
def test_harmless_text_is_bounded_and_stays_harmless(text: str) -> None:
    """At most 256 characters that print, whatever comes in; escaping twice changes nothing but the cut."""
    found = harmless(text)
    assert len(found) <= 256
    assert not re.search(r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]", found)
    assert found.encode("utf-8").decode() == found
    assert harmless(found) == found or found.endswith("\u2026")


def test_a_message_of_hostile_text_leaves_only_ascii(kafka: Callable[..., Message]) -> None:
    """A destination is percent-encoded and bounded however long its names are."""
    found = audit.broker_fields(kafka(destination="rabbitmq:" + "%1B" * 300))
    assert len(found["destination"]) == 256
