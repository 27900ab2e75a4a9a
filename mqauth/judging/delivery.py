"""A delivery, how far it has come, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

from mqauth.errors import Cause, Reason, Rejection, Unavailable
from mqauth.judging.candidate import Candidate
from mqauth.judging.verified import Verified
from mqauth.letters.dead_letter import content_digest
from mqauth.letters.release import Release
from mqauth.replay.rules import ClaimRequest
from mqauth.wire.message import Message


class Verdict(Enum):
    """The outcomes of a delivery; compared by identity."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DEFERRED = "deferred"
    DUPLICATE = "duplicate"


_TUPLE: Final = tuple.__new__  # an outcome is made for every message


class Step(Enum):
    """How far a delivery has come; a deferred one goes on from here."""

    JUDGE = "judge"
    HANDLE = "handle"
    CONFIRM = "confirm"
    RELEASE = "release"
    RECORD = "record"
    BURY = "bury"
    SETTLE = "settle"


class Outcome(NamedTuple):
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
        party: the configured issuer or release authority whose keys are out of reach, where it was deferred for
            them (``keys_unavailable``, ``key_pending``).
    """

    verdict: Verdict
    reason: Reason | None = None
    cause: Cause | None = None
    detail: str | None = None
    verified: Verified | None = None
    dead_letter: str | None = None
    judge_seconds: float | None = None
    party: str | None = None

    @classmethod
    def of(cls, delivery: Delivery) -> Outcome:
        """Return the outcome of a delivery that has come to its end."""
        rejection = delivery.rejection
        if rejection is None:
            verified, seconds = delivery.verified, delivery.judge_seconds
            return _TUPLE(cls, (delivery.verdict, None, None, None, verified, None, seconds, None))
        return cls(
            delivery.verdict, reason=rejection.reason, detail=rejection.detail, dead_letter=delivery.letter,
            judge_seconds=delivery.judge_seconds,
        )  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Delivery:
    """One delivery and its progress; kept by the broker wrapper until it is settled.

    Args:
        message: as the broker delivered it.
        received: UTC seconds at which this process first received it; times are judged by it for ever.
        deferred: whether it was deferred before.
        owner: the nonce it claims with; one for ever, so that a claim whose answer was lost is made again.
        renewed: UTC seconds at which its claim was last made longer.
        fence: called with the delivery before each step that must not be taken for one the broker has given to
            somebody else; may be asynchronous, and raises ``StaleDelivery``.
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

    def content_digest(self) -> str:
        """Return the digest that names the message's content, made once: there may be very many headers."""
        if self.digest is None:
            self.digest = content_digest(self.message)
        return self.digest

    @property
    def claims(self) -> tuple[ClaimRequest, ...]:
        """Its claims in the order they end: after a crash between the two it is a duplicate."""
        claim, release = self.claim, self.release_claim
        if claim is None:
            return ()
        return (claim,) if release is None else (release, claim)

    def reject(self, rejection: Rejection, step: Step) -> None:
        """Turn to a rejection, and to the step that follows from it."""
        self.rejection, self.verdict, self.step = rejection, Verdict.REJECTED, step

    def defer(self, error: Unavailable) -> Outcome:
        """Wait for the world, and return that outcome."""
        self.deferred = True
        return Outcome(
            Verdict.DEFERRED, cause=error.cause, detail=error.detail, judge_seconds=self.judge_seconds,
            party=error.party,
        )  # fmt: skip
