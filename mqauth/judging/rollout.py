"""The ladder of a rollout: on which rung a destination stands, and what may stay unsigned for now.

``off``, ``observe``, ``enforce``: what is not listed stands at the last one. The rung of a message is that of its
destination, and does not change in a running process.

Two more entries say something of messages at some destinations, by the configuration alone and never by a header.
``AcceptAs``: they arrive at another destination than they were signed for: mirrors, shovels, moved and retry
queues. One step, no chain: a message that was moved twice needs an alias of where it arrived for where it was
signed. What follows from the destination, policy above all, is of the signed one.

``WithoutEvidence``: the broker will never say when it appended them, and they wait no longer for that. A consumer
with ``at="append"`` defers a message without evidence of its append time: somebody may still set the topic to
LogAppendTime, or the broker's interceptor. But records that were stamped before that keep their stamp for ever. An
operator who has looked at them names them here. They become dead letters (``append_time_missing``), which a
reviewer can release. An entry touches nothing that has evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import date
from enum import IntEnum
from typing import Any, Final

from mqauth.audit.record import iso_time
from mqauth.errors import MalformedMessage, refusing, require
from mqauth.judging.policy import check_pattern, matches
from mqauth.wire import batch, destination, memo
from mqauth.wire.claims import Binding, Claims, is_name
from mqauth.wire.message import TOKEN_HEADER, Message, fold


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptAs:
    """One alias.

    Args:
        at: the destination where messages arrive, exact.
        signed_for: destinations they may be signed for, on the same broker: patterns as of a ``Rule``. For
            messages of a batch, whose token has only a digest of the destination, those without a wildcard count.

    Raises:
        ConfigurationError: a destination is not in its form, or of another broker.
    """

    at: str
    signed_for: tuple[str, ...]

    def __post_init__(self) -> None:
        require(not isinstance(self.signed_for, str), "signed_for is a list")
        with refusing(MalformedMessage, lambda error: f"at {self.at!r}: {error}"):
            destination.parse(self.at)
        for pattern in self.signed_for:
            check_pattern(pattern)
        kind = destination.is_kafka(self.at)
        # The two brokers carry properties in different ways, so that no message keeps its signature across them.
        require(
            all(destination.is_kafka(each) is kind for each in self.signed_for),
            "at and signed_for: one broker",
        )

    @property
    def broad(self) -> tuple[str, ...]:
        """The patterns with ``#``, which takes any number of words."""
        return tuple(
            pattern
            for pattern in self.signed_for
            if "#" in pattern.replace(":", ".").split(".")
        )

    def signed(
        self, message: Message, claims: Claims, proof: batch.Proof | None
    ) -> Message:
        """Return a message as at the destination it was signed for, if that is one of these; else itself."""
        if isinstance(claims.mqa, Binding):
            signed_for = claims.mqa.dst
            fits = any(matches(pattern, signed_for) for pattern in self.signed_for)
            return replace(message, destination=signed_for) if fits else message
        for candidate in self.signed_for:
            if proof is not None and batch.is_for(candidate, proof):
                return replace(message, destination=candidate)
        return message


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutEvidence:
    """Messages at some destinations that can never have evidence of their append time.

    Args:
        destination: where they arrive, a pattern as of a ``Rule``.
        through: of a Kafka topic, the last such offset of each partition, or the time in UTC seconds by which they
            were signed; of a queue, that time.
        why: the operator's reason, which the audit records.

    Raises:
        ConfigurationError: the destination is not in its form, there is no reason, or offsets of a queue.
    """

    destination: str
    through: Mapping[int, int] | float
    why: str

    def __post_init__(self) -> None:
        check_pattern(self.destination)
        require(is_name(self.why), "why is a reason of 1 to 256 characters")
        of_a_queue = isinstance(self.through, Mapping) and not destination.is_kafka(
            self.destination
        )
        require(not of_a_queue, "only a Kafka topic has offsets")

    @property
    def facts(self) -> dict[str, Any]:
        """Itself as JSON values, for the audit record ``rollout``."""
        through = self.through
        if isinstance(through, Mapping):
            shown: Any = {str(partition): offset for partition, offset in through.items()}
        else:
            shown = iso_time(through)
        return {"destination": self.destination, "through": shown, "why": self.why}

    def names(self, message: Message, issued: int) -> bool:
        """Tell whether a message is one of these.

        Args:
            message: as the broker delivered it.
            issued: UTC seconds, ``iat`` of its verified token.
        """
        if not matches(self.destination, message.destination):
            return False
        if isinstance(self.through, Mapping):
            partition, offset = message.origin.partition, message.origin.offset
            last = None if partition is None else self.through.get(partition)
            return last is not None and offset is not None and offset <= last
        return issued <= self.through


