"""Audit sinks beside the file: logging, a callable, several at once with one durable, and the misuse watch.

Each takes records of either colour of sink: where a sink is asynchronous, so is what wraps it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from mqauth.audit.misuse import Alert, Detector, Thresholds
from mqauth.audit.record import AuditRecord, AuditSink
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness, uuid7
from mqauth.flow import is_awaitable, settled
from mqauth.wire import strict_json as strictjson

_LOG: Final = logging.getLogger("mqauth.audit")


class LoggingSink:
    """Writes each record as one JSON line to a logger; not durable by itself.

    Args:
        logger: by default ``mqauth.audit``; accepted verdicts at INFO, all others at WARNING.
    """

    def __init__(self, logger: logging.Logger = _LOG) -> None:
        self._logger = logger

    def write(self, record: AuditRecord, /) -> None:
        """Log one record."""
        level = logging.INFO if record.verdict == "accepted" else logging.WARNING
        self._logger.log(level, "%s", strictjson.dumps(record.as_dict()).decode("utf-8"))


class CallableSink:
    """Hands each record to a function, plain or asynchronous; durable if the function is.

    Args:
        function: takes an ``AuditRecord``; what it raises defers the message.
    """

    def __init__(self, function: Callable[[AuditRecord], Any]) -> None:
        self._function = function

    def write(self, record: AuditRecord, /) -> Any:
        """Call the function."""
        return self._function(record)


class FanOut:
    """Writes to several sinks: one that must succeed, others that may fail loudly.

    Args:
        durable: its failure defers the message.
        others: their failures are logged and counted in ``failures``.
    """

    def __init__(self, durable: AuditSink, *others: AuditSink) -> None:
        self._durable = durable
        self._others = others
        self.failures = 0

    def write(self, record: AuditRecord, /) -> Awaitable[None] | None:
        """Write to the durable sink, then to the others."""
        written = self._durable.write(record)
        return self._after(written, record) if is_awaitable(written) else self._spread(record)

    async def _after(self, written: Awaitable[None], record: AuditRecord) -> None:
        """Write to the others once the record is durable."""
        await written
        await settled(self._spread(record))

    def _spread(self, record: AuditRecord) -> Awaitable[None] | None:
        """Write to the others; what is still to be awaited is returned."""
        pending: list[tuple[AuditSink, Awaitable[None]]] = []
        for sink in self._others:
            try:
                written = sink.write(record)
            except Exception as error:
                self._failed(sink, error)
            else:
                if is_awaitable(written):
                    pending.append((sink, written))
        return self._finish(pending) if pending else None

    async def _finish(self, pending: list[tuple[AuditSink, Awaitable[None]]]) -> None:
        """Await the others."""
        for sink, written in pending:
            try:
                await written
            except Exception as error:
                self._failed(sink, error)

    def close(self) -> None:
        """Close the sinks, as far as they can be."""
        for sink in (self._durable, *self._others):
            close(sink)

    def _failed(self, sink: AuditSink, error: Exception) -> None:
        """Count and log what a second sink lost."""
        self.failures += 1
        _LOG.error("an audit sink (%s) lost a record: %s", type(sink).__name__, type(error).__name__)


class MisuseWatch:
    """Passes records on and adds an alert record wherever the detector fires; safe to share between threads.

    Args:
        sink: where records and alerts go.
        detector: reads every record.
        on_alert: called with each alert; what it raises is logged and changes nothing.
        instance: this process in alert records.
    """

    def __init__(
        self,
        sink: AuditSink,
        detector: Detector | None = None,
        *,
        on_alert: Callable[[Alert], None] | None = None,
        instance: str = "",
        clock: Clock = SYSTEM_CLOCK,
        randomness: Randomness = SYSTEM_RANDOMNESS,
    ) -> None:
        self.sink = sink
        self._detector = detector or Detector()
        self._on_alert = on_alert
        self._instance = instance
        self._clock = clock
        self._randomness = randomness
        self.alerts: dict[str, int] = {}
        self._lock = threading.Lock()

    def write(self, record: AuditRecord, /) -> Awaitable[None] | None:
        """Write the record, then the alerts it completes; nothing that fails after the record is raised."""
        written = self.sink.write(record)
        if is_awaitable(written):
            return self._after(written, record)
        pending = [written for alert in self._alerts(record) if (written := self._write(alert)) is not None]
        return self._finish(pending) if pending else None

    @property
    def thresholds(self) -> Thresholds:
        """When its detector fires."""
        return self._detector.thresholds

    def close(self) -> None:
        """Close the sink, where it can be: an audit file signs its head."""
        close(self.sink)

    def _write(self, alert: AuditRecord) -> Awaitable[None] | None:
        """Write one alert, as far as that goes without waiting."""
        try:
            written = self.sink.write(alert)
        except Exception as error:
            self._lost(error)
            return None
        return written if is_awaitable(written) else None

    async def _after(self, written: Awaitable[None], record: AuditRecord) -> None:
        """Write the alerts once the record is durable."""
        await written
        await self._finish([done for alert in self._alerts(record) if (done := self._write(alert)) is not None])

    async def _finish(self, pending: list[Awaitable[None]]) -> None:
        """Await alerts that are being written."""
        for written in pending:
            try:
                await written
            except Exception as error:
                self._lost(error)

    def _alerts(self, record: AuditRecord) -> list[AuditRecord]:
        """Return an alert record for each finding, and tell the callback."""
        try:
            with self._lock:
                found = self._detector.observe(record.as_dict())
                for alert in found:
                    self.alerts[alert.kind] = self.alerts.get(alert.kind, 0) + 1
        except Exception as error:  # the record is durable: raised, it would be written again
            _LOG.error("the misuse detector failed: %s", type(error).__name__)
            return []
        for alert in found:
            self._tell(alert)
        return [self._record(alert, record) for alert in found]

    def _lost(self, error: Exception) -> None:
        """Log an alert that could not be written: its record is durable, and must not be written twice."""
        _LOG.error("an alert could not be written: %s", type(error).__name__)

    def _tell(self, alert: Alert) -> None:
        """Call the callback; a broken one must not stop the audit."""
        try:
            if self._on_alert is not None:
                self._on_alert(alert)
        except Exception as error:
            _LOG.error("an alert callback failed: %s", type(error).__name__)

    def _record(self, alert: Alert, record: AuditRecord) -> AuditRecord:
        """Return the record of an alert; it names no token and no body."""
        return replace(
            record,
            id=uuid7(self._clock, self._randomness),
            verdict="alert",
            reason=None,
            detail=f"{alert.kind}, {alert.count} times",
            broker={},
            token={},
            body_sha256=None,
            body_size=None,
            key_set=None,
            policy=None,
            dead_letter=None,
            extra={"alert": alert.as_dict(), "completed_by": record.id},
        )


def close(sink: object) -> None:
    """Close a sink, where it can be closed."""
    closing = getattr(sink, "close", None)
    if callable(closing):
        closing()
