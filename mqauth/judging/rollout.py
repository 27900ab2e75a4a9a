"""The ladder of a rollout: on which rung a destination stands, and what may stay unsigned for now.

``off``, ``observe``, ``enforce-new``, ``enforce``: what is not listed stands at the last one. The rung of a
message follows from the configuration and from what the broker says of its delivery, never from anything that its
sender wrote. It does not change in a running process. Where it cannot be told it is ``enforce``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from enum import IntEnum
from typing import Any, Final

from mqauth.errors import Cause, Unavailable, require
from mqauth.judging.accept_as import AcceptAs
from mqauth.judging.policy import check_pattern, matches
from mqauth.logs import emit
from mqauth.wire.memo import Memo
from mqauth.wire.message import TOKEN_HEADER, Message, fold

WEEK: Final = 7 * 86_400.0
EVERYWHERE: Final = "*"
Evidence = Callable[[Message], float | None]


class Rung(IntEnum):
    """A rung of the ladder; the metric ``mqauth.rollout.rung`` has its number."""

    OFF = 0
    OBSERVE = 1
    ENFORCE_NEW = 2
    ENFORCE = 3

    @property
    def label(self) -> str:
        """The rung as configuration, records and letters spell it."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def of(cls, label: str) -> Rung:
        """Return the rung of a label."""
        return cls[label.upper().replace("-", "_")]


