"""Keys in AWS KMS: what is asked, what counts as an answer, and what is a reference."""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import sys
from typing import Any

import pytest
from botocore.awsrequest import AWSResponse
from botocore.exceptions import ConnectTimeoutError
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mqauth import ConfigurationError, Key, Unavailable
from mqauth.keystore.reference.awskms import KmsKey, client_of
from mqauth.keystore.reference.key import open_holder
from mqauth.keystore.reference.uri import TIMEOUT, KmsReference
from mqauth.wire import jws

ED, ES, ES384 = (Key.generate(name) for name in ("EdDSA", "ES256", "ES384"))
ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
ALIAS = "arn:aws:kms:eu-central-1:111122223333:alias/orders"
SHOWN = f"https://kms.eu-central-1.amazonaws.com: {ARN}"
NAMES = {"EdDSA": "ED25519_SHA_512", "ES256": "ECDSA_SHA_256", "ES384": "ECDSA_SHA_384"}
SECRET, TOKEN = "unguessable-secret", "unguessable-token"
Answer = tuple[int, bytes]


class Raw(io.BytesIO):
    """The body of an answer, as urllib3 has it."""

    def stream(self, **_: Any) -> Any:
        yield self.read()


class Server:
    """Answers from a script in place of the network, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer | Exception] = []
        self.asked: list[Any] = []
        self.made = 0

    def send(self, request: Any, **_: Any) -> AWSResponse:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return AWSResponse(
            request.url,
            answer[0],
            {"Content-Type": "application/x-amz-json-1.1"},
            Raw(answer[1]),
        )

    def attach(self, uri: str) -> None:
        """Put itself in the place of the endpoint of a reference."""
        client_of(os.getpid(), KmsReference.parse(uri), TIMEOUT).meta.events.register(
            "before-send.kms", self.send
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server that answers what a test says, and credentials that are there."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA0")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_SESSION_TOKEN", TOKEN)
    client_of.cache_clear()
    return Server()


def key_of(server: Server, uri: str = f"awskms:{ARN}") -> KmsKey:
    """Return a key whose server answers from its script."""
    server.attach(uri)
    return KmsKey(uri)


@pytest.fixture
def key(server: Server) -> KmsKey:
    """The key under test."""
    return key_of(server)


def said(status: int = 200, **members: Any) -> Answer:
    """Return an answer of AWS."""
    return status, json.dumps(members).encode()


def made(key: Key, text: bytes, **changes: Any) -> Answer:
    """Return the answer with the signature of a key, DER where AWS gives DER."""
    raw = jws.LocalSigningKey(key).sign(text)
    if key.algorithm != "EdDSA":
        half = len(raw) // 2
        raw = encode_dss_signature(
            int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big")
        )
    usual = {
        "KeyId": ARN, "Signature": base64.b64encode(raw).decode(), "SigningAlgorithm": NAMES[key.algorithm],
    }  # fmt: skip
    return said(**{**usual, **changes})


def der(text: str) -> Answer:
    """Return the answer whose signature is these bytes, in hexadecimal digits."""
    return made(ES, b"input", Signature=base64.b64encode(bytes.fromhex(text)).decode())


def described(public: Any, *algorithms: str, **changes: Any) -> Answer:
    """Return what AWS says of a key."""
    raw = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    usual = {
        "KeyId": ARN,
        "KeyUsage": "SIGN_VERIFY",
        "PublicKey": base64.b64encode(raw).decode(),
    }
    return said(**{**usual, "SigningAlgorithms": list(algorithms), **changes})


# --- what is asked ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [ED, ES, ES384], ids=lambda key: key.algorithm)
def test_a_signature_is_asked_of_the_key(key: KmsKey, server: Server, held: Key) -> None:
    """One POST to the region's endpoint, with key, algorithm and message; the raw signature comes out."""
    server.answers = [made(held, b"input")]
    signature = key.sign(b"input", held.algorithm)
    jws.verify(
        jws.Opened(held.algorithm, held.kid, b"input", b"", signature), held.public_only
    )
    (asked,) = server.asked
    assert (asked.method, asked.url) == (
        "POST",
        "https://kms.eu-central-1.amazonaws.com/",
    )
    assert asked.headers["X-Amz-Target"] == b"TrentService.Sign"
    assert json.loads(asked.body) == {
        "KeyId": ARN, "SigningAlgorithm": NAMES[held.algorithm], "MessageType": "RAW",
        "Message": base64.b64encode(b"input").decode(),
    }  # fmt: skip


