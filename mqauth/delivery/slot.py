"""The slot of one delivery in a consumer's window: whether the broker still counts on us to settle it.

A broker may have ended a channel before we hear of it, and have given its deliveries to somebody else. A verdict
that depends on the moment is then reached at the wrong moment: the message is ``replayed`` because somebody else
handled it. So before such a rejection is recorded, the channel makes a round trip. AMQP answers in order, so a
channel that answers a question was alive when it answered, and its deliveries were nobody else's when the
question was asked.

``DeliveryTags`` finds the fewest acks that settle the deliveries of one channel. An ack with ``multiple`` covers
every delivery of the channel up to its tag (AMQP 0-9-1, ``basic.ack``). So its tag must never reach past a
delivery that is not settled, or that is somebody else's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from mqauth.errors import Reason, Rejection, StaleDelivery
from mqauth.judging.delivery import Delivery, Step

NO_LIMIT: Final = -1
"""The delivery limit of a queue that has none."""
TIME_DEPENDENT: Final = frozenset(
    (
        Reason.REPLAYED,
        Reason.ISSUED_IN_FUTURE,
        Reason.NOT_YET_VALID,
        Reason.EXPIRED,
        Reason.QUEUE_AGE_EXCEEDED,
        Reason.KEY_UNKNOWN,
        Reason.KEY_REVOKED,
        Reason.KEY_EXPIRED,
        Reason.SUBJECT_MISMATCH,
        Reason.RELEASE_INVALID,
        Reason.PRODUCER_FORBIDDEN,
        Reason.HANDLER_FAILED,
    )
)
"""Reasons that could be otherwise at another moment: they depend on claims, time, keys, policy or the handler.

All others follow from the bytes of the message and our settings: judged again, the message is wrong again.
"""
TIMEOUT_PARTS: Final = 10
"""Number of parts of the timeout of a round trip.

A process that stood still uses up one part, however long it stood."""
W = TypeVar("W")
# Looking up an enum's member is slow in Python 3.11.
_HANDLE, _RECORD = Step.HANDLE, Step.RECORD


class DeliveryFacts(Protocol):
    """Facts that a client knows of its deliveries; asked for only where they matter, since most need few."""

    def ended(self, native: Any, /) -> bool:
        """Return whether its channel ended, as far as the client knows: the broker delivers it again."""

    def consumer(self, native: Any, /) -> str:
        """Return the tag of the consumer that it came to."""

    def size(self, native: Any, /) -> int:
        """Return the bytes of its body."""

    def returns(self, native: Any, /) -> int:
        """Return how many deliveries of its message count against the queue's delivery limit."""


