"""FastStream on RabbitMQ: what is verified before FastStream parses, how it is settled, and what is signed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from datetime import date, timedelta
from operator import methodcaller
from types import SimpleNamespace
from typing import Any

import pytest
from aio_pika import IncomingMessage, exceptions
from aiokafka.errors import KafkaConnectionError
from aiormq.abc import DeliveredMessage
from faststream import AckPolicy, BaseMiddleware
from faststream.exceptions import AckMessage, NackMessage, RejectMessage, StopConsume
from faststream.kafka import KafkaBroker, TestKafkaBroker
from faststream.rabbit import (
    QueueType,
    RabbitBroker,
    RabbitExchange,
    RabbitMessage,
    RabbitQueue,
    RabbitRouter,
    TestRabbitBroker,
)
from faststream.specification import AsyncAPI
from pamqp import commands
from pamqp.header import ContentHeader

from integration.documentation import blocks
from mqauth import (
    AuditFile,
    ConfigurationError,
    MemoryReplayStore,
    Message,
    Origin,
    Pipeline,
    Reason,
    Verified,
)
from mqauth.brokers.event_loop import letters_on_thread
from mqauth.brokers.rabbitmq.translate import headers_out
from mqauth.errors import Cause, RetryLater, Unavailable
from mqauth.flow import Attempts
from mqauth.integrations import faststream
from mqauth.integrations.faststream import (
    ROLLING,
    NotHandledError,
    UnverifiedMessage,
    VerifiedMessage,
    protect,
    unverified,
)
from mqauth.integrations.framework import LateLetters
from mqauth.judging.rollout import WEEK, Exemption, Rollout, RolloutEntry, Rung
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing import FakeClock, Forge
from tests.test_rabbitmq_consumer import Letters, audit

__all__ = ["audit"]
PLACE = "rabbitmq:/orders"
DAY = date(2030, 3, 17)


class Channel:
    """A channel of aiormq's that remembers how deliveries were settled."""

    def __init__(self) -> None:
        self.is_closed = False
        self.settled: list[str] = []
        self.connection = self

    async def basic_ack(self, **_: Any) -> None:
        """Remember an ack."""
        self.settled.append("ack")

    async def basic_nack(self, *, requeue: bool, **_: Any) -> None:
        """Remember a requeue."""
        assert requeue
        self.settled.append("requeue")

    async def flow(self, *, active: bool) -> bool:
        """Answer that deliveries flow."""
        return active


def delivered(
    message: Message, *, redelivered: bool = False
) -> tuple[IncomingMessage, Channel]:
    """Return a message as aio-pika delivers it, and its channel."""
    channel: Any = Channel()
    named = {
        {"type": "message_type"}.get(name, name.replace("-", "_")): text
        for name, text in message.properties.items()
    }
    found = DeliveredMessage(
        delivery=commands.Basic.Deliver("tag", 1, redelivered, "", "orders"),
        header=ContentHeader(
            properties=commands.Basic.Properties(
                headers=headers_out(message.headers), **named
            )
        ),
        body=message.body or b"",
        channel=channel,
    )
    return IncomingMessage(found), channel


class Service:
    """A protected broker with everything around it.

    Args:
        audit: where its records go.
        broker: what is protected, by default RabbitMQ's.
        settings: of its pipeline.
    """

    place = PLACE

    def __init__(self, audit: AuditFile, broker: Any = None, **settings: Any) -> None:
        self.clock = FakeClock()
        self.forge = Forge(self.clock)
        self.letters = Letters()
        self.calls: list[Any] = []
        wanted: dict[str, Any] = {
            "replay": MemoryReplayStore(clock=self.clock), "attempts": Attempts(wait=0), "clock": self.clock,
        }  # fmt: skip
        self.guard = Pipeline(
            verifier=self.forge.verifier(),
            policy=self.forge.policy(self.place, "rabbitmq:shop/orders"),
            audit=audit,
            **(wanted | settings),
        )
        self.broker: Any = protect(
            broker or RabbitBroker(),
            guard=self.guard,
            dead_letters=self.letters,
            signer=self.forge.signer(),
        )

    def subscribe(
        self, handler: Callable[..., Any] | None = None, **settings: Any
    ) -> None:
        """Have the queue ``orders`` handled, by default by remembering the calls."""
        calls = self.calls

        async def remember(order: Any, verified: VerifiedMessage) -> None:
            calls.append((order, verified))

        self.broker.subscriber("orders", **settings)(handler or remember)

    def honest(self, body: bytes = b'{"order": 1}', **properties: str) -> Message:
        """Return a signed message."""
        return self.forge.signer().sign(
            Message(destination=self.place, body=body, properties=properties)
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Any]:
        """Run it on FastStream's test broker, and give a function that delivers a message to its subscriber."""
        (subscriber,) = self.broker.subscribers
        async with TestRabbitBroker(self.broker):
            yield subscriber.process_message

    async def stopped(self, deliver: Any, native: Any, begun: asyncio.Event) -> None:
        """Deliver a message, and stop that once something has begun."""
        task = asyncio.create_task(deliver(native))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def deliver(
        self, message: Message, error: Any = None, match: str | None = None
    ) -> Channel:
        """Deliver a message, where an error is named to an end by that one; return its channel."""
        native, channel = delivered(message)
        async with self.running() as deliver:
            with pytest.raises(error, match=match) if error else nullcontext():
                await deliver(native)
        return channel

    @property
    def reasons(self) -> list[Reason]:
        """Why messages were dead-lettered."""
        return [letter.rejection.reason for letter in self.letters.found]


