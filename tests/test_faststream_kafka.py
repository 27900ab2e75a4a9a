"""FastStream's two Kafka brokers: records are verified, committed or read again; what is published is signed."""

from __future__ import annotations

import asyncio
import importlib
import struct
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import ConsumerRecord, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    KafkaConnectionError,
    MessageSizeTooLargeError,
)
from confluent_kafka import KafkaError, KafkaException
from faststream import AckPolicy, BaseMiddleware
from faststream.confluent.testing import MockConfluentMessage
from faststream.exceptions import StopConsume

from mqauth import (
    AuditFile,
    ConfigurationError,
    MalformedMessage,
    Message,
    Reason,
    Verified,
)
from mqauth.delivery.assignment import COMMIT_RETRY
from mqauth.delivery.start import Committed
from mqauth.errors import RetryLater
from mqauth.integrations import faststream_confluent, faststream_kafka
from mqauth.integrations.faststream import NotHandledError, VerifiedMessage, protect
from mqauth.integrations.faststream_positions import Position, Positions
from mqauth.testing import FakeClock
from tests.test_blocking_signers import until
from tests.test_faststream import Service as OnRabbitMQ
from tests.test_rabbitmq_consumer import audit

__all__ = ["audit"]
PLACE = "kafka:orders"
END = 100


class Consumer:
    """Stands for aiokafka's consumer, and remembers commits and seeks.

    Attributes:
        lost: raised by every call.
        ours: what is assigned.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []
        self.ours = [("orders", 0)]
        self.lost: Exception | None = None
        self._coordinator = SimpleNamespace(generation=1)
        self._auto_offset_reset = "earliest"

    def assignment(self) -> Any:
        """Return what is assigned."""
        return {TopicPartition(*each) for each in self.ours}

    async def commit(self, offsets: Any) -> None:
        """Remember a commit."""
        ((_, commit),) = offsets.items()
        self.note("commit", commit.offset)

    async def beginning_offsets(self, places: Any) -> Any:
        """Return the first offset of each partition."""
        return dict.fromkeys(places, 0)

    async def end_offsets(self, places: Any) -> Any:
        """Return the offset behind the last record of each partition."""
        return dict.fromkeys(places, END)

    def lose(self) -> None:
        """Lose what is assigned, in a rebalance."""
        self.ours = []
        self._coordinator.generation += 1

    def seek(self, _partition: Any, offset: int) -> None:
        """Remember a seek."""
        self.note("seek", offset)

    def note(self, name: str, offset: int) -> None:
        """Remember a call, or fail."""
        if self.lost is not None:
            raise self.lost
        self.calls.append((name, offset))


class Inner(Consumer):
    """Stands for confluent-kafka's."""

    def assignment(self) -> Any:
        """Return what is assigned."""
        return [
            SimpleNamespace(topic=topic, partition=number) for topic, number in self.ours
        ]

    def commit(self, *, offsets: Any, asynchronous: bool) -> Any:
        """Remember a commit."""
        assert not asynchronous
        self.note("commit", offsets[0].offset)
        return offsets

    def consumer_group_metadata(self) -> bytes:
        """Return group and generation as librdkafka encodes them."""
        return b"CGMDv2:" + struct.pack("=i", self._coordinator.generation) + b"billing\0"

    def get_watermark_offsets(self, _partition: Any, **_: Any) -> tuple[int, int]:
        """Return the bounds of a partition."""
        return 0, END

    def seek(self, place: Any, _: Any = None) -> None:  # type: ignore[override]
        """Remember a seek."""
        self.note("seek", place.offset)


class AioKafka:
    """FastStream on aiokafka."""

    package, leaf = "faststream.kafka", faststream_kafka
    lost: Exception = CommitFailedError()
    out_of_reach: Exception = KafkaConnectionError()
    refused: Exception = MessageSizeTooLargeError()

    def __init__(self) -> None:
        self.consumer = self.inner = Consumer()

    def record(self, message: Message, offset: int) -> Any:
        """Return a message as the client gives it."""
        sizes: Any = (0, 0, 0)
        return ConsumerRecord(
            "orders",
            0,
            offset,
            1_000,
            0,
            message.key,
            message.body,
            *sizes,
            headers=tuple(message.headers),
        )


