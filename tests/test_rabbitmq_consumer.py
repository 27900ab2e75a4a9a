"""RabbitMQ consumer, what needs no broker: its window, its refusals and warnings, and one delivery's end."""

from __future__ import annotations

import asyncio
import functools
import logging
from contextvars import ContextVar
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import wrapt
from aio_pika import exceptions
from aio_pika.message import IncomingMessage
from aio_pika.queue import Queue
from aio_pika.robust_queue import RobustQueue
from aiormq.abc import DeliveredMessage
from pamqp import commands
from pamqp.header import ContentHeader

from mqauth import (
    AuditFile,
    Cause,
    ConfigurationError,
    MemoryReplayStore,
    Pipeline,
    Verdict,
    Verified,
)
from mqauth.brokers import rabbitmq
from mqauth.brokers.queue.processor import Processor, StartedDelivery
from mqauth.brokers.rabbitmq.channel import closing_is_an_error, is_untouched
from mqauth.brokers.rabbitmq.consumer import Delivered, Deliveries
from mqauth.brokers.rabbitmq.translate import from_native, headers_out
from mqauth.delivery.hold import HeldDelivery
from mqauth.delivery.queue_work import again
from mqauth.errors import Reason, RetryLater, Unavailable
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing import FakeClock, Forge
from mqauth.wire.message import Message
from tests.conftest import Alarm

PLACE = "rabbitmq:shop/orders.created"


class Letters:
    """Dead letters that may be out of reach."""

    name = "dead"

    def __init__(self) -> None:
        self.down = False
        self.found: list[DeadLetter] = []

    def publish(self, letter: DeadLetter, /) -> None:
        """Keep a letter."""
        if self.down:
            raise Unavailable(Cause.DEAD_LETTER_UNAVAILABLE, "down")
        self.found.append(letter)


class Channel:
    """A channel of aiormq's that answers."""

    def __init__(self) -> None:
        self.is_closed = False
        self.questions = 0

    async def flow(self, *, active: bool) -> bool:
        """Answer that deliveries flow."""
        self.questions += 1
        return active


class Delivery(SimpleNamespace):
    """A delivery as aio-pika gives it, that remembers how it was settled."""

    def __init__(self, message: Message, *, redelivered: bool = False) -> None:
        super().__init__(
            body=message.body, headers=headers_out(message.headers), exchange="shop", routing_key="orders.created",
            consumer_tag="tag",
            redelivered=redelivered, processed=False, channel=Channel(), settled=[],
            ack_error=None, **{name.replace("-", "_"): value for name, value in message.properties.items()},
        )  # fmt: skip

    async def ack(self) -> None:
        """Remember the ack."""
        if self.ack_error is not None:
            raise self.ack_error
        self.settled.append("ack")

    async def nack(self) -> None:
        """Remember the requeue."""
        self.settled.append("requeue")


def processing(guard: Pipeline, handler: Any, **settings: Any) -> Processor:
    """Return a processor of a quorum queue ``q``; ``before_requeue`` is its ``suspend``."""
    suspend = settings.pop("before_requeue", None)
    processor = Processor(Deliveries("q"), guard, handler, **settings)
    if suspend is not None:
        processor.suspend = suspend  # type: ignore[method-assign]
    return processor


def ask_instead(guard: Any, decide: Any) -> Any:
    """Have something else decide who may publish, and return the policy that did."""
    verdicts = guard.verdicts
    policy, verdicts._policy = verdicts._policy, SimpleNamespace(decide=decide)
    verdicts._decide = decide
    return policy


