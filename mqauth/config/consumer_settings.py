"""The declarations of ``[consumer]`` and ``[[rollout]]``.

They say whom a consumer trusts, what it asks of a message, by which clock it judges, and what is not enforced yet.
"""

# No ``from __future__ import annotations``, as in ``settings``.

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from mqauth.config.declaration import Settings, inner, inners, only_with
from mqauth.config.issuer_settings import IssuerSettings
from mqauth.config.kinds import (
    ANY,
    DATE,
    EXACT_NAME,
    FLAG,
    MOMENT,
    NAME,
    PATH,
    PATTERN,
    choice,
    entries,
    many,
    one_or_many,
    seconds,
    text,
    text_or_table,
    url,
    whole,
)
from mqauth.config.toml_file import RefusedSetting
from mqauth.judging.identities import MAX_CAPACITY, REMEMBERED
from mqauth.judging.policy import Rule
from mqauth.judging.rollout import (
    EVERYWHERE,
    WEEK,
    AcceptAs,
    Exemption,
    RolloutEntry,
    Rung,
    WithoutEvidence,
)
from mqauth.judging.token import MAX_LEEWAY, At
from mqauth.policies.opa import MAX_REMEMBER, MIN_TIMEOUT, REMEMBER, TIMEOUT, is_path


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings(Settings):
    """One of ``[[rollout]]``: the rung of some destinations; the first entry that matches decides."""

    blamed = "destinations"
    destinations: Annotated[
        tuple[str, ...],
        many(PATTERN, 1),
        'Destinations as in `[[consumer.allow]]`; `["*"]` for all, at off and observe.',
    ]
    rung: Annotated[
        str,
        choice(tuple(rung.label for rung in Rung)),
        "How far these destinations are; those that are not listed are at enforce.",
    ]
    since: Annotated[date, DATE, "The day from which on they have this rung."]
    until: Annotated[
        date | None,
        DATE,
        "The day by which it ends, at most 90 days after; required below enforce.",
    ] = None
    owner: Annotated[str, NAME, "Whom to ask."]
    window: Annotated[
        int, seconds(3600), "How far the report looks back: the rarest producer's period."
    ] = int(WEEK)
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
            (
                below and until is not None and not bounded,
                "until",
                f"must be 1 to {term.days} days after since",
            ),
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
    destination: Annotated[
        str, PATTERN, "Where they come from, a pattern as in `[[consumer.allow]]`."
    ]
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

    destination: Annotated[
        str, PATTERN, "Where they arrive, a pattern as in `[[consumer.allow]]`."
    ]
    through: Annotated[
        datetime | Mapping[str, int],
        text_or_table(
            MOMENT,
            entries(
                text("partition", str.isdecimal, "must be a partition, like 0"),
                whole(0),
                1,
            ),
        ),
        "The last of them: a time by which they were signed, or on Kafka an offset for each partition.",
    ]
    why: Annotated[
        str,
        NAME,
        "Why the broker will never say when it took them; the audit records it.",
    ]

    def build(self) -> WithoutEvidence:
        """Return the entry for the verifier."""
        through = self.through
        last = (
            through.timestamp()
            if isinstance(through, datetime)
            else {int(p): at for p, at in through.items()}
        )
        return WithoutEvidence(destination=self.destination, through=last, why=self.why)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleSettings(Settings):
    """One of ``[[consumer.allow]]``: the arguments of ``Rule``."""

    blamed = "destinations"
    subject: Annotated[str, NAME, "The producer, letter for letter."]
    issuer: Annotated[
        str | None, NAME, "Its issuer; required where several are configured."
    ] = None
    claims: Annotated[
        Mapping[str, str] | None,
        entries(NAME, NAME, 1),
        'Claims that its identity must have, equal as texts, such as `{ env = "prod" }`; experimental.',
    ] = None
    destinations: Annotated[
        tuple[str, ...],
        many(PATTERN, 1),
        "Where it may publish: destinations whose dotted words may be `*` (one word) or `#` (any number).",
    ]

    def build(self) -> Rule:
        """Return the rule for the policy."""
        return Rule(**self.arguments(Rule))


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptAsSettings(Settings):
    """One of ``[[consumer.accept_as]]``: the arguments of ``AcceptAs``."""

    blamed = "signed_for"
    at: Annotated[str, PATTERN, "Where the messages arrive: a destination, exact."]
    signed_for: Annotated[
        tuple[str, ...],
        many(PATTERN, 1),
        "Where they were published first: patterns as in `[[consumer.allow]]`.",
    ]

    def build(self) -> AcceptAs:
        """Return the alias for the verifier."""
        return AcceptAs(**self.arguments(AcceptAs))


def _only_append(members: Mapping[str, Any]) -> str | None:
    return None if members.get("at") == "append" else 'only with at = "append"'


