"""Two detectors of a rollout: a rung that was lowered, and unsigned messages that are back after a day without.

A message without a token after a day in which each had one is a token that was stripped, or an old producer that
came back. Whoever can forge a token can strip it, so nothing but such a change shows it below ``enforce``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from mqauth.audit.file import files_of
from mqauth.audit.query import Record, member, parse_record, time_of

DAY: Final = 86_400.0
RUNGS: Final = ("off", "observe", "enforce")
Found = tuple[str, int, Mapping[str, str]]
"""The kind of an alert, a count, and what it is about."""


class RolloutWatch:
    """Reads the records ``rollout`` and ``observed`` in order.

    Args:
        capacity: destinations that are remembered.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._rungs: dict[str, dict[str, int]] = {}
        self._signed_since: dict[tuple[str, str], float] = {}

    def observe(self, record: Record, now: float) -> Iterator[Found]:
        """Yield what a record shows; ``now`` is its time, UTC seconds."""
        scope = str(record.get("scope"))[:256]
        if record.get("verdict") == "rollout":
            rungs, before = rungs_of(member(record, "rollout")), self._rungs.get(scope)
            if before is not None or len(self._rungs) < self._capacity:
                self._rungs[scope] = rungs
            for destination, rung in rungs.items():
                if before is not None and rung < before.get(destination, RUNGS.index("enforce")):
                    yield "rung_lowered", 1, {"destination": destination, "rung": RUNGS[rung]}
        elif record.get("verdict") == "observed":
            seen = member(record, "observed")
            unsigned = member(seen, "unsigned")
            for destination in {*member(seen, "accepted"), *unsigned}:
                key, count = (scope, destination), unsigned.get(destination, 0)
                since = self._signed_since.get(key)
                if not count:
                    if since is None and len(self._signed_since) < self._capacity:
                        self._signed_since[key] = now
                    continue
                self._signed_since.pop(key, None)
                if since is not None and now - since >= DAY:
                    yield "unsigned_again", int(count), {"destination": str(destination)[:256]}


def rungs_of(facts: Record) -> dict[str, int]:
    """Return the number of each destination's rung in the facts of a record ``rollout``."""
    rungs: dict[str, int] = {}
    entries: Any = facts.get("rungs")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("rung") in RUNGS:
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
    for file in sorted(files_of(path, scope), key=lambda each: each.stat().st_mtime)[-16:]:
        with file.open("rb") as stream:
            stream.seek(max(0, file.stat().st_size - (16 * 1024 * 1024)))
            latest += [
                parse_record(raw) for raw in stream if b'"verdict":"rollout"' in raw and raw.endswith(b"\n")
            ][-1:]
    return max(latest, key=time_of, default=None)
