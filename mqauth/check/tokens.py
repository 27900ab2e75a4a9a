"""Rules on tokens and the private keys that sign them.

How long tokens live, whom they are meant for, and by which clock they are judged; who
can read a producer's keys, how strong and how old they are, and their successors. An
authority signs identities: its key, whose credentials it takes, what they get, and who
asks it.
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
    """Find tokens that live longer than needed, and a leeway larger than clocks differ."""
    for table, key, limit, most, name in (
        ("producer", "lifetime", 900, MAX_LIFETIME, "lifetime_long"),
        ("consumer", "max_lifetime", 3600, MAX_LIFETIME, "lifetime_long"),
        ("consumer", "max_lifetime", MAX_LIFETIME, math.inf, "lifetime_unbounded"),
        ("consumer", "leeway", 15, math.inf, "leeway_large"),
    ):
        settings = getattr(target.settings, table)
        if settings is None:
            continue
        value = getattr(settings, key)
        if limit < value <= most:
            yield finding(name, (table, key), f"{key} is {value} s, over {limit} s")


@on("consumer")
def backlog(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find a consumer that rejects honest messages for their age after a day's stop."""
    # Producers in other files may sign for a shorter time, which this file does not say.
    lifetimes = [consumer.max_lifetime]
    if target.settings.producer is not None:
        lifetimes.append(target.settings.producer.lifetime)

    identities = []
    for issuer in consumer.issuers:
        if issuer.trust_domain is not None:
            identities.append(issuer.max_identity_lifetime)

    wait = longest_wait(consumer.max_queue_age, lifetimes, identities)
    if wait < BACKLOG and consumer.backlog is None:
        key = "at" if consumer.at == "consume" else "max_queue_age"
        message = f"a message that waits for more than {wait} s is rejected"
        yield finding("backlog_expires", ("consumer", key), message)


