"""Carries the deliveries of a partition to their end, in order, and keeps and gives back what they claimed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mqauth.audit.record import AuditRecord
from mqauth.delivery.ahead import Ahead
from mqauth.delivery.book import Book
from mqauth.delivery.facts import Place
from mqauth.delivery.leases import Leases
from mqauth.delivery.part import Part
from mqauth.errors import Cause, ConfigurationError, StaleDelivery, Unavailable
from mqauth.flow import Flow, asked, refuse_async, run
from mqauth.judging.pipeline import Handler, Outcome, Pipeline, Verdict
from mqauth.judging.verified import Verified, decoded, equip
from mqauth.letters.dead_letter import DeadLetterSink


class Work:
    """Does what the book has chosen.

    Args:
        guard: the pipeline.
        book: the partitions.
        handler: takes a ``Verified``.
        letters: returns where the rejected records of a partition go.
        decode: makes ``Verified.value`` of a body; what it raises dead-letters the message.
        answer: sends what ``Verified.reply`` is given.
    """

    def __init__(
        self,
        guard: Pipeline,
        book: Book,
        handler: Handler,
        letters: Callable[[Part], DeadLetterSink],
        *,
        decode: Callable[[bytes], Any] | None = None,
        answer: Callable[[Verified, bytes], Any] | None = None,
    ) -> None:
        self._guard = guard
        self._book = book
        self._handler = equipped(handler, decode, answer)
        self._letters = letters
        self._leases = Leases(guard.lease)

    def visit(self, part: Part) -> None:
        """Carry the deliveries of a chosen partition to their end; the first that is put off ends it.

        Raises:
            ConfigurationError: a plug-in or the handler is asynchronous.
            BaseException: what else ends the process; the delivery is not settled.
        """
        visiting = self.visiting(part)
        try:
            run(visiting)
        finally:
            visiting.close()  # what ends the process leaves it in the middle, and keeps it alive by its traceback

    def visiting(self, part: Part) -> Flow[None]:
        """Return ``visit`` as a flow, for those who run several at a time; it is to be closed."""
        guard, book, handler, ahead = self._guard, self._book, self._handler, Ahead(self._guard)
        letters = self._letters(part)
        try:
            while (delivery := book.first(part)) is not None:
                ahead.look(part.waiting)
                if not book.attempted(part, (yield from guard.process(delivery, handler, letters))):
                    return
        except StaleDelivery:
            return
        finally:
            book.left(part)

    def skip(self, place: Place, first: int, beyond: int, record: AuditRecord) -> bool:
        """Put a range of which nothing can be read on record, then go on behind it; without the record it waits.

        Args:
            place: the partition.
            first: offset of the first record of the range.
            beyond: offset after it.
            record: what audit is to say of it.

        Raises:
            ConfigurationError: the audit sink is asynchronous.
        """
        part = self._book.part(place)
        try:
            run(asked(Cause.AUDIT_UNAVAILABLE, self._guard.audit.write, record))  # type: ignore[union-attr]
        except Unavailable as error:
            outcome = Outcome(verdict=Verdict.DEFERRED, cause=error.cause, detail=error.detail)
            self._book.stall(part, first, outcome)
            return False
        self._book.skipped(part, beyond)
        return True

    def renew(self) -> None:
        """Renew the claims of handlers that run long; a store out of reach is logged and stops nothing."""
        for delivery in self._leases.due(self._book.in_hand(), self._guard.clock.monotonic()):
            run(self._guard.renew(delivery))

    def give_back(self) -> None:
        """Give claims back that will not be handled here; one that cannot be is taken over from its own place."""
        for delivery in self._book.release():
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
