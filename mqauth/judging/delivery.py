"""A delivery, how far it has come, what became of it, and the audit record of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, NamedTuple

from mqauth.audit import record as audit_records
from mqauth.errors import (
    SIGNED_REASONS,
    Cause,
    Reason,
    Rejection,
    Unavailable,
    Verdict,
    require,
)
from mqauth.judging.rollout import Rung
from mqauth.judging.verified import Unverified, Verified
from mqauth.judging.verifier import Candidate
from mqauth.letters.dead_letter import content_digest, letter_id
from mqauth.letters.release import Release
from mqauth.logs import harmless
from mqauth.replay.rules import ClaimRequest
from mqauth.wire.envelope import token_of
from mqauth.wire.message import NEW_TUPLE, Message


class Step(Enum):
    """The step that a delivery takes next; one that was deferred goes on from there."""

    JUDGE = "judge"
    HANDLE = "handle"
    PASS_ON = "pass_on"
    CONFIRM = "confirm"
    RELEASE = "release"
    RECORD = "record"
    BURY = "bury"
    SETTLE = "settle"


class Outcome(NamedTuple):
    """What became of a delivery.

    Args:
        verdict: the delivery is to be settled unless this is ``DEFERRED``.
        reason: why it was rejected.
        cause: why it was deferred.
        detail: one line for people.
        verified: the message, if it was accepted or is a duplicate.
        dead_letter: the id of its dead letter, which the broker has confirmed.
        judge_seconds: the seconds that its verdict took, without handler and dead letter; measured only if
            there are observers.
        party: the configured issuer or release authority whose keys are out of reach, if it was deferred for
            ``keys_unavailable`` or ``key_pending``.
        unverified: the message, if it was given to its handler without a proof.
    """

    verdict: Verdict
    reason: Reason | None = None
    cause: Cause | None = None
    detail: str | None = None
    verified: Verified | None = None
    dead_letter: str | None = None
    judge_seconds: float | None = None
    party: str | None = None
    unverified: Unverified | None = None

    @classmethod
    def of(cls, delivery: Delivery) -> Outcome:
        """Return the outcome of a delivery that has come to ``Step.SETTLE``."""
        rejection = delivery.rejection
        if rejection is None:
            verified, seconds = delivery.verified, delivery.judge_seconds
            return NEW_TUPLE(
                cls,
                (
                    delivery.verdict,
                    None,
                    None,
                    None,
                    verified,
                    None,
                    seconds,
                    None,
                    delivery.unverified,
                ),
            )
        return cls(
            delivery.verdict,
            reason=rejection.reason,
            detail=rejection.sentence(),
            dead_letter=delivery.letter,
            judge_seconds=delivery.judge_seconds,
            unverified=delivery.unverified,
        )


@dataclass(slots=True, kw_only=True)
class Delivery:
    """One delivery and its progress; the broker wrapper keeps it until it is settled.

    Args:
        message: as the broker delivered it.
        received: UTC seconds at which this process first received it. Times are always judged by this moment, so
            that a message does not expire while we hold it.
        deferred: whether it was deferred before.
        owner: the random text it claims with. It never changes, so that a claim whose answer was lost can be
            made again.
        step: what is to be done next.
        attempts: how often its handler failed and is called again, since the delivery was last deferred.
        error: the error id of its handler's last failure.
        waits: of what it waits for in the log, until it is settled.
        renewed: UTC seconds at which its lease was last extended.
        fence: called with the delivery before each step that must not be taken once the broker has given the
            delivery to somebody else. It raises ``StaleDelivery`` then, and may be asynchronous.
        rung: the rung it was judged at, of one below ``enforce`` or exempt.
        unverified: the message, if its handler gets it without a proof.
        content: of a log, a hash that tells a record that is read again from another one at its offset.
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
    fence: Callable[[Delivery], Any] | None = None
    digest: str | None = None
    renewed: float = 0.0
    attempts: int = 0
    error: str | None = None
    waits: tuple[str, str] | None = None
    rung: Rung | None = None
    unverified: Unverified | None = None
    content: int = 0

    def content_digest(self) -> str:
        """Return the digest of the message's content, computed once: there may be very many headers."""
        if self.digest is None:
            self.digest = content_digest(self.message)
        return self.digest

    @property
    def claims(self) -> tuple[ClaimRequest, ...]:
        """Its claims, in the order in which they end: after a crash between the two the message is a duplicate."""
        claim, release = self.claim, self.release_claim
        if claim is None:
            return ()
        return (claim,) if release is None else (release, claim)

    @property
    def rung_label(self) -> str | None:
        """The rung of a message that was passed on without a proof, ``None`` of all others."""
        return None if self.unverified is None or self.rung is None else self.rung.label

    def reject(self, rejection: Rejection, step: Step) -> None:
        """Reject the delivery, and move it on to the step that follows from that."""
        self.rejection, self.verdict, self.step = rejection, Verdict.REJECTED, step

    def defer(self, error: Unavailable) -> Outcome:
        """Defer the delivery, and return that outcome."""
        self.deferred, self.attempts = True, 0
        return Outcome(
            Verdict.DEFERRED,
            cause=error.cause,
            detail=error.detail,
            judge_seconds=self.judge_seconds,
            party=error.party,
        )


