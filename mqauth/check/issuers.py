"""Rules on issuers: their JWK Sets, whom their keys speak for, who may publish where, and who may release."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from mqauth.audit import disk
from mqauth.check.rule import Finding, Target, finding, on, ring_of, those, unless_refused
from mqauth.config.consumer_settings import ConsumerSettings, RuleSettings
from mqauth.config.issuer_settings import IssuerSettings, SourceSettings
from mqauth.config.kinds import is_url
from mqauth.errors import ConfigurationError, Reason
from mqauth.judging.identities import TrustDomain
from mqauth.judging.journal import few
from mqauth.judging.verifier import Issuer
from mqauth.wire import identity, strict_json
from mqauth.wire.destination import is_kafka
from mqauth.wire.jwk import MAX_DOCUMENT, Svid, is_other_svid, load_key, load_key_set
from mqauth.wire.keys import KeySet

DAY: Final = 86_400
_ANY: Final = "*"


@on("consumer")
def bindings(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find issuers whose keys speak for nobody, for too many subjects, or for another issuer too."""
    seen: dict[str, str] = {}
    for issuer in consumer.issuers:
        path, keys, subjects = issuer.table.path, key_set(issuer), issuer.subjects or {}
        first = seen.setdefault(_place(issuer), issuer.issuer)
        if first != issuer.issuer:
            yield finding(
                "issuers_share_keys",
                (*path, "jwks" if issuer.file is None else "file"),
                f"{issuer.issuer} has the keys of {first}",
            )
        # Pins of keys that the file does not have.
        for kid in subjects:
            if kid != _ANY and keys is not None and keys.get(kid) is None:
                yield finding(
                    "pin_unknown",
                    (*path, "subjects", kid),
                    f"no usable key of {target.shown(issuer.file or target.file)} has the kid {kid}",
                )
        # A trust domain vouches for its subjects, and rules name them; its keys must outlast the identities.
        if issuer.trust_domain is not None:
            lives = issuer.max_identity_lifetime
            if issuer.file is None and issuer.max_stale < lives:
                yield finding(
                    "identity_outlives_keys",
                    (*path, "max_stale"),
                    f"{issuer.issuer}: max_stale is {issuer.max_stale} s, identities last {lives} s",
                )
            continue
        names, path = subjects.get(_ANY, frozenset()), (*path, "subjects")
        silent = keys is None or any(
            key.subjects is None and key.kid not in subjects for key in keys
        )
        # An empty list in the key itself is stronger than any pin.
        unbound = [
            key.kid
            for key in keys or ()
            if key.subjects == frozenset()
            or (key.subjects is None and not names and key.kid not in subjects)
        ]
        yield from those(
            (
                len(names) > 1 and silent,
                "subjects_shared",
                (*path, _ANY),
                f'"*" stands for {len(names)} subjects: {", ".join(sorted(names))}',
            ),
            (
                issuer.vouches,
                "issuer_vouches",
                (*issuer.table.path, "vouches"),
                f"every key of {issuer.issuer} signs for all",
            ),
            (
                not issuer.vouches and issuer.subjects is None and issuer.file is None,
                "binding_unseen",
                path,
                "neither subjects nor vouches, and the keys are remote",
            ),
            (
                not issuer.vouches and unbound,
                "issuer_unbound",
                path,
                f"no subject is named by, or pinned to, the key {few(unbound)}",
            ),
        )


