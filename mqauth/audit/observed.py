"""What was seen below ``enforce``, counted in bounded memory: how much would be refused, why, and from whom.

At first *every* message of a destination is unsigned, and whoever publishes chooses what it says of itself. So
messages have no records of their own: they are counted by group, in at most ``CAPACITY`` groups, and in ``other``
where there is no room for another group. No count is lost: groups and ``other`` add up to all that was seen.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from mqauth.audit.record import iso_time
from mqauth.errors import Reason
from mqauth.logs import harmless
from mqauth.wire import strict_json

CAPACITY: Final = 1000
"""Groups at most."""
MAX_BYTES: Final = 44 * 1024
"""Bytes of all groups of a record; smaller groups that have no room count as ``other``."""
SIGNED_BYTES: Final = 16 * 1024
"""Bytes of all producers that signed; those that have no room come in the next record."""
FIRST: Final = 3
"""Messages of a group that are recorded with their coordinates, each hour."""
MOST: Final = 100
"""Such records a minute."""
HOUR: Final = 3600.0
MINUTE: Final = 60.0


_NAMES: Final = ("accepted", "unsigned", "lost")


class Group(NamedTuple):
    """What messages that would be refused have in common; all but ``user`` is what a sender says.

    Args:
        code: the reason or cause, or ``duplicate``.
        destination: where the broker delivered it.
        app: the property ``app-id``.
        user: the AMQP user, which the broker has validated.
        subject: claimed by the token.
        kid: claimed by the token.
        partition: on Kafka.
    """

    code: str
    destination: str
    app: str | None = None
    user: str | None = None
    subject: str | None = None
    kid: str | None = None
    partition: int | None = None

    @property
    def id(self) -> str:
        """A short name for what people accept; it is the same for all partitions."""
        return hashlib.sha256(strict_json.dumps(list(self[:-1]))).hexdigest()[:12]


@dataclass(slots=True)
class _Count:
    number: int
    first: float
    last: float


@dataclass
class Observed:
    """Counts since the last record; safe to share between threads."""

    groups: dict[Group, _Count] = field(default_factory=dict)
    accepted: Counter[str] = field(default_factory=Counter)
    unsigned: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    signed: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    oldest: dict[str, float] = field(default_factory=dict)
    other: int = 0

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._shown: dict[Group, int] = {}
        self._hour = self._minute = float("-inf")
        self._in_minute = 0

    def would(self, pattern: str, group: Group, now: float) -> bool:
        """Count a message that would be refused; return whether it is one of the few to be recorded.

        Args:
            pattern: of its destination.
            group: of the message.
            now: UTC seconds.
        """
        with self._lock:
            self.unsigned[pattern] += group.code == Reason.TOKEN_MISSING
            counted = self.groups.get(group)
            if counted is not None:
                counted.number, counted.last = counted.number + 1, now
            elif len(self.groups) < CAPACITY:
                self.groups[group] = _Count(1, now, now)
            else:
                self.other += 1
            # The first messages of a group are shown each hour, and not more than a few of all each minute.
            if not self._hour <= now < self._hour + HOUR:
                self._hour = now
                self._shown.clear()
            if not self._minute <= now < self._minute + MINUTE:
                self._minute, self._in_minute = now, 0
            shown = self._shown.get(group, 0)
            if shown >= FIRST or self._in_minute >= MOST or (not shown and len(self._shown) >= CAPACITY):
                return False
            self._shown[group] = shown + 1
            self._in_minute += 1
            return True

    def accept(self, pattern: str, issuer: str, subject: str) -> None:
        """Count a verified message of the destinations of a pattern, and who signed it."""
        with self._lock:
            self.accepted[pattern] += 1
            producer = (pattern, issuer, subject)
            # Rules name them, but a policy of one's own may admit any number.
            if producer in self.signed or len(self.signed) < CAPACITY:
                self.signed[producer] += 1

    def appended(self, pattern: str, at: float) -> None:
        """Note when a message of the destinations of a pattern was appended, UTC seconds; the oldest counts."""
        with self._lock:
            self.oldest[pattern] = min(at, self.oldest.get(pattern, at))

    def lose(self, cause: str) -> None:
        """Count what was not waited for."""
        with self._lock:
            self.lost[cause] += 1

    def take(self) -> dict[str, Any]:
        """Return what was counted as JSON values of at most 64 KiB, and begin anew."""
        with self._lock:
            groups, other = self.groups, self.other
            counts = {name: dict(getattr(self, name)) for name in _NAMES}
            self.groups, self.other = {}, 0
            for name in _NAMES:
                setattr(self, name, Counter())
            # As many producers as have room in a record; the others come in the next one.
            counts["signed"] = signed = dict[str, dict[str, dict[str, int]]]()
            room = SIGNED_BYTES
            for producer, number in list(self.signed.items()):
                room -= sum(len(strict_json.dumps(text)) for text in producer) + 16
                if room < 0:
                    break
                pattern, issuer, subject = producer
                signed.setdefault(pattern, {}).setdefault(issuer, {})[subject] = number
                del self.signed[producer]
            counts["oldest"] = {pattern: iso_time(at) for pattern, at in self.oldest.items()}
            self.oldest = {}
        shown, room = [], MAX_BYTES
        for group, counted in sorted(groups.items(), key=lambda item: -item[1].number):
            shown_group = {
                name: harmless(value) if isinstance(value, str) else value
                for name, value in group._asdict().items()
                if value is not None
            }
            times = {"count": counted.number, "first": iso_time(counted.first), "last": iso_time(counted.last)}
            facts = {"id": group.id, **shown_group, **times}
            room -= len(strict_json.dumps(facts))
            if room > 0:
                shown.append(facts)
            else:
                other += counted.number
        return {**counts, "groups": shown, "other": other}


def group_of(facts: Mapping[str, Any]) -> Group:
    """Return the group of a record's member; what is no text is left out, since a log may hold anything."""
    texts = {name: facts.get(name) for name in Group._fields if name != "partition"}
    partition = facts.get("partition")
    known = {name: value for name, value in texts.items() if isinstance(value, str)}
    known = {"code": "", "destination": ""} | known
    return Group(**known, partition=partition if type(partition) is int else None)
