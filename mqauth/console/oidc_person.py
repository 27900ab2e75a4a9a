"""Who logged in: a name for the audit and a role, from the claims of an ID token that was checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mqauth.console.access import ROLES
from mqauth.console.oidc_settings import OIDCSettings
from mqauth.errors import MqauthError
from mqauth.wire.claims import is_name

MAX_VALUES: Final = 1000


class NobodyError(MqauthError):
    """The person cannot be named; the text may be shown to them."""

    code = "nobody"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Who logged in.

    Args:
        subject: the provider's own, stable name.
        name: in releases and audit records.
        role: ``viewer`` or ``reviewer``; ``None`` may not come in.
    """

    subject: str
    name: str
    role: str | None


def person(claims: Mapping[str, Any], settings: OIDCSettings) -> Person:
    """Return who a checked ID token is about.

    Raises:
        NobodyError: the claim that names people is missing or no name, or an e-mail address was not verified.
    """
    return Person(
        subject=str(claims["sub"]), name=_name(claims, settings.name_claim), role=_role(claims, settings)
    )


def _name(claims: Mapping[str, Any], claim: str) -> str:
    """Return a name; an address counts only where the provider says that it was verified (section 5.1)."""
    name = claims.get(claim)
    if not is_name(name) or str(name) != str(name).strip():
        raise NobodyError(f"The identity provider told no {claim} of you")
    if claim == "email" and claims.get("email_verified") is not True:
        raise NobodyError("The identity provider has not verified your e-mail address")
    return str(name)


def _role(claims: Mapping[str, Any], settings: OIDCSettings) -> str | None:
    """Return the highest role that the claim's values stand for."""
    found: Any = claims
    for step in settings.role_claim:
        found = found.get(step) if isinstance(found, Mapping) else None
    values = [found] if isinstance(found, str) else found
    if not isinstance(values, list) or len(values) > MAX_VALUES:
        return None
    mine = {settings.roles.get(value) for value in values if isinstance(value, str)}
    return next((role for role in ROLES if role in mine), None)
