"""The declarations of ``[authority]``, and of signed heads, which an audit file of a consumer has alike."""

# No ``from __future__ import annotations``, as in ``settings``.

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from mqauth.audit.file import HeadFile
from mqauth.audit.identity_watch import INSTANCES
from mqauth.authority.application import REFUSALS
from mqauth.authority.credential import MAX_LIFETIME
from mqauth.authority.desk import MIN_LIFETIME, Grant
from mqauth.authority.issuing import LIFETIME, LONGEST, RATE, SHORTEST
from mqauth.clock import Clock
from mqauth.config.declaration import Settings, inners, not_with, only_with
from mqauth.config.issuer_settings import TRUST_DOMAIN, SourceSettings
from mqauth.config.kinds import ANY, FLAG, NAME, PATH, POSITIVE, entries, is_url, seconds, text, whole
from mqauth.config.toml_file import RefusedSetting
from mqauth.http.connection import is_loopback
from mqauth.wire.enrolment import MAX_LIFETIME as MAX_ENROLMENT
from mqauth.wire.identity import trust_domain_of
from mqauth.wire.jwk import Svid
from mqauth.wire.keys import Key


def _is_own_url(text: str) -> bool:
    local = is_url(text, ("http",)) and is_loopback(urlsplit(text).hostname or "")
    return (local or is_url(text, ("https",))) and not set("?#@") & set(text) and not text.endswith("/")


