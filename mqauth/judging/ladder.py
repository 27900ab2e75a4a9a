"""Verdicts below ``enforce``: the same steps, plug-ins with little patience, and no message kept from its handler.

``observe`` is transparent: the handler runs as often, and in the same order, as without mqauth. So whatever would
reject, defer or settle a message here becomes an ``Unverified`` that says it. A store, policy or key server that
fails or is slow is not asked again for a while, and what ends a claim is never waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import GeneratorType
from typing import Any, cast

from mqauth.errors import Cause, Reason, Unavailable, require
from mqauth.flow import Flow, unwrapped
from mqauth.judging.breaker import Breaker
from mqauth.judging.delivery import Delivery, Step
from mqauth.judging.judge import Claim, Judge
from mqauth.judging.observing import Observing
from mqauth.judging.policy import Decision, on_the_spot
from mqauth.judging.rollout import EVERYWHERE, Rollout, Rung, destinations_of, is_lenient, kinds_of
from mqauth.judging.token import Candidate
from mqauth.judging.unverified import (
    Unverified,
    UnverifiedHandler,
    Unverifieds,
    Verdict,
    Would,
    kind_of,
    listed,
    make_unverified,
)
from mqauth.judging.verified import Verified
from mqauth.logs import emit
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.wire.keys import KeySet, KeySource


class _Asked:
    """A store and a policy, asked through breakers; of the store only what a judge asks."""

    def __init__(self, store: Breaker, replay: Any, breaker: Breaker, policy: Any) -> None:
        self._store, self._replay, self._breaker, self._policy = store, replay, breaker, policy
        twin = getattr(policy, "adecide", None)
        self.adecide = None if twin is None else partial(breaker.call, twin)
        self.remembered = None if twin is None else on_the_spot(policy)

    def claim(self, request: ClaimRequest) -> Any:
        """Claim a message."""
        return self._store.call(self._replay.claim, request)

    def decide(self, verified: Verified) -> Decision:
        """Decide who may publish where."""
        return cast(Decision, self._breaker.call(self._policy.decide, verified))


class LadderJudge(Judge):
    """Judges by the rung of each message: at ``enforce`` like ``Judge``, below it without ever refusing.

    Args:
        strict: judges at ``enforce``.
        rollout: the rungs and exemptions.
        observing: is told of each delivery that is given to the handler of ``Unverified``, once.
        settings: as of ``Judge``.
    """

    def __init__(self, strict: Judge, rollout: Rollout, observing: Observing, **settings: Any) -> None:
        clock = settings["clock"]
        self.store = Breaker(Cause.REPLAY_STORE_UNAVAILABLE, clock)
        self.audit = observing.breaker
        policy = Breaker(Cause.POLICY_UNAVAILABLE, clock)
        asked: Any = _Asked(self.store, settings["replay"], policy, settings["policy"])
        super().__init__(**settings | {"replay": asked, "policy": asked})
        self.strict = strict
        self._rollout = rollout
        self._on_would = observing.passes
        self._issuers = {name: Breaker(Cause.KEYS_UNAVAILABLE, clock) for name in self._verifier.issuers}

    def judge(self, delivery: Delivery) -> Flow[None]:
        """Reach a verdict; below ``enforce`` whatever is no acceptance becomes an ``Unverified``."""
        if self._is_strict(delivery):
            yield from self.strict.judge(delivery)
            return
        if delivery.step is Step.PASS_ON:
            return
        try:
            yield from super().judge(delivery)
        except Unavailable as error:
            self._defer_not(delivery, error)
        self._relent(delivery)

    def prepare(self, delivery: Delivery, waited: KeySet | None = None) -> Claim | Flow[Claim]:
        """Take steps (0) to (12), as ``Judge`` does; ``None`` for what is given to the handler as it is."""
        if waited is not None:
            return super().prepare(delivery, waited)
        if self._is_strict(delivery):
            return self.strict.prepare(delivery)
        if delivery.step is Step.PASS_ON:
            return None
        try:
            found = super().prepare(delivery)
        except Unavailable as error:
            self._defer_not(delivery, error)
            return None
        if type(found) is GeneratorType:
            return self._prepared(delivery, found)
        self._relent(delivery)
        return found

    def conclude(self, delivery: Delivery, claim: ClaimRequest, status: ClaimStatus) -> None:
        """Reach the verdict that follows from what the store said of a claim."""
        super().conclude(delivery, claim, status)
        if is_lenient(delivery):
            self._relent(delivery)

    def _prepared(self, delivery: Delivery, flow: Flow[Claim]) -> Flow[Claim]:
        try:
            found = yield from flow
        except Unavailable as error:
            self._defer_not(delivery, error)
            return None
        self._relent(delivery)
        return found

    def _keys(self, delivery: Delivery, candidate: Candidate, source: KeySource, at_hand: Any) -> Flow[KeySet]:
        return (
            yield from self._issuers[candidate.token.claims.iss].watch(
                super()._keys(delivery, candidate, source, at_hand)
            )
        )

    def _is_strict(self, delivery: Delivery) -> bool:
        """Return whether a delivery is judged at ``enforce``; pass it on where it is not judged at all."""
        if delivery.step is not Step.JUDGE:
            return not is_lenient(delivery)
        exemption = self._rollout.exemption(delivery.message)
        rung = self._rollout.rung(delivery.message)
        if exemption is not None:
            would = Would(Verdict.REJECTED, Reason.TOKEN_MISSING, None, "exempt: no token header")
            kind = delivery.message.text_property("type") if exemption.kinds else None
            delivery.rung = rung
            self._pass_on(delivery, would, kind)
            return False
        delivery.rung = None if rung is Rung.ENFORCE else rung
        if rung is Rung.OFF:
            self._pass_on(delivery, None)
        return rung is Rung.ENFORCE

    def _defer_not(self, delivery: Delivery, error: Unavailable) -> None:
        self._pass_on(delivery, Would(Verdict.DEFERRED, None, error.cause, error.detail))

    def _relent(self, delivery: Delivery) -> None:
        """Give the handler what would have been rejected, or settled without it."""
        if delivery.step is Step.RECORD:
            found = delivery.rejection
            self._pass_on(
                delivery,
                Would(Verdict.DUPLICATE, detail="it was handled before") if found is None
                else Would(Verdict.REJECTED, found.reason, None, found.detail),
            )  # fmt: skip

    def _pass_on(self, delivery: Delivery, would: Would | None, kind: str | None = None) -> None:
        first = delivery.unverified is None
        delivery.unverified = make_unverified(delivery.message, would, kind)
        delivery.verified = delivery.rejection = delivery.release = None
        delivery.claim = delivery.release_claim = None
        delivery.verdict, delivery.step = Verdict.UNVERIFIED, Step.PASS_ON
        if first:
            self._on_would(delivery)


def lenient(end: Callable[..., Flow[None]], ladder: LadderJudge, record_all: bool, observing: Observing) -> Any:
    """Return ``end`` as a function that counts, and waits below ``enforce`` for neither the store nor the audit.

    Args:
        end: takes the step that a delivery has come to.
        ladder: its breakers keep store and audit from being asked again at once.
        record_all: whether accepted messages are recorded.
        observing: counts and tells.
    """
    breakers = {Step.CONFIRM: ladder.store, Step.RELEASE: ladder.store, Step.RECORD: ladder.audit}

    def take(delivery: Delivery, *rest: Any) -> Flow[None]:
        step = delivery.step
        if step is Step.CONFIRM:
            observing.accepts(delivery)
        yield from observing.tick()
        if not is_lenient(delivery) or step not in breakers:
            return (yield from end(delivery, *rest))
        try:
            yield from breakers[step].watch(end(delivery, *rest))
        except Unavailable as error:
            observing.counts.lose(error.cause.value)
            kept = Step.SETTLE if delivery.rejection is None else Step.BURY
            wanted = step is not Step.RECORD and (record_all or kept is Step.BURY)
            delivery.step = Step.RECORD if wanted else kept

    return take


def check_handlers(rollout: Rollout | None, handler: Any, unverified: Unverifieds | None) -> None:
    """Refuse a consumer whose handlers do not fit its rollout.

    Args:
        rollout: of its pipeline; ``None`` where everything is enforced.
        handler: takes a ``Verified``.
        unverified: takes an ``Unverified``; or one for each kind.

    Raises:
        ConfigurationError: none is given and a rung or exemption needs one, or both are the same.
    """
    if unverified is None:
        require(
            not rollout,
            "unverified= is needed: messages of these destinations need not be signed: "
            + ("" if rollout is None else destinations_of(rollout)),
        )
        return
    if not rollout:
        emit("rollout.wired_in", "unverified= is given and nothing is below enforce: old code is still wired in")
    given = listed(unverified)
    for each in given.values():
        require(callable(each), "unverified= is a handler, or a table of handlers by kind")
        require(unwrapped(each) != unwrapped(handler), "unverified= is the handler itself: give another")
        require(not _takes_verified(each), "unverified= takes an Unverified, and is annotated to take a Verified")
    needed = frozenset() if rollout is None else kinds_of(rollout)
    missing = sorted(needed - given.keys())
    require(not missing, f"unverified= has no handler for {', '.join(missing)}")


def routed(unverified: Unverifieds | None) -> UnverifiedHandler | None:
    """Return one handler for all that is unverified: each kind of an exemption reaches its own handler alone."""
    if unverified is None:
        return None
    table = listed(unverified)
    return lambda message: table[kind_of(message) or EVERYWHERE](message)


def _takes_verified(handler: Callable[[Unverified], Any]) -> bool:
    noted = getattr(unwrapped(handler), "__annotations__", {})
    kinds = [kind for name, kind in noted.items() if name != "return"]
    return any(kind is Verified or (isinstance(kind, str) and kind.split(".")[-1] == "Verified") for kind in kinds)
