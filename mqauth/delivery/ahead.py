"""The claims of a batch in one round trip, for brokers that say where exactly a delivery stands.

The deliveries of a partition are judged up to their claims, the claims are made together, and each verdict
stays with its delivery, which ``Pipeline.process`` carries to its end when its turn comes. One whose turn never
comes leaves a claim with its place behind, and the same place may claim again (``mqauth.replay.rules``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from types import GeneratorType
from typing import Final

from mqauth.errors import Unavailable
from mqauth.flow import is_async, run
from mqauth.judging.delivery import Delivery, Step
from mqauth.judging.pipeline import Pipeline
from mqauth.replay.rules import ClaimRequest, ClaimStatus

_JUDGE, _HANDLE = Step.JUDGE, Step.HANDLE  # Python 3.11 takes its time to look a member up
LONGEST: Final = 10.0
"""Seconds a verdict may wait for its turn before it is reached again: keys are revoked meanwhile."""
NEAR: Final = 64
"""Deliveries judged at once where the store is in this process: what lives shortly costs the collector least."""


class Ahead:
    """Judges the deliveries of one batch ahead of their turns; a new one for each batch.

    Args:
        guard: the pipeline. Where its store has no ``claim_many``, each delivery is judged in its turn.
        longest: seconds after which a verdict that still waits is reached anew.
    """

    def __init__(self, guard: Pipeline, *, longest: float = LONGEST) -> None:
        many = getattr(guard.replay, "claim_many", None)
        self._many: Callable[[list[ClaimRequest]], list[ClaimStatus]] | None = None if is_async(many) else many
        self._verdicts = guard.verdicts
        self._most = NEAR if getattr(guard.replay, "in_process", False) else None
        self._monotonic = guard.clock.monotonic
        self._longest = longest
        self._left = 0
        self._ends = 0.0

    def look(self, waiting: Sequence[Delivery]) -> None:
        """Judge what waits, where its verdicts are missing or too old; call it before each delivery's turn.

        What cannot be judged now is judged in its turn.

        Raises:
            ConfigurationError: a plug-in is asynchronous.
        """
        now = self._monotonic()
        if self._left > 0 and now < self._ends:
            self._left -= 1
            return
        deliveries = list(islice(waiting, self._most))
        for delivery in deliveries:
            if delivery.step is _HANDLE and not delivery.deferred:
                delivery.step = _JUDGE  # its owner claims again
        self._left, self._ends = len(deliveries) - 1, now + self._longest
        if self._many is not None and len(deliveries) > 1:
            self._judge(self._many, deliveries)

    def _judge(self, many: Callable[[list[ClaimRequest]], list[ClaimStatus]], deliveries: list[Delivery]) -> None:
        """Judge up to the claims, make them together, and go on to the verdicts."""
        unjudged = [each for each in deliveries if each.step is _JUDGE]
        began = self._monotonic()
        wishes = self._wishes(unjudged)
        for delivery, wish in wishes:
            delivery.claim = wish  # from now on the store may hold it, whatever becomes of its answer
        try:
            statuses = many([wish for _, wish in wishes]) if wishes else []
        except Exception:
            statuses = []
        if len(statuses) == len(wishes):
            for (delivery, wish), status in zip(wishes, statuses, strict=True):
                try:
                    self._verdicts.answer(delivery, wish, status)
                except Unavailable:
                    continue  # it is told in its turn
        judged = [each for each in unjudged if each.step is not _JUDGE]
        seconds = (self._monotonic() - began) / max(1, len(judged))
        for delivery in judged:
            delivery.judge_seconds = seconds

    def _wishes(self, deliveries: list[Delivery]) -> list[tuple[Delivery, ClaimRequest]]:
        """Return those that have come to their claim; the first that waits for the world ends it."""
        found = []
        self._verdicts.name_owners(deliveries)
        for delivery in deliveries:
            try:
                wish = self._verdicts.wish(delivery)
                if type(wish) is GeneratorType:
                    wish = run(wish)
            except Unavailable:
                break
            if type(wish) is ClaimRequest and wish.place is not None:  # without one it could not be claimed again
                found.append((delivery, wish))
        return found