def test_the_public_half(key: KmsKey, server: Server) -> None:
    """``GetPublicKey`` gives the public half, and no other question is asked."""
    for held in (ED, ES, ES384):
        server.answers = [described(held.public, NAMES[held.algorithm])]
        assert key.public() == held.public
    assert {asked.headers["X-Amz-Target"] for asked in server.asked} == {
        b"TrentService.GetPublicKey"
    }


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            described(
                rsa.generate_private_key(65537, 2048).public_key(), "RSASSA_PSS_SHA_256"
            ),
            "does not sign ES256",
        ),
        (
            described(
                ec.generate_private_key(ec.SECP256K1()).public_key(), "ECDSA_SHA_256"
            ),
            "P-256 and P-384",
        ),
        (
            described(ES.public, "ECDSA_SHA_256", KeyUsage="KEY_AGREEMENT"),
            "does not sign",
        ),
        (described(ED.public, "ED25519_PH_SHA_512"), "does not sign"),
        (
            described(ES.public, SigningAlgorithms=None),
            "no public half of a key that signs",
        ),
        (described(ES.public, "ECDSA_SHA_256", PublicKey="####"), "no public half"),
        (described(ES.public, "ECDSA_SHA_256", PublicKey="AAAA"), "no public half"),
        (said(), "no public half"),
    ],
)
def test_a_key_that_cannot_be_ours_is_refused(
    key: KmsKey, server: Server, answer: Answer | Exception, why: str
) -> None:
    """A key of another type or use, or without a public half, is a configuration error."""
    server.answers = [answer]
    with pytest.raises(ConfigurationError, match=why):
        key.public()


def test_an_algorithm_that_kms_does_not_sign_for_us_is_refused(key: KmsKey) -> None:
    """RSA keys are no KMS keys here."""
    with pytest.raises(ConfigurationError, match="sign ES256, ES384, EdDSA"):
        key.sign(b"x", "RS256")