@pytest.fixture
def service(audit: AuditFile) -> Service:
    """A protected broker."""
    return Service(audit)


def forgery(service: Service) -> Message:
    """Return a message signed by a stranger."""
    return service.forge.seal(
        Message(destination=PLACE, body=b"{"), key=service.forge.stranger
    )


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        pytest.param(
            lambda _: Message(destination=PLACE, body=b"{}"),
            Reason.TOKEN_MISSING,
            id="unsigned",
        ),
        pytest.param(forgery, Reason.KEY_UNKNOWN, id="forged"),
    ],
)
async def test_rejected_reaches_nothing_of_the_application(
    service: Service, message: Callable[[Service], Message], reason: Reason
) -> None:
    """What is rejected is dead-lettered and acked before any parser, filter, decoder or handler sees it."""
    seen: list[Any] = []

    async def look(found: Any, original: Any = None) -> Any:
        seen.append(found)
        return await original(found)

    async def choose(found: Any) -> bool:
        seen.append(found)
        return True

    service.broker.subscriber("orders", parser=look, decoder=look)(filter=choose)(
        seen.append
    )
    channel = await service.deliver(
        message(service), NotHandledError, match=f"not handled: rejected: {reason.value}"
    )
    assert (seen, service.reasons, channel.settled) == ([], [reason], ["ack"])


async def test_a_consumer_with_a_hole_does_not_start(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker whose pipeline lets an unsigned message in is not started."""
    service.subscribe()
    monkeypatch.setattr("mqauth.judging.judge.Judge.prepare", lambda *_: None)
    with pytest.raises(ConfigurationError, match="self-test: the consumer would let in"):
        await service.broker.start()


async def test_settled_after_the_result_is_published(service: Service) -> None:
    """A result is published before its message is confirmed and acked: a crash in between loses nothing."""
    message, order = service.honest(), []
    native, channel = delivered(message)

    class Watch(BaseMiddleware[Any, Any]):
        async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
            order.append(list(channel.settled))
            return await call_next(cmd)

    service.broker.add_middleware(Watch)
    service.broker.publisher("invoices")(
        service.broker.subscriber("orders")(lambda order: order)
    )
    subscriber = next(iter(service.broker.subscribers))
    async with TestRabbitBroker(service.broker):
        await subscriber.process_message(native)
    assert (order, channel.settled) == ([[]], ["ack"])


async def test_handler_that_fails(service: Service) -> None:
    """A handler is tried again, then its message is dead-lettered and its claim released; no result goes out."""

    async def fail() -> None:
        service.calls.append("call")
        raise ValueError("secret")

    service.subscribe(fail)
    message = service.honest()
    native, channel = delivered(message)
    async with service.running() as deliver:
        with pytest.raises(NotHandledError, match="handler_failed"):
            await deliver(native)
        assert (len(service.calls), service.reasons, channel.settled) == (
            3,
            [Reason.HANDLER_FAILED],
            ["ack"],
        )
        assert "secret" not in str(service.letters.found[0].rejection.detail)
        # the claim was released: the same message is no replay
        with pytest.raises(NotHandledError, match="handler_failed"):
            await deliver(delivered(message)[0])


def raising(error: Exception) -> Callable[[RabbitMessage], Any]:
    """Return what a handler ends with: an error."""

    async def end(_message: RabbitMessage) -> None:
        raise error

    return end


@pytest.mark.parametrize(
    ("end", "calls", "error", "reasons"),
    [
        (raising(AckMessage()), 1, AckMessage, []),
        (raising(NackMessage()), 2, None, []),
        (raising(RetryLater("later")), 2, None, []),
        (raising(RejectMessage()), 1, NotHandledError, [Reason.HANDLER_FAILED]),
        (methodcaller("ack"), 1, None, []),
        (methodcaller("nack"), 2, None, []),
        (methodcaller("reject"), 1, NotHandledError, [Reason.HANDLER_FAILED]),
    ],
)
async def test_handler_that_settles(
    audit: AuditFile, end: Any, calls: int, error: Any, reasons: Any
) -> None:
    """Acks are a success, nacks put off, rejects fail at once, raised or called; mqauth settles, at the end."""
    service = Service(audit, attempts=Attempts(limit=1 if calls == 2 else 3, wait=0))
    native, channel = delivered(service.honest())

    async def once(message: RabbitMessage) -> None:
        service.calls.append("call")
        if len(service.calls) == 1:
            await end(message)
        assert channel.settled == []

    service.subscribe(once)
    async with service.running() as deliver:
        with pytest.raises(error) if error else nullcontext():
            await deliver(native)
    assert (len(service.calls), service.reasons, channel.settled) == (
        calls,
        reasons,
        ["ack"],
    )


class Down(Letters):
    """Dead letters that are out of reach."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = asyncio.Event()

    async def publish(self, letter: DeadLetter, /) -> None:  # type: ignore[override]
        """Fail."""
        self.asked.set()
        raise Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, "down")


