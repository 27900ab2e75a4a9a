"""What the URI of a key says whose private half is in an HSM (RFC 7512), a transit engine, or AWS KMS."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote_to_bytes, urlsplit

from mqauth.audit import disk
from mqauth.errors import refusing, require
from mqauth.http.connection import Endpoint

TIMEOUT: Final = 2.0
"""Seconds for which a call to whoever holds a key may take."""
LOOPBACK: Final = "unsafe_http_loopback"
"""The option that allows http on loopback."""
MODULE: Final = "PKCS11_MODULE"
"""The environment variable with the path of the library, where the URI has no ``module-path``."""
PIN: Final = "MQAUTH_PKCS11_PIN"
"""The environment variable with the PIN, where the URI has no ``pin-source``."""
# Mount and name; the mount may stand below a namespace. No segment is "." or "..".
_PATH: Final = re.compile(
    r"((?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+)/([A-Za-z0-9_-][A-Za-z0-9._-]*)", re.ASCII
)
_NAME: Final = "an awskms URI"
_ARN: Final = re.compile(
    r"arn:(aws[a-z-]{0,20}):kms:([a-z0-9-]{1,40}):\d{12}:key/[A-Za-z0-9-]{1,64}",
    re.ASCII,
)
_DOMAINS: Final = {
    "aws": "amazonaws.com",
    "aws-cn": "amazonaws.com.cn",
    "aws-us-gov": "amazonaws.com",
    "aws-eusc": "amazonaws.eu",
}


def _attributes(
    text: str, between: str, known: Collection[str], of: str
) -> dict[str, bytes]:
    """Return the attributes of one part of a URI.

    Raises:
        ConfigurationError: one is not known, or stands there twice.
    """
    attributes: dict[str, bytes] = {}
    for part in filter(None, text.split(between)):
        name, _, value = part.partition("=")
        require(name in known, f"{of} has {', '.join(sorted(known))} here, not {name!r}")
        require(name not in attributes, f"{name} stands twice in {of}")
        attributes[name] = unquote_to_bytes(value)
    return attributes


def _options(query: str, known: Collection[str], of: str) -> dict[str, str]:
    """Return what stands behind the question mark of a reference over HTTP, joined by ``&``."""
    require("#" not in query, f"{of} has no fragment")
    options = {
        name: raw.decode("utf-8", "replace")
        for name, raw in _attributes(query, "&", known, of).items()
    }
    require(options.get(LOOPBACK, "true") == "true", f"{LOOPBACK} is true, or left out")
    return options


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
        return f"token {self.token!r}" + (
            "" if self.serial is None else f" (serial {self.serial})"
        )

    @property
    def what(self) -> str:
        """The object, for people."""
        attributes = (
            (self.label, f"{self.label!r}"),
            (self.id, f"of id {(self.id or b'').hex()}"),
        )
        return " ".join(text for value, text in attributes if value is not None)

    def library(self) -> str:
        """Return the absolute path of the library.

        Raises:
            ConfigurationError: neither the URI nor the environment names it, or there is no such file.
        """
        path = self.module_path or os.environ.get(MODULE)
        path = require(
            path,
            f"{self.where}: no library: name it by module-path in the uri, or in {MODULE}",
        )
        require(
            os.path.isabs(path),
            f"{self.where}: the path of the library is not absolute: {path}",
        )
        return str(
            require(
                os.path.isfile(path) and path, f"{self.where}: there is no library {path}"
            )
        )

    def pin(self) -> str:
        """Return the PIN, read now.

        Raises:
            ConfigurationError: it is named nowhere, cannot be read, or its file is open to others.
        """
        kind, _, name = (self.pin_source or f"env:{PIN}").partition(":")
        if kind == "file":
            raw = (
                disk.read_bounded(Path(name), 1024, private=True)
                .removesuffix(b"\n")
                .removesuffix(b"\r")
            )
        else:
            raw = os.environb.get(os.fsencode(name), b"")
        require(
            raw,
            f"{self.where}: no PIN in {kind} {name}: give pin-source=file:/path in the uri, or {PIN}",
        )
        with refusing(
            UnicodeDecodeError, f"{self.where}: the PIN in {kind} {name} is no UTF-8"
        ):
            return raw.decode()

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Return what a URI says.

        Raises:
            ConfigurationError: it is no such URI, names no token or no object, or has a PIN in it.
        """
        require(
            uri.startswith("pkcs11:") and re.fullmatch(r"(?:[^%]|%[0-9A-Fa-f]{2})*", uri),
            "not a pkcs11 URI, or a % that escapes nothing",
        )
        path, _, query = uri.removeprefix("pkcs11:").partition("?")
        require(
            re.search(r"(^|&)pin-value=", query) is None,
            "a PIN never stands in a uri: use pin-source=file:/path",
        )
        attributes = _attributes(
            path, ";", ("token", "object", "id", "serial", "type"), "a key's uri"
        )
        attributes |= _attributes(
            query, "&", ("module-path", "pin-source"), "a key's uri"
        )
        texts: dict[str, str] = {}
        for name, raw in attributes.items():
            if name not in ("id", "type"):
                with refusing(UnicodeDecodeError, f"{name} is no UTF-8"):
                    texts[name] = raw.decode()
                require("\0" not in texts[name], f"{name} has a NUL")
        for holds, what in (
            (
                attributes.get("type", b"private") == b"private",
                "a key's uri is of type=private",
            ),
            (
                texts.get("token"),
                "a key's uri names its token: pkcs11:token=NAME;object=NAME",
            ),
            (
                texts.get("object") or attributes.get("id"),
                "a key's uri names its object, or its id",
            ),
            (
                texts.get("pin-source", "env:").startswith(("file:/", "env:")),
                "pin-source is file: and a full path, or env:NAME",
            ),
        ):
            require(holds, what)
        return cls(
            token=texts["token"],
            serial=texts.get("serial"),
            label=texts.get("object"),
            id=attributes.get("id"),
            module_path=texts.get("module-path"),
            pin_source=texts.get("pin-source"),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class TransitReference:
    """Where a key is, and how it is reached: a reference, parsed.

    Args:
        server: the URL of the server, without a path.
        mount: the path of the engine, with a slash at the start.
        name: of the key.
        version: of the key.
        token_file: the file that holds the token, private.
        ca: PEM file of the CAs to trust in place of the system's.
        loopback: whether http on loopback is allowed.
    """

    server: str
    mount: str
    name: str
    version: int
    token_file: Path
    ca: Path | None = None
    loopback: bool = False

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Parse a reference.

        Raises:
            ConfigurationError: it is none.
        """
        url, _, query = uri.removeprefix("transit:").partition("?")
        members = _options(
            query, ("token_file", "ca", "key_version", LOOPBACK), "a transit URI"
        )
        loopback = LOOPBACK in members
        Endpoint.parse(url, unsafe_http_loopback=loopback, name="a transit URI")
        parts = urlsplit(url)
        path = require(
            _PATH.fullmatch(parts.path),
            "a transit URI ends in /MOUNT/NAME of letters, digits, ._-",
        )
        # Without it the server would sign with its newest version, whose public half no consumer has.
        version = members.get("key_version", "")
        require(
            re.fullmatch(r"[1-9]\d{0,8}", version, re.ASCII),
            "a transit URI names a key_version, a number from 1 on",
        )
        files = {
            name: Path(members[name]) for name in ("token_file", "ca") if name in members
        }
        require("token_file" in files, "a transit URI names a token_file")
        require(
            all(file.is_absolute() for file in files.values()),
            "token_file and ca are absolute paths",
        )
        return cls(
            server=f"{parts.scheme}://{parts.netloc}",
            mount=path[1],
            name=path[2],
            version=int(version),
            token_file=files["token_file"],
            ca=files.get("ca"),
            loopback=loopback,
        )

    @property
    def shown(self) -> str:
        """The key, for people."""
        return f"{self.server}{self.mount}/{self.name} version {self.version}"

    def endpoint(self, verb: str) -> Endpoint:
        """Return where something is asked of the key, ``keys`` or ``sign``."""
        return Endpoint.parse(
            f"{self.server}/v1{self.mount}/{verb}/{self.name}",
            unsafe_http_loopback=self.loopback,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class KmsReference:
    """Where a key is, and how it is reached: a reference, parsed.

    Args:
        arn: of the key, or of an alias.
        region: the one in the ARN.
        server: the URL of the endpoint.
        ca: PEM file of the CAs to trust in place of the system's.
    """

    arn: str
    region: str
    server: str
    ca: Path | None = None

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Parse a reference.

        Raises:
            ConfigurationError: it is none.
        """
        text, _, query = uri.removeprefix("awskms:").partition("?")
        require(
            ":alias/" not in text,
            "an alias may stand for another key tomorrow: name the key by its own ARN",
        )
        partition, region = require(
            _ARN.fullmatch(text), f"{_NAME} is awskms:arn:aws:kms:REGION:ACCOUNT:key/ID"
        ).group(1, 2)
        members = _options(query, ("endpoint", "ca", LOOPBACK), _NAME)
        domain = _DOMAINS.get(partition)
        require(
            domain or "endpoint" in members,
            f"{_NAME} of partition {partition} names its endpoint",
        )
        ca = Path(members["ca"]) if "ca" in members else None
        require(ca is None or ca.is_absolute(), "ca is an absolute path")
        server = members.get("endpoint", f"https://kms.{region}.{domain}").rstrip("/")
        endpoint = Endpoint.parse(
            server,
            unsafe_http_loopback=LOOPBACK in members,
            name=f"the endpoint of {_NAME}",
        )
        require(endpoint.target == "/", "an endpoint has neither path nor query")
        return cls(arn=text, region=region, server=server, ca=ca)

    @property
    def shown(self) -> str:
        """The key, for people."""
        return f"{self.server}: {self.arn}"
