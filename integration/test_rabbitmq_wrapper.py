"""The RabbitMQ wrapper on a real broker: publishing, consuming, letters, small frames, traces, answers."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika import exceptions
from aio_pika.abc import AbstractChannel, AbstractQueue, AbstractRobustConnection
from opentelemetry import trace
from opentelemetry.instrumentation.aio_pika import AioPikaInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from pamqp import commands
from pamqp.header import ContentHeader

from integration.chaos.rabbitmq_scene import until
from integration.services import RabbitMQ
from integration.wire import Wire
from mqauth import (
    Allow,
    AuditFile,
    MalformedMessage,
    MemoryReplayStore,
    Message,
    Outcome,
    Pipeline,
    Verdict,
    Verified,
)  # fmt: skip
from mqauth.brokers import rabbitmq as wrapper
from mqauth.brokers.rabbitmq.translate import MAX_HEADER_FRAME
from mqauth.errors import Cause, Reason, Rejection, Unavailable
from mqauth.flow import Attempts
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing.forge import SUBJECT, Forge


@dataclass
class Bench:
    """Two connections, a source queue, a dead-letter queue's name, and what was handled."""

    consuming: AbstractRobustConnection
    publishing: AbstractRobustConnection
    channel: AbstractChannel
    source: AbstractQueue
    dead: str
    audit: AuditFile
    wire: Wire
    forge: Forge = field(default_factory=lambda: Forge(lifetime=600))
    handled: list[bytes] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def destination(self) -> str:
        """The source's destination."""
        return "rabbitmq:/" + self.source.name

    def guard(self, **settings: Any) -> Pipeline:
        """Return a pipeline that trusts the forge on the source."""
        wanted: dict[str, Any] = {
            "verifier": self.forge.verifier(), "policy": Allow({SUBJECT: [self.destination]}),
            "replay": MemoryReplayStore(), "audit": self.audit, "attempts": Attempts(limit=1),
            "observers": [lambda outcome, message, seconds: self.outcomes.append(outcome)],
        }  # fmt: skip
        return Pipeline(**(wanted | settings))

    def letters(self, **settings: Any) -> wrapper.DeadLetters:
        """Return the dead letters."""
        return wrapper.DeadLetters(self.channel, self.dead, **({"timeout": 5} | settings))

    def consumer(
        self, handler: Any = None, guard: Pipeline | None = None, **settings: Any
    ) -> wrapper.Consumer:
        """Return a consumer of the source."""
        wanted: dict[str, Any] = {"dead_letters": self.letters()} | settings
        return wrapper.Consumer(
            self.source, guard or self.guard(), handler or self.handler, **wanted
        )

    async def handler(self, verified: Verified) -> None:
        """Remember what was handled."""
        self.handled.append(verified.body or b"")

    async def publish(self, body: bytes = b"honest", **properties: Any) -> Any:
        """Publish an honest message to the source."""
        producer = wrapper.Producer(self.channel.default_exchange, self.forge.signer())
        return await producer.publish(
            aio_pika.Message(body, **properties), self.source.name
        )

    async def forge_one(self, body: bytes = b"forged", **properties: Any) -> None:
        """Publish a message without a token to the source."""
        await self.channel.default_exchange.publish(
            aio_pika.Message(body, **properties), self.source.name
        )

    async def buried(self) -> list[Message]:
        """Take every dead letter."""
        channel = await self.publishing.channel()
        queue = await channel.get_queue(self.dead, ensure=False)
        found = []
        while (letter := await queue.get(fail=False)) is not None:
            found.append(wrapper.from_native(letter, queue=self.dead))
            await letter.ack()
        await channel.close()
        return found

    async def left(self, queue: str | None = None) -> int:
        """Return how many messages wait at the source, or another queue."""
        channel = await self.publishing.channel()
        declared: Any = await channel.declare_queue(
            queue or self.source.name, passive=True
        )
        await channel.close()
        return int(declared.declaration_result.message_count)


