"""An act that a reviewer wants: what, on which letters, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mqauth.errors import Reason, require
from mqauth.letters.release import WAIVABLE
from mqauth.review.index import ALL, Filter
from mqauth.wire import claims as claim_set

REDRIVE: Final = "redrive"
DISCARD: Final = "discard"
ACTS: Final = (REDRIVE, DISCARD)


def waivable(names: Iterable[str]) -> frozenset[Reason]:
    """Return the reasons that a release may waive, by their names.

    Raises:
        ConfigurationError: no release may waive one of them, or there is no such reason.
    """
    wanted = frozenset(names)
    require(wanted <= set(WAIVABLE), f"a release may waive {', '.join(WAIVABLE)}")
    return frozenset(map(Reason, wanted))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """An act that a reviewer wants, before it is rehearsed and confirmed.

    Args:
        act: ``redrive`` or ``discard``.
        wanted: which letters.
        reason: why, one line; it stands in releases and in the audit.
        waive: reasons that a release may waive where a letter needs it.
        scope: consumer group or queue of the releases; by default each letter's own.
        rate: letters a second at most; ``None`` for no limit.
        reviewer: who acts.

    Raises:
        ConfigurationError: an unknown act, no reason, something that no release may waive, a rate of 0, or no name
            of a reviewer.
    """

    act: str
    wanted: Filter = ALL
    reason: str
    waive: frozenset[Reason] = frozenset()
    scope: str | None = None
    rate: float | None = None
    reviewer: str

    def __post_init__(self) -> None:
        # Whatever is no discard would be carried out as a redrive.
        require(self.act in ACTS, f"an act must be {' or '.join(ACTS)}")
        require(
            claim_set.is_name(self.reason) and self.reason.strip(),
            f"a reason is required: one line of 1 to {claim_set.MAX_NAME} characters",
        )
        waivable(self.waive)
        require(self.rate is None or self.rate > 0, "rate must be above 0 letters a second")
        require(
            claim_set.is_name(self.reviewer), f"a reviewer must be text of 1 to {claim_set.MAX_NAME} characters"
        )