async def test_dead_letter_comes_before_the_ack(service: Service) -> None:
    """Without a confirmed dead letter nothing is acked; a stop meanwhile gives the message back."""
    service.letters = down = Down()
    service.broker = protect(RabbitBroker(), guard=service.guard, dead_letters=down)
    service.subscribe()
    native, channel = delivered(Message(destination=PLACE, body=b""))
    async with service.running() as deliver:
        task = asyncio.create_task(deliver(native))
        await down.asked.wait()
        assert channel.settled == []
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert (channel.settled, service.letters.found, service.calls) == (
        ["requeue"],
        [],
        [],
    )


@pytest.mark.parametrize("origin", [Origin(queue="orders"), Origin(topic="orders")])
async def test_letters_to_where_their_messages_came_from(origin: Origin) -> None:
    """None is published: it would be read, rejected and written again, without end."""
    letters = Letters()
    letters.name = "orders"
    letter: Any = SimpleNamespace(
        message=Message(destination=PLACE, body=b"", origin=origin)
    )
    with pytest.raises(Unavailable, match="dead letters must go elsewhere"):
        await LateLetters(letters).publish(letter)
    assert letters.found == []


async def test_no_call_of_an_asynchronous_sink_is_left_on_a_thread() -> None:
    """Its coroutine is made where it is awaited, so that a stop at any moment leaves none behind."""
    down = Down()
    publishing = asyncio.create_task(letters_on_thread(down).publish(None))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    assert down.asked.is_set()
    with pytest.raises(Unavailable):
        await publishing


async def test_cancelled_handler(service: Service) -> None:
    """A message whose handler is cancelled goes back with its claim released: it comes again, and is handled."""
    begun = asyncio.Event()

    async def wait() -> None:
        service.calls.append("call")
        begun.set()
        if len(service.calls) == 1:
            await asyncio.Event().wait()

    service.subscribe(wait)
    message = service.honest()
    native, channel = delivered(message)
    async with service.running() as deliver:
        await service.stopped(deliver, native, begun)
        assert channel.settled == ["requeue"]
        again, channel = delivered(message, redelivered=True)
        await deliver(again)
    assert (channel.settled, len(service.calls)) == (["ack"], 2)


class Slow(MemoryReplayStore):
    """A replay store whose confirm waits for a test."""

    def __init__(self) -> None:
        super().__init__()
        self.asked, self.answer = asyncio.Event(), asyncio.Event()

    async def confirm(self, request: Any, /) -> None:  # type: ignore[override]
        """Confirm once the test says so."""
        self.asked.set()
        await self.answer.wait()
        super().confirm(request)


