"""Metrics through the OpenTelemetry API: no SDK is forced, and without one they cost next to nothing.

Label sets are bounded: reasons and causes are closed enums, destinations beyond a number become ``other``, and
kid or jti is never a label.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from opentelemetry import metrics, trace
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.propagate import extract
from opentelemetry.trace import Link, SpanKind, Tracer

from mqauth._version import __version__
from mqauth.audit.misuse import Alert
from mqauth.flow import is_async
from mqauth.judging.pipeline import Handler, Outcome, Verdict
from mqauth.judging.verified import Verified
from mqauth.wire.message import Message

_LOG: Final = logging.getLogger("mqauth.telemetry")
MESSAGES: Final = "mqauth.messages"
JUDGE_DURATION: Final = "mqauth.judge.duration"
ALERTS: Final = "mqauth.alerts"
DEFERRED: Final = "mqauth.deferred"
STALLED: Final = "mqauth.stalled"
KEY_SET_AGE: Final = "mqauth.key_set.age"
REPLAY_SIZE: Final = "mqauth.replay.size"
METRICS: Final = (MESSAGES, JUDGE_DURATION, ALERTS, DEFERRED, STALLED, KEY_SET_AGE, REPLAY_SIZE)
"""Every metric this module emits; dashboards and alert rules name these and no others."""

MAX_DESTINATIONS: Final = 100
_BUCKETS: Final = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0)


class Health(Protocol):
    """What a consumer's ``health()`` says that is measured here."""

    @property
    def deferred(self) -> int:
        """Deliveries held now."""
        ...

    @property
    def stalled_since(self) -> float | None:
        """UTC seconds since when the oldest of them waits."""
        ...


@dataclass(frozen=True, slots=True)
class _Gauge:
    """One thing to look at when metrics are collected: its labels and how to read it."""

    labels: dict[str, str]
    read: Callable[[], float | None]


