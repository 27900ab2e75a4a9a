"""The claims of a batch in one round trip, for brokers that say where exactly a delivery stands.

The deliveries of a partition are judged up to their claims, the claims are made together, and each verdict
stays with its delivery, which ``Pipeline.process`` carries to its end when its turn comes. One whose turn never
comes leaves a claim with its place behind, and the same place may claim again (``mqauth.replay``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from mqauth.flow import Call, Flow, is_async, make
from mqauth.pipeline import Delivery, Outcome, Pipeline, Step
from mqauth.replay import ClaimRequest, ClaimStatus

LONGEST: Final = 10.0
"""Seconds a verdict may wait for its turn before it is reached again: keys are revoked meanwhile."""
_Judging = tuple[Flow[Outcome], ClaimRequest]


class Ahead:
    """Judges the deliveries of one batch ahead of their turns; a new one for each batch.

    Args:
        guard: the pipeline. Where its store has no ``claim_many``, each delivery is judged in its turn.
        longest: seconds after which a verdict that still waits is reached anew.
    """

    def __init__(self, guard: Pipeline, *, longest: float = LONGEST) -> None:
        many = getattr(guard.replay, "claim_many", None)
        self._many: Callable[[list[ClaimRequest]], list[ClaimStatus]] | None = None if is_async(many) else many
        self._guard = guard
        self._longest = longest
        self._left = 0
        self._ends = 0.0

    def look(self, waiting: Sequence[Delivery]) -> None:
        """Judge what waits, where its verdicts are missing or too old; call it before each delivery's turn.

        What cannot be judged now is judged in its turn.

        Raises:
            ConfigurationError: a plug-in is asynchronous.
        """
        now = self._guard.clock.monotonic()
        if self._left > 0 and now < self._ends:
            self._left -= 1
            return
        deliveries = list(waiting)
        for delivery in deliveries:
            if delivery.step is Step.HANDLE and not delivery.deferred:
                delivery.step = Step.JUDGE  # its owner claims again
        self._left, self._ends = len(deliveries) - 1, now + self._longest
        if self._many is not None and len(deliveries) > 1:
            self._judge(self._many, deliveries)

    def _judge(self, many: Callable[[list[ClaimRequest]], list[ClaimStatus]], deliveries: list[Delivery]) -> None:
        """Judge up to the claims, make them together, and go on to the verdicts."""
        clock, unjudged = self._guard.clock, [each for each in deliveries if each.step is Step.JUDGE]
        began = clock.monotonic()
        judging = self._up_to_claims(unjudged)
        try:
            statuses = many([request for _, request in judging]) if judging else []
        except Exception:
            statuses = []
        if len(statuses) != len(judging):
            statuses = []
        for (flow, _), status in zip(judging, statuses, strict=False):
            _end(flow, status)
        for flow, _ in judging:
            flow.close()
        judged = [each for each in unjudged if each.step is not Step.JUDGE]
        for delivery in judged:
            delivery.judge_seconds = (clock.monotonic() - began) / len(judged)

    def _up_to_claims(self, deliveries: list[Delivery]) -> list[_Judging]:
        """Return the judgements that have come to their claim; the first that waits for the world ends it."""
        found: list[_Judging] = []
        for delivery in deliveries:
            flow = self._guard.judge(delivery)
            request = self._up_to_claim(flow)
            if request is None and delivery.step is Step.JUDGE:
                break
            if request is not None and request.place is None:  # a released message: claimed in its turn
                flow.close()
            elif request is not None:
                found.append((flow, request))
        return found

    def _up_to_claim(self, flow: Flow[Outcome]) -> ClaimRequest | None:
        """Run a judgement until it wishes for a claim; ``None`` where it ends without."""
        wish = _next(flow.__next__)
        while wish is not None and wish.function != self._guard.replay.claim:
            wish = _made(flow, wish)
        return None if wish is None else wish.arguments[0]


def _next(step: Callable[..., Call], *given: Any) -> Call | None:
    """Return the next wish of a flow, ``None`` at its end."""
    try:
        return step(*given)
    except StopIteration:
        return None


def _made(flow: Flow[Outcome], wish: Call) -> Call | None:
    """Make a call for a flow, and return its next wish."""
    try:
        result = make(wish)
    except Exception as error:
        return _next(flow.throw, error)
    return _next(flow.send, result)


def _end(flow: Flow[Outcome], status: ClaimStatus) -> None:
    """Give a judgement its claim and let it come to its verdict."""
    wish = _next(flow.send, status)
    while wish is not None:
        wish = _made(flow, wish)
