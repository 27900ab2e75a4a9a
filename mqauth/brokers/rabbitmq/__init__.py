"""RabbitMQ through aio-pika: wrap a connected exchange with ``Producer``, a queue with ``Consumer``.

``DeadLetters`` takes what is rejected, ``declare_source`` makes the queue to consume from. A program that has
its own consumer takes ``guarded``; one that settles its deliveries itself takes ``judge``. Install the
``rabbitmq`` extra.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Unpack

from mqauth.brokers.closing import UnconfirmedError
from mqauth.errors import StaleDelivery, needs_extra, require

with needs_extra("rabbitmq"):
    from aio_pika.abc import AbstractIncomingMessage
    from aiormq.abc import DeliveredMessage


from mqauth.brokers.dead_letters import responder_of
from mqauth.brokers.event_loop import DeliveryTasks
from mqauth.brokers.judge import AsyncJudgement
from mqauth.brokers.options import DeliveryOptions
from mqauth.brokers.queue.processor import Processor, fence
from mqauth.brokers.rabbitmq.channel import proved
from mqauth.brokers.rabbitmq.confirmed import (
    AuditQueue,
    DeadLetters,
    declare_dead_letters,
    declare_source,
)
from mqauth.brokers.rabbitmq.consumer import Consumer, Deliveries, as_incoming
from mqauth.brokers.rabbitmq.translate import from_native, to_message
from mqauth.delivery.health import QueueHealth as Health
from mqauth.delivery.slot import Slot
from mqauth.flow import arun
from mqauth.judging.pipeline import Handler, Pipeline, V
from mqauth.letters.dead_letter import DeadLetterSink

if TYPE_CHECKING:
    from mqauth.brokers.rabbitmq.producer import Producer, UnroutableError

__all__ = [
    "AsyncJudgement",
    "AuditQueue",
    "Consumer",
    "DeadLetters",
    "Health",
    "Producer",
    "UnconfirmedError",
    "UnroutableError",
    "declare_dead_letters",
    "declare_source",
    "from_native",
    "guarded",
    "judge",
    "to_message",
]


def __getattr__(name: str) -> Any:
    """Import what publishes when it is first used (PEP 562): a program that only consumes does not load it."""
    if name not in ("Producer", "UnroutableError"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.producer"), name)


def guarded(
    guard: Pipeline,
    handler: Handler[V],
    *,
    dead_letters: DeadLetterSink,
    queue: str,
    replies: Producer | None = None,
    **options: Unpack[DeliveryOptions[V]],
) -> Callable[[AbstractIncomingMessage | DeliveredMessage], Coroutine[Any, Any, None]]:
    """Return a callback for ``queue.consume`` that does for each message what ``Consumer`` does.

    For a message whose delivery mode is not 0, 1 or 2 aio-pika 10.2 raises before it calls anybody, and leaves it
    unacked. As the callback of aiormq's ``basic_consume`` this one gets such a message too, and dead-letters it.

    The consumer stays yours, and cannot be suspended: a deferred message stays unacked, in a place of your
    prefetch, until a tenth before ``consumer_timeout``, and then goes back unless it is at its last delivery.
    With ``no_ack=True`` there is nothing to give back: what is deferred for longer is lost. What a handler
    raises that is no ``Exception`` gives its message back; end your consumer then.

    Args:
        guard: the pipeline.
        handler: takes a ``Verified``.
        dead_letters: where rejected messages go.
        queue: name of the queue that is consumed.
        replies: signs and publishes what ``Verified.reply`` is given, on a default exchange.
        options: as ``mqauth.brokers.options.DeliveryOptions`` has them.

    Raises:
        ConfigurationError: the pipeline has no audit; from the callback: append times are believed, and the broker
            does not prove them, so that its message stays unacked.
    """
    require(guard.audit is not None, "a consumer's pipeline needs audit=")
    processor = Processor(
        Deliveries(queue),
        guard,
        handler,
        dead_letters=dead_letters,
        responder=responder_of(replies),
        **options,
    )
    tasks = DeliveryTasks()

    async def process(incoming: AbstractIncomingMessage) -> None:
        with suppress(StaleDelivery):
            await proved(guard.verifier.times, incoming)
            await processor.process(incoming)

    async def callback(incoming: AbstractIncomingMessage | DeliveredMessage) -> None:
        await asyncio.shield(tasks.run(process(as_incoming(incoming))))

    return callback


async def judge(
    guard: Pipeline,
    incoming: AbstractIncomingMessage | DeliveredMessage,
    *,
    queue: str,
    scope: str | None = None,
) -> AsyncJudgement:
    """Judge one delivery, and claim it in the replay store where it is accepted; nothing is settled.

    A rejection that depends on the moment waits for a round trip on its channel, as with ``Consumer``: its
    ``dead_letter`` raises ``StaleDelivery`` where the channel ended, so that the delivery comes again.

    Args:
        guard: the pipeline.
        incoming: the delivery, or what aiormq's ``basic_get`` returns, of which aio-pika's ``queue.get`` cannot
            make a message in each case; settle ``delivery.message.native`` then.
        queue: where it was taken from.
        scope: on whose behalf it was taken; by default the queue.

    Raises:
        ConfigurationError: append times are believed, and the broker does not prove them.
        StaleDelivery: its channel ended: the broker delivers it again.
    """
    incoming = as_incoming(incoming)
    await proved(guard.verifier.times, incoming)
    calls = Deliveries(queue, scope)
    delivery = guard.receive(calls.message(incoming))
    delivery.fence = partial(fence, calls, Slot(incoming, calls, guard.clock.monotonic()))
    delivery.fence(delivery)
    return AsyncJudgement(guard, delivery, await arun(guard.judge(delivery)))
