"""Queries of an audit log: which records there are, how many of what, what a key signed; read as a stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from mqauth.audit.chain import MAX_LINE, raw_lines
from mqauth.audit.file import files_of
from mqauth.errors import refusing, require
from mqauth.wire import strict_json

Record = Mapping[str, Any]
"""A record as it was read back; an edited log may hold anything."""
TIMES: Final = {"time": 13, "day": 10, "hour": 13, "minute": 16}
"""How many characters of a record's time name the span it lies in; ``time`` counts by the hour."""
RUNGS: Final = ("off", "observe", "enforce")
DIMENSIONS: Final = (
    "reason",
    "verdict",
    "issuer",
    "kid",
    "subject",
    "destination",
    "alert",
    *TIMES,
)


def member(record: Record, name: str) -> Record:
    """Return a member of a record that is an object, or an empty one."""
    value = record.get(name)
    return value if isinstance(value, dict) else {}


def objects(listed: Any) -> list[dict[str, Any]]:
    """Return the objects of a list in a record; none where it is no list."""
    return (
        [each for each in listed if isinstance(each, dict)]
        if isinstance(listed, list)
        else []
    )


def claims_of(record: Record) -> Record:
    """Return the claims of a record's token, verified or not."""
    token = member(record, "token")
    return member(token, "verified") or member(token, "claimed")


def is_verified(record: Record) -> bool:
    """Tell whether the signature of a record's token was verified."""
    return "verified" in member(record, "token")


def time_of(record: Record) -> float:
    """Return the time of a record, UTC seconds, or 0 if it has none."""
    return seconds_of(record.get("time"))


def seconds_of(time: Any) -> float:
    """Return the UTC seconds of a time as ``iso_time`` writes it, or 0 for anything else."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which records to select; ``None`` selects any value.

    Args:
        kid: id of the key that signed the token, or is said to.
        subject: the producer.
        jti: the token's id.
        jkt: thumbprint of a workload's key, in records of consumers and of the authority.
        verdict: ``accepted``, ``rejected``, ``duplicate`` or ``alert``.
        verified: only records whose token's signature was verified.
        since: UTC seconds, inclusive.
        until: UTC seconds, exclusive.
    """

    kid: str | None = None
    subject: str | None = None
    jti: str | None = None
    jkt: str | None = None
    verdict: str | None = None
    verified: bool = False
    since: float | None = None
    until: float | None = None

    def holds(self, record: Record) -> bool:
        """Tell whether a record is among those selected."""
        wanted = {
            name: getattr(self, name)
            for name in ("kid", "subject", "jti", "jkt", "verdict")
        }
        return (
            (not self.verified or is_verified(record))
            and all(
                value is None or value_of(record, name) == value
                for name, value in wanted.items()
            )
            and (self.since is None or time_of(record) >= self.since)
            and (self.until is None or time_of(record) < self.until)
        )


def read_records(paths: Iterable[Path]) -> Iterator[Record]:
    """Yield the records of audit files without checking their chain; ``verify_chain`` does that.

    Raises:
        ConfigurationError: a file cannot be read, or a line is no record; a torn last line is ignored.
    """
    for path in paths:
        for number, raw in enumerate(raw_lines(path), 1):
            if raw.endswith(b"\n") or len(raw) >= MAX_LINE:
                with refusing(ValueError, f"{path}: line {number} is no audit record"):
                    record = parse_record(raw)
                yield record


def parse_record(raw: bytes) -> Record:
    """Return the record of one line.

    Raises:
        ValueError: the line is no JSON object.
    """
    members: Record = strict_json.loads(raw, depth=8)
    require(isinstance(members, dict), "no object", ValueError)
    return members


def count(records: Iterable[Record], dimension: str) -> Counter[str]:
    """Return how many records have each value of a dimension; beyond 1,000 values they count as ``(others)``.

    Args:
        records: what to count.
        dimension: one of ``DIMENSIONS``.

    Raises:
        ConfigurationError: there is no such dimension.
    """
    require(dimension in DIMENSIONS, f"counted by {', '.join(DIMENSIONS)}")
    counts: Counter[str] = Counter()
    for record in records:
        value = value_of(record, dimension)
        if value is not None:
            counts[
                str(value) if str(value) in counts or len(counts) < 1000 else "(others)"
            ] += 1
    return counts


def value_of(record: Record, name: str) -> Any:
    """Return a record's value for one of ``DIMENSIONS``, ``jti`` or ``jkt``, ``None`` if it has none."""
    if name in TIMES:
        return str(record.get("time"))[: TIMES[name]]
    claims = claims_of(record)
    return {
        "kid": claims.get("kid"),
        "subject": claims.get("sub"),
        "issuer": claims.get("iss"),
        "jti": claims.get("jti"),
        "jkt": member(claims, "identity").get("jkt")
        or member(record, "asked").get("jkt"),
        "destination": member(record, "broker").get("destination"),
        "alert": member(record, "alert").get("kind"),
    }.get(name, record.get(name))


def rungs_of(facts: Record) -> dict[str, int]:
    """Return the number of each destination's rung in the facts of a record ``rollout``."""
    rungs: dict[str, int] = {}
    for entry in objects(facts.get("rungs")):
        if entry.get("rung") in RUNGS:
            for destination in entry.get("destinations") or ():
                rungs.setdefault(str(destination)[:256], RUNGS.index(str(entry["rung"])))
    return rungs


def last_rollout(path: Path, scope: str | None = None) -> Record | None:
    """Return the latest record ``rollout`` in the ends of audit files, ``None`` where there is none.

    Args:
        path: of the files of all processes, as ``files_of`` takes it.
        scope: likewise.
    """
    latest: list[Record] = []
    for file in sorted(files_of(path, scope), key=lambda each: each.stat().st_mtime)[
        -16:
    ]:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - (16 * 1024 * 1024)))
            latest += [
                parse_record(raw)
                for raw in stream
                if b'"verdict":"rollout"' in raw and raw.endswith(b"\n")
            ][-1:]
    return max(latest, key=time_of, default=None)
