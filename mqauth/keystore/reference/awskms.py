"""A key in AWS KMS: a token costs one request, and no private half comes here.

Its reference is ``awskms:ARN``. Behind a question mark, joined by ``&``, may stand ``endpoint``, the URL of a VPC
or FIPS endpoint, and ``ca`` and ``unsafe_http_loopback=true`` for it. An alias is followed once, when it is
adopted: the key that it stands for then is entered. The key material of an ARN never changes.

Credentials are those that boto3 finds; botocore signs the requests, and ``mqauth.http`` sends them: one deadline,
an answer bounded in bytes, no redirect. Whatever keeps KMS from signing is ``Unavailable``, with the host named.
No answer's text is repeated, for AWS repeats the session token when a signature is wrong.

Source: AWS KMS API Reference, "GetPublicKey" and "Sign"; Developer Guide, "Key spec reference".
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import refusing, require
from mqauth.http.connection import Dial, Endpoint, FetchFailed, tls_context
from mqauth.keystore.reference.aws_credentials import CHAIN, CredentialChain, signed
from mqauth.keystore.reference.key import TIMEOUT
from mqauth.keystore.reference.served import LOOPBACK, Served, options
from mqauth.wire import strict_json
from mqauth.wire.keys import PublicKey, natural_algorithm

SCHEME: Final = "awskms:"
MAX_RAW: Final = 4096
"""Bytes of a message that KMS digests itself; Ed25519 signs no longer ones."""
_NAME: Final = "an awskms URI"
_OPTIONS: Final = frozenset(("endpoint", "ca", LOOPBACK))
_ARN: Final = re.compile(
    r"arn:(aws[a-z-]{0,20}):kms:([a-z0-9-]{1,40}):\d{12}:(key/[A-Za-z0-9-]{1,64}|alias/[A-Za-z0-9/_-]{1,250})",
    re.ASCII,
)
_DOMAINS: Final = {
    "aws": "amazonaws.com", "aws-cn": "amazonaws.com.cn", "aws-us-gov": "amazonaws.com",
    "aws-eusc": "amazonaws.eu",
}  # fmt: skip
_CODE: Final = re.compile(r"(?:[A-Za-z.]{0,64}#)?([A-Za-z]{1,64})", re.ASCII)
_UNKNOWN: Final = "the credentials are wrong or have ended, or the clock here is wrong"
_STRANGERS: Final = (
    "UnrecognizedClientException", "InvalidSignatureException", "ExpiredTokenException", "IncompleteSignature",
    "InvalidClientTokenId", "MissingAuthenticationTokenException", "SignatureDoesNotMatch",
)  # fmt: skip
"""Codes of an answer to whom AWS does not know."""
_SAID: Final[Mapping[str, str]] = {
    "AccessDeniedException": "no policy allows kms:Sign or kms:GetPublicKey with this key",
    "DisabledException": "the key is disabled",
    "InvalidKeyUsageException": "the key does not sign so",
    "KMSInvalidStateException": "the key is to be deleted, or not enabled",
    "NotFoundException": "no such key",
    "ThrottlingException": "over the quota of requests: send batches, or ask AWS for more",
    "ValidationException": "the key does not sign so",
    "status 500": "AWS KMS failed",
    "status 503": "AWS KMS failed",
    **dict.fromkeys(_STRANGERS, _UNKNOWN),
}
"""What codes and statuses mean that AWS KMS answers with."""


class _Kind(NamedTuple):
    """The name of an algorithm there, its digest where that may be sent, and the bytes of ``R`` and of ``S``."""

    named: str
    digest: str | None = None
    half: int = 0


_SIGNS: Final[Mapping[str, _Kind]] = {
    "ES256": _Kind("ECDSA_SHA_256", "sha256", 32),
    "ES384": _Kind("ECDSA_SHA_384", "sha384", 48),
    "EdDSA": _Kind("ED25519_SHA_512"),
}
"""How AWS KMS makes the signatures of an algorithm."""
_UNREADABLE: Final = (AttributeError, KeyError, TypeError, ValueError, UnsupportedAlgorithm)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a key is, and how it is reached: a reference, parsed.

    Args:
        arn: of the key, or of an alias.
        region: the one in the ARN.
        server: the URL of the endpoint.
        ca: PEM file of the CAs to trust in place of the system's.
        loopback: whether http on loopback is allowed.
    """

    arn: str
    region: str
    server: str
    ca: Path | None = None
    loopback: bool = False

    @classmethod
    def parse(cls, uri: str) -> Self:
        """Parse a reference.

        Raises:
            ConfigurationError: it is none.
        """
        text, _, query = uri.removeprefix(SCHEME).partition("?")
        parts = require(_ARN.fullmatch(text), f"{_NAME} is awskms:arn:aws:kms:REGION:ACCOUNT:key/ID or alias/NAME")
        partition, region = parts.group(1, 2)
        found = options(query, _OPTIONS, _NAME)
        domain = _DOMAINS.get(partition)
        require(domain or "endpoint" in found, f"{_NAME} of partition {partition} names its endpoint")
        ca = Path(found["ca"]) if "ca" in found else None
        require(ca is None or ca.is_absolute(), "ca is an absolute path")
        place = cls(
            arn=text, region=region, server=found.get("endpoint", f"https://kms.{region}.{domain}").rstrip("/"),
            ca=ca, loopback=LOOPBACK in found,
        )  # fmt: skip
        require(place.endpoint().target == "/", "an endpoint has neither path nor query")
        return place

    @property
    def alias(self) -> bool:
        """Whether the ARN is of an alias, which may stand for another key at any time."""
        return ":alias/" in self.arn

    @property
    def shown(self) -> str:
        """The key, for people."""
        return f"{self.server}: {self.arn}"

    def endpoint(self) -> Endpoint:
        """Return where the requests go."""
        return Endpoint.parse(self.server, unsafe_http_loopback=self.loopback, name=f"the endpoint of {_NAME}")