# --- what counts as an answer --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            said(400, __type="AccessDeniedException", message=TOKEN),
            "AccessDeniedException: no policy",
        ),
        (
            said(403, __type="AccessDeniedException", message=TOKEN),
            "Exception: no policy",
        ),
        (said(400, __type="DisabledException"), "DisabledException: the key is disabled"),
        (said(400, __type="KMSInvalidStateException"), "is to be deleted"),
        (said(400, __type="ThrottlingException"), "over the quota"),
        (said(400, __type="a.b.c#NotFoundException"), "NotFoundException: no such key"),
        (said(400, __type="OfTomorrowException"), "OfTomorrowException$"),
        (said(400, __type=f"x {TOKEN}"), "an error without a code$"),
        (said(403), "403$"),
        (
            said(500, __type="KMSInternalException"),
            "KMSInternalException: AWS KMS failed",
        ),
        (said(500, __type="KeyUnavailableException"), "KeyUnavailable"),
        (
            said(400, __type="com.amazon.coral.service#InvalidSignatureException"),
            "the clock here is wrong",
        ),
        (said(503), "503$"),
        ((307, b""), "307$"),
        ((200, b"<html>"), "without a signature|Error"),
        (made(ES384, b"input", SigningAlgorithm="ECDSA_SHA_256"), "without a signature"),
        (made(ES, b"input", Signature=None), "without a signature"),
        (made(ES, b"input", Signature="####"), "without a signature"),
        (
            made(ES, b"input", Signature=base64.b64encode(bytes(64)).decode()),
            "without a signature",
        ),
        (der("3006020101020101" + "78"), "without a signature"),
        (der("300702020001020101"), "without a signature"),
        (der("30060201ff020101"), "without a signature"),
        (der("3026022101" + "00" * 32 + "020101"), "without a signature"),
        (said(), "without a signature"),
        ((200, b"[]"), "AttributeError"),
        (ConnectTimeoutError(endpoint_url="https://kms"), "ConnectTimeoutError"),
    ],
)
def test_whatever_is_no_signature_is_unavailable(
    key: KmsKey,
    server: Server,
    answer: Answer | Exception,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Refusals and rubbish are ``keys_unavailable`` with host and key named, and nowhere stands a credential."""
    caplog.set_level(logging.DEBUG)
    server.answers = [answer]
    with pytest.raises(Unavailable, match=why) as caught:
        key.sign(b"input", "ES256")
    assert caught.value.cause == "keys_unavailable"
    assert SHOWN in str(caught.value)
    assert (
        "unguessable"
        not in f"{caught.value!r}{caught.value.__cause__!r}{caplog.text}{key!r}"
    )


@pytest.mark.parametrize(
    "code",
    ["UnrecognizedClientException", "ExpiredTokenException", "x#IncompleteSignature"],
)
def test_credentials_that_aws_does_not_know_are_looked_for_again(
    key: KmsKey, server: Server, code: str
) -> None:
    """Those of a file may have been replaced; of a right that is missing the client is kept."""
    server.answers = [said(400, __type=name) for name in ("AccessDeniedException", code)]
    for kept in (1, 0):
        with pytest.raises(Unavailable):
            key.sign(b"x", "ES256")
        assert client_of.cache_info().currsize == kept


# --- references ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("awskms:", "REGION:ACCOUNT"),
        ("awskms:1234abcd", "REGION:ACCOUNT"),
        ("awskms:alias/orders", "REGION:ACCOUNT"),
        (f"awskms:{ARN.replace(':kms:', ':s3:')}", "REGION:ACCOUNT"),
        (f"awskms:{ARN.replace('111122223333', '1')}", "REGION:ACCOUNT"),
        (f"awskms:{ARN.replace('eu-central-1', 'evil.example/')}", "REGION:ACCOUNT"),
        (f"awskms:{ARN}/x", "REGION:ACCOUNT"),
        (f"awskms:{ALIAS}", "an alias may stand for another key"),
        (f"awskms:{ARN}#x", "REGION:ACCOUNT"),
        (f"awskms:{ARN}?color=red", "not .color."),
        (f"awskms:{ARN}?ca=/a&ca=/b", "ca stands twice"),
        (f"awskms:{ARN}?ca=a", "absolute path"),
        (f"awskms:{ARN}?unsafe_http_loopback=yes", "is true, or left out"),
        (f"awskms:{ARN}?endpoint=http://kms.example", "http only on loopback"),
        (f"awskms:{ARN}?endpoint=http://127.0.0.1:1", "http only on loopback"),
        (f"awskms:{ARN}?endpoint=https://a:b@kms.example", "neither user"),
        (f"awskms:{ARN}?endpoint=https://kms.example/path", "neither path nor query"),
        ("awskms:arn:aws-iso:kms:us-iso-east-1:111122223333:key/a", "names its endpoint"),
    ],
)
def test_what_is_no_reference_is_refused(uri: str, why: str) -> None:
    """A reference that leaves anything open, or says more than is known, is a configuration error."""
    with pytest.raises(ConfigurationError, match=why):
        KmsKey(uri)


def test_an_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without botocore the error names the extra."""
    monkeypatch.setitem(sys.modules, "mqauth.keystore.reference.awskms", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'mqauth\[aws\]'"):
        open_holder(f"awskms:{ARN}")


def test_what_botocore_writes_at_debug_is_not_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """At DEBUG botocore writes requests and answers with the platform's token and the credentials for it."""
    with caplog.at_level(logging.DEBUG, "botocore"):
        logging.getLogger("botocore.parsers").debug(
            "Response body: %r", b"<SecretAccessKey>hunter2"
        )
        logging.getLogger("botocore.endpoint").debug(
            "Making request with params: %s", "WebIdentityToken=eyJhunter2"
        )
        logging.getLogger("botocore.credentials").info("Found credentials in shared file")
    assert [record.getMessage() for record in caplog.records] == [
        "<token>", "<token>", "Found credentials in shared file",
    ]  # fmt: skip
