"""Takes the deliveries of a queue through the pipeline, and keeps their progress for when they come again.

A queue has no offsets. A delivery that was given back, or whose connection was lost, comes again as another one,
flagged ``redelivered``, and is known by its content. What is known of the earlier one is used, so that a message
does not expire while it is held or handled, and its handler does not run twice.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Final

from mqauth.delivery.hold import is_deferred
from mqauth.delivery.log_work import LEASE_PARTS, equipped
from mqauth.delivery.slot import Slot
from mqauth.errors import Cause, Reason, StaleDelivery, Unavailable
from mqauth.flow import Flow
from mqauth.judging.pipeline import Delivery, Handler, Outcome, Pipeline, Step, Verdict
from mqauth.judging.verified import Decode, Responder, Unverifieds
from mqauth.letters.dead_letter import DeadLetterSink, letter_id
from mqauth.logs import emit
from mqauth.wire.message import Message

MAX_BYTES: Final = 16 * 1024 * 1024
"""Most bytes of deliveries that were given back, about."""
OVERHEAD: Final = 2048
"""Bytes of a delivery beside its message, about."""
_UNHANDLED: Final = 2
Fence = Callable[[Delivery], Any]


@dataclass(slots=True)
class _Follower:
    """A delivery that waits while an earlier one of its content is handled or confirmed."""

    delivery: Delivery
    earlier: Delivery


class Progress:
    """Deliveries in flight, and those given back; the latter bounded in bytes, the oldest dropped first.

    A delivery that was dropped comes again as a new one. It is judged by the time it comes then, and may be
    ``expired``; it waits for its own claim, at most for the lease; and where its handler had ended and only the
    confirm was missing, the handler runs again after the lease. It takes 16 MiB of messages given back at a time,
    or 8,000 small ones, to come to that. The latest is always kept.

    Args:
        guard: the pipeline.
        ended: returns whether the channel of a client's delivery ended, so that it is not ours any more.
        max_bytes: bytes of the deliveries given back.
    """

    def __init__(
        self, guard: Pipeline, ended: Callable[[Any], bool], *, max_bytes: int = MAX_BYTES
    ) -> None:
        self._guard = guard
        self._ended = ended
        self._max_bytes = max_bytes
        self._kept: dict[str, list[Delivery]] = {}
        self._bytes = 0
        self._in_flight: dict[int, Delivery] = {}
        self._again = Counter[int]()
        self._keys: dict[int, str] = {}
        self._new: dict[int, _Follower] = {}
        self._followers: dict[int, list[_Follower]] = {}

    def receive(self, message: Message) -> Delivery:
        """Return a delivery that goes on where an earlier one of the same content stopped, if there was one.

        Of several, one that was handled comes first; any of them will do, since their bytes agree.
        """
        if not message.origin.redelivered or not (self._kept or self._in_flight):
            return self._guard.receive(message)
        key = self._key(message)
        rollout, kept = (
            self._guard.rollout,
            min(self._kept.get(key, ()), key=_order, default=None),
        )
        if rollout is not None and rollout.is_lenient(message):
            # Handled whatever became of an earlier one, and judged by the time of that.
            if kept is None:
                return self._guard.receive(message)
            self._drop(key, kept)
            return Delivery(message=message, received=kept.received, owner=kept.owner)
        # One of this content that outlived its channel; one whose handler runs comes first.
        lost: Delivery | None = None
        for number, begun in self._in_flight.items():
            if not self._ended(begun.message.native):
                continue
            if number not in self._keys:
                self._keys[number] = self._key(begun.message)
            if self._keys[number] == key and (lost is None or lost.step is Step.JUDGE):
                lost = begun
        was_handled = kept is not None and _order(kept) != _UNHANDLED
        if lost is not None and not (was_handled and lost.step is Step.JUDGE):
            # Judged after the one that is still in flight.
            delivery = Delivery(message=message, received=lost.received, deferred=True)
            self._new[id(delivery)] = follower = _Follower(delivery, lost)
            followers = self._followers.setdefault(id(lost), [])
            followers[:] = [
                each
                for each in followers
                if not self._ended(each.delivery.message.native)
            ] + [follower]
            return delivery
        if kept is not None:
            self._drop(key, kept)
            # Judged anew where there is no verdict, or it was not proven to be ours: a rejection that is yet to be
            # recorded may be ``replayed`` only because the message was handled elsewhere meanwhile. A handler that
            # failed has ended, and is not run again.
            reason = None if kept.rejection is None else kept.rejection.reason
            unproven = kept.step is Step.RECORD and reason not in (
                None,
                Reason.HANDLER_FAILED,
            )
            return again(message, kept) if kept.step is Step.JUDGE or unproven else kept
        return self._guard.receive(message)

    def fenced(self, delivery: Delivery, fence: Fence) -> Fence:
        """Return a fence that also keeps a delivery from being judged while an earlier one of it is handled."""
        follower = self._new.pop(id(delivery), None)
        return fence if follower is None else partial(self._wait, follower, fence)

    def begin(self, delivery: Delivery) -> None:
        """Note that a delivery is in flight."""
        # The broker may send again what was given back before the task that gave it back has ended.
        if id(delivery) in self._in_flight:
            self._again[id(delivery)] += 1
        self._in_flight[id(delivery)] = delivery

    def end(self, delivery: Delivery) -> bool:
        """Note that it is no longer, and return ``True``; or ``False`` where it is here again meanwhile.

        Where its handler ended, the latest delivery of its content goes on there.
        """
        if self._again[id(delivery)]:
            self._again -= Counter((id(delivery),))
            return False
        self._in_flight.pop(id(delivery), None)
        key = self._keys.pop(id(delivery), None)
        followers = self._followers.pop(id(delivery), None)
        if key is None or not followers or _order(delivery) == _UNHANDLED:
            return True
        self._drop(key, delivery)
        later = followers.pop().delivery
        # The others wait for the one that goes on there. They are byte-identical copies: once the lease is over,
        # the store would let them be handled, too.
        if followers and id(later) in self._in_flight:
            for each in followers:
                each.earlier = later
            self._followers[id(later)] = followers
            self._keys[id(later)] = key
        for field in fields(Delivery):
            if field.name not in ("message", "fence"):
                setattr(later, field.name, getattr(delivery, field.name))
        if later.step is Step.SETTLE and later.rejection is None:
            later.verdict, later.step, later.record_id = (
                Verdict.DUPLICATE,
                Step.RECORD,
                None,
            )
        return True

    def keep(self, delivery: Delivery) -> None:
        """Keep the progress of a delivery that is given back, for the next one of the same content."""
        self._kept.setdefault(self._key(delivery.message), []).append(delivery)
        self._bytes += _size(delivery.message)
        while self._bytes > self._max_bytes:
            key, (oldest, *_) = next(iter(self._kept.items()))
            if oldest is delivery:
                break
            self._drop(key, oldest)

    def _wait(self, follower: _Follower, fence: Fence, delivery: Delivery) -> Any:
        """Defer judging while an earlier delivery is handled or confirmed; let every other step pass.

        Raises:
            Unavailable: ``claim_held``. The store says the same, but only until the lease is over.
        """
        is_judged = delivery.step is Step.JUDGE
        if (
            is_judged
            and id(follower.earlier) in self._in_flight
            and follower.earlier.step is not Step.JUDGE
        ):
            raise Unavailable(
                Cause.CLAIM_HELD, "an earlier delivery of it is still being handled here"
            )
        return fence(delivery)

    def _drop(self, key: str, delivery: Delivery) -> None:
        kept = self._kept.get(key, [])
        left = [each for each in kept if each is not delivery]
        self._bytes -= (len(kept) - len(left)) * _size(delivery.message)
        if left:
            self._kept[key] = left
        else:
            self._kept.pop(key, None)

    def _key(self, message: Message) -> str:
        return letter_id(message, self._guard.scope_of(message))


def again(message: Message, earlier: Delivery) -> Delivery:
    """Return a delivery that is judged anew as the same owner as an earlier one.

    The store may have taken the earlier claim although its answer was lost; the owner may claim again.
    """
    return Delivery(
        message=message, received=earlier.received, deferred=True, owner=earlier.owner
    )


def _size(message: Message) -> int:
    return (
        OVERHEAD
        + len(message.body or b"")
        + sum(len(name) + _length(value) for name, value in message.headers)
    )


def _length(value: object) -> int:
    """Return about the bytes of a header's value."""
    if isinstance(value, Mapping):
        return sum(_length(part) for pair in value.items() for part in pair)
    if isinstance(value, tuple):
        return sum(map(_length, value))
    # Bytes of a number, a time, or the like.
    return len(value) if isinstance(value, str | bytes) else 32


