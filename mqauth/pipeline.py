"""THE order of a verdict, once, for every broker and both colours.

accepted: claim, handler, confirm, settle. rejected: audit (durable), dead letter (confirmed by the broker),
settle. deferred: neither handled nor dead-lettered; processed again from where it stopped, and once a
handler has ended it never runs again for that delivery in this process. Settling is the broker wrapper's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any, Final, Literal, ParamSpec, TypeVar

from mqauth import audit as audit_records
from mqauth.audit import AuditRecord, AuditSink
from mqauth.base64url import encode as base64url_encode
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness, uuid7
from mqauth.deadletter import DeadLetter, DeadLetterSink, letter_id
from mqauth.envelope import token_of
from mqauth.errors import (
    SIGNED_REASONS,
    Cause,
    ConfigurationError,
    Reason,
    Rejection,
    RejectNow,
    RetryLater,
    Unavailable,
)
from mqauth.flow import Attempts, ColourError, Flow, attempt, call, either
from mqauth.keys import KeySet, KeySource
from mqauth.message import Message
from mqauth.policy import Allow, Decision, Policy
from mqauth.release import Release, is_released, open_release
from mqauth.replay import DEFAULT_LEASE, ClaimRequest, ClaimStatus, ReplayStore, batch_id, claim_id
from mqauth.verified import Verified
from mqauth.verifier import Candidate, Verifier

P = ParamSpec("P")
R = TypeVar("R")
Handler = Callable[[Verified], Any]
Observer = Callable[["Outcome", Message, float], None]
_LOG: Final = logging.getLogger("mqauth.pipeline")
_OWNER_BYTES: Final = 12
_HELD_SECONDS: Final = 3600
_OUR_FAULT: Final = (Unavailable, ColourError)


class Verdict(Enum):
    """The outcomes of a delivery; compared by identity."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DEFERRED = "deferred"
    DUPLICATE = "duplicate"