@pytest.fixture
async def bench(rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench on the shared broker, its dead-letter queue declared."""
    async with _bench(rabbitmq.url, tmp_path) as bench:
        await bench.letters().declare()
        yield bench


@asynccontextmanager
async def _bench(url: str, folder: Path) -> AsyncIterator[Bench]:
    """Connect, both ways through a wire that can be cut, and declare the source; at the end delete it all."""
    name = f"mqauth-{uuid.uuid4().hex[:12]}"
    async with Wire(url) as wire:
        consuming = await aio_pika.connect_robust(wire.url, reconnect_interval=0.2)
        publishing = await aio_pika.connect_robust(wire.url, reconnect_interval=0.2)
        source = await wrapper.declare_source(await consuming.channel(), name)
        with AuditFile(folder / "audit.jsonl", fsync=False) as audit:
            yield Bench(
                consuming,
                publishing,
                await publishing.channel(),
                source,
                name + ".dead",
                audit,
                wire,
            )
        await consuming.close()
        await publishing.close()
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        for queue in (name, name + ".unparseable", name + ".dead"):
            await channel.queue_delete(queue)


def text(letter: Message, name: str) -> str:
    """Return one of our headers on a letter."""
    (value,) = letter.occurrences("mqauth-dead-" + name)
    return str(value)


async def test_the_callers_message_is_never_changed(bench: Bench) -> None:
    """Publishing seals a copy, afresh at each call, and returns the broker's ack."""
    message = aio_pika.Message(b"x", headers={"a": [1, {"b": 2.5}]})
    producer = wrapper.Producer(bench.channel.default_exchange, bench.forge.signer())
    for _ in range(2):
        assert isinstance(
            await producer.publish(message, bench.source.name), commands.Basic.Ack
        )
    assert (message.headers, message.message_id) == ({"a": [1, {"b": 2.5}]}, None)
    async with bench.consumer():
        await until(lambda: len(bench.handled) == 2)
    assert [outcome.verdict for outcome in bench.outcomes] == [Verdict.ACCEPTED] * 2
    assert await bench.left() == 0


async def test_values_are_serialized_before_sealing(bench: Bench) -> None:
    """value_serializer runs before sealing and decode after verification: the handler gets the value."""
    seen: list[Any] = []
    producer = wrapper.Producer(
        bench.channel.default_exchange,
        bench.forge.signer(),
        value_serializer=lambda value: repr(value).encode(),
    )
    await producer.publish(["not", "bytes"], bench.source.name)
    async with bench.consumer(
        lambda verified: seen.append(verified.value), decode=lambda body: body.decode()
    ):
        await until(lambda: bool(seen))
    assert seen == ["['not', 'bytes']"]


@pytest.mark.parametrize("raises", [False, True])
async def test_unroutable_is_an_error(bench: Bench, raises: bool) -> None:
    """A mandatory message that no queue takes raises, however the channel was opened."""
    channel = await bench.publishing.channel(on_return_raises=raises)
    producer = wrapper.Producer(channel.default_exchange, bench.forge.signer())
    with pytest.raises(wrapper.UnroutableError) as caught:
        await producer.publish(aio_pika.Message(b""), "nobody-" + bench.source.name)
    assert isinstance(caught.value, exceptions.DeliveryError)
    assert "nobody" not in str(caught.value)
    ack = await producer.publish(
        aio_pika.Message(b""), "nobody-" + bench.source.name, mandatory=False
    )
    assert isinstance(ack, commands.Basic.Ack)


async def test_a_batch_end_to_end(bench: Bench) -> None:
    """Concurrent publishes share tokens; each has its own outcome, and each message is handled by itself."""
    name = bench.source.name
    async with wrapper.Producer(
        bench.channel.default_exchange, bench.forge.signer(), batch=64
    ) as producer:
        keys = ["nobody-" + name if number % 50 == 7 else name for number in range(200)]
        publishing = [
            producer.publish(
                aio_pika.Message(
                    b"%d" % number, message_id="same" if number < 3 else None
                ),
                key,
            )
            for number, key in enumerate(keys)
        ]
        results = await asyncio.gather(*publishing, return_exceptions=True)
    wanted = [
        commands.Basic.Ack if key == name else wrapper.UnroutableError for key in keys
    ]
    assert [type(result) for result in results] == wanted
    places: set[tuple[str, int | None]] = set()

    def handler(verified: Verified) -> None:
        places.add((verified.jti, verified.index))
        bench.handled.append(verified.body or b"")

    async with bench.consumer(handler, prefetch=100):
        await until(lambda: len(bench.handled) == 196)
    assert sorted(map(int, bench.handled)) == [
        number for number, key in enumerate(keys) if key == name
    ]
    assert len(places) == 196
    assert len({jti for jti, _ in places}) <= 10
    assert {outcome.verdict for outcome in bench.outcomes} == {Verdict.ACCEPTED}
    assert (await bench.left(), await bench.buried()) == (0, [])


async def test_a_batch_and_a_lost_connection(bench: Bench) -> None:
    """What is unconfirmed when the connection goes raises, each for itself; the producer goes on after it."""
    producer = wrapper.Producer(
        bench.channel.default_exchange, bench.forge.signer(), batch=64
    )
    tasks = [
        asyncio.create_task(
            producer.publish(aio_pika.Message(b"%d" % number), bench.source.name)
        )
        for number in range(100)
    ]
    await asyncio.sleep(0)
    bench.wire.cut()
    lost = (exceptions.AMQPConnectionError, exceptions.ChannelInvalidStateError)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, (commands.Basic.Ack, *lost)) for result in results)
    async with asyncio.timeout(20):
        await bench.channel.ready()
        await producer.publish(aio_pika.Message(b"after"), bench.source.name)
    async with bench.consumer(prefetch=100):
        await until(lambda: b"after" in bench.handled)
        await until(_waits(bench, 0))
    confirmed = {
        b"%d" % number
        for number, result in enumerate(results)
        if isinstance(result, commands.Basic.Ack)
    }
    assert confirmed <= set(bench.handled)


