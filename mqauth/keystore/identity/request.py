"""One request for an identity: a new key, a credential, a DPoP proof, and the authority's answer read strictly.

A credential is a token that the platform gave to the producer, or one that its own key makes. Each is made anew
for each request, and none is kept: a platform replaces a token file, and a keystore its keys, while the producer
runs.

The credential of a producer that has a keystore and no platform to vouch for it is a JWT by its own key. An
authority takes it for a grant of that producer's name, and answers with an identity. It lives for minutes and
names one authority. It says nothing about a message, so it is no token: its ``typ`` is another one.

Whoever asks for an identity shows by a DPoP proof that it holds the key (RFC 9449). An authority remembers no
proof: a repeated request gets a WIT that only the holder of the key can use.
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

from mqauth.audit.disk import read_bounded
from mqauth.clock import Clock, Randomness
from mqauth.errors import ConfigurationError, refusing, require
from mqauth.http.connection import (
    MAX_TIMEOUT,
    VISIBLE,
    Deadline,
    Dial,
    Endpoint,
    FetchFailed,
    expect,
    tls_context,
)
from mqauth.http.exchange import Response, request
from mqauth.keystore.identity.renewal import Grant
from mqauth.wire import base64url, claims, identity, jws, strict_json, workload
from mqauth.wire.keys import Key, SigningKey, SigningKeySource, public_members, thumbprint

PATH: Final = "/v1/identity"
KEYS_PATH: Final = "/jwks.json"
ALGORITHMS: Final = ("EdDSA", "ES256", "ES384")
"""Of a workload's key."""
MAX_ANSWER: Final = 16 * 1024
MAX_LIFE: Final = 86_400
MAX_CREDENTIAL: Final = 16 * 1024
"""Bytes of a credential."""
BEARER: Final = "Bearer"
DPOP: Final = "DPoP"
"""The schemes of ``Authorization`` (RFC 6750, section 2.1; RFC 9449, section 7.1)."""


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

    def __init__(
        self, keys: Key | SigningKeySource, *, issuer: str, subject: str
    ) -> None:
        require(
            claims.is_name(issuer) and claims.is_name(subject),
            "issuer and subject are names",
        )
        self._keys = (
            keys.signing_key
            if isinstance(keys, SigningKeySource)
            else partial(jws.LocalSigningKey, keys)
        )
        self.issuer = issuer
        self.subject = subject

    def __call__(self, asking: Asking, /) -> tuple[str, str]:
        """Sign a credential that is bound to the new key."""
        return DPOP, enrolment_credential(
            self._keys(),
            issuer=self.issuer,
            subject=self.subject,
            authority=asking.authority,
            jkt=thumbprint(asking.key.public),
            clock=asking.clock,
            randomness=asking.randomness,
        )


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
        self,
        token_url: str,
        *,
        client_id: str,
        client_secret_file: str | Path,
        ca: str | Path | None = None,
        unsafe_http_loopback: bool = False,
    ) -> None:
        self._url = token_url
        self._endpoint = Endpoint.parse(
            token_url, unsafe_http_loopback=unsafe_http_loopback, name="token_url"
        )
        require(claims.is_name(client_id), "client_id is a name")
        self._client = client_id
        self._secret = Path(client_secret_file)
        self._context: ssl.SSLContext | None = (
            tls_context(ca) if self._endpoint.tls else None
        )

    def __call__(self, asking: Asking, /) -> tuple[str, str]:
        """Ask the provider."""
        proof = dpop_proof(
            asking.key,
            method="POST",
            url=self._url,
            clock=asking.clock,
            randomness=asking.randomness,
        )
        # Id and secret as RFC 6749, section 2.3.1, has them.
        secret = read_bounded(self._secret, MAX_CREDENTIAL, private=True).removesuffix(
            b"\n"
        )
        basic = b64encode(
            f"{quote(self._client, safe='')}:{quote(secret, safe='')}".encode("ascii")
        ).decode("ascii")
        # Whoever reads it would take the authority for the culprit. The statuses are of RFC 6749, section 5.2.
        with refusing(
            FetchFailed,
            lambda error: f"the token endpoint {self._endpoint.authority}: {error}",
            FetchFailed,
        ):
            answer = request(
                self._endpoint,
                deadline=asking.deadline,
                context=self._context,
                dial=asking.dial,
                form={"grant_type": "client_credentials"},
                headers={"Authorization": f"Basic {basic}", "DPoP": proof},
                statuses=(200, 400, 401),
                limit=2 * MAX_CREDENTIAL,
            )
            expect(
                answer.status == 200,
                f"refused, {answer.status} {error_of(answer.document)}",
            )
        document = answer.document or {}
        kind, token = document.get("token_type"), document.get("access_token")
        expect(
            isinstance(kind, str) and isinstance(token, str),
            "the token endpoint gave no token",
        )
        schemes = {scheme.lower(): scheme for scheme in (BEARER, DPOP)}
        expect(
            str(kind).lower() in schemes,
            "the token endpoint gave a token of another type",
        )
        expect(
            len(str(token)) <= MAX_CREDENTIAL and VISIBLE.fullmatch(str(token)),
            "the token endpoint gave no token of ASCII text",
        )
        return schemes[str(kind).lower()], str(token)


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
        self,
        authority: str,
        *,
        subject: str,
        credential: Credential,
        algorithm: str = "EdDSA",
        timeout: float,
        ca: str | Path | None,
        unsafe_http_loopback: bool,
        clock: Clock,
        randomness: Randomness,
        dial: Dial | None = None,
    ) -> None:
        self._endpoint = Endpoint.parse(
            f"{authority}{PATH}",
            unsafe_http_loopback=unsafe_http_loopback,
            name="the authority's url",
        )
        require(
            "?" not in authority and not authority.endswith("/"),
            "the authority's url ends in no / or query",
        )
        require(
            identity.trust_domain_of(subject), "subject is the identifier of a workload"
        )
        require(algorithm in ALGORITHMS, f"algorithm is one of {', '.join(ALGORITHMS)}")
        require(
            0 < timeout <= MAX_TIMEOUT,
            f"timeout is more than 0 and at most {MAX_TIMEOUT:g} seconds",
        )
        self.host = self._endpoint.authority
        """The authority's host, for people."""
        self._authority = authority
        self._subject = subject
        self._credential = credential
        self._algorithm = algorithm
        self._timeout = timeout
        self._context: ssl.SSLContext | None = (
            tls_context(ca) if self._endpoint.tls else None
        )
        self._clock = clock
        self._randomness = randomness
        self._dial = dial

    def __call__(self) -> Grant:
        """Make one request, bounded in time and in bytes.

        Raises:
            FetchFailed: there is no good answer; ``Refused``, where the authority said no.
            ConfigurationError, Unavailable: there is no credential.
        """
        key = Key.generate(self._algorithm)
        asking = Asking(
            self._authority,
            key,
            Deadline(self._clock, self._timeout),
            self._clock,
            self._randomness,
            self._dial,
        )
        scheme, credential = self._credential(asking)
        proof = dpop_proof(
            key,
            method="POST",
            url=f"{self._authority}{PATH}",
            credential=credential,
            clock=self._clock,
            randomness=self._randomness,
        )
        answer = self.post(
            {"Authorization": f"{scheme} {credential}", "DPoP": proof},
            {"sub": self._subject},
            asking.deadline,
        )
        document = answer.document or {}
        if answer.status != 200:
            raise Refused(
                f"refused, {answer.status} {error_of(document)}", answer.retry_after
            )
        expires, renew = (
            _seconds(document.get(name)) for name in ("expires_in", "renew_in")
        )
        expect(renew <= expires, "it answered with a renewal behind the end")
        wit = document.get("wit")
        with refusing(
            ConfigurationError,
            lambda error: f"it answered with no identity of ours: {error}",
            FetchFailed,
        ):
            held = workload.WorkloadKey(
                wit if isinstance(wit, str) else "",
                jws.LocalSigningKey(key),
                key.public,
                self.host,
            )
        expect(
            self._subject == held.identity.subject == document.get("sub"),
            "it answered with another subject",
        )
        return Grant(key=held, expires_in=expires, renew_in=renew)

    def post(
        self, headers: Mapping[str, str], document: Mapping[str, str], deadline: Deadline
    ) -> Response:
        """Send the request, and return the authority's answer; an authority in this process answers in its place.

        Raises:
            FetchFailed: there is none.
        """
        return request(
            self._endpoint,
            deadline=deadline,
            context=self._context,
            dial=self._dial,
            document=document,
            headers=headers,
            statuses=(200, 400, 401, 403, 429, 503),
            limit=MAX_ANSWER,
        )


