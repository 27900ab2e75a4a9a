"""Audit sinks beside the file: a logger, a callable, several sinks at once, the flood gate, and the misuse watch.

Each one takes sinks of both kinds: where a sink that it wraps is asynchronous, it is asynchronous too.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Final

from mqauth.audit.misuse import Alert, Detector
from mqauth.audit.query import claims_of, member
from mqauth.audit.record import MINUTE, AuditRecord, AuditSink, Window
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness, uuid7
from mqauth.errors import require
from mqauth.flow import Flow, Waiting, begin, resume, settling
from mqauth.logs import emit
from mqauth.wire import strict_json

DEFAULT_FLOOD_AFTER: Final = 100
CRITICAL: Final = frozenset(("resurrected_key", "rung_lowered"))
"""Kinds of alerts that are logged as ``CRITICAL``; all others are errors."""


@dataclass(eq=False)
class LoggingSink:
    """Writes each record as one line of JSON to a logger; not durable by itself.

    Args:
        logger: by default ``mqauth.audit``; accepted verdicts are logged at INFO, all others at WARNING.
    """

    logger: logging.Logger = logging.getLogger("mqauth.audit")  # noqa: RUF009 - one for each name

    def write(self, record: AuditRecord, /) -> None:
        """Log one record."""
        self.logger.log(
            logging.INFO if record.verdict == "accepted" else logging.WARNING,
            "%s",
            strict_json.dumps(record.as_dict()).decode("utf-8"),
        )


@dataclass(eq=False)
class CallableSink:
    """Hands each record to a function, plain or asynchronous; durable if the function is.

    Args:
        function: takes an ``AuditRecord``; if it raises, the message is deferred.
    """

    function: Callable[[AuditRecord], Any]

    def write(self, record: AuditRecord, /) -> Any:
        """Call the function with one record."""
        return self.function(record)


class _Wrapping:
    """A sink around another one; its records are where that one's are."""

    sink: AuditSink

    @property
    def where(self) -> str:
        """Where the records are."""
        return str(getattr(self.sink, "where", type(self.sink).__name__))

    def close(self) -> None:
        """Close the sink, if it can be closed; an audit file signs its head then."""
        close(self.sink)


class FanOut(_Wrapping):
    """Writes to several sinks: one that must succeed, and others that may fail.

    Args:
        durable: if it fails, the message is deferred.
        others: if one fails, that is logged and counted in ``failures``.
    """

    def __init__(self, durable: AuditSink, *others: AuditSink) -> None:
        self.sink = durable
        self._others = others
        self.failures = 0

    def write(self, record: AuditRecord, /) -> Awaitable[None] | None:
        """Write one record to the durable sink, then to the others."""
        return _begun(self._written(record))

    def _written(self, record: AuditRecord) -> Flow[None]:
        yield from settling(self.sink.write(record))
        yield from _write_each(((sink, record) for sink in self._others), self._failed)

    def close(self) -> None:
        """Close the sinks that can be closed."""
        for sink in (self.sink, *self._others):
            close(sink)

    def _failed(self, sink: AuditSink, error: Exception) -> None:
        self.failures += 1
        emit(
            "audit.record_lost",
            "an audit sink (%s) lost a record: %s",
            type(sink).__name__,
            type(error).__name__,
        )


class FloodGate(_Wrapping):
    """Passes records on, and drops the details of those that belong to a flood; safe to share between threads.

    From ``flood_after`` rejections a minute with the same reason, kid and destination, a record keeps its id,
    time, reason, scope and dead letter, and says its number in the flood. The details stand in the records before.
    Of an authority's refusals the address takes the place of the destination. Nobody can draw addresses at random:
    the first refusals of an address keep their details, however many addresses there are. An attacker can draw
    kids at random, and also destinations where routing keys are free; so ten times as many of one reason and
    destination, or a hundred times as many of one reason, are a flood too. The rejection itself is always
    recorded, and its dead letter is always published.

    Put the gate around the file, and the misuse watch around the gate, so that detectors see every record whole.

    Args:
        sink: where records go.
        flood_after: rejections of one kind a minute, beyond which details are dropped; at least 1.

    Raises:
        ConfigurationError: ``flood_after`` is less than 1.
    """

    def __init__(self, sink: AuditSink, flood_after: int = DEFAULT_FLOOD_AFTER) -> None:
        require(flood_after >= 1, "flood_after is at least 1")
        self.sink = sink
        self._limits = (flood_after, 10 * flood_after, 100 * flood_after)
        self._windows = tuple(Window(seconds=MINUTE, capacity=4096) for _ in self._limits)
        self._lock = threading.Lock()

    def write(self, record: AuditRecord, /) -> Awaitable[None] | None:
        """Write one record, whole or without its details."""
        if record.verdict not in ("rejected", "identity_refused"):
            return self.sink.write(record)
        # The floods that it may belong to, the narrowest first. A refusal of an authority has no destination: who
        # floods it must not hide what others ask for.
        reason, kid = (
            record.reason or "",
            str(claims_of({"token": record.token}).get("kid", "")),
        )
        destination = str(
            record.broker.get("destination")
            or member(record.extra, "asked").get("address", "")
        )
        kinds = (reason, kid, destination), (reason, destination), (reason,)
        with self._lock:
            nth = [
                window.peek(kind, record.time) + 1
                for window, kind in zip(self._windows, kinds, strict=True)
            ]
        # The first refusals by an authority, of one reason and address in a minute, always say what was asked.
        first = record.verdict == "identity_refused" and nth[1] <= 3
        if not first and any(
            count > limit for count, limit in zip(nth, self._limits, strict=True)
        ):
            extra = {
                name: value
                for name, value in record.extra.items()
                if name not in ("found", "expected", "asked")
            }
            record = replace(_fact_alone(record), extra={**extra, "flood": max(nth)})
        return _begun(self._counted(record, kinds))

    def _counted(
        self, record: AuditRecord, kinds: Iterable[tuple[str, ...]]
    ) -> Flow[None]:
        yield from settling(self.sink.write(record))
        # Counted once it is written: the sink may fail, and the same record then comes again.
        with self._lock:
            for window, kind in zip(self._windows, kinds, strict=True):
                window.add(kind, record.time)


