"""Rules on issuers: their JWK Sets, whom their keys speak for, who may publish where, and who may release."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from mqauth.audit import disk
from mqauth.check.rule import Finding, Target, finding, on, ring_of, unless_refused
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
    issuers_by_source: dict[str, str] = {}
    for issuer in consumer.issuers:
        path = issuer.table.path
        first = issuers_by_source.setdefault(_origin(issuer), issuer.issuer)
        if first != issuer.issuer:
            key = "jwks" if issuer.file is None else "file"
            message = f"{issuer.issuer} has the keys of {first}"
            yield finding("issuers_share_keys", (*path, key), message)

        keys = key_set(issuer)
        for kid in issuer.subjects or ():
            if kid != _ANY and keys is not None and keys.get(kid) is None:
                file = target.shown(issuer.file or target.file)
                message = f"no usable key of {file} has the kid {kid}"
                yield finding("pin_unknown", (*path, "subjects", kid), message)

        # A trust domain vouches for its subjects, and rules name them.
        if issuer.trust_domain is None:
            yield from _subjects(issuer, keys)
            continue

        # Its keys must outlast the identities that they have signed.
        lives = issuer.max_identity_lifetime
        if issuer.file is None and issuer.max_stale < lives:
            message = f"{issuer.issuer}: max_stale is {issuer.max_stale} s, identities last {lives} s"
            yield finding("identity_outlives_keys", (*path, "max_stale"), message)


def _subjects(issuer: IssuerSettings, keys: KeySet | None) -> Iterator[Finding]:
    """Find keys of an issuer that no subject is named for, or that share several."""
    path = (*issuer.table.path, "subjects")
    pins = issuer.subjects or {}
    shared = pins.get(_ANY, frozenset())
    silent = keys is None or any(
        key.subjects is None and key.kid not in pins for key in keys
    )
    if len(shared) > 1 and silent:
        message = f'"*" stands for {len(shared)} subjects: {", ".join(sorted(shared))}'
        yield finding("subjects_shared", (*path, _ANY), message)

    if issuer.vouches:
        at = (*issuer.table.path, "vouches")
        yield finding("issuer_vouches", at, f"every key of {issuer.issuer} signs for all")
        return

    if issuer.subjects is None and issuer.file is None:
        message = "neither subjects nor vouches, and the keys are remote"
        yield finding("binding_unseen", path, message)

    # An empty list in the key itself is stronger than any pin.
    unbound = []
    for key in keys or ():
        is_pinned = bool(shared) or key.kid in pins
        if key.subjects == frozenset() or (key.subjects is None and not is_pinned):
            unbound.append(key.kid)
    if unbound:
        message = f"no subject is named by, or pinned to, the key {few(unbound)}"
        yield finding("issuer_unbound", path, message)


@on("consumer")
def forms(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find workloads that have a rule in each form, where nothing says when the direct one ends."""
    lasting = {}
    domains = set()
    for source in consumer.issuers:
        if source.trust_domain is not None:
            domains.add(source.issuer)
        elif source.until is None:
            lasting[source.issuer] = source

    workloads = [rule for rule in consumer.allow if rule.issuer in domains]
    for number, rule in enumerate(consumer.allow):
        issuer = lasting.get(rule.issuer or "")
        # Two rules are of one workload, as far as a file shows it, by its name, or by all
        # that it may do.
        same = [
            other.subject
            for other in workloads
            if other.subject.endswith(f"/{rule.subject}")
            or set(rule.destinations) == set(other.destinations)
        ]
        if same and issuer is not None and not _is_silent(issuer, rule, target.now):
            path = ("consumer", "allow", number, "subject")
            message = (
                f"{rule.subject} of {issuer.issuer} is {few(same)} in the other form"
            )
            yield finding("forms_both", path, message)


