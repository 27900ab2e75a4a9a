"""A verdict on one delivery, for programs that have their own loop, and commit or settle themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Generic

from mqauth.brokers.event_loop import letters_on_thread
from mqauth.errors import Cause, Reason, T
from mqauth.flow import Flow, arun, run
from mqauth.judging.pipeline import Delivery, Outcome, Pipeline, Verdict
from mqauth.judging.verified import Unverified, Verified
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.wire.message import Message


@dataclass(slots=True)
class JudgedRecord(Generic[T]):
    """The verdict on one delivery, how far it has come, and the pipeline."""

    guard: Pipeline
    delivery: Delivery
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
    def unverified(self) -> Unverified | None:
        """The message, where it needs no proof for now."""
        return self.outcome.unverified

    @property
    def verified(self) -> Verified | None:
        """The message, where it was accepted."""
        return self.outcome.verified

    def again(self) -> T:
        """Judge a deferred delivery again, by the time when it was first received."""
        return self._take(self.guard.judge(self.delivery))

    def confirm(self) -> T:
        """Mark the message as handled in the replay store, after your handler; then commit or ack."""
        return self._take(self.guard.confirm(self.delivery))

    def release(self) -> T:
        """Give the claim back because the message was not handled; do not commit or ack."""
        return self._take(self.guard.release(self.delivery))

    def dead_letter(self, dead_letters: DeadLetterSink) -> T:
        """Audit and dead-letter a rejected message; then commit or ack."""
        return self._take(self.guard.bury(self.delivery, dead_letters))

    @abstractmethod
    def _take(self, step: Flow[Outcome]) -> T:
        """Take a step, and return this judgement."""


@dataclass(slots=True)
class Judgement(JudgedRecord["Judgement"]):
    """The verdict on one delivery, and the steps that follow from it; commit or ack only after the last one.

    The last step of an accepted or unverified message is ``confirm`` after your handler, or ``release``, which
    makes it ``DEFERRED``; of a rejected one it is ``dead_letter``; a duplicate needs none. A deferred message is
    judged ``again``. Each step returns this judgement. Where it says ``DEFERRED``, repeat the step and settle
    nothing. A step that does not fit the verdict raises ``ConfigurationError``.
    """

    def _take(self, step: Flow[Outcome]) -> Judgement:
        self.outcome = run(step)
        return self


@dataclass(slots=True)
class AsyncJudgement(JudgedRecord[Coroutine[Any, Any, "AsyncJudgement"]]):
    """The verdict on one delivery, and the steps that follow from it, each to be awaited.

    They are those of ``Judgement``.
    """

    def dead_letter(
        self, dead_letters: DeadLetterSink
    ) -> Coroutine[Any, Any, AsyncJudgement]:
        """Audit and dead-letter a rejected message, on a thread where the sink is plain; then commit or ack."""
        return self._take(self.guard.bury(self.delivery, letters_on_thread(dead_letters)))

    async def _take(self, step: Flow[Outcome]) -> AsyncJudgement:
        self.outcome = await arun(step)
        return self


def judged(guard: Pipeline, message: Message) -> Judgement:
    """Return the judgement of a record's message; an accepted one is claimed in the replay store.

    Raises:
        ConfigurationError: a plug-in is asynchronous.
    """
    delivery = guard.receive(message)
    return Judgement(guard, delivery, run(guard.judge(delivery)))


async def ajudged(guard: Pipeline, message: Message) -> AsyncJudgement:
    """Return the judgement of a record's message in an event loop; an accepted one is claimed."""
    delivery = guard.receive(message)
    return AsyncJudgement(guard, delivery, await arun(guard.judge(delivery)))
