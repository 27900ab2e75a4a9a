"""Metrics and spans through the OpenTelemetry API; those of an authority are in ``telemetry.authority``.

The API alone is imported: without an SDK in the process, metrics and spans cost almost nothing.

The number of label values is bounded, because an attacker may choose what a message says: reasons and causes are
closed enums, destinations beyond a limit become ``other``, and neither kid nor jti is ever a label. For the same
reason the trace headers of a message have no influence on its verdict: no token covers them, and whoever may write
to the broker can forge them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime, time, timedelta
from functools import partial
from typing import Any, Final

from mqauth.errors import needs_extra

with needs_extra("otel"):
    from opentelemetry import metrics, trace
    from opentelemetry.propagate import get_global_textmap

from mqauth._version import __version__
from mqauth.audit.misuse import Alert
from mqauth.clock import SYSTEM_CLOCK
from mqauth.delivery.health import Health
from mqauth.flow import is_async, settled
from mqauth.judging.observing import days_left, ends
from mqauth.judging.pipeline import Handler, Outcome, Verdict
from mqauth.judging.rollout import Rollout
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Verifier
from mqauth.telemetry.authority import AUTHORITY_METRICS, AuthorityTelemetry, gauges
from mqauth.wire.destination import is_kafka
from mqauth.wire.message import Message, fold

__all__ = ["METRICS", "AuthorityTelemetry", "Telemetry", "traced"]
MAX_DESTINATIONS: Final = 100
_GAUGES: Final = {
    "mqauth.deferred": (
        "{message}",
        "Messages that wait because something is out of reach",
    ),
    "mqauth.stalled": ("s", "How long the oldest of them waits"),
    "mqauth.key_set.age": ("s", "Age of the key set in use"),
    "mqauth.issuer.ends": (
        "s",
        "Time until the day of a direct issuer is over; negative once it is overdue",
    ),
    "mqauth.identity.expires": (
        "s",
        "Time until the identity of a producer ends; 0 where it signs nothing",
    ),
    "mqauth.policy.failing": (
        "s",
        "How long a policy from outside has not answered; 0 while it does",
    ),
    "mqauth.replay.size": ("{id}", "Ids in the replay store"),
    "mqauth.replay.losses": (
        "{loss}",
        "How often the replay store has lost its memory since the process began",
    ),
    "mqauth.dead_letters.open": ("{message}", "Dead letters that nobody has reviewed"),
    "mqauth.dead_letters.oldest": ("s", "How long the oldest of them lies there"),
    "mqauth.rollout.rung": (
        "{rung}",
        "Rung of destinations: 0 off, 1 observe, 2 enforce",
    ),
    "mqauth.rollout.days_left": (
        "{day}",
        "Days until a rung or an exemption ends; negative once it is overdue",
    ),
    "mqauth.rollout.aliases": (
        "{destination}",
        "Destinations whose messages are accepted where they were not signed for",
    ),
}
METRICS: Final = (
    "mqauth.messages",
    "mqauth.judge.duration",
    "mqauth.alerts",
    *_GAUGES,
    "messaging.process.duration",
    *AUTHORITY_METRICS,
)
"""All metrics of this module; the dashboard and the alert rules name these and no others."""


class Telemetry:
    """Counts verdicts and alerts, and measures the health of consumers, key sources and replay stores.

    Pass ``observe`` to ``Pipeline(observers=[...])`` and ``alert`` to ``MisuseWatch(on_alert=...)``.

    Args:
        meter: by default a meter of the global provider.
        destinations: destinations that have a label of their own from the start. A hundred more get one when they
            first appear, half of these only from verified messages. All others count as ``other``.
        now: returns UTC seconds; by default the machine's clock.
    """

    def __init__(
        self,
        meter: metrics.Meter | None = None,
        *,
        destinations: Iterable[str] = (),
        now: Callable[[], float] | None = None,
    ) -> None:
        meter = meter or metrics.get_meter("mqauth", __version__)
        self._now = now or SYSTEM_CLOCK.now
        self._destinations = set(destinations)
        self._most = len(self._destinations) + MAX_DESTINATIONS
        self._lock = threading.Lock()
        self._messages = meter.create_counter(
            "mqauth.messages", unit="{message}", description="Verdicts on deliveries"
        )
        self._alerts = meter.create_counter(
            "mqauth.alerts", unit="{alert}", description="Misuse alerts by kind"
        )
        self._duration = meter.create_histogram(
            "mqauth.judge.duration",
            unit="s",
            description="Time of a verdict, without handler and dead letter",
            explicit_bucket_boundaries_advisory=(
                0.00005,
                0.0001,
                0.00025,
                0.0005,
                0.001,
                0.0025,
                0.005,
                0.01,
                0.05,
                0.25,
                1.0,
                5.0,
            ),
        )
        self._handling = meter.create_histogram(
            "messaging.process.duration",
            unit="s",
            description="Time of a handler",
            # Those of OpenTelemetry's conventions for messaging.
            explicit_bucket_boundaries_advisory=(
                0.005,
                0.01,
                0.025,
                0.05,
                0.075,
                0.1,
                0.25,
                0.5,
                0.75,
                1.0,
                2.5,
                5.0,
                7.5,
                10.0,
            ),
        )
        self.consumers: dict[str, Callable[[], Any]] = {}
        """``health`` of each consumer that is watched, for probes."""
        self._watch = gauges(meter, _GAUGES)

    def observe(self, outcome: Outcome, message: Message, _seconds: float) -> None:
        """Count one outcome of ``Pipeline.process``."""
        cause = outcome.cause if outcome.verdict is Verdict.DEFERRED else outcome.reason
        would = (
            None
            if outcome.unverified is None or cause is not None
            else outcome.unverified.would
        )
        self._messages.add(
            1,
            {
                "verdict": outcome.verdict.value,
                "reason": cause.value
                if cause is not None
                else ""
                if would is None
                else would.code,
                "destination": self._bounded(
                    message.destination, verified=outcome.verified is not None
                ),
            },
        )
        if outcome.judge_seconds is not None:
            self._duration.record(
                outcome.judge_seconds, {"verdict": outcome.verdict.value}
            )

    def alert(self, alert: Alert) -> None:
        """Count one misuse alert."""
        self._alerts.add(1, {"kind": alert.kind})

    def watch_consumer(self, name: str, health: Callable[[], Health]) -> None:
        """Measure how many deliveries a consumer holds, and for how long.

        Args:
            name: the label ``consumer``.
            health: the consumer's method of that name.
        """
        self.consumers[name] = health
        self._watch("mqauth.deferred", lambda: health().deferred, consumer=name)
        self._watch(
            "mqauth.stalled",
            lambda: (
                0.0
                if (since := health().stalled_since) is None
                else max(0.0, self._now() - since)
            ),
            consumer=name,
        )

    def watch_keys(self, issuer: str, age: Callable[[], float | None]) -> None:
        """Measure the age of an issuer's key set.

        Args:
            issuer: the label ``issuer``.
            age: returns the age of the set in use in seconds, ``None`` where there is no set; for a ``JWKS`` it
                is ``lambda: jwks.health().age``, as for a ``JWKSFile``.
        """
        self._watch("mqauth.key_set.age", age, issuer=issuer)

    def watch_issuers(self, verifier: Verifier) -> None:
        """Measure how long the direct issuers that have an ``until`` still count, with the label ``issuer``."""
        for issuer, until in verifier.ends.items():
            # The day itself still counts, as it does for ``days_left``.
            over = datetime.combine(until + timedelta(days=1), time(), UTC).timestamp()
            self._watch(
                "mqauth.issuer.ends",
                partial(lambda end: end - self._now(), over),
                issuer=issuer,
            )

    def watch_identity(self, health: Callable[[], Any]) -> None:
        """Measure how long a producer's identity still lasts, with the label ``subject``.

        Args:
            health: of the ``IdentityKey``; in a configuration it is ``config.identity.health``.
        """
        self._watch(
            "mqauth.identity.expires",
            lambda: health().expires_in or 0.0,
            subject=health().subject,
        )

    def watch_policy(self, name: str, health: Callable[[], Any]) -> None:
        """Measure for how long a policy from outside has not answered.

        Args:
            name: the label ``policy``.
            health: the method of that name, of ``OPA`` for example.
        """
        self._watch("mqauth.policy.failing", lambda: health().failing_for, policy=name)

    def watch_store(self, name: str, size: Callable[[], int]) -> None:
        """Measure the size of a replay store.

        Args:
            name: the label ``store``.
            size: returns the number of ids in the store, as ``MemoryReplayStore.__len__`` does.
        """
        self._watch("mqauth.replay.size", size, store=name)

    def watch_losses(self, name: str, losses: Callable[[], int]) -> None:
        """Measure how often a replay store has lost its memory.

        Args:
            name: the label ``store``.
            losses: returns the number; of a store on Redis or in a file it is ``lambda: store.losses``.
        """
        self._watch("mqauth.replay.losses", losses, store=name)

    def watch_dead_letters(
        self,
        name: str,
        open_: Callable[[], float | None],
        oldest: Callable[[], float | None] | None = None,
    ) -> None:
        """Measure how many dead letters wait for a review, and for how long.

        Args:
            name: the label ``queue``: the dead-letter queue or topic.
            open_: returns their number; of a queue of RabbitMQ a passive declaration tells it.
            oldest: returns the age of the oldest in seconds, where that is known.
        """
        self._watch("mqauth.dead_letters.open", open_, queue=name)
        if oldest is not None:
            self._watch("mqauth.dead_letters.oldest", oldest, queue=name)

    def watch_rollout(
        self, rollout: Rollout | None, verifier: Verifier | None = None
    ) -> None:
        """Measure the rungs of a pipeline's ``rollout`` and the days left, with the label ``destination``.

        Args:
            rollout: of the pipeline.
            verifier: of the pipeline; with it, how many destinations each alias accepts, too.
        """
        for alias in () if verifier is None else verifier.aliases.values():
            self._watch(
                "mqauth.rollout.aliases",
                partial(float, len(alias.signed_for)),
                destination=alias.at,
            )
        if rollout is None:
            return
        for entry in rollout.entries:
            for destination in entry.destinations:
                self._watch(
                    "mqauth.rollout.rung",
                    partial(int, entry.rung),
                    destination=destination,
                )
        for places, until in ends(rollout):
            self._watch(
                "mqauth.rollout.days_left",
                partial(lambda until: days_left(until, self._now()), until),
                destination=places,
            )

    def timed(self, handler: Handler) -> Handler:
        """Return a handler whose time is measured as ``messaging.process.duration``; of the same kind as it is."""

        @contextmanager
        def timing(verified: Verified) -> Iterator[None]:
            began, labels = SYSTEM_CLOCK.monotonic(), _said(verified)
            labels["messaging.destination.name"] = self._bounded(
                verified.destination, verified=True
            )
            try:
                yield
            except BaseException as error:
                labels["error.type"] = type(error).__qualname__
                raise
            finally:
                self._handling.record(SYSTEM_CLOCK.monotonic() - began, labels)

        return _within(handler, timing)

    def _bounded(self, destination: str, *, verified: bool) -> str:
        """Return the label of a destination, ``other`` once too many have a label of their own."""
        # A forgery names any destination it likes: forgeries may use up half of the labels, and no more.
        most = self._most if verified else self._most - MAX_DESTINATIONS // 2
        with self._lock:
            if len(self._destinations) < most:
                self._destinations.add(destination)
            return destination if destination in self._destinations else "other"


def traced(
    handler: Handler, tracer: trace.Tracer | None = None, *, trust_parent: bool = True
) -> Handler:
    """Return a handler that runs within a span named after the destination of its message.

    Args:
        handler: synchronous or asynchronous; the returned handler is of the same kind.
        tracer: by default a tracer of the global provider.
        trust_parent: continue the trace that the message names. ``False`` starts a new trace that links to it.
    """
    tracer = tracer or trace.get_tracer("mqauth", __version__)

    def span(verified: Verified) -> Any:
        # The headers of the message that the configured propagator reads, as text; no others are looked at.
        propagator = get_global_textmap()
        fields = {fold(name): name for name in propagator.fields}
        headers = {
            fields[fold(name)]: value.decode("ascii", "replace")
            if isinstance(value, bytes)
            else value
            for name, value in verified._facts.message.headers
            if fold(name) in fields and isinstance(value, str | bytes)
        }
        context = propagator.extract(headers)
        remote = trace.get_current_span(context).get_span_context()
        # What is said of the message are verified facts, and where the broker had it.
        origin, body = verified.origin, verified.body
        name = verified.destination.partition(":")[2]
        name = name if is_kafka(verified.destination) else name.replace("/", ":", 1)
        broker = {
            "messaging.message.body.size": None if body is None else len(body),
            "messaging.rabbitmq.destination.routing_key": origin.routing_key,
            "messaging.destination.partition.id": None
            if origin.partition is None
            else str(origin.partition),
            "messaging.kafka.offset": origin.offset,
            "messaging.kafka.message.tombstone": True
            if body is None and origin.offset is not None
            else None,
        }
        return tracer.start_as_current_span(
            f"process {name}",
            context=context if trust_parent else None,
            kind=trace.SpanKind.CONSUMER,
            links=[] if trust_parent or not remote.is_valid else [trace.Link(remote)],
            attributes={
                **_said(verified),
                **{key: value for key, value in broker.items() if value is not None},
                "messaging.destination.name": name,
                "mqauth.issuer": verified.issuer,
                "mqauth.subject": verified.subject,
            },
        )

    return _within(handler, span)


def _within(
    handler: Handler, entered: Callable[[Verified], AbstractContextManager[Any]]
) -> Handler:
    """Return a handler that runs within what is entered for its message; it is of the same kind."""

    async def run_async(verified: Verified) -> Any:
        with entered(verified):
            return await settled(handler(verified))

    def run(verified: Verified) -> Any:
        with entered(verified):
            return handler(verified)

    return run_async if is_async(handler) else run


def _said(verified: Verified) -> dict[str, Any]:
    """Return what OpenTelemetry's conventions say of processing a message, without its destination."""
    on_kafka, group = is_kafka(verified.destination), verified.origin.scope
    return {
        "messaging.system": "kafka" if on_kafka else "rabbitmq",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        **(
            {"messaging.consumer.group.name": group}
            if on_kafka and group is not None
            else {}
        ),
    }
