"""Deliveries of aiormq as aio-pika's ``IncomingMessage``, whatever they hold, from an instrumented queue too."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any, Final

from aio_pika.abc import AbstractIncomingMessage, AbstractQueue, AbstractRobustQueue
from aio_pika.message import IncomingMessage, decode_expiration
from aiormq.abc import AbstractChannel, DeliveredMessage

from mqauth.brokers.rabbitmq.channel import is_untouched

Take = Callable[[AbstractIncomingMessage], Awaitable[Any]]
_MODES: Final = (None, 0, 1, 2)
"""Delivery modes that aio-pika can hold; 0 counts as none."""


class Delivered(IncomingMessage):
    """A delivery as aio-pika has it, made faster: aio-pika looks for a lock each time an attribute is set."""

    __slots__ = ()
    __setattr__ = object.__setattr__  # type: ignore[assignment]


class Unreadable(Delivered):
    """A delivery that aio-pika 10.2 cannot hold: its ``IncomingMessage`` raises, and no callback is called.

    AMQP has one octet for the delivery mode, and RabbitMQ takes any value; aio-pika's ``DeliveryMode`` has two.
    An expiration is text to AMQP, and a number to aio-pika.

    Args:
        message: as aiormq gives it.

    Attributes:
        fault: what aio-pika cannot hold.
    """

    __slots__ = ("fault",)

    def __init__(self, message: DeliveredMessage) -> None:
        header, properties = copy.copy(message.header), copy.copy(message.header.properties)
        header.properties, mode = properties, properties.delivery_mode
        self.fault = "a property that aio-pika cannot hold"
        if not _is_number(properties.expiration):
            self.fault, properties.expiration = "the expiration is no number", None
        if mode not in _MODES:
            self.fault, properties.delivery_mode = f"delivery-mode {mode} is neither 1 nor 2", None
        super().__init__(replace(message, header=header))
        if mode not in _MODES:
            self.delivery_mode = mode  # type: ignore[assignment]


def _is_number(expiration: str | None) -> bool:
    try:
        decode_expiration(expiration)
    except ValueError:
        return False
    return True


def delivered(message: DeliveredMessage) -> IncomingMessage:
    """Return what aiormq's ``basic_consume`` or ``basic_get`` gave as aio-pika has it; never raises.

    An ``Unreadable`` stands for a delivery that aio-pika cannot hold.
    """
    try:
        return Delivered(message)
    except Exception:
        return Unreadable(message)


def as_incoming(message: DeliveredMessage | AbstractIncomingMessage) -> AbstractIncomingMessage:
    """Return a delivery as aio-pika has it, whether aio-pika or aiormq gave it."""
    return delivered(message) if isinstance(message, DeliveredMessage) else message


async def subscribed(queue: AbstractQueue, channel: AbstractChannel, take: Take) -> str:
    """Consume a queue and return the consumer's tag.

    This goes past aio-pika's ``consume``, which makes two tasks for each delivery, unless it is instrumented.

    Args:
        queue: aio-pika's.
        channel: aiormq's, of the queue.
        take: gets each delivery.
    """
    if is_untouched(queue, "consume"):
        return (await channel.basic_consume(queue.name, partial(_taken, take))).consumer_tag or ""
    seen: Any = copy.copy(queue)
    seen.channel = _Reading(queue.channel, channel, take)
    settings = {"robust": False} if isinstance(seen, AbstractRobustQueue) else {}
    tag: str = await seen.consume(take, **settings)
    return tag


async def _taken(take: Take, message: DeliveredMessage) -> None:
    await take(delivered(message))


class _Reading:
    """A channel of aio-pika's, and aiormq's below it, whose consumers get only what aio-pika can hold.

    Args:
        channel: aio-pika's.
        below: aiormq's.
        take: gets the rest, past the instrumentation.
    """

    def __init__(self, channel: Any, below: AbstractChannel, take: Take) -> None:
        self._channel = channel
        self._below = below
        self._take = take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def get_underlay_channel(self) -> Any:
        """Return itself, in place of aiormq's channel."""
        return self

    async def basic_consume(self, queue: str, consumer_callback: Callable[..., Any], **settings: Any) -> Any:
        """Consume as aiormq does."""
        return await self._below.basic_consume(queue, partial(self._read, consumer_callback), **settings)

    async def _read(self, callback: Callable[..., Any], message: DeliveredMessage) -> None:
        found = delivered(message)
        await (self._take(found) if isinstance(found, Unreadable) else callback(message))
