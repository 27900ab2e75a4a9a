"""Carries the deliveries of a queue through the pipeline, and keeps what is known of those that come again.

Claims kept while handlers run long: which renewals are due.

On RabbitMQ whoever gets the redelivery of a lost connection would handle it a second time once the lease is over.
On Kafka a claim with a place outlives its lease by itself: elsewhere it is a replay, at the same place it is taken
over. But its id is forgotten once no new copy can be accepted, and a handler may run longer than that; and the
claim of a *released* message (``mqauth.letters.release``) has no place, so that a copy would run beside it.
"""

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
from mqauth.judging.verified import Responder
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.wire.message import Message

LEFT: Final = (
    "%s: %d messages at their last delivery were not settled; when the connection closes the broker puts them away"
    " without record and letter, where the queue has a dead-letter exchange there"
)
INTERRUPTED: Final = Outcome(
    Verdict.DEFERRED, cause=Cause.HANDLER_DEFERRED, detail="what the handler waited for was cancelled"
)
"""What an attempt comes to where a client cancelled what it waited for, since its connection was lost."""
_LOG: Final = logging.getLogger("mqauth.delivery")


class QueueWork:
    """Says what is to be done for each delivery of one queue.

    Args:
        queue: its name.
        guard: the pipeline.
        handler: takes a ``Verified``.
        dead_letters: where rejected messages go.
        ended: tells of a client's delivery whether its channel ended.
        decode: makes ``Verified.value`` of the body, after verification.
        answer: publishes what ``Verified.reply`` is given.
        stops: whether its consumer is stopped one day, and says then what was left.

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
        decode: Callable[[bytes | None], Any] | None,
        answer: Responder | None,
        stops: bool,
    ) -> None:
        self._queue = queue
        self._guard = guard
        self._handler = equipped(handler, decode, answer)
        self._dead_letters = dead_letters
        self._level = logging.WARNING if stops else logging.CRITICAL
        self._progress = Progress(guard, ended)
        self.begin, self.end = self._progress.begin, self._progress.end
        self._trial: Delivery | None = None
        self.unsettled = self.left = 0

    def receive(self, message: Message, fence: Fence) -> Delivery:
        """Return a message's delivery, which knows what became of an earlier one.

        Args:
            message: as delivered.
            fence: called before each step that must not be taken for one the broker has given to somebody else.
        """
        delivery = self._progress.receive(message)
        delivery.fence = self._progress.fenced(delivery, fence) if delivery.deferred else fence
        return delivery

    def attempt(self, delivery: Delivery) -> Flow[Outcome]:
        """Take a delivery as far as the world allows."""
        return self._guard.process(delivery, self._handler, self._dead_letters)

    def probe(self, delivery: Delivery) -> Flow[bool]:
        """Tell whether a deferred delivery that was given back would get further now; its handler is not run."""
        if delivery.step is Step.HANDLE:
            yield from self._guard.release(delivery)
            return delivery.claim is None
        if delivery.step is not Step.JUDGE:
            try:
                return not is_deferred((yield from self.attempt(delivery)))
            except StaleDelivery:
                return True  # it got as far as what was given back may get
        # In a name of its own: what was given back may be here again, and its claim must outlive this trial's end.
        self._trial = trial = Delivery(message=delivery.message, received=delivery.received, deferred=True)
        outcome = yield from self._guard.judge(trial)
        yield from self.end_probe()
        # A store that says who holds a claim is in reach; what is deferred for that alone suspends nothing.
        return not is_deferred(outcome) or outcome.cause is Cause.CLAIM_HELD

    def end_probe(self) -> Flow[None]:
        """Release what the last probe claimed, be it cut short."""
        trial, self._trial = self._trial, None
        if trial is not None:
            yield from self._release(trial)

    def let_go(self, delivery: Delivery) -> Flow[bool]:
        """Release a delivery's claim and keep its progress; tell whether it is to be given back.

        One that was acked, perhaps, is not: doing so twice would close the channel.
        """
        yield from self._release(delivery)
        self._progress.keep(delivery)
        return delivery.step is not Step.SETTLE

    def _release(self, delivery: Delivery) -> Flow[None]:
        """Release a delivery's claim, be it one that the store may have taken although its answer was lost."""
        if delivery.step is not Step.JUDGE or delivery.claim is not None:
            yield from self._guard.release(delivery)

    def returns(self, slot: Slot) -> bool:
        """Tell whether a delivery may be given back: the last one would be put away without record and letter."""
        if not slot.is_last:
            return True
        self.left += 1
        _LOG.log(self._level, LEFT, self._queue, 1)
        return False

    def lost(self, deliveries: Sequence[Delivery]) -> None:
        """Keep the progress of settled deliveries that could not be acked: the broker delivers them again."""
        self.unsettled += len(deliveries)
        for delivery in deliveries:
            self._progress.keep(delivery)

    def stopped(self) -> None:
        """Say what was left, once all has ended."""
        if self.left:
            _LOG.critical(LEFT, self._queue, self.left)


_LEASE_PARTS: Final = 3


class QueueLeases:
    """The claims of a queue's deliveries in flight: looked at every third of a lease, renewed after the first.

    So each is renewed at the latest after two thirds of its lease, and a short handler costs nothing.

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
        """Leave the claim of a delivery alone from now on."""
        self._since.pop(id(delivery), None)

    def due(self, now: float) -> list[Delivery]:
        """Return those whose handlers have run for a third of the lease, at ``now``, monotonic seconds."""
        before = now - self.every
        return [each for each, since in self._since.values() if since <= before and each.step is Step.HANDLE]

    def lost(self, delivery: Delivery) -> None:
        """Log that a claim is another's now, and leave it alone; unless its handler has ended meanwhile."""
        if delivery.step is Step.HANDLE:
            _LOG.error("a handler outlived its claim, its message may be handled twice")
            self.remove(delivery)