async def test_run_ends_when_its_queue_is_missing(bench: Bench) -> None:
    """A queue that does not exist is an error at the start, not a silence."""
    channel = await bench.consuming.channel()
    bench.source = await channel.get_queue("missing-" + bench.dead, ensure=False)
    with pytest.raises(exceptions.ChannelNotFoundEntity):
        await bench.consumer().run()


async def test_run_ends_when_its_channel_is_closed(bench: Bench) -> None:
    """A channel its owner closes ends run() with an error, not a consumer that waits for ever."""
    consumer = bench.consumer()
    running = asyncio.create_task(consumer.run())
    await until(lambda: consumer.health().consuming)
    await bench.source.channel.close()
    with pytest.raises(exceptions.ChannelInvalidStateError):
        await asyncio.wait_for(running, 10)


async def test_stop_oversize(bench: Bench) -> None:
    """With oversize_letters="stop" a letter that fits only by reference is deferred."""
    letters = bench.letters(oversize_letters="stop", max_body=1)
    await bench.forge_one(headers={"x": "a" * 130_500})
    async with bench.consumer(dead_letters=letters) as consumer:
        await until(lambda: consumer.health().cause is Cause.DEAD_LETTER_UNAVAILABLE)
    assert (await bench.buried(), await bench.left()) == ([], 1)


async def test_a_letter_the_broker_finds_too_large(bench: Bench) -> None:
    """A form over the broker's own limit falls to the next one, and the channel is fine again."""
    letters = bench.letters(max_body=1 << 40)
    await bench.forge_one(b"b" * (15 << 20), headers={"x": "a" * 130_500})
    async with bench.consumer(dead_letters=letters):
        await until(_buried(bench))
    (letter,) = await bench.buried()
    assert text(letter, "form") == "reference"
    await bench.publish()


async def test_a_letter_beside_one_that_is_too_large(bench: Bench) -> None:
    """The letters that were open on a channel with one over the broker's limit are sent again, whole."""
    letters = bench.letters(max_body=1 << 40)
    large = Message(destination=bench.destination, body=b"b" * (17 << 20))
    small = [
        Message(destination=bench.destination, body=b"%d" % number) for number in range(8)
    ]
    rejection = Rejection(Reason.TOKEN_MISSING, "no token header")

    async def bury(message: Message) -> bool:
        try:
            await letters.publish(
                DeadLetter(
                    message=message,
                    rejection=rejection,
                    scope="billing",
                    time=1.9e9,
                    audit="1",
                )
            )
        except Unavailable:
            return False
        return True

    async with asyncio.TaskGroup() as both:
        first = both.create_task(bury(large))
        beside = [both.create_task(bury(message)) for message in small]
    assert await first
    for message, done in zip(small, beside, strict=True):
        assert await done or await bury(message)
    whole = {
        letter.body
        for letter in await bench.buried()
        if not letter.occurrences("mqauth-dead-form")
    }
    assert whole >= {message.body for message in small}


