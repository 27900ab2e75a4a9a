"""A key in the transit engine of OpenBao or Vault: a token costs one request, and no private half comes here.

Its reference is ``transit:https://host/transit/NAME``: the server, the path at which the engine is mounted, and
the name of the key there. Behind a question mark, joined by ``&``, stand ``key_version``, ``token_file`` and,
where they are needed, ``ca`` and ``unsafe_http_loopback=true``.

Whatever keeps it from signing is ``Unavailable``, with the host named; no text holds the token.

Source: HTTP API of the transit secrets engine, "Sign data" and "Read key", of OpenBao 2 and Vault 1.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, ConfigurationError, Unavailable, refusing, require
from mqauth.http.connection import VISIBLE, Deadline, Dial, Endpoint, FetchFailed, Kept, tls_context
from mqauth.http.exchange import request
from mqauth.keystore.disk.files import read_bounded
from mqauth.keystore.reference import TIMEOUT
from mqauth.keystore.reference.served import LOOPBACK, options
from mqauth.wire import base64url
from mqauth.wire.keys import PublicKey, natural_algorithm

SCHEME: Final = "transit:"
# Mount and name; the mount may stand below a namespace. No segment is "." or "..".
_PATH: Final = re.compile(r"((?:/[A-Za-z0-9_-][A-Za-z0-9._-]*)+)/([A-Za-z0-9_-][A-Za-z0-9._-]*)", re.ASCII)
_SAID: Final[Mapping[str, str]] = {
    "status 400": "the key is gone, or does not sign so",
    "status 403": "the token has ended or was revoked, or its policy does not allow it",
    "status 404": "no such key or engine",
    "status 503": "sealed, or without a leader",
}
"""What the statuses mean that OpenBao and Vault answer with, beside the number."""


class _KeyType(NamedTuple):
    """A type of key there: the algorithm here, and what signing asks for beside the input."""

    algorithm: str
    asked: Mapping[str, str]


_KINDS: Final[Mapping[str, _KeyType]] = {
    "ed25519": _KeyType("EdDSA", {}),
    "ecdsa-p256": _KeyType("ES256", {"hash_algorithm": "sha2-256", "marshaling_algorithm": "jws"}),
    "ecdsa-p384": _KeyType("ES384", {"hash_algorithm": "sha2-384", "marshaling_algorithm": "jws"}),
}
_UNREADABLE: Final = (AttributeError, KeyError, TypeError, ValueError, UnsupportedAlgorithm)
_ASKED: Final = {kind.algorithm: kind.asked for kind in _KINDS.values()}


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
        url, _, query = uri.removeprefix(SCHEME).partition("?")
        members = options(query, frozenset(("token_file", "ca", "key_version", LOOPBACK)), "a transit URI")
        loopback = LOOPBACK in members
        Endpoint.parse(url, unsafe_http_loopback=loopback, name="a transit URI")
        parts = urlsplit(url)
        path = require(_PATH.fullmatch(parts.path), "a transit URI ends in /MOUNT/NAME of letters, digits, ._-")
        # Without it the server would sign with its newest version, whose public half no consumer has.
        version = members.get("key_version", "")
        require(
            re.fullmatch(r"[1-9]\d{0,8}", version, re.ASCII),
            "a transit URI names a key_version, a number from 1 on",
        )
        files = {name: Path(members[name]) for name in ("token_file", "ca") if name in members}
        require("token_file" in files, "a transit URI names a token_file")
        require(all(file.is_absolute() for file in files.values()), "token_file and ca are absolute paths")
        return cls(
            server=f"{parts.scheme}://{parts.netloc}", mount=path[1], name=path[2], version=int(version),
            token_file=files["token_file"], ca=files.get("ca"), loopback=loopback,
        )  # fmt: skip

    @property
    def shown(self) -> str:
        """The key, for people."""
        return f"{self.server}{self.mount}/{self.name} version {self.version}"

    def endpoint(self, verb: str) -> Endpoint:
        """Return where something is asked of the key, ``keys`` or ``sign``."""
        url = f"{self.server}/v1{self.mount}/{verb}/{self.name}"
        return Endpoint.parse(url, unsafe_http_loopback=self.loopback)


class TransitKey:
    """Holds a key of a transit engine, asked by HTTP, over one connection that is kept.

    The token file is read again for each request, so that it may be replaced while we run. A version of the key is
    pinned: a rotation there changes nothing here until its new version was adopted.

    Args:
        uri: the reference of the key.
        timeout: seconds for a request, everything included.
        clock: tells the time.
        dial: opens connections, in place of ``connect``.

    Raises:
        ConfigurationError: the reference is none, or the file of CAs holds none.
    """

    generation: Final = None
    """No number: others may stand between us and the server, so each signature is checked."""

    def __init__(
        self, uri: str, *, timeout: float = TIMEOUT, clock: Clock = SYSTEM_CLOCK, dial: Dial | None = None
    ) -> None:
        self._reference = TransitReference.parse(uri)
        context = tls_context(self._reference.ca) if self._reference.server.startswith("https:") else None
        self._timeout, self._clock, self._dial = timeout, clock, dial
        self._context, self._kept = context, Kept()

    def __repr__(self) -> str:
        return f"TransitKey({self._reference.shown!r})"

    def public(self) -> PublicKey:
        """Return the public half of the pinned version.

        Raises:
            ConfigurationError: the key there cannot sign for us, or its private half can be copied.
            Unavailable: ``keys_unavailable``: the server cannot be reached, or refuses.
        """
        answer, where = self._ask("keys"), self._reference.shown
        kind = _KINDS.get(str(answer.get("type")))
        require(kind and not answer.get("derived"), f"{where}: its key is none of {', '.join(_KINDS)}")
        copied = answer.get("exportable") or answer.get("allow_plaintext_backup")
        require(not copied, f"{where}: the key is exportable, so its private half can be copied")
        with refusing(_UNREADABLE, f"{where}: no public half of version {self._reference.version}"):
            public = _public(answer["keys"][str(self._reference.version)]["public_key"])
            natural = natural_algorithm(public)
        require(kind and natural == kind.algorithm, f"{where}: the public half is of another type")
        return public

    def sign(self, data: bytes, algorithm: str, /) -> bytes:
        """Return what the server gave as the raw JWS signature over ``data``.

        Args:
            data: the signing input, not digested.
            algorithm: ``EdDSA``, ``ES256`` or ``ES384``, that of the key.

        Raises:
            ConfigurationError: the algorithm is another one.
            Unavailable: ``keys_unavailable``: the server cannot be reached, refuses, or answers something else.
        """
        require(algorithm in _ASKED, f"{self._reference.shown}: transit keys sign {', '.join(_ASKED)}")
        version, encoded = self._reference.version, base64.b64encode(data).decode("ascii")
        answer = self._ask("sign", {"input": encoded, "key_version": version, **_ASKED[algorithm]})
        with refusing(ValueError, f"an answer without a signature of version {version}", self._unavailable):
            # Of Ed25519 it is standard base64, of ECDSA that of JWS.
            text, prefix = str(answer.get("signature")), f"vault:v{version}:"
            require(text.startswith(prefix), "another version's", ValueError)
            text = text.removeprefix(prefix)
            if algorithm == "EdDSA":
                return base64.b64decode(text, validate=True)
            return base64url.decode(text.encode("ascii"))

    def _ask(self, verb: str, document: Any = None) -> Mapping[str, Any]:
        """Return what the server answers about the key."""
        # A token file is replaced while we run: what is wrong with it now may be right at the next request.
        path = self._reference.token_file
        with refusing(ConfigurationError, str, self._unavailable):
            token = read_bounded(path, 16 * 1024, private=True).decode("ascii", "replace").rstrip("\r\n")
            require(VISIBLE.fullmatch(token), f"{path}: no token")
        headers = {"X-Vault-Token": token, "X-Vault-Request": "true"}
        with refusing(FetchFailed, str, self._unavailable):
            answer = request(
                self._reference.endpoint(verb),
                deadline=Deadline(self._clock, self._timeout),
                context=self._context,
                document=document,
                headers=headers,
                dial=self._dial,
                kept=self._kept,
            )
        data = (answer.document or {}).get("data")
        require(isinstance(data, dict), "an answer without data", self._unavailable)
        return data or {}

    def _unavailable(self, detail: str) -> Unavailable:
        detail = ": ".join(filter(None, (detail, _SAID.get(detail))))
        return Unavailable(Cause.KEYS_UNAVAILABLE, f"{self._reference.shown}: {detail}")


def _public(text: str) -> PublicKey:
    """Return a public key of the answer; of Ed25519 its 32 bytes in base64, of ECDSA a PEM."""
    if not text.startswith("-----"):
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    key: PublicKey = load_pem_public_key(text.encode("ascii"))  # type: ignore[assignment]
    return key
