"""The real OpenTelemetry instrumentor of kafka-python around the wrapper, on a real Kafka."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaConsumer
from opentelemetry.instrumentation.kafka import KafkaInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Tracer

from integration.services import Kafka
from integration.test_kafka_wrapper import Bench
from mqauth import AuditFile, Verified
from mqauth.brokers import kafka as wrapper
from mqauth.telemetry import traced
from mqauth.testing.stage_kafka import KafkaStage, wait_until

CALLERS = 8


@pytest.fixture
def bench(kafka: Kafka, tmp_path: Path) -> Iterator[Bench]:
    """A bench with a source of one partition."""
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        bench = Bench(KafkaStage(kafka.url), audit)
        yield bench
        for client in bench.clients:
            client.close()
        bench.stage.close()


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """What was traced."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> Iterator[TracerProvider]:
    """What traces; kafka-python is as it was afterwards."""
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    yield provider
    if KafkaInstrumentor().is_instrumented_by_opentelemetry:
        KafkaInstrumentor().uninstrument()


def _trace_of(headers: Any) -> int:
    """Return the trace a message names."""
    return int(dict(headers)["traceparent"].decode().split("-")[1], 16)


def _sent(producer: wrapper.Producer, topic: str, tracer: Tracer) -> set[int]:
    """Send from threads, each in a span of its own, and return their traces."""
    callers: set[int] = set()

    def send(number: int) -> None:
        with tracer.start_as_current_span("caller") as span:
            producer.send(topic, b"%d" % number)
            callers.add(span.get_span_context().trace_id)

    threads = [threading.Thread(target=send, args=(number,)) for number in range(CALLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    producer.flush()
    return callers


@pytest.mark.parametrize("first", [True, False], ids=["instrumented first", "instrumented later"])
@pytest.mark.parametrize("batch", [1, 4])
def test_producer(
    bench: Bench, provider: TracerProvider, exporter: InMemorySpanExporter, batch: int, first: bool
) -> None:
    """Each send has a span, and its record names the trace of its own caller, in a batch too; all hold."""
    if first:
        KafkaInstrumentor().instrument(tracer_provider=provider)
    producer = bench.producer(batch=batch, linger=5)
    if not first:
        KafkaInstrumentor().instrument(tracer_provider=provider)
    producer.send(bench.stage.topic, b"the first to a topic goes alone").get(timeout=30)
    callers = _sent(producer, bench.stage.topic, provider.get_tracer("test"))
    seen: list[int] = []
    tracer = provider.get_tracer("ours")

    def handler(verified: Verified) -> None:
        bench.handled.append(verified.body)
        seen.append(_trace_of(verified.native.headers))

    with bench.consumer(traced(handler, tracer)):
        wait_until(lambda: len(bench.handled) == CALLERS + 1)
    assert len(callers) == CALLERS
    assert set(seen[1:]) == callers
    spans = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.PRODUCER]
    assert {span.context.trace_id for span in spans[1:]} == callers
    handling = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.CONSUMER]
    assert [span.context.trace_id for span in handling] == seen


def test_the_instrumentor_sees_no_poll(bench: Bench, provider: TracerProvider) -> None:
    """It wraps a consumer's ``__next__`` alone: where this fails, ``traced`` is needed no more for a span."""
    own = KafkaConsumer.poll
    KafkaInstrumentor().instrument(tracer_provider=provider)
    assert KafkaConsumer.poll is own
