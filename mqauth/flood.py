"""A flood of forgeries kept small in the audit: the detail is dropped and counted, never the fact.

From ``flood_after`` rejections a minute with the same reason, kid and destination, or ten times as many with any
kid (an attacker draws kids at random), a record keeps its id, time,
reason, scope and dead letter, and says the how-many-eth of the flood it is; token, coordinates, body and detail
stand in the records before. The dead letter itself is always published, and names its record.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from mqauth.audit import AuditRecord, AuditSink
from mqauth.errors import ConfigurationError
from mqauth.misuse import Window

DEFAULT_FLOOD_AFTER: Final = 100
_WINDOW: Final = 60.0
_CAPACITY: Final = 4096
_KIDS: Final = 10


@dataclass(frozen=True, slots=True)
class _Kind:
    """What the records of one flood share."""

    reason: str
    kid: str
    destination: str


class FloodGate:
    """Passes records on, those of a flood without their detail.

    Put it around the file, and the misuse watch around it, so that detectors see every record whole.

    Args:
        sink: where records go.
        flood_after: rejections of one kind a minute before detail is dropped, at least 1.
    """

    def __init__(self, sink: AuditSink, flood_after: int = DEFAULT_FLOOD_AFTER) -> None:
        if flood_after < 1:
            raise ConfigurationError("flood_after is at least 1")
        self._sink = sink
        self._after = flood_after
        self._window = Window(_WINDOW, _CAPACITY)
        self._places = Window(_WINDOW, _CAPACITY)
        self._lock = threading.Lock()

    def write(self, record: AuditRecord, /) -> Awaitable[None] | None:
        """Write one record, whole or without its detail."""
        if record.verdict != "rejected":
            return self._sink.write(record)
        kind = _kind(record)
        with self._lock:
            count = self._window.add((kind.reason, kind.kid, kind.destination), record.time)
            anyone = self._places.add((kind.reason, kind.destination), record.time)
        flooded = count > self._after or anyone > self._after * _KIDS
        return self._sink.write(_without_detail(record, max(count, anyone)) if flooded else record)


def _kind(record: AuditRecord) -> _Kind:
    """Return what decides which flood a record belongs to."""
    said: Mapping[str, Any] = record.token.get("verified") or record.token.get("claimed") or {}
    return _Kind(record.reason or "", str(said.get("kid", "")), str(record.broker.get("destination", "")))


def _without_detail(record: AuditRecord, nth: int) -> AuditRecord:
    """Return the fact alone."""
    return replace(
        record, detail=None, broker={}, token={}, body_sha256=None, body_size=None, key_set=None, policy=None,
        extra={**record.extra, "flood": nth},
    )  # fmt: skip
