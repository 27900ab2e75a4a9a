"""Which rejections must not be believed at once, and who waits for the broker to answer that a channel lives.

A broker may have ended a channel before we hear of it, and given its deliveries to somebody else. What is judged
of them then is judged at another moment. AMQP answers in order: a channel that answers a question lived when it
answered, so what was delivered on it was nobody else's when the question was asked.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

from mqauth.errors import Reason

OF_THE_MOMENT: Final = frozenset(
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

PATIENCE: Final = 10
"""Parts of the time an answer may take; a process that stood still uses up one of them, however long it stood."""
W = TypeVar("W")


class Questions(Generic[W]):
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


class Patience:
    """The time an answer may take, in parts: it counts only while we run and the broker can answer."""

    def __init__(self) -> None:
        self._left = PATIENCE

    def is_over(self, *, blocked: bool) -> bool:
        """Tell whether it is over, after one part more without an answer.

        Args:
            blocked: the broker has blocked the connection, and answers nothing there.
        """
        self._left = PATIENCE if blocked else self._left - 1
        return self._left <= 0