async def test_cancelled_confirm(audit: AuditFile) -> None:
    """A stop while a handled message is confirmed gives it back; it comes again, and its handler does not run."""
    store = Slow()
    service = Service(audit, replay=store)
    service.subscribe()
    message = service.honest()
    native, channel = delivered(message)
    async with service.running() as deliver:
        await service.stopped(deliver, native, store.asked)
        assert channel.settled == ["requeue"]
        store.answer.set()
        again, channel = delivered(message, redelivered=True)
        with pytest.raises(NotHandledError):
            await deliver(again)
    assert (channel.settled, len(service.calls), service.reasons) == (["ack"], 1, [])


@pytest.mark.parametrize("error", [SystemExit(), StopConsume()])
async def test_stop_gives_back(service: Service, error: BaseException) -> None:
    """A handler that stops the application or its subscriber gives its message back."""

    async def stop() -> None:
        raise error

    service.subscribe(stop)
    channel = await service.deliver(service.honest(), type(error))
    assert (channel.settled, service.reasons) == (["requeue"], [])


async def test_cancelled_by_the_client(service: Service) -> None:
    """Where aiormq cancels what a handler awaits, since a connection was lost, the handler is called again."""

    async def call() -> None:
        service.calls.append("call")
        if len(service.calls) == 1:
            lost = asyncio.get_running_loop().create_future()
            lost.cancel()
            await lost

    service.subscribe(call)
    channel = await service.deliver(service.honest())
    assert (channel.settled, len(service.calls)) == (["ack"], 2)


async def test_lost_channel(service: Service) -> None:
    """A message whose channel ended while it was handled is not settled, and no replay when it comes again."""
    message = service.honest()
    native, channel = delivered(message)

    async def lose() -> None:
        service.calls.append("call")
        channel.is_closed = True

    service.subscribe(lose)
    async with service.running() as deliver:
        await deliver(native)
        assert channel.settled == []
        again, channel = delivered(message, redelivered=True)
        with pytest.raises(NotHandledError):
            await deliver(again)
    assert (channel.settled, len(service.calls), service.reasons) == (["ack"], 1, [])


async def test_lost_channel_before_the_verdict(service: Service) -> None:
    """What is rejected after its channel ended is not dead-lettered: the broker delivers it again, to whomever."""
    service.subscribe()
    native, channel = delivered(Message(destination=PLACE, body=b""))
    channel.is_closed = True
    async with service.running() as deliver:
        with pytest.raises(NotHandledError, match="no longer ours"):
            await deliver(native)
    assert (channel.settled, service.reasons) == ([], [])


class Publishing(BaseMiddleware[Any, Any]):
    """Stands for a broker that does not take a result."""

    error: Exception

    async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
        """Fail."""
        raise self.error


@pytest.mark.parametrize(
    ("error", "settled", "reasons"),
    [
        (exceptions.AMQPConnectionError("lost"), ["requeue"], []),
        (Unavailable(Cause.KEYS_UNAVAILABLE, "down"), ["requeue"], []),
        (
            exceptions.DeliveryError(None, commands.Basic.Nack()),
            ["ack"],
            [Reason.HANDLER_FAILED],
        ),
    ],
)
async def test_result_that_cannot_be_published(
    service: Service, error: Exception, settled: list[str], reasons: list[Reason]
) -> None:
    """A message whose result meets a lost connection goes back; one whose result is refused is dead-lettered."""
    service.subscribe(lambda: b"result")
    service.broker.add_middleware(type("Failing", (Publishing,), {"error": error}))
    channel = await service.deliver(
        service.honest(**{"reply-to": "mailbox"}), type(error)
    )
    assert (channel.settled, service.reasons) == (settled, reasons)


@pytest.mark.parametrize("error", [ValueError, FileNotFoundError])
async def test_message_that_cannot_be_parsed(
    service: Service, error: type[Exception]
) -> None:
    """A verified message that FastStream cannot parse is dead-lettered at once, whatever the parser raised."""

    def refuse(_: Any) -> Any:
        raise error

    service.subscribe(parser=refuse)
    channel = await service.deliver(service.honest(), error)
    assert (channel.settled, service.reasons, service.calls) == (
        ["ack"],
        [Reason.HANDLER_FAILED],
        [],
    )
    # not after the last of several attempts
    assert service.letters.found[0].rejection.detail == error.__name__


