"""Counts of dead letters: the account of one act, and the ledger of all that were ever rejected."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

LISTED: Final = 100


@dataclass(slots=True, kw_only=True)
class Account:
    """What became of the letters of a selection; ``selected`` is always the sum of the other counts.

    Args:
        selected: letters in the frozen selection.
        done: acted on and removed.
        refused: left where they are, by reason.
        failed: the broker or the audit failed on it, which ends the act; it is left, or acted on again.
        gone: in the selection but no longer in the queue.
        error: what failed, one line.
        cancelled: whether the act was cancelled.
    """

    selected: int
    done: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    gone: int = 0
    error: str | None = None
    cancelled: bool = False

    @property
    def left(self) -> int:
        """Letters that were not looked at: the act was cancelled, or failed on an earlier one."""
        return self.selected - self.done - self.refused.total() - self.failed - self.gone

    def as_dict(self) -> dict[str, Any]:
        """Return the account as JSON values."""
        return {
            "selected": self.selected, "done": self.done, "refused": dict(self.refused), "failed": self.failed,
            "gone": self.gone, "left": self.left, "error": self.error, "cancelled": self.cancelled,
        }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Dead letters counted by their ids: by audit files and queue, each is open, redriven or discarded.

    Everything adds up where ``difference`` is 0.

    Args:
        rejected: ids that the audit says were dead-lettered.
        open: of these, in the queue.
        redriven, discarded: of these, no longer in the queue, by the last act on record.
        missing: of these, neither in the queue nor on record as acted on.
        unknown: in the queue without a record of their rejection.
        unproven: open or discarded ids named only by letters that are not sound: they may be forged.
    """

    rejected: int
    open: int
    redriven: int
    discarded: int
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    unproven: tuple[str, ...]

    @property
    def difference(self) -> int:
        """How many letters do not add up."""
        return len(self.missing) + len(self.unknown)

    def as_dict(self) -> dict[str, Any]:
        """Return the ledger as JSON values; of long lists the first 100 ids, with the full count."""
        lists = {"missing": self.missing, "unknown": self.unknown, "unproven": self.unproven}
        return {
            "rejected": self.rejected, "open": self.open, "redriven": self.redriven,
            "discarded": self.discarded, "difference": self.difference,
            **{name: {"count": len(found), "ids": list(found[:LISTED])} for name, found in lists.items()},
        }  # fmt: skip


def account(records: Iterable[Mapping[str, Any]], waiting: Iterable[tuple[str, bool]]) -> Ledger:
    """Compare audit records with the letters in the queue.

    Args:
        records: audit records of the consumers and the reviewers.
        waiting: ids in the queue, and whether one of their letters is sound (``Index.ids``).
    """
    rejected: set[str] = set()
    acts: dict[str, tuple[str, bool]] = {}
    for record in records:
        letter, verdict = record.get("dead_letter"), record.get("verdict")
        if not isinstance(letter, str):
            continue
        if verdict == "rejected":
            rejected.add(letter)
        elif verdict in ("redriven", "discarded"):
            review = record.get("review")
            acts[letter] = (verdict, isinstance(review, Mapping) and review.get("sound") is True)
    here = dict(waiting)
    # A letter still in the queue is open whatever the audit says: an act recorded before a crash may not have
    # removed it.
    resolved = {letter: act for letter, act in acts.items() if letter in rejected and letter not in here}
    unproven = [letter for letter, sound in here.items() if letter in rejected and not sound]
    unproven += [letter for letter, (_, sound) in resolved.items() if not sound]
    return Ledger(
        rejected=len(rejected),
        open=sum(1 for letter in here if letter in rejected),
        redriven=sum(1 for act, _ in resolved.values() if act == "redriven"),
        discarded=sum(1 for act, _ in resolved.values() if act == "discarded"),
        missing=tuple(sorted(rejected - here.keys() - resolved.keys())),
        unknown=tuple(sorted(here.keys() - rejected)),
        unproven=tuple(sorted(unproven)),
    )
