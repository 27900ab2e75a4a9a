"""What shows over several records: two detectors of a rollout, and three of an authority; memory is bounded.

Of a rollout: a rung that was lowered, and unsigned messages that are back after a day without. A message without
a token after a day in which each had one is a token that was stripped, or an old producer that came back. Whoever
can forge a token can strip it, so nothing but such a change shows it below ``enforce``.

Of an authority: a key that two subjects have, since somebody enrolled another's key, or one process has two names.
A subject with more identities alive than it has instances, since somebody else asks for them, too. A subject that
comes by another credential than ever: a thief has found another way in, or somebody has moved a service.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from mqauth.audit.file import files_of
from mqauth.audit.query import Record, claims_of, member, parse_record, time_of
from mqauth.wire.memo import Recent

DAY: Final = 86_400.0
RUNGS: Final = ("off", "observe", "enforce")
INSTANCES: Final = 64
"""Identities of a subject that are alive at once, beyond which an alert is given; a process has two at a time."""
_TEXT: Final = 256
T = TypeVar("T")
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
        scope = str(record.get("scope"))[:_TEXT]
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
                    yield "unsigned_again", int(count), {"destination": str(destination)[:_TEXT]}


def rungs_of(facts: Record) -> dict[str, int]:
    """Return the number of each destination's rung in the facts of a record ``rollout``."""
    rungs: dict[str, int] = {}
    entries: Any = facts.get("rungs")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("rung") in RUNGS:
            for destination in entry.get("destinations") or ():
                rungs.setdefault(str(destination)[:_TEXT], RUNGS.index(str(entry["rung"])))
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


class IdentityWatch:
    """Reads records in order.

    Args:
        capacity: subjects that are remembered, and a fourth of the keys.
        instances: identities of one subject that may be alive at once.
    """

    def __init__(self, capacity: int, instances: int = INSTANCES) -> None:
        self._instances = min(instances, 1024)
        self._owners = Recent[str, str](4 * capacity)
        self._alive = Recent[str, list[int]](capacity)
        self._credentials = Recent[str, str](capacity)

    def observe(self, record: Record, now: float) -> Iterator[Found]:
        """Yield what a record shows; ``now`` is its time, UTC seconds."""
        if record.get("verdict") != "identity_issued":
            return
        claims = claims_of(record)
        subject, jkt = str(claims.get("sub"))[:_TEXT], str(member(claims, "identity").get("jkt"))[:_TEXT]
        if _remember(self._owners, jkt, subject) != subject:
            yield "shared_identity_key", 2, {"sub": subject, "jkt": jkt}
        ends = claims.get("exp")
        alive = [end for end in _remember(self._alive, subject, []) if end > now]
        alive = [*alive, ends if type(ends) is int else 0][-self._instances - 1 :]
        self._alive[subject] = alive
        if len(alive) > self._instances:
            yield "many_identities", len(alive), {"sub": subject}
        # A credential of another issuer or another name than the one before.
        credential = member(member(record, "asked"), "credential")
        came_by = (
            " ".join(str(credential.get(name))[:_TEXT] for name in ("name", "sub")) if credential else "command"
        )
        if _remember(self._credentials, subject, came_by) != came_by:
            self._credentials[subject] = came_by
            yield "new_credential", 1, {"sub": subject}


def _remember(held: Recent[str, T], key: str, value: T) -> T:
    """Return what is held under a key, the given value where there is nothing; it is the newest now."""
    known = held.get(key, value)
    held.keep(key, known)
    return known
