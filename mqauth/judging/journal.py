"""What is logged of the deliveries of one pipeline, by the events and fields that ``mqauth.logs`` lists."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from mqauth._version import __version__
from mqauth.audit.record import AuditSink
from mqauth.clock import Clock, Randomness, uuid7
from mqauth.errors import (
    SIGNED_REASONS,
    Cause,
    Reason,
    Rejection,
    RejectNow,
    RetryLater,
    Unavailable,
    Verdict,
)
from mqauth.flow import ColourError
from mqauth.judging.delivery import Delivery, Outcome, Step
from mqauth.judging.identities import TrustDomain
from mqauth.judging.policy import Allow, Policy, local_rules
from mqauth.judging.rollout import Rollout, destinations_of
from mqauth.judging.token import BACKLOG, longest_wait
from mqauth.judging.verifier import Verifier
from mqauth.letters.dead_letter import DeadLetterSink, letter_id
from mqauth.logs import (
    EVENTS,
    KINDS,
    Rate,
    emit,
    error_fields,
    error_id,
    harmless,
    place_of,
)
from mqauth.replay.rules import ReplayStore
from mqauth.wire.message import Message

AGAIN: Final = 300.0
"""Seconds after which a deferral that lasts is logged again."""
_NAMED: Final = 5
_DONE: Final = logging.getLogger(EVENTS["message.accepted"][0])
ONE_MESSAGE: Final = frozenset(
    (Cause.CLAIM_HELD, Cause.HANDLER_DEFERRED, Cause.APPEND_TIME_UNAVAILABLE)
)
"""Causes that concern one message: others need not wait for it."""


@dataclass(slots=True)
class _Wait:
    """A cause for which deliveries wait: since when (UTC), and when that was last logged (monotonic)."""

    since: float
    said: float


class Journal:
    """Writes the lines on deliveries.

    Args:
        clock: the pipeline's, as are those that follow.
        randomness: makes ids of audit records.
        scope_of: returns on whose behalf a message is handled.
        verifier, policy, replay, audit: are named where they are out of reach, and at the start.
        messages: whether the messages of handlers' exceptions may be written.
    """

    def __init__(
        self,
        clock: Clock,
        randomness: Randomness,
        scope_of: Callable[[Message], str],
        *,
        verifier: Verifier,
        policy: Policy,
        replay: ReplayStore,
        audit: AuditSink | None,
        messages: bool,
    ) -> None:
        self._clock = clock
        self._verifier = verifier
        self._policy = policy
        self._replay = replay
        self._audit = audit
        self._randomness = randomness
        self._scope_of = scope_of
        self._messages = messages
        self._waits: dict[tuple[str, str], _Wait] = {}
        self._lock = threading.Lock()
        self.rate = Rate(clock)
        self._began = clock.monotonic()

    def retried(self, delivery: Delivery, error: Exception) -> None:
        """Log that an attempt of a delivery's handler failed, and that another one follows."""
        delivery.attempts += 1
        facts = self._facts(delivery)
        kind = error_fields(error, messages=False)["exception_type"]
        if self.rate.admits(
            "handler.retried", (kind, facts["destination"]), _ids(delivery)
        ):
            emit(
                "handler.retried",
                "%s: attempt %d of the handler failed with %s, and is made again",
                _place(facts),
                delivery.attempts,
                kind,
                attempt=delivery.attempts,
                exception_type=kind,
                **facts,
            )

    def failed(self, delivery: Delivery, error: Exception) -> None:
        """Reject a delivery as ``handler_failed`` after the last attempt of its handler, and log the traceback.

        Raises:
            Unavailable: the handler raised ``RetryLater``.
            ColourError: the handler is asynchronous, and nobody awaits it.
        """
        if isinstance(error, ColourError):
            raise error
        if isinstance(error, RetryLater):
            raise Unavailable(Cause.HANDLER_DEFERRED, error.detail) from error
        delivery.record_id = delivery.record_id or uuid7(self._clock, self._randomness)
        delivery.error = error_id(error)
        where = place_of(error)
        at = f" in {harmless(where)}" if where else ""
        sentence = f"{type(error).__name__}{at}, attempt {delivery.attempts + 1}, error {delivery.error}"
        facts, ids = self._facts(delivery), _ids(delivery)
        if self.rate.admits(
            "handler.failed", (delivery.error, facts["destination"]), ids
        ):
            scope = self._scope_of(delivery.message)
            letter = letter_id(delivery.message, scope, digest=delivery.content_digest())
            emit(
                "handler.failed",
                "%s: the handler failed: %s",
                _place(facts),
                sentence,
                error=error,
                messages=self._messages,
                attempts=delivery.attempts + 1,
                error_id=delivery.error,
                dead_letter=letter,
                audit=delivery.record_id,
                **facts | ids,
            )
        detail = error.detail if isinstance(error, RejectNow) else sentence
        delivery.reject(Rejection(Reason.HANDLER_FAILED, detail), Step.RELEASE)

    def ended(self, delivery: Delivery) -> None:
        """Log what a delivery came to, once it is to be settled."""
        if (kind := delivery.waits) is not None:
            delivery.waits = None
            with self._lock:
                wait = self._waits.pop(kind, None)
            if wait is not None and self.rate.admits("message.resumed", kind, {}):
                emit(
                    "message.resumed",
                    "goes on after %s%s, %d s",
                    kind[0],
                    f" of {kind[1]}" if kind[1] else "",
                    self._clock.now() - wait.since,
                    cause=kind[0],
                    since=wait.since,
                )
        rejection = delivery.rejection
        failed = rejection is not None and rejection.reason is Reason.HANDLER_FAILED
        # The line of a handler that raised is there already, with its traceback.
        if rejection is not None and not (failed and delivery.error is not None):
            facts, ids = self._facts(delivery), _ids(delivery)
            event = "handler.failed" if failed else "message.rejected"
            if self.rate.admits(
                event, (rejection.reason.value, facts["destination"]), ids
            ):
                emit(
                    event,
                    "%s: rejected, %s: %s",
                    _place(facts),
                    rejection.reason.value,
                    harmless(rejection.sentence(), 1024),
                    reason=rejection.reason.value,
                    detail=harmless(rejection.detail),
                    found=dict(rejection.found),
                    expected=dict(rejection.expected),
                    verified=rejection.reason in SIGNED_REASONS,
                    dead_letter=delivery.letter,
                    audit=delivery.record_id,
                    **facts | ids,
                )
        elif rejection is None and _DONE.isEnabledFor(logging.DEBUG):
            event = (
                "message.duplicate"
                if delivery.verdict is Verdict.DUPLICATE
                else "message.accepted"
            )
            facts = self._facts(delivery)
            emit(
                event,
                "%s: %s",
                _place(facts),
                delivery.verdict.value,
                **facts,
                **_ids(delivery),
            )
        self.rate.tick()

    def deferred(
        self, delivery: Delivery, error: Unavailable, dead_letters: DeadLetterSink | None
    ) -> Outcome:
        """Defer a delivery, with a detail that names what is out of reach, and the verdict where there is one.

        It is logged when deliveries begin to wait for that, and every five minutes while it lasts.
        """
        plugin: object = {
            Cause.REPLAY_STORE_UNAVAILABLE: self._replay,
            Cause.AUDIT_UNAVAILABLE: self._audit,
            Cause.POLICY_UNAVAILABLE: self._policy,
            Cause.DEAD_LETTER_UNAVAILABLE: dead_letters,
        }.get(error.cause)
        if error.party is not None and error.party in self._verifier.issuers:
            plugin = self._verifier.issuers[error.party].keys
        what, detail = _named(plugin) or "", error.detail
        if what not in detail:
            detail = f"{detail} ({what})" if detail else what
        if delivery.rejection is not None:
            sentence = harmless(delivery.rejection.sentence(), 1024)
            detail = (
                f"{detail}; its verdict is {delivery.rejection.reason.value}: {sentence}"
            )
        error = Unavailable(error.cause, detail, error.party)
        whose = (
            delivery.message.destination
            if error.cause in ONE_MESSAGE
            else error.party or ""
        )
        delivery.waits = kind = (error.cause.value, harmless(whose))
        now = self._clock.monotonic()
        with self._lock:
            wait = self._waits.get(kind)
            silent = wait is not None and now - wait.said < AGAIN
            if wait is None and len(self._waits) < KINDS:
                wait = self._waits[kind] = _Wait(self._clock.now(), now)
        if not silent and self.rate.admits("message.deferred", kind, {}):
            facts, detail, rejection = (
                self._facts(delivery),
                harmless(error.detail, 2048),
                delivery.rejection,
            )
            emit(
                "message.deferred",
                "%s: waits, %s: %s",
                _place(facts),
                error.cause.value,
                detail,
                cause=error.cause.value,
                detail=detail,
                since=self._clock.now() if wait is None else wait.since,
                reason=None if rejection is None else rejection.reason.value,
                party=error.party,
                **facts,
            )
        if wait is not None and not silent:
            wait.said = now
        return delivery.defer(error)

    def _facts(self, delivery: Delivery) -> dict[str, Any]:
        """Return on whose behalf a message is handled, and where the broker had it."""
        message, origin = delivery.message, delivery.message.origin
        facts: dict[str, Any] = {
            "scope": harmless(self._scope_of(message)),
            "destination": harmless(message.destination),
        }
        if origin.offset is not None:
            return facts | {"partition": origin.partition, "offset": origin.offset}
        return (
            facts if origin.queue is None else facts | {"queue": harmless(origin.queue)}
        )

    def started(
        self, source: str, scope: str, dead_letters: str, rollout: Rollout | None = None
    ) -> None:
        """Log what a consumer trusts, and what it refuses.

        Args:
            source: the queue, or the topics.
            scope: the queue or group on whose behalf it handles messages.
            dead_letters: the queue or topic of rejected messages.
            rollout: where messages may be unverified; ``None`` for nowhere.
        """
        facts: dict[str, Any] = self._verifier.trusts() | {
            "source": source,
            "scope": scope,
            "rules": rules_of(self._policy),
            "dead_letters": dead_letters,
            "audit": where(self._audit),
            "store": where(self._replay),
        }
        but = (
            f", but gives what is not proven at {destinations_of(rollout)} to unverified="
            if rollout
            else ""
        )
        self._began = self._clock.monotonic()
        emit(
            "consumer.started",
            "consumes %(source)s as %(scope)s: accepts what issuers %(issuers)s signed for audience %(audience)s,"
            " by the rules %(rules)s; rejects everything else, also what is not signed%(but)s; headers that are"
            " not signed are %(unsigned_headers)s; dead letters to %(dead_letters)s; audit in %(audit)s; replay"
            " store %(store)s",
            {
                name: harmless(value, 1024)
                for name, value in (facts | {"but": but}).items()
            },
            version=__version__,
            **facts,
        )

        times = self._verifier.times
        domains = [
            issuer
            for issuer in self._verifier.issuers.values()
            if isinstance(issuer, TrustDomain)
        ]
        lives = [domain.max_identity_lifetime for domain in domains]
        waits = longest_wait(times.max_queue_age, [times.max_lifetime], lives)
        if waits < BACKLOG and times.backlog is None:
            emit(
                "consumer.backlog_expires",
                "a message that waits for more than %d s is rejected for its age: a longer stop of this consumer"
                ' condemns its backlog; set at = "append" with max_queue_age, or max_lifetime and the lifetime of'
                ' producers to a day, or backlog = "expires" if it is meant',
                waits,
                scope=harmless(scope),
                seconds=waits,
            )
        for alias in self._verifier.aliases.values():
            signed_for = ", ".join(alias.signed_for)
            emit(
                "rollout.alias",
                "%s: messages signed for %s are accepted there",
                alias.at,
                signed_for,
            )

    def stopped(self, scope: str, counts: Any) -> None:
        """Log what became of a consumer's deliveries, a data class of numbers, and what the log has left out."""
        self.rate.tick(all_of_them=True)
        seconds = round(self._clock.monotonic() - self._began, 3)
        numbers = ", ".join(f"{number} {name}" for name, number in asdict(counts).items())
        emit(
            "consumer.stopped",
            "%s: stopped after %.0f s: %s",
            harmless(scope),
            seconds,
            numbers,
            scope=harmless(scope),
            seconds=seconds,
            **asdict(counts),
        )


