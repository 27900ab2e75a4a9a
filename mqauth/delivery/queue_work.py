"""Takes the deliveries of a queue through the pipeline, and keeps their progress for when they come again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from mqauth.delivery.hold import is_deferred
from mqauth.delivery.log_work import equipped
from mqauth.delivery.progress import Fence, Progress
from mqauth.delivery.slot import Slot
from mqauth.errors import Cause, StaleDelivery
from mqauth.flow import Flow
from mqauth.judging.pipeline import Delivery, Handler, Outcome, Pipeline, Step, Verdict
from mqauth.judging.verified import Decode, Responder, Unverifieds
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import emit
from mqauth.wire.message import Message

LEFT: Final = (
    "%s: %d messages at their last delivery were not settled; when the connection closes the broker puts them away"
    " without audit record and dead letter, where the queue has a dead-letter exchange there"
)
INTERRUPTED: Final = Outcome(
    Verdict.DEFERRED, cause=Cause.HANDLER_DEFERRED, detail="what the handler waited for was cancelled"
)
"""Outcome of an attempt in which a client cancelled what it waited for, because its connection was lost."""
_LEASE_PARTS: Final = 3


class QueueWork:
    """Takes each delivery of one queue as far as it gets.

    Args:
        queue: the queue's name.
        guard: the pipeline.
        handler: takes a ``Verified``.
        dead_letters: where rejected messages go.
        ended: returns whether the channel of a client's delivery ended.
        decode: makes ``Verified.value`` of the body, after verification.
        answer: publishes what ``Verified.reply`` is given.
        stops: whether its consumer is stopped one day, and logs then what was left.
        unverified: takes an ``Unverified``; or a table of handlers by kind.

    Attributes:
        unsettled: how many settled deliveries could not be acked.
        left: how many last deliveries were not given back.
    """

    def __init__(
        self,
        queue: str,
        guard: Pipeline,
        handler: Handler,
        dead_letters: DeadLetterSink,
        *,
        ended: Callable[[Any], bool],
        decode: Decode | None,
        answer: Responder | None,
        stops: bool,
        unverified: Unverifieds | None = None,
    ) -> None:
        self._queue = queue
        self._guard = guard
        self._unverified = guard.handlers(handler, unverified)
        self._handler = equipped(handler, decode, answer)
        self._dead_letters = dead_letters
        self._level = logging.WARNING if stops else logging.CRITICAL
        self._progress = Progress(guard, ended)
        self.begin, self.end = self._progress.begin, self._progress.end
        self._trial: Delivery | None = None
        self.unsettled = self.left = 0

    def receive(self, message: Message, fence: Fence) -> Delivery:
        """Return a message's delivery, with the progress of an earlier one of the same content.

        Args:
            message: as delivered.
            fence: called before each step; raises where the broker has given the message to somebody else.
        """
        delivery = self._progress.receive(message)
        delivery.fence = self._progress.fenced(delivery, fence) if delivery.deferred else fence
        return delivery

    def attempt(self, delivery: Delivery) -> Flow[Outcome]:
        """Take a delivery through the pipeline until it is settled or deferred."""
        return self._guard.process(delivery, self._handler, self._dead_letters, self._unverified)

    def probe(self, delivery: Delivery) -> Flow[bool]:
        """Return whether a delivery that was given back would get further now; its handler is not run."""
        if delivery.step is Step.HANDLE or delivery.step is Step.PASS_ON:
            yield from self._guard.release(delivery)
            return delivery.claim is None
        if delivery.step is not Step.JUDGE:
            try:
                return not is_deferred((yield from self.attempt(delivery)))
            # It got as far as a delivery that is not ours may get.
            except StaleDelivery:
                return True
        # Under an owner of its own: the delivery may be here again, and releasing the trial must not release its
        # claim.
        self._trial = trial = Delivery(message=delivery.message, received=delivery.received, deferred=True)
        outcome = yield from self._guard.judge(trial)
        yield from self.end_probe()
        # A store that says who holds a claim is in reach, and that cause concerns one message alone.
        return not is_deferred(outcome) or outcome.cause is Cause.CLAIM_HELD

    def end_probe(self) -> Flow[None]:
        """Release the claim of the last probe, also of one that was cancelled."""
        trial, self._trial = self._trial, None
        if trial is not None:
            yield from self._release(trial)

    def let_go(self, delivery: Delivery) -> Flow[bool]:
        """Release a delivery's claim and keep its progress; return whether it is to be given back.

        A settled one is not, since it may have been acked: the broker closes the channel for a tag settled twice.
        """
        yield from self._release(delivery)
        self._progress.keep(delivery)
        return delivery.step is not Step.SETTLE

    def _release(self, delivery: Delivery) -> Flow[None]:
        """Release a delivery's claim; also one that the store may have taken although its answer was lost."""
        if delivery.step is not Step.JUDGE or delivery.claim is not None:
            yield from self._guard.release(delivery)

    def returns(self, slot: Slot) -> bool:
        """Return whether a delivery may be given back: the last one would be put away without a dead letter."""
        if not slot.is_last:
            return True
        self.left += 1
        emit("message.left", LEFT, self._queue, 1, level=self._level)
        return False

    def lost(self, deliveries: Sequence[Delivery]) -> None:
        """Keep the progress of settled deliveries that could not be acked: the broker delivers them again."""
        self.unsettled += len(deliveries)
        for delivery in deliveries:
            self._progress.keep(delivery)

    def stopped(self) -> None:
        """Log how many messages were left at their last delivery."""
        if self.left:
            emit("message.left", LEFT, self._queue, self.left)


class QueueLeases:
    """The claims of deliveries in flight: looked at every third of a lease, and renewed after their first third.

    So each is renewed after two thirds of its lease at the latest, and a short handler costs nothing. Once a
    lease is over, whoever gets the redelivery of a lost connection would handle the message a second time.

    Args:
        lease: seconds a claim holds.
    """

    def __init__(self, lease: float) -> None:
        self.every = lease / _LEASE_PARTS
        self._since: dict[int, tuple[Delivery, float]] = {}

    def __bool__(self) -> bool:
        return bool(self._since)

    def add(self, delivery: Delivery, since: float) -> None:
        """Keep the claim of a delivery that was made at ``since``, monotonic seconds."""
        self._since[id(delivery)] = (delivery, since)

    def remove(self, delivery: Delivery) -> None:
        """Renew the claim of a delivery no longer."""
        self._since.pop(id(delivery), None)

    def due(self, now: float) -> list[Delivery]:
        """Return those whose handlers have run for a third of the lease, at ``now``, monotonic seconds."""
        before = now - self.every
        # A copy, made at once: threads of a task queue's workers end deliveries meanwhile.
        return [
            each for each, since in tuple(self._since.values()) if since <= before and each.step is Step.HANDLE
        ]

    def lost(self, delivery: Delivery) -> None:
        """Log that a claim belongs to somebody else now, unless its handler has ended meanwhile."""
        if delivery.step is Step.HANDLE:
            emit("claim.lost", "a handler outlived its claim, its message may be handled twice")
            self.remove(delivery)
