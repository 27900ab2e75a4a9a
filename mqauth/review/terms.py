"""On what terms acts on dead letters run, and the account they end with."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from mqauth.audit.record import AuditSink
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS, Clock, Randomness
from mqauth.errors import ConfigurationError, Reason
from mqauth.letters.authorities import Releaser
from mqauth.letters.release import WAIVABLE
from mqauth.wire import claims as claim_set


@dataclass(slots=True, kw_only=True)
class Account:
    """What became of a selection: ``selected`` is always the sum of the other counts.

    Args:
        selected: letters in the frozen selection.
        done: acted on and removed.
        refused: by reason, left where they are.
        failed: the broker or the audit failed on it; it is left, or acted on again, and ends the run.
        gone: in the selection but no longer in the queue.
        left: not looked at: cancelled, or after a failure.
        error: what failed, one line.
        cancelled: whether the run was.
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
        """Letters not looked at."""
        return self.selected - self.done - self.refused.total() - self.failed - self.gone

    def as_dict(self) -> dict[str, Any]:
        """Return the account as JSON values."""
        return {
            "selected": self.selected, "done": self.done, "refused": dict(self.refused), "failed": self.failed,
            "gone": self.gone, "left": self.left, "error": self.error, "cancelled": self.cancelled,
        }  # fmt: skip


@dataclass(slots=True, kw_only=True)
class Pace:
    """How a run goes: its rate, who watches, and whether to stop.

    Args:
        rate: letters a second at most; ``None`` as fast as it goes.
        progress: called with the account after each letter.
        cancelled: set, from any thread, to stop before the next letter.
    """

    rate: float | None = None
    progress: Callable[[Account], None] = lambda account: None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        if self.rate is not None and not self.rate > 0:
            raise ConfigurationError("rate is above 0 letters a second")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reviewer:
    """Who acts, and where it is recorded.

    Args:
        name: in every audit record.
        audit: durable; no letter is removed without a record.
    """

    name: str
    audit: AuditSink
    clock: Clock = SYSTEM_CLOCK
    randomness: Randomness = SYSTEM_RANDOMNESS

    def __post_init__(self) -> None:
        if not claim_set.is_name(self.name):
            raise ConfigurationError(f"a reviewer is text of 1 to {claim_set.MAX_NAME} characters")


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms letters are released.

    Args:
        releaser: the reviewer's.
        reason: why, one line; stands in the release and in the audit.
        waive: what may be waived where it is needed.
        scope: for whom; by default the pipeline's scope, or the one each letter names.

    Raises:
        ConfigurationError: no reason, or something that cannot be waived.
    """

    releaser: Releaser
    reason: str
    waive: frozenset[Reason] = field(default_factory=frozenset)
    scope: str | None = None

    def __post_init__(self) -> None:
        check_reason(self.reason)
        if not self.waive <= set(WAIVABLE):
            raise ConfigurationError(f"a release may waive {', '.join(WAIVABLE)}")


def check_reason(reason: str) -> None:
    """Refuse an act without a reason.

    Raises:
        ConfigurationError: it is not one line of text.
    """
    if not claim_set.is_name(reason) or not reason.strip():
        raise ConfigurationError(f"a reason is required: one line of 1 to {claim_set.MAX_NAME} characters")
