"""The declaration of ``[consumer]``: whom it trusts, what it asks of a message, and by which clock it judges."""

# No ``from __future__ import annotations``, as in ``settings``.

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args

from mqauth.config.declaration import Settings, inner, inners, only_with
from mqauth.config.issuer_settings import IssuerSettings
from mqauth.config.kinds import (
    ANY,
    EXACT_NAME,
    FLAG,
    NAME,
    PATH,
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
from mqauth.config.rollout_settings import (
    AcceptAsSettings,
    RuleSettings,
    UnsignedSettings,
    WithoutEvidenceSettings,
)
from mqauth.config.toml_file import RefusedSetting
from mqauth.judging.identities import CAPACITY, MAX_CAPACITY
from mqauth.judging.token import MAX_LEEWAY, At
from mqauth.policies.opa import MAX_REMEMBER, MIN_TIMEOUT, REMEMBER, TIMEOUT, is_path

_SUBJECT: Final = text(
    "word", "subject".__eq__, 'must be "subject" or a table of user to subject', {"const": "subject"}
)


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
        text("path", is_path, "must be words of letters, digits, _ and -, with / between them"),
        "The rule, which gives a boolean: `mqauth/allow` is `allow` of `package mqauth`.",
    ]
    remember: Annotated[
        float, seconds(0, MAX_REMEMBER, fractions=True), "How long a decision is remembered, refusals too."
    ] = REMEMBER
    timeout: Annotated[
        float,
        seconds(MIN_TIMEOUT, 5, fractions=True),
        "How long a whole request may take; after that the message waits.",
    ] = TIMEOUT
    ca: Annotated[Path | None, PATH, "A PEM file of the CAs to trust in place of the system's."] = None
    token_file: Annotated[
        Path | None, PATH, "A file with the bearer token to send, read again for each request."
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsumerSettings(Settings):
    """``[consumer]``: the arguments of ``Verifier``, the rules of ``Allow``, and the scope."""

    scope: Annotated[
        str | None,
        NAME,
        "The group or queue whose consumers share replays; left out, the wrapper decides.",
    ] = None
    audience: Annotated[tuple[str, ...], one_or_many(EXACT_NAME), "The audience of this consumer, or several."]
    max_lifetime: Annotated[int, seconds(1), "How long a token may live at most: `exp` minus `iat`."] = 3600
    leeway: Annotated[int, seconds(0, MAX_LEEWAY), "The difference between clocks that is allowed."] = 5
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
        Literal["hide", "reject"], choice(("hide", "reject")), "What happens to headers that no token covers."
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
    require_headers: Annotated[tuple[str, ...], many(NAME), "Headers that must be present and covered."] = ()
    user_id: Annotated[
        Literal["subject"] | Mapping[str, str] | None,
        text_or_table(_SUBJECT, entries(ANY, NAME)),
        "Compare the AMQP user with `sub`: they are equal, or a table maps users to subjects.",
    ] = None
    exception_messages: Annotated[
        bool, FLAG, "Log the messages of exceptions that handlers raise; not where validators quote bodies."
    ] = True
    self_test: Annotated[
        bool, FLAG, "Try at the start of a consumer that it refuses unsigned and forged messages."
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
    ] = CAPACITY
    unsigned: Annotated[
        tuple[UnsignedSettings, ...],
        inners(UnsignedSettings),
        "What may lack a token for now, at enforce too; it is given to `unverified=` of the consumer.",
    ] = ()

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the refusals of a missing ``max_queue_age``, and of rules whose issuer is not configured."""
        missing = self.at == "append" and self.max_queue_age is None
        yield from self.refused((missing, "max_queue_age", 'required with at = "append"'))
        issuers = {each.issuer for each in self.issuers}
        domains = {each.trust_domain for each in self.issuers if each.trust_domain is not None}
        for each in self.issuers:
            inside = any(f"{each.issuer}/".startswith(f"{domain}/") for domain in domains)
            is_direct = each.trust_domain is None
            yield from each.refused((is_direct and inside, "issuer", "lies in a trust domain that is configured"))
        for rule in self.allow:
            of_domain = rule.issuer in domains if rule.issuer is not None else issuers == domains
            yield from rule.refused(
                (
                    rule.issuer is None and len(issuers) > 1,
                    "issuer",
                    "required where several issuers are configured",
                ),
                (rule.claims and not of_domain, "claims", "only for the subject of a trust domain"),
                (
                    rule.issuer is not None and rule.issuer not in issuers,
                    "issuer",
                    "is not among [[consumer.issuers]]",
                ),
            )
