"""THE order of a verdict, once, for every broker and both colours.

accepted: claim, handler, confirm, settle. rejected: audit (durable), dead letter (confirmed by the broker),
settle. deferred: neither handled nor dead-lettered; processed again from where it stopped, and once a
handler has ended it never runs again for that delivery in this process. Settling is the broker wrapper's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final, Literal

from mqauth.audit.record import AuditSink
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness, uuid7
from mqauth.errors import Cause, ConfigurationError, Reason, Rejection, RejectNow, RetryLater, Unavailable
from mqauth.flow import Attempts, Call, ColourError, Flow, answered, asked, at_once, settling
from mqauth.judging.audit_record import verdict_record
from mqauth.judging.delivery import Delivery, Outcome, Step, Verdict
from mqauth.judging.judge import Judge
from mqauth.judging.policy import Allow, Policy
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Verifier
from mqauth.letters.dead_letter import DeadLetter, DeadLetterSink
from mqauth.replay.rules import DEFAULT_LEASE, ClaimStatus, ReplayStore
from mqauth.wire.base64url import encode as base64url_encode
from mqauth.wire.message import Message

__all__ = ["Delivery", "Handler", "Observer", "Outcome", "Pipeline", "Step", "Verdict"]
Handler = Callable[[Verified], Any]
Observer = Callable[[Outcome, Message, float], None]
_LOG: Final = logging.getLogger("mqauth.pipeline")
# Python 3.11 takes its time to look a member up
_JUDGE, _HANDLE, _CONFIRM, _RELEASE = Step.JUDGE, Step.HANDLE, Step.CONFIRM, Step.RELEASE
_RECORD, _SETTLE = Step.RECORD, Step.SETTLE
_TUPLE: Final = tuple.__new__
_STORE: Final = Cause.REPLAY_STORE_UNAVAILABLE


class Pipeline:
    """Judges deliveries and carries each to its end, by the order of this module.

    Args:
        verifier: judges tokens.
        policy: who may publish where; required, and an empty one refuses everything.
        replay: remembers what was claimed.
        audit: where verdicts are made durable; may be left out only where nothing is settled.
        scope: on whose behalf messages are handled; by default what the broker wrapper says.
        record: audit ``"rejections"`` or ``"all"`` verdicts.
        reread: ``"handle"`` or settle as ``"duplicate"`` what Kafka delivers again after it was done.
        attempts: how often a handler may fail.
        lease: seconds a claim holds while its handler runs.
        instance: this process in audit records.
        observers: called with each outcome of ``process``, its message and the seconds since it was
            received; for metrics. What they raise is logged and changes nothing.

    Raises:
        ConfigurationError: a setting is unknown, or a rule names no issuer where several are trusted.
    """

    def __init__(
        self,
        *,
        verifier: Verifier,
        policy: Policy,
        replay: ReplayStore,
        audit: AuditSink | None = None,
        scope: str | None = None,
        record: Literal["rejections", "all"] = "rejections",
        reread: Literal["handle", "duplicate"] = "handle",
        attempts: Attempts = Attempts(),  # noqa: B008 - frozen
        lease: float = DEFAULT_LEASE,
        instance: str | None = None,
        observers: Iterable[Observer] = (),
        clock: Clock = SYSTEM_CLOCK,
        randomness: Randomness = SYSTEM_RANDOMNESS,
    ) -> None:
        if record not in ("rejections", "all") or reread not in ("handle", "duplicate"):
            raise ConfigurationError('record is "rejections" or "all", reread is "handle" or "duplicate"')
        if lease <= 0:
            raise ConfigurationError("lease is more than 0 seconds")
        _check_issuers(verifier, policy)
        self.verifier = verifier
        self.policy = policy
        self.replay = replay
        self.audit = audit
        self.scope = scope
        self.attempts = attempts
        self.clock = clock
        self._observers = tuple(observers)
        self._record_all = record == "all"
        self.lease = lease
        self._randomness = randomness
        self.verdicts = Judge(
            verifier=verifier, policy=policy, replay=replay, scope=scope, reread=reread, lease=lease, clock=clock,
            randomness=randomness,
        )  # fmt: skip
        """Steps 1 to 13, for who makes many claims together."""
        self.instance = instance or base64url_encode(randomness(6)).decode("ascii")

    def receive(self, message: Message) -> Delivery:
        """Return a delivery received now; never raises, whatever the message."""
        return Delivery(message=message, received=self.clock.now())

    def process(
        self, delivery: Delivery, handler: Handler | None, dead_letters: DeadLetterSink | None
    ) -> Flow[Outcome]:
        """Carry a delivery to its end, or as far as the world allows: what steps are left, each once.

        Args:
            delivery: a new one, or one deferred before.
            handler: called with the verified message; tried again by ``attempts``. ``None`` where it was handled
                or rejected before; the observers are told nothing then.
            dead_letters: where a rejected message goes.

        Returns:
            The outcome; everything but ``DEFERRED`` is to be settled.

        Raises:
            StaleDelivery: as its fence did; nothing more is to be done with it, but to release its claim.
        """
        try:
            if delivery.deferred and delivery.step is _HANDLE and not (yield from self._is_held(delivery)):
                delivery.claim, delivery.release_claim, delivery.step = None, None, _JUDGE
            while (step := delivery.step) is not _SETTLE:
                passed = None if delivery.fence is None else _asked_fence(delivery, delivery.fence)
                if passed is not None:
                    yield from settling(passed)
                if step is _JUDGE:
                    yield from self._timed_judge(delivery) if self._observers else self.verdicts.judge(delivery)
                elif step is _HANDLE and handler is not None:
                    try:
                        yield _TUPLE(Call, (handler, (delivery.verified,), self.attempts, None))
                        delivery.step = _CONFIRM
                    except Exception as error:
                        _failed(delivery, error)
                else:
                    yield from self._end(delivery, dead_letters)
            outcome = Outcome.of(delivery)
        except Unavailable as error:
            outcome = delivery.defer(error)
        if self._observers and handler is not None:
            self._observe(outcome, delivery)
        return outcome

    def judge(self, delivery: Delivery) -> Flow[Outcome]:
        """Judge a delivery, steps 1 to 13, for those who handle and settle it themselves.

        An accepted one is claimed: end it with ``confirm`` or ``release``; a rejected one with ``bury``.
        """
        try:
            if delivery.step is Step.JUDGE:
                yield from self.verdicts.judge(delivery)
        except Unavailable as error:
            return delivery.defer(error)
        return Outcome.of(delivery)

    def confirm(self, delivery: Delivery) -> Flow[Outcome]:
        """Make the claim of a judged and handled delivery done; then settle it.

        Raises:
            ConfigurationError: it was not judged to an end, or was rejected: nothing there may be settled.
        """
        _refuse_unjudged(delivery)
        if delivery.rejection is not None:
            raise ConfigurationError("a rejected delivery ends with bury")
        if delivery.step is Step.HANDLE:
            delivery.step = Step.CONFIRM
        return (yield from self.process(delivery, None, None))

    def release(self, delivery: Delivery) -> Flow[Outcome]:
        """Give the claim of a delivery back, unhandled; it may be delivered again.

        Returns:
            ``DEFERRED`` whatever it was before: nothing that was given back may be settled.

        Raises:
            ConfigurationError: it was never judged.
        """
        if not delivery.deferred and delivery.claim is None:
            _refuse_unjudged(delivery)
        try:
            if delivery.step is _HANDLE or delivery.step is _JUDGE:
                # Before the store is asked: where its answer is lost the claim may be gone, and is made again.
                delivery.step = _JUDGE
                for claim in delivery.claims:
                    yield from asked(_STORE, self.replay.release, claim)
                delivery.claim = delivery.release_claim = None
        except Unavailable as error:
            return delivery.defer(error)
        return delivery.defer(Unavailable(Cause.HANDLER_DEFERRED, "given back unhandled"))

    def renew(self, delivery: Delivery) -> Flow[bool]:
        """Make the lease of a delivery longer while its handler runs; call it every third of ``lease``.

        Returns:
            Whether the claim is still this delivery's; a store out of reach is no reason to stop a handler.
        """
        if delivery.claim is None or delivery.step is not Step.HANDLE:
            return False
        try:
            return (yield from self._renewed(delivery))
        except Unavailable as error:
            _LOG.warning("a lease was not renewed: %s", error)
            return True

    def _renewed(self, delivery: Delivery) -> Flow[bool]:
        """Make the lease of a delivery longer, and tell whether its claim is still its own."""
        now = self.clock.now()
        for claim in delivery.claims:
            wish = replace(claim, renew=True, expires=max(claim.expires, now + self.lease))
            if (yield from asked(_STORE, self.replay.claim, wish)) is not ClaimStatus.FRESH:
                return False
        delivery.renewed = now
        return True

    def _is_held(self, delivery: Delivery) -> Flow[bool]:
        """Tell whether a claim is still its own; the store is asked where the lease may be over."""
        held = self.clock.now() - max(delivery.received, delivery.renewed) < self.lease
        return held or (yield from self._renewed(delivery))

    def bury(self, delivery: Delivery, dead_letters: DeadLetterSink) -> Flow[Outcome]:
        """Audit and dead-letter a delivery that was rejected; then settle it.

        Raises:
            ConfigurationError: it was not judged to an end, or was accepted: that ends with ``confirm``.
        """
        _refuse_unjudged(delivery)
        if delivery.verdict is Verdict.ACCEPTED:
            raise ConfigurationError("an accepted delivery ends with confirm or release")
        return (yield from self.process(delivery, None, dead_letters))

    def _end(self, delivery: Delivery, dead_letters: DeadLetterSink | None) -> Flow[None]:
        """Take a step that follows verdict and handler: end what is claimed, record, or bury.

        A release of a reviewer's is ended first: after a crash between the two it is a duplicate, no replay.
        """
        step = delivery.step
        if step is _CONFIRM or step is _RELEASE:
            ends = self.replay.confirm if step is _CONFIRM else self.replay.release
            for claim in (delivery.release_claim, delivery.claim):
                ended = None if claim is None else at_once(_STORE, ends, claim)
                if ended is not None:
                    yield from answered(_STORE, ended)
            plain = delivery.rejection is None and not self._record_all
            delivery.step = _SETTLE if plain else _RECORD
        elif step is _RECORD:
            yield from self._record(delivery)
        else:
            yield from self._bury(delivery, dead_letters)

    def _timed_judge(self, delivery: Delivery) -> Flow[None]:
        """Judge, and note how long it took, for those who observe."""
        started = self.clock.monotonic()
        try:
            yield from self.verdicts.judge(delivery)
        finally:
            delivery.judge_seconds = self.clock.monotonic() - started

    def _is_recorded(self, delivery: Delivery) -> bool:
        """Tell whether the verdict on a delivery is to be recorded."""
        return delivery.rejection is not None or (self._record_all and self.audit is not None)

    def _record(self, delivery: Delivery) -> Flow[None]:
        """Make the audit record durable, where there is to be one; it comes before the dead letter."""
        if not self._is_recorded(delivery):
            delivery.step = _SETTLE
            return
        if self.audit is None:
            raise ConfigurationError("a pipeline without audit cannot settle rejected messages")
        delivery.record_id = delivery.record_id or uuid7(self.clock, self._randomness)
        record = verdict_record(
            delivery, scope=self.scope_of(delivery.message), time=self.clock.now(), policy=self.policy.version,
            instance=self.instance,
        )  # fmt: skip
        yield from asked(Cause.AUDIT_UNAVAILABLE, self.audit.write, record)
        delivery.step = Step.SETTLE if delivery.rejection is None else Step.BURY

    def _bury(self, delivery: Delivery, dead_letters: DeadLetterSink | None) -> Flow[None]:
        """Publish the dead letter and wait for the broker's confirm."""
        if dead_letters is None or delivery.rejection is None or delivery.record_id is None:
            raise ConfigurationError("only a rejected message that was recorded can be buried")
        letter = DeadLetter(
            message=delivery.message,
            rejection=delivery.rejection,
            scope=self.scope_of(delivery.message),
            time=self.clock.now(),
            audit=delivery.record_id,
            release=delivery.release,
            digest=delivery.content_digest(),
        )
        yield from asked(Cause.DEAD_LETTER_UNAVAILABLE, dead_letters.publish, letter)
        delivery.letter, delivery.step = letter.id, Step.SETTLE

    def _observe(self, outcome: Outcome, delivery: Delivery) -> None:
        """Tell the observers; a broken one must not stop a consumer."""
        for observer in self._observers:
            try:
                observer(outcome, delivery.message, self.clock.now() - delivery.received)
            except Exception as error:
                _LOG.warning("an observer failed: %s", type(error).__name__)

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have a function called when an issuer's keys changed: what waits for a key may go on then.

        Args:
            callback: called on a thread of the key source's, and not by sources that never defer.

        Returns:
            A function that ends it.
        """
        sources = [issuer.keys for issuer in self.verifier.issuers.values()]
        ends = [found.subscribe(lambda _keys: callback()) for found in sources if hasattr(found, "subscribe")]

        def end() -> None:
            for unsubscribe in ends:
                unsubscribe()

        return end

    def scope_of(self, message: Message) -> str:
        """Return on whose behalf a message is handled."""
        return self.verdicts.scope_of(message)


def _asked_fence(delivery: Delivery, fence: Callable[[Delivery], Any]) -> Any:
    """Return what the fence of a delivery says before its next step, to be awaited where it is asynchronous.

    What condemns nothing needs no fence: a claim is ended, and a message that was handled is recorded,
    whoever the delivery belongs to by now.

    Raises:
        StaleDelivery: the step may not be taken.
    """
    step = delivery.step
    if step is _CONFIRM or step is _RELEASE or (step is _RECORD and delivery.rejection is None):
        return None
    return fence(delivery)


def _failed(delivery: Delivery, error: Exception) -> None:
    """Reject what its handler raised at last as ``handler_failed``, unless it asks for another time.

    Raises:
        Unavailable: it does.
        ColourError: nobody awaits the handler.
    """
    if isinstance(error, ColourError):
        raise error
    if isinstance(error, RetryLater):
        raise Unavailable(Cause.HANDLER_DEFERRED, error.detail) from error
    detail = error.detail if isinstance(error, RejectNow) else f"{type(error).__name__} after the last attempt"
    delivery.reject(Rejection(Reason.HANDLER_FAILED, detail), Step.RELEASE)


def _check_issuers(verifier: Verifier, policy: Policy) -> None:
    """Refuse a rule that would serve the same subject of any issuer."""
    loose = isinstance(policy, Allow) and any(rule.issuer is None for rule in policy.rules)
    if loose and len(verifier.issuers) > 1:
        raise ConfigurationError("several issuers are trusted: each rule must name its issuer")


def _refuse_unjudged(delivery: Delivery) -> None:
    """Refuse to end what has no verdict: its outcome would read as accepted."""
    if delivery.step is Step.JUDGE:
        raise ConfigurationError("the delivery was not judged to an end")
