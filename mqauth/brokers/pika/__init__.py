"""RabbitMQ through pika: wrap a ``pika.BlockingConnection`` with ``Producer`` or ``Consumer``.

``DeadLetters`` takes what is rejected, ``declare_source`` makes the queue to consume from. A program that settles
its deliveries itself, in a callback of ``basic_consume``, takes ``judge``. Install the ``pika`` extra.
"""

from __future__ import annotations

from typing import Any

from mqauth.brokers.closing import UnconfirmedError
from mqauth.errors import needs_extra

with needs_extra("pika"):
    from pika.adapters.blocking_connection import BlockingChannel

from mqauth.brokers.judge import Judgement
from mqauth.brokers.pika.confirmed import (
    AuditQueue,
    DeadLetters,
    UnroutableError,
    declare_dead_letters,
    declare_source,
)
from mqauth.brokers.pika.consumer import Consumer, Delivered, Deliveries, echoed
from mqauth.brokers.pika.link import LOST, drive, link_of
from mqauth.brokers.pika.producer import Producer
from mqauth.brokers.pika.translate import from_native, to_message
from mqauth.brokers.queue.client import is_proved, prove
from mqauth.delivery.health import QueueHealth as Health
from mqauth.delivery.slot import Slot
from mqauth.flow import run
from mqauth.judging.pipeline import Delivery, Pipeline

__all__ = [
    "AuditQueue",
    "Consumer",
    "DeadLetters",
    "Health",
    "Judgement",
    "Producer",
    "UnconfirmedError",
    "UnroutableError",
    "declare_dead_letters",
    "declare_source",
    "from_native",
    "judge",
    "to_message",
]


def judge(
    guard: Pipeline,
    channel: BlockingChannel,
    method: Any,
    properties: Any,
    body: bytes,
    *,
    queue: str,
    scope: str | None = None,
) -> Judgement:
    """Judge one delivery, and claim it in the replay store where it is accepted; nothing is settled.

    A rejection that depends on the moment waits for a round trip on its channel, as with ``Consumer``: its
    ``dead_letter`` raises ``StaleDelivery`` where the channel ended, so that the delivery comes again.

    Args:
        guard: the pipeline; its plug-ins must not be asynchronous.
        channel: as a callback of ``basic_consume`` gets it.
        method: likewise.
        properties: likewise.
        body: likewise.
        queue: where it was taken from.
        scope: on whose behalf it was taken; by default the queue.

    Raises:
        ConfigurationError: a plug-in is asynchronous; or append times are believed, and the broker does not prove
            them.
        UnansweredError: it did not say whether it overwrites append times; nothing was judged.
        StaleDelivery: its channel ended: the broker delivers it again.
    """
    delivery = received(
        guard, channel, method, properties, body, queue=queue, scope=scope
    )
    return Judgement(guard, delivery, run(guard.judge(delivery)))


def received(
    guard: Pipeline,
    channel: BlockingChannel,
    method: Any,
    properties: Any,
    body: bytes,
    *,
    queue: str,
    scope: str | None = None,
) -> Delivery:
    """Return a delivery that is yet to be judged, for a framework with a loop of its own; else as ``judge``."""
    times, link = guard.verifier.times, link_of(channel.connection)
    if not is_proved(times, link):
        drive(prove(times, link, echoed))
    native, calls = Delivered(channel, method, properties, body), Deliveries(queue, scope)
    delivery = guard.receive(calls.message(native))
    slot = Slot(native, calls, guard.clock.monotonic())

    def fence(delivery: Delivery) -> None:
        unproven = slot.unproven(delivery)
        if unproven is not None:
            try:
                # pika waits for the answer until the connection is lost.
                channel.flow(True)
                lives = True
            except LOST:
                lives = False
            slot.answered(unproven, lives=lives)

    delivery.fence = fence
    fence(delivery)
    return delivery
