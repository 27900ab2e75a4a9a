"""Metrics, spans and redaction: bounded labels, names that dashboards and alerts share, no token in any log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import messaging_attributes
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

import mqauth.telemetry as telemetry_module
from mqauth import Message, Reason, Unavailable, Verdict
from mqauth.audit.file import AuditFile
from mqauth.audit.misuse import Alert
from mqauth.audit.redaction import REDACTED, RedactTokens, redact_logging
from mqauth.errors import Cause, ConfigurationError
from mqauth.judging.pipeline import Outcome, Pipeline
from mqauth.replay.memory import MemoryReplayStore
from mqauth.telemetry import MAX_DESTINATIONS, METRICS, Telemetry, traced
from mqauth.telemetry.prometheus import Endpoint
from mqauth.testing import FakeClock, Forge, MemoryStage, verified
from mqauth.testing.token_attacks import honest_message
from tests.opa_agent import Agent

DOCS = Path(__file__).parent.parent / "docs" / "observability"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Meter:
    """Telemetry on a provider of its own, whose points can be read.

    Args:
        kind: of the telemetry.
        settings: of it.
    """

    def __init__(self, kind: type[Any] = Telemetry, **settings: Any) -> None:
        self.reader = InMemoryMetricReader()
        self.telemetry = kind(MeterProvider([self.reader]).get_meter("test"), **settings)

    def points(self, name: str) -> dict[tuple[tuple[str, Any], ...], Any]:
        """Return the points of a metric by their labels."""
        data = self.reader.get_metrics_data()
        found = [
            metric
            for resource in (data.resource_metrics if data else ())
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
        ]
        return {
            tuple(sorted(dict(point.attributes or {}).items())): point
            for metric in found
            for point in metric.data.data_points
        }


@pytest.fixture
def meter() -> Meter:
    """Telemetry at a time that stands still."""
    return Meter(now=FakeClock().now)


def outcome(verdict: Verdict = Verdict.REJECTED, **fields: Any) -> Outcome:
    """Return an outcome."""
    return Outcome(verdict=verdict, **fields)


def message(place: str = "kafka:orders") -> Message:
    """Return a message for a destination."""
    return Message(destination=place, body=b"")


def test_verdicts_are_counted(meter: Meter) -> None:
    """Each outcome counts once, under its verdict, reason or cause, and destination."""
    meter.telemetry.observe(outcome(reason=Reason.EXPIRED), message(), 0.0)
    meter.telemetry.observe(
        outcome(Verdict.DEFERRED, cause=Cause.KEY_PENDING), message(), 0.0
    )
    meter.telemetry.observe(outcome(Verdict.ACCEPTED), message(), 0.0)
    points = meter.points("mqauth.messages")
    found = {
        tuple(value for _, value in labels): point.value
        for labels, point in points.items()
    }
    assert found == {
        ("kafka:orders", "expired", "rejected"): 1,
        ("kafka:orders", "key_pending", "deferred"): 1,
        ("kafka:orders", "", "accepted"): 1,
    }


def test_judge_time(meter: Meter) -> None:
    """The time of a verdict is recorded where it was measured."""
    meter.telemetry.observe(outcome(judge_seconds=0.002), message(), 9.0)
    meter.telemetry.observe(outcome(), message(), 9.0)
    (point,) = meter.points("mqauth.judge.duration").values()
    assert (point.count, point.sum) == (1, 0.002)


def test_destinations_are_bounded(meter: Meter) -> None:
    """Random routing keys of an attacker make no more than fifty labels and ``other``."""
    telemetry = Telemetry(
        MeterProvider().get_meter("other"), destinations=["kafka:orders"]
    )
    seen = {
        telemetry._bounded(f"rabbitmq:x/{number}", verified=False)
        for number in range(1000)
    }
    assert len(seen) == MAX_DESTINATIONS // 2 + 1
    assert telemetry._bounded("kafka:orders", verified=False) == "kafka:orders"


def test_forgeries_leave_room_for_honest_destinations(meter: Meter) -> None:
    """After a flood over random destinations a verified message still has a label of its own, up to a hundred."""
    telemetry = Telemetry(MeterProvider().get_meter("other"))
    for number in range(1000):
        telemetry._bounded(f"rabbitmq:x/{number}", verified=False)
    honest = {
        telemetry._bounded(f"rabbitmq:shop/{number}", verified=True)
        for number in range(1000)
    }
    assert len(honest) == MAX_DESTINATIONS // 2 + 1


def test_one_broken_gauge_leaves_the_others(
    meter: Meter, caplog: pytest.LogCaptureFixture
) -> None:
    """A measurement that raises is logged and the next is still read."""

    def broken() -> float:
        raise OSError

    meter.telemetry.watch_keys("https://down.example", broken)
    meter.telemetry.watch_keys("https://auth.example", lambda: 0.0)
    assert [point.value for point in meter.points("mqauth.key_set.age").values()] == [0]
    assert "a gauge could not be read: OSError" in caplog.text


NOW = FakeClock().now()


@pytest.mark.parametrize(
    ("watch", "shown"),
    [
        (lambda told: told.watch_consumer("billing", lambda: SimpleNamespace(deferred=2, stalled_since=NOW - 30)),
         {"deferred": {"billing": 2}, "stalled": {"billing": 30}}),
        (lambda told: told.watch_consumer("idle", lambda: SimpleNamespace(deferred=0, stalled_since=None)),
         {"deferred": {"idle": 0}, "stalled": {"idle": 0}}),
        (lambda told: told.watch_keys("warm", lambda: 100.0), {"key_set.age": {"warm": 100}}),
        (lambda told: told.watch_keys("cold", lambda: None), {"key_set.age": {}}),
        (lambda told: told.watch_store("memory", MemoryReplayStore().__len__), {"replay.size": {"memory": 0}}),
        (lambda told: told.watch_losses("redis", lambda: 1), {"replay.losses": {"redis": 1}}),
        (lambda told: told.watch_policy("opa", Agent().opa().health), {"policy.failing": {"opa": 0}}),
        (lambda told: told.watch_dead_letters("orders.dead", lambda: 3, lambda: 60.0),
         {"dead_letters.open": {"orders.dead": 3}, "dead_letters.oldest": {"orders.dead": 60}}),
        (lambda told: told.watch_dead_letters("other.dead", lambda: None),
         {"dead_letters.open": {}, "dead_letters.oldest": {}}),
        (lambda told: told.watch_identity(lambda: SimpleNamespace(subject="a", expires_in=1800.0)),
         {"identity.expires": {"a": 1800}}),
        (lambda told: told.watch_identity(lambda: SimpleNamespace(subject="a", expires_in=None)),
         {"identity.expires": {"a": 0}}),
    ],
    ids=["waiting", "idle", "keys", "no keys", "store", "losses", "policy", "letters", "no letters", "identity",
         "lapsed"],
)  # fmt: skip
def test_gauges(
    watch: Callable[[Telemetry], None], shown: dict[str, Any], meter: Meter
) -> None:
    """What is watched is read when metrics are collected; what is not known has no point, a lapsed identity 0."""
    watch(meter.telemetry)
    found = {name: meter.points(f"mqauth.{name}").items() for name in shown}
    assert {
        name: {labels[0][1]: p.value for labels, p in points}
        for name, points in found.items()
    } == shown


def test_alerts_are_counted(meter: Meter) -> None:
    """Misuse alerts are counted by kind, never by kid or jti."""
    meter.telemetry.alert(Alert(kind="burst", about={"kid": "k"}, count=3, time=0))
    (labels,) = meter.points("mqauth.alerts")
    assert labels == (("kind", "burst"),)


def test_pipeline_feeds_the_metrics(meter: Meter, tmp_path: Path) -> None:
    """A pipeline with the observer counts every message it settles, and times each verdict."""
    stage, forge = MemoryStage(), Forge()
    stage.produce(forge.signer(), honest_message(stage.destination))
    stage.inject(honest_message(stage.destination))
    with AuditFile(tmp_path / "audit") as audit:
        guard = Pipeline(
            verifier=forge.verifier(), policy=forge.policy(stage.destination), replay=MemoryReplayStore(),
            audit=audit, observers=[meter.telemetry.observe],
        )  # fmt: skip
        stage.consume(guard, lambda _: None, until=lambda: len(stage.letters()) == 1)
    assert sum(point.value for point in meter.points("mqauth.messages").values()) == 2
    assert (
        sum(point.count for point in meter.points("mqauth.judge.duration").values()) == 2
    )


def spans() -> tuple[TracerProvider, InMemorySpanExporter]:
    """Return a tracer provider and where its spans end up."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


