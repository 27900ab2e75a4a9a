"""Who may publish where: step (12) of a verdict. A policy is required, and an empty one refuses everything."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol, cast

from mqauth.errors import Cause, MalformedMessage, refusing, require
from mqauth.flow import Flow, answered, at_once, call
from mqauth.judging.verified import Verified, producer_and_place
from mqauth.wire import destination, memo
from mqauth.wire.claims import is_name

_WILDCARDS: Final = ("*", "#")
POLICY: Final = Cause.POLICY_UNAVAILABLE


class Decision(Enum):
    """What a policy says; it is compared by identity, for what a broken policy returns may be truthy."""

    ALLOW = "allow"
    DENY = "deny"


_DENY: Final = Decision.DENY


class Policy(Protocol):
    """Decides whether a verified producer may publish to a destination."""

    @property
    def version(self) -> str:
        """A short text that changes with the rules; audit records quote it."""

    def decide(self, verified: Verified, /) -> Decision | Awaitable[Decision]:
        """Return the decision for one message.

        Raises:
            Unavailable: ``policy_unavailable``, the rules are kept elsewhere and cannot be read.
        """


class AskedPolicy(Policy, Protocol):
    """A policy that is kept elsewhere: ``decide`` blocks until it has answered, which no event loop may do."""

    def remembered(self, verified: Verified, /) -> Decision | None:
        """Return a decision that is known already, ``None`` where the policy must be asked; never waits."""

    async def adecide(self, verified: Verified, /) -> Decision:
        """Do the same as ``decide``, and let the event loop run meanwhile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One permission: a subject of an issuer may publish to the destinations.

    Args:
        subject: the exact name of the producer.
        destinations: canonical destinations. Among the dotted words of a routing key or topic may be ``*`` (for
            one word) and ``#`` (for any number); the exchange is exact.
        issuer: whose subject it is; may be left out if only one issuer is configured.
        claims: texts that the WIT must have, as its authority wrote them; never those of a proof. A message of the
            direct form meets no such rule.

    Raises:
        ConfigurationError: a subject or destination is not in its form.
    """

    subject: str
    destinations: tuple[str, ...]
    issuer: str | None = None
    claims: Mapping[str, str] | None = None

    def __repr__(self) -> str:
        text = f"Rule(subject={self.subject!r}, destinations={self.destinations!r}, issuer={self.issuer!r}"
        return (
            f"{text}, claims={sorted((self.claims or {}).items())})"
            if self.claims
            else f"{text})"
        )

    def __post_init__(self) -> None:
        require(
            all(
                is_name(name) and is_name(value)
                for name, value in (self.claims or {}).items()
            ),
            "a claim of a rule is text of 1 to 256 characters",
        )
        require(
            is_name(self.subject) and (self.issuer is None or is_name(self.issuer)),
            "a subject or issuer is text of 1 to 256 characters",
        )
        for pattern in self.destinations:
            check_pattern(pattern)

    def is_met(self, verified: Verified) -> bool:
        """Tell whether the identity behind a message has the claims of this rule, equal as texts."""
        claims = {} if verified.identity is None else verified.identity.claims
        wanted = self.claims or {}
        return all(
            type(claims.get(name)) is str and claims[name] == value
            for name, value in wanted.items()
        )

    def allows(self, issuer: str, destination: str) -> bool:
        """Tell whether this rule lets its subject, of an issuer, publish to a destination."""
        return self.issuer in (None, issuer) and any(
            matches(pattern, destination) for pattern in self.destinations
        )


class Allow:
    """Allows what a rule names and nothing else.

    Args:
        rules: the destinations by subject, or ``Rule`` objects.

    Raises:
        ConfigurationError: a rule is not in its form.
    """

    def __init__(self, rules: Mapping[str, Iterable[str]] | Iterable[Rule]) -> None:
        if isinstance(rules, Mapping):
            listed = not any(isinstance(patterns, str) for patterns in rules.values())
            require(listed, "the destinations of a subject are a list")
            rules = [
                Rule(subject=name, destinations=tuple(patterns))
                for name, patterns in rules.items()
            ]
        self.rules = tuple(rules)
        self._by_subject: dict[str, list[Rule]] = {}
        self._claiming: dict[str, list[Rule]] = {}
        for rule in self.rules:
            (self._claiming if rule.claims else self._by_subject).setdefault(
                rule.subject, []
            ).append(rule)
        self.version = hashlib.sha256(repr(self.rules).encode()).hexdigest()[:16]
        self._decisions = memo.Memo(self._decision)

    def decide(self, verified: Verified, /) -> Decision:
        """Return ``ALLOW`` if a rule of the subject permits the destination."""
        decision = self._decisions[producer_and_place(verified)]
        if decision is _DENY and verified.subject in self._claiming:
            # a rule with claims is asked each time, since the identity differs from WIT to WIT
            for rule in self._claiming[verified.subject]:
                if rule.is_met(verified) and rule.allows(
                    verified.issuer, verified.destination
                ):
                    return Decision.ALLOW
        return decision

    def _decision(self, asked: tuple[str, str, str]) -> Decision:
        issuer, subject, destination = asked
        return (
            Decision.ALLOW
            if any(
                rule.allows(issuer, destination)
                for rule in self._by_subject.get(subject, ())
            )
            else Decision.DENY
        )


def on_the_spot(policy: Policy) -> Callable[[Verified], Any]:
    """Return what decides without waiting; of a policy that is kept elsewhere it may return ``None``."""
    return getattr(policy, "remembered", None) or policy.decide


def decided(policy: Policy, verified: Verified, decision: Any) -> Flow[Decision]:
    """Return the decision of a policy, asked or awaited where it is not found yet.

    Args:
        policy: decides.
        verified: the message.
        decision: what ``on_the_spot`` returned.

    Raises:
        Unavailable: ``policy_unavailable``, whatever the policy raised but ``OUR_FAULT``.
    """
    twin = getattr(policy, "adecide", None)
    if decision is None and twin is not None:
        return cast(
            Decision, (yield from call(policy.decide, verified, twin=twin, cause=POLICY))
        )
    return cast(Decision, (yield from answered(POLICY, decision)))


def decision_of(policy: Policy, verified: Verified) -> Flow[Decision]:
    """Return the decision of a policy, as ``decided``."""
    return (
        yield from decided(
            policy, verified, at_once(POLICY, on_the_spot(policy), verified)
        )
    )


def local_rules(policy: Policy) -> tuple[Rule, ...] | None:
    """Return the rules of a policy that stand in this process, ``None`` where it has none."""
    inner = getattr(policy, "within", policy)
    return inner.rules if isinstance(inner, Allow) else None


def matches(pattern: str, destination: str) -> bool:
    """Tell whether a destination fits a pattern, by the rules of AMQP topics."""
    if pattern == destination:
        return True
    head, words = _split(pattern)
    place_head, place_words = _split(destination)
    if head != place_head:
        return False
    # the set of places in ``place_words`` that the pattern so far may end at: no pattern makes this backtrack
    reachable = {0}
    for item in words:
        if item == "#":
            reachable = (
                set(range(min(reachable), len(place_words) + 1)) if reachable else set()
            )
        else:
            reachable = {
                at + 1
                for at in reachable
                if at < len(place_words) and item in ("*", place_words[at])
            }
    return len(place_words) in reachable


def _split(destination: str) -> tuple[str, list[str]]:
    """Return the part of a destination that is compared exactly, and its dotted words."""
    cut = (
        destination.find("/")
        if destination.startswith("rabbitmq:")
        else destination.find(":")
    )
    return destination[: cut + 1], destination[cut + 1 :].split(".")


def place_of_pattern(pattern: str) -> str:
    """Return a destination that fits a pattern: one word for each wildcard."""
    head, words = _split(pattern)
    return head + ".".join("w" if word in _WILDCARDS else word for word in words)


def check_pattern(pattern: str) -> None:
    """Refuse a pattern that no destination can fit.

    Raises:
        ConfigurationError: it is not in its form.
    """
    with refusing(MalformedMessage, lambda error: f"destination {pattern!r}: {error}"):
        destination.parse(place_of_pattern(pattern))
