"""The URI of a key in an HSM (RFC 7512): which library, which token, which object, and where its PIN is."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote_to_bytes

from mqauth.errors import refusing, require
from mqauth.keystore.disk import files

MODULE: Final = "PKCS11_MODULE"
"""The environment variable with the path of the library, where the URI has no ``module-path``."""
PIN: Final = "MQAUTH_PKCS11_PIN"
"""The environment variable with the PIN, where the URI has no ``pin-source``."""
_SCHEME: Final = "pkcs11:"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenURI:
    """One key of one token.

    Args:
        token: the label of the token.
        serial: its serial number, where two tokens have one label.
        label: the label of the key's objects.
        id: their id.
        module_path: the path of the library.
        pin_source: ``file:/path`` or ``env:NAME``.
    """

    token: str
    serial: str | None = None
    label: str | None = None
    id: bytes | None = None
    module_path: str | None = None
    pin_source: str | None = None

    @property
    def where(self) -> str:
        """The token, for people."""
        return f"token {self.token!r}" + ("" if self.serial is None else f" (serial {self.serial})")

    @property
    def what(self) -> str:
        """The object, for people."""
        attributes = ((self.label, f"{self.label!r}"), (self.id, f"of id {(self.id or b'').hex()}"))
        return " ".join(text for value, text in attributes if value is not None)

    def library(self) -> str:
        """Return the absolute path of the library.

        Raises:
            ConfigurationError: neither the URI nor the environment names it, or there is no such file.
        """
        path = self.module_path or os.environ.get(MODULE)
        path = require(path, f"{self.where}: no library: name it by module-path in the uri, or in {MODULE}")
        require(os.path.isabs(path), f"{self.where}: the path of the library is not absolute: {path}")
        return str(require(os.path.isfile(path) and path, f"{self.where}: there is no library {path}"))

    def pin(self) -> str:
        """Return the PIN, read now.

        Raises:
            ConfigurationError: it is named nowhere, cannot be read, or its file is open to others.
        """
        kind, _, name = (self.pin_source or f"env:{PIN}").partition(":")
        if kind == "file":
            raw = files.read_bounded(Path(name), 1024, private=True).removesuffix(b"\n").removesuffix(b"\r")
        else:
            raw = os.environb.get(os.fsencode(name), b"")
        require(raw, f"{self.where}: no PIN in {kind} {name}: give pin-source=file:/path in the uri, or {PIN}")
        with refusing(UnicodeDecodeError, f"{self.where}: the PIN in {kind} {name} is no UTF-8"):
            return raw.decode()


def parse(uri: str) -> TokenURI:
    """Return what a URI says.

    Raises:
        ConfigurationError: it is no such URI, names no token or no object, or has a PIN in it.
    """
    require(
        uri.startswith(_SCHEME) and re.fullmatch(r"(?:[^%]|%[0-9A-Fa-f]{2})*", uri),
        "not a pkcs11 URI, or a % that escapes nothing",
    )
    path, _, query = uri.removeprefix(_SCHEME).partition("?")
    require(re.search(r"(^|&)pin-value=", query) is None, "a PIN never stands in a uri: use pin-source=file:/path")
    attributes = dict(_attributes(path, ";", frozenset(("token", "object", "id", "serial", "type")))) | dict(
        _attributes(query, "&", frozenset(("module-path", "pin-source")))
    )
    require(attributes.get("type", b"private") == b"private", "a key's uri is of type=private")
    require(attributes.get("token"), "a key's uri names its token: pkcs11:token=NAME;object=NAME")
    require(attributes.get("object") or attributes.get("id"), "a key's uri names its object, or its id")
    source = _text(attributes, "pin-source")
    require(
        source is None or source.startswith(("file:/", "env:")), "pin-source is file: and a full path, or env:NAME"
    )
    return TokenURI(
        token=_text(attributes, "token") or "",
        serial=_text(attributes, "serial"),
        label=_text(attributes, "object"),
        id=attributes.get("id"),
        module_path=_text(attributes, "module-path"),
        pin_source=source,
    )


def _attributes(text: str, between: str, known: frozenset[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the attributes of one part of a URI, each at most once."""
    seen = set()
    for part in filter(None, text.split(between)):
        name, _, value = part.partition("=")
        require(name in known, f"a key's uri has {', '.join(sorted(known))} here, not {name!r}")
        require(name not in seen, f"{name} stands twice in the uri")
        seen.add(name)
        yield name, unquote_to_bytes(value)


def _text(attributes: dict[str, bytes], name: str) -> str | None:
    with refusing(UnicodeDecodeError, f"{name} is no UTF-8"):
        text = attributes[name].decode() if name in attributes else None
    require("\0" not in (text or ""), f"{name} has a NUL")
    return text
