"""The declarations of ``[[consumer.issuers]]``, ``[producer.identity]`` and ``[authority]``.

They say who trusts whom, and who vouches; and of an audit file, of a consumer or of an authority, where the
heads of its chain are signed.
"""

# No ``from __future__ import annotations``, as in ``settings``.

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Final, cast
from urllib.parse import urlsplit

from mqauth.audit.file import HeadFile
from mqauth.audit.misuse import INSTANCES
from mqauth.authority.application import REFUSALS
from mqauth.authority.credential import MAX_LIFETIME
from mqauth.authority.issuing import (
    LIFETIME,
    LONGEST,
    MIN_LIFETIME,
    RATE,
    SHORTEST,
    Grant,
)
from mqauth.clock import Clock
from mqauth.config.declaration import Settings, inner, inners, not_with, only_with
from mqauth.config.kinds import (
    ANY,
    DATE,
    FLAG,
    NAME,
    PATH,
    POSITIVE,
    choice,
    entries,
    is_url,
    many,
    seconds,
    text,
    url,
    whole,
)
from mqauth.config.toml_file import RefusedSetting
from mqauth.http.connection import is_loopback
from mqauth.judging.identities import IDENTITY_LIFETIME, MAX_IDENTITY_LIFETIME
from mqauth.keystore.identity.request import ALGORITHMS, MAX_ENROLMENT
from mqauth.keystore.remote.rules import COOLDOWN, MAX_PUBLISH_DELAY, MAX_STALE
from mqauth.wire.claims import is_name
from mqauth.wire.identity import is_trust_domain, trust_domain_of
from mqauth.wire.jwk import Svid
from mqauth.wire.keys import MAX_KID, Key

_REMOTE: Final = only_with("jwks", "discovery")
_KEYS: Final = only_with("keys")
_TOKEN_URL: Final = only_with("token_url")
_KID: Final = text(
    "kid",
    lambda kid: is_name(kid, 1, MAX_KID),
    f'must be a kid of at most {MAX_KID} characters, or "*"',
)


