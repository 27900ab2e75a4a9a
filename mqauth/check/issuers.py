"""Issuers: whom their keys speak for, which producers the rules let publish where, and who may release."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from mqauth.check import codes
from mqauth.check.findings import Finding
from mqauth.check.jwks import key_set
from mqauth.check.target import Rule, Target, few
from mqauth.config.settings import IssuerSettings, RuleSettings, SourceSettings
from mqauth.errors import Reason
from mqauth.judging.verifier import Issuer
from mqauth.wire.destination import is_kafka
from mqauth.wire.keys import Key

_ANY: Final = "*"
_WILDCARDS: Final = frozenset(("*", "#"))
_MUCH: Final = frozenset((Reason.PRODUCER_FORBIDDEN, Reason.REPLAYED, Reason.KEY_EXPIRED))


def bindings(target: Target) -> Iterator[Finding]:
    """Issuers whose keys speak for nobody, or for too many."""
    for issuer in _issuers(target):
        path = issuer.table.path
        if issuer.vouches:
            yield codes.ISSUER_VOUCHES.at((*path, "vouches"), f"every key of {issuer.issuer} signs for all")
        elif issuer.subjects is None and issuer.file is None:
            said = "neither subjects nor vouches, and the keys are remote"
            yield codes.BINDING_UNSEEN.at((*path, "subjects"), said)
        unbound = [] if issuer.vouches else [key.kid for key in _unbound(issuer)]
        if unbound:
            said = f"no subject is named by, or pinned to, the key {few(unbound)}"
            yield codes.ISSUER_UNBOUND.at((*path, "subjects"), said)


def shared(target: Target) -> Iterator[Finding]:
    """Several subjects for every key that names none."""
    for issuer in _issuers(target):
        names = (issuer.subjects or {}).get(_ANY, frozenset())
        keys = key_set(issuer.file)
        silent = keys is None or any(key.subjects is None and not _pinned(issuer, key) for key in keys)
        if len(names) > 1 and silent:
            said = f'"*" stands for {len(names)} subjects: {", ".join(sorted(names))}'
            yield codes.SUBJECTS_SHARED.at((*issuer.table.path, "subjects", _ANY), said)


def one_place(target: Target) -> Iterator[Finding]:
    """Two issuers whose keys are the same."""
    seen: dict[str, str] = {}
    for issuer in _issuers(target):
        first = seen.setdefault(_place(issuer), issuer.issuer)
        if first != issuer.issuer:
            key = "jwks" if issuer.file is None else "file"
            said = f"{issuer.issuer} has the keys of {first}"
            yield codes.ISSUERS_SHARE_KEYS.at((*issuer.table.path, key), said)


def pins(target: Target) -> Iterator[Finding]:
    """Pinned kids that the file does not have."""
    for issuer in _issuers(target):
        keys = key_set(issuer.file)
        for kid in () if keys is None else (issuer.subjects or {}):
            if kid != _ANY and keys is not None and keys.get(kid) is None:
                said = f"no usable key of {target.shown(issuer.file or target.file)} has the kid {kid}"
                yield codes.PIN_UNKNOWN.at((*issuer.table.path, "subjects", kid), said)


def rules(target: Target) -> Iterator[Finding]:
    """Rules that are missing, or let a producer publish everywhere."""
    if target.consumer is None:
        return
    if not target.consumer.allow:
        yield codes.POLICY_EMPTY.at(("consumer", "allow"), "no [[consumer.allow]]")
    for number, rule in enumerate(target.consumer.allow):
        path = ("consumer", "allow", number, "destinations")
        for at, place in enumerate(rule.destinations):
            if _is_all(place):
                code = codes.RULE_MATCHES_ALL if _is_whole_broker(place) else codes.RULE_BROAD
                yield code.at((*path, at), f"{rule.subject} may publish to {place}")


def speakers(target: Target) -> Iterator[Finding]:
    """Rules for a subject that no key may speak for; seen where the keys are in files."""
    for number, rule in enumerate(() if target.consumer is None else target.consumer.allow):
        issuers = [found for found in _issuers(target) if rule.issuer in (None, found.issuer)]
        if all(_is_silent(found, rule, target.now) for found in issuers):
            said = f"no key of {' or '.join(found.issuer for found in issuers)} speaks for {rule.subject}"
            yield codes.SUBJECT_WITHOUT_KEY.at(("consumer", "allow", number, "subject"), said)


def authorities(target: Target) -> Iterator[Finding]:
    """Release authorities that are the producers themselves, or may waive what keeps others out."""
    producers = {issuer.issuer for issuer in _issuers(target)}
    places = {_place(issuer) for issuer in _issuers(target)}
    if target.producer is not None:
        producers.add(target.producer.issuer)
    for found in target.authorities:
        path = found.table.path
        if found.issuer in producers or _place(found) in places:
            said = f"{found.issuer} signs messages, or its keys do"
            yield codes.RELEASE_SELF.at((*path, "issuer"), said)
        much = sorted(found.waive & _MUCH)
        if much:
            yield codes.RELEASE_WAIVES_MUCH.at((*path, "waive"), f"waives {', '.join(much)}")


def _issuers(target: Target) -> tuple[IssuerSettings, ...]:
    """Return the issuers the consumer trusts."""
    return () if target.consumer is None else target.consumer.issuers


def _unbound(issuer: IssuerSettings) -> Iterator[Key]:
    """Yield the keys of a file that speak for nobody; an empty list in the key itself outdoes every pin."""
    named = bool((issuer.subjects or {}).get(_ANY))
    for key in key_set(issuer.file) or ():
        if key.subjects == frozenset() or (key.subjects is None and not named and not _pinned(issuer, key)):
            yield key


def _pinned(issuer: IssuerSettings, key: Key) -> bool:
    """Tell whether a key has a list of its own."""
    return key.kid in (issuer.subjects or {})


def _is_silent(issuer: IssuerSettings, rule: RuleSettings, now: float) -> bool:
    """Tell whether no key of an issuer speaks for the subject of a rule, as far as can be seen."""
    keys = key_set(issuer.file)
    if keys is None:
        return False
    judge = Issuer(keys=keys, subjects=issuer.subjects, vouches=issuer.vouches)
    return not any(_lives(key, now) and judge.speaks_for(key, rule.subject) for key in keys)


def _lives(key: Key, now: float) -> bool:
    """Tell whether a key is not revoked."""
    return key.revocation is None or key.revocation.revoked_at > now


def _place(source: SourceSettings) -> str:
    """Return where keys come from, the same for two tables that name one place."""
    return source.jwks or source.issuer if source.file is None else os.path.realpath(source.file)


def _is_all(place: str) -> bool:
    """Tell whether every word of a destination is a wildcard."""
    words = place.rpartition(":" if is_kafka(place) else "/")[2].split(".")
    return set(words) <= _WILDCARDS


def _is_whole_broker(place: str) -> bool:
    """Tell whether all topics match, or, by the default exchange, all queues."""
    return is_kafka(place) or place.startswith("rabbitmq:/")


RULES: Final[tuple[Rule, ...]] = (bindings, shared, one_place, pins, rules, speakers, authorities)