class Confluent:
    """FastStream on confluent-kafka."""

    package, leaf = "faststream.confluent", faststream_confluent
    lost: Exception = KafkaException(KafkaError(KafkaError.ILLEGAL_GENERATION))
    out_of_reach: Exception = KafkaException(KafkaError(KafkaError._TRANSPORT))
    refused: Exception = KafkaException(KafkaError(KafkaError.MSG_SIZE_TOO_LARGE))

    def __init__(self) -> None:
        self.inner = Inner()
        self.consumer = SimpleNamespace(
            consumer=self.inner, _thread_pool=None, _on_assign=None, config={}
        )

    def record(self, message: Message, offset: int) -> Any:
        """Return a message as the client gives it."""
        headers: Any = list(message.headers)
        key: Any = message.key
        return MockConfluentMessage(
            message.body, "orders", key, headers, offset, 0, 1, 1_000
        )


class Service(OnRabbitMQ):
    """The same on Kafka.

    Args:
        kind: the client.
        audit: where records go.
    """

    place = PLACE

    def __init__(self, kind: type[AioKafka | Confluent], audit: AuditFile) -> None:
        self.client: Any = kind()
        self.package = importlib.import_module(kind.package)
        super().__init__(audit, self.package.KafkaBroker())

    def subscribe(self, handler: Any = None, **settings: Any) -> None:
        """Have the topic handled, by default by remembering the calls."""
        super().subscribe(handler, **{"group_id": "billing"} | settings)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        """Run it on a consumer of this test, and give a function that delivers a message at an offset."""
        (subscriber,) = self.broker.subscribers
        async with self.package.TestKafkaBroker(self.broker):
            subscriber.consumer = self.client.consumer
            self.begin(subscriber)

            async def deliver(message: Message, offset: int = 7) -> None:
                await subscriber.process_message(self.client.record(message, offset))

            try:
                yield deliver
            finally:
                subscriber.consumer = None

    async def deliver(
        self, message: Message, error: Any = None, match: str | None = None
    ) -> Any:
        """Deliver one message, where an error is named to an end by that one."""
        async with self.running() as deliver:
            with pytest.raises(error, match=match) if error else nullcontext():
                await deliver(message)

    def begin(self, subscriber: Any) -> None:
        """Have the partition begun, as after a start that was committed."""
        positions = self.broker._mqauth.processor(subscriber).positions
        place = positions._client.partition(self.client.record(self.honest(), 7))
        positions._generation = self.client.inner._coordinator.generation
        positions._places[place] = Position(
            7, Committed(7, "mqauth partitions=1"), sought=False
        )


@pytest.fixture(params=[AioKafka, Confluent])
def service(request: pytest.FixtureRequest, audit: AuditFile) -> Service:
    """Return a service on each client."""
    return Service(request.param, audit)


async def test_replayed_is_told_from_read_again(service: Service) -> None:
    """A copy at another offset is a replay; the record itself, read again after a crash, is handled."""
    service.subscribe()
    message = service.honest()
    async with service.running() as deliver:
        await deliver(message)
        await deliver(message)
        with pytest.raises(NotHandledError, match="replayed"):
            await deliver(message, 8)
    assert (len(service.calls), service.reasons) == (2, [Reason.REPLAYED])


async def test_cancelled_is_read_again(service: Service) -> None:
    """A record whose handler is cancelled is read again, and judged by the time when it first came."""
    begun = asyncio.Event()

    async def wait() -> None:
        service.calls.append("call")
        begun.set()
        if len(service.calls) == 1:
            await asyncio.Event().wait()

    service.subscribe(wait)
    message = service.honest()
    async with service.running() as deliver:
        await service.stopped(deliver, message, begun)
        assert service.client.inner.calls == [("seek", 7)]
        service.clock.advance(3_600)
        await deliver(message)
    assert (service.client.inner.calls, service.reasons) == (
        [("seek", 7), ("commit", 8)],
        [],
    )