class Step(Enum):
    """How far a delivery has come; a deferred one goes on from here."""

    JUDGE = "judge"
    HANDLE = "handle"
    CONFIRM = "confirm"
    RELEASE = "release"
    RECORD = "record"
    BURY = "bury"
    SETTLE = "settle"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a delivery.

    Args:
        verdict: settle the delivery unless it is ``DEFERRED``.
        reason: why it was rejected.
        cause: why it was deferred.
        detail: one line for people.
        verified: the message, where it was accepted or is a duplicate.
        dead_letter: id of the confirmed dead letter.
        judge_seconds: time spent on the verdict itself, without handler and dead letter; measured only for
            observers.
    """

    verdict: Verdict
    reason: Reason | None = None
    cause: Cause | None = None
    detail: str | None = None
    verified: Verified | None = None
    dead_letter: str | None = None
    judge_seconds: float | None = None


@dataclass(slots=True, kw_only=True)
class Delivery:
    """One delivery and its progress; kept by the broker wrapper until it is settled.

    Args:
        message: as the broker delivered it.
        received: UTC seconds at which this process first received it; times are judged by it for ever.
        deferred: whether it was deferred before.
        owner: the nonce it claims with; one for ever, so that a claim whose answer was lost is made again.
    """

    message: Message
    received: float
    deferred: bool = False
    owner: str | None = None
    step: Step = Step.JUDGE
    verdict: Verdict = Verdict.ACCEPTED
    candidate: Candidate | None = None
    key_set: str | None = None
    verified: Verified | None = None
    claim: ClaimRequest | None = None
    release: Release | None = None
    release_claim: ClaimRequest | None = None
    rejection: Rejection | None = None
    record_id: str | None = None
    letter: str | None = None
    judge_seconds: float | None = None


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
        self._reread = reread
        self.lease = lease
        self._randomness = randomness
        self.instance = instance or base64url_encode(randomness(6)).decode("ascii")

    def receive(self, message: Message) -> Delivery:
        """Return a delivery received now; never raises, whatever the message."""
        return Delivery(message=message, received=self.clock.now())

    def process(self, delivery: Delivery, handler: Handler, dead_letters: DeadLetterSink) -> Flow[Outcome]:
        """Carry a delivery to its end, or as far as the world allows.

        Args:
            delivery: a new one, or one deferred before.
            handler: called with the verified message; tried again by ``attempts``.
            dead_letters: where a rejected message goes.

        Returns:
            The outcome; everything but ``DEFERRED`` is to be settled.
        """
        try:
            if delivery.step is Step.JUDGE:
                yield from self._timed_judge(delivery)
            if delivery.step is Step.HANDLE:
                yield from self._handle(delivery, handler)
            yield from self._close_claim(delivery)
            yield from self._record(delivery)
            yield from self._bury(delivery, dead_letters)
            outcome = _outcome(delivery)
        except Unavailable as error:
            outcome = _deferred(delivery, error)
        self._observe(outcome, delivery)
        return outcome

    def judge(self, delivery: Delivery) -> Flow[Outcome]:
        """Judge a delivery, steps 1 to 13, for those who handle and settle it themselves.

        An accepted one is claimed: end it with ``confirm`` or ``release``; a rejected one with ``bury``.
        """
        try:
            if delivery.step is Step.JUDGE:
                yield from self._judge(delivery)
        except Unavailable as error:
            return _deferred(delivery, error)
        return _outcome(delivery)

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
        return (yield from self._end(delivery))

    def release(self, delivery: Delivery) -> Flow[Outcome]:
        """Give the claim of a delivery back, unhandled; it may be delivered again.

        Returns:
            ``DEFERRED`` whatever it was before: nothing that was given back may be settled.

        Raises:
            ConfigurationError: it was never judged.
        """
        if not delivery.deferred:
            _refuse_unjudged(delivery)
        try:
            if delivery.claim is not None and delivery.step is Step.HANDLE:
                yield from self._end_claims(delivery, self.replay.release)
                delivery.step = Step.JUDGE
        except Unavailable as error:
            return _deferred(delivery, error)
        return _deferred(delivery, Unavailable(Cause.HANDLER_DEFERRED, "given back unhandled"))

    def renew(self, delivery: Delivery) -> Flow[bool]:
        """Make the lease of a delivery longer while its handler runs; call it every third of ``lease``.

        Returns:
            Whether the claim is still this delivery's; a store out of reach is no reason to stop a handler.
        """
        if delivery.claim is None or delivery.step is not Step.HANDLE:
            return False
        ours = True
        for claim in _claims_of(delivery):
            kept = max(claim.expires, self.clock.now() + self.lease)
            wish = replace(claim, renew=True, expires=kept)
            try:
                status = yield from _guarded(Cause.REPLAY_STORE_UNAVAILABLE, call(self.replay.claim, wish))
            except Unavailable as error:
                _LOG.warning("a lease was not renewed: %s", error)
                continue
            ours = ours and status is ClaimStatus.FRESH
        return ours

    def bury(self, delivery: Delivery, dead_letters: DeadLetterSink) -> Flow[Outcome]:
        """Audit and dead-letter a delivery that was rejected; then settle it.

        Raises:
            ConfigurationError: it was not judged to an end, or was accepted: that ends with ``confirm``.
        """
        _refuse_unjudged(delivery)
        if delivery.verdict is Verdict.ACCEPTED:
            raise ConfigurationError("an accepted delivery ends with confirm or release")
        try:
            yield from self._close_claim(delivery)
            yield from self._record(delivery)
            yield from self._bury(delivery, dead_letters)
        except Unavailable as error:
            return _deferred(delivery, error)
        return _outcome(delivery)

    def _end(self, delivery: Delivery) -> Flow[Outcome]:
        """Close the claim and record an accepted verdict."""
        try:
            yield from self._close_claim(delivery)
            yield from self._record(delivery)
        except Unavailable as error:
            return _deferred(delivery, error)
        return _outcome(delivery)

    def _timed_judge(self, delivery: Delivery) -> Flow[None]:
        """Judge, and note how long it took where somebody observes."""
        if not self._observers:
            return (yield from self._judge(delivery))
        started = self.clock.monotonic()
        try:
            yield from self._judge(delivery)
        finally:
            delivery.judge_seconds = self.clock.monotonic() - started

    def _judge(self, delivery: Delivery) -> Flow[None]:
        """Reach a verdict and move on to the step that follows from it."""
        try:
            status = yield from self._judged(delivery)
        except Rejection as rejection:
            _reject(delivery, rejection, Step.RECORD)
            return
        if status is ClaimStatus.DUPLICATE:
            delivery.verdict, delivery.step = Verdict.DUPLICATE, Step.RECORD
        else:
            delivery.step = Step.HANDLE

    def _judged(self, delivery: Delivery) -> Flow[ClaimStatus]:
        """Take all the steps; a message released to another scope has ended before its own are taken."""
        delivery.candidate = _total(self.verifier.open, delivery.message)  # 1 to 4
        if is_released(delivery.message):
            delivery.release = yield from self._released(delivery)
            if delivery.release.scope != self.scope_of(delivery.message):
                return ClaimStatus.DUPLICATE
        delivery.verified = verified = yield from self._verify(delivery, delivery.candidate)  # 5 to 11
        yield from self._permit(verified)  # 12
        if verified.release is not None:
            return (yield from self._claim_release(delivery, verified, verified.release))
        return (yield from self._claim(delivery, self._wish(delivery, verified)))  # 13

    def _released(self, delivery: Delivery) -> Flow[Release]:
        """Judge the release a message carries; whatever is wrong with it is ``release_invalid``."""
        message, authorities = delivery.message, self.verifier.release
        found = _total(open_release, message)
        if authorities is None:
            raise Rejection(Reason.RELEASE_INVALID, "no release authority is configured")
        source, kid = authorities.source(found), found.opened.kid
        keys = yield from _known(source)
        if keys is None or keys.get(kid) is None:
            try:
                keys = yield from _looked_up(source, kid, delivery.received)
            except Rejection as error:
                raise Rejection(Reason.RELEASE_INVALID, "the authority has no such key") from error
        return _total(authorities.verify, message, found, keys, delivery.received)

    def _verify(self, delivery: Delivery, candidate: Candidate) -> Flow[Verified]:
        """Judge the token."""
        source, kid = self.verifier.source(candidate), candidate.opened.kid
        keys = yield from _known(source)
        delivery.key_set = None if keys is None else keys.version
        if keys is None or keys.get(kid) is None:
            keys = yield from _looked_up(source, kid, delivery.received)
        delivery.key_set = keys.version
        return _total(self.verifier.verify, delivery.message, candidate, keys, delivery.received, delivery.release)

    def _permit(self, verified: Verified) -> Flow[None]:
        """Ask the policy; anything but ALLOW refuses."""
        if verified.release is not None and Reason.PRODUCER_FORBIDDEN in verified.release.waive:
            return
        decision = yield from _guarded(Cause.POLICY_UNAVAILABLE, call(self.policy.decide, verified))
        if decision is not Decision.ALLOW:
            raise Rejection(Reason.PRODUCER_FORBIDDEN, "no rule lets this subject publish here")

    def _claim_release(self, delivery: Delivery, verified: Verified, release: Release) -> Flow[ClaimStatus]:
        """Claim the release, and the message too unless ``replayed`` is waived.

        Which copy of a redriven message comes first does not matter, so neither claim has a place: done is
        a duplicate of the release, and of the message a replay; held is waited for.
        """
        wish = replace(self._wish(delivery, verified), place=None, redelivered=True)
        kept = max(wish.expires, float(release.exp + self.verifier.retention))
        wish = replace(wish, expires=kept)
        status = yield from self._claim(delivery, replace(wish, id=claim_id(release.iss, release.letter)))
        if status is not ClaimStatus.FRESH or Reason.REPLAYED in release.waive:
            return status
        delivery.release_claim = delivery.claim
        status = yield from self._claim(delivery, wish)
        if status is ClaimStatus.DUPLICATE:
            raise Rejection(Reason.REPLAYED, "the message was handled before, without this release")
        return status

    def _wish(self, delivery: Delivery, verified: Verified) -> ClaimRequest:
        """Return the claim a delivery wishes for; its owner is one for ever."""
        origin = delivery.message.origin
        if delivery.owner is None:
            delivery.owner = base64url_encode(self._randomness(_OWNER_BYTES)).decode("ascii")
        return ClaimRequest(
            scope=self.scope_of(delivery.message),
            id=_claim_id(verified),
            index=verified.index,
            owner=delivery.owner,
            place=origin.coordinates,
            redelivered=origin.redelivered,
            lease=self.lease,
            expires=self._forgotten_at(delivery, verified),
        )

    def _claim(self, delivery: Delivery, request: ClaimRequest) -> Flow[ClaimStatus]:
        """Claim the message for this delivery."""
        status: ClaimStatus = yield from _guarded(Cause.REPLAY_STORE_UNAVAILABLE, call(self.replay.claim, request))
        if status is ClaimStatus.REPLAYED:
            raise Rejection(Reason.REPLAYED, "a copy of a message that was delivered elsewhere")
        if status is ClaimStatus.HELD:
            raise Unavailable(Cause.CLAIM_HELD, "an earlier delivery of it is still being handled")
        if status is ClaimStatus.REREAD and self._reread == "duplicate":
            return ClaimStatus.DUPLICATE
        if status is ClaimStatus.FRESH or status is ClaimStatus.REREAD:
            delivery.claim = request
        elif status is not ClaimStatus.DUPLICATE:
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "the store's answer is no claim status")
        return status

    def _forgotten_at(self, delivery: Delivery, verified: Verified) -> float:
        """Return until when a claim is kept: past every copy, those deferred beside it too, and its lease."""
        copies = float(verified.claims.exp + self.verifier.retention)
        return max(copies, self.clock.now() + (_HELD_SECONDS if delivery.deferred else self.lease))

    def _handle(self, delivery: Delivery, handler: Handler) -> Flow[None]:
        """Run the handler; whatever it raises at last is ``handler_failed``, unless it asks for another time."""
        try:
            yield from attempt(handler, delivery.verified, self.attempts)
        except ColourError:
            raise
        except RetryLater as signal:
            raise Unavailable(Cause.HANDLER_DEFERRED, signal.detail) from signal
        except RejectNow as signal:
            _reject(delivery, Rejection(Reason.HANDLER_FAILED, signal.detail), Step.RELEASE)
        except Exception as error:
            failure = Rejection(Reason.HANDLER_FAILED, f"{type(error).__name__} after the last attempt")
            _reject(delivery, failure, Step.RELEASE)
        else:
            delivery.step = Step.CONFIRM

    def _close_claim(self, delivery: Delivery) -> Flow[None]:
        """Confirm the claim after the handler, or release it after a failure."""
        if delivery.step not in (Step.CONFIRM, Step.RELEASE) or delivery.claim is None:
            return
        ends = self.replay.confirm if delivery.step is Step.CONFIRM else self.replay.release
        yield from self._end_claims(delivery, ends)
        delivery.step = Step.RECORD

    def _end_claims(self, delivery: Delivery, ends: Callable[[ClaimRequest], Any]) -> Flow[None]:
        """End what is claimed, a release first: after a crash between the two it is a duplicate, no replay."""
        for claim in _claims_of(delivery):
            yield from _guarded(Cause.REPLAY_STORE_UNAVAILABLE, call(ends, claim))

    def _record(self, delivery: Delivery) -> Flow[None]:
        """Make the audit record durable; it comes before the dead letter."""
        if delivery.step is not Step.RECORD:
            return
        if delivery.rejection is None and (self.audit is None or not self._record_all):
            delivery.step = Step.SETTLE
            return
        if self.audit is None:
            raise ConfigurationError("a pipeline without audit cannot settle rejected messages")
        delivery.record_id = delivery.record_id or uuid7(self.clock, self._randomness)
        yield from _guarded(Cause.AUDIT_UNAVAILABLE, call(self.audit.write, self._audit_record(delivery)))
        delivery.step = Step.SETTLE if delivery.rejection is None else Step.BURY

    def _bury(self, delivery: Delivery, dead_letters: DeadLetterSink) -> Flow[None]:
        """Publish the dead letter and wait for the broker's confirm."""
        if delivery.step is not Step.BURY or delivery.rejection is None or delivery.record_id is None:
            return
        letter = DeadLetter(
            message=delivery.message,
            rejection=delivery.rejection,
            scope=self.scope_of(delivery.message),
            time=self.clock.now(),
            audit=delivery.record_id,
        )
        yield from _guarded(Cause.DEAD_LETTER_UNAVAILABLE, call(dead_letters.publish, letter))
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
        return self.scope or message.origin.scope or message.origin.queue or "default"

    def _audit_record(self, delivery: Delivery) -> AuditRecord:
        """Return the record of a verdict."""
        message, candidate = delivery.message, delivery.candidate
        opened = None if candidate is None else candidate.opened
        rejection = delivery.rejection
        body = message.body
        return AuditRecord(
            id=delivery.record_id or "",
            time=self.clock.now(),
            verdict=delivery.verdict.value,
            reason=None if rejection is None else rejection.reason.value,
            detail=None if rejection is None else rejection.detail,
            scope=self.scope_of(message),
            broker=audit_records.broker_fields(message),
            token=audit_records.token_fields(
                _token(message),
                None if opened is None else opened.kid,
                None if opened is None else opened.algorithm,
                None if candidate is None else candidate.claims,
                index=None if candidate is None else candidate.index,
                verified=delivery.verified is not None
                or (rejection is not None and rejection.reason in SIGNED_REASONS),
            ),
            body_sha256=None if body is None else audit_records.sha256(body),
            body_size=None if body is None else len(body),
            key_set=delivery.key_set,
            policy=self.policy.version,
            dead_letter=None if rejection is None else letter_id(message, self.scope_of(message)),
            instance=self.instance,
            extra={} if delivery.release is None else {"release": _release_fields(delivery.release)},
        )