def _seconds(value: Any) -> int:
    expect(
        type(value) is int and 1 <= value <= MAX_LIFE,
        "it answered with no life in whole seconds",
    )
    return int(value)


CREDENTIAL_TYPE: Final = "mqauth-enrol+jwt"
"""``typ`` of such a credential; neither a message token nor a WIT has it."""
MAX_ENROLMENT: Final = 300
"""Seconds between ``iat`` and ``exp``, at most."""


def enrolment_credential(
    key: SigningKey,
    *,
    issuer: str,
    subject: str,
    authority: str,
    jkt: str,
    clock: Clock,
    randomness: Randomness,
    lifetime: int = 60,
) -> str:
    """Return a credential for one request; its header is exactly ``typ``, ``alg`` and ``kid``.

    Args:
        key: the producer's own key; the authority's set names it.
        issuer: ``iss``, as the authority has it for this kind of credential.
        subject: ``sub``, the producer's name; one of ``mqauth_sub`` of its key.
        authority: ``aud``, the authority's url.
        jkt: thumbprint of the new key, so that whoever intercepts the credential can do nothing with it (RFC 9449,
            section 6.1).
        clock: gives ``iat``, and ``exp`` with ``lifetime``.
        randomness: makes ``jti``.
        lifetime: seconds, 1 to 300.

    Raises:
        ConfigurationError: the key does not speak for the subject, or a name or the lifetime is out of its limits.
        KeyChanged, Unavailable: as ``SigningKey.sign``.
    """
    require(
        1 <= lifetime <= MAX_ENROLMENT, f"a credential lives 1 to {MAX_ENROLMENT} seconds"
    )
    require(
        all(map(claims.is_name, (issuer, subject, authority))),
        "issuer, subject and authority are names",
    )
    subjects = getattr(key, "subjects", None)
    require(
        subjects is None or subject in subjects, "the key does not speak for this subject"
    )
    now = int(clock.now())
    members = {
        "iss": issuer,
        "sub": subject,
        "aud": authority,
        "iat": now,
        "exp": now + lifetime,
        "jti": base64url.encode(randomness(16)).decode("ascii"),
        "cnf": {"jkt": jkt},
    }
    return jws.compact(strict_json.dumps(members), key, typ=CREDENTIAL_TYPE)


