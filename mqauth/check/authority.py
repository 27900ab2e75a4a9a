"""Rules on an authority: its key, whose credentials it takes, and what they get; and on who asks it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from mqauth.authority.desk import REGISTERED
from mqauth.check.findings import Finding, finding, on, those
from mqauth.check.issuers import key_set
from mqauth.check.target import Target, few, ring_of
from mqauth.config.issuer_settings import IdentityAuthoritySettings
from mqauth.config.kinds import is_url
from mqauth.config.settings import ProducerSettings
from mqauth.http.connection import is_loopback
from mqauth.judging.trust_domain import IDENTITY_LIFETIME
from mqauth.keystore import State

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
    """Find a key that can be copied, a URL in the clear, and identities that live longer than they should."""
    found = ring_of(authority.keys)
    keys = () if found is None else found.keys
    local = [key.kid for key in keys if key.uri is None and key.state in (State.PENDING, State.ACTIVE)]
    # How long they may live for the consumer of the same file, if it trusts the authority.
    own = [each.max_identity_lifetime for each in target.issuers if each.trust_domain == authority.trust_domain]
    lives, limit = authority.lifetime, min(own, default=IDENTITY_LIFETIME)
    yield from those(
        (local, "authority_key_on_disk", ("authority", "keys"), f"{few(local)} in {target.shown(authority.keys)}"),
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
    )


@on("authority")
def credentials(_: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find credentials that live long, and producers' keys that enrol nobody."""
    for source in authority.credentials:
        path = source.table.path
        silent = [key.kid for key in key_set(source) or () if not key.subjects] if source.is_enrolment else []
        yield from those(
            (
                source.longest > LONG,
                "credential_lifetime_long",
                (*path, "max_lifetime"),
                f"max_lifetime is {source.longest} s, over {LONG} s",
            ),
            (silent, "enrolment_unbound", (*path, "file"), f"no subject is named by the key {few(silent)}"),
        )


@on("authority")
def grants(target: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find grants that are missing, that anybody of an issuer gets, or that nobody gets."""
    if not authority.grants:
        yield finding("grants_empty", ("authority", "grants"), "no [[authority.grants]]")
    sources = {found.name: found for found in authority.credentials}
    for grant in authority.grants:
        at = (*grant.table.path, "match")
        # Whom the keys of its credential speak for, where a file of producers' own keys tells.
        wanted, source = grant.match.get("sub"), sources[grant.credential]
        keys = key_set(source) if source.is_enrolment else None
        alive = [
            key
            for key in keys or ()
            if key.revocation is None and (key.expires is None or target.now < key.expires)
        ]
        unmet = None not in (wanted, keys) and not any(wanted in (key.subjects or ()) for key in alive)
        named = sorted(name for name in grant.claims or () if name.lower() in _MEANT)
        # Claims that every credential of an issuer may have alike.
        yield from those(
            (
                grant.match.keys() <= {"iss", "aud", "typ"},
                "grant_matches_all",
                at,
                f"{grant.subject} for whatever has this {few(sorted(grant.match))}",
            ),
            (unmet, "grant_without_key", at, f"no key of {source.name} speaks for {wanted}"),
            (named, "grant_claim_registered", (*grant.table.path, "claims"), f"says {few(named)}"),
        )


@on("authority")
def overlaps(_: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find grants of which an earlier one decides in their place: another one of the same identity matches too."""
    for number, grant in enumerate(authority.grants):
        for earlier, other in enumerate(authority.grants[:number]):
            first, second = other.match, grant.match
            both = all(first[name] == second[name] for name in first.keys() & second.keys())
            same = (other.credential, other.subject) == (grant.credential, grant.subject)
            differs = (other.claims or {}, other.lifetime) != (grant.claims or {}, grant.lifetime)
            # It takes from this one what only this one gives, or all of it.
            if same and both and (differs or first.items() <= second.items()):
                what = f"where both match, authority.grants[{earlier}] gives {grant.subject}"
                yield finding("grants_overlap", (*grant.table.path, "match"), what)
                break


@on("authority")
def limits(_: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find limits that are off, and an audit file that whoever may write it can shorten unseen."""
    yield from those(
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
        (authority.heads is None, "authority_unanchored", ("authority", "heads"), "no heads"),
    )


@on("producer")
def enrolment(_: Target, producer: ProducerSettings) -> Iterator[Finding]:
    """Find requests for an identity in plain text."""
    identity = producer.identity
    if identity is not None:
        shown = identity.credential
        for table, key, url in (
            (identity.table, "authority", identity.authority),
            (shown.table, "token_url", shown.token_url),
        ):
            if url is not None and is_url(url, ("http",)):
                host = urlsplit(url).hostname or ""
                local = identity.unsafe_http_loopback and is_loopback(host)
                code = "authority_loopback" if local else "authority_http"
                yield finding(code, (*table.path, key), f"http to {host}")


RULES: Final = (enrolment, signing, credentials, grants, overlaps, limits)