class Telemetry:
    """Counts verdicts and measures what a consumer depends on.

    Hand ``observe`` to ``Pipeline(observers=[...])`` and ``alert`` to ``MisuseWatch(on_alert=...)``.

    Args:
        meter: by default the global provider's.
        destinations: known destinations; a hundred more are taken as they come, half of them only from
            verified messages, the rest is ``other``.
        now: returns UTC seconds; by default the machine's clock.
    """

    def __init__(
        self,
        meter: Meter | None = None,
        *,
        destinations: Iterable[str] = (),
        now: Callable[[], float] | None = None,
    ) -> None:
        from mqauth.clock import SYSTEM_CLOCK

        found = meter or metrics.get_meter("mqauth", __version__)
        self._now = now or SYSTEM_CLOCK.now
        self._destinations = set(destinations)
        self._room = MAX_DESTINATIONS
        self._reserved = MAX_DESTINATIONS // 2
        self._lock = threading.Lock()
        self._deferred: list[_Gauge] = []
        self._stalled: list[_Gauge] = []
        self._ages: list[_Gauge] = []
        self._sizes: list[_Gauge] = []
        self._messages = found.create_counter(MESSAGES, unit="{message}", description="Verdicts on deliveries")
        self._alerts = found.create_counter(ALERTS, unit="{alert}", description="Misuse alerts by kind")
        self._duration = found.create_histogram(
            JUDGE_DURATION,
            unit="s",
            description="Time of a verdict, without handler and dead letter",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        for name, unit, gauges, text in (
            (DEFERRED, "{message}", self._deferred, "Deliveries held because the world is out of reach"),
            (STALLED, "s", self._stalled, "How long the oldest of them waits"),
            (KEY_SET_AGE, "s", self._ages, "Age of the key set in use"),
            (REPLAY_SIZE, "{id}", self._sizes, "Ids in the replay store"),
        ):
            found.create_observable_gauge(name, callbacks=[_reader(gauges)], unit=unit, description=text)

    def observe(self, outcome: Outcome, message: Message, _seconds: float) -> None:
        """Count one outcome of ``Pipeline.process`` (``Pipeline(observers=[telemetry.observe])``)."""
        cause = outcome.cause if outcome.verdict is Verdict.DEFERRED else outcome.reason
        labels = {
            "verdict": outcome.verdict.value,
            "reason": "" if cause is None else cause.value,
            "destination": self._bounded(message.destination, verified=outcome.verified is not None),
        }
        self._messages.add(1, labels)
        if outcome.judge_seconds is not None:
            self._duration.record(outcome.judge_seconds, {"verdict": outcome.verdict.value})

    def alert(self, alert: Alert) -> None:
        """Count one misuse alert (``MisuseWatch(on_alert=telemetry.alert)``)."""
        self._alerts.add(1, {"kind": alert.kind})

    def watch_consumer(self, name: str, health: Callable[[], Health]) -> None:
        """Measure a consumer: deliveries held, and for how long.

        Args:
            name: label ``consumer``.
            health: the consumer's own method.
        """
        self._deferred.append(_Gauge({"consumer": name}, lambda: health().deferred))
        self._stalled.append(_Gauge({"consumer": name}, lambda: self._since(health().stalled_since)))

    def watch_keys(self, issuer: str, age: Callable[[], float | None]) -> None:
        """Measure the age of an issuer's key set.

        Args:
            issuer: label ``issuer``.
            age: returns how many seconds ago the set in use was had, ``None`` where there is none; for a
                ``JWKS``, ``lambda: jwks.health().age``.
        """
        self._ages.append(_Gauge({"issuer": issuer}, age))

    def watch_store(self, name: str, size: Callable[[], int]) -> None:
        """Measure a replay store.

        Args:
            name: label ``store``.
            size: returns how many ids it holds, as ``MemoryReplayStore.__len__`` does.
        """
        self._sizes.append(_Gauge({"store": name}, size))

    def _bounded(self, destination: str, *, verified: bool) -> str:
        """Return a destination as a label, ``other`` once there are too many; forgeries leave room."""
        with self._lock:
            if destination in self._destinations:
                return destination
            if self._room <= (0 if verified else self._reserved):
                return "other"
            self._room -= 1
            self._destinations.add(destination)
        return destination

    def _since(self, moment: float | None) -> float:
        """Return how long ago a moment was, 0 where there is none."""
        return 0.0 if moment is None else max(0.0, self._now() - moment)


def _reader(gauges: list[_Gauge]) -> Callable[[CallbackOptions], Iterator[Observation]]:
    """Return the callback that reads a list of gauges when metrics are collected."""

    def read(_options: CallbackOptions) -> Iterator[Observation]:
        for gauge in gauges:
            try:
                value = gauge.read()
            except Exception as error:  # one that fails must not take the others with it
                _LOG.warning("a metric could not be read: %s", type(error).__name__)
                continue
            if value is not None:
                yield Observation(value, gauge.labels)

    return read


_TRACE_HEADERS = ("traceparent", "tracestate", "baggage")


def traced(handler: Handler, tracer: Tracer | None = None, *, trust_parent: bool = True) -> Handler:
    """Return a handler that runs inside a span named after its destination.

    Args:
        handler: of either colour; the result is of the same.
        tracer: by default the global provider's.
        trust_parent: continue the trace the message names; ``False`` starts a new one that links to it.
    """
    found = tracer or trace.get_tracer("mqauth", __version__)
    if is_async(handler):

        async def run_async(verified: Verified) -> Any:
            with _span(found, verified, trust_parent):
                result: Awaitable[Any] = handler(verified)
                return await result

        return run_async

    def run(verified: Verified) -> Any:
        with _span(found, verified, trust_parent):
            return handler(verified)

    return run


def carrier(message: Message) -> dict[str, str]:
    """Return the trace headers of a message as text; what is not text is left out."""
    found: dict[str, str] = {}
    for name, value in message.headers:
        if name in _TRACE_HEADERS and isinstance(value, str | bytes):
            found[name] = value.decode("ascii", "replace") if isinstance(value, bytes) else value
    return found


def _span(tracer: Tracer, verified: Verified, trust_parent: bool) -> Any:
    """Return a started span as a context; its attributes are the verified ones."""
    context = extract(carrier(verified._facts.message))
    remote = trace.get_current_span(context).get_span_context()
    return tracer.start_as_current_span(
        f"process {verified.destination}",
        context=context if trust_parent else None,
        kind=SpanKind.CONSUMER,
        links=[] if trust_parent or not remote.is_valid else [Link(remote)],
        attributes={
            "messaging.destination.name": verified.destination,
            "messaging.operation.type": "process",
            "mqauth.issuer": verified.issuer,
            "mqauth.subject": verified.subject,
        },
    )