class KmsKey(Served):
    """A key of AWS KMS; the ``Holder`` of ``awskms:``.

    Args:
        uri: the reference of the key.
        timeout: seconds for a request, everything included, also what finds the credentials.
        clock: tells the time.
        dial: opens connections, in place of ``connect``.
        chain: finds the credentials.

    Raises:
        ConfigurationError: the reference is none, or the file of CAs holds none.
    """

    def __init__(
        self, uri: str, *, timeout: float = TIMEOUT, clock: Clock = SYSTEM_CLOCK, dial: Dial | None = None,
        chain: CredentialChain = CHAIN,
    ) -> None:  # fmt: skip
        self._place = Place.parse(uri)
        self._uri = uri
        self._endpoint = self._place.endpoint()
        self._chain = chain
        context = tls_context(self._place.ca) if self._endpoint.tls else None
        super().__init__(self._place.shown, _SAID, context=context, timeout=timeout, clock=clock, dial=dial)

    def pinned(self) -> str:
        """Return the reference with the ARN of the key, where it has that of an alias.

        Raises:
            Unavailable: ``keys_unavailable``: AWS KMS cannot be reached, or refuses.
        """
        if not self._place.alias:
            return self._uri
        arn = str(self._described().get("KeyId"))
        require(_ARN.fullmatch(arn) and ":key/" in arn, "an answer that names no key", self._unavailable)
        return self._uri.replace(self._place.arn, arn, 1)

    def public(self) -> PublicKey:
        """Return the public half.

        Raises:
            ConfigurationError: the key there cannot sign for us.
            Unavailable: ``keys_unavailable``: AWS KMS cannot be reached, or refuses.
        """
        found, where = self._described(), self._place.shown
        with refusing(_UNREADABLE, f"{where}: no public half of a key that signs"):
            public: PublicKey = load_der_public_key(base64.b64decode(found["PublicKey"], validate=True))  # type: ignore[assignment]
            kind, named = _SIGNS.get(natural_algorithm(public)), found["SigningAlgorithms"]
            signs = kind is not None and kind.named in named and found["KeyUsage"] == "SIGN_VERIFY"
        require(signs, f"{where}: its key does not sign {', '.join(_SIGNS)}")
        return public

    def sign(self, data: bytes, algorithm: str, /) -> bytes:
        """Return what AWS KMS gave as the raw JWS signature over ``data``.

        Args:
            data: the signing input, not digested.
            algorithm: ``EdDSA``, ``ES256`` or ``ES384``, that of the key.

        Raises:
            ConfigurationError: the algorithm is another one, the reference has an alias, or an Ed25519 key is to
                sign more than 4,096 bytes.
            Unavailable: ``keys_unavailable``: AWS KMS cannot be reached, refuses, or answers something else.
        """
        where = self._place.shown
        require(algorithm in _SIGNS, f"{where}: AWS KMS keys sign {', '.join(_SIGNS)}")
        require(not self._place.alias, f"{where}: an alias may stand for another key tomorrow; adopt it")
        kind = _SIGNS[algorithm]
        message = {"KeyId": self._place.arn, "SigningAlgorithm": kind.named}
        answer = self._ask("Sign", {**message, **_message(data, kind, where)})
        with refusing(_UNREADABLE, f"an answer without a signature of {kind.named}", self._unavailable):
            require({name: answer[name] for name in message} == message, "another key's", ValueError)
            return _raw(base64.b64decode(answer["Signature"], validate=True), kind)

    def _described(self) -> Mapping[str, Any]:
        return self._ask("GetPublicKey", {"KeyId": self._place.arn})

    def _ask(self, action: str, document: Mapping[str, str]) -> Mapping[str, Any]:
        """Return what AWS KMS answers about the key."""
        deadline, body = self._deadline(), strict_json.dumps(document)
        try:
            credentials = self._chain.credentials(deadline)
        except FetchFailed as error:
            raise self._unavailable(str(error)) from error
        named = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"TrentService.{action}"}
        headers = signed(
            credentials, body, region=self._place.region, endpoint=self._endpoint, headers=named, clock=self._clock
        )
        answer = self._request(
            self._endpoint, deadline=deadline, document=document, headers=headers, statuses=(200, 400, 403)
        )
        found = answer.document or {}
        if answer.status != 200:
            raise self._unavailable(self._refused(found, answer.status))
        return found

    def _refused(self, found: Mapping[str, Any], status: int) -> str:
        """Return the code of a refusal; its text is not repeated."""
        code = _CODE.fullmatch(str(found.get("__type", "")))
        name = code[1] if code else f"status {status}"
        if name in _STRANGERS:
            self._chain.refused()
        return name


def _message(data: bytes, kind: _Kind, where: str) -> dict[str, str]:
    """Return the members of a request that hold what is signed."""
    named = "RAW"
    if len(data) > MAX_RAW:
        require(
            kind.digest, f"{where}: an Ed25519 key of AWS KMS signs {MAX_RAW} bytes at most, and a token has"
            f" {len(data)}: use a P-256 key",
        )  # fmt: skip
        named, data = "DIGEST", hashlib.new(str(kind.digest), data).digest()
    return {"Message": base64.b64encode(data).decode("ascii"), "MessageType": named}


def _raw(found: bytes, kind: _Kind) -> bytes:
    """Return a raw JWS signature, of ECDSA ``R || S`` (RFC 7518, section 3.4), or raise ``ValueError``."""
    if kind.digest is None:
        return found
    # cryptography reads strict DER and nothing else; numbers that are negative or too large do not fit.
    first, second = decode_dss_signature(found)
    with refusing(OverflowError, "too large", ValueError):
        return first.to_bytes(kind.half, "big") + second.to_bytes(kind.half, "big")
