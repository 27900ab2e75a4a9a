"""How often a message was dead-lettered and released before: bounded, and believed only from a signed release."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

from mqauth.errors import Reason, Rejection

MAX_HOPS: Final = 8
"""The newest hops that are kept; what came before is only counted."""
MAX_COUNT: Final = 1_000_000
_LETTER = re.compile(r"[0-9a-f]{64}")
_MAX_TIME: Final = 253_402_300_799  # the last second of the year 9999


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One dead letter that was released.

    Args:
        letter: its id, 64 hex digits.
        reason: why the message had been rejected, as the letter said; ``None`` where it did not.
        time: UTC seconds of the release.
    """

    letter: str
    reason: Reason | None
    time: int

    def as_dict(self) -> dict[str, Any]:
        """Return the hop as JSON values."""
        return {"letter": self.letter, "reason": self.reason, "time": self.time}


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """The dead letters of a message so far.

    Args:
        count: how many, 0 to ``MAX_COUNT``.
        hops: the newest of them, at most ``MAX_HOPS``, the newest last.
    """

    count: int = 0
    hops: tuple[Hop, ...] = ()

    def and_then(self, hop: Hop) -> Past:
        """Return the past with one more letter."""
        return Past(count=min(self.count + 1, MAX_COUNT), hops=(*self.hops, hop)[-MAX_HOPS:])

    def as_dict(self) -> dict[str, Any]:
        """Return the past as JSON values."""
        return {"count": self.count, "hops": [hop.as_dict() for hop in self.hops]}


NO_PAST: Final = Past()


def parse(value: Any) -> Past:
    """Return the past that a claim says.

    Raises:
        Rejection: ``release_invalid``, it is not exactly in its form.
    """
    members = _exactly(value, ("count", "hops"))
    count, hops = members["count"], members["hops"]
    if type(count) is not int or type(hops) is not list or len(hops) > MAX_HOPS:
        raise _invalid()
    if not max(1, len(hops)) <= count <= MAX_COUNT:
        raise _invalid()
    return Past(count=count, hops=tuple(_hop(hop) for hop in hops))


def _hop(value: Any) -> Hop:
    """Return one hop."""
    members = _exactly(value, ("letter", "reason", "time"))
    letter, reason, time = members["letter"], members["reason"], members["time"]
    if (
        type(letter) is not str
        or not _LETTER.fullmatch(letter)
        or type(time) is not int
        or not 0 <= time <= _MAX_TIME
    ):
        raise _invalid()
    if reason is not None and (type(reason) is not str or reason not in {known.value for known in Reason}):
        raise _invalid()
    return Hop(letter=letter, reason=None if reason is None else Reason(reason), time=time)


def _exactly(value: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return an object with exactly these members."""
    if type(value) is not dict or value.keys() != set(names):
        raise _invalid()
    return value


def _invalid() -> Rejection:
    """Return the rejection of a past."""
    return Rejection(Reason.RELEASE_INVALID, "past is not in its form")
