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
from functools import lru_cache
from typing import Any, Final

from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import Session
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from mqauth.audit.redaction import redact_logging
from mqauth.errors import Cause, Unavailable, refusing, require
from mqauth.keystore.reference.uri import TIMEOUT, KmsReference
from mqauth.wire.keys import PublicKey, natural_algorithm

# At DEBUG botocore writes the session token into the log.
redact_logging()
MAX_RAW: Final = 4096
"""Bytes of a message that KMS digests itself; Ed25519 signs no longer ones."""
_STRANGERS: Final = (
    "UnrecognizedClientException",
    "InvalidSignatureException",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "MissingAuthenticationTokenException",
    "SignatureDoesNotMatch",
)
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
    **dict.fromkeys(
        _STRANGERS, "the credentials are wrong or have ended, or the clock here is wrong"
    ),
}
"""What the codes of AWS mean."""
_SIGNS: Final[Mapping[str, tuple[str, str | None, int]]] = {
    "ES256": ("ECDSA_SHA_256", "sha256", 32),
    "ES384": ("ECDSA_SHA_384", "sha384", 48),
    "EdDSA": ("ED25519_SHA_512", None, 0),
}
"""The name of an algorithm there, its digest where that may be sent, and the bytes of ``R`` and of ``S``."""
_UNREADABLE: Final = (
    KeyError,
    TypeError,
    ValueError,
    OverflowError,
    UnsupportedAlgorithm,
)


@lru_cache(maxsize=64)
def client_of(_process: int, reference: KmsReference, timeout: float) -> Any:
    """Return botocore's client of a reference: threads share it, and a child after a fork has its own."""
    return Session().create_client(
        "kms",
        region_name=reference.region,
        endpoint_url=reference.server,
        config=Config(
            connect_timeout=timeout,
            read_timeout=timeout,
            retries={"total_max_attempts": 1},
        ),
        verify=True if reference.ca is None else str(reference.ca),
    )


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
        self._timeout = timeout

    def public(self) -> PublicKey:
        """Return the public half.

        Raises:
            ConfigurationError: the key there cannot sign for us.
            Unavailable: ``keys_unavailable``: AWS KMS cannot be reached, or refuses.
        """
        answer, where = self._ask("get_public_key"), self._reference.shown
        with refusing(_UNREADABLE, f"{where}: no public half of a key that signs"):
            public: PublicKey = load_der_public_key(answer["PublicKey"])  # type: ignore[assignment]
            named, _, _ = _SIGNS.get(natural_algorithm(public), ("", None, 0))
            signs = (
                named in answer["SigningAlgorithms"]
                and answer["KeyUsage"] == "SIGN_VERIFY"
            )
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
        named, digest, half = require(
            _SIGNS.get(algorithm), f"{where}: AWS KMS keys sign {', '.join(_SIGNS)}"
        )
        form = "RAW"
        if len(data) > MAX_RAW:
            require(
                digest,
                f"{where}: an Ed25519 key of AWS KMS signs {MAX_RAW} bytes at most, and a token has"
                f" {len(data)}: use a P-256 key",
            )
            form, data = "DIGEST", hashlib.new(str(digest), data).digest()
        answer = self._ask("sign", Message=data, MessageType=form, SigningAlgorithm=named)
        with refusing(
            _UNREADABLE, f"an answer without a signature of {named}", self._unavailable
        ):
            signature: bytes = answer["Signature"]
            if half:
                # Of ECDSA ``R || S`` (RFC 7518, section 3.4). cryptography reads strict DER and nothing else;
                # numbers that are negative or too large do not fit.
                first, second = decode_dss_signature(signature)
                signature = first.to_bytes(half, "big") + second.to_bytes(half, "big")
            return signature

    def _ask(self, action: str, **members: Any) -> Mapping[str, Any]:
        """Return what AWS KMS answers about the key."""
        try:
            client = client_of(os.getpid(), self._reference, self._timeout)
            answer: Mapping[str, Any] = getattr(client, action)(
                KeyId=self._reference.arn, **members
            )
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in _STRANGERS:
                client_of.cache_clear()  # credentials of files and environment are read again
            raise self._unavailable(
                code
                if re.fullmatch(r"[A-Za-z0-9]{1,64}", code, re.ASCII)
                else "an error without a code"
            ) from None
        except Exception as error:
            # An answer of the wrong shape raises what its parser meets. The text of an error may hold what a
            # process of the chain of credentials said.
            raise self._unavailable(type(error).__name__) from None
        return answer

    def _unavailable(self, detail: str) -> Unavailable:
        detail = ": ".join(filter(None, (detail, _SAID.get(detail))))
        return Unavailable(Cause.KEYS_UNAVAILABLE, f"{self._reference.shown}: {detail}")