@dataclass(frozen=True, slots=True, kw_only=True)
class LogMark:
    """How far a topic had been written when it went up to ``enforce-new``.

    Args:
        topic_id: of the topic; of another one the mark says nothing.
        offsets: the end offset of each partition; one that is not listed is new.
    """

    topic_id: str
    offsets: Mapping[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutEntry:
    """One rung for some destinations.

    Args:
        destinations: patterns as in ``Rule``; ``*`` alone stands for every destination.
        rung: where they stand.
        since, until: from which day on, and by which day it is to end.
        owner: whom to ask.
        window: seconds over which the report looks back.
        mark: for ``enforce-new``, where the new messages begin: UTC seconds, or offsets.
    """

    destinations: tuple[str, ...]
    rung: Rung
    since: date
    until: date
    owner: str
    window: float
    mark: float | LogMark | None = None

    def __post_init__(self) -> None:
        for pattern in self.destinations:
            if pattern != EVERYWHERE:
                check_pattern(pattern)
        require(self.destinations, "a rollout names its destinations")
        require(
            (self.rung is Rung.ENFORCE_NEW) == (self.mark is not None),
            "enforce-new has a mark, and no other rung has one",
        )

    def holds(self, destination: str) -> bool:
        """Return whether a destination is one of these."""
        return self.pattern(destination) is not None

    def pattern(self, destination: str) -> str | None:
        """Return the first of its patterns that a destination fits."""
        return next(
            (
                each
                for each in self.destinations
                if each in (EVERYWHERE, destination) or matches(each, destination)
            ),
            None,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Exemption:
    """Messages that may lack a token for now, at ``enforce`` too.

    Args:
        destination: a pattern as in ``Rule``.
        until: by which day it is to end.
        why: why it is there.
        kinds: of the property ``type``; empty for all messages of the destination.
    """

    destination: str
    until: date
    why: str
    kinds: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        check_pattern(self.destination)
        require(EVERYWHERE not in self.kinds, "a kind is the name of a type, no wildcard")

    def holds(self, message: Message) -> bool:
        """Return whether a message is one of these; whether it has a token is not asked here."""
        kind = message.text_property("type") if self.kinds else None
        return matches(self.destination, message.destination) and (not self.kinds or kind in self.kinds)


class Rollout:
    """Which rung each destination stands on, and which messages are exempt.

    Args:
        entries: the first whose destinations hold decides.
        exemptions: what may lack a token.
    """

    def __init__(self, entries: Iterable[RolloutEntry] = (), exemptions: Iterable[Exemption] = ()) -> None:
        self.entries = tuple(entries)
        self.exemptions = tuple(exemptions)
        self._found = Memo[str, RolloutEntry | None](self._find)
        self._void: set[tuple[str, str | None]] = set()
        self._lock = threading.Lock()

    @property
    def below(self) -> tuple[RolloutEntry, ...]:
        """The entries below ``enforce``."""
        return tuple(entry for entry in self.entries if entry.rung < Rung.ENFORCE)

    def __bool__(self) -> bool:
        return bool(self.below or self.exemptions)

    def entry(self, destination: str) -> RolloutEntry | None:
        """Return the entry of a destination; ``None`` where it is not listed."""
        return self._found[destination]

    def rung(self, message: Message, evidence: Evidence) -> Rung:
        """Return how a message is judged: ``OFF``, ``OBSERVE`` or ``ENFORCE``.

        Args:
            message: as the broker delivered it.
            evidence: returns when the broker appended it, UTC seconds, ``None`` where it gives no proof.

        Raises:
            Unavailable: ``append_time_unavailable``: its destination has a mark that is a time, and it has no
                stamp.
        """
        entry = self._found[message.destination]
        if entry is None or entry.rung is Rung.ENFORCE:
            return Rung.ENFORCE
        if entry.mark is None:
            return entry.rung
        if isinstance(entry.mark, LogMark):
            before = self._is_before(entry.mark, message)
        else:
            appended = evidence(message)
            if appended is None:
                raise Unavailable(
                    Cause.APPEND_TIME_UNAVAILABLE, "the mark is a time, and the message has no stamp"
                )
            before = appended < entry.mark
        return Rung.OBSERVE if before else Rung.ENFORCE

    def is_lenient(self, message: Message, evidence: Evidence) -> bool:
        """Return whether a message is judged below ``enforce``: nothing of ours keeps it from a handler."""
        try:
            return self.rung(message, evidence) < Rung.ENFORCE
        except Unavailable:
            return False

    def exemption(self, message: Message) -> Exemption | None:
        """Return what exempts a message; ``None`` where nothing does, or it has a token in whatever spelling."""
        for exemption in self.exemptions:
            if exemption.holds(message):
                return None if any(fold(name) == TOKEN_HEADER for name, _ in message.headers) else exemption
        return None

    def admits(self, message: Message) -> bool:
        """Return whether a message that is published now may reach a handler without a proof of who sent it."""
        entry = self._found[message.destination]
        # At enforce-new what is published now comes after the mark.
        return (entry is not None and entry.rung < Rung.ENFORCE_NEW) or self.exemption(message) is not None

    def _is_before(self, mark: LogMark, message: Message) -> bool:
        origin = message.origin
        if origin.topic_id != mark.topic_id or origin.partition is None or origin.offset is None:
            self._tell_void(message)
            return False
        return origin.offset < mark.offsets.get(origin.partition, 0)

    def _tell_void(self, message: Message) -> None:
        with self._lock:
            told = (message.destination, message.origin.topic_id)
            if told in self._void or len(self._void) > 100:
                return
            self._void.add(told)
        emit(
            "rollout.mark_void",
            "%s: the mark is void, for the topic's id is another one; it is judged as enforce",
            message.destination,
        )

    def _find(self, destination: str) -> RolloutEntry | None:
        return next((entry for entry in self.entries if entry.holds(destination)), None)


def is_lenient(delivery: Any) -> bool:
    """Return whether a delivery was judged below ``enforce``, so that nothing of ours is waited for."""
    return delivery.rung is not None and delivery.rung < Rung.ENFORCE


def destinations_of(rollout: Rollout) -> str:
    """Return the destinations whose messages may be unverified, for people."""
    places = [place for entry in rollout.below for place in entry.destinations]
    return ", ".join([*places, *(exemption.destination for exemption in rollout.exemptions)])


def kinds_of(rollout: Rollout) -> frozenset[str]:
    """Return the keys that a table of handlers needs: the kinds of exemptions, and ``*`` for what has none."""
    kinds = frozenset[str]().union(*(exemption.kinds for exemption in rollout.exemptions))
    rest = rollout.below or any(not exemption.kinds for exemption in rollout.exemptions)
    return kinds | {EVERYWHERE} if rest else kinds


def as_facts(rollout: Rollout, aliases: Iterable[AcceptAs] = ()) -> dict[str, Any]:
    """Return the rollout and the aliases of its consumer as JSON values, for the audit record ``rollout``."""
    return {
        "rungs": [
            {
                "destinations": list(entry.destinations), "rung": entry.rung.label, "owner": entry.owner,
                "since": entry.since.isoformat(), "until": entry.until.isoformat(),
                "mark": _mark_facts(entry.mark),
            }
            for entry in rollout.entries
        ],
        "exempt": [
            {
                "destination": found.destination, "kinds": sorted(found.kinds), "until": found.until.isoformat(),
                "why": found.why,
            }
            for found in rollout.exemptions
        ],
        "accept_as": [{"at": alias.at, "signed_for": list(alias.signed_for)} for alias in aliases],
    }  # fmt: skip


def _mark_facts(mark: float | LogMark | None) -> Any:
    if isinstance(mark, LogMark):
        return {"topic_id": mark.topic_id, **{str(place): end for place, end in sorted(mark.offsets.items())}}
    return mark