def refuse_unjudged(delivery: Delivery) -> None:
    """Refuse to end a delivery without a verdict: its outcome would read as accepted."""
    require(delivery.step is not Step.JUDGE, "the delivery was not judged to an end")


def verdict_record(
    delivery: Delivery, *, scope: str, time: float, policy: str, instance: str
) -> audit_records.AuditRecord:
    """Return the audit record of a verdict.

    Args:
        delivery: judged to an end; its ``record_id`` is the record's.
        scope: on whose behalf it was judged.
        time: UTC seconds.
        policy: the version of the policy.
        instance: the name of this process.
    """
    message, rejection, verified = delivery.message, delivery.rejection, delivery.verified
    body, release, rung = message.body, delivery.release, delivery.rung_label
    # Members that few records have.
    extra: dict[str, Any] = {}
    if release is not None:
        extra["release"] = {
            "iss": harmless(release.iss),
            "sub": harmless(release.sub),
            "jti": harmless(release.jti),
            "letter": release.letter,
            "waive": sorted(release.waive),
            "scope": harmless(release.scope),
        }
    if delivery.error is not None:
        extra["error"] = delivery.error
    if rejection is not None:
        halves = {"found": rejection.found, "expected": rejection.expected}
        extra |= {name: dict(facts) for name, facts in halves.items() if facts}
    if verified is not None and verified.destination != message.destination:
        extra["signed_for"] = verified.destination
    if rung is not None:
        extra["rung"] = rung
    # What is said of the token, and whether its claims were verified.
    candidate = delivery.candidate
    opened = None if candidate is None else candidate.token.opened
    proof = None if candidate is None else candidate.proof
    try:
        text: bytes | None = token_of(message)
    except Rejection:
        text = None
    token = audit_records.token_fields(
        text,
        None if opened is None else opened.kid,
        None if opened is None else opened.algorithm,
        None if candidate is None else candidate.token.claims,
        index=None if proof is None else proof.place,
        identity=None
        if candidate is None or candidate.token.wit is None
        else candidate.token.wit.identity,
        verified=verified is not None
        or (
            rejection is not None
            and delivery.unverified is None
            and rejection.reason in SIGNED_REASONS
        ),
    )
    return audit_records.AuditRecord(
        id=delivery.record_id or "",
        time=time,
        verdict=delivery.verdict.value,
        reason=None if rejection is None else rejection.reason.value,
        detail=None if rejection is None else rejection.detail,
        scope=scope,
        broker=audit_records.broker_fields(message),
        token=token,
        body_sha256=None if body is None else audit_records.sha256(body),
        body_size=None if body is None else len(body),
        key_set=delivery.key_set,
        policy=policy,
        dead_letter=None
        if rejection is None
        else letter_id(message, scope, digest=delivery.content_digest()),
        instance=instance,
        extra=extra,
    )
