"""Questions to an audit log: which records, how many of what, what did a key sign; streamed, never held whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mqauth.audit.chain import MAX_LINE, raw_lines
from mqauth.audit.misuse import seconds
from mqauth.errors import ConfigurationError
from mqauth.wire import strict_json as strictjson

_DEPTH: Final = 8
_KEPT: Final = 1000
TIMES: Final = {"time": 13, "day": 10, "hour": 13, "minute": 16}
"""How much of a record's time tells one span from the next; ``time`` is by the hour."""
DIMENSIONS: Final = ("reason", "verdict", "issuer", "kid", "subject", "destination", "alert", *TIMES)
Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which records are asked for; what is ``None`` does not matter.

    Args:
        kid: id of the key that signed, or claimed to.
        subject: the producer.
        issuer: ``iss``.
        jti: the token's id.
        reason: why it was rejected.
        verdict: ``accepted``, ``rejected``, ``duplicate`` or ``alert``.
        destination: canonical.
        verified: only what was signed, nothing that was merely claimed.
        since: UTC seconds, inclusive.
        until: UTC seconds, exclusive.
    """

    kid: str | None = None
    subject: str | None = None
    issuer: str | None = None
    jti: str | None = None
    reason: str | None = None
    verdict: str | None = None
    destination: str | None = None
    verified: bool = False
    since: float | None = None
    until: float | None = None

    def holds(self, record: Record) -> bool:
        """Tell whether a record is one of those asked for."""
        wanted = {
            "kid": self.kid, "sub": self.subject, "iss": self.issuer, "jti": self.jti,
        }  # fmt: skip
        if self.verified and not is_verified(record):
            return False
        said = claims_of(record)
        if any(value is not None and said.get(name) != value for name, value in wanted.items()):
            return False
        plain = {"reason": self.reason, "verdict": self.verdict}
        if any(value is not None and record.get(name) != value for name, value in plain.items()):
            return False
        if self.destination is not None and _destination(record) != self.destination:
            return False
        return self._in_time(record)

    def _in_time(self, record: Record) -> bool:
        """Tell whether a record lies within the times asked for."""
        if self.since is None and self.until is None:
            return True
        at = seconds(record.get("time"))
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)


def read_records(paths: Iterable[Path]) -> Iterator[Record]:
    """Yield the records of audit files, as they stand; whether they may be believed is ``auditchain``'s.

    Raises:
        ConfigurationError: a file cannot be read, or a line is no record; a torn last line is passed over.
    """
    for path in paths:
        for number, raw in enumerate(raw_lines(path), 1):
            if not raw.endswith(b"\n") and len(raw) < MAX_LINE:
                continue
            try:
                yield parse_record(raw)
            except ValueError as error:
                raise ConfigurationError(f"{path}: line {number} is no audit record") from error


def parse_record(raw: bytes) -> Record:
    """Return the record of one line.

    Raises:
        ValueError: it is none.
    """
    members = strictjson.loads(raw, depth=_DEPTH)
    if not isinstance(members, dict):
        raise ValueError("no object")
    return members


def count(records: Iterable[Record], dimension: str) -> Counter[str]:
    """Return how many records have each value of a dimension, at most 1,000 values beside ``(others)``.

    Args:
        records: what to count.
        dimension: one of ``DIMENSIONS``.

    Raises:
        ConfigurationError: no such dimension.
    """
    if dimension not in DIMENSIONS:
        raise ConfigurationError(f"counted by {', '.join(DIMENSIONS)}")
    found: Counter[str] = Counter()
    for record in records:
        value = _value(record, dimension)
        if value is not None:
            found[value if value in found or len(found) < _KEPT else "(others)"] += 1
    return found


def claims_of(record: Record) -> Mapping[str, Any]:
    """Return what a record's token says, verified or claimed."""
    token = record.get("token")
    token = token if isinstance(token, dict) else {}
    said = token.get("verified") or token.get("claimed")
    return said if isinstance(said, dict) else {}


def is_verified(record: Record) -> bool:
    """Tell whether what the token says was signed."""
    token = record.get("token")
    return isinstance(token, dict) and "verified" in token


def parse_time(text: str) -> float:
    """Return the UTC seconds of an RFC 3339 time or date.

    Raises:
        ConfigurationError: the text is no time.
    """
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigurationError("a time is like 2026-11-25T10:00:00Z or 2026-11-25") from error
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).timestamp()


def _value(record: Record, dimension: str) -> str | None:
    """Return a record's value of a dimension."""
    if dimension in ("reason", "verdict"):
        found = record.get(dimension)
    elif dimension == "destination":
        found = _destination(record)
    elif dimension in TIMES:
        found = str(record.get("time"))[: TIMES[dimension]]
    elif dimension == "alert":
        alert = record.get("alert")
        found = alert.get("kind") if isinstance(alert, dict) else None
    else:
        found = claims_of(record).get({"issuer": "iss", "subject": "sub"}.get(dimension, dimension))
    return None if found is None else str(found)


def _destination(record: Record) -> Any:
    """Return the destination of a record."""
    broker = record.get("broker")
    return broker.get("destination") if isinstance(broker, dict) else None
