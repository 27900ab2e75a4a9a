"""The place of one delivery in a consumer's window, and for how long it is ours.

Which rejections must not be believed at once, and who waits for the broker to answer that a channel lives.

A broker may have ended a channel before we hear of it, and given its deliveries to somebody else. What is judged
of them then is judged at another moment. AMQP answers in order: a channel that answers a question lived when it
answered, so what was delivered on it was nobody else's when the question was asked.
"""

from __future__ import annotations

from typing import Any, Final, Generic, Protocol, TypeVar

from mqauth.errors import Reason, Rejection, StaleDelivery
from mqauth.judging.delivery import Delivery, Step

NO_LIMIT: Final = -1
"""Stands for the delivery limit of a queue that has none."""
_RECORD: Final = Step.RECORD  # Python 3.11 takes its time to look a member up


class DeliveryFacts(Protocol):
    """What a client says of a delivery that it gave; read where it matters, since most need little of it."""

    def ended(self, native: Any, /) -> bool:
        """Tell whether its channel ended, as far as the client knows: the broker delivers it again."""
        ...

    def consumer(self, native: Any, /) -> str:
        """Return the tag of the consumer that it came to."""
        ...

    def size(self, native: Any, /) -> int:
        """Return the bytes of its body."""
        ...

    def returns(self, native: Any, /) -> int:
        """Return how many deliveries of its message count against the queue's delivery limit."""
        ...


class Slot:
    """One delivery's place: ours from its receipt until it is given back or its channel ended.

    Args:
        native: the delivery, as its client gave it.
        facts: says more of it.
        received: monotonic seconds.
        limit: how often the broker may be given it back; negative for any number.
    """

    __slots__ = ("_facts", "_gone", "_limit", "_proved", "native", "received")

    def __init__(self, native: Any, facts: DeliveryFacts, received: float, limit: int = NO_LIMIT) -> None:
        self.native = native
        self.received = received
        self._facts = facts
        self._limit = limit
        self._gone = False
        self._proved: Rejection | None = None

    @property
    def is_ours(self) -> bool:
        """Whether the broker counts on us to settle it, as far as we know."""
        return not self._gone and not self._facts.ended(self.native)

    @property
    def is_last(self) -> bool:
        """Whether another return would put the message over its delivery limit, away without record and letter."""
        return 0 <= self._limit <= self._facts.returns(self.native)

    @property
    def consumer(self) -> str:
        """The tag of the consumer it came to."""
        return self._facts.consumer(self.native)

    @property
    def size(self) -> int:
        """Bytes of its body."""
        return self._facts.size(self.native)

    def unproven(self, delivery: Delivery) -> Rejection | None:
        """Return what is recorded only once the channel has answered, ``None`` where the next step may be taken.

        A rejection that another moment would decide otherwise passes after a round trip on the consuming channel,
        begun after the verdict.

        Raises:
            StaleDelivery: it is not ours any more.
        """
        if self._gone or self._facts.ended(self.native):
            raise StaleDelivery("the channel of the delivery ended")
        found = delivery.rejection
        if delivery.step is not _RECORD or found is None or found is self._proved:
            return None
        return found if found.reason in TIME_DEPENDENT else None

    def answered(self, rejection: Rejection, *, lives: bool) -> None:
        """Note whether the channel lived after a verdict: then the delivery was ours when it was rejected.

        Raises:
            StaleDelivery: it was not, or is not any more.
        """
        if not lives or not self.is_ours:
            self._gone = True
            raise StaleDelivery("the channel of the delivery did not answer")
        self._proved = rejection

    def given_back(self) -> None:
        """Note that it was given back."""
        self._gone = True


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
"""Reasons that another moment would decide otherwise: by what was claimed, the time, keys, policy, the handler.

The others follow from the bytes of the message and our settings: judged twice, it is wrong twice.
"""

TIMEOUT_PARTS: Final = 10
"""Parts of the time an answer may take; a process that stood still uses up one of them, however long it stood."""
W = TypeVar("W")


class RoundTripQueue(Generic[W]):
    """Questions of one channel, one under way at a time; each answers all who waited when it was begun.

    Who comes later waits for the next: an answer says nothing of what was judged after its question was asked.
    """

    def __init__(self) -> None:
        self._waiting: list[W] = []
        self._asked: list[W] = []
        self._under_way = False

    def add(self, who: W) -> bool:
        """Let somebody wait; tell whether asking is to be begun, since none is under way."""
        self._waiting.append(who)
        begins = not self._under_way
        self._under_way = True
        return begins

    def ask(self) -> bool:
        """Begin a question for all who wait; ``False``, and none is under way, where nobody does."""
        self._asked, self._waiting = self._waiting, []
        self._under_way = bool(self._asked)
        return self._under_way

    def answered(self) -> list[W]:
        """End the question, and return whom it answers."""
        asked, self._asked = self._asked, []
        return asked


class AnswerTimeout:
    """The time an answer may take, in parts: it counts only while we run and the broker can answer."""

    def __init__(self) -> None:
        self._left = TIMEOUT_PARTS

    def is_over(self, *, blocked: bool) -> bool:
        """Tell whether it is over, after one part more without an answer.

        Args:
            blocked: the broker has blocked the connection, and answers nothing there.
        """
        self._left = TIMEOUT_PARTS if blocked else self._left - 1
        return self._left <= 0
