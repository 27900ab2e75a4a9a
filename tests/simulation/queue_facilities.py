"""The facilities and the handlers of the queue engine's simulation, which answer at once or at some later fact."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from mqauth.clock import Clock
from mqauth.errors import Cause, Reason, Rejection, RejectNow, RetryLater
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.wire.keys import KeySet
from mqauth.wire.message import Message
from tests.simulation.log_facilities import Abort, Claim, Facilities, Letters, Store
from tests.simulation.queue_invariants import LEASE, QueueInvariants
from tests.simulation.queue_model import Channel, Native, Parcel

DRAW: Final = random.Random(0)
"""The seed's chance, for what no fact decides."""


class Interrupted(BaseException):
    """The client cancelled an awaited call, since its connection was lost."""


class Answer:
    """An answer that is awaited.

    Args:
        act: makes it, or fails, when it comes.
        of: what it answers: ``store``, ``audit``, ``letters``, ``handler`` or ``channel``.
        then: called with it by whoever awaited it.
        about: the delivery that is handled.
    """

    __slots__ = ("about", "act", "came", "error", "of", "result", "then")

    def __init__(
        self,
        act: Callable[[], Any],
        of: str,
        then: Callable[[Any], Any] | None = None,
        about: Native | None = None,
    ) -> None:
        self.about = about
        self.act = act
        self.of = of
        self.then = then
        self.came = False
        self.result: Any = None
        self.error: BaseException | None = None

    def __await__(self) -> Any:
        """Make it awaitable; the simulation never awaits it."""
        raise NotImplementedError

    def come(self) -> None:
        """Produce the answer now."""
        try:
            self.result = self.act()
        except BaseException as error:
            self.error = error
        self.came = True

    def interrupt(self) -> None:
        """Cancel whoever waits for it, as a client does."""
        self.error, self.came = Interrupted(), True


def soon_or_late(act: Callable[[], Any], of: str) -> Any:
    """Act and answer at once; act now and answer later; or do both later."""
    drawn = DRAW.getrandbits(3)
    if drawn < 4:
        return act()
    if drawn < 6:
        return Answer(act, of)
    early = Answer(act, of)
    early.come()
    result, error = early.result, early.error
    return Answer(lambda: _came(result, error), of)


def _came(result: Any, error: BaseException | None) -> Any:
    """Return an answer, or raise it."""
    if error is not None:
        raise error
    return result


class QueueFacilities(Facilities):
    """Verifier, policy and audit; the invariants check each call.

    Args:
        clock: the clock.
        seen: called with what is asked, ``judge`` or ``record``, before it is done.
        verdict: called with a delivery that is rejected here.
    """

    def __init__(
        self, clock: Clock, seen: Callable[[str], None], verdict: Callable[[Native], None]
    ) -> None:
        super().__init__(clock, lambda: None)
        self._seen = seen
        self._verdict = verdict

    def open(self, message: Message) -> Any:
        """Return the delivery."""
        self._seen("judge")
        return message.native

    def verify(
        self, message: Message, _candidate: Any, _keys: KeySet, received: float
    ) -> Any:
        """Return what was verified."""
        native: Native = message.native  # type: ignore[assignment]
        if native.parcel.kind == "forged":
            raise Rejection(Reason.SIGNATURE_INVALID, "forged")
        if native.parcel.kind == "stale" or received > native.parcel.expires:
            self._verdict(native)
            raise Rejection(Reason.EXPIRED, "stale")
        return native

    def write(self, record: Any, /) -> Any:
        """Keep a record."""
        self._seen("record")
        return soon_or_late(lambda: Facilities.write(self, record), "audit")


class QueueStore(Store):
    """The table of claims; its answers may come late.

    Args:
        facilities: whether it is in reach.
        clock: counts leases.
        replayed: called when a claim is refused as ``replayed``.
    """

    def __init__(
        self, facilities: Facilities, clock: Clock, replayed: Callable[[], None]
    ) -> None:
        super().__init__(facilities, clock)
        self._replayed = replayed
        self.taken_over = Counter[bytes]()
        """What was claimed by another than its former owner, whose lease was over."""
        self.unended: set[tuple[bytes, str | None]] = set()
        """Claims whose confirm or release was asked for; one that is still held then was not told of it."""
        self.left_behind: set[tuple[bytes, str | None]] = set()
        """Those of consumers that have stopped."""

    def claim(self, request: ClaimRequest, /) -> Any:
        """Take a lease."""
        claim = super().claim
        return soon_or_late(lambda: claim(request), "store")

    def confirm(self, request: ClaimRequest, /) -> Any:
        """Make a claim done."""
        confirm = super().confirm
        self.unended.add((request.id, request.owner))
        return soon_or_late(lambda: confirm(request), "store")

    def release(self, request: ClaimRequest, /) -> Any:
        """Forget a claim."""
        release = super().release
        self.unended.add((request.id, request.owner))
        return soon_or_late(lambda: release(request), "store")

    def rival(self, native: Native, owner: str, lease: float) -> ClaimStatus:
        """Let another process claim."""
        redelivered = native.message.origin.redelivered
        return self._claim(
            ClaimRequest("orders", native.id, owner, None, redelivered, lease, 0.0)
        )

    def _claim(self, request: ClaimRequest) -> ClaimStatus:
        before: Claim | None = self.entries.get(request.id)
        former = None if before is None else before.owner
        status = super()._claim(request)
        if status is ClaimStatus.FRESH and former is not None and former != request.owner:
            self.taken_over[request.id] += 1
        if status is ClaimStatus.FRESH and not request.renew:
            self.unended.discard((request.id, request.owner))
        if status is ClaimStatus.REPLAYED:
            self._replayed()
        return status


