"""What follows from a verdict, in its order, once for every broker and for both kinds of caller.

* accepted: claim, handler, confirm, settle.
* rejected: audit record (durable), dead letter (confirmed by the broker), settle.
* deferred: neither handled nor dead-lettered, and processed again later from the step where it stopped.
* unverified, which takes a rung below ``enforce`` or an exemption: the handler for these, settle.

Once a handler has returned, or failed for the last time, it never runs again for that delivery in this process:
only the steps after it are repeated. The broker wrapper settles, and only what has come to ``Step.SETTLE``: a
crash before that may duplicate a message, and never loses one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Literal, TypeAlias

from mqauth.audit.record import AuditSink, iso_time, record_of_process
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness, uuid7
from mqauth.errors import Cause, ConfigurationError, Unavailable, Verdict, require
from mqauth.flow import (
    Attempts,
    Call,
    Flow,
    answered,
    at_once,
    call,
    is_last,
    pause,
    settling,
)
from mqauth.judging.delivery import (
    Delivery,
    Outcome,
    Step,
    refuse_unjudged,
    verdict_record,
)
from mqauth.judging.details import explain
from mqauth.judging.journal import Journal
from mqauth.judging.judge import STORE, Judge
from mqauth.judging.ladder import Ladder, check_handlers, routed
from mqauth.judging.observing import Observing
from mqauth.judging.policy import Policy, local_rules
from mqauth.judging.rollout import Rollout, is_lenient
from mqauth.judging.verified import UnverifiedHandler, Unverifieds, V, Verified
from mqauth.judging.verifier import Verifier
from mqauth.letters.dead_letter import DeadLetter, DeadLetterSink
from mqauth.logs import HANDLING, emit, harmless
from mqauth.replay.rules import (
    DEFAULT_LEASE,
    ClaimRequest,
    ClaimStatus,
    MemoryLost,
    NoReplayStore,
    ReplayStore,
)
from mqauth.wire.base64url import encode as base64url_encode
from mqauth.wire.message import NEW_TUPLE, Message

__all__ = [
    "Delivery",
    "Handler",
    "Observer",
    "Outcome",
    "Pipeline",
    "Step",
    "V",
    "Verdict",
]
Handler: TypeAlias = Callable[[Verified[V]], Any]
Observer = Callable[[Outcome, Message, float], None]
# Python 3.11 takes its time to look a member of an enum up
_JUDGE, _HANDLE, _CONFIRM, _RELEASE = Step.JUDGE, Step.HANDLE, Step.CONFIRM, Step.RELEASE
_PASS_ON, _RECORD, _SETTLE = Step.PASS_ON, Step.RECORD, Step.SETTLE


class Pipeline:
    """Judges deliveries and carries each to its end, in the order of this module.

    Args:
        verifier: judges tokens.
        policy: decides who may publish where; it is required, and an empty one refuses everything.
        replay: remembers which messages were claimed; ``None`` where handlers may handle every copy of a message.
        audit: makes verdicts durable; may be left out only if nothing is settled.
        scope: on whose behalf messages are handled; by default what the broker wrapper says.
        record: whether ``"rejections"`` or ``"all"`` verdicts are audited.
        reread: ``"handle"``, or ``"duplicate"`` to settle without the handler what Kafka delivers again after it
            was done.
        attempts: how often a handler may fail.
        lease: seconds a claim holds while its handler runs.
        instance: the name of this process in audit records.
        exception_messages: whether messages of handlers' exceptions are logged; not where they quote bodies.
        observers: called with each outcome of ``process``, its message and the seconds since that was received;
            for metrics. What they raise is logged and changes nothing.
        rollout: which destinations are not enforced yet, and what is exempt; by default nothing.
        self_test: whether its consumers try at their start that it refuses what nobody signed.

    Raises:
        ConfigurationError: a setting is unknown, or a rule names no issuer although several are trusted.
    """

    def __init__(
        self,
        *,
        verifier: Verifier,
        policy: Policy,
        replay: ReplayStore | None,
        audit: AuditSink | None = None,
        scope: str | None = None,
        record: Literal["rejections", "all"] = "rejections",
        reread: Literal["handle", "duplicate"] = "handle",
        attempts: Attempts = Attempts(),  # noqa: B008 - frozen
        lease: float = DEFAULT_LEASE,
        instance: str | None = None,
        exception_messages: bool = True,
        observers: Iterable[Observer] = (),
        rollout: Rollout | None = None,
        self_test: bool = True,
        clock: Clock = SYSTEM_CLOCK,
        randomness: Randomness = SYSTEM_RANDOMNESS,
    ) -> None:
        require(
            record in ("rejections", "all") and reread in ("handle", "duplicate"),
            'record is "rejections" or "all", reread is "handle" or "duplicate"',
        )
        require(lease > 0, "lease is more than 0 seconds")
        replay = NoReplayStore() if replay is None else replay
        # a rule without an issuer would admit its subject of each of them
        loose = (
            any(rule.issuer is None for rule in local_rules(policy) or ())
            and len(verifier.issuers) > 1
        )
        require(not loose, "several issuers are trusted: each rule must name its issuer")
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
        self.self_test = self_test
        self.instance = instance or base64url_encode(randomness(6)).decode("ascii")
        self.rollout = rollout or None
        plugins: dict[str, Any] = {
            "verifier": verifier,
            "policy": policy,
            "replay": replay,
        }
        self.journal = Journal(
            clock,
            randomness,
            self.scope_of,
            audit=audit,
            messages=exception_messages,
            **plugins,
        )
        self._telling: MemoryLost | None = None
        self.observing: Observing | None = None
        self._ladder: Ladder | None = None
        named = verifier.aliases or verifier.ends or verifier.times.without_evidence
        if self.rollout is not None or named:
            self.observing = Observing(
                self.rollout or Rollout(),
                audit,
                clock=clock,
                randomness=randomness,
                instance=self.instance,
                policy=policy,
                verifier=verifier,
                scope_of=self.scope_of,
            )
            if self.rollout is not None:
                self._ladder = Ladder(
                    self.rollout, self.observing, issuers=verifier.issuers, clock=clock
                )
        times: dict[str, Any] = {"lease": lease, "clock": clock, "randomness": randomness}
        self.verdicts = Judge(
            scope=scope, reread=reread, ladder=self._ladder, **plugins, **times
        )
        """Takes the steps of a verdict; for whoever makes the claims of many deliveries together."""

    def receive(self, message: Message) -> Delivery:
        """Return a delivery of a message that is received now; never raises, whatever the message."""
        return Delivery(message=message, received=self.clock.now())

    def process(
        self,
        delivery: Delivery,
        handler: Handler | None,
        dead_letters: DeadLetterSink | None,
        unverified: UnverifiedHandler | None = None,
        done: list[ClaimRequest] | None = None,
    ) -> Flow[Outcome]:
        """Carry a delivery to its end, or as far as possible now, through the steps that are left.

        Args:
            delivery: a new one, or one that was deferred before.
            handler: called with the verified message, as often as ``attempts`` says. ``None`` if the message
                was handled or rejected before; then the observers are not called.
            dead_letters: where a rejected message goes.
            unverified: called with a message that needs no proof, as ``handlers`` returned it.
            done: takes claims of records that were handled, for who confirms many together; not below ``enforce``.

        Returns:
            The outcome; everything but ``DEFERRED`` is to be settled.

        Raises:
            StaleDelivery: as its fence did; nothing more is to be done with it, but to release its claim.
        """
        try:
            # it waited after it was judged, perhaps for longer than its lease: another delivery may hold the claim
            if (
                delivery.deferred
                and delivery.step is _HANDLE
                and not (yield from self._is_held(delivery))
            ):
                delivery.claim, delivery.release_claim, delivery.step = None, None, _JUDGE
            while (step := delivery.step) is not _SETTLE:
                # these steps condemn nothing, so they are right whoever has the delivery by now
                ends = (
                    step is _CONFIRM
                    or step is _RELEASE
                    or (step is _RECORD and delivery.rejection is None)
                )
                if (
                    not ends
                    and delivery.fence is not None
                    and (passed := delivery.fence(delivery)) is not None
                ):
                    yield from settling(passed)
                if step is _JUDGE:
                    started = self.clock.monotonic() if self._observers else 0.0
                    try:
                        yield from self.verdicts.judge(delivery)
                    finally:
                        if self._observers:
                            delivery.judge_seconds = self.clock.monotonic() - started
                elif step is _HANDLE and handler is not None:
                    yield from self._handled(
                        delivery, handler, delivery.verified, _CONFIRM
                    )
                else:
                    ending, ladder = (
                        self._end(delivery, dead_letters, unverified, done),
                        self._ladder,
                    )
                    yield from (
                        ending
                        if ladder is None
                        else ladder.end(delivery, ending, self._record_all)
                    )
            outcome = Outcome.of(delivery)
            self.journal.ended(delivery)
        except Unavailable as error:
            if error.cause is STORE:
                yield from self._tell_of_loss()
            outcome = self.journal.deferred(delivery, error, dead_letters)
        for observer in self._observers if handler is not None else ():
            try:
                observer(outcome, delivery.message, self.clock.now() - delivery.received)
            except Exception as error:  # metrics must not stop a consumer
                emit("observer.failed", "an observer failed: %s", type(error).__name__)
        return outcome

    def judge(self, delivery: Delivery) -> Flow[Outcome]:
        """Judge a delivery without handling it, for callers who handle and settle it themselves.

        An accepted delivery is claimed: end it with ``confirm`` or ``release``, and a rejected one with ``bury``.
        """
        try:
            if delivery.step is Step.JUDGE:
                yield from self.verdicts.judge(delivery)
                yield from self.tick()
        except Unavailable as error:
            if error.cause is STORE:
                yield from self._tell_of_loss()
            return self.journal.deferred(delivery, error, None)
        explain(delivery, self.verifier, self.policy)
        return Outcome.of(delivery)

    def confirm(self, delivery: Delivery) -> Flow[Outcome]:
        """End the claim of a delivery that was judged and handled; settle it after that.

        Raises:
            ConfigurationError: it was not judged to an end, or was rejected: it may not be settled.
        """
        refuse_unjudged(delivery)
        require(delivery.rejection is None, "a rejected delivery ends with bury")
        delivery.step = {_PASS_ON: _SETTLE, _HANDLE: _CONFIRM}.get(
            delivery.step, delivery.step
        )
        return (yield from self.process(delivery, None, None))

    def release(self, delivery: Delivery) -> Flow[Outcome]:
        """Give the claim of a delivery back, unhandled, so that it may be delivered again.

        Returns:
            ``DEFERRED``, whatever it was before: what was given back may not be settled.

        Raises:
            ConfigurationError: it was never judged.
        """
        if not delivery.deferred and delivery.claim is None:
            refuse_unjudged(delivery)
        try:
            if delivery.step in (_HANDLE, _PASS_ON, _JUDGE):
                # before the store is asked: if its answer is lost the claim may be gone, and is made again
                delivery.step, delivery.verdict, delivery.unverified = (
                    _JUDGE,
                    Verdict.ACCEPTED,
                    None,
                )
                for claim in delivery.claims:
                    yield from call(self.replay.release, claim, cause=STORE)
                delivery.claim = delivery.release_claim = None
        except Unavailable as error:
            return delivery.defer(error)
        return delivery.defer(Unavailable(Cause.HANDLER_DEFERRED, "given back unhandled"))

    def renew(self, delivery: Delivery) -> Flow[bool]:
        """Extend the lease of a delivery while its handler runs; call it every third of ``lease``.

        Returns:
            Whether the claim is still this delivery's. It is taken to be while the store is out of reach: that
            is no reason to stop a handler.
        """
        if delivery.claim is None or delivery.step is not Step.HANDLE:
            return False
        try:
            return (yield from self._renewed(delivery))
        except Unavailable as error:
            emit("claim.not_renewed", "a lease was not renewed: %s", error)
            return True

    def _renewed(self, delivery: Delivery) -> Flow[bool]:
        now = self.clock.now()
        for claim in delivery.claims:
            wish = replace(
                claim, renew=True, expires=max(claim.expires, now + self.lease)
            )
            if (
                yield from call(self.replay.claim, wish, cause=STORE)
            ) is not ClaimStatus.FRESH:
                return False
        delivery.renewed = now
        return True

    def _is_held(self, delivery: Delivery) -> Flow[bool]:
        """Tell whether a delivery still holds its claim, asking the store if the lease may be over."""
        held = self.clock.now() - max(delivery.received, delivery.renewed) < self.lease
        try:
            return held or (yield from self._renewed(delivery))
        except Unavailable:
            if not is_lenient(delivery):
                raise
            return True

    def bury(self, delivery: Delivery, dead_letters: DeadLetterSink) -> Flow[Outcome]:
        """Audit and dead-letter a delivery that was rejected; settle it after that.

        Raises:
            ConfigurationError: it was not judged to an end, or was accepted and so ends with ``confirm``.
        """
        refuse_unjudged(delivery)
        refused = delivery.verdict not in (Verdict.ACCEPTED, Verdict.UNVERIFIED)
        require(
            refused, "an accepted or unverified delivery ends with confirm or release"
        )
        return (yield from self.process(delivery, None, dead_letters))

    def handlers(
        self, handler: Any, unverified: Unverifieds | None
    ) -> UnverifiedHandler | None:
        """Return what ``process`` is given as ``unverified``; to be asked once, when a consumer is made.

        Raises:
            ConfigurationError: it is missing and a rung or an exemption needs it, or it is the handler itself.
        """
        check_handlers(self.rollout, handler, unverified)
        return routed(unverified)

    def tick(self, last: bool = False) -> Flow[None]:
        """Tell of a rollout and of a store that forgot; to be called each minute, and with ``last`` at the end."""
        yield from self._tell_of_loss()
        if self.observing is not None:
            yield from self.observing.tick(last)

    def _tell_of_loss(self) -> Flow[None]:
        """Record that the replay store has lost its memory, if it has; only then it claims again."""
        lost: MemoryLost | None = getattr(self.replay, "lost", None)
        # Others that wait for the store meanwhile write no second record.
        if lost is None or lost is self._telling:
            return
        since = None if lost.since is None else iso_time(lost.since)
        facts = {
            "store": harmless(lost.where),
            "why": harmless(lost.why),
            "since": since,
            "until": iso_time(lost.until),
        }
        record = record_of_process(
            "replay_memory_lost",
            facts,
            id=uuid7(self.clock, self._randomness),
            time=self.clock.now(),
            scope=lost.scope or self.scope or "default",
            policy=self.policy.version,
            instance=self.instance,
        )

        self._telling = lost
        try:
            if self.audit is not None:
                yield from call(self.audit.write, record, cause=Cause.AUDIT_UNAVAILABLE)
            self.replay.recorded(lost)  # type: ignore[attr-defined]
        except Unavailable as error:
            if self.journal.rate.admits("store.unrecorded", (error.cause,), {}):
                emit("store.unrecorded", "a loss of memory is not on record: %s", error)
        finally:
            self._telling = None

    def _end(
        self,
        delivery: Delivery,
        dead_letters: DeadLetterSink | None,
        unverified: UnverifiedHandler | None,
        done: list[ClaimRequest] | None,
    ) -> Flow[None]:
        """Take one of the steps after verdict and handler: end the claims, record, pass on, or bury."""
        step, claim = delivery.step, delivery.claim if delivery.rung is None else None
        if (
            step is _CONFIRM
            and done is not None
            and claim is not None
            and claim.place is not None
        ):
            done.append(claim)
            delivery.step = _RECORD if self._record_all else _SETTLE
        elif step is _CONFIRM or step is _RELEASE:
            # a reviewer's release is ended first: after a crash between the two the message is a duplicate; the
            # other way round it would be a replay, and dead-lettered
            ends = self.replay.confirm if step is _CONFIRM else self.replay.release
            for claim in (delivery.release_claim, delivery.claim):
                ended = None if claim is None else at_once(STORE, ends, claim)
                if ended is not None:
                    yield from answered(STORE, ended)
            delivery.step = (
                _SETTLE
                if delivery.rejection is None and not self._record_all
                else _RECORD
            )
        elif step is _RECORD:
            # the audit record, durable, if the verdict is one to be recorded; the dead letter names it
            explain(delivery, self.verifier, self.policy)
            if delivery.rejection is not None or (
                self._record_all and self.audit is not None
            ):
                # Not by its truth: a sink may be empty.
                if self.audit is None:
                    raise ConfigurationError(
                        "a pipeline without audit cannot settle rejected messages"
                    )
                delivery.record_id = delivery.record_id or uuid7(
                    self.clock, self._randomness
                )
                record = verdict_record(
                    delivery,
                    scope=self.scope_of(delivery.message),
                    time=self.clock.now(),
                    policy=self.policy.version,
                    instance=self.instance,
                )
                yield from call(self.audit.write, record, cause=Cause.AUDIT_UNAVAILABLE)
            delivery.step = _SETTLE if delivery.rejection is None else Step.BURY
        elif step is _PASS_ON:
            # nothing is claimed of what needs no proof, and nothing recorded
            old = require(
                unverified, "an unverified message came to a consumer without unverified="
            )
            yield from self._handled(delivery, old, delivery.unverified, _SETTLE)
        else:
            # the dead letter, once the broker has confirmed it
            if (
                dead_letters is None
                or delivery.rejection is None
                or delivery.record_id is None
            ):
                raise ConfigurationError(
                    "only a rejected message that was recorded can be buried"
                )
            letter = DeadLetter(
                message=delivery.message,
                rejection=delivery.rejection,
                scope=self.scope_of(delivery.message),
                time=self.clock.now(),
                audit=delivery.record_id,
                release=delivery.release,
                digest=delivery.content_digest(),
                error=delivery.error,
                rung=delivery.rung_label,
            )
            yield from call(
                dead_letters.publish, letter, cause=Cause.DEAD_LETTER_UNAVAILABLE
            )
            delivery.letter, delivery.step = letter.id, _SETTLE

    def _handled(
        self, delivery: Delivery, handler: Any, message: Any, then: Step
    ) -> Flow[None]:
        """Call a handler once, and go on with step ``then`` if it returned; ``process`` makes further attempts."""
        HANDLING.set(delivery)
        try:
            yield NEW_TUPLE(Call, (handler, (message,), None))
            delivery.step = then
            return
        except Exception as error:
            if is_last(self.attempts, delivery.attempts + 1, error):
                return self.journal.failed(delivery, error)
            self.journal.retried(delivery, error)
        finally:
            HANDLING.set(None)
        yield from pause(self.attempts, delivery.attempts)

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Have a function called when the keys of an issuer change: deliveries that wait for a key may go on then.

        Args:
            callback: called on a thread of the key source; sources that never defer do not call it.

        Returns:
            A function that ends this.
        """
        subscriptions = ExitStack()
        for issuer in self.verifier.issuers.values():
            if hasattr(issuer.keys, "subscribe"):
                subscriptions.callback(issuer.keys.subscribe(lambda _keys: callback()))
        return subscriptions.close

    def scope_of(self, message: Message) -> str:
        """Return on whose behalf a message is handled: the consumer group or queue, unless it was configured."""
        return self.verdicts.scope_of(message)