async def test_pipeline_that_cannot_settle(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """An error of ours stops the subscriber, and its message is not settled."""
    service.subscribe()
    service.guard.audit = None
    channel = await service.deliver(Message(destination=PLACE, body=b""), StopConsume)
    assert (channel.settled, service.calls) == ([], [])
    assert "the subscriber stops" in caplog.text


class Look(BaseMiddleware[Any, Any]):
    """Remembers what is published, after every middleware before it."""

    seen: list[Any]

    async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
        """Remember a command, add a trace header as OpenTelemetry does, and go on."""
        self.seen.append(cmd.body)
        cmd.headers["traceparent"] = "00-1"
        return await call_next(cmd)


@pytest.mark.parametrize("exchange", ["", "shop"])
async def test_published_is_signed_as_it_is_sent(service: Service, exchange: str) -> None:
    """Body, content type and message id are final before the signature; headers added later do no harm."""
    seen: list[Any] = []
    service.broker.add_middleware(type("After", (Look,), {"seen": seen}))
    handled: list[Verified] = []

    @service.broker.subscriber(RabbitQueue("orders"), RabbitExchange(exchange))
    async def take(order: dict[str, int], verified: VerifiedMessage) -> None:
        handled.append(verified)

    async with TestRabbitBroker(service.broker):
        await service.broker.publish(
            {"order": 1},
            "orders",
            exchange,
            headers={"tenant": "acme"},
            message_type="new",
        )
    ((sent,), (verified,)) = seen, handled
    assert (sent.content_type, verified.headers) == (
        "application/json",
        (("tenant", "acme"),),
    )
    assert verified.properties["message-id"] == sent.message_id
    assert dict(verified.native.headers)["traceparent"] == "00-1"


async def test_request_and_reply(service: Service) -> None:
    """A request is signed, and its handler's result comes back."""
    service.subscribe(lambda order: {"taken": order["order"]})
    async with TestRabbitBroker(service.broker):
        reply = await service.broker.request({"order": 7}, "orders")
        assert await reply.decode() == {"taken": 7}


@pytest.mark.parametrize("signed", [True, False])
async def test_answer_is_verified(service: Service, signed: bool) -> None:
    """An answer is given to whoever asked only if it is signed; else it is dead-lettered."""
    service.subscribe()
    protection: Any = service.broker._mqauth  # type: ignore[attr-defined]
    found = service.honest() if signed else Message(destination=PLACE, body=b"{}")
    native, _ = delivered(found)
    if signed:
        await protection.verify(native, service.guard, 5)
    else:
        with pytest.raises(NotHandledError, match="token_missing"):
            await protection.verify(native, service.guard, 5)
    assert service.reasons == ([] if signed else [Reason.TOKEN_MISSING])


async def test_one_side_alone(service: Service) -> None:
    """Without a signer no publisher starts, nothing is published; without a guard nothing is consumed or asked."""
    mute = protect(RabbitBroker(), guard=service.guard, dead_letters=service.letters)
    mute.subscriber("orders")(service.calls.append)
    async with TestRabbitBroker(mute):
        with pytest.raises(ConfigurationError, match="signer="):
            await mute.publish(b"", "orders")
    mute.publisher("invoices")
    with pytest.raises(ConfigurationError, match="publishers need signer="):
        await mute.start()
    deaf = protect(RabbitBroker(), signer=service.forge.signer())
    deaf.subscriber("orders")(service.calls.append)
    async with TestRabbitBroker(deaf):
        with pytest.raises(ConfigurationError, match="subscribers need guard="):
            await deaf.publish(b"", "orders")
        with pytest.raises(ConfigurationError, match="request needs guard="):
            await deaf.request(b"", "orders")
    with pytest.raises(ConfigurationError, match="subscribers need guard="):
        await deaf.start()
    assert service.calls == []


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"queue": "orders", "ack_policy": AckPolicy.ACK_FIRST}, "AckPolicy.MANUAL"),
        ({"queue": "orders", "ack_policy": AckPolicy.ACK}, "AckPolicy.MANUAL"),
        (
            {"queue": RabbitQueue("orders", queue_type=QueueType.STREAM, durable=True)},
            "is a stream",
        ),
    ],
)
async def test_subscriber_that_cannot_be_protected(
    service: Service, settings: Any, text: str
) -> None:
    """A broker does not start with a subscriber, of a router too, whose messages others settle."""
    router = RabbitRouter(ack_policy=AckPolicy.MANUAL)
    service.broker.include_router(router)
    router.subscriber(**settings)(service.calls.append)
    with pytest.raises(ConfigurationError, match=text):
        await service.broker.start()