class Table:
    """A processor with everything around it, on a clock that moves while it sleeps."""

    def __init__(
        self, audit: AuditFile, *, lifetime: int = 3600, **settings: Any
    ) -> None:
        self.clock = FakeClock()
        self.forge = Forge(self.clock, lifetime=lifetime)
        self.letters = Letters()
        self.handled: list[Verified] = []
        self.slept: list[float] = []
        self.suspended: list[HeldDelivery] = []
        self.guard = Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy(PLACE), audit=audit, clock=self.clock,
            replay=settings.pop("replay", MemoryReplayStore)(clock=self.clock),
        )  # fmt: skip
        wanted: dict[str, Any] = {
            "dead_letters": self.letters, "sleep": self.sleep, "before_requeue": self.suspend, "hold": 60,
        } | settings  # fmt: skip
        self.processor = processing(self.guard, self.handled.append, **wanted)

    async def sleep(self, seconds: float) -> None:
        """Let time pass at once."""
        self.slept.append(seconds)
        self.clock.advance(seconds)

    async def suspend(self, held: HeldDelivery) -> bool:
        """Remember why the consumer would be suspended; nothing stays."""
        self.suspended.append(held)
        return False

    def honest(self) -> Message:
        """Return a signed message."""
        return self.forge.signer().sign(Message(destination=PLACE, body=b"b"))

    async def process(self, delivery: Delivery) -> Any:
        """Process one delivery."""
        return await self.processor.process(delivery)  # type: ignore[arg-type]


@pytest.fixture
def audit(tmp_path: Path) -> Any:
    """Yield an audit file."""
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as sink:
        yield sink


@pytest.fixture
def table(audit: AuditFile) -> Table:
    """A processor and all around it."""
    return Table(audit)


class Tags:
    """Stands for the acks of a channel."""

    def __init__(self) -> None:
        self.settled: list[int] = []
        self.given_back: list[int] = []

    def opened(self, tag: int) -> None:
        """Take note of nothing."""

    def settle(self, tag: int, _delivery: Any) -> None:
        """Remember what is to be acked."""
        self.settled.append(tag)

    def gone(self, tag: int) -> None:
        """Remember what needs no ack."""
        self.given_back.append(tag)


class Spot:
    """A processor that has seen a message, so that its like need not be awaited."""

    def __init__(self, audit: AuditFile, handler: Any = None, **settings: Any) -> None:
        self.table = Table(audit, **settings)
        self.tags: Any = Tags()
        wanted = {
            "dead_letters": self.table.letters,
            "sleep": self.table.sleep,
            "hold": 1,
        }
        self.processor = processing(
            self.table.guard, handler or self.table.handled.append, **wanted
        )
        self.number = 0

    async def warm(self) -> None:
        """Have one message accepted."""
        assert (await self.processor.process(self.delivery())).verdict is Verdict.ACCEPTED

    def delivery(self, message: Message | None = None) -> Any:
        """Return a delivery, of an honest message by default."""
        self.number += 1
        found = Delivery(message or self.table.honest())
        found.delivery_tag = self.number
        return found


@pytest.fixture
def spot(audit: AuditFile) -> Spot:
    """A processor that settles on the spot."""
    return Spot(audit)


async def test_settled_on_the_spot(spot: Spot) -> None:
    """With a plain handler, store and sinks a delivery is handled, or dead-lettered, and settled at once."""
    begun = spot.processor.begin(spot.delivery(), spot.tags)
    assert not isinstance(begun, StartedDelivery)
    assert begun.verdict is Verdict.ACCEPTED
    assert (spot.tags.settled, len(spot.table.handled)) == ([1], 1)
    forged = replace(spot.table.honest(), body=b"another")
    begun = spot.processor.begin(spot.delivery(forged), spot.tags)
    assert not isinstance(begun, StartedDelivery)
    assert begun.verdict is Verdict.REJECTED
    assert (
        spot.tags.settled,
        len(spot.table.handled),
        len(spot.table.letters.found),
    ) == ([1, 2], 1, 1)


async def test_without_acks_nothing_is_settled_on_the_spot(spot: Spot) -> None:
    """An ack by itself is awaited, so that a task makes it."""
    delivery = spot.delivery()
    begun = spot.processor.begin(delivery, None)
    assert isinstance(begun, StartedDelivery)
    assert (len(spot.table.handled), delivery.settled) == (1, [])
    assert (
        await spot.processor.process(delivery, None, begun)
    ).verdict is Verdict.ACCEPTED
    assert (len(spot.table.handled), delivery.settled) == (1, ["ack"])


async def test_acked_by_its_handler_on_the_spot(audit: AuditFile) -> None:
    """A delivery that its handler settled is not acked again."""
    delivery: Any = None

    def handler(_: Verified) -> None:
        if delivery is not None:
            delivery.processed = True

    spot = Spot(audit, handler)
    await spot.warm()
    delivery = spot.delivery()
    assert not isinstance(spot.processor.begin(delivery, spot.tags), StartedDelivery)
    assert (spot.tags.settled, spot.tags.given_back) == ([], [2])