async def test_replies_are_signed(bench: Bench) -> None:
    """A reply goes to reply-to with the correlation id, and verifies at a direct reply-to's consumer."""
    replies: asyncio.Queue[Any] = asyncio.Queue()
    client = await bench.publishing.channel()
    mailbox = await client.get_queue("amq.rabbitmq.reply-to", ensure=False)
    tag = await mailbox.consume(replies.put, no_ack=True)
    producer = wrapper.Producer(client.default_exchange, bench.forge.signer())
    question = aio_pika.Message(
        b"6 * 7", reply_to="amq.rabbitmq.reply-to", correlation_id="c-1"
    )
    await producer.publish(question, bench.source.name)

    async def handler(verified: Verified) -> None:
        assert verified.properties["reply-to"].startswith("amq.rabbitmq.reply-to.")
        await verified.reply(b"42")

    answers = wrapper.Producer(bench.channel.default_exchange, bench.forge.signer())
    async with bench.consumer(handler, replies=answers):
        answer = await asyncio.wait_for(replies.get(), 10)
    policy = Allow({SUBJECT: ["rabbitmq:/amq.rabbitmq.reply-to.#"]})
    judged = await wrapper.judge(
        bench.guard(policy=policy), answer, queue="amq.rabbitmq.reply-to"
    )
    assert judged.outcome.verdict is Verdict.ACCEPTED
    assert judged.outcome.verified is not None
    assert judged.outcome.verified.properties["correlation-id"] == "c-1"
    assert judged.outcome.verified.body == b"42"
    await mailbox.cancel(tag)


def _waits(
    bench: Bench, count: int, queue: str | None = None
) -> Callable[[], Awaitable[bool]]:
    """Return a condition: so many messages wait at the source, or another queue."""

    async def condition() -> bool:
        return await bench.left(queue) == count

    return condition


def _buried(bench: Bench) -> Callable[[], Awaitable[bool]]:
    """Return a condition: there is a dead letter."""
    return _waits(bench, 1, bench.dead)


FRAME_MAX = 16_384


@pytest.fixture(scope="module")
def broker() -> Iterator[RabbitMQ]:
    """A broker of our own, with small frames."""
    with RabbitMQ.launch(extra_config=[f"frame_max = {FRAME_MAX}"]) as broker:
        yield broker


@pytest.fixture
async def small(broker: RabbitMQ, tmp_path: Path) -> AsyncIterator[Bench]:
    """A small whose connections are never lost."""
    async with _bench(broker.url, tmp_path) as small:
        await small.letters().declare()
        lost: list[object] = []
        for connection in (small.consuming, small.publishing):
            connection.close_callbacks.add(lambda closed, *_: lost.append(closed))
        yield small
        assert lost == []


@pytest.mark.parametrize("batch", [1, 4])
async def test_a_publish_over_the_agreed_size_is_refused(
    small: Bench, batch: int
) -> None:
    """Headers that fill a frame of the broker's are refused with both sizes, and the next message is published."""
    producer = wrapper.Producer(
        small.channel.default_exchange, small.forge.signer(), batch=batch
    )
    with pytest.raises(MalformedMessage, match="the broker takes 16376 bytes"):
        await producer.publish(
            aio_pika.Message(b"", headers={"x": "a" * 16_000}), small.source.name
        )
    await producer.publish(
        aio_pika.Message(b"", headers={"x": "a" * 15_000}), small.source.name
    )
    assert await small.left() == 1


async def test_a_letter_over_the_agreed_size_takes_another_form(small: Bench) -> None:
    """A forged message that leaves no room for a letter's own headers is dead-lettered within the body."""
    await small.forge_one(headers={"x": "a" * 16_200})
    async with small.consumer():
        await until(lambda: bool(small.outcomes))
    (letter,) = await small.buried()
    assert small.outcomes[0].verdict is Verdict.REJECTED
    assert letter.occurrences("mqauth-dead-form") == ("json",)


Instrument = Callable[[], None]


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
        return [
            span.context.trace_id
            for span in found
            if span.kind is kind and name in span.name
        ]


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


