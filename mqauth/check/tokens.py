"""Rules on tokens and the private keys that sign them.

How long tokens live, whom they are meant for, and by which clock they are judged; who can read a producer's keys,
how strong and how old they are, and their successors. An authority signs identities: its key, whose credentials it
takes, what they get, and who asks it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from mqauth.audit import disk
from mqauth.authority.issuing import REGISTERED
from mqauth.check.issuers import DAY, key_set
from mqauth.check.rule import (
    Finding,
    Target,
    finding,
    mode,
    on,
    others,
    ring_of,
    those,
    unless_refused,
)
from mqauth.config.consumer_settings import ConsumerSettings
from mqauth.config.issuer_settings import IdentityAuthoritySettings
from mqauth.config.kinds import is_url
from mqauth.config.settings import ProducerSettings
from mqauth.config.toml_file import RefusedSetting
from mqauth.judging.identities import IDENTITY_LIFETIME
from mqauth.judging.journal import few
from mqauth.judging.token import BACKLOG, longest_wait
from mqauth.keystore import State
from mqauth.signer import MAX_LIFETIME
from mqauth.wire.destination import is_kafka
from mqauth.wire.message import HeaderNames


def limits(target: Target) -> Iterator[Finding]:
    """Find tokens that live longer than they need to, and a leeway that is larger than clocks differ."""
    for table, key, limit, most, name in (
        ("producer", "lifetime", 900, MAX_LIFETIME, "lifetime_long"),
        ("consumer", "max_lifetime", 3600, MAX_LIFETIME, "lifetime_long"),
        ("consumer", "max_lifetime", MAX_LIFETIME, math.inf, "lifetime_unbounded"),
        ("consumer", "leeway", 15, math.inf, "leeway_large"),
    ):
        settings = getattr(target.settings, table)
        if settings is not None and limit < getattr(settings, key) <= most:
            yield finding(
                name, (table, key), f"{key} is {getattr(settings, key)} s, over {limit} s"
            )


@on("consumer")
def backlog(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find a consumer that cannot be stopped for a day without rejecting honest messages for their age."""
    # Producers in other files may sign for a shorter time, which this file does not say.
    lifetimes = [consumer.max_lifetime]
    lifetimes += (
        [] if target.settings.producer is None else [target.settings.producer.lifetime]
    )
    domains = [
        issuer.max_identity_lifetime
        for issuer in consumer.issuers
        if issuer.trust_domain is not None
    ]
    waits = longest_wait(consumer.max_queue_age, lifetimes, domains)
    if waits < BACKLOG and consumer.backlog is None:
        yield finding(
            "backlog_expires",
            ("consumer", "at" if consumer.at == "consume" else "max_queue_age"),
            f"a message that waits for more than {waits} s is rejected",
        )