async def test_lost_partition(service: Service) -> None:
    """What is rejected after its partition was lost is neither dead-lettered nor committed."""
    service.subscribe()
    service.client.inner.ours = []
    await service.deliver(
        Message(destination=PLACE, body=b""), NotHandledError, match="no longer ours"
    )
    assert (service.client.inner.calls, service.reasons) == ([], [])


@pytest.mark.parametrize(
    ("lost", "error", "calls"), [(True, None, []), (False, StopConsume, [("seek", 7)])]
)
async def test_ended_while_handled(
    service: Service, lost: bool, error: Any, calls: list[Any]
) -> None:
    """A partition that is lost meanwhile is not committed; a handler that stops has its record read again."""

    async def end() -> None:
        if lost:
            service.client.inner.lose()
        else:
            raise StopConsume

    service.subscribe(end)
    await service.deliver(service.honest(), error)
    assert service.client.inner.calls == calls


@pytest.mark.parametrize("signal", [None, RetryLater("later")])
async def test_looked_at_while_handled(
    audit: AuditFile, signal: Exception | None
) -> None:
    """confluent-kafka answers on its thread what is assigned: until it does, a record is ours as before."""
    service, answers = Service(Confluent, audit), threading.Event()
    assignment = service.client.inner.assignment

    async def look() -> None:
        service.calls.append("call")
        if len(service.calls) == 1:
            service.client.inner.assignment = lambda: answers.wait() and assignment()
            processor: Any = service.broker._mqauth.processor(subscriber)
            looks.append(asyncio.create_task(processor.positions._client.look()))
            await asyncio.sleep(0)
            if signal is not None:
                raise signal

    looks: list[Any] = []
    service.subscribe(look)
    (subscriber,) = service.broker.subscribers
    try:
        await service.deliver(service.honest())
    finally:
        answers.set()
        await asyncio.gather(*looks)
    assert len(service.calls) == (1 if signal is None else 2)
    assert service.client.inner.calls == [("commit", 8)]


async def test_given_back_after_the_stop(service: Service) -> None:
    """A record that is given back once its subscriber has stopped is left alone: there is no client."""
    service.subscribe()
    (subscriber,) = service.broker.subscribers
    records: Any = service.broker._mqauth.processor(subscriber)._records
    native = service.client.record(service.honest(), 7)
    await service.deliver(service.honest())
    subscriber.running = False
    assert not await records.requeue(native)
    assert service.client.inner.calls == [("commit", 8)]


async def test_refused_commit(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """A commit that the broker refuses is logged, and made again soon, also where no record follows."""
    service.subscribe()
    service.client.inner.lost = service.client.lost
    (subscriber,) = service.broker.subscribers
    positions: Any = service.broker._mqauth.processor(subscriber).positions
    async with service.running() as deliver:
        await deliver(service.honest())
        assert (len(service.calls), "commit failed" in caplog.text) == (1, True)
        service.client.inner.lost = None
        service.clock.advance(COMMIT_RETRY)
        await positions.started()
        await until(lambda: service.client.inner.calls == [("commit", 8)])
        await positions.stopping()


@pytest.mark.parametrize(
    ("error", "calls", "reasons"),
    [
        ("out_of_reach", [("seek", 7)], []),
        ("refused", [("commit", 8)], [Reason.HANDLER_FAILED]),
    ],
)
async def test_result_that_cannot_be_published(
    service: Service, error: str, calls: list[tuple[str, int]], reasons: list[Reason]
) -> None:
    """A record is read again if its result meets a lost connection, and dead-lettered if that is refused."""
    raised: Exception = getattr(service.client, error)

    class Failing(BaseMiddleware[Any, Any]):
        async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
            raise raised

    service.broker.add_middleware(Failing)
    service.broker.publisher("invoices")(
        service.broker.subscriber("orders", group_id="billing")(lambda order: order)
    )
    (subscriber,) = service.broker.subscribers
    async with service.package.TestKafkaBroker(service.broker):
        subscriber.consumer = service.client.consumer
        service.begin(subscriber)
        with pytest.raises(type(raised)):
            await subscriber.process_message(service.client.record(service.honest(), 7))
        subscriber.consumer = None
    assert (service.client.inner.calls, service.reasons) == (calls, reasons)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"batch": True}, "leave batch="),
        ({"max_workers": 2}, "max_workers="),
        ({"group_id": None}, "group_id="),
    ],
)
async def test_subscriber_that_cannot_be_protected(
    service: Service, settings: Any, text: str
) -> None:
    """A broker does not start with a batch, several workers, no group, or another way to commit."""
    service.subscribe(**settings)
    with pytest.raises(ConfigurationError, match=text):
        await service.broker.start()


