"""A producer against the real authority's application, in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mqauth.audit.file import AuditFile
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


def test_a_flood_of_requests_is_slowed_down(authority: MemoryAuthority) -> None:
    """The authority's 429 reaches the producer with the seconds to wait."""
    ask = authority.request(WORKLOAD, authority.credential("orders-api"))
    for _ in range(3):
        ask()
    with pytest.raises(Refused, match="429 slow_down") as caught:
        ask()
    assert 0 < caught.value.retry_after <= 60
