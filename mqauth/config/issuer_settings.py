"""The declarations of ``[[consumer.issuers]]``, whom to trust, and of ``[producer.identity]``, who vouches."""

# No ``from __future__ import annotations``, as in ``settings``.

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Final, cast

from mqauth.config.declaration import Settings, inner, not_with, only_with
from mqauth.config.kinds import DATE, FLAG, NAME, PATH, choice, entries, many, seconds, text, url
from mqauth.config.toml_file import RefusedSetting
from mqauth.judging.trust_domain import IDENTITY_LIFETIME, MAX_IDENTITY_LIFETIME
from mqauth.keystore.identity.request import ALGORITHMS
from mqauth.keystore.remote.rules import COOLDOWN, MAX_PUBLISH_DELAY, MAX_STALE
from mqauth.wire.claims import is_name
from mqauth.wire.identity import is_trust_domain, trust_domain_of
from mqauth.wire.jwk import Svid
from mqauth.wire.keys import MAX_KID

_REMOTE: Final = only_with("jwks", "discovery")
_KEYS: Final = only_with("keys")
_TOKEN_URL: Final = only_with("token_url")
_KID: Final = text(
    "kid", lambda kid: is_name(kid, 1, MAX_KID), f'must be a kid of at most {MAX_KID} characters, or "*"'
)


def _not_pinned(members: Mapping[str, Any]) -> str | None:
    # ``vouches = false`` beside ``subjects`` says nothing new, and contradicts nothing.
    both = members.get("vouches") and "subjects" in members
    return "contradicts subjects: an issuer vouches for all or pins them" if both else None


TRUST_DOMAIN: Final = text(
    "trust domain", is_trust_domain, "must be wimse:// or spiffe:// and a name in lower case"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSettings(Settings):
    """An issuer and the source of its keys, which is exactly one of ``file``, ``jwks`` and ``discovery``."""

    issuer: Annotated[str, NAME, "`iss` of the tokens or releases that these keys sign."]
    file: Annotated[Path | None, PATH, "Its keys: a JWK Set file, read again when it changes."] = None
    jwks: Annotated[str | None, url("https", "http"), "Its keys: the URL of a JWK Set."] = None
    discovery: Annotated[bool, FLAG, "Its keys: `true` finds them by OpenID Connect discovery."] = False
    max_stale: Annotated[
        int, seconds(int(COOLDOWN), MAX_STALE), "How long keys are used while the URL fails.", _REMOTE
    ] = 3600
    publish_delay: Annotated[
        int,
        seconds(0, int(MAX_PUBLISH_DELAY)),
        "How long the issuer publishes a key before it signs with it.",
        _REMOTE,
    ] = 30
    ca: Annotated[Path | None, PATH, "A PEM file of the CAs to trust in place of the system's.", _REMOTE] = None
    snapshot: Annotated[Path | None, PATH, "A file that keeps the keys for the next start.", _REMOTE] = None
    unsafe_http_loopback: Annotated[bool, FLAG, "Allow http to this machine, for tests.", _REMOTE] = False

    @property
    def svid(self) -> Svid | None:
        """The use of the keys that are read of a SPIFFE bundle."""
        return None

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the refusal of a missing or second source."""
        named = [key for key in ("file", "jwks", "discovery") if key in self.table.members]
        return self.refused(
            (len(named) != 1, "", f"needs one of file, jwks and discovery, not {' and '.join(named) or 'none'}"),
            (named == ["discovery"] and not self.discovery, "discovery", "must be true or left out"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerSettings(SourceSettings):
    """One of ``[[consumer.issuers]]``: the arguments of ``Issuer`` or ``TrustDomain``, and its source of keys.

    Once it is read, ``issuer`` has the name of either.
    """

    # Never None once it was read: ``refusals`` asks for one of the two names.
    issuer: Annotated[str, NAME, "`iss` of the tokens that these keys sign."] = cast(str, None)
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
        entries(_KID, many(NAME, 1, frozenset), 1),
        'The subjects that a key may speak for, by kid; `"*"` is for keys that do not say it themselves.',
    ] = None
    vouches: Annotated[
        bool, FLAG, "The issuer is an authority: its keys sign for all its subjects.", _not_pinned
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
        nameless = not {"issuer", "trust_domain"} & self.table.members.keys()
        yield from self.refused((nameless, "issuer", "required, or a trust_domain in its place"))


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialSettings(Settings):
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
    issuer: Annotated[str | None, NAME, "`iss` of that credential, as the authority has it.", _KEYS] = None
    subject: Annotated[str | None, NAME, "`sub` of that credential: a subject of the key.", _KEYS] = None
    token_url: Annotated[
        str | None, url("https", "http"), "The token endpoint of an OpenID provider, for client credentials."
    ] = None
    client_id: Annotated[str | None, NAME, "The producer's id at that provider.", _TOKEN_URL] = None
    client_secret_file: Annotated[Path | None, PATH, "A private file with its secret.", _TOKEN_URL] = None

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the refusal of a missing or second kind, and of what belongs to a kind and is missing."""
        given = self.table.members
        named = [key for key in ("token_file", "keys", "token_url") if key in given]
        needed = {"keys": ("issuer", "subject"), "token_url": ("client_id", "client_secret_file")}
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

    authority: Annotated[str, url("https", "http"), "The authority's url, as it names itself; no `/` at its end."]
    subject: Annotated[
        str,
        text("identity", trust_domain_of, "must be wimse:// or spiffe://, a trust domain and a path"),
        "The identity of this producer: `sub` of what the authority issues; its trust domain is the issuer.",
    ]
    algorithm: Annotated[str, choice(ALGORITHMS), "The algorithm of the keys that it is issued for."] = "EdDSA"
    credential: Annotated[
        CredentialSettings,
        inner(CredentialSettings),
        "What the authority is shown: one of `token_file`, `keys` and `token_url`.",
    ] = field(repr=False)
    ca: Annotated[Path | None, PATH, "A PEM file of the CAs to trust in place of the system's."] = None
    unsafe_http_loopback: Annotated[bool, FLAG, "Allow http to this machine, for tests."] = False