@pytest.mark.parametrize("policy", [AckPolicy.ACK_FIRST, AckPolicy.ACK])
def test_policy_that_commits(service: Service, policy: AckPolicy) -> None:
    """A subscriber whose offsets FastStream commits is refused where it is declared."""
    with pytest.raises(ConfigurationError, match=r"AckPolicy\.MANUAL"):
        service.subscribe(ack_policy=policy)


async def test_late_subscriber(service: Service) -> None:
    """A subscriber that comes after the start gets nothing that cannot be protected."""
    service.subscribe(service.calls.append, batch=True)
    async with service.package.TestKafkaBroker(service.broker):
        with pytest.raises(ConfigurationError, match="leave batch="):
            await service.broker.publish({"order": 1}, "orders")
    assert service.calls == []


async def test_published_is_signed_as_it_is_sent(service: Service) -> None:
    """Body, key, headers and content type are final before the signature; a header added later does no harm."""

    class After(BaseMiddleware[Any, Any]):
        async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
            cmd.add_headers({"traceparent": "00-1"})
            return await call_next(cmd)

    service.broker.add_middleware(After)
    service.subscribe()
    async with service.package.TestKafkaBroker(service.broker):
        await service.broker.publish(
            {"order": 1},
            "orders",
            key=b"42",
            headers={"tenant": "acme"},
            reply_to="answers",
            correlation_id="c",
        )
    verified: Verified = service.calls[0][1]
    assert (verified.key, verified.properties["content-type"]) == (
        b"42",
        "application/json",
    )
    assert sorted(verified.headers) == [
        ("correlation_id", b"c"),
        ("reply_to", b"answers"),
        ("tenant", b"acme"),
    ]


@pytest.mark.parametrize(("key", "body"), [(b"42", None), (None, b"")])
async def test_record_without_a_value(
    service: Service, key: bytes | None, body: bytes | None
) -> None:
    """``None`` with a key is signed as a record without a value, and without a key as an empty one."""

    async def take(verified: VerifiedMessage) -> None:
        service.calls.append(verified.body)

    service.subscribe(take)
    async with service.package.TestKafkaBroker(service.broker):
        await service.broker.publish(None, "orders", key=key)
    assert service.calls == [body]


async def test_publish_batch_is_refused(service: Service) -> None:
    """One set of headers for many messages cannot hold a token for each: nothing is sent."""
    service.subscribe()
    async with service.package.TestKafkaBroker(service.broker):
        with pytest.raises(ConfigurationError, match="publish_batch"):
            await service.broker.publish_batch(1, 2, topic="orders")
    assert service.calls == []


async def test_publisher_of_batches_is_refused(service: Service) -> None:
    """A publisher of batches is refused where it is declared, and where its router is included."""
    with pytest.raises(ConfigurationError, match="leave the publisher's batch= out"):
        service.broker.publisher("orders", batch=True)
    router = service.package.KafkaRouter(ack_policy=AckPolicy.MANUAL)
    router.publisher("orders", batch=True)
    with pytest.raises(ConfigurationError, match="leave the publisher's batch= out"):
        service.broker.include_router(router)


