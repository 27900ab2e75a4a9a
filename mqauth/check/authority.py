"""Rules on an authority: where its key is, whose credentials it takes, what they get, and what is kept of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from mqauth.authority.grants import REGISTERED
from mqauth.check.findings import Finding, finding, on
from mqauth.check.issuers import key_set
from mqauth.check.keystores import ring_of
from mqauth.check.target import Target, few
from mqauth.config.authority_settings import CredentialSettings, GrantSettings, IdentityAuthoritySettings
from mqauth.config.kinds import is_url
from mqauth.judging.trust_domain import IDENTITY_LIFETIME
from mqauth.keystore import State

LONG: Final = 7200
"""Seconds beyond which a credential lives long; a projected token of Kubernetes lives an hour or two."""
_OF_ALL: Final = frozenset(("iss", "aud", "typ"))
"""Claims that every credential of an issuer may have alike."""
_MEANT: Final = REGISTERED | frozenset(
    ("act", "alg", "ath", "audience", "azp", "client_id", "htm", "htu", "issuer", "kid", "may_act", "nonce",
     "scope", "subject", "typ")
)  # fmt: skip
"""Names, in lower case, that readers of JWTs give a meaning of their own (RFC 7519, 8693 and 9449)."""


@on("authority")
def signing(target: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find a key that can be copied, a URL in the clear, and identities that live longer than they should."""
    found = ring_of(authority.keys)
    keys = () if found is None else found.keys
    local = [key.kid for key in keys if key.uri is None and key.state in (State.PENDING, State.ACTIVE)]
    if local:
        yield finding(
            "authority_key_on_disk", ("authority", "keys"), f"{few(local)} in {target.shown(authority.keys)}"
        )
    if is_url(authority.url, ("http",)):
        yield finding("authority_loopback", ("authority", "url"), f"http to {urlsplit(authority.url).hostname}")
    limit = min(_taken(target, authority.trust_domain), default=IDENTITY_LIFETIME)
    if authority.lifetime > limit:
        yield finding(
            "identity_lifetime_long",
            ("authority", "lifetime"),
            f"lifetime is {authority.lifetime} s, over {limit} s",
        )


def _taken(target: Target, trust_domain: str) -> list[int]:
    """Return how long identities may live for the consumer of the same file, if it trusts the authority."""
    return [issuer.max_identity_lifetime for issuer in target.issuers if issuer.trust_domain == trust_domain]


@on("authority")
def credentials(_: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find credentials that live long, and producers' keys that enrol nobody."""
    for found in authority.credentials:
        if found.longest > LONG:
            yield finding(
                "credential_lifetime_long", (*found.table.path, "max_lifetime"),
                f"max_lifetime is {found.longest} s, over {LONG} s",
            )  # fmt: skip
        silent = [key.kid for key in key_set(found) or () if not key.subjects] if found.is_enrolment else []
        if silent:
            yield finding(
                "enrolment_unbound", (*found.table.path, "file"), f"no subject is named by the key {few(silent)}"
            )


@on("authority")
def grants(target: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find grants that are missing, that anybody of an issuer gets, or that nobody gets."""
    if not authority.grants:
        yield finding("grants_empty", ("authority", "grants"), "no [[authority.grants]]")
    sources = {found.name: found for found in authority.credentials}
    for grant in authority.grants:
        at = (*grant.table.path, "match")
        if grant.match.keys() <= _OF_ALL:
            said = f"{grant.subject} for whatever has this {few(sorted(grant.match))}"
            yield finding("grant_matches_all", at, said)
        wanted, source = grant.match.get("sub"), sources[grant.credential]
        if wanted is not None and wanted not in _enrolled(source, target.now, wanted):
            yield finding("grant_without_key", at, f"no key of {source.name} speaks for {wanted}")
        named = sorted(name for name in grant.claims or () if name.lower() in _MEANT)
        if named:
            yield finding("grant_claim_registered", (*grant.table.path, "claims"), f"says {few(named)}")


def _enrolled(source: CredentialSettings, now: float, wanted: str) -> set[str]:
    """Return whom the keys of a credential speak for; where the file does not tell, whoever is wanted."""
    keys = key_set(source) if source.is_enrolment else None
    if keys is None:
        return {wanted}
    alive = [key for key in keys if key.revocation is None and (key.expires is None or now < key.expires)]
    return {subject for key in alive for subject in key.subjects or ()}


@on("authority")
def overlaps(_: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find grants of which an earlier one decides in their place: another one of the same identity matches too."""
    for number, grant in enumerate(authority.grants):
        before = next((at for at, other in enumerate(authority.grants[:number]) if _covers(other, grant)), None)
        if before is not None:
            said = f"where both match, authority.grants[{before}] gives {grant.subject}"
            yield finding("grants_overlap", (*grant.table.path, "match"), said)


def _covers(first: GrantSettings, second: GrantSettings) -> bool:
    """Tell whether the first grant takes from the second what only the second gives, or all of it."""
    one, two = first.match, second.match
    both = all(one[name] == two[name] for name in one.keys() & two.keys())
    same = (first.credential, first.subject) == (second.credential, second.subject)
    other = (first.claims or {}, first.lifetime) != (second.claims or {}, second.lifetime)
    return same and both and (other or one.items() <= two.items())


@on("authority")
def limits(_: Target, authority: IdentityAuthoritySettings) -> Iterator[Finding]:
    """Find limits that are off, and an audit file that whoever may write it can shorten unseen."""
    if not authority.rate:
        yield finding("authority_rate_off", ("authority", "rate"), "any number of identities of one subject")
    if not authority.refusal_rate:
        yield finding(
            "authority_refusals_off", ("authority", "refusal_rate"), "any number of refusals of one address"
        )
    if authority.heads is None:
        yield finding("authority_unanchored", ("authority", "heads"), "no heads")


RULES: Final = (signing, credentials, grants, overlaps, limits)