@pytest.mark.parametrize("value", [TRACEPARENT, TRACEPARENT.encode()])
@pytest.mark.parametrize("trusted", [True, False])
def test_trace_is_continued_or_linked(value: str | bytes, trusted: bool) -> None:
    """The span continues the trace a message names, or links to it where that is not wanted."""
    provider, exporter = spans()
    place = "kafka:orders" if isinstance(value, bytes) else "rabbitmq:shop/orders"
    message_ = verified(destination=place, headers=[("traceparent", value)])
    traced(lambda _: None, provider.get_tracer("test"), trust_parent=trusted)(message_)
    (span,) = exporter.get_finished_spans()
    remote = 0x0AF7651916CD43DD8448EB211C80319C
    assert (span.context.trace_id == remote) is trusted
    assert [link.context.trace_id for link in span.links] == ([] if trusted else [remote])
    assert (span.attributes or {})["mqauth.subject"] == "orders-api"


def test_attributes_are_the_conventions() -> None:
    """A span says system, operation, destination and place by OpenTelemetry's names."""
    provider, exporter = spans()
    for place in ("kafka:orders", "rabbitmq:shop/orders.created"):
        traced(lambda _: None, provider.get_tracer("test"))(
            verified(destination=place, body=b"12")
        )
    kafka, rabbit = (
        {**(span.attributes or {})} for span in exporter.get_finished_spans()
    )
    names = {name for name in vars(messaging_attributes) if name.isupper()}
    known = {getattr(messaging_attributes, name) for name in names}
    assert {name for name in (*kafka, *rabbit) if name.startswith("messaging.")} <= known
    assert (kafka["messaging.system"], kafka["messaging.destination.name"]) == (
        "kafka",
        "orders",
    )
    assert (rabbit["messaging.system"], rabbit["messaging.destination.name"]) == (
        "rabbitmq",
        "shop:orders.created",
    )
    assert (kafka["messaging.operation.name"], kafka["messaging.message.body.size"]) == (
        "process",
        2,
    )
    assert [span.name for span in exporter.get_finished_spans()] == [
        "process orders",
        "process shop:orders.created",
    ]


