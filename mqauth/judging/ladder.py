"""Below ``enforce``: the rung of a delivery, plug-ins with little patience, and no message kept from its handler.

``observe`` is transparent: the handler runs as often, and in the same order, as without mqauth. So whatever would
reject, defer or settle a message there becomes an ``Unverified`` that says it. A store, policy or key server that
fails or is slow is not asked again for a while, and what ends a claim is never waited for.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mqauth.clock import Clock
from mqauth.errors import Cause, Reason, Rejection, Unavailable, Verdict, require
from mqauth.flow import Flow, unwrap
from mqauth.judging.delivery import Delivery, Step
from mqauth.judging.observing import Breaker, Observing
from mqauth.judging.rollout import (
    EVERYWHERE,
    Rollout,
    Rung,
    destinations_of,
    is_lenient,
    kinds_of,
)
from mqauth.judging.verified import (
    UnverifiedHandler,
    Unverifieds,
    Verified,
    Would,
    kind_of,
    listed,
    make_unverified,
)
from mqauth.logs import emit


class Ladder:
    """The rungs below ``enforce``, for a judge and for the steps after its verdict.

    Args:
        rollout: the rungs and exemptions.
        observing: is told of each delivery that is given to the handler of ``Unverified``, once.
        issuers: names of all issuers.
        clock: measures the patience.

    Attributes:
        store, policy, issuers: keep a plug-in that failed or was slow from being asked again at once.
    """

    def __init__(
        self,
        rollout: Rollout,
        observing: Observing,
        *,
        issuers: Iterable[str],
        clock: Clock,
    ) -> None:
        self._rollout = rollout
        self._observing = observing
        self.store = Breaker(Cause.REPLAY_STORE_UNAVAILABLE, clock)
        self.policy = Breaker(Cause.POLICY_UNAVAILABLE, clock)
        self.issuers = {name: Breaker(Cause.KEYS_UNAVAILABLE, clock) for name in issuers}
        self._breakers = {
            Step.CONFIRM: self.store,
            Step.RELEASE: self.store,
            Step.RECORD: observing.breaker,
        }

    def passes(self, delivery: Delivery) -> bool:
        """Note the rung of a delivery; return whether its handler gets it without a verdict."""
        message = delivery.message
        rung, exemption = self._rollout.rung(message), self._rollout.exemption(message)
        delivery.rung = None if rung is Rung.ENFORCE and exemption is None else rung
        if exemption is not None:
            kind = message.text_property("type") if exemption.kinds else None
            self.pass_on(
                delivery,
                Would(
                    Verdict.REJECTED,
                    Reason.TOKEN_MISSING,
                    None,
                    "exempt: no token header",
                ),
                kind,
            )
        elif rung is Rung.OFF:
            self.pass_on(delivery, None)
        return delivery.step is Step.PASS_ON

    def pass_on(
        self, delivery: Delivery, would: Would | None, kind: str | None = None
    ) -> None:
        """Have a delivery given to the handler of ``Unverified``.

        Args:
            delivery: being judged.
            would: what ``enforce`` would have said; ``None`` where it was not judged.
            kind: of the exemption that lets it pass.
        """
        first = delivery.unverified is None
        delivery.unverified = make_unverified(delivery.message, would, kind)
        delivery.verified = delivery.rejection = delivery.release = None
        delivery.claim = delivery.release_claim = None
        delivery.verdict, delivery.step = Verdict.UNVERIFIED, Step.PASS_ON
        if first:
            self._observing.passes(delivery)

    def patient(self, asking: Flow[Any], deliveries: Iterable[Delivery]) -> Flow[Any]:
        """Return a question to the store for deliveries; one of them below ``enforce`` must not wait for long."""
        return self.store.watch(asking) if any(map(is_lenient, deliveries)) else asking

    def end(self, delivery: Delivery, ending: Flow[None], record_all: bool) -> Flow[None]:
        """Take a step after the verdict; below ``enforce`` neither the store nor the audit is waited for.

        Args:
            delivery: judged.
            ending: takes the step that it has come to.
            record_all: whether accepted messages are recorded.
        """
        step = delivery.step
        if step is Step.CONFIRM:
            self._observing.accepts(delivery)
        yield from self._observing.tick()
        if step not in self._breakers or not is_lenient(delivery):
            return (yield from ending)
        try:
            yield from self._breakers[step].watch(ending)
        except Unavailable as error:
            self._observing.counts.lose(error.cause.value)
            then = Step.SETTLE if delivery.rejection is None else Step.BURY
            wanted = step is not Step.RECORD and (record_all or then is Step.BURY)
            delivery.step = Step.RECORD if wanted else then


def would_be(error: Rejection | Unavailable) -> Would:
    """Return what ``enforce`` would have said of a message for which a step raised this."""
    if isinstance(error, Unavailable):
        return Would(Verdict.DEFERRED, None, error.cause, error.detail)
    return Would(Verdict.REJECTED, error.reason, None, error.detail)


def check_handlers(
    rollout: Rollout | None, handler: Any, unverified: Unverifieds | None
) -> None:
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
        emit(
            "rollout.wired_in",
            "unverified= is given and nothing is below enforce: old code is still wired in",
        )
    given = listed(unverified)
    for each in given.values():
        require(
            callable(each), "unverified= is a handler, or a table of handlers by kind"
        )
        require(
            unwrap(each) != unwrap(handler),
            "unverified= is the handler itself: give another",
        )
        noted = getattr(unwrap(each), "__annotations__", {})
        kinds = [kind for name, kind in noted.items() if name != "return"]
        wrong = any(
            kind is Verified or str(kind).split(".")[-1] == "Verified" for kind in kinds
        )
        require(
            not wrong,
            "unverified= takes an Unverified, and is annotated to take a Verified",
        )
    needed = frozenset() if rollout is None else kinds_of(rollout)
    missing = sorted(needed - given.keys())
    require(not missing, f"unverified= has no handler for {', '.join(missing)}")


def routed(unverified: Unverifieds | None) -> UnverifiedHandler | None:
    """Return one handler for all that is unverified: each kind of an exemption reaches its own handler alone."""
    if unverified is None:
        return None
    table = listed(unverified)
    return lambda message: table[kind_of(message) or EVERYWHERE](message)