async def _awaits(_: Verified) -> None:
    await asyncio.sleep(0)


class Far(MemoryReplayStore):
    """A store out of this process."""

    async def claim(self, request: Any, /) -> Any:  # type: ignore[override]
        """Claim after a turn of the loop."""
        await asyncio.sleep(0)
        return super().claim(request)


@pytest.mark.parametrize(
    ("handler", "settings", "handled"),
    [(_awaits, {}, 0), (None, {"replay": Far}, 1)],
    ids=["handler", "store"],
)
async def test_what_is_awaited_is_left_to_a_task(
    audit: AuditFile, handler: Any, settings: Any, handled: int
) -> None:
    """Nothing that is to be awaited is waited for on the spot."""
    spot = Spot(audit, handler, **settings)
    delivery = spot.delivery()
    begun = spot.processor.begin(delivery, spot.tags)
    assert isinstance(begun, StartedDelivery)
    assert (spot.tags.settled, spot.table.handled) == ([], [])
    assert (
        await spot.processor.process(delivery, spot.tags, begun)
    ).verdict is Verdict.ACCEPTED
    assert (spot.tags.settled, len(spot.table.handled)) == ([1], handled)


async def test_an_awaitable_of_a_plain_handler_is_awaited_once(audit: AuditFile) -> None:
    """What a handler returns without being asynchronous itself is awaited by the task that goes on."""
    calls, awaited = list[Verified](), list[Verified]()

    async def work(verified: Verified) -> None:
        awaited.append(verified)

    def handler(verified: Verified) -> Any:
        calls.append(verified)
        return work(verified)

    spot = Spot(audit, handler)
    await spot.warm()
    delivery = spot.delivery()
    begun = spot.processor.begin(delivery, spot.tags)
    assert isinstance(begun, StartedDelivery)
    assert (len(calls), len(awaited)) == (2, 1)
    assert (
        await spot.processor.process(delivery, spot.tags, begun)
    ).verdict is Verdict.ACCEPTED
    assert (len(calls), len(awaited), spot.tags.settled) == (2, 2, [2])


@pytest.mark.parametrize("failures", [1, 2, 3])
async def test_a_failure_on_the_spot_counts(audit: AuditFile, failures: int) -> None:
    """A handler that fails at once is called as often as ever, and its message dead-lettered after that."""
    calls = 0

    def handler(_: Verified) -> None:
        nonlocal calls
        calls += 1
        if 1 < calls <= 1 + failures:
            raise ValueError("no")

    spot = Spot(audit, handler)
    await spot.warm()
    delivery = spot.delivery()
    begun = spot.processor.begin(delivery, spot.tags)
    assert isinstance(begun, StartedDelivery)
    assert calls == 2
    outcome = await spot.processor.process(delivery, spot.tags, begun)
    assert outcome.reason is (Reason.HANDLER_FAILED if failures == 3 else None)
    assert (calls, spot.tags.settled) == (1 + min(3, failures + 1), [2])


async def test_what_was_begun_is_ended_on_a_lost_channel(audit: AuditFile) -> None:
    """It is judged by what was known of an earlier delivery, and carried to its end: nobody else will."""
    spot = Spot(audit, _awaits, lifetime=60)
    honest = spot.table.honest()
    earlier = again(
        from_native(spot.delivery(honest), queue="q"), spot.table.guard.receive(honest)
    )
    spot.processor.work.lost((earlier,))
    spot.table.clock.advance(100)
    delivery = spot.delivery(honest)
    delivery.redelivered = True
    begun = spot.processor.begin(delivery, spot.tags)
    delivery.channel.is_closed = True
    assert isinstance(begun, StartedDelivery)
    outcome = await spot.processor.process(delivery, spot.tags, begun)
    assert outcome.verdict is Verdict.ACCEPTED
    assert spot.tags.settled == [2]


async def test_a_stale_delivery_is_not_begun(spot: Spot) -> None:
    """What was delivered before a reconnect has no tag here, no handler and no task: it comes again."""
    consumer = rabbitmq.Consumer(
        queue(), spot.table.guard, spot.table.handled.append, dead_letters=Letters()
    )
    consumer._subscription.acks = spot.tags  # which would fail to open anything
    delivery = spot.delivery()
    delivery.channel.is_closed = True
    await consumer._subscription.take(delivery)
    assert (spot.table.handled, spot.tags.settled, len(consumer._subscription.tasks)) == (
        [],
        [],
        0,
    )


