"""A trust domain, whose authority says which workload a key belongs to: whom the identity form trusts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from mqauth.errors import require
from mqauth.wire.jwk import check_source
from mqauth.wire.keys import Key, KeySource

IDENTITY_LIFETIME: Final = 3600
MAX_IDENTITY_LIFETIME: Final = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustDomain:
    """A trust domain, whose authority says which workload a key belongs to. Experimental.

    Args:
        keys: the source of the authority's keys.
        subjects: limits the authority to these subjects, by the kid of its key or by ``"*"``.
        max_identity_lifetime: the longest time that a WIT may still live, seconds.

    Raises:
        ConfigurationError: the lifetime is out of its limits, a text in place of a set, or another's keys.
    """

    vouches: ClassVar[bool] = False
    until: ClassVar[None] = None
    keys: KeySource
    subjects: Mapping[str, frozenset[str]] | None = None
    max_identity_lifetime: int = IDENTITY_LIFETIME

    def __post_init__(self) -> None:
        check_source(self.keys, "wit-svid")
        require(
            not any(isinstance(pinned, str) for pinned in (self.subjects or {}).values()),
            "the subjects of a trust domain are a set: a text would admit its substrings",
        )
        require(
            type(self.max_identity_lifetime) is int and 1 <= self.max_identity_lifetime <= MAX_IDENTITY_LIFETIME,
            f"max_identity_lifetime is 1 to {MAX_IDENTITY_LIFETIME} whole seconds",
        )

    def subjects_of(self, key: Key) -> frozenset[str]:
        """Return the subjects that an authority's key is limited to, none where it is not."""
        return self._pinned(key) or key.subjects or frozenset()

    def speaks_for(self, key: Key, subject: str) -> bool:
        """Tell whether an authority's key may vouch for a subject; it may unless it is limited to others."""
        # Pins of other keys alone leave this one without any subject.
        return (not self.subjects or subject in self._pinned(key)) and (
            key.subjects is None or subject in key.subjects
        )

    def _pinned(self, key: Key) -> frozenset[str]:
        pinned = self.subjects or {}
        return pinned.get(key.kid, pinned.get("*", frozenset()))