DPOP_TYPE: Final = "dpop+jwt"
"""``typ`` of a proof (section 4.2)."""
DPOP_HEADER: Final = frozenset(("typ", "alg", "jwk"))
"""The members of a proof's header, exactly."""


def dpop_proof(
    key: Key,
    *,
    method: str,
    url: str,
    clock: Clock,
    randomness: Randomness,
    credential: str | None = None,
) -> str:
    """Return the ``DPoP`` header of one request: a proof by a key, of the credential beside it.

    Args:
        key: the key that is to be vouched for, with its private half; RSA is of no identity.
        method: of the request, ``htm``.
        url: of the request; ``htu`` is without its query and fragment.
        clock: gives ``iat``.
        randomness: makes ``jti``.
        credential: the token that stands in ``Authorization``; ``ath`` is its digest (section 4.3). A token
            endpoint is asked for a token, and gets none.

    Raises:
        ConfigurationError: the key has no private half.
    """
    require(key.private, "a public key proves nothing")
    header = {"typ": DPOP_TYPE, "alg": key.algorithm, "jwk": public_members(key.public)}
    claims = {
        "htm": method,
        "htu": url.partition("#")[0].partition("?")[0],
        "iat": int(clock.now()),
        "jti": base64url.encode(randomness(16)).decode("ascii"),
    } | ({} if credential is None else {"ath": base64url.digest(credential.encode())})
    signing_input = b".".join(
        base64url.encode(strict_json.dumps(part)) for part in (header, claims)
    )
    signature = base64url.encode(jws.LocalSigningKey(key).sign(signing_input))
    return (signing_input + b"." + signature).decode("ascii")
