"""The wrapper of kafka-python on a real Kafka: slow handlers, producers, traces, signed answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaConsumer, TopicPartition
from kafka.errors import MessageSizeTooLargeError
from opentelemetry.instrumentation.kafka import KafkaInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, Tracer

from integration.client_bench import ClientBench
from integration.services import Kafka
from mqauth import Pipeline, Verified
from mqauth.brokers import kafka as wrapper
from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.flow import Attempts
from mqauth.telemetry import traced
from mqauth.testing.stage_kafka import wait_until


class Bench(ClientBench):
    """A source of one partition, and what is closed in the end."""

    def guard(self, **settings: Any) -> Pipeline:
        """Return a pipeline that tries a handler twice."""
        return super().guard(attempts=Attempts(limit=2, wait=0, wait_max=0), **settings)

    def producer(self, **settings: Any) -> wrapper.Producer:
        """Return a wrapped producer."""
        return wrapper.Producer(self.stage._client, self.forge.signer(), **settings)

    def keep(self, client: Any) -> Any:
        """Have a client closed at the end."""
        self.ending.callback(client.close)
        return client

    def consumer(
        self, handler: Callable[[Verified], Any] | None = None, /, **settings: Any
    ) -> wrapper.Consumer:
        """Return a wrapped consumer; ``client`` holds settings of the client's own."""
        client = self.keep(self.stage.consumer(**settings.pop("client", {})))
        letters = wrapper.DeadLetters(
            self.keep(self.stage.dead_letter_client()), self.stage.dead, timeout=5
        )
        wanted: dict[str, Any] = {
            "dead_letters": letters,
            "backoff": wrapper.Backoff(first=0.1, longest=1),
        }
        return wrapper.Consumer(
            client, self.guard(), handler or self.handle, **(wanted | settings)
        )


@pytest.fixture
def bench(kafka: Kafka, tmp_path: Path) -> Iterator[Bench]:
    """A fresh bench."""
    bench = Bench(kafka, tmp_path)
    with bench.ending:
        yield bench


