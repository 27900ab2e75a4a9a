"""A verdict for people who own their poll loop and commit themselves, whichever client they poll."""

from __future__ import annotations

from dataclasses import dataclass

from mqauth.errors import Cause, Reason
from mqauth.flow import run
from mqauth.judging.pipeline import Delivery, Outcome, Pipeline, Verdict
from mqauth.judging.verified import Verified
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.wire.message import Message


@dataclass(slots=True)
class Judgement:
    """What became of one record so far; commit its offset only once it has ended.

    An accepted one ends with ``confirm`` after your handler, or with ``release``, which makes it ``DEFERRED``;
    a rejected one with ``dead_letter``. A duplicate has ended. A deferred one is judged ``again``. Each returns
    this judgement; where it says ``DEFERRED``, the step is to be repeated and nothing may be committed. A step
    that does not fit the verdict raises ``ConfigurationError``.
    """

    _guard: Pipeline
    _delivery: Delivery
    outcome: Outcome

    @property
    def verdict(self) -> Verdict:
        """The verdict; compare it by identity."""
        return self.outcome.verdict

    @property
    def reason(self) -> Reason | None:
        """Why it was rejected."""
        return self.outcome.reason

    @property
    def cause(self) -> Cause | None:
        """Why it was deferred."""
        return self.outcome.cause

    @property
    def verified(self) -> Verified | None:
        """The message, where it was accepted."""
        return self.outcome.verified

    def again(self) -> Judgement:
        """Judge a deferred record again, as of when it was first received."""
        self.outcome = run(self._guard.judge(self._delivery))
        return self

    def confirm(self) -> Judgement:
        """Make the claim done, after your handler; then commit."""
        self.outcome = run(self._guard.confirm(self._delivery))
        return self

    def release(self) -> Judgement:
        """Give the claim back, unhandled; do not commit."""
        self.outcome = run(self._guard.release(self._delivery))
        return self

    def dead_letter(self, dead_letters: DeadLetterSink) -> Judgement:
        """Audit and dead-letter a rejected record; then commit."""
        self.outcome = run(self._guard.bury(self._delivery, dead_letters))
        return self


def judged(guard: Pipeline, message: Message) -> Judgement:
    """Return the judgement of a record's message; an accepted one is claimed.

    Raises:
        ConfigurationError: a plug-in is asynchronous.
    """
    delivery = guard.receive(message)
    return Judgement(guard, delivery, run(guard.judge(delivery)))