def _check_issuers(verifier: Verifier, policy: Policy) -> None:
    """Refuse a rule that would serve the same subject of any issuer."""
    loose = isinstance(policy, Allow) and any(rule.issuer is None for rule in policy.rules)
    if loose and len(verifier.issuers) > 1:
        raise ConfigurationError("several issuers are trusted: each rule must name its issuer")


def _claim_id(verified: Verified) -> bytes:
    """Return the id a message is claimed by: its token's, in a batch with its place."""
    found = claim_id(verified.issuer, verified.jti)
    return found if verified.index is None else batch_id(found, verified.index)


def _claims_of(delivery: Delivery) -> tuple[ClaimRequest, ...]:
    """Return the claims of a delivery, in the order they end."""
    return tuple(claim for claim in (delivery.release_claim, delivery.claim) if claim is not None)


def _release_fields(release: Release) -> dict[str, Any]:
    """Return what audit says of a verified release."""
    return {
        "iss": audit_records.harmless(release.iss), "sub": audit_records.harmless(release.sub),
        "jti": audit_records.harmless(release.jti), "letter": release.letter, "waive": sorted(release.waive),
        "scope": audit_records.harmless(release.scope),
    }  # fmt: skip


def _refuse_unjudged(delivery: Delivery) -> None:
    """Refuse to end what has no verdict: its outcome would read as accepted."""
    if delivery.step is Step.JUDGE:
        raise ConfigurationError("the delivery was not judged to an end")


