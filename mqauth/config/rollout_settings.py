"""The declarations of ``[[consumer.allow]]`` and ``accept_as``; of what is not enforced yet, and until when."""

# No ``from __future__ import annotations``, as in ``settings``.

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Annotated, Final

from mqauth.config.declaration import Settings
from mqauth.config.kinds import (
    DATE,
    EXACT_NAME,
    MOMENT,
    NAME,
    choice,
    entries,
    many,
    seconds,
    text,
    text_or_table,
    whole,
)
from mqauth.config.toml_file import RefusedSetting
from mqauth.judging.accept_as import AcceptAs
from mqauth.judging.policy import Rule
from mqauth.judging.rollout import EVERYWHERE, WEEK, Exemption, RolloutEntry, Rung
from mqauth.judging.without_evidence import WithoutEvidence

_PARTITION: Final = text("partition", str.isdecimal, "must be a partition, like 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings(Settings):
    """One of ``[[rollout]]``: the rung of some destinations; the first entry that matches decides."""

    blamed = "destinations"
    destinations: Annotated[
        tuple[str, ...],
        many(NAME, 1),
        'Destinations as in `[[consumer.allow]]`; `["*"]` for all, at off and observe.',
    ]
    rung: Annotated[
        str,
        choice(tuple(rung.label for rung in Rung)),
        "How far these destinations are; those that are not listed are at enforce.",
    ]
    since: Annotated[date, DATE, "The day from which on they have this rung."]
    until: Annotated[
        date | None, DATE, "The day by which it ends, at most 90 days after; required below enforce."
    ] = None
    owner: Annotated[str, NAME, "Whom to ask."]
    window: Annotated[int, seconds(3600), "How far the report looks back: the rarest producer's period."] = int(
        WEEK
    )
    accepted: Annotated[
        Mapping[str, str] | None,
        entries(NAME, NAME),
        "Groups of the report that are known and do not count, each with the reason why.",
    ] = None

    @property
    def at(self) -> Rung:
        """The rung."""
        return Rung.of(self.rung)

    def build(self) -> RolloutEntry:
        """Return the entry for the pipeline."""
        return RolloutEntry(
            destinations=self.destinations,
            rung=self.at,
            since=self.since,
            until=self.until or date.max,
            owner=self.owner,
            window=float(self.window),
        )

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the refusals of a term that is missing or too long."""
        everywhere, until = EVERYWHERE in self.destinations, self.until
        term = timedelta(days=30 if everywhere else 90)
        bounded = until is not None and timedelta(0) < until - self.since <= term
        below = self.at < Rung.ENFORCE
        return self.refused(
            (below and until is None, "until", "required below enforce"),
            (below and until is not None and not bounded, "until", f"must be 1 to {term.days} days after since"),
            (
                everywhere and (len(self.destinations) > 1 or self.at > Rung.OBSERVE),
                "destinations",
                '"*" stands alone, and only at off and observe',
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class UnsignedSettings(Settings):
    """One of ``[[consumer.unsigned]]``: messages that may lack a token for now, at enforce too."""

    blamed = "destination"
    destination: Annotated[str, NAME, "Where they come from, a pattern as in `[[consumer.allow]]`."]
    kinds: Annotated[
        frozenset[str],
        many(EXACT_NAME, into=frozenset),
        "Only those whose property `type` is one of these; each needs a handler of its own.",
    ] = frozenset()
    until: Annotated[date, DATE, "The day by which it ends, at most a year from now."]
    why: Annotated[str, NAME, "Why they cannot be signed yet."]

    def build(self) -> Exemption:
        """Return the exemption for the pipeline."""
        return Exemption(**self.arguments(Exemption))


@dataclass(frozen=True, slots=True, kw_only=True)
class WithoutEvidenceSettings(Settings):
    """One of ``[[consumer.without_evidence]]``: messages that are dead-lettered as ``append_time_missing``."""

    destination: Annotated[str, NAME, "Where they arrive, a pattern as in `[[consumer.allow]]`."]
    through: Annotated[
        datetime | Mapping[str, int],
        text_or_table(MOMENT, entries(_PARTITION, whole(0), 1)),
        "The last of them: a time by which they were signed, or on Kafka an offset for each partition.",
    ]
    why: Annotated[str, NAME, "Why the broker will never say when it took them; the audit records it."]

    def build(self) -> WithoutEvidence:
        """Return the entry for the verifier."""
        through = self.through
        last = through.timestamp() if isinstance(through, datetime) else {int(p): at for p, at in through.items()}
        return WithoutEvidence(destination=self.destination, through=last, why=self.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings(Settings):
    """One of ``[[consumer.allow]]``: the arguments of ``Rule``."""

    blamed = "destinations"
    subject: Annotated[str, NAME, "The producer, letter for letter."]
    issuer: Annotated[str | None, NAME, "Its issuer; required where several are configured."] = None
    claims: Annotated[
        Mapping[str, str] | None,
        entries(NAME, NAME, 1),
        'Claims that its identity must have, equal as texts, such as `{ env = "prod" }`; experimental.',
    ] = None
    destinations: Annotated[
        tuple[str, ...],
        many(NAME, 1),
        "Where it may publish: destinations whose dotted words may be `*` (one word) or `#` (any number).",
    ]

    def build(self) -> Rule:
        """Return the rule for the policy."""
        return Rule(**self.arguments(Rule))


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptAsSettings(Settings):
    """One of ``[[consumer.accept_as]]``: the arguments of ``AcceptAs``."""

    blamed = "signed_for"
    at: Annotated[str, NAME, "Where the messages arrive: a destination, exact."]
    signed_for: Annotated[
        tuple[str, ...], many(NAME, 1), "Where they were published first: patterns as in `[[consumer.allow]]`."
    ]

    def build(self) -> AcceptAs:
        """Return the alias for the verifier."""
        return AcceptAs(**self.arguments(AcceptAs))