@pytest.mark.parametrize(
    "policy", [policy for policy in AckPolicy if policy is not AckPolicy.MANUAL]
)
def test_policy_that_settles(service: Service, policy: AckPolicy) -> None:
    """A subscriber with an acknowledgement of FastStream's is refused where it is declared."""
    with pytest.raises(ConfigurationError, match=r"AckPolicy\.MANUAL"):
        service.subscribe(ack_policy=policy)


async def test_dead_letters_are_made_at_the_start(service: Service) -> None:
    """A function may make the dead letters: it is called once, when the broker starts or a letter is due."""
    made: list[Letters] = []

    async def make() -> Letters:
        made.append(service.letters)
        return service.letters

    service.broker = protect(RabbitBroker(), guard=service.guard, dead_letters=make)
    service.subscribe()
    assert made == []
    async with service.running() as deliver:
        for _ in range(2):
            with pytest.raises(NotHandledError):
                await deliver(delivered(Message(destination=PLACE, body=b""))[0])
    assert (len(made), len(service.letters.found)) == (1, 2)


async def test_a_sink_that_blocks_runs_on_a_thread(service: Service) -> None:
    """A dead-letter sink that waits for its broker does not hold the event loop."""
    loops: list[bool] = []

    class Blocking(Letters):
        def publish(self, letter: DeadLetter, /) -> None:
            try:
                asyncio.get_running_loop()
            except RuntimeError:
                loops.append(False)

    service.broker = protect(RabbitBroker(), guard=service.guard, dead_letters=Blocking())
    service.subscribe()
    await service.deliver(Message(destination=PLACE, body=b""), NotHandledError)
    assert loops == [False]


class Again(BaseMiddleware[Any, Any]):
    """Calls once more what failed, as middlewares of applications do."""

    async def consume_scope(self, call_next: Any, msg: Any) -> Any:
        """Call a handler, and once more where it failed."""
        with suppress(Exception):
            return await call_next(msg)
        return await call_next(msg)

    async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
        """Publish a command, and once more where that failed."""
        with suppress(OSError):
            return await call_next(cmd)
        return await call_next(cmd)


async def test_middleware_that_calls_a_handler_again(service: Service) -> None:
    """A handler that failed for good is not called again by a middleware around ours: its message has a letter."""
    service.broker.insert_middleware(Again)

    async def fail() -> None:
        service.calls.append("call")
        raise ValueError

    service.subscribe(fail)
    await service.deliver(service.honest(), NotHandledError, match="handler_failed")
    assert (len(service.calls), service.reasons) == (3, [Reason.HANDLER_FAILED])


async def test_middleware_that_publishes_again(service: Service) -> None:
    """A middleware around ours may publish its command once more: it was not changed, and is signed anew."""
    tries: list[Any] = []

    class Fail(BaseMiddleware[Any, Any]):
        async def publish_scope(self, call_next: Any, cmd: Any) -> Any:
            tries.append(cmd)
            if len(tries) == 1:
                raise OSError
            return await call_next(cmd)

    service.broker.insert_middleware(Again)
    service.broker.add_middleware(Fail)
    service.subscribe()
    async with service.running():
        await service.broker.publish({"order": 1}, "orders")
    assert (len(tries), len(service.calls)) == (2, 1)


async def test_result_for_another_broker_that_is_out_of_reach(service: Service) -> None:
    """A message whose result meets a lost connection goes back, also where the result is of another broker."""
    invoices = KafkaBroker()
    invoices.publisher("invoices")(
        service.broker.subscriber("orders")(lambda order: order)
    )
    service.broker.add_middleware(
        type("Failing", (Publishing,), {"error": KafkaConnectionError()})
    )
    native, channel = delivered(service.honest())
    (subscriber,) = service.broker.subscribers
    async with TestRabbitBroker(service.broker), TestKafkaBroker(invoices):
        with pytest.raises(KafkaConnectionError):
            await subscriber.process_message(native)
    assert (channel.settled, service.reasons) == (["requeue"], [])


