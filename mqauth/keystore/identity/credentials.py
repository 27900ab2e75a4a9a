"""What a producer shows its authority: a token that its platform gave it, or one that its own key makes.

Each credential is made anew for each request, and none is kept: a platform replaces a token file, and a keystore
its keys, while the producer runs.
"""

from __future__ import annotations

import re
import ssl
from base64 import b64encode
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import quote

from mqauth.clock import Clock, Randomness
from mqauth.errors import refusing, require
from mqauth.http.connection import VISIBLE, Deadline, Dial, Endpoint, FetchFailed, expect, tls_context
from mqauth.http.exchange import request
from mqauth.keystore.disk.files import read_bounded
from mqauth.wire import claims, dpop, enrolment
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key, SigningKeySource, thumbprint

MAX_CREDENTIAL: Final = 16 * 1024
"""Bytes of a credential."""
BEARER: Final = "Bearer"
DPOP: Final = "DPoP"
"""The schemes of ``Authorization`` (RFC 6750, section 2.1; RFC 9449, section 7.1)."""


_REFUSALS: Final = (400, 401)
"""Of a token endpoint (RFC 6749, section 5.2)."""


def error_of(answer: Mapping[str, Any] | None) -> str:
    """Return the error that an answer names (RFC 6749, section 5.2), where it is a word of its kind."""
    error = (answer or {}).get("error")
    return (
        error
        if isinstance(error, str) and re.fullmatch(r"[a-z_]{1,64}", error, re.ASCII)
        else "no error of its kind"
    )


class Asking(NamedTuple):
    """One request that a credential is for.

    Args:
        authority: its url, which the credential's ``aud`` has to name.
        key: the new key; a credential may be bound to it.
        deadline: of the whole request, the credential's included.
        clock: gives times.
        randomness: makes ids.
        dial: opens connections, in place of ``connect``.
    """

    authority: str
    key: Key
    deadline: Deadline
    clock: Clock
    randomness: Randomness
    dial: Dial | None = None


class Credential(Protocol):
    """Makes a credential for one request."""

    def __call__(self, asking: Asking, /) -> tuple[str, str]:
        """Return the scheme of ``Authorization``, and the credential.

        Raises:
            ConfigurationError: a file or a key cannot be read.
            FetchFailed: whoever makes the credential gave none.
            Unavailable: whoever holds a key is out of reach.
        """


class TokenFile:
    """A token in a file that the platform replaces, such as Kubernetes' projected token; read for each request.

    Args:
        path: the file, at most 16 KiB.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def __repr__(self) -> str:
        return f"TokenFile({str(self.path)!r})"

    def __call__(self, _asking: Asking, /) -> tuple[str, str]:
        """Read the file."""
        token = read_bounded(self.path, MAX_CREDENTIAL).strip().decode("ascii", "replace")
        require(VISIBLE.fullmatch(token), f"{self.path}: not one token of ASCII text")
        return BEARER, token


class OwnKey:
    """A credential of a minute, signed by the producer's own key: for a machine that no platform vouches for.

    Args:
        keys: the producer's key, best ``mqauth.ActiveKey``; the authority's set names it, and its subjects.
        issuer: ``iss``, as the authority has it for this set.
        subject: ``sub``, a subject of the key.

    Raises:
        ConfigurationError: a name is out of its limits.
    """

    def __init__(self, keys: Key | SigningKeySource, *, issuer: str, subject: str) -> None:
        require(claims.is_name(issuer) and claims.is_name(subject), "issuer and subject are names")
        self._keys = keys.signing_key if isinstance(keys, SigningKeySource) else partial(LocalSigningKey, keys)
        self.issuer = issuer
        self.subject = subject

    def __repr__(self) -> str:
        return f"OwnKey({self.subject!r})"

    def __call__(self, asking: Asking, /) -> tuple[str, str]:
        """Sign a credential that is bound to the new key."""
        return DPOP, enrolment.credential(
            self._keys(), issuer=self.issuer, subject=self.subject, authority=asking.authority,
            jkt=thumbprint(asking.key.public), clock=asking.clock, randomness=asking.randomness,
        )  # fmt: skip


class ClientCredentials:
    """An access token of an OpenID provider, by the client credentials grant (RFC 6749, section 4.4).

    The request carries a DPoP proof, so that a provider that knows DPoP binds the token to the new key. Whoever
    steals such a token can do nothing with it.

    Args:
        token_url: the provider's token endpoint: https; http only on loopback, with ``unsafe_http_loopback``.
        client_id: of the producer, at the provider.
        client_secret_file: a private file with the secret, read for each request.
        ca: a PEM file of the CAs to trust instead of the system's.
        unsafe_http_loopback: allow http to this machine.

    Raises:
        ConfigurationError: the URL or the id is not allowed.
    """

    def __init__(
        self, token_url: str, *, client_id: str, client_secret_file: str | Path, ca: str | Path | None = None,
        unsafe_http_loopback: bool = False,
    ) -> None:  # fmt: skip
        self._url = token_url
        self._endpoint = Endpoint.parse(token_url, unsafe_http_loopback=unsafe_http_loopback, name="token_url")
        require(claims.is_name(client_id), "client_id is a name")
        self._client = client_id
        self._secret = Path(client_secret_file)
        self._context: ssl.SSLContext | None = tls_context(ca) if self._endpoint.tls else None

    def __repr__(self) -> str:
        return f"ClientCredentials({self._endpoint.shown!r})"

    def __call__(self, asking: Asking, /) -> tuple[str, str]:
        """Ask the provider."""
        proof = dpop.proof(
            asking.key, method="POST", url=self._url, clock=asking.clock, randomness=asking.randomness
        )
        # Id and secret as RFC 6749, section 2.3.1, has them.
        secret = read_bounded(self._secret, MAX_CREDENTIAL, private=True).removesuffix(b"\n")
        basic = b64encode(f"{quote(self._client, safe='')}:{quote(secret, safe='')}".encode("ascii")).decode(
            "ascii"
        )
        # Whoever reads it would take the authority for the culprit.
        with refusing(
            FetchFailed, lambda error: f"the token endpoint {self._endpoint.authority}: {error}", FetchFailed
        ):
            answer = request(
                self._endpoint, deadline=asking.deadline, context=self._context, dial=asking.dial,
                form={"grant_type": "client_credentials"},
                headers={"Authorization": f"Basic {basic}", "DPoP": proof}, statuses=(200, *_REFUSALS),
                limit=2 * MAX_CREDENTIAL,
            )  # fmt: skip
            expect(answer.status == 200, f"refused, {answer.status} {error_of(answer.document)}")
        document = answer.document or {}
        kind, token = document.get("token_type"), document.get("access_token")
        expect(isinstance(kind, str) and isinstance(token, str), "the token endpoint gave no token")
        schemes = {scheme.lower(): scheme for scheme in (BEARER, DPOP)}
        expect(str(kind).lower() in schemes, "the token endpoint gave a token of another type")
        expect(
            len(str(token)) <= MAX_CREDENTIAL and VISIBLE.fullmatch(str(token)),
            "the token endpoint gave no token of ASCII text",
        )
        return schemes[str(kind).lower()], str(token)