def _order(delivery: Delivery) -> int:
    """Return which of several deliveries of one content comes first: no handler that has ended may run again."""
    step, rejection = delivery.step, delivery.rejection
    failed = rejection is not None and rejection.reason is Reason.HANDLER_FAILED
    if step is Step.SETTLE:
        return 1 if rejection is None or failed else _UNHANDLED
    # Its handler has ended, and its claim or its record is still to be ended.
    accepted = rejection is None and delivery.verdict is Verdict.ACCEPTED
    handled = step not in (Step.JUDGE, Step.HANDLE, Step.PASS_ON) and (failed or accepted)
    return 0 if handled else _UNHANDLED


LEFT: Final = (
    "%s: %d messages at their last delivery were not settled; when the connection closes the broker puts them away"
    " without audit record and dead letter, where the queue has a dead-letter exchange there"
)
INTERRUPTED: Final = Outcome(
    Verdict.DEFERRED,
    cause=Cause.HANDLER_DEFERRED,
    detail="what the handler waited for was cancelled",
)
"""Outcome of an attempt in which a client cancelled what it waited for, because its connection was lost."""


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
        delivery.fence = (
            self._progress.fenced(delivery, fence) if delivery.deferred else fence
        )
        return delivery

    def attempt(self, delivery: Delivery) -> Flow[Outcome]:
        """Take a delivery through the pipeline until it is settled or deferred."""
        return self._guard.process(
            delivery, self._handler, self._dead_letters, self._unverified
        )

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
        self._trial = trial = Delivery(
            message=delivery.message, received=delivery.received, deferred=True
        )
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
        self.every = lease / LEASE_PARTS
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
            each
            for each, since in tuple(self._since.values())
            if since <= before and each.step is Step.HANDLE
        ]

    def renewing(self, guard: Pipeline) -> Flow[None]:
        """Renew the claims that are due."""
        for delivery in self.due(guard.clock.monotonic()):
            if not (yield from guard.renew(delivery)):
                self.lost(delivery)

    def lost(self, delivery: Delivery) -> None:
        """Log that a claim belongs to somebody else now, unless its handler has ended meanwhile."""
        if delivery.step is Step.HANDLE:
            emit(
                "claim.lost",
                "a handler outlived its claim, its message may be handled twice",
            )
            self.remove(delivery)
