"""Whom a consumer trusts: issuers of the direct form, and trust domains of the identity form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from mqauth.errors import require
from mqauth.wire.claims import MAX_NAME, is_name
from mqauth.wire.identity import is_trust_domain
from mqauth.wire.keys import Key, KeySource

IDENTITY_LIFETIME: Final = 3600
MAX_IDENTITY_LIFETIME: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Issuer:
    """One trusted issuer: where its keys come from and for whom they may speak.

    Args:
        keys: the source of its keys.
        subjects: the subjects by kid, or by ``"*"`` for keys whose JWK does not name any.
        vouches: the issuer is an authority whose keys sign for all its subjects.

    Raises:
        ConfigurationError: both ``subjects`` and ``vouches`` are given, or a text in place of a set.
    """

    keys: KeySource
    subjects: Mapping[str, frozenset[str]] | None = None
    vouches: bool = False

    def __post_init__(self) -> None:
        require(not (self.vouches and self.subjects), "an issuer either vouches for all or pins subjects")
        require(
            not any(isinstance(pinned, str) for pinned in (self.subjects or {}).values()),
            "pinned subjects are a set: a text would admit its substrings",
        )

    def subjects_of(self, key: Key) -> frozenset[str]:
        """Return the subjects that a key is known to speak for, as far as they are named."""
        pinned = self.subjects or {}
        named = (key.subjects or frozenset()) | pinned.get(key.kid, frozenset())
        return named or pinned.get("*", frozenset())

    def speaks_for(self, key: Key, subject: str) -> bool:
        """Tell whether a key may sign as a subject; it may not unless the issuer, a pin or the key says so."""
        pinned = (self.subjects or {}).get(key.kid)
        if pinned is not None and subject not in pinned:
            return False
        if key.subjects is not None:
            return subject in key.subjects
        return self.vouches or pinned is not None or subject in (self.subjects or {}).get("*", frozenset())


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustDomain(Issuer):
    """A trust domain, whose authority says which workload a key belongs to. Experimental.

    Args:
        keys: the source of the authority's keys.
        subjects: limits the authority to these subjects, by the kid of its key or by ``"*"``.
        max_identity_lifetime: the longest time that a WIT may still live, seconds.

    Raises:
        ConfigurationError: the lifetime is out of its limits.
    """

    max_identity_lifetime: int = IDENTITY_LIFETIME

    def __post_init__(self) -> None:
        Issuer.__post_init__(self)
        require(not self.vouches, "a trust domain vouches for its subjects; leave vouches out")
        require(
            type(self.max_identity_lifetime) is int and 1 <= self.max_identity_lifetime <= MAX_IDENTITY_LIFETIME,
            f"max_identity_lifetime is 1 to {MAX_IDENTITY_LIFETIME} whole seconds",
        )

    def speaks_for(self, key: Key, subject: str) -> bool:
        """Tell whether an authority's key may vouch for a subject; it may unless it is limited to others."""
        pinned = self.subjects or {}
        limits = (pinned.get(key.kid), key.subjects, None if key.kid in pinned else pinned.get("*"))
        # Pins of other keys alone leave this one without any subject.
        return all(subject in limit for limit in limits if limit is not None) and (
            not pinned or key.kid in pinned or "*" in pinned
        )


def checked_issuers(keys: Mapping[str, KeySource | Issuer]) -> dict[str, Issuer]:
    """Return the issuers by name, checked together.

    Raises:
        ConfigurationError: there is none, a name is out of its limits, or an issuer lies in a trust domain.
    """
    require(isinstance(keys, Mapping) and keys, "keys names at least one issuer and its keys")
    require(all(map(is_name, keys)), f"an issuer is text of 1 to {MAX_NAME} characters")
    found = {name: one if isinstance(one, Issuer) else Issuer(keys=one) for name, one in keys.items()}
    domains = [name for name, one in found.items() if isinstance(one, TrustDomain)]
    require(all(map(is_trust_domain, domains)), "a trust domain is wimse:// or spiffe:// and a name")
    for name in found.keys() - domains:
        inside = any(name == domain or name.startswith(f"{domain}/") for domain in domains)
        require(
            not inside, f"the issuer {name!r} lies in a trust domain: its tokens would be taken for identities"
        )
    return found
