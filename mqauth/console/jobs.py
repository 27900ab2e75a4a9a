"""The jobs of the console: what each kind is called, how far one is, and how it ended."""

from __future__ import annotations

import secrets
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from mqauth.review import DISCARD, REDRIVE, Plan, Selection
from mqauth.review.glossary import LABELS

READ: Final = "read"
JUDGE: Final = "judge"
REHEARSE: Final = "rehearse"
ACCOUNT: Final = "account"
FOR_ALL: Final = frozenset((READ, ACCOUNT))
"""The kinds that viewers may start."""
TITLES: Final = {
    READ: "Reading dead letters",
    JUDGE: LABELS["check"],
    REHEARSE: LABELS["preview"],
    ACCOUNT: LABELS["balance"],
    REDRIVE: LABELS["redrive"],
    DISCARD: LABELS["discard"],
}
"""The kinds of jobs, as pages name them."""


@dataclass(slots=True, kw_only=True)
class Job:
    """A long piece of work on the letters: how far it is, and how it ended.

    Args:
        kind: what is done, one of ``TITLES``.
        by: who started it.
        plan: of a rehearsal or an act.
        total: letters to be looked at, 0 while that is unknown.
        seen: letters looked at so far.
        counts: verdicts, of judging and rehearsing.
        selection: letters that a rehearsal froze for the act.
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
    def cancellable(self) -> bool:
        """Whether it can still be stopped."""
        return self.running and not self.cancelled.is_set()

    @property
    def cut_short(self) -> bool:
        """Whether it was stopped before it had seen all letters."""
        return self.cancelled.is_set() and self.seen < self.total

    @property
    def confirmable(self) -> bool:
        """Whether it is a rehearsal that found something to do."""
        done = not self.running and self.error is None and not self.cancelled.is_set()
        return done and self.kind == REHEARSE and self.counts["accepted"] > 0

    def saw(self, count: int) -> None:
        """Note how many letters were looked at."""
        self.seen = count

    def as_dict(self) -> dict[str, Any]:
        """Return the progress as JSON values."""
        return {
            "id": self.id,
            "kind": self.kind,
            "running": self.running,
            "seen": self.seen,
            "total": self.total,
            "acted": self.account is not None,
            "cancelling": self.running and self.cancelled.is_set(),
        }
