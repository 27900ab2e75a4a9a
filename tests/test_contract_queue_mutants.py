"""The delivery contract for queues is not blind: each mistake in engine or leaf fails one of its tests."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mqauth import AuditFile, Reason, Unavailable
from mqauth.brokers.queue.client import Acks
from mqauth.brokers.queue.consumer import QueueConsumer
from mqauth.brokers.queue.processor import LeaseRenewal, Processor, StartedDelivery
from mqauth.brokers.queue.subscription import Subscription
from mqauth.brokers.rabbitmq import DeadLetters
from mqauth.brokers.rabbitmq import consumer as rabbitmq_queue
from mqauth.delivery import slot
from mqauth.delivery.hold import Hold
from mqauth.delivery.queue_work import Progress, QueueWork
from mqauth.delivery.slot import DeliveryTags, Slot
from mqauth.flow import arun
from tests.kit.delivery_contract_queue import QueueDeliveryContract, QueuePlay
from tests.simulation.contract_stage import simulated_stage
from tests.simulation.engine_mutants import (
    Mutant,
    always,
    left_out,
    past_what_is_open,
    returning,
    unlike,
    unreleased,
)

CONTRACT = QueueDeliveryContract


@dataclass(frozen=True)
class Caught(Mutant):
    """A mistake, and the test of the contract that finds it."""

    test: Callable[..., Any]


def awaited(value: Any) -> Callable[[Any], Any]:
    """Return what always returns a value, and is awaited."""

    async def mutant(*_args: Any, **_kwargs: Any) -> Any:
        return value

    return lambda _: mutant


def without(*reasons: Reason) -> Callable[[Any], Any]:
    """Return a set of reasons without some."""
    return lambda original: original - set(reasons)


def received_as_settled(original: Any) -> Any:
    """Take what was received for settled."""

    def opened(ledger: DeliveryTags, tag: int) -> None:
        original(ledger, tag)
        ledger._settled[tag] = None  # type: ignore[assignment]

    return opened


def unconfirmed(original: Any) -> Any:
    """Publish a letter, and do not wait for its confirm."""

    async def publish(sink: Any, letter: Any) -> None:
        async def sent() -> None:
            with suppress(Unavailable):
                await original(sink, letter)

        sink.sending = asyncio.create_task(sent())

    return publish


def swallowing(original: Any) -> Any:
    """Drop a letter while its sink is down."""

    async def publish(sink: Any, letter: Any) -> None:
        with suppress(Unavailable):
            await original(sink, letter)

    return publish


def settled_all_the_same(_: Any) -> Any:
    """Ack what is deferred."""

    async def let_go(processor: Processor, begun: StartedDelivery) -> None:
        native, acks = begun.slot.native, begun.acks
        await arun(processor.work._release(begun.delivery))
        if acks is not None:
            processor._noted(native, acks, begun.delivery)
        elif not processor._calls.is_settled(native):
            await processor._calls.ack(native)

    return let_go


def at_once(_: Any) -> Any:
    """Wait for nothing before the next attempt."""

    async def pause(_processor: Processor, _seconds: float) -> None:
        await asyncio.sleep(0.001)

    return pause


def raising(_: Any) -> Any:
    """Leave a delivery as it is."""

    async def failed(
        _processor: Processor, _begun: StartedDelivery, error: BaseException
    ) -> None:
        raise error

    return failed


def every_time(_: Any) -> Any:
    """Stop once more for each that asks."""

    def end(consumer: QueueConsumer) -> asyncio.Task[None]:
        consumer._stop()
        return asyncio.create_task(consumer._wind_up())

    return end


def untried(_: Any) -> Any:
    """Consume, or fail."""
    return lambda subscription: subscription._consume()


def impatient(original: Any) -> Any:
    """Give up after half a minute."""

    async def start(subscription: Subscription) -> None:
        async with asyncio.timeout(30):
            await original(subscription)

    return start


def carried_over(original: Any) -> Any:
    """Ack on the new channel what is of the old one."""

    async def consume(subscription: Subscription) -> None:
        old = subscription.acks
        await original(subscription)
        if old is not None and subscription.acks is not None:
            old._send_ack, old._closed = subscription.acks._send_ack, False

    return consume


def cancelling(original: Any) -> Any:
    """Cancel what runs where its channel ends."""

    def on_close(subscription: Any, why: str, channel_alone: bool) -> None:
        original(subscription, why, channel_alone)
        for task in subscription.tasks._running:
            task.cancel()

    return on_close


def as_new(original: Any) -> Any:
    """Forget that a message was delivered before."""

    def from_native(incoming: Any, **settings: Any) -> Any:
        message = original(incoming, **settings)
        return replace(message, origin=replace(message.origin, redelivered=False))

    return from_native


MUTANTS = (
    Caught("acked before settled", DeliveryTags, "opened", received_as_settled,
           CONTRACT.test_an_ack_covers_what_is_settled),
    Caught("multiple past an open tag", DeliveryTags, "take", past_what_is_open,
           CONTRACT.test_an_ack_covers_what_is_settled),
    Caught("never acks", Acks, "settle", returning(None), CONTRACT.test_everything_is_acked_in_the_end),
    Caught("letter not confirmed", DeadLetters, "publish", unconfirmed, CONTRACT.test_a_letter_is_confirmed),
    Caught("letter dropped while the sink is down", DeadLetters, "publish", swallowing,
           CONTRACT.test_a_letter_is_confirmed),
    Caught("deferred treated as settled", Processor, "_let_go", settled_all_the_same,
           CONTRACT.test_what_is_put_off_is_not_settled),
    Caught("ignores back-off", Processor, "sleep_until_woken", at_once,
           CONTRACT.test_what_is_put_off_is_not_tried_hotly),
    Caught("no release on stop", QueueWork, "_release", unreleased, CONTRACT.test_no_claim_outlives_the_stop),
    Caught("receipt time lost", Progress, "receive", unlike, CONTRACT.test_the_time_of_receipt_survives),
    Caught("judges what is stale", slot, "TIME_DEPENDENT", without(Reason.REPLAYED),
           CONTRACT.test_what_is_stale_is_not_condemned),
    Caught("condemns what is stale for its time", slot, "TIME_DEPENDENT", without(Reason.EXPIRED),
           CONTRACT.test_what_is_stale_is_not_condemned_for_its_time),
    Caught("judged once more after its back-off", Slot, "unproven", returning(None),
           CONTRACT.test_a_channel_that_ends_while_messages_wait),
    Caught("held ones starve the rest", Hold, "wants_another", returning(False),
           CONTRACT.test_what_is_put_off_starves_nobody),
    Caught("an issuer's cause is everybody's", Hold, "concerns_everyone", returning(True),
           CONTRACT.test_an_issuer_starves_nobody),
    Caught("spends the limit", Slot, "is_last", always(False), CONTRACT.test_restarts_put_nothing_away),
    Caught("slot lost", Processor, "_failed", raising, CONTRACT.test_what_a_handler_must_not_raise),
    Caught("stops twice", QueueConsumer, "_end", every_time, CONTRACT.test_no_claim_outlives_a_long_handler),
    Caught("never resumes: cancelled", Subscription, "_on_cancel", returning(None),
           CONTRACT.test_consumes_again_after_it_was_cancelled),
    Caught("never resumes: channel closed", Subscription, "_on_close", returning(None),
           CONTRACT.test_consumes_again_after_its_channel_was_closed),
    Caught("never resumes: queue away", Subscription, "_start", untried,
           CONTRACT.test_consumes_again_when_its_queue_is_back),
    Caught("never resumes: outage", Processor, "probe", awaited(False),
           CONTRACT.test_an_outage_requeues_nothing_hotly),
    Caught("requeues hot", Subscription, "suspend", awaited(False),
           CONTRACT.test_an_outage_requeues_nothing_hotly),
    Caught("overtakes", Hold, "wants_another", returning(True),
           CONTRACT.test_what_is_put_off_is_not_overtaken),
    Caught("never resumes: connection lost", Subscription, "_on_close", returning(None),
           CONTRACT.test_consumes_again_after_its_connection_was_lost),
    Caught("never resumes: gives up after half a minute", Subscription, "_start", impatient,
           CONTRACT.test_consumes_again_when_its_queue_is_back_after_a_minute),
    Caught("handlers end with their channel", Subscription, "_on_close", cancelling,
           CONTRACT.test_a_channel_that_ends_under_a_handler),
    Caught("settles what is stale", Subscription, "_consume", carried_over,
           CONTRACT.test_an_ack_is_of_its_own_channel),
    Caught("lease not renewed", LeaseRenewal, "renewing", lambda _: left_out,
           CONTRACT.test_a_handler_that_outlasts_its_lease),
    Caught("redelivery taken for a copy", rabbitmq_queue, "from_native", as_new,
           CONTRACT.test_a_consumer_that_is_killed),
)  # fmt: skip


@pytest.fixture
def play(tmp_path: Path) -> Iterator[QueuePlay]:
    """A play on a simulated stage."""
    with (
        simulated_stage() as stage,
        AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit,
    ):
        yield QueuePlay(stage, audit, stage.clock)


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught(mutant: Caught, play: QueuePlay) -> None:
    """The mistake fails the test that is there for it."""
    with mutant.made(), pytest.raises((AssertionError, TimeoutError)):
        mutant.test(CONTRACT(), play)


def test_every_promise_has_its_mutant() -> None:
    """No test of the contract is there for nothing: each is the one that finds some mistake."""
    promises = {name for name in dir(CONTRACT) if name.startswith("test_")}
    assert {mutant.test.__name__ for mutant in MUTANTS} == promises