WEEK: Final = 7 * 86_400.0
EVERYWHERE: Final = "*"


class Rung(IntEnum):
    """A rung of the ladder; the metric ``mqauth.rollout.rung`` has its number."""

    OFF = 0
    OBSERVE = 1
    ENFORCE = 2

    @property
    def label(self) -> str:
        """The rung as configuration, records and letters spell it."""
        return self.name.lower()

    @classmethod
    def of(cls, label: str) -> Rung:
        """Return the rung of a label."""
        return cls[label.upper()]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutEntry:
    """One rung for some destinations.

    Args:
        destinations: patterns as in ``Rule``; ``*`` alone stands for every destination.
        rung: where they stand.
        since, until: from which day on, and by which day it is to end.
        owner: whom to ask.
        window: seconds over which the report looks back.
    """

    destinations: tuple[str, ...]
    rung: Rung
    since: date
    until: date
    owner: str
    window: float

    def __post_init__(self) -> None:
        for pattern in self.destinations:
            if pattern != EVERYWHERE:
                check_pattern(pattern)
        require(self.destinations, "a rollout names its destinations")

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
        return matches(self.destination, message.destination) and (
            not self.kinds or kind in self.kinds
        )


class Rollout:
    """Which rung each destination stands on, and which messages are exempt.

    Args:
        entries: the first whose destinations hold decides.
        exemptions: what may lack a token.
    """

    def __init__(
        self, entries: Iterable[RolloutEntry] = (), exemptions: Iterable[Exemption] = ()
    ) -> None:
        self.entries = tuple(entries)
        self.exemptions = tuple(exemptions)
        self._found = memo.Memo[str, RolloutEntry | None](self._find)

    @property
    def below(self) -> tuple[RolloutEntry, ...]:
        """The entries below ``enforce``."""
        return tuple(entry for entry in self.entries if entry.rung < Rung.ENFORCE)

    def __bool__(self) -> bool:
        return bool(self.below or self.exemptions)

    def entry(self, destination: str) -> RolloutEntry | None:
        """Return the entry of a destination; ``None`` where it is not listed."""
        return self._found[destination]

    def rung(self, message: Message) -> Rung:
        """Return how a message is judged."""
        entry = self._found[message.destination]
        return Rung.ENFORCE if entry is None else entry.rung

    def is_lenient(self, message: Message) -> bool:
        """Return whether a message is judged below ``enforce``: nothing of ours keeps it from a handler."""
        return self.rung(message) < Rung.ENFORCE

    def exemption(self, message: Message) -> Exemption | None:
        """Return what exempts a message; ``None`` where nothing does, or it has a token in whatever spelling."""
        for exemption in self.exemptions:
            if exemption.holds(message):
                return None if has_token(message) else exemption
        return None

    def admits(self, message: Message) -> bool:
        """Return whether a message may be sent back to a handler without a proof of who sent it.

        Whoever may write to the dead-letter queue chooses where a letter leads. So the destination has to be
        listed: an entry for all of them does not count.
        """
        entry = self._find(message.destination)
        listed = entry is not None and entry.pattern(message.destination) != EVERYWHERE
        return (listed and self.is_lenient(message)) or self.exemption(
            message
        ) is not None

    def _find(self, destination: str) -> RolloutEntry | None:
        return next((entry for entry in self.entries if entry.holds(destination)), None)


def has_token(message: Message) -> bool:
    """Return whether a message has a header with the name of the token's, in whatever spelling."""
    return any(fold(name) == TOKEN_HEADER for name, _ in message.headers)


def is_lenient(delivery: Any) -> bool:
    """Return whether a delivery was judged below ``enforce``, so that nothing of ours is waited for."""
    return delivery.rung is not None and delivery.rung < Rung.ENFORCE


def destinations_of(rollout: Rollout) -> str:
    """Return the destinations whose messages may be unverified, for people."""
    destinations = [
        destination for entry in rollout.below for destination in entry.destinations
    ]
    return ", ".join(
        [*destinations, *(exemption.destination for exemption in rollout.exemptions)]
    )


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
                "destinations": list(entry.destinations),
                "rung": entry.rung.label,
                "owner": entry.owner,
                "since": entry.since.isoformat(),
                "until": entry.until.isoformat(),
            }
            for entry in rollout.entries
        ],
        "exempt": [
            {
                "destination": exempt.destination,
                "kinds": sorted(exempt.kinds),
                "until": exempt.until.isoformat(),
                "why": exempt.why,
            }
            for exempt in rollout.exemptions
        ],
        "accept_as": [
            {"at": alias.at, "signed_for": list(alias.signed_for)} for alias in aliases
        ],
    }
