"""A key in AWS KMS: a token costs one request, and no private half comes here.

Its reference is ``awskms:ARN``. Behind a question mark, joined by ``&``, may stand ``endpoint``, the URL of a VPC
or FIPS endpoint, and ``ca`` and ``unsafe_http_loopback=true`` for it. The key material of an ARN never changes. An
alias is refused: somebody who may move it would change the key.

botocore has the credentials, the requests and the connections. A call is made once: ``ReferenceKey`` tries again,
and checks each signature. Whatever keeps KMS from signing is ``Unavailable``, with the host named; the code of an
answer is repeated, and its text never, for AWS repeats the session token when a signature is wrong.

Source: AWS KMS API Reference, "GetPublicKey" and "Sign"; Developer Guide, "Key spec reference".
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import Session
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from mqauth.audit.redaction import redact_logging
from mqauth.errors import Cause, Unavailable, refusing, require
from mqauth.http.connection import Endpoint
from mqauth.keystore.reference import TIMEOUT
from mqauth.keystore.reference.served import LOOPBACK, options
from mqauth.wire.keys import PublicKey, natural_algorithm

# At DEBUG botocore writes the session token into the log.
redact_logging()
SCHEME: Final = "awskms:"
MAX_RAW: Final = 4096
"""Bytes of a message that KMS digests itself; Ed25519 signs no longer ones."""
_NAME: Final = "an awskms URI"
_ARN: Final = re.compile(
    r"arn:(aws[a-z-]{0,20}):kms:([a-z0-9-]{1,40}):\d{12}:key/[A-Za-z0-9-]{1,64}",
    re.ASCII,
)
_DOMAINS: Final = {
    "aws": "amazonaws.com", "aws-cn": "amazonaws.com.cn", "aws-us-gov": "amazonaws.com",
    "aws-eusc": "amazonaws.eu",
}  # fmt: skip
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
    "KMSInternalException": "AWS KMS failed",
    **dict.fromkeys(_STRANGERS, _UNKNOWN),
}
"""What the codes of AWS mean."""


class _Algorithm(NamedTuple):
    """The name of an algorithm there, its digest where that may be sent, and the bytes of ``R`` and of ``S``."""

    named: str
    digest: str | None = None
    half: int = 0


_SIGNS: Final[Mapping[str, _Algorithm]] = {
    "ES256": _Algorithm("ECDSA_SHA_256", "sha256", 32),
    "ES384": _Algorithm("ECDSA_SHA_384", "sha384", 48),
    "EdDSA": _Algorithm("ED25519_SHA_512"),
}
"""How AWS KMS makes the signatures of an algorithm."""
_UNREADABLE: Final = (KeyError, TypeError, ValueError, UnsupportedAlgorithm)


@dataclass(frozen=True, slots=True, kw_only=True)
class KmsReference:
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
        require(":alias/" not in text, "an alias may stand for another key tomorrow: name the key by its own ARN")
        parts = require(_ARN.fullmatch(text), f"{_NAME} is awskms:arn:aws:kms:REGION:ACCOUNT:key/ID")
        partition, region = parts.group(1, 2)
        members = options(query, frozenset(("endpoint", "ca", LOOPBACK)), _NAME)
        domain = _DOMAINS.get(partition)
        require(domain or "endpoint" in members, f"{_NAME} of partition {partition} names its endpoint")
        ca = Path(members["ca"]) if "ca" in members else None
        require(ca is None or ca.is_absolute(), "ca is an absolute path")
        reference = cls(
            arn=text, region=region, server=members.get("endpoint", f"https://kms.{region}.{domain}").rstrip("/"),
            ca=ca, loopback=LOOPBACK in members,
        )  # fmt: skip
        require(reference.endpoint().target == "/", "an endpoint has neither path nor query")
        return reference

    @property
    def shown(self) -> str:
        """The key, for people."""
        return f"{self.server}: {self.arn}"

    def endpoint(self) -> Endpoint:
        """Return where the requests go."""
        return Endpoint.parse(self.server, unsafe_http_loopback=self.loopback, name=f"the endpoint of {_NAME}")


@lru_cache(maxsize=64)
def client_of(_process: int, reference: KmsReference, timeout: float) -> Any:
    """Return botocore's client of a reference: threads share it, and a child after a fork has its own."""
    once = Config(connect_timeout=timeout, read_timeout=timeout, retries={"total_max_attempts": 1})
    return Session().create_client(
        "kms", region_name=reference.region, endpoint_url=reference.server, config=once,
        verify=True if reference.ca is None else str(reference.ca),
    )  # fmt: skip