async def test_a_delivery_has_one_context(audit: AuditFile) -> None:
    """What a plain handler sets before it returns an awaitable, that finds, and may set back."""
    var, seen = ContextVar[str]("var", default="outside"), list[str]()

    def handler(_: Verified) -> Any:
        token = var.set("inside")

        async def work() -> None:
            seen.append(var.get())
            var.reset(token)
            seen.append(var.get())

        return work()

    spot = Spot(audit)
    consumer = rabbitmq.Consumer(
        queue(), spot.table.guard, handler, dead_letters=Letters()
    )
    consumer._subscription.acks = spot.tags
    await consumer._subscription.take(spot.delivery())
    await asyncio.gather(*consumer._subscription.tasks._running)
    assert (seen, var.get(), spot.tags.settled) == (["inside", "outside"], "outside", [1])


async def test_a_claim_ages_from_where_it_was_made(audit: AuditFile) -> None:
    """The lease of a delivery counts from where it was begun, not from its task's first step."""
    ages = list[float]()

    async def handler(_: Verified) -> None:
        ages.extend(
            clock.monotonic() - since
            for _, since in spot.processor._leases._since.values()
        )

    spot = Spot(audit, handler)
    clock, delivery = spot.table.clock, spot.delivery()
    begun = spot.processor.begin(delivery, spot.tags)
    clock.advance(50)
    assert isinstance(begun, StartedDelivery)
    await spot.processor.process(delivery, spot.tags, begun)
    assert ages == [50]


def broken(*_: Any) -> None:
    """Fail as nothing of ours should."""
    raise ZeroDivisionError


async def test_an_error_of_ours_on_the_spot_ends_the_consumer(
    spot: Spot, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not left to aiormq, which would log it and go on with a delivery that nobody settles."""
    consumer = rabbitmq.Consumer(
        queue(), spot.table.guard, print, dead_letters=spot.table.letters
    )
    monkeypatch.setattr(consumer._subscription, "begin", broken)
    await consumer._subscription.take(spot.delivery())
    assert isinstance(consumer._window.failure, ZeroDivisionError)
    assert consumer._stopping.is_set()


async def test_what_is_handled_on_the_spot_is_in_flight(audit: AuditFile) -> None:
    """A handler that asks finds its own delivery counted, wherever it runs."""
    seen = list[int]()
    spot = Spot(audit)
    consumer = rabbitmq.Consumer(
        queue(),
        spot.table.guard,
        lambda _: seen.append(consumer.health().in_flight),
        dead_letters=Letters(),
    )
    consumer._subscription.acks = spot.tags
    for _ in range(2):
        await consumer._subscription.take(spot.delivery())
        await asyncio.gather(*consumer._subscription.tasks._running)
    assert (seen, spot.tags.settled) == ([1, 1], [1, 2])
    assert consumer.health().in_flight == 0


async def test_stale_is_not_dispatched(table: Table) -> None:
    """A delivery from before a reconnect is neither handled nor settled: it comes again."""
    delivery = Delivery(table.honest())
    delivery.channel.is_closed = True
    assert await table.process(delivery) is None
    assert (delivery.settled, table.handled) == ([], [])


async def test_a_copy_does_not_take_the_progress(table: Table) -> None:
    """A copy that the broker does not call redelivered gets no one else's progress."""
    table.letters.down = True
    forged = Message(destination=PLACE, body=b"forged")
    await table.process(Delivery(forged))
    table.letters.down = False
    await table.process(Delivery(forged))
    await table.process(Delivery(forged, redelivered=True))
    assert len(table.letters.found) == 2


async def test_a_lost_ack_is_no_second_handling(table: Table) -> None:
    """Where the ack cannot be sent the redelivery is acked without handling it again."""
    honest = table.honest()
    first = Delivery(honest)
    first.ack_error = exceptions.ChannelInvalidStateError()
    assert (await table.process(first)).verdict is Verdict.ACCEPTED
    assert table.processor.work.unsettled == 1
    again = Delivery(honest, redelivered=True)
    await table.process(again)
    assert (again.settled, len(table.handled)) == (["ack"], 1)


class Deaf(MemoryReplayStore):
    """A store that takes claims and releases nothing while its answers get lost."""

    deaf = True

    def claim(self, request: Any, /) -> Any:
        """Claim, and perhaps not say so."""
        status = super().claim(request)
        if self.deaf:
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "no answer")
        return status

    def release(self, request: Any, /) -> None:
        """Be out of reach."""
        raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "no answer")


