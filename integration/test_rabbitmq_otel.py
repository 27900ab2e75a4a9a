"""The real OpenTelemetry instrumentor of aio-pika around the wrapper, on a real RabbitMQ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from opentelemetry import trace
from opentelemetry.instrumentation.aio_pika import AioPikaInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from pamqp.header import ContentHeader

from integration.services import RabbitMQ
from integration.test_rabbitmq_wrapper import Bench, _bench, until
from mqauth import MalformedMessage, Verified
from mqauth.brokers import rabbitmq as wrapper
from mqauth.brokers.rabbitmq.translate import MAX_HEADER_FRAME

Instrument = Callable[[], None]


@pytest.fixture
async def bench(rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench on the shared broker, its dead-letter queue declared."""
    async with _bench(rabbitmq.url, tmp_path) as bench:
        await bench.letters().declare()
        yield bench


class Spans:
    """What was traced, and how it begins to be."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def instrument(self) -> None:
        """Instrument aio-pika."""
        AioPikaInstrumentor().instrument(tracer_provider=self.provider)

    def traces(self, kind: SpanKind, name: str = "") -> list[int]:
        """Return the trace of each span of a kind that has ended and whose name holds this."""
        found = self._exporter.get_finished_spans()
        return [span.context.trace_id for span in found if span.kind is kind and name in span.name]


@pytest.fixture
def spans() -> Iterator[Spans]:
    """What was traced; aio-pika is as it was afterwards."""
    yield Spans()
    if AioPikaInstrumentor().is_instrumented_by_opentelemetry:
        AioPikaInstrumentor().uninstrument()


@contextmanager
def _around(act: Instrument, *, first: bool) -> Iterator[None]:
    """Instrument before or after what the caller makes."""
    if first:
        act()
    yield
    if not first:
        act()


def _trace_of(native: Any) -> int:
    """Return the trace a message names."""
    return int(native.headers["traceparent"].split("-")[1], 16)


@pytest.mark.parametrize("first", [True, False], ids=["instrumented first", "instrumented later"])
@pytest.mark.parametrize("batch", [1, 4])
async def test_producer(bench: Bench, spans: Spans, batch: int, first: bool) -> None:
    """Each publish has a span, and its message names the trace of its own caller, in a batch too."""
    with _around(spans.instrument, first=first):
        producer = wrapper.Producer(bench.channel.default_exchange, bench.forge.signer(), batch=batch)
    tracer, callers = spans.provider.get_tracer("test"), set[int]()

    async def publish(body: bytes) -> None:
        with tracer.start_as_current_span("caller") as span:
            callers.add(span.get_span_context().trace_id)
            await producer.publish(aio_pika.Message(body), bench.source.name)

    async with producer:
        await asyncio.gather(*(publish(b"%d" % number) for number in range(8)))
    received = [await bench.source.get(no_ack=True) for _ in range(8)]
    assert len(callers) == 8
    assert {_trace_of(native) for native in received} == callers
    assert set(spans.traces(SpanKind.PRODUCER, bench.source.name)) == callers


@pytest.mark.parametrize("first", [True, False], ids=["instrumented first", "instrumented later"])
async def test_consumer(bench: Bench, spans: Spans, first: bool) -> None:
    """A handler runs in the trace its message names, and the delivery has a span."""
    seen: list[int] = []

    async def handler(_: Verified) -> None:
        seen.append(trace.get_current_span().get_span_context().trace_id)

    with _around(spans.instrument, first=first):
        consumer = bench.consumer(handler)
    async with consumer:
        await bench.publish()
        await until(lambda: len(seen) == 1)
        await bench.forge_one()
        await until(lambda: len(spans.traces(SpanKind.CONSUMER)) == 2)
    sent = spans.traces(SpanKind.PRODUCER, "," + bench.source.name)
    assert seen == sent[:1]
    assert spans.traces(SpanKind.CONSUMER)[:1] == seen
    assert await bench.left() == 0


@pytest.mark.parametrize("batch", [1, 4])
async def test_what_a_trace_makes_too_large_is_refused(bench: Bench, spans: Spans, batch: int) -> None:
    """A header frame over its size by the trace's headers alone is not sent: the connection would be closed."""
    spans.instrument()
    producer = wrapper.Producer(bench.channel.default_exchange, bench.forge.signer(), batch=batch)
    sealed = producer.seal(aio_pika.Message(b"", headers={"x": ""}), bench.source.name)
    empty = len(ContentHeader(properties=sealed.properties).marshal())
    largest = {"x": "a" * (MAX_HEADER_FRAME - empty)}
    tracer = spans.provider.get_tracer("test")
    lost = asyncio.Event()
    bench.publishing.close_callbacks.add(lambda *_: lost.set())
    with tracer.start_as_current_span("caller"), pytest.raises(MalformedMessage, match="131064 bytes"):
        await producer.publish(aio_pika.Message(b"", headers=largest), bench.source.name)
    await producer.publish(aio_pika.Message(b"after"), bench.source.name)
    assert not lost.is_set()
    assert await bench.left() == 1
