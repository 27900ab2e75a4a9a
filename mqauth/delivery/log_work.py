"""Carries the deliveries of a partition to their end, in order, and keeps and gives back what they claimed.

Claims kept while handlers run long: which renewals are due.

On RabbitMQ whoever gets the redelivery of a lost connection would handle it a second time once the lease is over.
On Kafka a claim with a place outlives its lease by itself: elsewhere it is a replay, at the same place it is taken
over. But its id is forgotten once no new copy can be accepted, and a handler may run longer than that; and the
claim of a *released* message (``mqauth.letters.release``) has no place, so that a copy would run beside it.

The claims of a batch in one round trip, for brokers that say where exactly a delivery stands.

The deliveries of a partition are judged up to their claims, the claims are made together, and each verdict
stays with its delivery, which ``Pipeline.process`` carries to its end when its turn comes. One whose turn never
comes leaves a claim with its place behind, and the same place may claim again (``mqauth.replay.rules``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from types import GeneratorType
from typing import Any, Final

from mqauth.audit.record import AuditRecord
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.partition import Partition, TopicPartition
from mqauth.errors import Cause, ConfigurationError, StaleDelivery, Unavailable
from mqauth.flow import Flow, asked, is_async, refuse_async, run
from mqauth.judging.pipeline import Delivery, Handler, Outcome, Pipeline, Step, Verdict
from mqauth.judging.verified import Verified, decoded, equip
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.replay.rules import ClaimRequest, ClaimStatus


class LogWork:
    """Does what the book has chosen.

    Args:
        guard: the pipeline.
        assignment: the partitions.
        handler: takes a ``Verified``.
        letters: returns where the rejected records of a partition go.
        decode: makes ``Verified.value`` of a body; what it raises dead-letters the message.
        answer: sends what ``Verified.reply`` is given.
    """

    def __init__(
        self,
        guard: Pipeline,
        assignment: Assignment,
        handler: Handler,
        letters: Callable[[Partition], DeadLetterSink],
        *,
        decode: Callable[[bytes], Any] | None = None,
        answer: Callable[[Verified, bytes], Any] | None = None,
    ) -> None:
        self._guard = guard
        self._assignment = assignment
        self._handler = equipped(handler, decode, answer)
        self._letters = letters
        self._leases = LogLeases(guard.lease)

    def visit(self, partition: Partition) -> None:
        """Carry the deliveries of a chosen partition to their end; the first that is put off ends it.

        Raises:
            ConfigurationError: a plug-in or the handler is asynchronous.
            BaseException: what else ends the process; the delivery is not settled.
        """
        visiting = self.visiting(partition)
        try:
            run(visiting)
        finally:
            visiting.close()  # what ends the process leaves it in the middle, and keeps it alive by its traceback

    def visiting(self, partition: Partition) -> Flow[None]:
        """Return ``visit`` as a flow, for those who run several at a time; it is to be closed."""
        guard, assignment, handler, ahead = self._guard, self._assignment, self._handler, EarlyClaims(self._guard)
        letters = self._letters(partition)
        try:
            while (delivery := assignment.next_delivery(partition)) is not None:
                ahead.judge_ahead(partition.waiting)
                if not assignment.attempted(partition, (yield from guard.process(delivery, handler, letters))):
                    return
        except StaleDelivery:
            return
        finally:
            assignment.visit_ended(partition)

    def skip(self, place: TopicPartition, first: int, beyond: int, record: AuditRecord) -> bool:
        """Put a range of which nothing can be read on record, then go on behind it; without the record it waits.

        Args:
            place: the partition.
            first: offset of the first record of the range.
            beyond: offset after it.
            record: what audit is to say of it.

        Raises:
            ConfigurationError: the audit sink is asynchronous.
        """
        partition = self._assignment.partition(place)
        try:
            run(asked(Cause.AUDIT_UNAVAILABLE, self._guard.audit.write, record))  # type: ignore[union-attr]
        except Unavailable as error:
            outcome = Outcome(verdict=Verdict.DEFERRED, cause=error.cause, detail=error.detail)
            self._assignment.stall(partition, first, outcome)
            return False
        self._assignment.skipped(partition, beyond)
        return True

    def renew(self) -> None:
        """Renew the claims of handlers that run long; a store out of reach is logged and stops nothing."""
        for delivery in self._leases.due(self._assignment.running_deliveries(), self._guard.clock.monotonic()):
            run(self._guard.renew(delivery))

    def give_back(self) -> None:
        """Give claims back that will not be handled here; one that cannot be is taken over from its own place."""
        for delivery in self._assignment.unhandled_claims():
            if run(self._guard.release(delivery)).cause is not Cause.HANDLER_DEFERRED:
                return


def equipped(
    handler: Handler,
    decode: Callable[[bytes], Any] | None,
    answer: Callable[[Verified, bytes], Any] | None,
) -> Handler:
    """Return a handler that is called with a decoded message it can answer, itself where that is all it needs."""
    if decode is None and answer is None:
        return handler
    return lambda verified: handler(equip(verified, responder=answer, value=decoded(verified, decode)))


def check_plugins(guard: Pipeline, **plugins: object) -> None:
    """Refuse asynchronous plug-ins, and a pipeline that cannot settle rejections.

    Args:
        guard: the pipeline of a consumer without an event loop.
        plugins: what else it calls, by name.

    Raises:
        ConfigurationError: one is asynchronous, or there is no audit sink.
    """
    if guard.audit is None:
        raise ConfigurationError("a consumer's pipeline needs audit=")
    refuse_async(
        store_claim=guard.replay.claim,
        store_confirm=guard.replay.confirm,
        store_release=guard.replay.release,
        audit=guard.audit.write,
        policy=guard.policy.decide,
        **{f"keys of {name}": issuer.keys.refresh for name, issuer in guard.verifier.issuers.items()},
        **plugins,
    )


_LEASE_PARTS: Final = 3


class LogLeases:
    """Tells whose claim is to be renewed: after each third of its lease for which a handler has run.

    Args:
        lease: seconds a claim holds.
    """

    def __init__(self, lease: float) -> None:
        self._every = lease / _LEASE_PARTS
        self._since: dict[int, tuple[Delivery, float]] = {}

    def due(self, running: Iterable[Delivery], now: float) -> list[Delivery]:
        """Return the deliveries whose claims are to be renewed now.

        Args:
            running: those whose handlers run; what is not among them any more is forgotten.
            now: monotonic seconds.
        """
        before, self._since, found = self._since, {}, list[Delivery]()
        for delivery in running:
            _, since = before.get(id(delivery), (delivery, now))
            if now - since >= self._every:
                found.append(delivery)
                since = now
            self._since[id(delivery)] = (delivery, since)
        return found


_JUDGE, _HANDLE = Step.JUDGE, Step.HANDLE  # Python 3.11 takes its time to look a member up
MAX_VERDICT_AGE: Final = 10.0
"""Seconds a verdict may wait for its turn before it is reached again: keys are revoked meanwhile."""
IN_PROCESS_BATCH: Final = 64
"""Deliveries judged at once where the store is in this process: what lives shortly costs the collector least."""


class EarlyClaims:
    """Judges the deliveries of one batch ahead of their turns; a new one for each batch.

    Args:
        guard: the pipeline. Where its store has no ``claim_many``, each delivery is judged in its turn.
        longest: seconds after which a verdict that still waits is reached anew.
    """

    def __init__(self, guard: Pipeline, *, longest: float = MAX_VERDICT_AGE) -> None:
        many = getattr(guard.replay, "claim_many", None)
        self._many: Callable[[list[ClaimRequest]], list[ClaimStatus]] | None = None if is_async(many) else many
        self._verdicts = guard.verdicts
        self._most = IN_PROCESS_BATCH if getattr(guard.replay, "in_process", False) else None
        self._monotonic = guard.clock.monotonic
        self._longest = longest
        self._left = 0
        self._ends = 0.0

    def judge_ahead(self, waiting: Sequence[Delivery]) -> None:
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
                    self._verdicts.conclude(delivery, wish, status)
                except Unavailable:
                    continue  # it is told in its turn
        judged = [each for each in unjudged if each.step is not _JUDGE]
        seconds = (self._monotonic() - began) / max(1, len(judged))
        for delivery in judged:
            delivery.judge_seconds = seconds

    def _wishes(self, deliveries: list[Delivery]) -> list[tuple[Delivery, ClaimRequest]]:
        """Return those that have come to their claim; the first that waits for the world ends it."""
        found = []
        self._verdicts.draw_owners(deliveries)
        for delivery in deliveries:
            try:
                wish = self._verdicts.prepare(delivery)
                if type(wish) is GeneratorType:
                    wish = run(wish)
            except Unavailable:
                break
            if type(wish) is ClaimRequest and wish.place is not None:  # without one it could not be claimed again
                found.append((delivery, wish))
        return found