class QueueLetters(Letters):
    """Where rejected messages go.

    Args:
        facilities: whether it is in reach.
        seen: called before a letter is sent; returns what is called once it was confirmed.
    """

    def __init__(
        self, facilities: Facilities, seen: Callable[[], Callable[[], None]]
    ) -> None:
        super().__init__(facilities, lambda _: None)
        self._facilities = facilities
        self._seen = seen

    def publish(self, letter: Any, /) -> Any:
        """Keep a letter."""
        told = self._seen()

        def act() -> None:
            self._facilities.ask("letters", Cause.DEAD_LETTER_UNAVAILABLE)
            told()
            self._facilities.lose("letters", Cause.DEAD_LETTER_UNAVAILABLE)

        return soon_or_late(act, "letters")


__all__ = ["LEASE", "QueueHandlers"]


class QueueHandlers(QueueInvariants):
    """Handlers that do what their message's kind says, and the rival."""

    rival: tuple[Native, str] | None = None

    # A rival on the same queue

    def rivals(self, number: int) -> None:
        """Let another consumer take a message, handle what it took, or die with it."""
        if self.rival is not None:
            native, owner = self.rival
            self.rival = None
            if number & 3:
                return self.rival_handles(native, owner)
            native.parcel.returns += 1
            self.broker.ready.insert(0, native.parcel)
            self.note("a rival dies with", native)
        elif self.broker.ready:
            parcel = self.broker.ready.pop(0)
            self.rival_takes(
                Native(Channel(0), 0, "rival", parcel, 0.0), f"rival{self.moment()}"
            )

    def rival_takes(self, native: Native, owner: str) -> None:
        """Let the rival judge a message."""
        parcel = native.parcel
        status = (
            None
            if parcel.kind in ("forged", "stale")
            else self.store.rival(native, owner, LEASE)
        )
        self.note(f"a rival takes ({status})", native)
        if status is ClaimStatus.FRESH:
            self.rival = native, owner
        elif status is ClaimStatus.HELD:
            self.broker.ready.append(parcel)
        else:
            parcel.acked = True
            parcel.letters += status is not ClaimStatus.DUPLICATE

    def rival_handles(self, native: Native, owner: str) -> None:
        """Let the rival handle what it claimed."""
        claim = self.store.entries.get(native.id)
        self.note("a rival handles", native)
        native.parcel.acked = True
        if native.parcel.kind in ("fails", "rejects"):
            native.parcel.letters += 1
            if claim is not None and claim.owner == owner:
                del self.store.entries[native.id]
            return
        self.completed(native, by="rival")
        if claim is not None and claim.owner == owner:
            claim.owner = None

    # Handlers

    def handler(self, native: Any) -> Answer:
        """Begin to handle a message."""
        self.begins(native)
        return Answer(lambda: self.handles(native), "handler", about=native)

    def handles(self, native: Native) -> None:
        """End a handler as its message's kind says."""
        parcel = native.parcel
        error = self.misbehaviour(self.contents[parcel.content][0])
        if error is None:
            return self.completed(native, by="us")
        self.note(f"its handler raises {type(error).__name__}", native)
        if not isinstance(error, RetryLater):
            self.failed(native, error)
            native.goes_on = isinstance(error, ValueError)
            self.rejected(native)
        raise error

    def misbehaviour(self, parcel: Parcel) -> BaseException | None:
        """Return the exception that a handler raises, or ``None``."""
        if parcel.kind == "fails":
            return ValueError("always")
        if parcel.kind == "rejects":
            return RejectNow("never")
        if (
            parcel.misbehaves <= 0
            or self.healed
            or parcel.kind not in ("later", "flaky", "aborts")
        ):
            return None
        parcel.misbehaves -= 1
        kinds = {
            "later": RetryLater("later"),
            "flaky": ValueError("once"),
            "aborts": Abort(),
        }
        return kinds[parcel.kind]
