"""How people log in at an OpenID provider: a TOML file, read strictly; the client's secret is never in it."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mqauth.config_table import Table, is_url
from mqauth.console.access import ROLES
from mqauth.errors import ConfigurationError
from mqauth.keystore.files import read_bounded

LABEL: Final = "OpenID Connect"
SCOPES: Final = ("openid", "email", "profile")
NAME_CLAIM: Final = "email"
ROLE_CLAIM: Final = ("groups",)
KEYS: Final = (
    "issuer", "client_id", "client_secret_file", "client_secret_env", "url", "label", "scopes", "name_claim",
    "role_claim", "ca", "unsafe_http_loopback", "roles",
)  # fmt: skip
_MAX_FILE: Final = 64 * 1024
_MAX_SECRET: Final = 1024
_SECRET: Final = re.compile(rb"[ -~]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class OIDCSettings:
    """An OpenID provider, and who may do what.

    Args:
        issuer: its https URL, exactly as its ID tokens name it.
        client_id: ours, as registered with it.
        secret: ours; ``None`` for a public client, which PKCE alone protects.
        url: scheme, host and port under which people reach the console; ``None`` is where it listens.
        label: stands on the button, after *Sign in with*.
        scopes: asked for; ``openid`` is among them.
        name_claim: the claim that names people in audit records.
        role_claim: names that lead to the claim with a person's groups or roles.
        roles: value of that claim to our role.
        ca: PEM file of the CAs to trust instead of the system's.
        unsafe_http_loopback: allow http to this machine.
    """

    issuer: str
    client_id: str
    secret: str | None = field(default=None, repr=False)
    url: str | None = None
    label: str = LABEL
    scopes: tuple[str, ...] = SCOPES
    name_claim: str = NAME_CLAIM
    role_claim: tuple[str, ...] = ROLE_CLAIM
    roles: Mapping[str, str]
    ca: Path | None = None
    unsafe_http_loopback: bool = False


def read_settings(path: Path) -> OIDCSettings:
    """Return the settings of a file.

    Raises:
        ConfigurationError: it cannot be read, a key is unknown, missing or out of its limits, or the secret
            cannot be had or others may read it; one line that says where.
    """
    try:
        members = tomllib.loads(read_bounded(path, _MAX_FILE).decode("utf-8"))
    except ValueError as error:
        raise ConfigurationError(f"{path}: no TOML: {error}") from error
    return _settings(Table(file=str(path), name="", members=members, known=KEYS))


def _settings(table: Table) -> OIDCSettings:
    """Return the settings of a table."""
    scopes = table.names("scopes") if "scopes" in table.members else SCOPES
    if "openid" not in scopes or any(" " in scope for scope in scopes):
        raise table.refuse("scopes", 'must name "openid", and each scope by itself')
    role_claim = table.name_or_names("role_claim") if "role_claim" in table.members else ROLE_CLAIM
    return OIDCSettings(
        issuer=table.name_of("issuer"), client_id=table.name_of("client_id"), secret=_secret(table),
        url=_origin(table), label=table.optional_name("label") or LABEL, scopes=scopes,
        name_claim=table.optional_name("name_claim") or NAME_CLAIM, role_claim=role_claim,
        roles=_roles(table), ca=table.optional_file_path("ca"),
        unsafe_http_loopback=table.flag("unsafe_http_loopback"),
    )  # fmt: skip


def _secret(table: Table) -> str | None:
    """Return the client's secret, from a file of mode 0600 or the environment."""
    file, variable = table.optional_file_path("client_secret_file"), table.optional_name("client_secret_env")
    if file is not None and variable is not None:
        raise table.refuse("client_secret_env", "not beside client_secret_file")
    if file is None and variable is None:
        return None
    raw = (
        os.environb.get(os.fsencode(variable or ""), b"")
        if file is None
        else read_bounded(file, _MAX_SECRET, private=True)
    )
    if not _SECRET.fullmatch(raw.strip()):
        key = "client_secret_env" if file is None else "client_secret_file"
        raise table.refuse(key, "must hold printable ASCII characters")
    return raw.strip().decode("ascii")


def _origin(table: Table) -> str | None:
    """Return the console's own origin."""
    found = table.optional_url("url", ("https", "http"))
    if found is None:
        return None
    scheme, _, rest = found.partition("://")
    authority = rest.removesuffix("/")
    if any(mark in authority for mark in "/?#@") or not is_url(found, ("https", "http")):
        raise table.refuse("url", "must be scheme, host and port alone: https://console.example:8443")
    return f"{scheme}://{authority.lower()}"


def _roles(table: Table) -> dict[str, str]:
    """Return what each value of the role claim makes of a person."""
    listed = table.table("roles", ROLES)
    if listed is None:
        raise table.refuse("roles", "required: who is a viewer, who a reviewer")
    found: dict[str, str] = {}
    for role in ROLES:
        for value in listed.names(role, least=0):
            if found.setdefault(value, role) != role:
                raise listed.refuse(role, "names a value that stands for another role too")
    if not found:
        raise listed.refuse("", "must name at least one value")
    return found
