"""RabbitMQ: what becomes of a delivery that is no longer ours, or may not be."""

from __future__ import annotations

import asyncio
import gc
import logging
from dataclasses import replace
from typing import Any
from weakref import ref

import pytest
from aio_pika import exceptions

from mqauth import AuditFile, Cause, Message, Verdict, Verified
from mqauth.brokers import rabbitmq
from mqauth.brokers.rabbitmq.channel import closing_is_an_error, is_blocked, try_settle
from mqauth.brokers.rabbitmq.consumer import round_trip
from mqauth.delivery.hold import HeldDelivery
from mqauth.delivery.queue_work import Progress
from mqauth.delivery.slot import TIMEOUT_PARTS
from mqauth.errors import Reason, Rejection, RetryLater, StaleDelivery, Unavailable
from mqauth.flow import arun, run
from mqauth.judging.pipeline import Step
from tests.conftest import turns
from tests.test_rabbitmq_consumer import (
    PLACE,
    Channel,
    Delivery,
    Letters,
    Table,
    ask_instead,
    audit,
    processing,
    queue,
)

__all__ = ["audit"]


class Loop:
    """A connection of aiormq's, blocked or not."""

    def __init__(self) -> None:
        self.unblocked = asyncio.Event()
        self.unblocked.set()

    async def ready(self) -> None:
        """Wait until it is not blocked."""
        await self.unblocked.wait()


class Silent:
    """A channel that answers when a test says so."""

    def __init__(self) -> None:
        self.is_closed = False
        self.connection = Loop()
        self.answers: list[asyncio.Future[None]] = []
        self.closed_by_us = False

    async def flow(self, *, active: bool) -> None:
        """Wait for the answer; a channel whose call is cancelled is closed, as aiormq does it."""
        assert active
        self.answers.append(asyncio.get_running_loop().create_future())
        try:
            await self.answers[-1]
        except asyncio.CancelledError:
            self.closed_by_us = True
            raise


@pytest.fixture
def table(audit: AuditFile) -> Table:
    """A processor and all around it."""
    return Table(audit)


async def test_an_answer_counts_for_who_waited() -> None:
    """Two that wait share a question, a third that comes later has its own."""
    channel = Silent()
    trip = round_trip(channel)
    first = [asyncio.create_task(trip.lives()) for _ in range(2)]
    await turns()
    later = asyncio.create_task(trip.lives())
    await turns()
    assert len(channel.answers) == 1
    channel.answers[0].set_result(None)
    await turns()
    assert ([task.done() for task in first], later.done(), len(channel.answers)) == (
        [True, True],
        False,
        2,
    )
    channel.answers[1].set_result(None)
    assert [await task for task in (*first, later)] == [True, True, True]


async def test_a_round_trip_keeps_no_channel() -> None:
    """A channel that was asked is forgotten with whoever had it: a consumer has a new one after each reconnect."""
    channel: Any = Channel()
    assert await round_trip(channel).lives()
    known = ref(channel)
    await turns()
    del channel
    gc.collect()
    assert known() is None


@pytest.mark.parametrize(
    "error", [Exception, exceptions.ChannelInvalidStateError, asyncio.CancelledError]
)
async def test_a_channel_that_ended_does_not_live(error: type[BaseException]) -> None:
    """However aiormq says so."""
    channel = Silent()
    asked = asyncio.create_task(round_trip(channel).lives())
    await turns()
    if error is asyncio.CancelledError:
        channel.answers[0].cancel()
    else:
        channel.answers[0].set_exception(error)
    assert await asked is False


async def test_a_channel_without_an_answer_is_closed() -> None:
    """After ten parts of the time without an answer the channel is closed, so that the broker delivers again."""
    channel = Silent()
    assert await round_trip(channel, part=0.001).lives() is False
    assert channel.closed_by_us