@pytest.mark.parametrize(
    "first", [True, False], ids=["instrumented first", "instrumented later"]
)
@pytest.mark.parametrize("batch", [1, 4])
async def test_a_publish_has_a_span(
    bench: Bench, spans: Spans, batch: int, first: bool
) -> None:
    """Each publish has a span, and its message names the trace of its own caller, in a batch too."""
    with _around(spans.instrument, first=first):
        producer = wrapper.Producer(
            bench.channel.default_exchange, bench.forge.signer(), batch=batch
        )
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


@pytest.mark.parametrize(
    "first", [True, False], ids=["instrumented first", "instrumented later"]
)
async def test_a_handler_runs_in_its_trace(
    bench: Bench, spans: Spans, first: bool
) -> None:
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
async def test_what_a_trace_makes_too_large_is_refused(
    bench: Bench, spans: Spans, batch: int
) -> None:
    """A header frame over its size by the trace's headers alone is not sent: the connection would be closed."""
    spans.instrument()
    producer = wrapper.Producer(
        bench.channel.default_exchange, bench.forge.signer(), batch=batch
    )
    sealed = producer.seal(aio_pika.Message(b"", headers={"x": ""}), bench.source.name)
    empty = len(ContentHeader(properties=sealed.properties).marshal())
    largest = {"x": "a" * (MAX_HEADER_FRAME - empty)}
    tracer = spans.provider.get_tracer("test")
    lost = asyncio.Event()
    bench.publishing.close_callbacks.add(lambda *_: lost.set())
    with (
        tracer.start_as_current_span("caller"),
        pytest.raises(MalformedMessage, match="131064 bytes"),
    ):
        await producer.publish(aio_pika.Message(b"", headers=largest), bench.source.name)
    await producer.publish(aio_pika.Message(b"after"), bench.source.name)
    assert not lost.is_set()
    assert await bench.left() == 1


REQUESTS = 10
AWAY = 1.5
"""Seconds that the connection of the answers is away: longer than three attempts of a handler take."""


async def _asked(bench: Bench) -> str:
    """Publish requests, and return the name of the queue for their answers."""
    mailbox = await (await bench.publishing.channel()).declare_queue(exclusive=True)
    for number in range(REQUESTS):
        await bench.publish(b"%d" % number, reply_to=mailbox.name)
    return mailbox.name


@pytest.mark.parametrize("lost", ["before the answer", "before its confirm"])
async def test_connection_lost(bench: Bench, rabbitmq: RabbitMQ, lost: str) -> None:
    """A handler whose answer cannot be sent is put off, and not failed: each request is answered and settled."""
    mailbox, calls = await _asked(bench), Counter[bytes]()

    def verdicts() -> list[Verdict]:
        return [outcome.verdict for outcome in bench.outcomes]

    async def handler(verified: Verified) -> None:
        calls[verified.body or b""] += 1
        await verified.reply(verified.body or b"")

    async with (
        Wire(rabbitmq.url) as wire,
        await aio_pika.connect_robust(wire.url, reconnect_interval=AWAY) as connection,
    ):
        channel = await connection.channel()
        replies = wrapper.Producer(channel.default_exchange, bench.forge.signer())
        if lost == "before the answer":
            wire.cut()
        else:
            wire.mute()
        async with bench.consumer(
            handler, bench.guard(attempts=Attempts()), replies=replies
        ) as consumer:
            await until(lambda: len(calls) == REQUESTS)
            wire.cut()
            await until(lambda: consumer.health().cause is Cause.HANDLER_DEFERRED)
            await until(lambda: verdicts().count(Verdict.ACCEPTED) == REQUESTS)
    assert Verdict.REJECTED not in verdicts()
    assert await bench.buried() == []
    assert await bench.left() == 0
    assert await bench.left(mailbox) >= REQUESTS


async def test_what_the_broker_refuses(bench: Bench) -> None:
    """An answer that no queue takes is the handler's failure: it would be refused again, whenever it is sent."""
    await bench.publish(b"ping", reply_to="no-such-queue")

    async def handler(verified: Verified) -> None:
        await verified.reply(b"pong")

    replies = wrapper.Producer(bench.channel.default_exchange, bench.forge.signer())
    async with bench.consumer(handler, replies=replies):
        await until(lambda: bool(bench.outcomes))
    (letter,) = await bench.buried()
    assert ("mqauth-dead-reason", "handler_failed") in letter.headers