@on("consumer")
def trust(_: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find times and headers that a consumer gets without proof of who wrote them."""
    destinations = [name for rule in consumer.allow for name in rule.destinations]
    on_rabbitmq = not all(is_kafka(name) for name in destinations)
    if consumer.at != "consume" and consumer.append_evidence is None and on_rabbitmq:
        yield finding(
            "append_without_evidence",
            ("consumer", "append_evidence"),
            'at = "append" without append_evidence, and a rule names RabbitMQ',
        )
    if consumer.unsafe_append_evidence:
        yield finding(
            "append_evidence_unproved",
            ("consumer", "unsafe_append_evidence"),
            "append times are believed unproved",
        )

    loose = HeaderNames("allow_unsigned_headers", consumer.allow_unsigned_headers).broad
    if loose:
        yield finding(
            "allow_unsigned_headers_broad",
            ("consumer", "allow_unsigned_headers"),
            f"{', '.join(loose)} ends within a word",
        )

    wide = [pattern for alias in consumer.accept_as for pattern in alias.build().broad]
    if wide:
        message = f"{', '.join(wide)} takes any number of words"
        yield finding("accept_as_broad", ("consumer", "accept_as"), message)

    if consumer.unsigned_headers == "hide":
        yield finding(
            "unsigned_headers_hidden",
            ("consumer", "unsigned_headers"),
            "unsigned headers are hidden, not refused",
        )


_ENCRYPTED: Final = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
"""Marks of PEM files whose key has a passphrase: PKCS #8, and OpenSSL's older form."""


def keys_on_disk(target: Target) -> Iterator[Finding]:
    """Find private keys that others can read, or that have no passphrase or a bad one."""
    for signs in target.signers:
        keys = signs.keys
        in_folder = os.path.isdir(keys)
        pems = []
        if in_folder:
            pems = sorted(keys.glob("*.pem"))
        elif os.path.isfile(keys):
            pems = [keys]

        for path in pems:
            if others(path):
                message = f"{target.shown(path)} is open to others (mode {mode(path)})"
                yield finding("key_readable", signs.at, message)

        # What is no key, or cannot be opened, is for the configuration's own reader.
        plain = 0
        for path in pems:
            raw = unless_refused(partial(disk.read_bounded, path, 64 * 1024)) or b""
            if b"PRIVATE KEY-----" in raw and not any(mark in raw for mark in _ENCRYPTED):
                plain += 1

        try:
            signs.settings.read_secret("passphrase")
        except RefusedSetting as refused:
            yield finding("passphrase_unavailable", refused.path, refused.what)

        if in_folder and others(keys):
            is_writable = others(keys) & 0o022
            yield finding(
                "keystore_writable" if is_writable else "keystore_readable",
                signs.at,
                f"{target.shown(keys)} is open to others (mode {mode(keys)})",
            )
        if plain:
            message = f"{plain} of {len(pems)} PEM files under keys without a passphrase"
            yield finding("key_plain", signs.at, message)

        folder = keys if in_folder else keys.parent
        file = signs.settings.passphrase_file
        if file is not None and file.absolute().parent == folder.absolute():
            yield finding(
                "passphrase_beside_keys",
                (signs.table, "passphrase_file"),
                f"{target.shown(file)} lies beside the keys",
            )


def rotation(target: Target) -> Iterator[Finding]:
    """Find keys that are too old, that have no successor, or that change too quickly."""
    now = int(target.now)
    limit = target.options.rotation
    for signs in target.signers:
        at = signs.at
        if os.path.isfile(signs.keys):
            message = f"{target.shown(signs.keys)} is a single PEM file"
            yield finding("key_alone", at, message)
        ring = signs.ring
        if ring is None:
            continue

        delay = ring.publish_delay
        if delay < signs.fresh:
            message = f"the keystore's publish_delay is {delay} s, under {signs.fresh} s"
            yield finding("publish_delay_short", at, message)
        if ring.retain < signs.retain:
            message = f"the keystore's retain is {ring.retain} s, under {signs.retain} s"
            yield finding("retain_short", at, message)

        # An active key that is overdue or due soon; a pending one that nobody activates.
        if ring.active is None or ring.active.activated is None:
            continue
        kid = ring.active.kid
        age = now - ring.active.activated
        if age > limit:
            message = (
                f"the key {kid} has signed for {_days(age)}, longer than {_days(limit)}"
            )
            yield finding("key_overdue", at, message)

        pending = [key for key in ring.keys if key.state is State.PENDING]
        if not pending and age > limit - max(delay, limit // 10):
            left = _days(max(limit - age, 0))
            message = f"the key {kid} is due in {left}, and no other is pending"
            yield finding("key_no_next", at, message)
        if any(key.ready + DAY < now for key in pending):
            message = "a pending key has been ready for more than a day"
            yield finding("rotation_stalled", at, message)


def references(target: Target) -> Iterator[Finding]:
    """Find holders of keys that are asked without TLS, or whose secret is unreadable."""
    for signs, reference in target.references:
        if reference.host:
            message = f"{reference.uri}: http to {reference.host}"
            yield finding("transit_loopback", signs.at, message)

        secret = reference.secret
        if secret is not None and not os.access(secret, os.R_OK):
            message = f"{reference.uri}: {secret} cannot be read"
            yield finding("passphrase_unavailable", signs.at, message)


def _days(seconds: int) -> str:
    return f"{seconds // DAY} d" if seconds >= DAY else f"{seconds} s"


LONG: Final = 7200
"""Seconds beyond which a credential lives long; one of Kubernetes lives an hour or two."""
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
"""Names, in lower case, that readers of JWTs give a meaning (RFC 7519, 8693 and 9449)."""


@on("authority")
def signing(target: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find a key that can be copied, a URL in the clear, long lives, and no limits."""
    ring = ring_of(authority.keys)
    keys = () if ring is None else ring.keys
    signing_states = (State.PENDING, State.ACTIVE)
    local = [key.kid for key in keys if key.uri is None and key.state in signing_states]
    if local:
        message = f"{few(local)} in {target.shown(authority.keys)}"
        yield finding("authority_key_on_disk", ("authority", "keys"), message)
    if is_url(authority.url, ("http",)):
        message = f"http to {urlsplit(authority.url).hostname}"
        yield finding("authority_loopback", ("authority", "url"), message)

    # How long they may live for this file's consumer, if it trusts the authority.
    lifetimes = [
        issuer.max_identity_lifetime
        for issuer in target.issuers
        if issuer.trust_domain == authority.trust_domain
    ]
    limit = min(lifetimes, default=IDENTITY_LIFETIME)
    if authority.lifetime > limit:
        message = f"lifetime is {authority.lifetime} s, over {limit} s"
        yield finding("identity_lifetime_long", ("authority", "lifetime"), message)

    if not authority.rate:
        message = "any number of identities of one subject"
        yield finding("authority_rate_off", ("authority", "rate"), message)
    if not authority.refusal_rate:
        message = "any number of refusals of one address"
        yield finding("authority_refusals_off", ("authority", "refusal_rate"), message)
    if authority.heads is None:
        yield finding("authority_unanchored", ("authority", "heads"), "no heads")


@on("authority")
def credentials(_: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find credentials that live long, and producers' keys that enrol nobody."""
    for source in authority.credentials:
        path = source.table.path
        if source.longest > LONG:
            message = f"max_lifetime is {source.longest} s, over {LONG} s"
            yield finding("credential_lifetime_long", (*path, "max_lifetime"), message)

        if source.is_enrolment:
            silent = [key.kid for key in key_set(source) or () if not key.subjects]
            if silent:
                message = f"no subject is named by the key {few(silent)}"
                yield finding("enrolment_unbound", (*path, "file"), message)


@on("authority")
def grants(target: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find grants that are missing, that anybody of an issuer gets, or that nobody gets."""
    if not authority.grants:
        yield finding("grants_empty", ("authority", "grants"), "no [[authority.grants]]")
    sources = {issuer.name: issuer for issuer in authority.credentials}
    for grant in authority.grants:
        match = (*grant.table.path, "match")
        # Claims that every credential of an issuer may have alike.
        if grant.match.keys() <= {"iss", "aud", "typ"}:
            message = f"{grant.subject} for whatever has this {few(sorted(grant.match))}"
            yield finding("grant_matches_all", match, message)

        # Whom the keys of its credential speak for, where a file of producers' keys tells.
        source = sources[grant.credential]
        subject = grant.match.get("sub")
        keys = key_set(source) if source.is_enrolment else None
        if subject is not None and keys is not None:
            speakers = [
                key
                for key in keys
                if key.revocation is None
                and (key.expires is None or target.now < key.expires)
            ]
            if not any(subject in (key.subjects or ()) for key in speakers):
                message = f"no key of {source.name} speaks for {subject}"
                yield finding("grant_without_key", match, message)

        registered = sorted(name for name in grant.claims or () if name.lower() in _MEANT)
        if registered:
            yield finding(
                "grant_claim_registered",
                (*grant.table.path, "claims"),
                f"says {few(registered)}",
            )


@on("authority")
def overlaps(_: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find grants in whose place an earlier one of the same identity decides."""
    for number, grant in enumerate(authority.grants):
        for earlier, other in enumerate(authority.grants[:number]):
            if other.credential != grant.credential or other.subject != grant.subject:
                continue
            common = other.match.keys() & grant.match.keys()
            if any(other.match[name] != grant.match[name] for name in common):
                continue

            # It takes from this one what only this one gives, or all of it.
            same_claims = (other.claims or {}) == (grant.claims or {})
            gives_the_same = same_claims and other.lifetime == grant.lifetime
            takes_all = other.match.items() <= grant.match.items()
            if takes_all or not gives_the_same:
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
    if identity is None:
        return
    token_url = identity.credential.token_url
    for table, key, url in (
        (identity.table, "authority", identity.authority),
        (identity.credential.table, "token_url", token_url),
    ):
        if url is not None and is_url(url, ("http",)):
            message = f"http to {urlsplit(url).hostname}"
            yield finding("authority_loopback", (*table.path, key), message)


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