def where(plugin: object) -> str:
    """Return where a plug-in's data are: host, file, queue or topic; else what it is."""
    return _named(plugin) or type(plugin).__name__


def _named(plugin: object) -> str | None:
    name = getattr(plugin, "where", None) or getattr(plugin, "name", None)
    return name if isinstance(name, str) else None


def rules_of(policy: Policy) -> str:
    """Return a policy's rules in one line."""
    rules = local_rules(policy)
    if rules is None:
        return policy.version
    lines = [f"{rule.subject} to {', '.join(rule.destinations)}" for rule in rules]
    asked = "" if isinstance(policy, Allow) else f", and by {policy.version}"
    return (few(lines, "; ") or "none, so that every message is rejected") + asked


def few(names: Sequence[str], separator: str = ", ") -> str:
    """Return the first five names, and how many more there are."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return separator.join(names[:_NAMED]) + more


def _place(facts: Mapping[str, Any]) -> str:
    offset = f" {facts['partition']}/{facts['offset']}" if "offset" in facts else ""
    return f"{facts['destination']}{offset}"


def _ids(delivery: Delivery) -> dict[str, Any]:
    """Return who sent a message and its id, claimed unless its signature was verified."""
    candidate = delivery.candidate
    if candidate is None:
        return {}
    claims, proof = candidate.token.claims, candidate.proof
    claimed = {
        "subject": claims.sub,
        "jti": claims.jti,
        "kid": candidate.token.opened.kid,
    }
    ids: dict[str, Any] = {name: harmless(text) for name, text in claimed.items()}
    return ids if proof is None else ids | {"index": proof.place}
