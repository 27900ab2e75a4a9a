"""The place of one delivery in a consumer's window, and for how long it is ours."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Final

from aio_pika.abc import AbstractIncomingMessage

from mqauth.brokers.rabbitmq_acks import Acks
from mqauth.brokers.rabbitmq_channel import is_stale, told
from mqauth.brokers.rabbitmq_roundtrip import round_trip
from mqauth.brokers.rabbitmq_translate import failures_of
from mqauth.delivery.questions import OF_THE_MOMENT
from mqauth.errors import Rejection, StaleDelivery
from mqauth.judging.delivery import Delivery, Step

NO_LIMIT: Final = -1
"""Stands for the delivery limit of a queue that has none."""


class Slot:
    """One delivery's place: ours from its receipt until it is given back or its channel ended.

    Args:
        incoming: the delivery.
        acks: of its channel, which know of it; without, it is acked by itself.
        received: monotonic seconds.
        limit: how often the broker may be given it back; negative for any number.
    """

    __slots__ = ("_gone", "_limit", "_proved", "acks", "incoming", "received")

    def __init__(self, incoming: AbstractIncomingMessage, acks: Acks | None, received: float, limit: int) -> None:
        self.incoming = incoming
        self.acks = acks
        self.received = received
        self._limit = limit
        self._gone = False
        self._proved: Rejection | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the broker counts on us to settle it, as far as we know."""
        return not self._gone and not is_stale(self.incoming)

    @property
    def is_last(self) -> bool:
        """Whether another return would put the message over its delivery limit, away without record and letter."""
        return 0 <= self._limit <= failures_of(self.incoming)

    @property
    def tag(self) -> str:
        """The tag of the consumer it came to."""
        return self.incoming.consumer_tag or ""

    @property
    def size(self) -> int:
        """Bytes of its body."""
        return len(self.incoming.body or b"")

    def fence(self, delivery: Delivery) -> Awaitable[None] | None:
        """Let a delivery's next step pass: the ``fence`` of a ``Delivery``.

        A rejection that another moment would decide otherwise passes after a round trip on the consuming channel,
        begun after the verdict.

        Raises:
            StaleDelivery: it is not ours any more.
        """
        if not self.is_ours:
            raise StaleDelivery("the channel of the delivery ended")
        rejection = delivery.rejection
        if delivery.step is not Step.RECORD or rejection is None or rejection is self._proved:
            return None
        return self._prove(rejection) if rejection.reason in OF_THE_MOMENT else None

    async def _prove(self, rejection: Rejection) -> None:
        """Ask the broker whether the delivery was ours when it was rejected."""
        if not await round_trip(self.incoming.channel).lives() or not self.is_ours:
            self._gone = True
            raise StaleDelivery("the channel of the delivery did not answer")
        self._proved = rejection

    async def settle(self, delivery: Delivery, what: str) -> bool:
        """Ack it, now or soon, unless the handler did so itself; tell whether its channel still takes acks."""
        if self.incoming.processed:
            self._note_gone()
        elif self.acks is not None:
            self.acks.settle(self.incoming.delivery_tag or 0, delivery)
        else:
            return await told(self.incoming.ack, what)
        return True

    async def give_back(self, what: str) -> None:
        """Requeue it, unless it is not ours or the handler settled it itself."""
        if self.incoming.processed or not self.is_ours:
            return
        if await told(self.incoming.nack, what):
            self._note_gone()
        self._gone = True

    def _note_gone(self) -> None:
        """Note that it needs no ack any more; never before it was given back, or an ack would cover it."""
        if self.acks is not None:
            self.acks.gone(self.incoming.delivery_tag or 0)
