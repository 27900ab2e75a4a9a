"""RabbitMQ: how long a deferred delivery is held, by whose fault, and what its last delivery comes to."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from mqauth import AuditFile, Cause, Message, Verdict, Verified
from mqauth.brokers import rabbitmq
from mqauth.brokers.rabbitmq.consumer import Deliveries
from mqauth.delivery.hold import CONSUMER_TIMEOUT, HeldDelivery
from mqauth.delivery.slot import Slot
from mqauth.errors import Reason, RetryLater
from mqauth.judging.pipeline import Outcome
from tests.delivery_parts import Said
from tests.delivery_parts import held as waiting_for
from tests.test_rabbitmq_consumer import (
    PLACE,
    Delivery,
    Letters,
    Table,
    Tags,
    audit,
    processing,
    queue,
)

__all__ = ["audit"]
FORGED = Message(destination=PLACE, body=b"forged")


class Waits:
    """A table whose handler asks for another time, until it is told not to."""

    def __init__(self, audit: AuditFile, **settings: Any) -> None:
        self.table = Table(audit)
        self.calls = 0
        self.until = 10**9
        self.suspended: list[HeldDelivery] = []
        wanted: dict[str, Any] = {
            "sleep": self.table.sleep,
            "before_requeue": self.suspend,
            "hold": 60,
        } | settings
        self.processor = processing(
            self.table.guard, self.handler, dead_letters=self.table.letters, **wanted
        )

    def handler(self, _: Verified) -> None:
        """Ask for another time."""
        self.calls += 1
        if self.calls < self.until:
            raise RetryLater("database")

    async def suspend(self, held: HeldDelivery) -> bool:
        """Remember it."""
        self.suspended.append(held)
        return False


def last(table: Table, *, returns: Any = 20) -> Any:
    """Return a delivery that was given back so often."""
    delivery: Any = Delivery(table.honest(), redelivered=True)
    delivery.headers = delivery.headers | {"x-delivery-count": returns}
    return delivery


async def test_retry_later_is_not_run_again_where_another_handled_it_meanwhile(
    audit: AuditFile,
) -> None:
    """Its process stands still for longer than the lease; on waking it asks the store before the handler."""
    waits = Waits(audit)
    waits.until = 3
    table, neighbour = waits.table, list[Verified]()
    delivery: Any = Delivery(honest := table.honest(), redelivered=True)
    other: Any = processing(table.guard, neighbour.append, dead_letters=table.letters)

    async def stand_still(_: float) -> None:
        table.clock.advance(table.guard.lease + 1)
        await other.process(Delivery(honest, redelivered=True))

    waits.processor._sleep = stand_still
    outcome: Any = await waits.processor.process(delivery)
    assert (outcome.verdict, len(neighbour), waits.calls) == (Verdict.DUPLICATE, 1, 2)


@pytest.mark.parametrize(
    ("returns", "acquired", "redelivered", "limit"),
    [
        # The broker's count is believed only of what is delivered again: a publisher can write that header.
        (19, None, True, None), (20, None, False, None), ("20", None, True, None), (None, None, True, None),
        # RabbitMQ 4.3 leaves the header as it was published where no delivery failed, and counts all in another.
        (1000, 1, True, None), (None, 1000, True, None),
        # A classic queue has no limit, and one may be declared without.
        (1000, None, True, -1),
    ],
)  # fmt: skip
async def test_what_is_not_the_last_delivery(
    audit: AuditFile,
    returns: Any,
    acquired: int | None,
    limit: int | None,
    *,
    redelivered: bool,
) -> None:
    """What is not known to be the last delivery is given back."""
    waits = Waits(
        audit, consumer_timeout=0, **({} if limit is None else {"delivery_limit": limit})
    )
    delivery = last(waits.table, returns=returns)
    delivery.redelivered = redelivered
    delivery.headers |= {} if acquired is None else {"x-acquired-count": acquired}
    await waits.processor.process(delivery)
    assert delivery.settled == ["requeue"]


async def test_a_stop_gives_no_last_delivery_back(
    audit: AuditFile, caplog: pytest.LogCaptureFixture
) -> None:
    """At a stop one whose handler asked for another time is buried; one that waits for others is left, loudly."""
    waits = Waits(audit)
    waits.processor.hold.stopping = True
    waits.processor.wake()
    delivery = last(waits.table)
    assert (await waits.processor.process(delivery)).reason is Reason.HANDLER_FAILED  # type: ignore[union-attr]
    waits.table.letters.down = True
    consumer = rabbitmq.Consumer(
        queue(), waits.table.guard, waits.handler, dead_letters=waits.table.letters
    )
    delivery = last(waits.table)
    await consumer._subscription.take(delivery)
    assert (consumer.health().at_limit, consumer.health().held) == (0, {})
    with caplog.at_level(logging.CRITICAL):
        await consumer.stop()
    assert delivery.settled == []
    assert "1 messages at their last delivery were not settled" in caplog.text


class Away(BaseException):
    """No ``Exception``."""


async def test_guarded_says_critical_of_a_last_one(
    audit: AuditFile, caplog: pytest.LogCaptureFixture
) -> None:
    """Who cannot be stopped says at once what ``Consumer`` says at its stop."""
    table = Table(audit)

    async def handler(_: Verified) -> None:
        raise Away

    callback = rabbitmq.guarded(
        table.guard, handler, dead_letters=table.letters, queue="q"
    )
    delivery = last(table)
    with caplog.at_level(logging.CRITICAL), pytest.raises(Away):
        await callback(delivery)
    assert delivery.settled == []
    assert "1 messages at their last delivery were not settled" in caplog.text


async def test_guarded_holds_every_cause(audit: AuditFile) -> None:
    """What cannot be suspended holds for half an hour what any other would give back after a minute."""
    table = Table(audit, hold=None)
    table.letters.down = True
    delivery = Delivery(FORGED)
    assert (await table.process(delivery)).cause is Cause.DEAD_LETTER_UNAVAILABLE
    assert (delivery.settled, sum(table.slept) >= 0.9 * CONSUMER_TIMEOUT) == (
        ["requeue"],
        True,
    )


@pytest.mark.parametrize(
    ("told", "arguments", "limit"),
    [
        (None, {}, 20),
        (None, {"x-delivery-limit": 5}, 5),
        (7, {"x-delivery-limit": 5}, 7),
        (None, {"x-queue-type": "classic"}, -1),
    ],
)
def test_the_limit_of_a_queue(
    audit: AuditFile, told: int | None, arguments: dict[str, Any], limit: int
) -> None:
    """It is what is told, else what the queue was declared with here, else RabbitMQ's own, of quorum queues."""
    source = queue(arguments={"x-queue-type": "quorum"} | arguments)
    consumer = rabbitmq.Consumer(
        source, Table(audit).guard, print, dead_letters=Letters(), delivery_limit=told
    )
    assert consumer._subscription._limit == limit