@on("consumer")
def trust(_: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find times and headers that a consumer gets without proof of who wrote them."""
    destinations = [
        destination for rule in consumer.allow for destination in rule.destinations
    ]
    loose = HeaderNames("allow_unsigned_headers", consumer.allow_unsigned_headers).broad
    wide = [pattern for each in consumer.accept_as for pattern in each.build().broad]
    yield from those(
        (
            consumer.at != "consume"
            and consumer.append_evidence is None
            and not all(map(is_kafka, destinations)),
            "append_without_evidence",
            ("consumer", "append_evidence"),
            'at = "append" without append_evidence, and a rule names RabbitMQ',
        ),
        (
            consumer.unsafe_append_evidence,
            "append_evidence_unproved",
            ("consumer", "unsafe_append_evidence"),
            "append times are believed unproved",
        ),
        (
            loose,
            "allow_unsigned_headers_broad",
            ("consumer", "allow_unsigned_headers"),
            f"{', '.join(loose)} ends within a word",
        ),
        (
            wide,
            "accept_as_broad",
            ("consumer", "accept_as"),
            f"{', '.join(wide)} takes any number of words",
        ),
        (
            consumer.unsigned_headers == "hide",
            "unsigned_headers_hidden",
            ("consumer", "unsigned_headers"),
            "unsigned headers are hidden, not refused",
        ),
    )


def keys_on_disk(target: Target) -> Iterator[Finding]:
    """Find private keys that are open to others or have no passphrase, and a passphrase beside them or missing."""
    for signs in target.signers:
        at, folder, file = signs.at, signs.keys, signs.settings.passphrase_file
        in_folder = os.path.isdir(folder)
        pems = (
            sorted(folder.glob("*.pem"))
            if in_folder
            else [folder]
            if os.path.isfile(folder)
            else []
        )
        for path in filter(others, pems):
            yield finding(
                "key_readable",
                at,
                f"{target.shown(path)} is open to others (mode {mode(path)})",
            )
        # What is no key, or cannot be opened, is for the configuration's own reader.
        texts = [
            unless_refused(partial(disk.read_bounded, path, 64 * 1024)) or b""
            for path in pems
        ]
        plain = [
            raw
            for raw in texts
            if b"PRIVATE KEY-----" in raw
            and not any(
                mark in raw
                for mark in (
                    b"-----BEGIN ENCRYPTED PRIVATE KEY-----",
                    b"Proc-Type: 4,ENCRYPTED",
                )
            )
        ]
        try:
            signs.settings.read_secret("passphrase")
        except RefusedSetting as refused:
            yield finding("passphrase_unavailable", refused.path, refused.what)
        beside = (folder if in_folder else folder.parent).absolute()
        is_writable = others(folder) & 0o022
        yield from those(
            (
                in_folder and others(folder),
                "keystore_writable" if is_writable else "keystore_readable",
                at,
                f"{target.shown(folder)} is open to others (mode {mode(folder)})",
            ),
            (
                plain,
                "key_plain",
                at,
                f"{len(plain)} of {len(pems)} PEM files under {at[1]} without a passphrase",
            ),
            (
                file is not None and file.absolute().parent == beside,
                "passphrase_beside_keys",
                (signs.table, "passphrase_file"),
                f"{target.shown(file or folder)} lies beside the keys",
            ),
        )


def rotation(target: Target) -> Iterator[Finding]:
    """Find keys that are older than they should be, that have no successor, or that change too quickly."""
    now, limit = int(target.now), target.options.rotation
    for signs in target.signers:
        at, ring = signs.at, signs.ring
        if os.path.isfile(signs.keys):
            yield finding(
                "key_alone", at, f"{target.shown(signs.keys)} is a single PEM file"
            )
        if ring is None:
            continue
        delay, retain = ring.publish_delay, ring.retain
        yield from those(
            (
                delay < signs.fresh,
                "publish_delay_short",
                at,
                f"the keystore's publish_delay is {delay} s, under {signs.fresh} s",
            ),
            (
                retain < signs.retain,
                "retain_short",
                at,
                f"the keystore's retain is {retain} s, under {signs.retain} s",
            ),
        )
        # An active key that is overdue or due soon, and a pending one that nobody activates.
        if ring.active is not None and ring.active.activated is not None:
            kid, used = ring.active.kid, now - ring.active.activated
            waiting = [key for key in ring.keys if key.state is State.PENDING]
            yield from those(
                (
                    used > limit,
                    "key_overdue",
                    at,
                    f"the key {kid} has signed for {_days(used)}, longer than {_days(limit)}",
                ),
                (
                    not waiting and used > limit - max(delay, limit // 10),
                    "key_no_next",
                    at,
                    f"the key {kid} is due in {_days(max(limit - used, 0))}, and no other is pending",
                ),
                (
                    any(key.ready + DAY < now for key in waiting),
                    "rotation_stalled",
                    at,
                    "a pending key has been ready for more than a day",
                ),
            )


def references(target: Target) -> Iterator[Finding]:
    """Find holders of keys that are asked without TLS, or whose secret cannot be read here."""
    for signs, held in target.references:
        unreadable = held.secret is not None and not os.access(held.secret, os.R_OK)
        yield from those(
            (held.host, "transit_loopback", signs.at, f"{held.uri}: http to {held.host}"),
            (
                unreadable,
                "passphrase_unavailable",
                signs.at,
                f"{held.uri}: {held.secret} cannot be read",
            ),
        )


def _days(seconds: int) -> str:
    return f"{seconds // DAY} d" if seconds >= DAY else f"{seconds} s"


LONG: Final = 7200
"""Seconds beyond which a credential lives long; a projected token of Kubernetes lives an hour or two."""
_MEANT: Final = REGISTERED | frozenset(
    (
        "act",
        "alg",
        "ath",
        "audience",
        "azp",
        "client_id",
        "htm",
        "htu",
        "issuer",
        "kid",
        "may_act",
        "nonce",
        "scope",
        "subject",
        "typ",
    )
)
"""Names, in lower case, that readers of JWTs give a meaning of their own (RFC 7519, 8693 and 9449)."""


@on("authority")
def signing(target: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find a key that can be copied, a URL in the clear, long lives, limits that are off, and no heads."""
    ring = ring_of(authority.keys)
    keys = () if ring is None else ring.keys
    local = [
        key.kid
        for key in keys
        if key.uri is None and key.state in (State.PENDING, State.ACTIVE)
    ]
    # How long they may live for the consumer of the same file, if it trusts the authority.
    own = [
        each.max_identity_lifetime
        for each in target.issuers
        if each.trust_domain == authority.trust_domain
    ]
    lives, limit = authority.lifetime, min(own, default=IDENTITY_LIFETIME)
    yield from those(
        (
            local,
            "authority_key_on_disk",
            ("authority", "keys"),
            f"{few(local)} in {target.shown(authority.keys)}",
        ),
        (
            is_url(authority.url, ("http",)),
            "authority_loopback",
            ("authority", "url"),
            f"http to {urlsplit(authority.url).hostname}",
        ),
        (
            lives > limit,
            "identity_lifetime_long",
            ("authority", "lifetime"),
            f"lifetime is {lives} s, over {limit} s",
        ),
        (
            not authority.rate,
            "authority_rate_off",
            ("authority", "rate"),
            "any number of identities of one subject",
        ),
        (
            not authority.refusal_rate,
            "authority_refusals_off",
            ("authority", "refusal_rate"),
            "any number of refusals of one address",
        ),
        (
            authority.heads is None,
            "authority_unanchored",
            ("authority", "heads"),
            "no heads",
        ),
    )


@on("authority")
def credentials(_: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find credentials that live long, and producers' keys that enrol nobody."""
    for source in authority.credentials:
        path = source.table.path
        silent = (
            [key.kid for key in key_set(source) or () if not key.subjects]
            if source.is_enrolment
            else []
        )
        yield from those(
            (
                source.longest > LONG,
                "credential_lifetime_long",
                (*path, "max_lifetime"),
                f"max_lifetime is {source.longest} s, over {LONG} s",
            ),
            (
                silent,
                "enrolment_unbound",
                (*path, "file"),
                f"no subject is named by the key {few(silent)}",
            ),
        )


@on("authority")
def grants(target: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find grants that are missing, that anybody of an issuer gets, or that nobody gets."""
    if not authority.grants:
        yield finding("grants_empty", ("authority", "grants"), "no [[authority.grants]]")
    sources = {issuer.name: issuer for issuer in authority.credentials}
    for grant in authority.grants:
        at = (*grant.table.path, "match")
        # Whom the keys of its credential speak for, where a file of producers' own keys tells.
        wanted, source = grant.match.get("sub"), sources[grant.credential]
        keys = key_set(source) if source.is_enrolment else None
        alive = [
            key
            for key in keys or ()
            if key.revocation is None
            and (key.expires is None or target.now < key.expires)
        ]
        unmet = None not in (wanted, keys) and not any(
            wanted in (key.subjects or ()) for key in alive
        )
        named = sorted(name for name in grant.claims or () if name.lower() in _MEANT)
        # Claims that every credential of an issuer may have alike.
        yield from those(
            (
                grant.match.keys() <= {"iss", "aud", "typ"},
                "grant_matches_all",
                at,
                f"{grant.subject} for whatever has this {few(sorted(grant.match))}",
            ),
            (
                unmet,
                "grant_without_key",
                at,
                f"no key of {source.name} speaks for {wanted}",
            ),
            (
                named,
                "grant_claim_registered",
                (*grant.table.path, "claims"),
                f"says {few(named)}",
            ),
        )


@on("authority")
def overlaps(_: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find grants of which an earlier one decides in their place: another one of the same identity matches too."""
    for number, grant in enumerate(authority.grants):
        for earlier, other in enumerate(authority.grants[:number]):
            first, second = other.match, grant.match
            both = all(
                first[name] == second[name] for name in first.keys() & second.keys()
            )
            same = (other.credential, other.subject) == (grant.credential, grant.subject)
            differs = (other.claims or {}, other.lifetime) != (
                grant.claims or {},
                grant.lifetime,
            )
            # It takes from this one what only this one gives, or all of it.
            if same and both and (differs or first.items() <= second.items()):
                yield finding(
                    "grants_overlap",
                    (*grant.table.path, "match"),
                    f"where both match, authority.grants[{earlier}] gives {grant.subject}",
                )
                break


@on("producer")
def enrolment(_: Target, producer: ProducerSettings) -> Iterator[Finding]:
    """Find requests for an identity in plain text, which stay on this machine."""
    identity = producer.identity
    urls = (
        ()
        if identity is None
        else (
            (identity.table, "authority", identity.authority),
            (identity.credential.table, "token_url", identity.credential.token_url),
        )
    )
    return (
        finding(
            "authority_loopback", (*table.path, key), f"http to {urlsplit(url).hostname}"
        )
        for table, key, url in urls
        if url is not None and is_url(url, ("http",))
    )


RULES: Final = (
    limits,
    backlog,
    trust,
    keys_on_disk,
    rotation,
    references,
    enrolment,
    signing,
    credentials,
    grants,
    overlaps,
)