def test_a_response_that_has_just_come(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A response that lands between the client's two looks is delivered by that very poll, without a sleep."""
    bench.send(b"0")
    place, client = (
        TopicPartition(bench.stage.topic, 0),
        bench.keep(bench.stage.consumer()),
    )
    while not client.assignment():
        kafka_repair.before_poll(client)
        client.poll(timeout_ms=50)
    client.seek(place, 0)
    fetcher, slept = client._fetcher, list[float]()
    wait_until(
        lambda: bool(fetcher.send_fetches() is not None and fetcher._completed_fetches)
    )
    look = fetcher.fetched_records

    def too_early(*_: Any, **__: Any) -> tuple[dict[Any, Any], bool]:
        monkeypatch.setattr(fetcher, "fetched_records", look)
        return {}, False

    monkeypatch.setattr(fetcher, "fetched_records", too_early)
    monkeypatch.setattr(
        "kafka.consumer.group.time",
        SimpleNamespace(sleep=slept.append, monotonic=time.monotonic),
    )
    kafka_repair.before_poll(client)
    assert [record.value for record in client.poll(timeout_ms=30_000)[place]] == [b"0"]
    assert slept == []


def test_slow_handler(bench: Bench) -> None:
    """A handler longer than ``max_poll_interval_ms`` keeps its partition, and its record is handled once."""
    bench.send(b"slow", b"next")
    slow = threading.Event()

    def handler(verified: Verified) -> None:
        if verified.body == b"slow":
            slow.wait(timeout=4)
        bench.handle(verified)

    client = {
        "max_poll_interval_ms": 1500,
        "session_timeout_ms": 6000,
        "heartbeat_interval_ms": 300,
    }
    with bench.consumer(handler, client=client) as consumer:
        wait_until(lambda: len(bench.handled) >= 2 or consumer.failed)
    assert bench.handled == [b"slow", b"next"]
    assert bench.committed() == 2


def test_poisoned_producer(bench: Bench) -> None:
    """One record refused for good poisons an idempotent producer; we say so instead of sending into the void."""
    small = bench.stage.topic + ".small"
    bench.stage.create(small, config={"max.message.bytes": "2000"})
    client = bench.keep(type(bench.stage._client)(bootstrap_servers=bench.stage.servers))
    producer = wrapper.Producer(client, bench.forge.signer())
    future: Any = producer.send(small, b"x" * 5000, b"k")
    with pytest.raises(MessageSizeTooLargeError):
        future.get(timeout=30)
    with pytest.raises(wrapper.ProducerFatalError, match="MessageSizeTooLargeError"):
        producer.send(bench.stage.topic, b"small", b"k")
    bench.stage.admin.delete_topics([small])


CALLERS = 8


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


@pytest.mark.parametrize(
    "first", [True, False], ids=["instrumented first", "instrumented later"]
)
@pytest.mark.parametrize("batch", [1, 4])
def test_a_send_has_a_span(
    bench: Bench,
    provider: TracerProvider,
    exporter: InMemorySpanExporter,
    batch: int,
    first: bool,
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
    spans = [
        span for span in exporter.get_finished_spans() if span.kind is SpanKind.PRODUCER
    ]
    assert {span.context.trace_id for span in spans[1:]} == callers
    handling = [
        span for span in exporter.get_finished_spans() if span.kind is SpanKind.CONSUMER
    ]
    assert [span.context.trace_id for span in handling] == seen


def test_the_instrumentor_sees_no_poll(bench: Bench, provider: TracerProvider) -> None:
    """It wraps a consumer's ``__next__`` alone: where this fails, ``traced`` is needed no more for a span."""
    own = KafkaConsumer.poll
    KafkaInstrumentor().instrument(tracer_provider=provider)
    assert KafkaConsumer.poll is own


def _ask(bench: Bench, topic: str) -> None:
    """Send a request for an answer to a topic."""
    sent: Any = bench.producer().send(
        bench.stage.topic, b"ping", b"k", [("reply-to", topic.encode())]
    )
    sent.get(timeout=30)


def _replies(bench: Bench, **settings: Any) -> wrapper.Producer:
    """Return a producer that does not wait long."""
    return wrapper.Producer(
        bench.keep(bench.stage.dead_letter_client(**settings)), bench.forge.signer()
    )


@pytest.mark.parametrize("known", [False, True], ids=["when sent", "when awaited"])
def test_broker_out_of_reach(bench: Bench, kafka: Kafka, known: bool) -> None:
    """A handler whose answer cannot be sent is put off, and not failed, until the broker can be reached again."""
    replies = _replies(
        bench, max_block_ms=500, request_timeout_ms=2000, delivery_timeout_ms=3000
    )
    if known:
        assert replies.client.partitions_for(bench.stage.dead)
    _ask(bench, bench.stage.dead)
    came, away = threading.Event(), threading.Event()

    def handler(verified: Verified) -> None:
        came.set()
        away.wait(30)
        verified.reply(b"pong").get(timeout=1)

    with bench.consumer(handler, replies=replies) as consumer:
        assert came.wait(30)
        kafka.pause()
        away.set()
        wait_until(lambda: consumer.health().cause is not None or _rejected(bench))
        kafka.resume()
        wait_until(lambda: bool(bench.stage.letters()) and not consumer.health().stalls)
    assert not _rejected(bench)


@pytest.mark.parametrize("topic", ["no-such-topic", "no topic's name"])
def test_no_such_topic(bench: Bench, topic: str) -> None:
    """An answer to a topic that does not exist is the handler's failure, and holds no partition for ever."""
    replies = _replies(bench, max_block_ms=1000)
    _ask(bench, topic)
    with bench.consumer(
        lambda verified: verified.reply(b"pong").get(timeout=30), replies=replies
    ):
        wait_until(lambda: _rejected(bench))
        wait_until(lambda: bool(bench.stage.letters()))
    (letter,) = bench.stage.letters()
    assert letter.occurrences("mqauth-dead-reason") == (b"handler_failed",)


def _rejected(bench: Bench) -> bool:
    """Tell whether a request was rejected: its record is written before its letter."""
    return b"handler_failed" in bench.audit.path.read_bytes()
