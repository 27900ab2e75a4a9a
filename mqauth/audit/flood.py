"""A flood of forgeries kept small in the audit: the detail is dropped and counted, never the fact.

From ``flood_after`` rejections a minute with the same reason, kid and destination a record keeps its id, time,
reason, scope and dead letter, and says the how-many-eth of the flood it is; token, coordinates, body and detail
stand in the records before. An attacker draws kids, and where routing keys are free also destinations, at
random: ten times as many of one reason and destination, or a hundred times as many of one reason, are a flood
too. The dead letter itself is always published, and names its record.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any, Final

from mqauth.audit.misuse import Window
from mqauth.audit.record import AuditRecord, AuditSink
from mqauth.errors import ConfigurationError
from mqauth.flow import is_awaitable

DEFAULT_FLOOD_AFTER: Final = 100
_WINDOW: Final = 60.0
_CAPACITY: Final = 4096
_WIDER: Final = 10


class FloodGate:
    """Passes records on, those of a flood without their detail; safe to share between threads.

    Put it around the file, and the misuse watch around it, so that detectors see every record whole.

    Args:
        sink: where records go.
        flood_after: rejections of one kind a minute before detail is dropped, at least 1.

    Raises:
        ConfigurationError: ``flood_after`` is less than 1.
    """

    def __init__(self, sink: AuditSink, flood_after: int = DEFAULT_FLOOD_AFTER) -> None:
        if flood_after < 1:
            raise ConfigurationError("flood_after is at least 1")
        self.sink = sink
        self._limits = (flood_after, flood_after * _WIDER, flood_after * _WIDER * _WIDER)
        self._windows = tuple(Window(_WINDOW, _CAPACITY) for _ in self._limits)
        self._lock = threading.Lock()

    def write(self, record: AuditRecord, /) -> Awaitable[None] | None:
        """Write one record, whole or without its detail; only what was written counts."""
        if record.verdict != "rejected":
            return self.sink.write(record)
        kinds = _kinds(record)
        with self._lock:
            nth = [window.peek(kind, record.time) + 1 for window, kind in zip(self._windows, kinds, strict=True)]
        flooded = any(count > limit for count, limit in zip(nth, self._limits, strict=True))
        written = self.sink.write(_without_detail(record, max(nth)) if flooded else record)
        if is_awaitable(written):
            return self._after(written, kinds, record.time)
        self._count(kinds, record.time)
        return None

    def close(self) -> None:
        """Close the sink, where it can be: an audit file signs its head."""
        closing = getattr(self.sink, "close", None)
        if callable(closing):
            closing()

    async def _after(self, written: Awaitable[None], kinds: tuple[tuple[str, ...], ...], now: float) -> None:
        """Count a record once it is durable."""
        await written
        self._count(kinds, now)

    def _count(self, kinds: tuple[tuple[str, ...], ...], now: float) -> None:
        """Count a record under each of its kinds."""
        with self._lock:
            for window, kind in zip(self._windows, kinds, strict=True):
                window.add(kind, now)


def _kinds(record: AuditRecord) -> tuple[tuple[str, ...], ...]:
    """Return the floods a record may belong to, the narrowest first."""
    said: Mapping[str, Any] = record.token.get("verified") or record.token.get("claimed") or {}
    reason, kid = record.reason or "", str(said.get("kid", ""))
    destination = str(record.broker.get("destination", ""))
    return (reason, kid, destination), (reason, destination), (reason,)


def _without_detail(record: AuditRecord, nth: int) -> AuditRecord:
    """Return the fact alone."""
    return replace(
        record, detail=None, broker={}, token={}, body_sha256=None, body_size=None, key_set=None, policy=None,
        extra={**record.extra, "flood": nth},
    )  # fmt: skip