def test_configured_propagator(monkeypatch: pytest.MonkeyPatch) -> None:
    """The headers of the configured propagator are read, in any case, and no other header of the message."""

    class Mine(TraceContextTextMapPropagator):
        @property
        def fields(self) -> set[str]:
            return {"x-trace"}

        def extract(self, carrier: Any, context: Any = None, getter: Any = None) -> Any:
            assert dict(carrier) == {"x-trace": TRACEPARENT}
            return super().extract({"traceparent": carrier["x-trace"]})

    monkeypatch.setattr(telemetry_module, "get_global_textmap", Mine)
    provider, exporter = spans()
    found = verified(
        destination="kafka:orders",
        headers=[("X-Trace", TRACEPARENT.encode()), ("traceparent", b"0")],
    )
    traced(lambda _: None, provider.get_tracer("test"))(found)
    assert (
        exporter.get_finished_spans()[0].context.trace_id
        == 0x0AF7651916CD43DD8448EB211C80319C
    )


def test_process_duration(meter: Meter) -> None:
    """A timed handler is one point of ``messaging.process.duration``, with the type of its error."""

    def broken(_verified: object) -> None:
        raise ValueError

    meter.telemetry.timed(lambda _: None)(verified())
    with pytest.raises(ValueError):  # noqa: PT011
        meter.telemetry.timed(broken)(verified())
    points = meter.points("messaging.process.duration")
    assert sorted(dict(labels).get("error.type", "") for labels in points) == [
        "",
        "ValueError",
    ]
    assert all(point.count == 1 for point in points.values())