class Away(MemoryReplayStore):
    """A store that is out of reach for claims at first."""

    away = True

    def claim(self, request: Any, /) -> Any:
        """Claim, where it can be reached."""
        if self.away:
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "no answer")
        return super().claim(request)


async def test_a_probe_leaves_the_claim_of_what_is_back(audit: AuditFile) -> None:
    """A probe that ends late releases no claim but its own: the message may be here again, and handled."""
    table = Table(audit, replay=Away)
    store = cast(Away, table.guard.replay)
    probed: list[bool] = []

    async def handler(_verified: Verified) -> None:
        probed.append(await processor.probe(table.suspended[0].delivery))

    processor = processing(
        table.guard,
        handler,
        dead_letters=table.letters,
        sleep=table.sleep,
        before_requeue=table.suspend,
        hold=1,
    )
    honest: Any = table.honest()
    assert (await processor.process(Delivery(honest))).verdict is Verdict.DEFERRED  # type: ignore[arg-type]
    store.away = False
    back: Any = Delivery(honest, redelivered=True)
    assert (await processor.process(back)).verdict is Verdict.ACCEPTED
    copy: Any = Delivery(honest, redelivered=True)
    assert (await processor.process(copy)).verdict is Verdict.DUPLICATE
    assert len(probed) == 1


@pytest.mark.parametrize("probed", [False, True])
async def test_a_claim_whose_answer_was_lost_holds_nobody_up(
    audit: AuditFile, *, probed: bool
) -> None:
    """A delivery given back while the store's answers got lost is handled at once when it comes again."""
    table = Table(audit, hold=1, replay=Deaf)
    store = cast(Deaf, table.guard.replay)
    honest = table.honest()
    assert (await table.process(Delivery(honest))).verdict is Verdict.DEFERRED
    store.deaf = False
    if probed:
        assert await table.processor.probe(table.suspended[0].delivery) is True
    waited = len(table.slept)
    assert (
        await table.process(Delivery(honest, redelivered=True))
    ).verdict is Verdict.ACCEPTED
    assert (len(table.handled), len(table.slept)) == (1, waited)


class Slow:
    """A processor of a table whose handler runs until it is told to end."""

    def __init__(self, table: Table) -> None:
        self.begun, self.go_on, self.alarm = asyncio.Event(), asyncio.Event(), Alarm()
        self._table = table
        self.processor = processing(
            table.guard, self._handler, dead_letters=table.letters, sleep=table.sleep, timer=self.alarm,
            consumer_timeout=0,
        )  # fmt: skip

    async def _handler(self, verified: Verified) -> None:
        self.begun.set()
        await self.go_on.wait()
        self._table.handled.append(verified)

    async def start(self, delivery: Any) -> asyncio.Task[Any]:
        """Let the handler begin."""
        task = asyncio.create_task(self.processor.process(delivery))
        await self.begun.wait()
        return task

    async def wait(self, seconds: float) -> None:
        """Let time pass, and the timer with it."""
        for _ in range(round(seconds / self.alarm.set[0][0])):
            self._table.clock.advance(self.alarm.set[0][0])
            await self.alarm.ring()


async def test_a_copy_does_expire(audit: AuditFile) -> None:
    """What the broker does not call redelivered, or whose original has its connection yet, is judged by itself."""
    for lost, redelivered in ((True, False), (False, True)):
        table = Table(audit, lifetime=60, consumer_timeout=0)
        slow, honest = Slow(table), table.honest()
        delivery = Delivery(honest)
        running = await slow.start(delivery)
        await slow.wait(300)
        delivery.channel.is_closed = lost
        copy: Any = Delivery(honest, redelivered=redelivered)
        assert (await slow.processor.process(copy)).reason is Reason.EXPIRED
        slow.go_on.set()
        await running


