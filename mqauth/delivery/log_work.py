"""Carries the deliveries of a partition to their end, in order, and keeps and gives back their claims."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from itertools import islice
from types import GeneratorType
from typing import Any, Final

from mqauth.audit.record import AuditRecord
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.partition import Partition, TopicPartition
from mqauth.errors import (
    Cause,
    RejectNow,
    RetryLater,
    StaleDelivery,
    Unavailable,
    require,
)
from mqauth.flow import Flow, call, is_async, refuse_async, requires_two, run
from mqauth.judging.pipeline import Delivery, Handler, Outcome, Pipeline, Step, Verdict
from mqauth.judging.verified import Decode, Unverifieds, Verified, equip
from mqauth.letters.dead_letter import DeadLetterSink
from mqauth.logs import emit
from mqauth.replay.rules import ClaimRequest

# Looking up an enum's member is slow in Python 3.11.
_JUDGE, _HANDLE = Step.JUDGE, Step.HANDLE
MAX_VERDICT_AGE: Final = 10.0
"""Seconds for which an early verdict holds; older ones are reached again, since keys may have been revoked."""
ROW: Final = 64
"""Deliveries that are judged in a row where the store is in this process and there is no round trip to save.

What so few take stays in the processor's caches, and costs the garbage collector least.
"""
LONG_ROW: Final = 256
"""The same on a thread where handlers leave the caches cold: the first verdict then costs as much as 20 others."""
COLD: Final = 0.001
"""Seconds of a handler that leave them cold."""
LEASE_PARTS: Final = 3


class LogWork:
    """Works on the partitions that the assignment has chosen.

    Args:
        guard: the pipeline.
        assignment: the partitions.
        handler: takes a ``Verified``.
        letters: returns where the rejected records of a partition go.
        decode: makes ``Verified.value`` of a body; what it raises dead-letters the message.
        answer: sends what ``Verified.reply`` is given.
        unverified: takes an ``Unverified``; or a table of handlers by kind.
        on_loop: whether its flows run in an event loop.
    """

    def __init__(
        self,
        guard: Pipeline,
        assignment: Assignment,
        handler: Handler,
        letters: Callable[[Partition], DeadLetterSink],
        *,
        decode: Decode | None = None,
        answer: Callable[[Verified, bytes], Any] | None = None,
        unverified: Unverifieds | None = None,
        on_loop: bool = False,
    ) -> None:
        check_log(guard)
        self._guard = guard
        self._on_loop = on_loop
        self._unverified = guard.handlers(handler, unverified)
        self._assignment = assignment
        self._handler = equipped(handler, decode, answer)
        self._letters = letters
        self._renewed: dict[int, tuple[Delivery, float]] = {}
        # ``reread="duplicate"`` has to know at once of each record that it is done.
        self._confirm_many = (
            getattr(guard.replay, "confirm_many", None)
            if guard.verdicts.handles_again
            else None
        )

    def visit(self, partition: Partition) -> None:
        """Carry the deliveries of a chosen partition to their end, until one is deferred or none is left.

        Raises:
            ConfigurationError: a plug-in or the handler is asynchronous.
            BaseException: what else ends the process; the delivery is not settled.
        """
        # Closed: what ends the process stops it in the middle, and its traceback keeps it alive.
        with closing(self.visiting(partition)) as visiting:
            run(visiting)

    def visiting(self, partition: Partition) -> Flow[None]:
        """Return ``visit`` as a flow, for a caller that runs several at a time and closes each."""
        guard, assignment, handler = self._guard, self._assignment, self._handler
        early = EarlyClaims(guard, on_loop=self._on_loop)
        letters, unverified = self._letters(partition), self._unverified
        done = None if self._confirm_many is None else partition.done
        try:
            with suppress(StaleDelivery):
                while (delivery := assignment.next_delivery(partition)) is not None:
                    if (judging := early.judge_ahead(partition.waiting)) is not None:
                        yield from self._confirming(partition)
                        yield from judging
                    outcome = yield from guard.process(
                        delivery, handler, letters, unverified, done
                    )
                    if not assignment.attempted(partition, outcome):
                        break
            yield from self._confirming(partition)
        finally:
            assignment.visit_ended(partition)

    def _confirming(self, partition: Partition) -> Flow[None]:
        """Confirm what was handled in one round trip: before each row of verdicts, and at the end of each visit.

        A process that dies before that leaves its records seen and not done. Each is known by its place, and is
        handled again there, as it would be anyway. For a store that is out of reach the partition waits.
        """
        if partition.done and self._confirm_many is not None:
            try:
                yield from call(
                    self._confirm_many,
                    partition.done,
                    cause=Cause.REPLAY_STORE_UNAVAILABLE,
                )
                partition.done.clear()
            except Unavailable as error:
                if self._guard.journal.rate.admits(
                    "claim.not_renewed", (error.cause,), {}
                ):
                    emit(
                        "claim.not_renewed",
                        "what was handled is not confirmed yet: %s",
                        error,
                    )
                self._assignment.stall(
                    partition,
                    partition.next or 0,
                    Outcome(Verdict.DEFERRED, None, error.cause, error.detail),
                )

    def skipping(
        self, place: TopicPartition, first: int, beyond: int, record: AuditRecord
    ) -> Flow[bool]:
        """Audit a range that cannot be read, then go on behind it; where audit is out of reach, defer it.

        Args:
            place: the partition's name.
            first: offset of the first record of the range.
            beyond: the offset after it.
            record: what audit is to say of it.

        Returns:
            Whether it was audited and skipped.
        """
        partition = self._assignment.partition(place)
        # It has just been assigned, and is read again once it is begun.
        if partition is None:
            self._assignment.early.setdefault(place, first)
            return False
        try:
            write = self._guard.audit.write  # type: ignore[union-attr]
            yield from call(write, record, cause=Cause.AUDIT_UNAVAILABLE)
        except Unavailable as error:
            self._assignment.stall(
                partition,
                first,
                Outcome(Verdict.DEFERRED, None, error.cause, error.detail),
            )
            return False
        self._assignment.skipped(partition, beyond)
        return True

    def renewing(self) -> Flow[None]:
        """Renew each claim after each third of its lease for which a handler has run; a failure is logged.

        On Kafka a claim with a place outlives its lease: a copy elsewhere is a replay, and at the same place the
        claim is taken over. But the store forgets an id once no new copy can be accepted, and a handler may run
        longer than that. And the claim of a released message (``mqauth.letters.release``) has no place, so that a
        copy would run beside it.
        """
        before, self._renewed, now = self._renewed, {}, self._guard.clock.monotonic()
        for delivery in self._assignment.running_deliveries():
            _, since = before.get(id(delivery), (delivery, now))
            if now - since >= self._guard.lease / LEASE_PARTS:
                since = now
                yield from self._guard.renew(delivery)
            self._renewed[id(delivery)] = (delivery, since)

    def giving_back(self) -> Flow[None]:
        """Release claims that are not used here; the same place may take over one that cannot be released."""
        for delivery in self._assignment.unhandled_claims():
            if (
                yield from self._guard.release(delivery)
            ).cause is not Cause.HANDLER_DEFERRED:
                return


class EarlyClaims:
    """Makes the claims of a partition's waiting deliveries in one round trip to the replay store.

    The deliveries are judged up to their claims, the claims are made together, and each verdict stays with its
    delivery until ``Pipeline.process`` comes to it. A delivery that is never processed leaves its claim in the
    store; the same topic, partition and offset may claim again (``mqauth.replay.rules``). One is made for each
    visit.

    Args:
        guard: the pipeline. Where its store has no ``claim_many``, each delivery is claimed by itself.
        longest: seconds for which an early verdict holds.
        on_loop: whether this is an event loop: what waits for keys or a decision is judged when it is processed.
    """

    def __init__(
        self, guard: Pipeline, *, longest: float = MAX_VERDICT_AGE, on_loop: bool = False
    ) -> None:
        # A policy that is asked elsewhere is asked in a record's turn: none waits for the answers about others.
        self._many: Callable[[list[ClaimRequest]], Any] | None = (
            None
            if on_loop and is_async(guard.policy.decide)
            else getattr(guard.replay, "claim_many", None)
        )
        self._on_loop = on_loop
        self._guard = guard
        near = getattr(guard.replay, "in_process", False)
        self._most = ROW if near else sys.maxsize
        self._most_cold = LONG_ROW if near and not on_loop else self._most
        self._monotonic = guard.clock.monotonic
        self._longest = longest
        self._left = self._judged = 0
        self._ends = 0.0

    def judge_ahead(self, waiting: Sequence[Delivery]) -> Flow[None] | None:
        """Judge the waiting deliveries where their verdicts are missing or too old; to be called before each one.

        What cannot be judged now is judged when it is processed.

        Returns:
            A flow that does so, which raises ``ConfigurationError`` where a plug-in is asynchronous, and there is
            no event loop; ``None`` where the verdicts are there.
        """
        now = self._monotonic()
        if self._left > 0 and now < self._ends:
            self._left -= 1
            return None
        # How long each of the last row took; in half of the time that verdicts hold, so many more can be handled.
        used, most = self._judged - self._left, self._most
        pace = (now - self._ends + self._longest) / max(1, used)
        if used and pace > COLD:
            most = min(self._most_cold, max(1, int(self._longest / 2 / pace)))
        deliveries = list(islice(waiting, most))
        for delivery in deliveries:
            # The verdict is too old. Its owner, the same delivery, may claim again.
            if delivery.step is _HANDLE and not delivery.deferred:
                delivery.step = _JUDGE
        self._judged, self._left, self._ends = (
            len(deliveries),
            len(deliveries) - 1,
            now + self._longest,
        )
        return self._judge(deliveries)

    def _judge(self, deliveries: list[Delivery]) -> Flow[None]:
        """Judge deliveries up to their claims, make the claims together, and go on to the verdicts."""
        if self._many is None or len(deliveries) < 2:
            return
        unjudged = [each for each in deliveries if each.step is _JUDGE]
        began = self._monotonic()
        # The claims to make, up to the first delivery for which something is out of reach.
        requests = []
        self._guard.verdicts.draw_owners(unjudged)
        for delivery in unjudged:
            try:
                prepared = self._guard.verdicts.prepare(delivery)
                if type(prepared) is GeneratorType:
                    if self._on_loop:
                        break
                    prepared = yield from prepared
            except Unavailable:
                break
            # A claim without a place could not be made again if its answer were lost.
            if type(prepared) is ClaimRequest and prepared.place is not None:
                requests.append((delivery, prepared))
        for delivery, request in requests:
            # From now on the store may hold the claim, even if its answer is lost.
            delivery.claim = request
        asking, ladder = (
            call(self._many, [request for _, request in requests]),
            self._guard.verdicts.ladder,
        )
        if ladder is not None:
            asking = ladder.patient(asking, (delivery for delivery, _ in requests))
        try:
            statuses = (yield from asking) if requests else []
        except Exception:
            statuses = []
        # A store that answers for fewer is not believed.
        answered = requests if len(statuses) == len(requests) else []
        for (delivery, request), status in zip(answered, statuses, strict=False):
            # What is out of reach comes up again when the delivery is processed.
            with suppress(Unavailable):
                self._guard.verdicts.conclude(delivery, request, status)
        judged = [each for each in unjudged if each.step is not _JUDGE]
        seconds = (self._monotonic() - began) / max(1, len(judged))
        for delivery in judged:
            delivery.judge_seconds = seconds


def equipped(
    handler: Handler,
    decode: Callable[..., Any] | None,
    answer: Callable[[Verified, bytes], Any] | None,
) -> Handler:
    """Return a handler that gets a decoded message it can answer; the handler itself where neither is wanted.

    The handler raises ``RejectNow`` where ``decode`` failed, and would fail again: the error names only the type
    of what was raised, which may quote the body. ``RejectNow`` and ``RetryLater`` of ``decode`` itself pass: a
    schema registry may be out of reach.
    """
    if decode is None and answer is None:
        return handler
    takes_message = decode is not None and requires_two(decode)

    def decoding(verified: Verified) -> Any:
        value = None
        # A tombstone has no body.
        if decode is not None and verified.body is not None:
            try:
                value = (
                    decode(verified.body, verified)
                    if takes_message
                    else decode(verified.body)
                )
            except (RejectNow, RetryLater):
                raise
            except Exception as error:
                raise RejectNow(f"decode: {type(error).__name__}") from error
        return handler(equip(verified, responder=answer, value=value))

    return decoding


def check_log(guard: Pipeline) -> None:
    """Refuse a pipeline that asks for what no record of Kafka has.

    Raises:
        ConfigurationError: its verifier has ``user_id``.
    """
    require(
        guard.verifier.user_id is None,
        "user_id compares a user that RabbitMQ has checked: Kafka's records have none",
    )


def check_plugins(guard: Pipeline, **plugins: object) -> None:
    """Refuse asynchronous plug-ins.

    Args:
        guard: the pipeline of a consumer without an event loop.
        plugins: what else it calls, by name.

    Raises:
        ConfigurationError: a plug-in is asynchronous.
    """
    refuse_async(
        store_claim=guard.replay.claim,
        store_confirm=guard.replay.confirm,
        store_release=guard.replay.release,
        audit=getattr(guard.audit, "write", None),
        policy=guard.policy.decide,
        **{
            f"keys of {name}": issuer.keys.refresh
            for name, issuer in guard.verifier.issuers.items()
        },
        **plugins,
    )
