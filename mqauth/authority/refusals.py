"""Why an authority gives no identity: a closed list for the audit, and the few codes that whoever asked gets.

``Rate`` says how many of one kind there may be in a minute.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, NamedTuple

from mqauth.clock import Clock


class Refusal(StrEnum):
    """Why a request was refused; the strings stand in audit records."""

    REQUEST_MALFORMED = "request_malformed"
    SUBJECT_AMBIGUOUS = "subject_ambiguous"
    DPOP_INVALID = "dpop_invalid"
    CREDENTIAL_MALFORMED = "credential_malformed"
    CREDENTIAL_ISSUER = "credential_issuer"
    CREDENTIAL_KEY = "credential_key"
    CREDENTIAL_SIGNATURE = "credential_signature"
    CREDENTIAL_AUDIENCE = "credential_audience"
    CREDENTIAL_TIME = "credential_time"
    CREDENTIAL_SUBJECT = "credential_subject"
    CREDENTIAL_BINDING = "credential_binding"
    GRANT_MISSING = "grant_missing"
    SUBJECT_CUT_OFF = "subject_cut_off"
    RATE_EXCEEDED = "rate_exceeded"


class Answer(NamedTuple):
    """What is answered: a status of HTTP and, unless that is 200, ``error`` (RFC 6749, section 5.2)."""

    status: int
    error: str


ISSUED: Final = Answer(200, "issued")
UNAVAILABLE: Final = Answer(503, "temporarily_unavailable")
SLOW_DOWN: Final = Answer(429, "slow_down")
_ANSWERS: Final[Mapping[Refusal, Answer]] = {
    Refusal.REQUEST_MALFORMED: Answer(400, "invalid_request"),
    Refusal.SUBJECT_AMBIGUOUS: Answer(400, "invalid_request"),
    Refusal.DPOP_INVALID: Answer(400, "invalid_dpop_proof"),
    Refusal.GRANT_MISSING: Answer(403, "access_denied"),
    Refusal.SUBJECT_CUT_OFF: Answer(403, "access_denied"),
    Refusal.RATE_EXCEEDED: SLOW_DOWN,
}


class Refused(Exception):
    """A request is refused.

    Args:
        refusal: why.
        detail: one line for the audit, without a token or key; whoever asked does not get it.
        wait: seconds after which to ask again, 0 where that helps nothing.
    """

    def __init__(self, refusal: Refusal, detail: str, wait: int = 0) -> None:
        super().__init__(f"{refusal.value}: {detail}")
        self.refusal = refusal
        self.detail = detail
        self.wait = wait

    @property
    def answer(self) -> Answer:
        """What whoever asked gets: the same for every fault of a credential."""
        return _ANSWERS.get(self.refusal, Answer(401, "invalid_client"))


def grant_only(condition: object, refusal: Refusal, detail: str, wait: int = 0) -> None:
    """Refuse a request unless a condition holds; the other arguments are those of ``Refused``.

    Raises:
        Refused: it does not hold.
    """
    if not condition:
        raise Refused(refusal, detail, wait)


CAPACITY: Final = 4096
WINDOW: Final = 60.0
"""Seconds."""


class Rate:
    """Counts keys within a minute; beyond the capacity the counter that was used least goes.

    Args:
        limit: how many of one key there may be in a minute; 0 for any number.
        clock: tells the time.
        capacity: counters at most.
    """

    def __init__(self, limit: int, clock: Clock, capacity: int = CAPACITY) -> None:
        self._limit = limit
        self._clock = clock
        self._capacity = capacity
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._ends = -math.inf

    def __len__(self) -> int:
        return len(self._counts)

    def take(self, key: str, more: int = 1) -> int:
        """Count so many more of a key if there may be another now; return the seconds after which there may be.

        Returns:
            0 where there may be one now.
        """
        with self._lock:
            now = self._clock.monotonic()
            if now >= self._ends:
                self._counts.clear()
                self._ends = now + WINDOW
            if 0 < self._limit <= self._counts.get(key, 0):
                return max(1, math.ceil(self._ends - now))
            if more and key not in self._counts and len(self._counts) >= self._capacity:
                del self._counts[min(self._counts, key=self._counts.__getitem__)]
            if more:
                self._counts[key] = self._counts.get(key, 0) + more
            return 0