class MisuseWatch(_Wrapping):
    """Passes records on, and adds an alert record when a detector gives an alert; safe to share between threads.

    Args:
        sink: where records and alerts go.
        detector: reads every record.
        on_alert: called with each alert; if it raises, that is logged and changes nothing.
    """

    def __init__(
        self,
        sink: AuditSink,
        detector: Detector | None = None,
        *,
        on_alert: Callable[[Alert], None] | None = None,
        clock: Clock = SYSTEM_CLOCK,
        randomness: Randomness = SYSTEM_RANDOMNESS,
    ) -> None:
        self.sink = sink
        self.detector = detector or Detector()
        self._on_alert = on_alert or (lambda _alert: None)
        self._clock = clock
        self._randomness = randomness
        self._lock = threading.Lock()

    def write(self, record: AuditRecord, /) -> Awaitable[None] | None:
        """Write one record, then the alerts it completes; only a failure to write the record is raised."""
        return _begun(self._written(record))

    def see(self, record: AuditRecord, /) -> Awaitable[None] | None:
        """Show a record to the detector without writing it; the alerts that it completes are written."""
        return _begun(
            _write_each(
                ((self.sink, alert) for alert in self._alerts(record)), _alert_lost
            )
        )

    def _written(self, record: AuditRecord) -> Flow[None]:
        yield from settling(self.sink.write(record))
        yield from _write_each(
            ((self.sink, alert) for alert in self._alerts(record)), _alert_lost
        )

    def _alerts(self, record: AuditRecord) -> list[AuditRecord]:
        """Return the records of the alerts that a record completes, and call the callback with each alert."""
        # The record is durable by now. If an error were raised here, it would be written a second time.
        try:
            with self._lock:
                alerts = self.detector.observe(record.as_dict())
        except Exception as error:
            emit(
                "misuse.detector_failed",
                "the misuse detector failed: %s",
                type(error).__name__,
            )
            return []
        for alert in alerts:
            about = ", ".join(f"{name} {value}" for name, value in alert.about.items())
            emit(
                "misuse.alert",
                "misuse, %s: %d times, %s",
                alert.kind,
                alert.count,
                about,
                level=logging.CRITICAL if alert.kind in CRITICAL else None,
                kind=alert.kind,
                count=alert.count,
                about=dict(alert.about),
                verified=alert.verified,
                audit=record.id,
                scope=record.scope,
            )
            try:
                self._on_alert(alert)
            except Exception as error:
                emit(
                    "misuse.callback_failed",
                    "an alert callback failed: %s",
                    type(error).__name__,
                )
        bare = replace(
            _fact_alone(record), verdict="alert", reason=None, dead_letter=None
        )
        kept = {"rung": record.extra["rung"]} if "rung" in record.extra else {}
        return [
            replace(
                bare,
                id=uuid7(self._clock, self._randomness),
                detail=f"{alert.kind}, {alert.count} times",
                extra=kept | {"alert": alert.as_dict(), "completed_by": record.id},
            )
            for alert in alerts
        ]


def close(sink: object) -> None:
    """Close a sink, if it can be closed."""
    closing = getattr(sink, "close", None)
    if callable(closing):
        closing()


def _begun(flow: Flow[None]) -> Awaitable[None] | None:
    """Run a flow now, up to the first write that has to be awaited, and return what is left to be awaited."""
    begun = begin(flow)
    return resume(begun) if isinstance(begun, Waiting) else begun


def _write_each(
    writes: Iterable[tuple[AuditSink, AuditRecord]],
    failed: Callable[[AuditSink, Exception], None],
) -> Flow[None]:
    """Write records to sinks that may fail."""
    for sink, record in writes:
        try:
            yield from settling(sink.write(record))
        except Exception as error:
            failed(sink, error)


def _alert_lost(_sink: AuditSink, error: Exception) -> None:
    emit("misuse.alert_lost", "an alert could not be written: %s", type(error).__name__)


def _fact_alone(record: AuditRecord) -> AuditRecord:
    """Return a record that names no token, no body and no place."""
    return replace(
        record,
        detail=None,
        broker={},
        token={},
        body_sha256=None,
        body_size=None,
        key_set=None,
        policy=None,
    )
