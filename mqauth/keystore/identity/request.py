"""One request for an identity: a new key, a credential, a DPoP proof, and the authority's answer read strictly."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from mqauth.clock import Clock, Randomness
from mqauth.errors import ConfigurationError, refusing, require
from mqauth.http.connection import MAX_TIMEOUT, Deadline, Dial, Endpoint, FetchFailed, expect, tls_context
from mqauth.http.exchange import Response, request
from mqauth.keystore.identity.credentials import Asking, Credential, error_of
from mqauth.keystore.identity.renewal import Grant
from mqauth.wire import dpop, identity
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key
from mqauth.wire.workload import WorkloadKey

PATH: Final = "/v1/identity"
KEYS_PATH: Final = "/jwks.json"
ALGORITHMS: Final = ("EdDSA", "ES256", "ES384")
"""Of a workload's key."""
MAX_ANSWER: Final = 16 * 1024
MAX_LIFE: Final = 86_400
_REFUSALS: Final = (400, 401, 403, 429, 503)


class Refused(FetchFailed):
    """The authority gave no identity.

    Args:
        text: status and error, one line.
        retry_after: seconds after which it wants to be asked again, 0 where it does not say.
    """

    def __init__(self, text: str, retry_after: float) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class IdentityRequest:
    """Asks an authority for an identity; each call makes a new key, which lives in memory only.

    Args:
        authority: its url: https; http only on loopback, with ``unsafe_http_loopback``.
        subject: the identity that is asked for, such as ``wimse://prod.example/shop/orders-api``.
        credential: what the authority takes.
        algorithm: of the new key: ``EdDSA``, ``ES256`` or ``ES384``.
        timeout: seconds for a whole request, at most 5.
        ca: a PEM file of the CAs to trust instead of the system's.
        unsafe_http_loopback: allow http to this machine.
        clock: tells the time.
        randomness: makes the ids of proofs.
        dial: opens connections, in place of ``connect``.

    Raises:
        ConfigurationError: an argument is not allowed.
    """

    def __init__(
        self, authority: str, *, subject: str, credential: Credential, algorithm: str = "EdDSA", timeout: float,
        ca: str | Path | None, unsafe_http_loopback: bool, clock: Clock, randomness: Randomness,
        dial: Dial | None = None,
    ) -> None:  # fmt: skip
        self._endpoint = Endpoint.parse(
            f"{authority}{PATH}", unsafe_http_loopback=unsafe_http_loopback, name="the authority's url"
        )
        require("?" not in authority and not authority.endswith("/"), "the authority's url ends in no / or query")
        require(identity.trust_domain_of(subject), "subject is the identifier of a workload")
        require(algorithm in ALGORITHMS, f"algorithm is one of {', '.join(ALGORITHMS)}")
        require(0 < timeout <= MAX_TIMEOUT, f"timeout is more than 0 and at most {MAX_TIMEOUT:g} seconds")
        self._authority = authority
        self._subject = subject
        self._credential = credential
        self._algorithm = algorithm
        self._timeout = timeout
        self._context: ssl.SSLContext | None = tls_context(ca) if self._endpoint.tls else None
        self._clock = clock
        self._randomness = randomness
        self._dial = dial

    @property
    def host(self) -> str:
        """The authority's host, for people."""
        return self._endpoint.authority

    def __call__(self) -> Grant:
        """Make one request, bounded in time and in bytes.

        Raises:
            FetchFailed: there is no good answer; ``Refused``, where the authority said no.
            ConfigurationError, Unavailable: there is no credential.
        """
        key = Key.generate(self._algorithm)
        asking = Asking(
            self._authority, key, Deadline(self._clock, self._timeout), self._clock, self._randomness, self._dial
        )
        scheme, credential = self._credential(asking)
        proof = dpop.proof(
            key, method="POST", url=f"{self._authority}{PATH}", credential=credential, clock=self._clock,
            randomness=self._randomness,
        )  # fmt: skip
        headers = {"Authorization": f"{scheme} {credential}", "DPoP": proof}
        answer = self.post(headers, {"sub": self._subject}, asking.deadline)
        document = answer.document or {}
        if answer.status != 200:
            raise Refused(f"refused, {answer.status} {error_of(document)}", answer.retry_after)
        expires, renew = (_seconds(document.get(name)) for name in ("expires_in", "renew_in"))
        expect(renew <= expires, "it answered with a renewal behind the end")
        wit = document.get("wit")
        with refusing(
            ConfigurationError, lambda error: f"it answered with no identity of ours: {error}", FetchFailed
        ):
            held = WorkloadKey(wit if isinstance(wit, str) else "", LocalSigningKey(key), key.public, self.host)
        expect(self._subject == held.identity.subject == document.get("sub"), "it answered with another subject")
        return Grant(key=held, expires_in=expires, renew_in=renew)

    def post(self, headers: Mapping[str, str], document: Mapping[str, str], deadline: Deadline) -> Response:
        """Send the request, and return the authority's answer; an authority in this process answers in its place.

        Raises:
            FetchFailed: there is none.
        """
        return request(
            self._endpoint, deadline=deadline, context=self._context, dial=self._dial, document=document,
            headers=headers, statuses=(200, *_REFUSALS), limit=MAX_ANSWER,
        )  # fmt: skip


def _seconds(value: Any) -> int:
    expect(type(value) is int and 1 <= value <= MAX_LIFE, "it answered with no life in whole seconds")
    return int(value)
