"""The place of one delivery in a consumer's window, and for how long it is ours."""

from __future__ import annotations

from typing import Any, Final, Protocol

from mqauth.delivery.questions import OF_THE_MOMENT
from mqauth.errors import Rejection, StaleDelivery
from mqauth.judging.delivery import Delivery, Step

NO_LIMIT: Final = -1
"""Stands for the delivery limit of a queue that has none."""
_RECORD: Final = Step.RECORD  # Python 3.11 takes its time to look a member up


class Facts(Protocol):
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

    def __init__(self, native: Any, facts: Facts, received: float, limit: int = NO_LIMIT) -> None:
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
        return found if found.reason in OF_THE_MOMENT else None

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