def test_hostile_trace_headers_are_harmless() -> None:
    """Trace headers of nonsense start a new trace and change nothing else."""
    provider, exporter = spans()
    odd = verified(
        destination="kafka:orders",
        headers=[("traceparent", b"\xff" * 99), ("baggage", None)],
    )
    assert traced(lambda _: "done", provider.get_tracer("test"))(odd) == "done"
    assert exporter.get_finished_spans()[0].parent is None


def test_async_handler_is_traced() -> None:
    """An asynchronous handler runs inside its span, and its error marks it and goes on."""
    provider, exporter = spans()

    async def handler(_verified: object) -> None:
        raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        asyncio.run(traced(handler, provider.get_tracer("test"))(verified()))
    assert exporter.get_finished_spans()[0].status.is_ok is False


def test_endpoint_serves_metrics() -> None:
    """The Prometheus endpoint shows the counters under the names that dashboards use."""
    with Endpoint(0) as endpoint:
        endpoint.telemetry.observe(
            outcome(reason=Reason.EXPIRED, judge_seconds=0.1), message(), 0.0
        )
        with urllib.request.urlopen(
            f"http://127.0.0.1:{endpoint.port}/metrics", timeout=10
        ) as answer:
            page = answer.read().decode()
    assert re.search(r'mqauth_messages_total\{.*reason="expired".*\} 1\.0', page)
    assert "mqauth_judge_duration_seconds_bucket" in page