async def test_a_claim_lost_is_said(
    audit: AuditFile, caplog: pytest.LogCaptureFixture
) -> None:
    """A handler that finds its claim taken by another is reported, once, and not stopped."""
    table = Table(audit, consumer_timeout=0)
    slow, honest = Slow(table), table.honest()
    running = await slow.start(Delivery(honest))
    table.clock.advance(table.guard.lease)
    await table.process(Delivery(honest, redelivered=True))
    await slow.wait(2 * table.guard.lease / 3)
    assert caplog.text.count("outlived its claim") == 1
    slow.go_on.set()
    assert (await running).verdict is Verdict.ACCEPTED


async def test_short_handlers_cost_no_renewal(audit: AuditFile) -> None:
    """A thousand short handlers set one timer, which asks the store for nothing and ends when nothing is left."""
    alarm, renewed = Alarm(), []
    table = Table(audit, timer=alarm)
    table.guard.renew = renewed.append  # type: ignore[method-assign,assignment]
    for _ in range(1000):
        await table.process(Delivery(table.honest()))
    assert [seconds for seconds, _ in alarm.set] == [table.guard.lease / 3]
    before = asyncio.all_tasks()
    await alarm.ring()
    assert (renewed, alarm.set, asyncio.all_tasks() - before) == ([], [], set())
    await table.process(Delivery(table.honest()))
    assert len(alarm.set) == 1


