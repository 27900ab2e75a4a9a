"""Rules on tokens: how long they live, whom they are meant for, and by which clock they are judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mqauth.check.codes import finding
from mqauth.check.findings import Finding
from mqauth.check.target import Target
from mqauth.signer import MAX_LIFETIME
from mqauth.wire.destination import is_kafka

LONG_LIFETIME: Final = 900
"""Seconds beyond which a producer's tokens live long."""
LONG_ACCEPTED: Final = 3600
"""Seconds beyond which a consumer accepts long-lived tokens; the default."""
LARGE_LEEWAY: Final = 15
_STAND_IN: Final = "unnamed"


def repaired(members: Mapping[str, Any]) -> tuple[dict[str, Any], list[Finding]]:
    """Return the tables without pitfalls that would have the whole table refused, and these pitfalls.

    Args:
        members: the result of tomllib, which may have any shape.
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
    """Remove a lifetime that is out of its bounds, so that the default takes its place."""
    seconds = table.get(key)
    if type(seconds) is int and not 1 <= seconds <= MAX_LIFETIME:
        del table[key]
        yield finding("lifetime_unbounded", (name, key), f"{seconds} s is no lifetime of 1 to {MAX_LIFETIME} s")


def _addressed(name: str, table: dict[str, Any]) -> Iterator[Finding]:
    """Put a stand-in in place of an audience that is missing or a wildcard."""
    audience = table.get("audience", [])
    names = [audience] if isinstance(audience, str) else audience
    if not isinstance(names, list):
        return
    if not names or names == [""]:
        yield finding("audience_missing", (name, "audience"), f"[{name}] names no audience")
    elif any(isinstance(one, str) and "*" in one for one in names):
        yield finding("audience_wildcard", (name, "audience"), "the audience holds a *")
    else:
        return
    table["audience"] = _STAND_IN


def lifetimes(target: Target) -> Iterator[Finding]:
    """Find tokens that live longer than they need to, and a leeway that is larger than clocks differ."""
    producer, consumer = target.settings.producer, target.settings.consumer
    if producer is not None and producer.lifetime > LONG_LIFETIME:
        yield finding(
            "lifetime_long",
            ("producer", "lifetime"),
            f"tokens live {producer.lifetime} s, over {LONG_LIFETIME} s",
        )
    if consumer is not None and consumer.max_lifetime > LONG_ACCEPTED:
        yield finding(
            "lifetime_long",
            ("consumer", "max_lifetime"),
            f"tokens of {consumer.max_lifetime} s are accepted, over {LONG_ACCEPTED} s",
        )
    if consumer is not None and consumer.leeway > LARGE_LEEWAY:
        yield finding(
            "leeway_large", ("consumer", "leeway"), f"a leeway of {consumer.leeway} s, over {LARGE_LEEWAY} s"
        )


def evidence(target: Target) -> Iterator[Finding]:
    """Find times that are judged as of the broker's clock, where nothing proves that the broker wrote them."""
    consumer = target.settings.consumer
    if consumer is None or consumer.at == "consume" or consumer.append_evidence is not None:
        return
    if any(not is_kafka(place) for rule in consumer.allow for place in rule.destinations):
        yield finding(
            "append_without_evidence",
            ("consumer", "append_evidence"),
            'at = "append" without append_evidence, and a rule names RabbitMQ',
        )


def headers(target: Target) -> Iterator[Finding]:
    """Find unsigned headers that stay with the message."""
    consumer = target.settings.consumer
    if consumer is not None and consumer.unsigned_headers == "hide":
        path = ("consumer", "unsigned_headers")
        yield finding("unsigned_headers_hidden", path, "unsigned headers are hidden, not refused")


RULES: Final = (lifetimes, evidence, headers)
