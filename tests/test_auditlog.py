"""Questions to an audit log: what is asked for is found, nothing else, and a foreign file is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mqauth.audit.query import Selection, claims_of, count, is_verified, read_records
from mqauth.errors import ConfigurationError
from mqauth.wire import strict_json as strictjson


def record(**changes: Any) -> dict[str, Any]:
    """Return a record of a rejection."""
    return {
        "id": "r1", "time": "2026-11-25T10:30:00.000Z", "verdict": "rejected", "reason": "expired",
        "broker": {"destination": "kafka:orders"},
        "token": {"verified": {"iss": "i", "sub": "s", "kid": "k", "jti": "j"}},
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("wanted", "holds"),
    [
        ({}, True),
        ({"kid": "k", "subject": "s", "jti": "j"}, True),
        ({"kid": "other"}, False),
        ({"subject": "other"}, False),
        ({"verdict": "rejected"}, True),
        ({"verdict": "accepted"}, False),
        ({"since": 1_795_602_600.0}, True),
        ({"until": 1_795_602_600.0}, False),
        ({"since": 1_795_651_200.0}, False),
        ({"until": 1_795_651_200.0}, True),
    ],
)
def test_selection(wanted: dict[str, Any], holds: bool) -> None:
    """A selection holds exactly for the records it describes; times are from inclusive, to exclusive."""
    assert Selection(**wanted).holds(record()) is holds


@pytest.mark.parametrize(
    ("dimension", "value"),
    [
        ("reason", "expired"), ("verdict", "rejected"), ("issuer", "i"), ("subject", "s"), ("kid", "k"),
        ("destination", "kafka:orders"), ("hour", "2026-11-25T10"), ("time", "2026-11-25T10"),
        ("day", "2026-11-25"), ("minute", "2026-11-25T10:30"),
    ],
)  # fmt: skip
def test_count(dimension: str, value: str) -> None:
    """Records are counted by each dimension."""
    assert count([record(), record()], dimension) == {value: 2}


def test_count_alerts() -> None:
    """Alerts are counted by kind, and other records are not among them."""
    assert count([record(), record(alert={"kind": "burst"})], "alert") == {"burst": 1}


def test_count_is_bounded() -> None:
    """A log full of random kids is counted in a thousand values and the others together."""
    records = (record(token={"claimed": {"kid": f"k{n}"}}) for n in range(5000))
    found = count(records, "kid")
    assert (len(found), found["(others)"]) == (1001, 4000)


def test_count_by_nonsense() -> None:
    """An unknown dimension is refused."""
    with pytest.raises(ConfigurationError, match="counted by"):
        count([], "colour")


@pytest.mark.parametrize("token", [None, "text", {}, {"claimed": "text"}])
def test_odd_tokens(token: object) -> None:
    """A record whose token is not as it should be says nothing of claims and is not verified."""
    assert claims_of(record(token=token)) == {}
    assert not is_verified(record(token=token))


def test_odd_broker() -> None:
    """A record without coordinates has no destination."""
    assert count([record(broker=None)], "destination") == {}


def test_read(tmp_path: Path) -> None:
    """Records come back in order; a torn last line is passed over."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(strictjson.dumps(record()) + b"\n" + b'{"torn')
    assert list(read_records([path, path])) == [record(), record()]


@pytest.mark.parametrize("raw", [b"text\n", b"[]\n"])
def test_read_garbage(tmp_path: Path, raw: bytes) -> None:
    """A line that is no record is named."""
    path = tmp_path / "audit.jsonl"
    path.write_bytes(raw)
    with pytest.raises(ConfigurationError, match="line 1 is no audit record"):
        list(read_records([path]))
