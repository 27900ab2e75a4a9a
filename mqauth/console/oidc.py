"""How people log in at an OpenID provider: the TOML file of settings, the check of an ID token, who it is about.

The client's secret is never in the file. An ID token is checked against one login (OpenID Connect Core 1.0,
section 3.1.3.7).
"""

from __future__ import annotations

import hmac
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final

from joserfc import jws
from joserfc.jwk import JWKRegistry, RSAKey
from joserfc.jwt import JWTClaimsRegistry

from mqauth.audit.disk import read_bounded
from mqauth.config.declaration import Settings, not_with, read, read_file, schema_of
from mqauth.config.kinds import FLAG, NAME, PATH, Kind, is_url, many, one_or_many, text
from mqauth.config.toml_file import RefusedSetting, Table
from mqauth.console.site import ROLES
from mqauth.errors import MqauthError, require
from mqauth.wire import strict_json
from mqauth.wire.claims import is_name

ALGORITHMS: Final = frozenset(
    (
        "RS256",
        "RS384",
        "RS512",
        "PS256",
        "PS384",
        "PS512",
        "ES256",
        "ES384",
        "ES512",
        "Ed25519",
    )
)
"""Signatures by a key that only the provider has: not ``none``, and not HMAC, whose key the client has too."""
LEEWAY: Final = 30
"""Seconds of difference between the clocks that are allowed."""
MAX_AGE: Final = 600
"""Seconds since the token was issued; it comes straight from the token endpoint."""
MAX_VALUES: Final = 1000
_MIN_RSA_BITS: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSettings(Settings):
    """``[roles]``: the values of the role claim that stand for each of our roles."""

    viewer: Annotated[
        tuple[str, ...], many(NAME), "Values that make a viewer, letter for letter."
    ] = ()
    reviewer: Annotated[tuple[str, ...], many(NAME), "Values that make a reviewer."] = ()


def _roles(table: Table, key: str, _: Any) -> dict[str, str]:
    """Return our role for each value of the role claim."""
    listed = read(RoleSettings, table.inner(key))
    roles: dict[str, str] = {}
    for role in ROLES:
        for value in getattr(listed, role):
            listed.table.require(
                roles.setdefault(value, role) == role,
                role,
                "names a value that stands for another role too",
            )
    listed.table.require(roles, "", "must name at least one value")
    return roles