@dataclass(frozen=True, slots=True, kw_only=True)
class OPASettings(Settings):
    """``[consumer.opa]``: the arguments of ``OPA``."""

    url: Annotated[
        str,
        url("https", "http"),
        "The agent; https, or http on this machine.",
    ]
    path: Annotated[
        str,
        text(
            "path",
            is_path,
            "must be words of letters, digits, _ and -, with / between them",
        ),
        "The rule, which gives a boolean: `mqauth/allow` is `allow` of `package mqauth`.",
    ]
    remember: Annotated[
        float,
        seconds(0, MAX_REMEMBER, fractions=True),
        "How long a decision is remembered, refusals too.",
    ] = REMEMBER
    timeout: Annotated[
        float,
        seconds(MIN_TIMEOUT, 5, fractions=True),
        "How long a whole request may take; after that the message waits.",
    ] = TIMEOUT
    ca: Annotated[
        Path | None, PATH, "A PEM file of the CAs to trust in place of the system's."
    ] = None
    token_file: Annotated[
        Path | None,
        PATH,
        "A file with the bearer token to send, read again for each request.",
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings(Settings):
    """``[consumer]``: the arguments of ``Verifier``, the rules of ``Allow``, and the scope."""

    scope: Annotated[
        str | None,
        NAME,
        "The group or queue whose consumers share replays; left out, the wrapper decides.",
    ] = None
    audience: Annotated[
        tuple[str, ...],
        one_or_many(EXACT_NAME),
        "The audience of this consumer, or several.",
    ]
    max_lifetime: Annotated[
        int, seconds(1), "How long a token may live at most: `exp` minus `iat`."
    ] = 3600
    leeway: Annotated[
        int, seconds(0, MAX_LEEWAY), "The difference between clocks that is allowed."
    ] = 5
    at: Annotated[
        At,
        choice(get_args(At)),
        "Times are judged when a message is received, or as of when the broker appended it.",
    ] = "consume"
    max_queue_age: Annotated[
        int | None,
        seconds(1),
        "How long a message may have waited; `append` requires it.",
        _only_append,
    ] = None
    append_evidence: Annotated[
        Literal["interceptor"] | None,
        choice(("interceptor",)),
        "RabbitMQ itself overwrites `timestamp_in_ms`; at the start it has to prove that.",
        _only_append,
    ] = None
    unsafe_append_evidence: Annotated[
        bool,
        FLAG,
        "Believe `append_evidence` without that proof: for an account that may declare no queue.",
        only_with("append_evidence"),
    ] = False
    without_evidence: Annotated[
        tuple[WithoutEvidenceSettings, ...],
        inners(WithoutEvidenceSettings),
        "Messages that can never have evidence of their append time: dead-lettered, not waited for.",
        _only_append,
    ] = ()
    backlog: Annotated[
        Literal["expires"] | None,
        choice(("expires",)),
        "Messages that wait for less than a day may be rejected for it: no warning says so.",
    ] = None
    unsigned_headers: Annotated[
        Literal["hide", "reject"],
        choice(("hide", "reject")),
        "What happens to headers that no token covers.",
    ] = "hide"
    allow_unsigned_headers: Annotated[
        tuple[str, ...],
        many(NAME),
        "Names, or beginnings and a `*`, of headers that tracing and transport add: hidden, never rejected.",
    ] = ()
    accept_as: Annotated[
        tuple[AcceptAsSettings, ...],
        inners(AcceptAsSettings, 0, "at"),
        "Where messages arrive that were signed for another destination: mirrors, shovels, moved queues.",
    ] = ()
    require_headers: Annotated[
        tuple[str, ...], many(NAME), "Headers that must be present and covered."
    ] = ()
    user_id: Annotated[
        Literal["subject"] | Mapping[str, str] | None,
        text_or_table(
            text(
                "word",
                "subject".__eq__,
                'must be "subject" or a table of user to subject',
                {"const": "subject"},
            ),
            entries(ANY, NAME),
        ),
        "Compare the AMQP user with `sub`: they are equal, or a table maps users to subjects.",
    ] = None
    exception_messages: Annotated[
        bool,
        FLAG,
        "Log the messages of exceptions that handlers raise; not where validators quote bodies.",
    ] = True
    self_test: Annotated[
        bool,
        FLAG,
        "Try at the start of a consumer that it refuses unsigned and forged messages.",
    ] = True
    issuers: Annotated[
        tuple[IssuerSettings, ...],
        inners(IssuerSettings, 1, "issuer"),
        "Whom to trust; each has one of `file`, `jwks`, `discovery`.",
    ]
    allow: Annotated[
        tuple[RuleSettings, ...],
        inners(RuleSettings),
        "Who may publish where; without a rule everything is refused, unless there is an agent.",
    ] = ()
    opa: Annotated[
        OPASettings | None,
        inner(OPASettings),
        "An Open Policy Agent that decides who may publish where; beside rules both must allow.",
    ] = None
    identities: Annotated[
        int,
        whole(1, MAX_CAPACITY),
        "How many identities of producers are remembered; more producer processes cost a signature a message.",
    ] = REMEMBERED
    unsigned: Annotated[
        tuple[UnsignedSettings, ...],
        inners(UnsignedSettings),
        "What may lack a token for now, at enforce too; it is given to `unverified=` of the consumer.",
    ] = ()

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the refusals of a missing ``max_queue_age``, and of rules whose issuer is not configured."""
        yield from self.refused(
            (
                self.at == "append" and self.max_queue_age is None,
                "max_queue_age",
                'required with at = "append"',
            )
        )
        issuers = {each.issuer for each in self.issuers}
        domains = {
            each.trust_domain for each in self.issuers if each.trust_domain is not None
        }
        for each in self.issuers:
            inside = any(f"{each.issuer}/".startswith(f"{domain}/") for domain in domains)
            yield from each.refused(
                (
                    each.trust_domain is None and inside,
                    "issuer",
                    "lies in a trust domain that is configured",
                )
            )
        for rule in self.allow:
            of_domain = (
                rule.issuer in domains if rule.issuer is not None else issuers == domains
            )
            yield from rule.refused(
                (
                    rule.issuer is None and len(issuers) > 1,
                    "issuer",
                    "required where several issuers are configured",
                ),
                (
                    rule.claims and not of_domain,
                    "claims",
                    "only for the subject of a trust domain",
                ),
                (
                    rule.issuer is not None and rule.issuer not in issuers,
                    "issuer",
                    "is not among [[consumer.issuers]]",
                ),
            )