async def test_on_a_blocked_connection_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the broker has blocked the connection no time runs: nothing is answered there."""
    channel, waited = Silent(), 0
    channel.connection.unblocked.clear()
    wait = asyncio.wait

    async def counted(*arguments: Any, **settings: Any) -> Any:
        nonlocal waited
        waited += 1
        if waited == 5 * TIMEOUT_PARTS:
            channel.answers[0].set_result(None)
        return await wait(*arguments, **settings)

    monkeypatch.setattr(asyncio, "wait", counted)
    assert await round_trip(channel, part=0.001).lives() is True
    assert is_blocked(channel)
    channel.connection.unblocked.set()
    assert not is_blocked(channel)


@pytest.mark.parametrize("what", ["expired", "policy", "handler"])
async def test_what_another_moment_decides_otherwise_waits_too(
    audit: AuditFile, what: str
) -> None:
    """Rejections for the time, by policy and for a failed handler are asked about before they are recorded."""
    table = Table(audit, lifetime=60)
    honest = table.honest()
    if what == "expired":
        table.clock.advance(1000)
    if what == "policy":
        honest = table.forge.signer().sign(
            Message(destination="rabbitmq:shop/other", body=b"b")
        )
    handler: Any = broken if what == "handler" else table.handled.append
    processor = processing(
        table.guard, handler, dead_letters=table.letters, sleep=table.sleep
    )
    delivery: Any = Delivery(honest)
    if what == "policy":
        delivery.routing_key = "other"
    outcome = await processor.process(delivery)
    assert outcome.verdict is Verdict.REJECTED
    assert delivery.channel.questions == 1


def broken(_: Verified) -> None:
    """Fail."""
    raise ValueError("no")


async def test_a_deferred_delivery_is_not_judged_after_its_channel_ended(
    table: Table, audit: AuditFile
) -> None:
    """It waits for a policy out of reach; its channel ends in the pause, its redelivery is handled: no replay."""
    delivery = Delivery(honest := table.honest())
    down = True

    async def decide(_: Any) -> Any:
        if down:
            raise Unavailable(Cause.POLICY_UNAVAILABLE, "down")
        return policy.decide(_)

    policy = ask_instead(table.guard, decide)

    async def sleep(_: float) -> None:
        nonlocal down
        delivery.channel.is_closed = True
        down = False
        assert (
            await table.process(Delivery(honest, redelivered=True))
        ).verdict is Verdict.ACCEPTED

    processor: Any = processing(
        table.guard, table.handled.append, dead_letters=table.letters, sleep=sleep
    )
    assert await processor.process(delivery) is None
    assert (len(table.handled), table.letters.found, audit.path.read_text()) == (
        1,
        [],
        "",
    )


@pytest.mark.parametrize(
    ("failures", "seconds", "verdict"),
    [(3, 61, Verdict.DUPLICATE), (3, 1620, Verdict.ACCEPTED)],
)
async def test_a_redelivery_waits_for_the_confirm_of_what_was_handled_here(
    audit: AuditFile, failures: int, seconds: float, verdict: Verdict
) -> None:
    """The lease is over; the first delivery confirms, or near its consumer timeout the redelivery does."""
    table, tried = Table(audit), list[Any]()
    first, later = Delivery(honest := table.honest()), list[asyncio.Task[Any]]()
    store: Any = table.guard.replay
    confirm = store.confirm

    def away(request: Any) -> Any:
        tried.append(request)
        if len(tried) <= failures:
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "down")
        return confirm(request)

    async def sleep(_: float) -> None:
        if not later:
            first.channel.is_closed = True
            table.clock.advance(seconds)
            later.append(
                asyncio.create_task(processor.process(Delivery(honest, redelivered=True)))
            )
        await turns()

    store.confirm = away
    processor: Any = processing(
        table.guard, table.handled.append, dead_letters=table.letters, sleep=sleep,
        hold=60, before_requeue=table.suspend,
    )  # fmt: skip
    await processor.process(first)
    assert (await later[0]).verdict is verdict
    assert (len(table.handled), len(tried)) == (1, failures + 1)


@pytest.mark.parametrize("probed", [False, True])
async def test_a_claim_whose_answer_was_lost_is_released(
    audit: AuditFile, *, probed: bool
) -> None:
    """A delivery given back, or probed with, leaves no claim behind that its neighbour would wait for."""
    table = Table(audit, hold=1)
    store: Any = table.guard.replay
    claim = store.claim

    def lost(request: Any) -> Any:
        claim(request)
        raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "no answer")

    store.claim = lost
    if probed:
        assert not await table.processor.probe(table.guard.receive(table.honest()))
    else:
        outcome = await table.process(Delivery(table.honest()))
        assert outcome.cause is Cause.REPLAY_STORE_UNAVAILABLE
    assert len(store) == 0


def test_a_claim_whose_release_lost_its_answer_is_made_again(table: Table) -> None:
    """A delivery whose claim may be gone is judged anew, and its handler never runs on the old verdict."""
    guard = table.guard
    store: Any = guard.replay
    delivery = guard.receive(table.honest())
    run(guard.judge(delivery))
    release = store.release

    def lost(request: Any) -> None:
        release(request)
        raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "no answer")

    store.release = lost
    assert run(guard.release(delivery)).cause is Cause.REPLAY_STORE_UNAVAILABLE
    assert (delivery.step, len(store)) == (Step.JUDGE, 0)


@pytest.mark.parametrize(
    ("reason", "step"),
    [(Reason.REPLAYED, Step.JUDGE), (Reason.HANDLER_FAILED, Step.RECORD)],
)
def test_a_rejection_that_was_not_proven_is_judged_anew(
    table: Table, reason: Reason, step: Step
) -> None:
    """A redelivery takes over no verdict that was never recorded, except that of a handler."""
    progress = Progress(table.guard, lambda _: True)
    earlier = table.guard.receive(table.honest())
    earlier.reject(Rejection(reason, "found on a channel that ended"), Step.RECORD)
    progress.keep(earlier)
    message = replace(
        earlier.message, origin=replace(earlier.message.origin, redelivered=True)
    )
    assert progress.receive(message).step is step


class Away(BaseException):
    """No ``Exception``."""


@pytest.mark.parametrize("error", [Away, SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("plain", [True, False])
async def test_whatever_a_handler_raises_its_delivery_comes_back(
    table: Table,
    caplog: pytest.LogCaptureFixture,
    error: type[BaseException],
    *,
    plain: bool,
) -> None:
    """The consumer ends with that error, once nothing is consumed; claim, slot and delivery are given back."""

    async def later(_: Verified) -> None:
        raise error

    def now(_: Verified) -> None:
        raise error

    source = queue()
    source.cancelled = []
    source.cancel = lambda tag: _remember(source.cancelled, tag)
    consumer = rabbitmq.Consumer(
        source, table.guard, now if plain else later, dead_letters=Letters()
    )
    consumer._window.consumes("tag")
    delivery: Any = Delivery(honest := table.honest())
    delivery.nack = lambda: _remember(
        delivery.settled, f"requeue after {source.cancelled}"
    )
    await consumer._subscription.take(delivery)
    await consumer.stop()
    assert type(consumer._window.failure) is error
    assert delivery.settled == ["requeue after ['tag']"]
    assert (consumer.health().in_flight, consumer.health().consuming) == (0, False)
    assert consumer.health().detail == f"the consumer ended: {error.__name__}"
    assert "ends" in caplog.text
    assert (
        await table.process(Delivery(honest, redelivered=True))
    ).verdict is Verdict.ACCEPTED


async def test_whatever_a_probe_meets_ends_the_consumer(table: Table) -> None:
    """A plug-in that raises no ``Exception`` while a queue is suspended: its consumer stood still for ever."""

    async def subscribed() -> None:
        raise Away

    consumer = rabbitmq.Consumer(
        queue(), table.guard, lambda _: None, dead_letters=Letters()
    )
    consumer._subscription.run = subscribed  # type: ignore[method-assign]
    with pytest.raises(Away):
        await asyncio.wait_for(consumer.run(), 1)


async def _remember(where: list[Any], what: Any) -> None:
    where.append(what)


async def test_a_stop_is_one(audit: AuditFile) -> None:
    """A late handler is cancelled once, however many ask for the stop and however often they are cancelled."""
    table, begun, cleaned = Table(audit), asyncio.Event(), list[str]()

    async def handler(_: Verified) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await turns(50)
            cleaned.append("up")

    consumer = rabbitmq.Consumer(
        queue(), table.guard, handler, dead_letters=Letters(), grace=0
    )
    delivery: Any = Delivery(honest := table.honest())
    await consumer._subscription.take(delivery)
    await begun.wait()
    asking = [asyncio.create_task(consumer.stop()) for _ in range(3)]
    await turns(3)
    asking[0].cancel()
    await turns(3)
    await consumer.stop()
    assert (cleaned, delivery.settled) == (["up"], ["requeue"])
    assert (
        await table.process(Delivery(honest, redelivered=True))
    ).verdict is Verdict.ACCEPTED


async def test_a_handler_may_stop_its_consumer(audit: AuditFile) -> None:
    """It is not waited for, so that it does not wait for itself."""
    table, ended = Table(audit), list[str]()

    async def handler(_: Verified) -> None:
        await consumer.stop()
        ended.append("stop")

    consumer = rabbitmq.Consumer(
        queue(), table.guard, handler, dead_letters=Letters(), grace=3600
    )
    delivery: Any = Delivery(table.honest())
    await consumer._subscription.take(delivery)
    await asyncio.gather(*consumer._subscription.tasks._running)
    assert (ended, delivery.settled) == (["stop"], ["ack"])


async def test_what_comes_while_stopping_is_given_back_after_the_cancel(
    audit: AuditFile,
) -> None:
    """Before it, it would come again at once, and spend its delivery limit."""
    table, order = Table(audit), list[str]()
    source = queue()
    delivery: Any = Delivery(table.honest())
    delivery.nack = lambda: _remember(order, "requeue")

    async def cancel(_: str) -> None:
        await consumer._subscription.take(delivery)
        await turns()
        order.append("cancelled")

    source.cancel = cancel
    consumer = rabbitmq.Consumer(
        source, table.guard, table.handled.append, dead_letters=Letters()
    )
    consumer._window.consumes("tag")
    await consumer.stop()
    assert (order, table.handled) == (["cancelled", "requeue"], [])


def _unavailable(*_: Any) -> None:
    raise Unavailable(Cause.AUDIT_UNAVAILABLE, "full")


async def test_what_only_trying_can_tell_stays_while_suspended(audit: AuditFile) -> None:
    """A delivery that waits for its record stays unacked and is tried until there is one; it costs no delivery."""
    table, suspended = Table(audit), list[HeldDelivery]()
    write, table.guard.audit.write = table.guard.audit.write, _unavailable  # type: ignore[union-attr,method-assign]

    async def suspend(held: HeldDelivery) -> bool:
        suspended.append(held)
        processor.hold.suspended = True
        processor.wake()
        table.guard.audit.write = write  # type: ignore[union-attr,method-assign]
        held.stays = held.needs_ours
        return held.stays

    processor = processing(
        table.guard,
        print,
        dead_letters=table.letters,
        sleep=table.sleep,
        hold=1,
        before_requeue=suspend,
    )
    delivery: Any = Delivery(Message(destination=PLACE, body=b"forged"))
    assert (await processor.process(delivery)).verdict is Verdict.REJECTED  # type: ignore[union-attr]
    assert (delivery.settled, len(suspended), suspended[0].is_over) == (["ack"], 1, True)


async def test_a_probe_runs_no_handler_though_its_claim_is_not_released(
    audit: AuditFile,
) -> None:
    """Where the store is out of reach a delivery given back keeps its claim: the probe releases it, no more."""
    calls = list[Verified]()

    def handler(verified: Verified) -> None:
        calls.append(verified)
        raise RetryLater("database")

    table = Table(audit)
    processor = processing(
        table.guard, handler, dead_letters=table.letters, sleep=table.sleep, hold=1
    )
    delivery = table.guard.receive(table.honest())
    await arun(table.guard.judge(delivery))
    store: Any = table.guard.replay
    release, store.release = store.release, _unavailable
    assert await processor.probe(delivery) is False
    store.release = release
    assert await processor.probe(delivery) is True
    assert calls == []


async def test_a_probe_that_is_cancelled_by_the_client_is_unanswered(
    table: Table,
) -> None:
    """aiormq cancels the futures of a lost connection: the consumer probes again, and is not ended by it."""

    async def decide(_: Verified) -> None:
        raise asyncio.CancelledError

    ask_instead(table.guard, decide)
    assert await table.processor.probe(table.guard.receive(table.honest())) is False


async def _judged_again(table: Table) -> tuple[rabbitmq.AsyncJudgement, Silent]:
    """Judge what was handled before, on a channel that does not answer yet."""
    honest, channel = table.honest(), Silent()
    await table.process(Delivery(honest))
    copy = Delivery(honest)
    copy.channel = channel
    judged = await rabbitmq.judge(table.guard, copy, queue="q")  # type: ignore[arg-type]
    assert judged.outcome.reason is Reason.REPLAYED
    return judged, channel


async def test_what_was_judged_is_buried_after_a_round_trip(audit: AuditFile) -> None:
    """Who settles by himself buries a replay once the broker has answered on its channel, and not before."""
    judged, channel = await _judged_again(table := Table(audit))
    burying = asyncio.create_task(judged.dead_letter(table.letters))
    await turns()
    assert (len(channel.answers), audit.path.read_text(), table.letters.found) == (
        1,
        "",
        [],
    )
    channel.answers[0].set_result(None)
    assert (await burying).verdict is Verdict.REJECTED
    assert len(table.letters.found) == 1


@pytest.mark.parametrize("when", ["before", "while asked"])
async def test_what_was_judged_is_not_buried_once_its_channel_ended(
    audit: AuditFile, when: str
) -> None:
    """Neither where it is known, nor where the broker does not answer; nor is it judged."""
    judged, channel = await _judged_again(table := Table(audit))
    channel.is_closed = when == "before"
    burying = asyncio.create_task(judged.dead_letter(table.letters))
    await turns()
    for answer in channel.answers:
        answer.set_exception(Exception)
    with pytest.raises(StaleDelivery):
        await burying
    assert (table.letters.found, audit.path.read_text()) == ([], "")
    channel.is_closed = True
    late = Delivery(table.honest())
    late.channel = channel
    with pytest.raises(StaleDelivery):
        await rabbitmq.judge(table.guard, late, queue="q")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "error",
    [
        Exception(),
        RuntimeError("closed"),
        exceptions.AMQPConnectionError("gone"),
        asyncio.CancelledError(),
    ],
)
async def test_what_a_client_raises_because_its_connection_ended(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    """aiormq's bare ``Exception``, its cancelling and the like are "connection lost", and others are not."""

    async def fails() -> None:
        raise error

    with caplog.at_level(logging.WARNING):
        assert await try_settle(fails, "ack") is False
    with pytest.raises(exceptions.AMQPConnectionError), closing_is_an_error():
        raise error
    with pytest.raises(ZeroDivisionError), closing_is_an_error():
        raise ZeroDivisionError


async def test_a_cancel_that_meets_a_bare_exception_ends_nothing(
    audit: AuditFile,
) -> None:
    """A consumer whose connection ends while it cancels goes on to its next start."""
    source = queue()

    async def cancel(_: str) -> None:
        raise Exception

    source.cancel = cancel
    consumer = rabbitmq.Consumer(
        source, Table(audit).guard, print, dead_letters=Letters()
    )
    consumer._window.consumes("tag")
    await consumer._subscription.cancelled()
    assert (consumer._window.failure, consumer.health().consuming) == (None, False)
