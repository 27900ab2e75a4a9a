"""A key in the transit engine of OpenBao or Vault: a token costs one request, and no private half comes here.

Its reference is ``transit:https://host/transit/NAME``: the server, the path at which the engine is mounted, and
the name of the key there. Behind a question mark, joined by ``&``, stand ``key_version``, ``token_file`` and,
where they are needed, ``ca`` and ``unsafe_http_loopback=true``.

Whatever keeps it from signing is ``Unavailable``, with the host named; no text holds the token.

Source: HTTP API of the transit secrets engine, "Sign data" and "Read key", of OpenBao 2 and Vault 1.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from mqauth.audit.disk import read_bounded
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, ConfigurationError, Unavailable, refusing, require
from mqauth.http.connection import VISIBLE, Deadline, Dial, FetchFailed, Kept, tls_context
from mqauth.http.exchange import request
from mqauth.keystore.reference.uri import TIMEOUT, TransitReference
from mqauth.wire import base64url
from mqauth.wire.keys import PublicKey, natural_algorithm

_SAID: Final[Mapping[str, str]] = {
    "status 400": "the key is gone, or does not sign so",
    "status 403": "the token has ended or was revoked, or its policy does not allow it",
    "status 404": "no such key or engine",
    "status 503": "sealed, or without a leader",
}
"""What the statuses mean that OpenBao and Vault answer with, beside the number."""
_KINDS: Final[Mapping[str, tuple[str, Mapping[str, str]]]] = {
    "ed25519": ("EdDSA", {}),
    "ecdsa-p256": (
        "ES256",
        {"hash_algorithm": "sha2-256", "marshaling_algorithm": "jws"},
    ),
    "ecdsa-p384": (
        "ES384",
        {"hash_algorithm": "sha2-384", "marshaling_algorithm": "jws"},
    ),
}
"""The types of key there: the algorithm here, and what signing asks for beside the input."""
_ASKED: Final = dict(_KINDS.values())


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
        self,
        uri: str,
        *,
        timeout: float = TIMEOUT,
        clock: Clock = SYSTEM_CLOCK,
        dial: Dial | None = None,
    ) -> None:
        self._reference = TransitReference.parse(uri)
        context = (
            tls_context(self._reference.ca)
            if self._reference.server.startswith("https:")
            else None
        )
        self._timeout, self._clock, self._dial = timeout, clock, dial
        self._context, self._kept = context, Kept()

    def public(self) -> PublicKey:
        """Return the public half of the pinned version.

        Raises:
            ConfigurationError: the key there cannot sign for us, or its private half can be copied.
            Unavailable: ``keys_unavailable``: the server cannot be reached, or refuses.
        """
        answer, where = self._ask("keys"), self._reference.shown
        algorithm, _ = _KINDS.get(str(answer.get("type")), ("", {}))
        require(
            algorithm and not answer.get("derived"),
            f"{where}: its key is none of {', '.join(_KINDS)}",
        )
        require(
            not (answer.get("exportable") or answer.get("allow_plaintext_backup")),
            f"{where}: the key is exportable, so its private half can be copied",
        )
        unreadable = (
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
            UnsupportedAlgorithm,
        )
        with refusing(
            unreadable, f"{where}: no public half of version {self._reference.version}"
        ):
            text = answer["keys"][str(self._reference.version)]["public_key"]
            # Of Ed25519 its 32 bytes in base64, of ECDSA a PEM.
            public: PublicKey = (
                load_pem_public_key(text.encode("ascii"))  # type: ignore[assignment]
                if text.startswith("-----")
                else Ed25519PublicKey.from_public_bytes(
                    base64.b64decode(text, validate=True)
                )
            )
            natural = natural_algorithm(public)
        require(natural == algorithm, f"{where}: the public half is of another type")
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
        require(
            algorithm in _ASKED,
            f"{self._reference.shown}: transit keys sign {', '.join(_ASKED)}",
        )
        version, encoded = self._reference.version, base64.b64encode(data).decode("ascii")
        answer = self._ask(
            "sign", {"input": encoded, "key_version": version, **_ASKED[algorithm]}
        )
        with refusing(
            ValueError,
            f"an answer without a signature of version {version}",
            self._unavailable,
        ):
            # Of Ed25519 it is standard base64, of ECDSA that of JWS.
            text, prefix = str(answer.get("signature")), f"vault:v{version}:"
            require(text.startswith(prefix), "another version's", ValueError)
            raw = text.removeprefix(prefix).encode("ascii")
            return (
                base64.b64decode(raw, validate=True)
                if algorithm == "EdDSA"
                else base64url.decode(raw)
            )

    def _ask(self, verb: str, document: Any = None) -> Mapping[str, Any]:
        """Return what the server answers about the key."""
        # A token file is replaced while we run: what is wrong with it now may be right at the next request.
        path = self._reference.token_file
        with refusing(ConfigurationError, str, self._unavailable):
            token = (
                read_bounded(path, 16 * 1024, private=True)
                .decode("ascii", "replace")
                .rstrip("\r\n")
            )
            require(VISIBLE.fullmatch(token), f"{path}: no token")
        with refusing(FetchFailed, str, self._unavailable):
            answer = request(
                self._reference.endpoint(verb),
                deadline=Deadline(self._clock, self._timeout),
                context=self._context,
                document=document,
                headers={"X-Vault-Token": token, "X-Vault-Request": "true"},
                dial=self._dial,
                kept=self._kept,
            )
        data = (answer.document or {}).get("data")
        require(isinstance(data, dict), "an answer without data", self._unavailable)
        return data or {}

    def _unavailable(self, detail: str) -> Unavailable:
        detail = ": ".join(filter(None, (detail, _SAID.get(detail))))
        return Unavailable(Cause.KEYS_UNAVAILABLE, f"{self._reference.shown}: {detail}")
