"""A producer against the real authority's application, in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mqauth.audit.file import AuditFile
from mqauth.errors import Unavailable
from mqauth.keystore.identity.request import Refused
from mqauth.testing import FakeClock
from mqauth.testing.identity import OTHER_WORKLOAD, WORKLOAD
from tests.memory_authority import MemoryAuthority

GRANTS = {"orders-api": WORKLOAD, "stock-api": OTHER_WORKLOAD}


@pytest.fixture
def authority(tmp_path: Path) -> Any:
    """An authority in memory, on a fake clock."""
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        yield MemoryAuthority(tmp_path / "keys", audit, GRANTS, clock=FakeClock(), rate=3)


def test_a_producer_renews_from_the_real_authority(authority: MemoryAuthority) -> None:
    """The authority's own code takes credential and proof, and each half life gives another key."""
    key = authority.enrolled("orders-api", WORKLOAD)
    first = key.signing_key()
    assert (first.identity.subject, first.kid) == (WORKLOAD, authority.key_set().keys[0].kid)
    authority.clock.advance(1800)  # type: ignore[attr-defined]
    key.start(0)
    assert key.signing_key().identity.jkt != first.identity.jkt
    assert dict(key.health().counters) == {"attempts": 2, "renewed": 2}


def test_a_flood_of_requests_is_slowed_down(authority: MemoryAuthority) -> None:
    """The authority's 429 reaches the producer with the seconds to wait."""
    ask = authority.request(WORKLOAD, authority.credential("orders-api"))
    for _ in range(3):
        ask()
    with pytest.raises(Refused, match="429 slow_down") as caught:
        ask()
    assert 0 < caught.value.retry_after <= 60


def test_a_subject_is_cut_off_at_the_authority(authority: MemoryAuthority) -> None:
    """Once a producer has seen that it is cut off, it signs nothing, and another one goes on."""
    orders, stock = (authority.enrolled(name, subject) for name, subject in GRANTS.items())
    orders.signing_key(), stock.signing_key()
    authority.cut_off("orders-api", "stolen")
    assert orders.signing_key()
    authority.clock.advance(61)  # type: ignore[attr-defined]
    for key in (orders, stock):
        key.start(0)
    with pytest.raises(Unavailable, match=r"authority\.prod\.example: refused, 403 access_denied"):
        orders.signing_key()
    assert stock.signing_key()