@pytest.mark.parametrize("on_the_spot", [False, True])
async def test_an_outage_longer_than_a_delivery_costs_one_message(
    audit: AuditFile, *, on_the_spot: bool
) -> None:
    """Where what stayed had to go back, one delivery at a time is taken, until a rejection was buried."""
    table, acks = Table(audit), Tags()
    consumer = rabbitmq.Consumer(
        queue(), table.guard, print, dead_letters=table.letters, sleep=table.sleep
    )
    slot = Slot(Delivery(FORGED), Deliveries("q"), 0, 20)
    judged = table.guard.receive(FORGED)
    held = HeldDelivery(
        slot,
        judged,
        Outcome(Verdict.DEFERRED),
        0,
        stays=True,
        goes_back=True,
        is_over=True,
    )
    consumer._window.stalled = held
    await consumer._subscription._until_cause_is_over(held)
    assert consumer.health().prefetch == 1
    consumer._subscription.acks = acks if on_the_spot else None  # type: ignore[assignment]
    for tag, message in enumerate((table.honest(), FORGED)):
        delivery = Delivery(message)
        delivery.delivery_tag = tag
        await consumer._subscription.take(delivery)
        await asyncio.gather(*consumer._subscription.tasks._running)
    assert acks.settled == ([0, 1] if on_the_spot else [])
    assert (consumer.health().prefetch, consumer._subscription.interrupted.is_set()) == (
        10,
        True,
    )


async def test_a_consumer_that_was_full_is_not_for_ever(audit: AuditFile) -> None:
    """Where all that was held is gone with its channel, the consumer of the next one is well."""
    table = Table(audit)
    consumer = rabbitmq.Consumer(
        queue(), table.guard, print, dead_letters=table.letters, prefetch=1
    )
    consumer._window.consumes("first")
    waiting = waiting_for(Cause.HANDLER_DEFERRED, said=Said(tag="first"))
    consumer._subscription.hold.put(waiting)
    consumer._subscription.look()
    assert not consumer.health().consuming
    consumer._subscription._on_close("gone", False)
    consumer._subscription.hold.take(waiting)
    consumer._subscription.look()
    consumer._window.consumes("second")
    assert consumer.health().consuming
