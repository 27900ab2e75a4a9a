"""Queries of an audit log: which records, how many of what, what a key signed; files are streamed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from mqauth.audit.chain import MAX_LINE, raw_lines
from mqauth.audit.record import Record, claims_of, is_verified, member, time_of
from mqauth.errors import ConfigurationError
from mqauth.wire import strict_json

_DEPTH: Final = 8
_KEPT: Final = 1000
_CLAIMS: Final = {"kid": "kid", "subject": "sub", "issuer": "iss", "jti": "jti"}
TIMES: Final = {"time": 13, "day": 10, "hour": 13, "minute": 16}
"""How many characters of a record's time name the span it lies in; ``time`` counts by the hour."""
DIMENSIONS: Final = ("reason", "verdict", "issuer", "kid", "subject", "destination", "alert", *TIMES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which records to select; ``None`` selects any value.

    Args:
        kid: id of the key that signed the token, or is said to.
        subject: the producer.
        issuer: ``iss``.
        jti: the token's id.
        reason: why it was rejected.
        verdict: ``accepted``, ``rejected``, ``duplicate`` or ``alert``.
        destination: canonical.
        verified: only records whose token's signature was verified.
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
        """Tell whether a record is among those selected."""
        if self.verified and not is_verified(record):
            return False
        wanted = {name: getattr(self, name) for name in (*_CLAIMS, "reason", "verdict", "destination")}
        if any(value is not None and value_of(record, name) != value for name, value in wanted.items()):
            return False
        if self.since is None and self.until is None:
            return True
        at = time_of(record)
        return (self.since is None or at >= self.since) and (self.until is None or at < self.until)


def read_records(paths: Iterable[Path]) -> Iterator[Record]:
    """Yield the records of audit files without checking their chain; ``verify_chain`` does that.

    Raises:
        ConfigurationError: a file cannot be read, or a line is no record; a torn last line is ignored.
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
        ValueError: the line is no JSON object.
    """
    members = strict_json.loads(raw, depth=_DEPTH)
    if not isinstance(members, dict):
        raise ValueError("no object")
    return members


def count(records: Iterable[Record], dimension: str) -> Counter[str]:
    """Return how many records have each value of a dimension; beyond 1,000 values they count as ``(others)``.

    Args:
        records: what to count.
        dimension: one of ``DIMENSIONS``.

    Raises:
        ConfigurationError: there is no such dimension.
    """
    if dimension not in DIMENSIONS:
        raise ConfigurationError(f"counted by {', '.join(DIMENSIONS)}")
    found: Counter[str] = Counter()
    for record in records:
        value = value_of(record, dimension)
        if value is not None:
            found[str(value) if str(value) in found or len(found) < _KEPT else "(others)"] += 1
    return found


def value_of(record: Record, name: str) -> Any:
    """Return a record's value for one of ``DIMENSIONS`` or ``jti``, ``None`` if it has none."""
    if name in _CLAIMS:
        return claims_of(record).get(_CLAIMS[name])
    if name in TIMES:
        return str(record.get("time"))[: TIMES[name]]
    if name == "destination":
        return member(record, "broker").get("destination")
    if name == "alert":
        return member(record, "alert").get("kind")
    return record.get(name)


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