@on("consumer")
def rules(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find rules that are missing, or too wide, or that no key can match, and an agent asked without TLS."""
    opa = consumer.opa
    if not consumer.allow and opa is None:
        yield finding("policy_empty", ("consumer", "allow"), "no [[consumer.allow]]")
    if not consumer.allow and opa is not None:
        message = "no [[consumer.allow]] beside [consumer.opa]"
        yield finding("opa_unbounded", ("consumer", "opa"), message)
    if opa is not None and is_url(opa.url, ("http",)):
        path = ("consumer", "opa", "url")
        yield finding("opa_loopback", path, "http to this machine")

    for number, rule in enumerate(consumer.allow):
        at = ("consumer", "allow", number)
        for index, destination in enumerate(rule.destinations):
            code = _width(destination)
            if code is not None:
                message = f"{rule.subject} may publish to {destination}"
                yield finding(code, (*at, "destinations", index), message)

        issuers = [
            source for source in consumer.issuers if rule.issuer in (None, source.issuer)
        ]
        if all(_is_silent(source, rule, target.now) for source in issuers):
            names = " or ".join(source.issuer for source in issuers)
            message = f"no key of {names} speaks for {rule.subject}"
            yield finding("subject_without_key", (*at, "subject"), message)


def _width(destination: str) -> str | None:
    """Return the code of a pattern of nothing but wildcards, ``None`` for any other."""
    on_kafka = is_kafka(destination)
    words = destination.rpartition(":" if on_kafka else "/")[2].split(".")
    if not set(words) <= {"*", "#"}:
        return None
    # With the default exchange, a routing key is the name of a queue.
    if on_kafka or destination.startswith("rabbitmq:/"):
        return "rule_matches_all"
    return "rule_broad"


def authorities(target: Target) -> Iterator[Finding]:
    """Find release authorities that sign messages too, or that may waive what keeps others out."""
    producers = {issuer.issuer for issuer in target.issuers}
    if target.settings.producer is not None:
        producers.add(target.settings.producer.issuer)
    origins = {_origin(issuer) for issuer in target.issuers}

    for authority in target.authorities:
        path = authority.table.path
        if authority.issuer in producers or _origin(authority) in origins:
            message = f"{authority.issuer} signs messages, or its keys do"
            yield finding("release_self", (*path, "issuer"), message)

        much = sorted(
            authority.waive
            & {Reason.PRODUCER_FORBIDDEN, Reason.REPLAYED, Reason.KEY_EXPIRED}
        )
        if much:
            message = f"waives {', '.join(much)}"
            yield finding("release_waives_much", (*path, "waive"), message)


def contents(target: Target) -> Iterator[Finding]:
    """Find keys in a JWK Set file that are symmetric, private, weak, ambiguous or unusable."""
    for source in target.sources:
        path = (*source.table.path, "file")
        file = target.shown(source.file or target.file)

        numbers_by_fault: dict[tuple[str, str], list[str]] = {}
        for number, members in enumerate(_listed_keys(source)):
            fault = _fault(members, source.svid)
            if fault is not None:
                numbers_by_fault.setdefault(fault, []).append(str(number))
        for (code, what), numbers in numbers_by_fault.items():
            yield finding(code, path, f"{file}: key {few(numbers)}: {what}")

        # What only the set as a whole shows: two keys of one kid, and a cut-off that is none.
        keys = key_set(source)
        ambiguous = []
        for line in () if keys is None else keys.skipped:
            if line.startswith(("kid ", "mqauth_cutoff ")):
                ambiguous.append(line)
        if ambiguous:
            yield finding("jwks_skipped", path, f"{file}: {few(ambiguous)}")


def _listed_keys(source: SourceSettings) -> list[Any]:
    """Return the keys of a file as they stand in it; none where it cannot be read."""
    if source.file is None:
        return []
    with suppress(ConfigurationError, strict_json.StrictJSONError):
        raw = disk.read_bounded(source.file, MAX_DOCUMENT)
        document = strict_json.loads(raw, depth=8)
        keys = document.get("keys") if isinstance(document, dict) else None
        if isinstance(keys, list):
            return keys
    return []


def remote(target: Target) -> Iterator[Finding]:
    """Find remote sets that are fetched without TLS, or trusted for longer than they are published or used."""
    for source in target.sources:
        path = source.table.path
        written = source.table.members
        if source.unsafe_http_loopback:
            url = source.issuer if source.discovery else source.jwks or ""
            message = f"http to this machine ({urlsplit(url).hostname})"
            yield finding("jwks_loopback", (*path, "unsafe_http_loopback"), message)

        # The keystore of an issuer whose producer is in the same file says more.
        producer = target.settings.producer
        ring = None
        if producer is not None and producer.issuer == source.issuer and producer.keys:
            ring = ring_of(producer.keys)

        limits = [(DAY, "a day"), (target.options.rotation, "the rotation period")]
        if ring is not None:
            what = "for which the keystore goes on publishing a retired key"
            limits.append((ring.retain, what))
        limit, what = min(limits)
        if "max_stale" in written and source.max_stale > limit:
            message = f"max_stale is {source.max_stale} s, over {limit} s, {what}"
            yield finding("stale_beyond_rotation", (*path, "max_stale"), message)

        delay = source.publish_delay
        if ring is not None and "publish_delay" in written and delay > ring.publish_delay:
            message = f"publish_delay is {delay} s, the keystore's {ring.publish_delay} s"
            yield finding("publish_delay_overstated", (*path, "publish_delay"), message)


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

    judge: Issuer | TrustDomain
    if issuer.trust_domain is None:
        judge = Issuer(keys=keys, subjects=issuer.subjects, vouches=issuer.vouches)
    else:
        judge = TrustDomain(keys=keys, subjects=issuer.subjects)

    for key in keys:
        is_revoked = key.revocation is not None and key.revocation.revoked_at <= now
        if not is_revoked and judge.speaks_for(key, rule.subject):
            return False
    return True


def _origin(source: SourceSettings) -> str:
    """Return where keys come from, the same for two tables that name one file or URL."""
    if source.file is not None:
        return os.path.realpath(source.file)
    return source.jwks or source.issuer


def _fault(members: Any, svid: Svid | None) -> tuple[str, str] | None:
    """Return the code of what is wrong with a key, and a description without a word of the key itself."""
    if isinstance(members, Mapping):
        # A shared secret, or meant for an algorithm of one (RFC 7518, section 3.1).
        algorithm = str(members.get("alg", "")).lower()
        is_secret = members.get("kty") == "oct" or "k" in members
        if is_secret or algorithm == "none" or algorithm.startswith("hs"):
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