async def test_codec_of_ones_own(service: Service) -> None:
    """A codec would encode what is signed once more, so it is refused."""
    codec = SimpleNamespace(encode=None, decode=None)
    broker: Any = protect(
        service.package.KafkaBroker(codec=codec), signer=service.forge.signer()
    )
    async with service.package.TestKafkaBroker(broker):
        with pytest.raises(ConfigurationError, match="codec"):
            await broker.publish(b"", "orders")


async def test_names_that_end_the_process(audit: AuditFile) -> None:
    """confluent-kafka ends the process at a header's name that is not UTF-8: refused before."""
    service = Service(Confluent, audit)
    async with service.package.TestKafkaBroker(service.broker):
        with pytest.raises(MalformedMessage, match="UTF-8"):
            await service.broker.publish(b"", "orders", headers={"\ud800": "x"})


async def test_key_that_is_text(audit: AuditFile) -> None:
    """confluent-kafka's broker takes a key as text: it is signed as the bytes that are sent."""
    service = Service(Confluent, audit)
    service.subscribe()
    async with service.package.TestKafkaBroker(service.broker):
        await service.broker.publish({"order": 1}, "orders", key="42")
    assert service.calls[0][1].key == b"42"


async def test_answer_goes_where_the_token_says(service: Service) -> None:
    """A result is not published to a ``reply_to`` that somebody added to a signed record."""
    sent: list[str] = []

    class Look(BaseMiddleware[Any, Any]):
        async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
            sent.append(cmd.destination)

    service.broker.add_middleware(Look)
    service.subscribe(lambda order: order)
    signed = Message(destination=PLACE, body=b"{}", headers=(("reply_to", b"mailbox"),))
    honest = service.honest()
    async with service.running() as deliver:
        await deliver(replace(honest, headers=(*honest.headers, ("reply_to", b"evil"))))
        await deliver(service.forge.signer().sign(signed), 8)
    assert (sent, service.reasons) == (["mailbox"], [])


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"enable.auto.commit": True}, "enable.auto.commit"),
        ({"group.id": "other"}, "group.id"),
    ],
)
async def test_confluent_config_that_settles(
    audit: AuditFile, config: Any, text: str
) -> None:
    """Confluent's ``config=`` overrides what FastStream sets: what would commit before the verdict is refused."""
    service = Service(Confluent, audit)
    broker = protect(
        service.package.KafkaBroker(config=config),
        guard=service.guard,
        dead_letters=service.letters,
    )
    broker.subscriber("orders", group_id="billing")(service.calls.append)
    with pytest.raises(ConfigurationError, match=text):
        await broker.start()


class Group:
    """A client whose group has committed 50 of a partition that begins at 40, and that remembers seeks."""

    place = TopicPartition("orders", 0)
    lost = failed = unsure = ()

    def __init__(self) -> None:
        self.held: set[Any] = set()
        self.generation = 1
        self.seeks: list[int] = []

    async def look(self) -> None:
        """Do nothing."""

    def offsets(self) -> Any:
        """Return the calls."""
        return self

    def here(self, work: Any, *args: Any) -> Any:
        """Make a call."""
        return work(*args)

    def position(self, _place: Any) -> None:
        """Tell none before a record."""

    def committed(self, places: Any) -> Any:
        """Return what is committed."""
        return dict.fromkeys(places, Committed(50, "mqauth partitions=1"))

    async def left_out(
        self, _place: Any, expected: int, _offset: int | None
    ) -> int | None:
        """Return the first offset that is left."""
        return 40 if expected < 40 else None

    async def seek(self, _place: Any, offset: int) -> bool:
        """Remember a seek."""
        self.seeks.append(offset)
        return True


async def test_a_record_that_waited_before_a_rebalance() -> None:
    """A record of a partition that was lost says nothing of where the partition begins when it is ours again."""
    group = Group()
    positions = Positions(group, FakeClock())
    assert not await positions.ready(group.place, 5)
    group.held, group.generation = {group.place}, 2
    await positions.begin()
    assert await positions.ready(group.place, 50)
    assert group.seeks == []
