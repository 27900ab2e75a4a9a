"""What an act on dead letters is given: plan, terms, pace and reviewer; and the account that it returns."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from mqauth.audit.record import AuditSink
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness
from mqauth.errors import ConfigurationError, Reason
from mqauth.letters.authorities import Releaser
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
    if not wanted <= set(WAIVABLE):
        raise ConfigurationError(f"a release may waive {', '.join(WAIVABLE)}")
    return frozenset(map(Reason, wanted))


def check_reason(reason: str) -> None:
    """Refuse an act without a reason.

    Raises:
        ConfigurationError: the reason is not one line of text.
    """
    if not claim_set.is_name(reason) or not reason.strip():
        raise ConfigurationError(f"a reason is required: one line of 1 to {claim_set.MAX_NAME} characters")


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
        ConfigurationError: no reason, or something that no release may waive.
    """

    act: str
    wanted: Filter = ALL
    reason: str
    waive: frozenset[Reason] = frozenset()
    scope: str | None = None
    rate: float | None = None
    reviewer: str

    def __post_init__(self) -> None:
        check_reason(self.reason)
        waivable(self.waive)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """The terms on which letters are released.

    Args:
        releaser: signs with the reviewer's key.
        reason: why, one line; it stands in the release and in the audit.
        waive: reasons that may be waived where a letter needs it.
        scope: consumer group or queue; by default the pipeline's scope, or the one that each letter names.

    Raises:
        ConfigurationError: no reason, or something that no release may waive.
    """

    releaser: Releaser
    reason: str
    waive: frozenset[Reason] = frozenset()
    scope: str | None = None

    def __post_init__(self) -> None:
        check_reason(self.reason)
        waivable(self.waive)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewer:
    """Who acts, and where the acts are recorded.

    Args:
        name: stands in every audit record.
        audit: a durable sink; no letter is removed without a record.

    Raises:
        ConfigurationError: the name is empty or too long.
    """

    name: str
    audit: AuditSink
    clock: Clock = SYSTEM_CLOCK
    randomness: Randomness = SYSTEM_RANDOMNESS

    def __post_init__(self) -> None:
        if not claim_set.is_name(self.name):
            raise ConfigurationError(f"a reviewer is text of 1 to {claim_set.MAX_NAME} characters")


@dataclass(slots=True, kw_only=True)
class Pace:
    """The rate of an act, a callback for its progress, and a way to stop it.

    Args:
        rate: letters a second at most; ``None`` for no limit.
        progress: called with the account after each letter.
        cancelled: set from any thread, it stops the act before the next letter.
    """

    rate: float | None = None
    progress: Callable[[Account], None] = lambda account: None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if self.rate is not None and not self.rate > 0:
            raise ConfigurationError("rate is above 0 letters a second")


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
