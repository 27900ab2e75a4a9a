"""What the adapters of task queues have in common: the rules of a worker's pipeline, and its pause for a task."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mqauth.clock import Backoff
from mqauth.errors import require
from mqauth.flow import Flow, run
from mqauth.judging.pipeline import Outcome, Pipeline, Verdict
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import HANDLING
from mqauth.replay.memory import MemoryReplayStore
from mqauth.replay.rules import NoReplayStore


def worker_guard(make: Callable[[], Pipeline] | None, dead_letters: object) -> Pipeline:
    """Return the pipeline of one process of a worker.

    Args:
        make: makes it, after the fork: no thread and no connection of it is inherited.
        dead_letters: where rejected tasks go.

    Raises:
        ConfigurationError: there is no pipeline or no ``dead_letters``, or the pipeline has no audit or no replay
            store that outlives it.
    """
    make = require(make, "a worker needs guard=: protect(broker, guard=..., ...)")
    require(dead_letters is not None, "a worker needs dead_letters=")
    guard = make()
    require(guard.audit is not None, "a worker's pipeline needs audit=")
    require(
        not isinstance(guard.replay, NoReplayStore | MemoryReplayStore),
        "copies of a task come to several processes: replay= is a store on Redis, or the file of one process",
    )
    return guard


class HandedOver(BaseException):
    """Leaves a pipeline where it wants its handler called; it goes on from there once the task has run."""


def hand_over(_message: object) -> None:
    """Leave the pipeline: the handler that it is given."""
    raise HandedOver


class Held:
    """A delivery on its way through the pipeline, which stops while its task is run.

    Args:
        guard: the pipeline.
        letters: where it goes if it is rejected.
        native: as the client gives it.

    Attributes:
        delivery: is yet to be made.
        again: monotonic seconds until which it has to wait; 0 where it has not.
    """

    def __init__(self, guard: Pipeline, letters: DeadLetterSink, native: Any) -> None:
        self.native = native
        self.delivery: Any = None
        self.again = 0.0
        self._failures = 0
        self._guard = guard
        self._letters = letters
        self._flow: Flow[Outcome] | None = None

    def go_on(self) -> bool:
        """Take the delivery as far as possible now; return whether its task is to be run."""
        guard = self._guard
        if self._flow is None:
            unverified = hand_over if guard.rollout else None
            self._flow = guard.process(
                self.delivery, hand_over, self._letters, unverified
            )
        try:
            outcome = run(self._flow)
        except HandedOver:
            HANDLING.set(None)
            return True
        self._flow, self.again = None, 0.0
        if outcome.verdict is Verdict.DEFERRED:
            self._failures += 1
            self.again = guard.clock.monotonic() + Backoff().wait(self._failures)
        return False

    def release(self) -> None:
        """Give the claim back: the task was not begun."""
        run(self._guard.release(self.delivery))
