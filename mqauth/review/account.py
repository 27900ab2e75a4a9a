"""Does it add up: everything rejected is open, redriven or discarded, by the audit and the queue itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

LISTED: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """Dead letters by their id; ``difference`` is 0 where everything adds up.

    Args:
        rejected: ids the audit says were dead-lettered.
        open: of these, in the queue.
        redriven, discarded: of these, no longer in the queue, by the last act on record.
        missing: of these, nowhere.
        unknown: in the queue without a record of their rejection.
        unproven: open or discarded ids that only an unsound letter names: a forgery may stand in its place.
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
        """Letters that do not add up."""
        return len(self.missing) + len(self.unknown)

    def as_dict(self) -> dict[str, Any]:
        """Return the ledger as JSON values; long lists are cut at 100, their counts are not."""
        lists = {"missing": self.missing, "unknown": self.unknown, "unproven": self.unproven}
        return {
            "rejected": self.rejected, "open": self.open, "redriven": self.redriven,
            "discarded": self.discarded, "difference": self.difference,
            **{name: {"count": len(found), "ids": list(found[:LISTED])} for name, found in lists.items()},
        }  # fmt: skip


def account(records: Iterable[Mapping[str, Any]], waiting: Iterable[tuple[str, bool]]) -> Ledger:
    """Hold the audit against the queue.

    Args:
        records: audit records, of the consumers and of the reviewers.
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
            acts[letter] = (verdict, _sound(record))
    here = dict(waiting)
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


def _sound(record: Mapping[str, Any]) -> bool:
    """Tell whether an act was on a letter that proved to be the one it names."""
    review = record.get("review")
    return isinstance(review, Mapping) and review.get("sound") is True