@on("consumer")
def forms(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find workloads that have a rule in each form, where nothing says when the direct one ends."""
    direct = {
        source.issuer: source
        for source in consumer.issuers
        if source.trust_domain is None and source.until is None
    }
    domains = {
        source.issuer for source in consumer.issuers if source.trust_domain is not None
    }
    workloads = [rule for rule in consumer.allow if rule.issuer in domains]
    for number, rule in enumerate(consumer.allow):
        issuer = direct.get(rule.issuer or "")
        # Two rules are of one workload, as far as a file shows it, by its name, or by all that it may do.
        same = [
            other.subject
            for other in workloads
            if other.subject.endswith(f"/{rule.subject}")
            or set(rule.destinations) == set(other.destinations)
        ]
        if same and issuer is not None and not _is_silent(issuer, rule, target.now):
            yield finding(
                "forms_both",
                ("consumer", "allow", number, "subject"),
                f"{rule.subject} of {issuer.issuer} is {few(same)} in the other form",
            )


@on("consumer")
def rules(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find rules that are missing, or too wide, or that no key can match, and an agent asked without TLS."""
    opa = consumer.opa
    yield from those(
        (
            not consumer.allow and opa is None,
            "policy_empty",
            ("consumer", "allow"),
            "no [[consumer.allow]]",
        ),
        (
            not consumer.allow and opa is not None,
            "opa_unbounded",
            ("consumer", "opa"),
            "no [[consumer.allow]] beside [consumer.opa]",
        ),
        (
            opa is not None and is_url(opa.url, ("http",)),
            "opa_loopback",
            ("consumer", "opa", "url"),
            "http to this machine",
        ),
    )
    for number, rule in enumerate(consumer.allow):
        path = ("consumer", "allow", number)
        for at, destination in enumerate(rule.destinations):
            words = destination.rpartition(":" if is_kafka(destination) else "/")[
                2
            ].split(".")
            if set(words) <= {"*", "#"}:
                # With the default exchange, a routing key is the name of a queue.
                name = (
                    "rule_matches_all"
                    if is_kafka(destination) or destination.startswith("rabbitmq:/")
                    else "rule_broad"
                )
                yield finding(
                    name,
                    (*path, "destinations", at),
                    f"{rule.subject} may publish to {destination}",
                )
        issuers = [
            source for source in consumer.issuers if rule.issuer in (None, source.issuer)
        ]
        if all(_is_silent(source, rule, target.now) for source in issuers):
            yield finding(
                "subject_without_key",
                (*path, "subject"),
                f"no key of {' or '.join(source.issuer for source in issuers)} speaks for {rule.subject}",
            )


def authorities(target: Target) -> Iterator[Finding]:
    """Find release authorities that sign messages too, or that may waive what keeps others out."""
    producers = {issuer.issuer for issuer in target.issuers}
    places = {_place(issuer) for issuer in target.issuers}
    if target.settings.producer is not None:
        producers.add(target.settings.producer.issuer)
    for authority in target.authorities:
        path = authority.table.path
        much = sorted(
            authority.waive
            & {Reason.PRODUCER_FORBIDDEN, Reason.REPLAYED, Reason.KEY_EXPIRED}
        )
        yield from those(
            (
                authority.issuer in producers or _place(authority) in places,
                "release_self",
                (*path, "issuer"),
                f"{authority.issuer} signs messages, or its keys do",
            ),
            (much, "release_waives_much", (*path, "waive"), f"waives {', '.join(much)}"),
        )


def contents(target: Target) -> Iterator[Finding]:
    """Find keys in a JWK Set file that are symmetric, private, weak, ambiguous or unusable."""
    for source in target.sources:
        path, shown = (
            (*source.table.path, "file"),
            target.shown(source.file or target.file),
        )
        faults: dict[tuple[str, str], list[str]] = {}
        # The keys as they stand; none where the file cannot be read.
        listed: Any = None
        with suppress(ConfigurationError, strict_json.StrictJSONError):
            if source.file is not None:
                document = strict_json.loads(
                    disk.read_bounded(source.file, MAX_DOCUMENT), depth=8
                )
                listed = document.get("keys") if isinstance(document, dict) else None
        for number, members in enumerate(listed if isinstance(listed, list) else []):
            fault = _fault(members, source.svid)
            if fault is not None:
                faults.setdefault(fault, []).append(str(number))
        for (name, what), numbers in faults.items():
            yield finding(name, path, f"{shown}: key {few(numbers)}: {what}")
        keys = key_set(source)
        twice = (
            []
            if keys is None
            else [
                line
                for line in keys.skipped
                if line.startswith(("kid ", "mqauth_cutoff "))
            ]
        )
        if twice:
            yield finding("jwks_skipped", path, f"{shown}: {few(twice)}")


def remote(target: Target) -> Iterator[Finding]:
    """Find remote sets that are fetched without TLS, or trusted for longer than they are published or used."""
    for source in target.sources:
        path, given = source.table.path, source.table.members
        host = urlsplit(source.issuer if source.discovery else source.jwks or "").hostname
        # The keystore of an issuer whose producer is in the same file.
        producer = target.settings.producer
        signs = (
            producer is not None and producer.issuer == source.issuer and producer.keys
        )
        own = ring_of(signs) if signs else None
        limits = [(DAY, "a day"), (target.options.rotation, "the rotation period")]
        if own is not None:
            limits.append(
                (own.retain, "for which the keystore goes on publishing a retired key")
            )
        (limit, what), delay = (
            min(limits),
            source.publish_delay if own is None else own.publish_delay,
        )
        yield from those(
            (
                source.unsafe_http_loopback,
                "jwks_loopback",
                (*path, "unsafe_http_loopback"),
                f"http to this machine ({host})",
            ),
            (
                "max_stale" in given and source.max_stale > limit,
                "stale_beyond_rotation",
                (*path, "max_stale"),
                f"max_stale is {source.max_stale} s, over {limit} s, {what}",
            ),
            (
                "publish_delay" in given and source.publish_delay > delay,
                "publish_delay_overstated",
                (*path, "publish_delay"),
                f"publish_delay is {source.publish_delay} s, the keystore's {delay} s",
            ),
        )


def key_set(source: SourceSettings) -> KeySet | None:
    """Return the usable keys of a source's JWK Set file, ``None`` if it has none or it cannot be read."""
    path, svid = source.file, source.svid
    if path is None:
        return None
    return unless_refused(
        lambda: load_key_set(disk.read_bounded(path, MAX_DOCUMENT), svid=svid)
    )


def _is_silent(issuer: IssuerSettings, rule: RuleSettings, now: float) -> bool:
    """Tell whether no key of an issuer speaks for the subject of a rule; remote keys might."""
    keys = key_set(issuer)
    if keys is None:
        return False
    if issuer.trust_domain not in (None, identity.trust_domain_of(rule.subject)):
        return True
    judge = (
        Issuer(keys=keys, subjects=issuer.subjects, vouches=issuer.vouches)
        if issuer.trust_domain is None
        else TrustDomain(keys=keys, subjects=issuer.subjects)
    )
    alive = [
        key for key in keys if key.revocation is None or key.revocation.revoked_at > now
    ]
    return not any(judge.speaks_for(key, rule.subject) for key in alive)


def _place(source: SourceSettings) -> str:
    """Return where keys come from, the same for two tables that name one place."""
    return (
        source.jwks or source.issuer
        if source.file is None
        else os.path.realpath(source.file)
    )


def _fault(members: Any, svid: Svid | None) -> tuple[str, str] | None:
    """Return the code of what is wrong with a key, and a description without a word of the key itself."""
    if isinstance(members, Mapping):
        # A shared secret, or meant for an algorithm of one (RFC 7518, section 3.1).
        algorithm = str(members.get("alg", "")).lower()
        if (
            members.get("kty") == "oct"
            or "k" in members
            or algorithm == "none"
            or algorithm.startswith("hs")
        ):
            return "jwks_symmetric", "a shared secret, or an alg that signs nothing"
        if {"d", "p", "q", "dp", "dq", "qi", "oth"} & members.keys():
            return "jwks_private", "holds a private key"
    if is_other_svid(members, svid):
        return None
    try:
        load_key(members, svid=svid)
    except ConfigurationError as error:
        return "jwks_skipped", str(error)
    return None


RULES: Final = (bindings, forms, rules, authorities, contents, remote)
