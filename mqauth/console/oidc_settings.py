"""The TOML file that says how people log in at an OpenID provider. The client's secret is never in it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Final

from mqauth.config.declaration import Settings, not_with, read, read_file, schema_of
from mqauth.config.kinds import FLAG, NAME, PATH, Kind, is_url, many, one_or_many, text
from mqauth.config.toml_file import RefusedSetting, Table
from mqauth.console.access import ROLES
from mqauth.keystore.disk.files import read_bounded

_MAX_SECRET: Final = 1024
_SECRET: Final = re.compile(rb"[ -~]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleSettings(Settings):
    """``[roles]``: the values of the role claim that stand for each of our roles."""

    viewer: Annotated[tuple[str, ...], many(NAME), "Values that make a viewer, letter for letter."] = ()
    reviewer: Annotated[tuple[str, ...], many(NAME), "Values that make a reviewer."] = ()


def _roles(table: Table, key: str, _: Any) -> dict[str, str]:
    """Return our role for each value of the role claim."""
    listed = read(RoleSettings, table.inner(key))
    found: dict[str, str] = {}
    for role in ROLES:
        for value in getattr(listed, role):
            if found.setdefault(value, role) != role:
                raise listed.table.refuse(role, "names a value that stands for another role too")
    if not found:
        raise listed.table.refuse("", "must name at least one value")
    return found


def _origin_fault(text: str) -> str | None:
    rest = text.partition("://")[2].removesuffix("/")
    fits = is_url(text, ("https", "http")) and not any(mark in rest for mark in "/?#@")
    return None if fits else "must be scheme, host and port alone: https://console.example:8443"


_ROLES: Final = Kind(schema_of(RoleSettings), _roles)
_ORIGIN: Final = text("URL", _origin_fault, into=lambda found, _: found.removesuffix("/").lower())


@dataclass(frozen=True, slots=True, kw_only=True)
class OIDCSettings(Settings):
    """An OpenID provider, and who may do what.

    Args:
        secret: the client's secret; ``None`` for a public client, which only PKCE protects.
    """

    issuer: Annotated[str, NAME, "The provider's https URL, exactly as its ID tokens name it."]
    client_id: Annotated[str, NAME, "The console's client, as registered with the provider."]
    client_secret_file: Annotated[
        Path | None, PATH, "The file with the client's secret; refused where others may read it."
    ] = None
    client_secret_env: Annotated[
        str | None, NAME, "The environment variable with the client's secret.", not_with("client_secret_file")
    ] = None
    url: Annotated[
        str | None,
        _ORIGIN,
        "Scheme, host and port under which people reach the console; by default where it listens.",
    ] = None
    label: Annotated[str, NAME, "The words on the button, after *Sign in with*."] = "OpenID Connect"
    scopes: Annotated[tuple[str, ...], many(NAME, 1), "What is asked for; `openid` is among them."] = (
        "openid", "email", "profile",
    )  # fmt: skip
    name_claim: Annotated[str, NAME, "The claim that names people in releases and audit records."] = "email"
    role_claim: Annotated[
        tuple[str, ...], one_or_many(NAME), "The claim with a person's groups; a list leads into nested claims."
    ] = ("groups",)
    roles: Annotated[
        Mapping[str, str], _ROLES, "Which values of that claim stand for a role; of two roles the higher counts."
    ]
    ca: Annotated[Path | None, PATH, "A PEM file of the CAs to trust in place of the system's."] = None
    unsafe_http_loopback: Annotated[bool, FLAG, "Allow http to a provider on this machine, for tests."] = False
    secret: str | None = field(default=None, repr=False)

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield what is wrong with the scopes: ``openid`` is missing, or two are in one text."""
        if "openid" not in self.scopes or any(" " in scope for scope in self.scopes):
            yield self.table.refuse("scopes", 'must name "openid", and each scope by itself')


def read_settings(path: Path) -> OIDCSettings:
    """Return the settings of a file, with the secret that it refers to.

    Raises:
        ConfigurationError: the file cannot be read, a key is unknown, missing or out of its limits, or the secret
            cannot be read or others may read it; one line that says where.
    """
    found = read_file(OIDCSettings, path)
    return replace(found, secret=_secret(found))


def _secret(found: OIDCSettings) -> str | None:
    if found.client_secret_file is not None:
        key, raw = "client_secret_file", read_bounded(found.client_secret_file, _MAX_SECRET, private=True)
    elif found.client_secret_env is not None:
        key, raw = "client_secret_env", os.environb.get(os.fsencode(found.client_secret_env), b"")
    else:
        return None
    if not _SECRET.fullmatch(raw.strip()):
        raise found.table.refuse(key, "must hold printable ASCII characters")
    return raw.strip().decode("ascii")