_AUTHORITY_URL: Final = text(
    "URL",
    _is_own_url,
    "must be https://... (http only on this machine), with neither user, query, fragment nor a / at its end",
    {"pattern": "^https?://"},
)
_HEADS: Final = only_with("heads")
_SUBJECT: Final = text(
    "identifier", trust_domain_of, "must be an identifier like wimse://prod.example/shop/orders"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsSettings(Settings):
    """The part of a table with an audit file that says where the heads of its chain are signed."""

    heads: Annotated[
        Path | None, PATH, "A file for signed heads of the chain, best on another disk.", only_with("heads_key")
    ] = None
    heads_key: Annotated[Path | None, PATH, "The private key that signs the heads.", _HEADS] = None
    heads_every: Annotated[int, POSITIVE, "Records after which a head is signed.", _HEADS] = 1000
    heads_seconds: Annotated[int, seconds(1), "The time after which a head is signed.", _HEADS] = 60
    heads_passphrase_env: Annotated[
        str | None, NAME, "The environment variable with the passphrase of that key.", _HEADS
    ] = None
    heads_passphrase_file: Annotated[
        Path | None, PATH, "The file with the passphrase of that key.", _HEADS, not_with("heads_passphrase_env")
    ] = None

    def head_file(self, clock: Clock) -> HeadFile | None:
        """Return where heads are signed, ``None`` where they are not.

        Raises:
            RefusedSetting: the key cannot be read.
        """
        if self.heads is None or self.heads_key is None:
            return None
        passphrase = self.read_secret("heads_passphrase")
        with self.table.located("heads_key"):
            key = Key.load(self.heads_key, passphrase=passphrase)
        return HeadFile(self.heads, key, every=self.heads_every, seconds=self.heads_seconds, clock=clock)


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialSettings(SourceSettings):
    """One of ``[[authority.credentials]]``: an issuer of credentials, and the source of its keys."""

    name: Annotated[str, NAME, "What grants call it."]
    enrolment: Annotated[
        bool | None,
        FLAG,
        "The keys are producers' own, each for the subjects in its `mqauth_sub`; by default `true` with `file`.",
    ] = None
    max_lifetime: Annotated[
        int | None,
        seconds(1, MAX_LIFETIME),
        "The time between `iat` and `exp` of a credential, at most: 3600 s, of a producer's own keystore 300 s.",
    ] = None

    @property
    def is_enrolment(self) -> bool:
        """Whether the keys are producers' own keystores."""
        return self.enrolment if self.enrolment is not None else self.file is not None

    @property
    def longest(self) -> int:
        """Seconds between ``iat`` and ``exp``, at most."""
        return self.max_lifetime or (MAX_ENROLMENT if self.is_enrolment else LIFETIME)

    @property
    def svid(self) -> Svid | None:
        """The use of the keys that are read of a SPIFFE bundle; producers' own keys are in none."""
        return None if self.is_enrolment else "jwt-svid"

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the refusals of a missing or second source, and of a keystore's credential that lives too long."""
        yield from SourceSettings.refusals(self)
        long = self.is_enrolment and self.longest > MAX_ENROLMENT
        yield from self.refused((long, "max_lifetime", f"at most {MAX_ENROLMENT} for a producer's own keystore"))


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantSettings(Settings):
    """One of ``[[authority.grants]]``: a credential with these claims gets this identity."""

    credential: Annotated[str, NAME, "The name of one of `[[authority.credentials]]`."]
    match: Annotated[
        Mapping[str, str], entries(NAME, ANY, 1), "Claims of the credential; each must be exactly this text."
    ]
    subject: Annotated[str, _SUBJECT, "The identity: an identifier in the authority's trust domain."]
    claims: Annotated[
        Mapping[str, str] | None, entries(NAME, NAME, 1), "What the WIT says besides; at most 16 texts."
    ] = None
    lifetime: Annotated[
        int | None, seconds(MIN_LIFETIME, LONGEST), "How long its WITs live, where that is shorter."
    ] = None
    blamed = "claims"

    def build(self) -> Grant:
        """Return the grant for the authority."""
        return Grant(**self.arguments(Grant) | {"claims": self.claims or {}})


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityAuthoritySettings(HeadsSettings):
    """``[authority]``: the arguments of ``IdentityAuthority``, its key and its audit file, with signed heads."""

    trust_domain: Annotated[str, TRUST_DOMAIN, "The trust domain of all its identities; experimental."]
    url: Annotated[str, _AUTHORITY_URL, "Its own URL: what `aud` of a credential and `htu` of a proof must say."]
    keys: Annotated[Path, PATH, "The keystore folder with the key that signs; made with `--overlap`."]
    passphrase_env: Annotated[str | None, NAME, "The environment variable with the passphrase of the keys."] = None
    passphrase_file: Annotated[
        Path | None, PATH, "The file with the passphrase of the keys.", not_with("passphrase_env")
    ] = None
    lifetime: Annotated[int, seconds(SHORTEST, LONGEST), "How long a WIT lives."] = LIFETIME
    audit: Annotated[Path, PATH, "The audit file; a record is durable before anybody has the identity."]
    rate: Annotated[int, whole(0), "WITs of one subject a minute; 0 for any number."] = RATE
    refusal_rate: Annotated[
        int,
        whole(0),
        "Refusals of one address and holder a minute, then it is not read; 0 where a proxy is in front.",
    ] = REFUSALS
    instances: Annotated[int, POSITIVE, "WITs of one subject alive at once, beyond which an alert is given."] = (
        INSTANCES
    )
    credentials: Annotated[
        tuple[CredentialSettings, ...],
        inners(CredentialSettings, 1, "issuer"),
        "Whose credentials are taken; each has one of `file`, `jwks`, `discovery`.",
    ]
    grants: Annotated[
        tuple[GrantSettings, ...],
        inners(GrantSettings),
        "Which credential gets which identity; exact, no patterns.",
    ] = ()

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the refusals of two credentials of one name, and of grants that no credential can get."""
        names = [each.name for each in self.credentials]
        for each in self.credentials:
            yield from each.refused((names.count(each.name) > 1, "name", "is configured twice"))
        for grant in self.grants:
            yield from grant.refused(
                (grant.credential not in names, "credential", "is not among [[authority.credentials]]"),
                (trust_domain_of(grant.subject) != self.trust_domain, "subject", "is of another trust domain"),
                ((grant.lifetime or 0) > self.lifetime, "lifetime", "is longer than the authority's"),
            )
