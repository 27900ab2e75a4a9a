"""The handlers of the queue engine's simulation: ours, and those of a rival consumer of the same queue."""

from __future__ import annotations

from typing import Any

from mqauth.errors import RejectNow, RetryLater
from mqauth.replay.rules import ClaimStatus
from tests.simulation.log_facilities import Abort
from tests.simulation.queue_facilities import Answer
from tests.simulation.queue_invariants import LEASE, QueueInvariants
from tests.simulation.queue_model import Channel, Native, Parcel

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
            self.rival_takes(Native(Channel(0), 0, "rival", parcel, 0.0), f"rival{self.moment()}")

    def rival_takes(self, native: Native, owner: str) -> None:
        """Let the rival judge a message."""
        parcel = native.parcel
        status = None if parcel.kind in ("forged", "stale") else self.store.rival(native, owner, LEASE)
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
        if parcel.misbehaves <= 0 or self.healed or parcel.kind not in ("later", "flaky", "aborts"):
            return None
        parcel.misbehaves -= 1
        kinds = {"later": RetryLater("later"), "flaky": ValueError("once"), "aborts": Abort()}
        return kinds[parcel.kind]
