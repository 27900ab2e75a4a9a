"""What is asked of aio-pika and aiormq for one delivery: to ack it, to give it back, whether its channel lives."""

from __future__ import annotations

from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary, ref

from aio_pika.abc import AbstractIncomingMessage
from aiormq.abc import AbstractChannel

from mqauth.brokers.queue.acks import Send
from mqauth.brokers.queue.roundtrip import PART, RoundTrip
from mqauth.brokers.rabbitmq.channel import LOST, closing_is_an_error, is_blocked, is_stale, told
from mqauth.brokers.rabbitmq.translate import failures_of, from_native
from mqauth.wire.message import Message


class Deliveries:
    """Makes the calls for the deliveries of one queue: the ``DeliveryClient`` of ``queue_client``.

    Args:
        queue: its name.
        scope: on whose behalf; by default the queue.
    """

    ended = staticmethod(is_stale)
    returns = staticmethod(failures_of)

    def __init__(self, queue: str, scope: str | None = None) -> None:
        self.queue = queue
        self._scope = scope

    def message(self, native: AbstractIncomingMessage, /) -> Message:
        """Translate a delivery."""
        return from_native(native, queue=self.queue, scope=self._scope)

    def tag(self, native: AbstractIncomingMessage, /) -> int:
        """Return its number on its channel."""
        return native.delivery_tag or 0

    def consumer(self, native: AbstractIncomingMessage, /) -> str:
        """Return the tag of the consumer that it came to."""
        return native.consumer_tag or ""

    def size(self, native: AbstractIncomingMessage, /) -> int:
        """Return the bytes of its body."""
        return len(native.body or b"")

    def is_settled(self, native: AbstractIncomingMessage, /) -> bool:
        """Tell whether its handler settled it itself."""
        return native.processed

    async def ack(self, native: AbstractIncomingMessage, /) -> bool:
        """Ack it alone; ``False`` where its channel is gone."""
        return await told(native.ack, f"ack on {self.queue}")

    async def requeue(self, native: AbstractIncomingMessage, /) -> bool:
        """Give it back; ``False`` where its channel is gone."""
        return await told(native.nack, f"requeue on {self.queue}")

    async def lives(self, native: AbstractIncomingMessage, /) -> bool:
        """Tell whether its channel answers a question that is asked from now on; closed where it does not."""
        return await round_trip(native.channel).lives()


_ROUND_TRIPS: Final[WeakKeyDictionary[Any, RoundTrip]] = WeakKeyDictionary()


def round_trip(channel: Any, *, part: float = PART) -> RoundTrip:
    """Return the one that asks on a channel of aiormq's; ``part`` as in ``RoundTrip``, where it is a new one."""
    found = _ROUND_TRIPS.get(channel)
    if found is None:
        known = ref(channel)
        found = RoundTrip(lambda: _answers(known()), lambda: is_blocked(known()), part=part)
        _ROUND_TRIPS[channel] = found
    return found


async def _answers(channel: Any) -> bool:
    """Ask on a channel; ``False`` where it ended. aiormq closes a channel whose call is cancelled.

    The question is ``channel.flow`` with ``active=true``, which a channel is anyway (AMQP 0-9-1, 1.5.2.3): it
    needs no value of the consumer's, as ``basic.qos`` would.
    """
    try:
        with closing_is_an_error():
            await channel.flow(active=True)
    except LOST:
        return False
    return True


def sender(channel: AbstractChannel, queue: str) -> Send:
    """Return what sends the acks of a channel of aiormq's; it returns ``False`` where the channel is gone."""

    async def send(tag: int, multiple: bool) -> bool:
        return await told(partial(channel.basic_ack, tag, multiple=multiple), f"ack on {queue}")

    return send