async def test_guarded_callbacks_renew_too(
    audit: AuditFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The callback of guarded() keeps the claim of a long handler as the consumer does."""
    table, begun, go_on = (
        Table(audit, consumer_timeout=0),
        asyncio.Event(),
        asyncio.Event(),
    )
    alarm = Alarm()
    monkeypatch.setattr(asyncio.get_running_loop(), "call_later", alarm)

    async def handler(_verified: Verified) -> None:
        begun.set()
        await go_on.wait()

    callback: Any = rabbitmq.guarded(
        table.guard, handler, dead_letters=table.letters, queue="q"
    )
    honest = table.honest()
    running = asyncio.create_task(callback(Delivery(honest)))
    await begun.wait()
    for _ in range(6):
        table.clock.advance(table.guard.lease / 3)
        await alarm.ring()
    outcome = await table.process(Delivery(honest, redelivered=True))
    assert outcome.cause is Cause.CLAIM_HELD
    go_on.set()
    await running


async def test_a_lost_connection_is_no_cancellation(table: Table) -> None:
    """A future that aiormq cancels inside a handler defers the message; it is not a failure of the handler."""
    cancelled = [True]

    async def handler(verified: Verified) -> None:
        if cancelled:
            cancelled.clear()
            raise asyncio.CancelledError
        table.handled.append(verified)

    processor = processing(
        table.guard, handler, dead_letters=table.letters, sleep=table.sleep
    )
    delivery: Any = Delivery(table.honest())
    outcome = await processor.process(delivery)
    assert outcome.verdict is Verdict.ACCEPTED
    assert (len(table.handled), table.letters.found) == (1, [])


async def test_decode_runs_after_verification(audit: AuditFile) -> None:
    """A body that cannot be decoded is the handler's failure at once; none is decoded before it is verified."""
    decoded: list[Any] = []

    def decode(body: bytes | None) -> Any:
        decoded.append(body)
        raise ValueError("no JSON")

    table = Table(audit, decode=decode)
    await table.process(Delivery(Message(destination=PLACE, body=b"forged")))
    assert decoded == []
    await table.process(Delivery(table.honest()))
    assert decoded == [b"b"]
    assert [letter.rejection.reason for letter in table.letters.found] == [
        "token_missing",
        "handler_failed",
    ]
    assert table.letters.found[1].rejection.detail == "decode: ValueError"


async def test_decode_may_ask_for_another_time(audit: AuditFile) -> None:
    """What decode cannot do now, a schema registry out of reach for example, is deferred like a handler's."""
    registry: list[Any] = []

    def decode(body: bytes | None) -> Any:
        if not registry:
            registry.append("up")
            raise RetryLater("no registry")
        return body

    table = Table(audit, decode=decode)
    await table.process(Delivery(table.honest()))
    assert [seen.value for seen in table.handled] == [b"b"]
    assert (registry, table.letters.found) == (["up"], [])


async def test_a_real_cancellation_stays_one() -> None:
    """A task that is cancelled itself sees a cancellation, not a connection error."""

    async def wait() -> None:
        with closing_is_an_error():
            await asyncio.Event().wait()

    task = asyncio.create_task(wait())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_delivery_is_aio_pikas_own() -> None:
    """What handlers get as ``native`` is an aio-pika message with every field aio-pika itself would give it."""
    properties = commands.Basic.Properties(
        headers={"a": [1]}, message_id="m", delivery_mode=2, expiration="60000", priority=3, content_type="t",
        timestamp=datetime(2026, 1, 1, tzinfo=UTC),
    )  # fmt: skip
    channel: Any = SimpleNamespace(is_closed=False)
    header = ContentHeader(body_size=1, properties=properties)
    deliver = commands.Basic.Deliver("c", 7, True, "shop", "k")
    given = DeliveredMessage(delivery=deliver, header=header, body=b"x", channel=channel)
    assert Delivered(given).info() == IncomingMessage(given).info()
    assert Delivered(given).processed is False


@pytest.mark.parametrize("touch", ["replaced", "proxied", "wrapped"])
def test_instrumented_queues_are_not_gone_past(
    touch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``consume`` is gone past where it is aio-pika's own, and never where something stands in its place.

    A proxy of wrapt's says of itself that it is the function it wraps, and ``functools.wraps`` copies its module.
    """
    robust = RobustQueue.__new__(RobustQueue)
    assert is_untouched(robust, "consume")
    assert not is_untouched(queue(), "consume")
    stands_in: dict[str, Any] = {
        "replaced": lambda *_: None, "proxied": wrapt.FunctionWrapper(Queue.consume, lambda *_: None),
        "wrapped": functools.wraps(Queue.consume)(lambda *_: None),
    }  # fmt: skip
    monkeypatch.setattr(Queue, "consume", stands_in[touch])
    assert not is_untouched(robust, "consume")


def queue(**settings: Any) -> Any:
    """Return a queue as aio-pika gives it."""
    usual: dict[str, Any] = {"name": "q", "arguments": {"x-queue-type": "quorum"}, "passive": False,
                             "channel": SimpleNamespace(close_callbacks=set(), _connection=object())}  # fmt: skip
    return SimpleNamespace(**(usual | settings))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"prefetch": 0}, "prefetch"), ({"grace": -1}, "grace"), ({"replies": "signer"}, "Producer"),
        ({"hold": 0.5}, "hold"), ({"hold": 60, "consumer_timeout": 60}, "consumer_timeout"),
        ({"max_held": 1001}, "max_held"), ({"max_held": -1}, "max_held"),
    ],
)  # fmt: skip
def test_refused_settings(table: Table, settings: dict[str, Any], what: str) -> None:
    """Settings out of their limits are refused at construction."""
    replies = {"replies": table.forge.signer()} if "replies" in settings else {}
    with pytest.raises(ConfigurationError, match=what):
        rabbitmq.Consumer(
            queue(),
            table.guard,
            print,
            dead_letters=table.letters,
            **(settings | replies),
        )


def test_refused_without_audit(audit: AuditFile) -> None:
    """A pipeline without audit settles nothing, so no consumer takes it; nor one that buries in its source."""
    forge = Forge()
    bare = Pipeline(
        verifier=forge.verifier(), policy=forge.policy(PLACE), replay=MemoryReplayStore()
    )
    with pytest.raises(ConfigurationError, match="audit"):
        rabbitmq.Consumer(queue(), bare, print, dead_letters=Letters())
    with pytest.raises(ConfigurationError, match="audit"):
        rabbitmq.guarded(bare, print, dead_letters=Letters(), queue="q")
    with pytest.raises(ConfigurationError, match="a sink of dead letters has a name"):
        rabbitmq.Consumer(queue(), Table(audit).guard, print, dead_letters=object())  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="another queue"):
        rabbitmq.Consumer(
            queue(name="dead"), Table(audit).guard, print, dead_letters=Letters()
        )


def test_warnings(audit: AuditFile, caplog: pytest.LogCaptureFixture) -> None:
    """A classic queue and a connection shared with the dead letters are warned about, a passive queue is not."""
    letters, source, guard = Letters(), queue(arguments={}), Table(audit).guard
    letters.channel = source.channel  # type: ignore[attr-defined]
    with caplog.at_level(logging.WARNING, "mqauth.rabbitmq"):
        rabbitmq.Consumer(source, guard, print, dead_letters=letters)
    assert "no quorum queue" in caplog.text
    assert "share its connection" in caplog.text
    caplog.clear()
    rabbitmq.Consumer(
        queue(arguments={}, passive=True), guard, print, dead_letters=Letters()
    )
    assert caplog.text == ""


@pytest.mark.parametrize(
    "settings", [{"timeout": 0}, {"oversize_letters": "drop"}, {"name": ""}]
)
def test_refused_dead_letters(settings: dict[str, Any]) -> None:
    """Dead letters without a name, a time limit or a known way with oversize are refused."""
    wanted: Any = {"name": "dead"} | settings
    with pytest.raises(ConfigurationError):
        rabbitmq.DeadLetters(SimpleNamespace(publisher_confirms=True), **wanted)  # type: ignore[arg-type]


async def test_woken_is_tried_again_at_once(audit: AuditFile) -> None:
    """A held delivery does not wait for its back-off when it is woken, because keys changed."""
    table = Table(audit, sleep=lambda seconds: asyncio.Event().wait())
    table.letters.down = True
    delivery = Delivery(Message(destination=PLACE, body=b"forged"))
    processing = asyncio.create_task(table.process(delivery))
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(table.processor.hold)
    table.letters.down = False
    table.processor.wake()
    assert (await asyncio.wait_for(processing, 30)).verdict is Verdict.REJECTED
    assert delivery.settled == ["ack"]


class SlowToReturn(Delivery):
    """A delivery whose requeue is sent at once, and drained slowly."""

    async def nack(self) -> None:
        """Remember the requeue, and take a moment more."""
        self.settled.append("requeue")
        self.sent.set()
        await asyncio.sleep(0.01)


async def test_given_back_once_though_cancelled_meanwhile(audit: AuditFile) -> None:
    """A task cancelled while its requeue is drained sends no second one, which would close the channel."""
    table = Table(audit, replay=Refusing)
    delivery = SlowToReturn(table.honest())
    delivery.sent = asyncio.Event()
    task = asyncio.create_task(table.process(delivery))
    await delivery.sent.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert delivery.settled == ["requeue"]


class Refusing(MemoryReplayStore):
    """A store out of reach."""

    def claim(self, _request: Any, /) -> Any:
        """Refuse."""
        raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "away")


class SlowToRelease(MemoryReplayStore):
    """A store that answers a release late."""

    async def release(self, request: Any, /) -> None:  # type: ignore[override]
        """Release after a moment."""
        await asyncio.sleep(0.01)
        super().release(request)


async def test_given_back_though_cancelled_while_its_claim_is_released(
    audit: AuditFile,
) -> None:
    """A handler ends its consumer, and the grace is over while the store is slow: the delivery is given back."""

    class Abort(BaseException):
        """What a handler must not raise."""

    async def handler(_: Verified) -> None:
        raise Abort

    spot = Spot(audit, handler, replay=SlowToRelease)
    delivery = spot.delivery()
    task = asyncio.create_task(spot.processor.process(delivery, spot.tags))
    for _ in range(5):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert delivery.settled == ["requeue"]
    assert spot.tags.given_back == [1]


class SlowToClaim(MemoryReplayStore):
    """A store that answers a claim late."""

    async def claim(self, request: Any, /) -> Any:  # type: ignore[override]
        """Claim, and say so after a moment."""
        status = super().claim(request)
        await asyncio.sleep(0.01)
        return status


async def test_a_probe_that_is_cut_short_leaves_no_claim(audit: AuditFile) -> None:
    """A stop ends a probe while the store's answer is on its way: the message can be handled at once."""
    table = Table(audit, replay=SlowToClaim)
    honest = table.honest()
    waiting = table.guard.receive(
        replace(honest, origin=replace(honest.origin, queue="q"))
    )
    probing = asyncio.create_task(table.processor.probe(waiting))
    await asyncio.sleep(0)
    probing.cancel()
    await asyncio.gather(probing, return_exceptions=True)
    assert (await table.process(Delivery(honest))).verdict is Verdict.ACCEPTED