class KmsKey:
    """A key of AWS KMS; the ``Holder`` of ``awskms:``.

    Args:
        uri: the reference of the key.
        timeout: seconds to connect, and to wait for what is read.

    Raises:
        ConfigurationError: the reference is none.
    """

    generation: Final = None
    """No number: others may stand between us and the server, so each signature is checked."""

    def __init__(self, uri: str, *, timeout: float = TIMEOUT) -> None:
        self._reference = KmsReference.parse(uri)
        self._uri = uri
        self._timeout = timeout

    def __repr__(self) -> str:
        return f"KmsKey({self._reference.shown!r})"

    def public(self) -> PublicKey:
        """Return the public half.

        Raises:
            ConfigurationError: the key there cannot sign for us.
            Unavailable: ``keys_unavailable``: AWS KMS cannot be reached, or refuses.
        """
        answer, where = self._ask("get_public_key"), self._reference.shown
        with refusing(_UNREADABLE, f"{where}: no public half of a key that signs"):
            public: PublicKey = load_der_public_key(answer["PublicKey"])  # type: ignore[assignment]
            kind = _SIGNS.get(natural_algorithm(public))
            signs = kind is not None and kind.named in answer["SigningAlgorithms"]
            signs = signs and answer["KeyUsage"] == "SIGN_VERIFY"
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
        where = self._reference.shown
        kind = require(_SIGNS.get(algorithm), f"{where}: AWS KMS keys sign {', '.join(_SIGNS)}")
        named = "RAW"
        if len(data) > MAX_RAW:
            require(
                kind.digest, f"{where}: an Ed25519 key of AWS KMS signs {MAX_RAW} bytes at most, and a token has"
                f" {len(data)}: use a P-256 key",
            )  # fmt: skip
            named, data = "DIGEST", hashlib.new(str(kind.digest), data).digest()
        answer = self._ask("sign", Message=data, MessageType=named, SigningAlgorithm=kind.named)
        with refusing(_UNREADABLE, f"an answer without a signature of {kind.named}", self._unavailable):
            return _raw(answer["Signature"], kind)

    def _ask(self, action: str, **members: Any) -> Mapping[str, Any]:
        """Return what AWS KMS answers about the key."""
        try:
            client = client_of(os.getpid(), self._reference, self._timeout)
            answer: Mapping[str, Any] = getattr(client, action)(KeyId=self._reference.arn, **members)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _STRANGERS:
                client_of.cache_clear()  # credentials of files and environment are read again
            raise self._unavailable(
                code if re.fullmatch(r"[A-Za-z0-9]{1,64}", code, re.ASCII) else "an error without a code"
            ) from None
        except Exception as error:
            # An answer of the wrong shape raises what its parser meets. The text of an error may hold what a
            # process of the chain of credentials said.
            raise self._unavailable(type(error).__name__) from None
        return answer

    def _unavailable(self, detail: str) -> Unavailable:
        detail = ": ".join(filter(None, (detail, _SAID.get(detail))))
        return Unavailable(Cause.KEYS_UNAVAILABLE, f"{self._reference.shown}: {detail}")


def _raw(signature: bytes, kind: _Algorithm) -> bytes:
    """Return a raw JWS signature, of ECDSA ``R || S`` (RFC 7518, section 3.4), or raise ``ValueError``."""
    if kind.digest is None:
        return signature
    # cryptography reads strict DER and nothing else; numbers that are negative or too large do not fit.
    first, second = decode_dss_signature(signature)
    with refusing(OverflowError, "too large", ValueError):
        return first.to_bytes(kind.half, "big") + second.to_bytes(kind.half, "big")