TRUST_DOMAIN: Final = text(
    "trust domain",
    is_trust_domain,
    "must be wimse:// or spiffe:// and a name in lower case",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings(Settings):
    """An issuer and the source of its keys, which is exactly one of ``file``, ``jwks`` and ``discovery``."""

    issuer: Annotated[str, NAME, "`iss` of the tokens or releases that these keys sign."]
    file: Annotated[
        Path | None, PATH, "Its keys: a JWK Set file, read again when it changes."
    ] = None
    jwks: Annotated[
        str | None, url("https", "http"), "Its keys: the URL of a JWK Set."
    ] = None
    discovery: Annotated[
        bool, FLAG, "Its keys: `true` finds them by OpenID Connect discovery."
    ] = False
    max_stale: Annotated[
        int,
        seconds(int(COOLDOWN), MAX_STALE),
        "How long keys are used while the URL fails.",
        _REMOTE,
    ] = 3600
    publish_delay: Annotated[
        int,
        seconds(0, int(MAX_PUBLISH_DELAY)),
        "How long the issuer publishes a key before it signs with it.",
        _REMOTE,
    ] = 30
    ca: Annotated[
        Path | None,
        PATH,
        "A PEM file of the CAs to trust in place of the system's.",
        _REMOTE,
    ] = None
    snapshot: Annotated[
        Path | None, PATH, "A file that keeps the keys for the next start.", _REMOTE
    ] = None
    unsafe_http_loopback: Annotated[
        bool, FLAG, "Allow http to this machine, for tests.", _REMOTE
    ] = False

    @property
    def svid(self) -> Svid | None:
        """The use of the keys that are read of a SPIFFE bundle."""
        return None

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the refusal of a missing or second source."""
        named = [
            key for key in ("file", "jwks", "discovery") if key in self.table.members
        ]
        return self.refused(
            (
                len(named) != 1,
                "",
                f"needs one of file, jwks and discovery, not {' and '.join(named) or 'none'}",
            ),
            (
                named == ["discovery"] and not self.discovery,
                "discovery",
                "must be true or left out",
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerSettings(SourceSettings):
    """One of ``[[consumer.issuers]]``: the arguments of ``Issuer`` or ``TrustDomain``, and its source of keys.

    Once it is read, ``issuer`` has the name of either.
    """

    # Never None once it was read: ``refusals`` asks for one of the two names.
    issuer: Annotated[str, NAME, "`iss` of the tokens that these keys sign."] = cast(
        str, None
    )
    trust_domain: Annotated[
        str | None,
        TRUST_DOMAIN,
        'In place of `issuer`: a trust domain like `"wimse://prod.example"`; experimental.',
        not_with("issuer"),
        not_with("discovery"),
        not_with("vouches"),
    ] = None
    max_identity_lifetime: Annotated[
        int,
        seconds(1, MAX_IDENTITY_LIFETIME),
        "How long an identity of the trust domain may still live.",
        only_with("trust_domain"),
    ] = IDENTITY_LIFETIME
    subjects: Annotated[
        Mapping[str, frozenset[str]] | None,
        entries(
            _KID,
            many(NAME, 1, frozenset),
            1,
        ),
        'The subjects that a key may speak for, by kid; `"*"` is for keys that do not say it themselves.',
    ] = None
    vouches: Annotated[
        bool, FLAG, "The issuer is an authority: its keys sign for all its subjects."
    ] = False
    until: Annotated[
        date | None,
        DATE,
        "The day by which its producers have identities and it is taken out; loud, and no verdict changes.",
        not_with("trust_domain"),
    ] = None

    def __post_init__(self) -> None:
        if self.trust_domain is not None:
            object.__setattr__(self, "issuer", self.trust_domain)

    @property
    def svid(self) -> Svid | None:
        """The use of the keys that are read of a SPIFFE bundle: those for WITs, of a trust domain alone."""
        return "wit-svid" if self.trust_domain is not None else None

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the refusals of a missing name, and of a missing or second source."""
        yield from SourceSettings.refusals(self)
        yield from self.refused(
            (self.issuer is None, "issuer", "required, or a trust_domain in its place"),
            (
                self.vouches and self.subjects is not None,
                "vouches",
                "contradicts subjects: an issuer vouches for all or pins them",
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityCredentialSettings(Settings):
    """``[producer.identity.credential]``: exactly one of ``token_file``, ``keys`` and ``token_url``."""

    token_file: Annotated[
        Path | None,
        PATH,
        "A file with a token that the platform replaces, as Kubernetes does; read for each request.",
    ] = None
    keys: Annotated[
        Path | None,
        PATH,
        "The producer's own key, which signs a credential of a minute: a keystore folder or a PEM file.",
    ] = None
    issuer: Annotated[
        str | None, NAME, "`iss` of that credential, as the authority has it.", _KEYS
    ] = None
    subject: Annotated[
        str | None, NAME, "`sub` of that credential: a subject of the key.", _KEYS
    ] = None
    token_url: Annotated[
        str | None,
        url("https", "http"),
        "The token endpoint of an OpenID provider, for client credentials.",
    ] = None
    client_id: Annotated[
        str | None, NAME, "The producer's id at that provider.", _TOKEN_URL
    ] = None
    client_secret_file: Annotated[
        Path | None, PATH, "A private file with its secret.", _TOKEN_URL
    ] = None

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the refusal of a missing or second kind, and of what belongs to a kind and is missing."""
        given = self.table.members
        named = [key for key in ("token_file", "keys", "token_url") if key in given]
        needed = {
            "keys": ("issuer", "subject"),
            "token_url": ("client_id", "client_secret_file"),
        }
        return self.refused(
            (
                len(named) != 1,
                "",
                f"needs one of token_file, keys and token_url, not {' and '.join(named) or 'none'}",
            ),
            *(
                (named == [kind] and key not in given, key, f"required with {kind}")
                for kind, keys in needed.items()
                for key in keys
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentitySettings(Settings):
    """``[producer.identity]``: the arguments of ``IdentityKey``."""

    authority: Annotated[
        str,
        url("https", "http"),
        "The authority's url, as it names itself; no `/` at its end.",
    ]
    subject: Annotated[
        str,
        text(
            "identity",
            trust_domain_of,
            "must be wimse:// or spiffe://, a trust domain and a path",
        ),
        "The identity of this producer: `sub` of what the authority issues; its trust domain is the issuer.",
    ]
    algorithm: Annotated[
        str, choice(ALGORITHMS), "The algorithm of the keys that it is issued for."
    ] = "EdDSA"
    credential: Annotated[
        IdentityCredentialSettings,
        inner(IdentityCredentialSettings),
        "What the authority is shown: one of `token_file`, `keys` and `token_url`.",
    ] = field(repr=False)
    ca: Annotated[
        Path | None, PATH, "A PEM file of the CAs to trust in place of the system's."
    ] = None
    unsafe_http_loopback: Annotated[
        bool, FLAG, "Allow http to this machine, for tests."
    ] = False


_HEADS: Final = only_with("heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsSettings(Settings):
    """The part of a table with an audit file that says where the heads of its chain are signed."""

    heads: Annotated[
        Path | None,
        PATH,
        "A file for signed heads of the chain, best on another disk.",
        only_with("heads_key"),
    ] = None
    heads_key: Annotated[
        Path | None, PATH, "The private key that signs the heads.", _HEADS
    ] = None
    heads_every: Annotated[
        int, POSITIVE, "Records after which a head is signed.", _HEADS
    ] = 1000
    heads_seconds: Annotated[
        int, seconds(1), "The time after which a head is signed.", _HEADS
    ] = 60
    heads_passphrase_env: Annotated[
        str | None,
        NAME,
        "The environment variable with the passphrase of that key.",
        _HEADS,
    ] = None
    heads_passphrase_file: Annotated[
        Path | None,
        PATH,
        "The file with the passphrase of that key.",
        _HEADS,
        not_with("heads_passphrase_env"),
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
        return HeadFile(
            self.heads,
            key,
            every=self.heads_every,
            seconds=self.heads_seconds,
            clock=clock,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialSettings(SourceSettings):
    """One of ``[[authority.credentials]]``: an issuer of credentials, and the source of its keys."""

    name: Annotated[str, NAME, "What grants call it."]
    enrolment: Annotated[
        bool | None,
        FLAG,
        "Whether keys are producers' own, each for its `mqauth_sub`; by default `true` with `file`.",
    ] = None
    max_lifetime: Annotated[
        int | None,
        seconds(1, MAX_LIFETIME),
        "The time between `iat` and `exp` of a credential, at most: 3600 s, of a producer's keystore 300 s.",
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
        yield from self.refused(
            (
                self.is_enrolment and self.longest > MAX_ENROLMENT,
                "max_lifetime",
                f"at most {MAX_ENROLMENT} for a producer's own keystore",
            )
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GrantSettings(Settings):
    """One of ``[[authority.grants]]``: a credential with these claims gets this identity."""

    credential: Annotated[str, NAME, "The name of one of `[[authority.credentials]]`."]
    match: Annotated[
        Mapping[str, str],
        entries(NAME, ANY, 1),
        "Claims of the credential; each must be exactly this text.",
    ]
    subject: Annotated[
        str,
        text(
            "identifier",
            trust_domain_of,
            "must be an identifier like wimse://prod.example/shop/orders",
        ),
        "The identity: an identifier in the authority's trust domain.",
    ]
    claims: Annotated[
        Mapping[str, str] | None,
        entries(NAME, NAME, 1),
        "What the WIT says besides; at most 16 texts.",
    ] = None
    lifetime: Annotated[
        int | None,
        seconds(MIN_LIFETIME, LONGEST),
        "How long its WITs live, where that is shorter.",
    ] = None
    blamed = "claims"

    def build(self) -> Grant:
        """Return the grant for the authority."""
        return Grant(**self.arguments(Grant) | {"claims": self.claims or {}})


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityAuthoritySettings(HeadsSettings):
    """``[authority]``: the arguments of ``IdentityAuthority``, its key and its audit file, with signed heads."""

    trust_domain: Annotated[
        str, TRUST_DOMAIN, "The trust domain of all its identities; experimental."
    ]
    url: Annotated[
        str,
        text(
            "URL",
            lambda url: (
                (
                    is_url(url, ("https",))
                    or (
                        is_url(url, ("http",))
                        and is_loopback(urlsplit(url).hostname or "")
                    )
                )
                and not set("?#@") & set(url)
                and not url.endswith("/")
            ),
            "must be https://... (http only on this machine), "
            "with neither user, query, fragment nor a / at its end",
            {"pattern": "^https?://"},
        ),
        "Its own URL: what `aud` of a credential and `htu` of a proof must say.",
    ]
    keys: Annotated[
        Path, PATH, "The keystore folder with the key that signs; made with `--overlap`."
    ]
    passphrase_env: Annotated[
        str | None, NAME, "The environment variable with the passphrase of the keys."
    ] = None
    passphrase_file: Annotated[
        Path | None,
        PATH,
        "The file with the passphrase of the keys.",
        not_with("passphrase_env"),
    ] = None
    lifetime: Annotated[int, seconds(SHORTEST, LONGEST), "How long a WIT lives."] = (
        LIFETIME
    )
    audit: Annotated[
        Path, PATH, "The audit file; a record is durable before anybody has the identity."
    ]
    rate: Annotated[int, whole(0), "WITs of one subject a minute; 0 for any number."] = (
        RATE
    )
    refusal_rate: Annotated[
        int,
        whole(0),
        "Refusals of one address and holder a minute, then it is not read; 0 where a proxy is in front.",
    ] = REFUSALS
    instances: Annotated[
        int,
        POSITIVE,
        "WITs of one subject alive at once, beyond which an alert is given.",
    ] = INSTANCES
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
            yield from each.refused(
                (names.count(each.name) > 1, "name", "is configured twice")
            )
        for grant in self.grants:
            yield from grant.refused(
                (
                    grant.credential not in names,
                    "credential",
                    "is not among [[authority.credentials]]",
                ),
                (
                    trust_domain_of(grant.subject) != self.trust_domain,
                    "subject",
                    "is of another trust domain",
                ),
                (
                    (grant.lifetime or 0) > self.lifetime,
                    "lifetime",
                    "is longer than the authority's",
                ),
            )