def test_a_silent_connection_is_ended(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A connection that asks nothing holds its thread for some seconds and no longer, and nothing is printed."""
    monkeypatch.setattr("mqauth.telemetry.prometheus.ASKED_WITHIN", 0.05)
    with (
        Endpoint(0) as endpoint,
        socket.create_connection(("127.0.0.1", endpoint.port), timeout=60) as silent,
    ):
        silent.sendall(b"GET ")
        assert silent.recv(1) == b""
    assert capfd.readouterr().err == ""


def test_endpoint_stays_on_loopback() -> None:
    """Another address must be asked for by name."""
    with pytest.raises(ConfigurationError, match="expose"):
        Endpoint(0, host="0.0.0.0")  # noqa: S104


def test_time_until_a_direct_issuer_ends(meter: Meter) -> None:
    """Of a direct issuer with an ``until`` the seconds are told until that day is over, negative after it."""
    today = datetime.fromtimestamp(FakeClock().now(), UTC)
    ends = {"a": today.date(), "b": today.date() - timedelta(days=1)}
    meter.telemetry.watch_issuers(SimpleNamespace(ends=ends))
    midnight = datetime.combine(
        today.date() + timedelta(days=1), datetime.min.time(), UTC
    )
    left = (midnight - today).total_seconds()
    found = {
        labels: point.value
        for labels, point in meter.points("mqauth.issuer.ends").items()
    }
    assert found == {(("issuer", "a"),): left, (("issuer", "b"),): left - 86_400}
    assert left > 0 > left - 86_400


def exported(names: tuple[str, ...]) -> set[str]:
    """Return the Prometheus names of our metrics."""
    timed = (
        "mqauth.judge.duration", "mqauth.stalled", "mqauth.key_set.age", "mqauth.dead_letters.oldest",
        "mqauth.identity.expires",
        "mqauth.policy.failing", "mqauth.issuer.ends", "mqauth.authority.duration", "mqauth.authority.key.age",
        "messaging.process.duration",
    )  # fmt: skip
    units = dict.fromkeys(timed, "_seconds")
    counters = {
        "mqauth.messages",
        "mqauth.alerts",
        "mqauth.authority.requests",
        "mqauth.authority.identities",
    }
    return {
        name.replace(".", "_")
        + units.get(name, "")
        + ("_total" if name in counters else "")
        for name in names
    }


def queried() -> set[str]:
    """Return every metric name that the dashboard and the alert rules ask for."""
    text = (DOCS / "alerts.yml").read_text() + (
        DOCS / "grafana-dashboard.json"
    ).read_text()
    return {
        name.removesuffix("_bucket")
        for name in re.findall(r"\b(?:mqauth|messaging_process)_[a-z_]+\b", text)
    }


def test_dashboard_and_alerts_use_emitted_names() -> None:
    """The files ask for every metric the code emits, and for no other."""
    assert queried() == exported(METRICS)


def test_documented_metrics_are_emitted() -> None:
    """The page has every metric, and no other."""
    page = (DOCS.parent / "reference" / "metrics.md").read_text()
    assert (
        tuple(re.findall(r"^\* `((?:mqauth|messaging)\.[a-z._]+)` ", page, re.MULTILINE))
        == METRICS
    )


def test_dashboard_and_alerts_use_real_reasons() -> None:
    """Every reason an alert rule names is one of the closed set."""
    patterns = re.findall(r'reason=~?"([a-z_|]+)"', (DOCS / "alerts.yml").read_text())
    found = {name for pattern in patterns for name in pattern.split("|")}
    # What was handled has none.
    assert found <= {"", *(reason.value for reason in Reason)}


def test_dashboard_is_json() -> None:
    """The dashboard parses, and each of its panels asks for something."""
    panels = json.loads((DOCS / "grafana-dashboard.json").read_text())["panels"]
    assert all(target["expr"] for panel in panels for target in panel["targets"])


@pytest.fixture
def redacted() -> Iterator[None]:
    """Redaction installed for one test."""
    before = logging.getLogRecordFactory()
    redact_logging()
    redact_logging()
    yield
    logging.setLogRecordFactory(before)


TOKEN = "eyJhbGciOiJFZERTQSJ9.eyJpc3MiOiJpIn0.c2lnbmF0dXJl"


@pytest.mark.usefixtures("redacted")
def test_a_record_without_a_name_is_made() -> None:
    """Receivers of records from elsewhere make one without a name, and name it afterwards."""
    assert logging.makeLogRecord({"name": "shop", "msg": "hello"}).getMessage() == "hello"


@pytest.mark.usefixtures("redacted")
@pytest.mark.parametrize(
    "name", ["aio_pika.exchange", "aiormq.channel", "kafka.producer.kafka", "mqauth.x"]
)
def test_tokens_are_redacted(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A token in the message, in an argument of any type, or in a traceback is replaced."""
    logger = logging.getLogger(name)
    with caplog.at_level(logging.DEBUG, name):
        logger.debug("sent %r and %s", {"mqauth-token": TOKEN}, TOKEN.encode())
        try:
            raise Unavailable(Cause.AUDIT_UNAVAILABLE, TOKEN)
        except Unavailable:
            logger.exception("failed")
    assert "eyJ" not in caplog.text
    assert caplog.text.count(REDACTED) >= 3


@pytest.mark.usefixtures("redacted")
def test_a_key_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    """A kid that holds the first letters of a token by chance is shown; what is longer than a kid is replaced."""
    kid = "eyJ8EHfW7xHWeyJrx_3nVJ0hcd-eRzS0cNmVh4aT5uM"
    logging.getLogger("mqauth.keystore").error(
        "nothing is signed with key %s: sealed, not with %s.", kid, kid
    )
    logging.getLogger("mqauth.keystore").error("cut short: %s", "eyJ" + "a" * 41)
    assert caplog.messages == [
        f"nothing is signed with key {kid}: sealed, not with {kid}.",
        "cut short: <token>",
    ]


@pytest.mark.usefixtures("redacted")
def test_stack_is_redacted(caplog: pytest.LogCaptureFixture) -> None:
    """A token in a stack that a record carries is replaced."""
    logging.getLogger("asyncio").warning(f"never awaited {TOKEN}", stack_info=True)
    assert "eyJ" not in caplog.text


@pytest.mark.usefixtures("redacted")
def test_other_loggers_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Records of other libraries pass as they are, until a filter is attached to their handler."""
    logger = logging.getLogger("somebody.else")
    logger.warning("%s", TOKEN)
    assert TOKEN in caplog.text
    caplog.clear()
    caplog.handler.addFilter(RedactTokens())
    logger.warning("%s", TOKEN)
    assert TOKEN not in caplog.text


@pytest.mark.usefixtures("redacted")
def test_bad_format_is_left_to_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A record whose arguments do not fit raises nothing in the redaction."""
    monkeypatch.setattr(logging, "raiseExceptions", False)
    record = logging.getLogRecordFactory()(
        "kafka", logging.INFO, "file", 1, "%d", ("text",), None
    )
    assert record.args == ("text",)