_ORIGIN: Final = text(
    "URL",
    lambda url: (
        is_url(url, ("https", "http"))
        and not set("/?#@") & set(url.partition("://")[2].removesuffix("/"))
    ),
    "must be scheme, host and port alone: https://console.example:8443",
    into=lambda url, _: url.removesuffix("/").lower(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class OIDCSettings(Settings):
    """An OpenID provider, and who may do what.

    Args:
        secret: the client's secret; ``None`` for a public client, which only PKCE protects.
    """

    issuer: Annotated[
        str, NAME, "The provider's https URL, exactly as its ID tokens name it."
    ]
    client_id: Annotated[
        str, NAME, "The console's client, as registered with the provider."
    ]
    client_secret_file: Annotated[
        Path | None,
        PATH,
        "The file with the client's secret; refused where others may read it.",
    ] = None
    client_secret_env: Annotated[
        str | None,
        NAME,
        "The environment variable with the client's secret.",
        not_with("client_secret_file"),
    ] = None
    url: Annotated[
        str | None,
        _ORIGIN,
        "Scheme, host and port under which people reach the console; by default where it listens.",
    ] = None
    label: Annotated[str, NAME, "The words on the button, after *Sign in with*."] = (
        "OpenID Connect"
    )
    scopes: Annotated[
        tuple[str, ...], many(NAME, 1), "What is asked for; `openid` is among them."
    ] = (
        "openid",
        "email",
        "profile",
    )
    name_claim: Annotated[
        str, NAME, "The claim that names people in releases and audit records."
    ] = "email"
    role_claim: Annotated[
        tuple[str, ...],
        one_or_many(NAME),
        "The claim with a person's groups; a list leads into nested claims.",
    ] = ("groups",)
    roles: Annotated[
        Mapping[str, str],
        Kind(schema_of(RoleSettings), _roles),
        "Which values of that claim stand for a role; of two roles the higher counts.",
    ]
    ca: Annotated[
        Path | None, PATH, "A PEM file of the CAs to trust in place of the system's."
    ] = None
    unsafe_http_loopback: Annotated[
        bool, FLAG, "Allow http to a provider on this machine, for tests."
    ] = False
    secret: str | None = field(default=None, repr=False)

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield what is wrong with the scopes: ``openid`` is missing, or two are in one text."""
        return self.refused(
            (
                "openid" not in self.scopes or any(" " in scope for scope in self.scopes),
                "scopes",
                'must name "openid", and each scope by itself',
            )
        )


def read_settings(path: Path) -> OIDCSettings:
    """Return the settings of a file, with the secret that it refers to.

    Raises:
        ConfigurationError: the file cannot be read, a key is unknown, missing or out of its limits, or the secret
            cannot be read or others may read it; one line that says where.
    """
    settings = read_file(OIDCSettings, path)
    if settings.client_secret_file is not None:
        key, raw = (
            "client_secret_file",
            read_bounded(settings.client_secret_file, 1024, private=True),
        )
    elif settings.client_secret_env is not None:
        key, raw = (
            "client_secret_env",
            os.environb.get(os.fsencode(settings.client_secret_env), b""),
        )
    else:
        return settings
    settings.table.require(
        re.fullmatch(rb"[ -~]+", raw.strip()), key, "must hold printable ASCII characters"
    )
    return replace(settings, secret=raw.strip().decode("ascii"))


class IDTokenError(MqauthError):
    """The ID token is not one for this login. The text shows nothing of the token."""


class NoNameError(MqauthError):
    """The person cannot be named. The text may be shown to them."""


def check(
    token: str,
    jwks: Mapping[str, Any],
    settings: OIDCSettings,
    *,
    nonce: str,
    now: float,
    algorithms: Collection[str] = ALGORITHMS,
) -> dict[str, Any]:
    """Return the claims of an ID token that is what it must be.

    Args:
        token: the compact JWS.
        jwks: the provider's JWK Set.
        settings: the provider is ``iss``, and its client ``aud``, with no other audience.
        nonce: of the login.
        now: UTC seconds.
        algorithms: of ``ALGORITHMS``, those with which the provider signs.

    Raises:
        IDTokenError: it is not.
    """
    allowed = ALGORITHMS.intersection(algorithms)
    try:
        # The signature, by the one key that the header means. Of two with one name neither is used.
        signature = jws.extract_compact(token.encode("ascii"))
        header = signature.headers()
        require(
            header.get("alg") in allowed,
            "the ID token's algorithm is not allowed",
            IDTokenError,
        )
        listed = jwks.get("keys")
        # Those that are asymmetric, for signatures, and have the name and algorithm of the header.
        fit = [
            members
            for members in (listed if isinstance(listed, list) else ())
            if isinstance(members, dict)
            and members.get("kty") in ("RSA", "EC", "OKP")
            and members.get("use", "sig") == "sig"
            and members.get("alg", header["alg"]) == header["alg"]
            and header.get("kid") in (None, members.get("kid"))
        ]
        require(
            len(fit) == 1,
            "the provider has no key, or several, for the ID token",
            IDTokenError,
        )
        key = JWKRegistry.import_key(fit[0])
        require(
            not isinstance(key, RSAKey) or key.public_key.key_size >= _MIN_RSA_BITS,
            f"the provider's RSA key has fewer than {_MIN_RSA_BITS} bits",
            IDTokenError,
        )
        good = jws.validate_compact(signature, key, allowed)
        claims: dict[str, Any] = strict_json.loads(signature.payload or b"", depth=8)
    except IDTokenError:
        raise
    # Hostile text can make the library raise more than its own errors.
    except Exception as error:
        raise IDTokenError(
            f"the ID token cannot be verified: {type(error).__name__}"
        ) from None
    require(good is True, "the ID token's signature does not hold", IDTokenError)
    require(isinstance(claims, dict), "the ID token holds no claims", IDTokenError)
    # The claims that every ID token has.
    option: Any = {"essential": True}
    registry = JWTClaimsRegistry(
        now=int(now),
        leeway=LEEWAY,
        iss=option | {"value": settings.issuer},
        sub=option,
        aud=option | {"value": settings.client_id},
        exp=option,
        iat=option,
        nonce=option,
    )
    try:
        registry.validate(claims)
    except Exception as error:
        raise IDTokenError(
            f"a claim of the ID token is wrong: {getattr(error, 'claim', None) or 'one'}"
        ) from None
    # What binds it to this client and this login.
    client = settings.client_id
    given = (
        claims["nonce"].encode("utf-8", "surrogatepass")
        if isinstance(claims["nonce"], str)
        else b""
    )
    for holds, what in (
        (claims["aud"] in (client, [client]), "is for others too"),
        (claims.get("azp", client) == client, "was issued to another client"),
        (hmac.compare_digest(given, nonce.encode()), "belongs to another login"),
        (claims["iat"] >= now - MAX_AGE, "is old"),
        (is_name(claims["sub"], 1, 255), "names nobody"),
    ):
        require(holds, f"the ID token {what}", IDTokenError)
    return claims


def person(claims: Mapping[str, Any], settings: OIDCSettings) -> tuple[str, str | None]:
    """Return whom a checked ID token is about: the name for releases and audit records, and the role.

    The role is ``viewer`` or ``reviewer``; whoever has ``None`` may not come in.

    Raises:
        NoNameError: the claim that names people is missing or no name, or an e-mail address was not verified.
    """
    name = claims.get(settings.name_claim)
    require(
        is_name(name) and str(name) == str(name).strip(),
        f"The identity provider sent no {settings.name_claim} for you",
        NoNameError,
    )
    # Without this, whoever registers a reviewer's address with the provider would act under it (section 5.1).
    require(
        settings.name_claim != "email" or claims.get("email_verified") is True,
        "The identity provider has not verified your e-mail address",
        NoNameError,
    )
    # The highest role that a value of the role claim stands for.
    values: Any = claims
    for step in settings.role_claim:
        values = values.get(step) if isinstance(values, Mapping) else None
    values = (
        [values]
        if isinstance(values, str)
        else values
        if isinstance(values, list)
        else []
    )
    mine = {
        settings.roles.get(value)
        for value in values[: MAX_VALUES + 1]
        if isinstance(value, str)
    }
    role = next(
        (role for role in ROLES if role in mine and len(values) <= MAX_VALUES), None
    )
    return str(name), role