def _reject(delivery: Delivery, rejection: Rejection, step: Step) -> None:
    """Turn a delivery to its rejection."""
    delivery.rejection, delivery.verdict, delivery.step = rejection, Verdict.REJECTED, step


def _total(step: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Take a pure step; a message that breaks it is malformed, and never an exception in a consumer."""
    try:
        return step(*args, **kwargs)
    except (Rejection, Unavailable):
        raise
    except Exception as error:
        raise Rejection(Reason.MESSAGE_MALFORMED, f"{type(error).__name__} while it was judged") from error


def _known(source: KeySource) -> Flow[KeySet | None]:
    """Return the keys at hand, ``None`` where there are none yet."""
    try:
        keys: KeySet = yield from _guarded(Cause.KEYS_UNAVAILABLE, call(source.key_set))
    except Unavailable:
        return None
    return keys


def _looked_up(source: KeySource, kid: str, received: float) -> Flow[KeySet]:
    """Make a source look again for a kid, once; it may itself decide that the kid is unknown."""
    wished = either(source.refresh, getattr(source, "arefresh", None), kid, received)
    keys: KeySet = yield from _guarded(Cause.KEYS_UNAVAILABLE, wished, passing=(*_OUR_FAULT, Rejection))
    return keys


def _guarded(cause: Cause, wished: Flow[Any], *, passing: tuple[type[Exception], ...] = _OUR_FAULT) -> Flow[Any]:
    """Make a call of which every failure but ``passing`` is the world's."""
    try:
        return (yield from wished)
    except passing:
        raise
    except Exception as error:
        raise Unavailable(cause, type(error).__name__) from error


def _token(message: Message) -> bytes | None:
    """Return the token of a message for its thumbprint, if it has one."""
    try:
        return token_of(message)
    except Rejection:
        return None


def _deferred(delivery: Delivery, error: Unavailable) -> Outcome:
    """Return the outcome of a delivery that waits for the world."""
    delivery.deferred = True
    return Outcome(
        verdict=Verdict.DEFERRED, cause=error.cause, detail=error.detail, judge_seconds=delivery.judge_seconds
    )


def _outcome(delivery: Delivery) -> Outcome:
    """Return the outcome of a delivery that has come to its end."""
    rejection = delivery.rejection
    return Outcome(
        verdict=delivery.verdict,
        reason=None if rejection is None else rejection.reason,
        detail=None if rejection is None else rejection.detail,
        verified=None if rejection is not None else delivery.verified,
        dead_letter=delivery.letter,
        judge_seconds=delivery.judge_seconds,
    )
