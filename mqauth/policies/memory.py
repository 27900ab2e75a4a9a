"""What a policy from outside said, for a while, and for how long nobody asks it after a failure.

Decisions are remembered for a few seconds, refusals too: a producer that may not publish must not make a service
be asked for each message. The memory is bounded in number and in bytes. Where it is full, the producer that has
the most decisions loses its oldest one: whoever varies routing keys pushes out decisions of its own alone. After a
failure nobody asks for a second, then for two, up to half a minute; then one asks, and all others wait for what
becomes of that.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from typing import Final

from mqauth.judging.policy import Decision
from mqauth.policies.question import Question

DECISIONS: Final = 4096
CAPACITY: Final = 4 * 1024 * 1024
"""Bytes of all decisions together."""
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
_ENTRY: Final = 480
_QUIET: Final = 60.0
_NEVER: Final = float("-inf")


@dataclass(frozen=True, slots=True)
class Remembered:
    """What became of a question.

    Args:
        until: monotonic seconds; after that it is asked again.
        decision: ``None`` where the answer was no decision.
        failures: how often in a row it was none.
        why: what was wrong with it, for people.
    """

    until: float
    decision: Decision | None
    failures: int = 0
    why: str = ""


class Decisions(dict[Question, Remembered]):
    """What became of questions, within a bound. Not safe for threads to change."""

    held = 0
    """Bytes that are taken, rounded up."""

    def __init__(self) -> None:
        super().__init__()
        self._by_producer = Counter[tuple[str, str]]()

    def keep(self, question: Question, found: Remembered) -> None:
        """Remember what became of a question, in place of what became of it before."""
        self.drop(question)
        self.held += size_of(question)
        self[question] = found
        self._by_producer[question.issuer, question.subject] += 1
        while len(self) > DECISIONS or self.held > CAPACITY:
            most = max(self._by_producer, key=self._by_producer.__getitem__)
            self.drop(next(one for one in self if (one.issuer, one.subject) == most))

    def drop(self, question: Question) -> None:
        """Forget one question."""
        if self.pop(question, None) is not None:
            self.held -= size_of(question)
            producer = (question.issuer, question.subject)
            self._by_producer[producer] -= 1
            if not self._by_producer[producer]:
                del self._by_producer[producer]

    def clear(self) -> None:
        """Forget everything."""
        super().clear()
        self._by_producer.clear()
        self.held = 0


def size_of(question: Question) -> int:
    """Return the bytes that a question takes together with its decision; measured, and rounded up."""
    return _ENTRY + sum(map(sys.getsizeof, question))


def pause_after(failures: int) -> float:
    """Return the seconds for which nobody asks after so many failures in a row."""
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 10))


class Pause:
    """For how long nobody asks a service that gave no answer. Not safe for threads."""

    def __init__(self) -> None:
        self.failures = 0
        self.failing_since: float | None = None
        self.why = ""
        self._until = self._from = _NEVER

    def admits(self, now: float) -> bool:
        """Tell whether the service may be asked now."""
        return now >= self._until

    def begin(self, now: float, longest: float) -> bool:
        """Tell whether a request may begin now; after a failure it is one, and all others wait for its end.

        Args:
            now: monotonic seconds.
            longest: seconds that it may take.
        """
        if not self.admits(now):
            return False
        if self.failures:
            self._until = now + longest
        return True

    def failing_from(self, now: float) -> float | None:
        """Return since when there is no answer; ``None`` where there was one, or nobody has asked for a minute."""
        return self.failing_since if now < self._until + _QUIET else None

    def failed(self, begun: float, now: float, why: str) -> None:
        """Note that a request brought no answer; of several that were under way together only the first counts."""
        self.why = why
        if begun >= self._from:
            self.failures += 1
            self.failing_since = begun if self.failing_since is None else self.failing_since
            self._from, self._until = now, now + pause_after(self.failures)

    def answered(self) -> None:
        """Note that the service answers."""
        self.failures, self.failing_since, self.why, self._until = 0, None, "", _NEVER