class Slot:
    """One delivery's slot: it is ours from its receipt until it is given back or its channel ended.

    Args:
        native: the client's delivery.
        facts: tells more of it.
        received: monotonic seconds.
        limit: how often the broker may be given it back; negative for any number.
    """

    __slots__ = ("_gone", "_limit", "_proved", "facts", "native", "received")

    def __init__(
        self, native: Any, facts: DeliveryFacts, received: float, limit: int = NO_LIMIT
    ) -> None:
        self.native = native
        self.received = received
        self.facts = facts
        self._limit = limit
        self._gone = False
        self._proved: Rejection | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the broker counts on us to settle it, as far as we know."""
        return not self._gone and not self.facts.ended(self.native)

    @property
    def is_last(self) -> bool:
        """Whether another return would exceed its delivery limit: the broker would put it away, without record."""
        return 0 <= self._limit <= self.facts.returns(self.native)

    def unproven(self, delivery: Delivery) -> Rejection | None:
        """Return the rejection that needs a round trip before the next step, ``None`` where the step may be taken.

        Raises:
            StaleDelivery: the delivery is not ours any more.
        """
        # A handler that failed gets its further attempts whoever has the message by now: the next delivery of it
        # waits here for their end, and elsewhere for the claim.
        if delivery.step is _HANDLE and delivery.attempts:
            return None
        if self._gone or self.facts.ended(self.native):
            raise StaleDelivery("the channel of the delivery ended")
        rejection = delivery.rejection
        if delivery.step is not _RECORD or rejection is None or rejection is self._proved:
            return None
        return rejection if rejection.reason in TIME_DEPENDENT else None

    def answered(self, rejection: Rejection, *, lives: bool) -> None:
        """Note the result of a round trip that began after a rejection.

        Args:
            rejection: proven to be of our delivery where the channel answered.
            lives: whether it answered.

        Raises:
            StaleDelivery: it did not, or the delivery is not ours any more.
        """
        if not lives or not self.is_ours:
            self._gone = True
            raise StaleDelivery("the channel of the delivery did not answer")
        self._proved = rejection

    def given_back(self) -> None:
        """Note that it was given back."""
        self._gone = True


class RoundTripQueue(Generic[W]):
    """The callers that wait for a round trip of one channel; one is in progress at a time.

    A caller that comes while one is in progress waits for the next one, since the answer says nothing of what was
    judged after the question.
    """

    def __init__(self) -> None:
        self._waiting: list[W] = []
        self._asked: list[W] = []
        self._under_way = False

    def add(self, who: W) -> bool:
        """Add a caller; return whether it is to begin a round trip, since none is in progress."""
        self._waiting.append(who)
        begins = not self._under_way
        self._under_way = True
        return begins

    def ask(self) -> bool:
        """Begin a round trip for all callers that wait; return ``False`` where there are none."""
        self._asked, self._waiting = self._waiting, []
        self._under_way = bool(self._asked)
        return self._under_way

    def answered(self) -> list[W]:
        """End the round trip, and return the callers that waited for it."""
        asked, self._asked = self._asked, []
        return asked


MAX_UNSENT: Final = 256
"""Number of settled deliveries at which their acks are sent at once."""


class Ack(NamedTuple):
    """One frame: ``basic.ack`` of a tag, and the deliveries that it settles."""

    tag: int
    multiple: bool
    deliveries: Sequence[Delivery]


class DeliveryTags:
    """The delivery tags of one channel: those that are open, and those that are settled and not acked yet.

    Attributes:
        shared: whether somebody else consumes on this channel too, or has.
    """

    def __init__(self) -> None:
        self._open: dict[int, None] = {}
        self._settled: dict[int, Delivery] = {}
        self._last = 0
        self.shared = False

    @property
    def waiting(self) -> int:
        """How many are settled and not acked."""
        return len(self._settled)

    @property
    def unacked(self) -> int:
        """How many the broker counts against the prefetch."""
        return len(self._open) + len(self._settled)

    def presses(self, window: int) -> bool:
        """Return whether acks must be sent at once, since the broker would soon send nothing.

        Args:
            window: how many unacked deliveries the broker allows.
        """
        return (
            self.waiting >= min(max(1, window // 2), MAX_UNSENT) or self.unacked >= window
        )

    def opened(self, tag: int) -> None:
        """Add a delivery; no ack covers it before it is settled."""
        # Tags count from 1 without gaps. A gap is a delivery to somebody else on this channel, and we cannot know
        # whether that one is settled: from then on each of ours is acked by itself.
        self.shared = self.shared or tag != self._last + 1
        self._last = max(self._last, tag)
        self._open[tag] = None

    def settled(self, tag: int, delivery: Delivery) -> None:
        """Note that an open delivery is to be acked."""
        del self._open[tag]
        self._settled[tag] = delivery

    def gone(self, tag: int) -> None:
        """Note that an open delivery needs no ack: it was given back, or acked by its handler."""
        self._open.pop(tag, None)

    def take(self) -> list[Ack]:
        """Return the acks of everything settled, in the order to be sent, and forget it.

        One ack is for all deliveries before the first open one, by the highest tag of ours, since the broker
        closes the channel for a tag that is not unacked. Each delivery behind it has an ack of its own.
        """
        settled, self._settled = self._settled, {}
        first_open = 0 if self.shared else next(iter(self._open), self._last + 1)
        before = [tag for tag in settled if tag < first_open]
        acks = [Ack(tag, False, (settled[tag],)) for tag in settled if tag >= first_open]
        if before:
            acks.insert(
                0, Ack(max(before), len(before) > 1, [settled[tag] for tag in before])
            )
        return acks

    def drop(self) -> list[Delivery]:
        """Return what is settled and will never be acked, since the channel ended, and forget it."""
        settled, self._settled = self._settled, {}
        return list(settled.values())
