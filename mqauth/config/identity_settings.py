"""The declarations of ``[producer.identity]``: who says whose a producer's keys are, and what it is shown."""

# No ``from __future__ import annotations``, as in ``settings``.

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final

from mqauth.config.declaration import Settings, inner, only_with
from mqauth.config.kinds import FLAG, NAME, PATH, choice, text, url
from mqauth.config.toml_file import RefusedSetting
from mqauth.keystore.identity.request import ALGORITHMS
from mqauth.wire.identity import trust_domain_of

_KEYS: Final = only_with("keys")
_TOKEN_URL: Final = only_with("token_url")


def _subject_fault(found: str) -> str | None:
    known = trust_domain_of(found) is not None
    return None if known else "must be wimse:// or spiffe://, a trust domain and a path"


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
        named = [key for key in ("token_file", "keys", "token_url") if key in self.table.members]
        if len(named) != 1:
            found = " and ".join(named) or "none"
            yield self.table.refuse("", f"needs one of token_file, keys and token_url, not {found}")
            return
        needed = {"keys": ("issuer", "subject"), "token_url": ("client_id", "client_secret_file")}
        for key in needed.get(named[0], ()):
            if key not in self.table.members:
                yield self.table.refuse(key, f"required with {named[0]}")


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentitySettings(Settings):
    """``[producer.identity]``: the arguments of ``IdentityKey``."""

    authority: Annotated[str, url("https", "http"), "The authority's url, as it names itself; no `/` at its end."]
    subject: Annotated[
        str,
        text("identity", _subject_fault),
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