async def test_no_handler_takes_it(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    """A message that no filter takes is dead-lettered; FastStream does not log its token."""
    service.broker.subscriber("orders")(filter=lambda _: False)(service.calls.append)
    channel = await service.deliver(
        service.honest(), NotHandledError, match="handler_failed"
    )
    assert (channel.settled, service.reasons, service.calls) == (
        ["ack"],
        [Reason.HANDLER_FAILED],
        [],
    )
    assert "eyJ" not in caplog.text


async def test_subscriber_without_a_handler(service: Service) -> None:
    """``get_one`` and iteration are refused before a message is taken, also while a handler runs."""

    async def take() -> None:
        with pytest.raises(ConfigurationError, match="get_one"):
            await service.broker.subscriber("other", persistent=False).start()
        service.calls.append("refused")

    service.subscribe(take)
    await service.deliver(service.honest())
    assert service.calls == ["refused"]


@pytest.mark.parametrize("depth", [1, 2])
def test_router_that_settles(audit: AuditFile, depth: int) -> None:
    """A router whose messages FastStream settles is refused when it is included, also while the broker runs."""
    router = RabbitRouter()
    router.subscriber("orders")(print)
    for _ in range(depth - 1):
        router, inner = RabbitRouter(prefix="shop."), router
        router.include_router(inner)
    with pytest.raises(ConfigurationError, match=r"AckPolicy\.MANUAL"):
        Service(audit).broker.include_router(router)


async def test_dead_letters_are_made_at_every_start(service: Service) -> None:
    """Where a broker starts again, its dead letters are made anew: they may have been on its connection."""
    made: list[Letters] = []

    def make() -> Letters:
        made.append(service.letters)
        raise ConnectionError

    broker = protect(RabbitBroker(), guard=service.guard, dead_letters=make)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await broker.start()
    assert len(made) == 2


def test_protect_refuses(service: Service) -> None:
    """What cannot be protected is refused at once."""
    late = RabbitBroker()
    late.subscriber("orders")(service.calls.append)
    blind = Pipeline(
        verifier=service.forge.verifier(),
        policy=service.forge.policy(PLACE),
        replay=MemoryReplayStore(),
    )
    wrong: list[tuple[Any, dict[str, Any], str]] = [
        (RabbitBroker(), {}, "guard=, signer= or both"),
        (RabbitBroker(), {"guard": service.guard}, "dead_letters="),
        (RabbitBroker(), {"guard": blind, "dead_letters": service.letters}, "audit="),
        (late, {"signer": service.forge.signer()}, "before its subscribers"),
        (service.broker, {"signer": service.forge.signer()}, "protected already"),
        (object(), {"signer": service.forge.signer()}, "protect takes"),
    ]
    for broker, settings, text in wrong:
        with pytest.raises(ConfigurationError, match=text):
            protect(broker, **settings)


def test_page_says_what_is_signed(service: Service) -> None:
    """The AsyncAPI page says of each channel that it is signed, after what the handler's docstring says."""

    @service.broker.publisher("invoices")
    @service.broker.subscriber("orders")
    async def take(order: dict[str, int]) -> None:
        """Take an order."""

    for _ in range(2):
        channels: Any = AsyncAPI(service.broker).to_specification().channels
        texts = sorted(channel.description for channel in channels.values())
        assert texts == sorted(
            [faststream.SIGNED, f"Take an order.\n\n{faststream.SIGNED}"]
        )


def lenient(**settings: Any) -> Rollout:
    """Return a rollout that observes the queue, or exempts something there."""
    observed = RolloutEntry(
        destinations=(PLACE,),
        rung=Rung.OBSERVE,
        since=DAY,
        until=DAY + timedelta(9),
        owner="team",
        window=WEEK,
    )
    return Rollout(**(settings or {"entries": [observed]}))


async def test_second_handler(audit: AuditFile) -> None:
    """In a rollout what nothing proved reaches the handler behind ``filter=unverified``, and no other."""
    service = Service(audit, rollout=lenient())
    proofless: list[Any] = []
    orders = service.broker.subscriber("orders")

    @orders(filter=unverified)
    async def old(order: dict[str, int], message: UnverifiedMessage) -> str:
        proofless.append((order, message.would.code if message.would else None))
        return "an answer"

    @orders
    async def new(order: dict[str, int], verified: VerifiedMessage) -> None:
        service.calls.append(verified.subject)

    asking = Message(
        destination=PLACE, body=b'{"order": 2}', properties={"reply-to": "answers"}
    )
    native, channel = delivered(asking)
    published: list[Any] = []
    async with service.running() as deliver:
        service.broker.config.producer.publish = published.append
        await deliver(native)
        await deliver(delivered(service.honest())[0])
    assert proofless == [({"order": 2}, "token_missing")]
    assert (service.calls, service.letters.found, channel.settled) == (
        ["orders-api"],
        [],
        ["ack"],
    )
    # Nobody knows who has asked for an answer.
    assert published == []


async def test_second_handler_that_comes_late(audit: AuditFile) -> None:
    """A handler that is added while the broker runs gets nothing that nothing proved."""
    service = Service(audit, rollout=lenient())
    orders, proofless = service.broker.subscriber("orders"), list[Any]()

    async def late(order: Any) -> None:
        service.calls.append(order)

    @orders(filter=unverified)
    async def old(message: UnverifiedMessage) -> None:
        proofless.append(message.body)

    async with service.running() as deliver:
        orders(late)
        orders.calls.reverse()
        orders._build_fastdepends_model()
        await deliver(delivered(Message(destination=PLACE, body=b"{}"))[0])
    assert (service.calls, proofless) == ([], [b"{}"])


async def test_second_handler_that_fails(audit: AuditFile) -> None:
    """What a second handler raises counts as ever: it is tried again, and then dead-lettered."""
    service = Service(audit, rollout=lenient())
    orders, calls = service.broker.subscriber("orders"), list[Any]()

    @orders(filter=unverified)
    async def old(message: UnverifiedMessage) -> None:
        calls.append(message)
        raise ValueError

    channel = await service.deliver(
        Message(destination=PLACE, body=b"{}"), NotHandledError
    )
    assert len(calls) > 1
    assert (service.reasons, channel.settled) == ([Reason.HANDLER_FAILED], ["ack"])


async def test_kind_of_exemption(audit: AuditFile) -> None:
    """What an exemption lets pass reaches the handler of its kind; a subscriber without one does not start."""
    exempt = Exemption(
        destination=PLACE, until=DAY, why="old devices", kinds=frozenset({"heartbeat"})
    )
    service = Service(audit, rollout=lenient(exemptions=[exempt]))
    orders = service.broker.subscriber("orders")

    @orders
    async def new(order: Any) -> None:
        """Take an order."""

    with pytest.raises(ConfigurationError, match="unverified= is needed"):
        await service.broker.start()

    @orders(filter=unverified)
    async def rest(message: UnverifiedMessage) -> None:
        """Take what has no kind."""

    with pytest.raises(ConfigurationError, match="no handler for heartbeat"):
        await service.broker.start()

    @orders(filter=unverified.of("heartbeat"))
    async def beat(message: UnverifiedMessage) -> None:
        service.calls.append(message.body)

    orders.calls.reverse()
    beating = Message(destination=PLACE, body=b"beat", properties={"type": "heartbeat"})
    await service.deliver(beating)
    assert service.calls == [b"beat"]


@pytest.mark.parametrize("chosen", [{"filter": unverified}, {}], ids=["second", "first"])
async def test_handler_that_asks_for_the_other_kind(
    audit: AuditFile, chosen: Any
) -> None:
    """A handler that asks for a message of a kind that it never gets is refused at the start."""
    service = Service(audit, rollout=lenient())
    orders = service.broker.subscriber("orders")

    if chosen:

        @orders(**chosen)
        async def take(message: VerifiedMessage) -> None:
            """Take a message."""
    else:

        @orders
        async def take_other(message: UnverifiedMessage) -> None:
            """Take a message."""

    with pytest.raises(ConfigurationError, match="look at its filter"):
        await service.broker.start()


def test_page_tells_of_a_rollout(audit: AuditFile) -> None:
    """The AsyncAPI page of a channel with a second handler does not say that all is signed."""
    service = Service(audit, rollout=lenient())
    orders = service.broker.subscriber("orders")

    @orders(filter=unverified)
    async def old(message: UnverifiedMessage) -> None:
        """Take what nothing proved."""

    (channel,) = AsyncAPI(service.broker).to_specification().channels.values()
    assert channel.description == f"Take what nothing proved.\n\n{ROLLING}"


def test_page_counts_the_lines() -> None:
    """A converted application has as many lines more as the page says, and all of its old ones."""
    texts = {
        block.name: block.text
        for block in blocks("docs/faststream.md")
        if "invoices" in block.text
    }
    before, after = (
        [line for line in text.splitlines() if line] for text in texts.values()
    )
    named = "# faststream_converted.py"
    assert [line for line in before if line not in after] == []
    assert len([line for line in after if line not in (*before, named)]) == 7
