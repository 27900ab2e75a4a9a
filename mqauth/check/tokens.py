"""Rules on tokens: how long they live, whom they are meant for, and by which clock they are judged."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from mqauth.check.findings import Finding, finding
from mqauth.check.target import Target
from mqauth.signer import MAX_LIFETIME
from mqauth.wire.destination import is_kafka

_LIMITS: Final = (
    ("producer", "lifetime", 900, "lifetime_long"),
    ("consumer", "max_lifetime", 3600, "lifetime_long"),
    ("consumer", "leeway", 15, "leeway_large"),
)
"""Table, setting, the most seconds that are no finding, and the code of more."""
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


def limits(target: Target) -> Iterator[Finding]:
    """Find tokens that live longer than they need to, and a leeway that is larger than clocks differ."""
    for table, key, most, name in _LIMITS:
        settings = getattr(target.settings, table)
        if settings is not None and getattr(settings, key) > most:
            yield finding(name, (table, key), f"{key} is {getattr(settings, key)} s, over {most} s")


def trust(target: Target) -> Iterator[Finding]:
    """Find times and headers that a consumer gets without proof of who wrote them."""
    consumer = target.settings.consumer
    if consumer is None:
        return
    places = [place for rule in consumer.allow for place in rule.destinations]
    if consumer.at != "consume" and consumer.append_evidence is None and not all(map(is_kafka, places)):
        yield finding(
            "append_without_evidence",
            ("consumer", "append_evidence"),
            'at = "append" without append_evidence, and a rule names RabbitMQ',
        )
    if consumer.unsigned_headers == "hide":
        yield finding(
            "unsigned_headers_hidden", ("consumer", "unsigned_headers"), "unsigned headers are hidden, not refused"
        )


RULES: Final = (limits, trust)
