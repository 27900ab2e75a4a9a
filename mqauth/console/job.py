"""One long piece of work on the letters: what it is, how far it is, how it ended."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from mqauth.review import Filter, Selection

READING: Final = "read"
JUDGING: Final = "judge"
REHEARSING: Final = "rehearse"
ACCOUNTING: Final = "account"
REDRIVE: Final = "redrive"
DISCARD: Final = "discard"
ACTS: Final = (REDRIVE, DISCARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a reviewer wants done, before it is confirmed.

    Args:
        act: ``redrive`` or ``discard``.
        wanted: which letters, to be frozen.
        reason: why, one line.
        waive: reasons a release may waive.
        rate: letters a second at most.
        reviewer: who planned it; nobody else can run it.
    """

    act: str
    wanted: Filter
    reason: str
    waive: frozenset[str] = frozenset()
    rate: float | None = None
    reviewer: str


@dataclass(slots=True, kw_only=True)
class Job:
    """One job of the desk; the newest is kept, and it alone.

    Args:
        kind: what is done.
        by: who started it.
        plan: of a rehearsal or an act.
        total: letters to be looked at, 0 while unknown.
        seen: letters looked at.
        counts: verdicts, of judging and rehearsing.
        selection: frozen by the rehearsal, for the act.
        account: of an act, as JSON values.
        error: what failed, one line.
        running: until it has ended.
    """

    kind: str
    by: str
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    plan: Plan | None = None
    total: int = 0
    seen: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    selection: Selection | None = None
    account: dict[str, Any] | None = None
    error: str | None = None
    running: bool = True
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def percent(self) -> int:
        """How far, 0 to 100."""
        if not self.running:
            return 100
        return min(99, self.seen * 100 // self.total) if self.total else 0

    @property
    def cancellable(self) -> bool:
        """Whether it can be stopped halfway; an act then has an exact account."""
        return self.running and not self.cancelled.is_set()

    @property
    def short(self) -> bool:
        """Whether it was stopped before it had seen all letters."""
        return self.cancelled.is_set() and self.seen < self.total

    def begin_anew(self) -> None:
        """Count from nothing, and forget that it was cancelled."""
        self.seen = self.total = 0
        self.cancelled = threading.Event()

    @property
    def confirmable(self) -> bool:
        """Whether it is a rehearsal that found something to do."""
        done = not self.running and self.error is None and not self.cancelled.is_set()
        return done and self.kind == REHEARSING and self.counts["accepted"] > 0

    def as_dict(self) -> dict[str, Any]:
        """Return the progress as JSON values."""
        return {
            "id": self.id, "kind": self.kind, "running": self.running, "seen": self.seen, "total": self.total,
            "percent": self.percent, "acted": self.account is not None,
            "cancelling": self.running and self.cancelled.is_set(),
        }  # fmt: skip
