"""Tokens: how long they live, whom they are meant for, by which clock they are judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mqauth.check import codes
from mqauth.check.findings import Finding
from mqauth.check.target import Rule, Target
from mqauth.signer import MAX_LIFETIME
from mqauth.wire.destination import is_kafka

LONG_LIFETIME: Final = 900
"""Seconds over which a producer's tokens live long."""
LONG_ACCEPTED: Final = 3600
"""Seconds over which a consumer accepts long lives; the default."""
LARGE_LEEWAY: Final = 15
_STAND_IN: Final = "unnamed"


def repaired(members: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Return the tables without the pitfalls that hide the rest from a reader, and those pitfalls.

    Args:
        members: what tomllib read; of any shape.
    """
    found: list[Finding] = []
    tables = dict(members)
    for name, lifetime in (("producer", "lifetime"), ("consumer", "max_lifetime")):
        if isinstance(members.get(name), dict):
            tables[name] = dict(members[name])
            found += _bounded(name, tables[name], lifetime)
            found += _addressed(name, tables[name])
    return tables, found


def _bounded(name: str, table: dict[str, Any], key: str) -> Iterator[Finding]:
    """Take out a lifetime without an end."""
    seconds = table.get(key)
    if type(seconds) is not int or 1 <= seconds <= MAX_LIFETIME:
        return
    del table[key]
    yield codes.LIFETIME_UNBOUNDED.at((name, key), f"{seconds} s is no lifetime of 1 to {MAX_LIFETIME} s")


def _addressed(name: str, table: dict[str, Any]) -> Iterator[Finding]:
    """Put a stand-in where the audience is absent or a wildcard."""
    audience = table.get("audience", [])
    names = [audience] if isinstance(audience, str) else audience
    if not isinstance(names, list):
        return
    if not names or names == [""]:
        yield codes.AUDIENCE_MISSING.at((name, "audience"), f"[{name}] names no audience")
    elif any(isinstance(one, str) and "*" in one for one in names):
        yield codes.AUDIENCE_WILDCARD.at((name, "audience"), "the audience holds a *")
    else:
        return
    table["audience"] = _STAND_IN


def lifetimes(target: Target) -> Iterator[Finding]:
    """Lives longer than they need be."""
    if target.producer is not None and target.producer.lifetime > LONG_LIFETIME:
        said = f"tokens live {target.producer.lifetime} s, over {LONG_LIFETIME} s"
        yield codes.LIFETIME_LONG.at(("producer", "lifetime"), said)
    if target.consumer is not None and target.consumer.max_lifetime > LONG_ACCEPTED:
        said = f"tokens of {target.consumer.max_lifetime} s are accepted, over {LONG_ACCEPTED} s"
        yield codes.LIFETIME_LONG.at(("consumer", "max_lifetime"), said)


def leeway(target: Target) -> Iterator[Finding]:
    """More clock difference than clocks have."""
    if target.consumer is not None and target.consumer.leeway > LARGE_LEEWAY:
        said = f"a leeway of {target.consumer.leeway} s, over {LARGE_LEEWAY} s"
        yield codes.LEEWAY_LARGE.at(("consumer", "leeway"), said)


def evidence(target: Target) -> Iterator[Finding]:
    """Times by the broker's clock without the broker's word."""
    consumer = target.consumer
    if consumer is None or consumer.at == "consume" or consumer.append_evidence is not None:
        return
    if any(not is_kafka(place) for rule in consumer.allow for place in rule.destinations):
        said = 'at = "append" without append_evidence, and a rule names RabbitMQ'
        yield codes.APPEND_WITHOUT_EVIDENCE.at(("consumer", "append_evidence"), said)


def headers(target: Target) -> Iterator[Finding]:
    """Unsigned headers that stay with the message."""
    if target.consumer is not None and target.consumer.unsigned_headers == "hide":
        said = "unsigned headers are hidden, not refused"
        yield codes.UNSIGNED_HEADERS_HIDDEN.at(("consumer", "unsigned_headers"), said)


RULES: Final[tuple[Rule, ...]] = (lifetimes, leeway, evidence, headers)
