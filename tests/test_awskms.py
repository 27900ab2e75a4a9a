"""Keys in AWS KMS: what is asked and signed, what counts as an answer, and how credentials are found."""

from __future__ import annotations

import base64
import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from botocore.exceptions import CredentialRetrievalError
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from mqauth.errors import ConfigurationError, Unavailable
from mqauth.http.connection import Deadline, Endpoint, FetchFailed
from mqauth.keystore.reference import aws_credentials
from mqauth.keystore.reference.aws_credentials import CredentialChain, signed
from mqauth.keystore.reference.awskms import KmsKey, Place
from mqauth.keystore.reference.key import open_holder
from mqauth.testing import FakeClock
from mqauth.wire import jws
from mqauth.wire.keys import Key
from tests.test_jwks import response
from tests.test_transit import Server

ED, ES, ES384 = (Key.generate(name) for name in ("EdDSA", "ES256", "ES384"))
ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
ALIAS = "arn:aws:kms:eu-central-1:111122223333:alias/orders"
SHOWN = f"https://kms.eu-central-1.amazonaws.com: {ARN}"
NAMES = {"EdDSA": "ED25519_SHA_512", "ES256": "ECDSA_SHA_256", "ES384": "ECDSA_SHA_384"}
SECRET, TOKEN = "unguessable-secret", "unguessable-token"
FOUND = ReadOnlyCredentials("AKIA0", SECRET, TOKEN)


class Chain(CredentialChain):
    """Has these credentials, and counts refusals."""

    def __init__(self) -> None:
        super().__init__()
        self.refusals = 0

    def credentials(self, deadline: Deadline) -> Any:
        return FOUND

    def refused(self) -> None:
        self.refusals += 1


@pytest.fixture
def server(clock: FakeClock) -> Server:
    """A server that answers what a test says."""
    return Server(clock)


@pytest.fixture
def chain() -> Chain:
    """Credentials that are there."""
    return Chain()


def key_of(server: Server, clock: FakeClock, chain: CredentialChain, arn: str = ARN) -> KmsKey:
    """Return a key whose server answers from its script."""
    return KmsKey(f"awskms:{arn}", clock=clock, dial=server.dial, chain=chain)


@pytest.fixture
def key(server: Server, clock: FakeClock, chain: Chain) -> KmsKey:
    """The key under test."""
    return key_of(server, clock, chain)


def said(status: str = "200 OK", **members: Any) -> bytes:
    """Return an answer of AWS."""
    return response(json.dumps(members).encode(), status=status, Content_Type="application/x-amz-json-1.1")


def made(key: Key, text: bytes, **changes: Any) -> bytes:
    """Return the answer with the signature of a key, DER where AWS gives DER."""
    raw = jws.LocalSigningKey(key).sign(text)
    if key.algorithm != "EdDSA":
        half = len(raw) // 2
        raw = encode_dss_signature(int.from_bytes(raw[:half], "big"), int.from_bytes(raw[half:], "big"))
    usual = {
        "KeyId": ARN, "Signature": base64.b64encode(raw).decode(), "SigningAlgorithm": NAMES[key.algorithm],
    }  # fmt: skip
    return said(**{**usual, **changes})


def described(public: Any, *algorithms: str, **changes: Any) -> bytes:
    """Return what AWS says of a key."""
    raw = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    usual = {"KeyId": ARN, "KeyUsage": "SIGN_VERIFY", "PublicKey": base64.b64encode(raw).decode()}
    return said(**{**usual, "SigningAlgorithms": list(algorithms), **changes})


# --- what is asked ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", [ED, ES, ES384], ids=lambda key: key.algorithm)
def test_a_signature_is_asked_of_the_key(key: KmsKey, server: Server, held: Key) -> None:
    """One POST to the region's endpoint, with key, algorithm and message; the raw signature comes out."""
    server.answers = [made(held, b"input")]
    signature = key.sign(b"input", held.algorithm)
    jws.verify(jws.Opened(held.algorithm, held.kid, b"input", b"", signature), held.public_only)
    head, body = server.sent()
    assert server.asked == ["https://kms.eu-central-1.amazonaws.com/"]
    assert head.startswith("POST / HTTP/1.1\r\n")
    assert "X-Amz-Target: TrentService.Sign\r\n" in head
    assert "Content-Type: application/x-amz-json-1.1\r\n" in head
    assert body == {
        "KeyId": ARN, "SigningAlgorithm": NAMES[held.algorithm], "MessageType": "RAW",
        "Message": base64.b64encode(b"input").decode(),
    }  # fmt: skip


@pytest.mark.parametrize(("token", "region"), [(TOKEN, "eu-central-1"), (None, "us-gov-west-1")])
def test_the_request_is_signed_as_botocore_signs(
    monkeypatch: pytest.MonkeyPatch, clock: FakeClock, token: str | None, region: str
) -> None:
    """The signature is that of botocore's own ``add_auth``, for the same time, headers and body."""
    found, named = ReadOnlyCredentials("AKIA0", SECRET, token), {"X-Amz-Target": "TrentService.Sign"}
    endpoint = Endpoint.parse("https://kms.example:8443/")
    ours = signed(found, b"{}", region=region, endpoint=endpoint, headers=named, clock=clock)
    now = datetime.fromtimestamp(clock.now(), UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: now)
    asked = AWSRequest("POST", "https://kms.example:8443/", headers=named, data=b"{}")
    botocore.auth.SigV4Auth(found, "kms", region).add_auth(asked)
    assert ours["Authorization"] == asked.headers["Authorization"]
    assert ours.get("X-Amz-Security-Token") == token


def test_the_public_half(key: KmsKey, server: Server) -> None:
    """``GetPublicKey`` gives the public half, and no other question is asked."""
    for held in (ED, ES, ES384):
        server.answers = [described(held.public, NAMES[held.algorithm])]
        assert key.public() == held.public
    assert "X-Amz-Target: TrentService.GetPublicKey\r\n" in server.sent()[0]
    assert server.sent()[1] == {"KeyId": ARN}


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            described(rsa.generate_private_key(65537, 2048).public_key(), "RSASSA_PSS_SHA_256"),
            "does not sign ES256",
        ),
        (described(ec.generate_private_key(ec.SECP256K1()).public_key(), "ECDSA_SHA_256"), "P-256 and P-384"),
        (described(ES.public, "ECDSA_SHA_256", KeyUsage="KEY_AGREEMENT"), "does not sign"),
        (described(ED.public, "ED25519_PH_SHA_512"), "does not sign"),
        (described(ES.public, SigningAlgorithms=None), "no public half of a key that signs"),
        (described(ES.public, "ECDSA_SHA_256", PublicKey="####"), "no public half"),
        (described(ES.public, "ECDSA_SHA_256", PublicKey="AAAA"), "no public half"),
        (described(ES.public, "ECDSA_SHA_256", PublicKey=7), "no public half"),
        (said(), "no public half"),
    ],
)
def test_a_key_that_cannot_be_ours_is_refused(key: KmsKey, server: Server, answer: bytes, why: str) -> None:
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
            said("400 Bad Request", __type="AccessDeniedException", message=TOKEN),
            "AccessDeniedException: no policy",
        ),
        (said("403 Forbidden", __type="AccessDeniedException", message=TOKEN), "Exception: no policy"),
        (said("400 Bad Request", __type="DisabledException"), "DisabledException: the key is disabled"),
        (said("400 Bad Request", __type="KMSInvalidStateException"), "is to be deleted"),
        (said("400 Bad Request", __type="ThrottlingException"), "over the quota"),
        (said("400 Bad Request", __type="a.b.c#NotFoundException"), "NotFoundException: no such key"),
        (said("400 Bad Request", __type="OfTomorrowException"), "OfTomorrowException$"),
        (said("400 Bad Request", __type=f"x {TOKEN}"), "status 400$"),
        (said("403 Forbidden"), "status 403$"),
        (said("500 Internal Server Error", __type="KMSInternalException"), "status 500: AWS KMS failed"),
        (said("503 Service Unavailable"), "status 503: AWS KMS failed"),
        (response(b"", status="307 Temporary Redirect", Location="https://evil.example/"), "redirect"),
        (response(b"<html>", Content_Type="text/html"), "content type"),
        (made(ES, b"input", KeyId=ARN[:-1] + "c"), "without a signature of ECDSA_SHA_256"),
        (made(ES, b"input", SigningAlgorithm="ECDSA_SHA_384"), "without a signature"),
        (made(ES384, b"input", SigningAlgorithm="ECDSA_SHA_256"), "without a signature"),
        (made(ES, b"input", Signature=None), "without a signature"),
        (made(ES, b"input", Signature=["x"]), "without a signature"),
        (made(ES, b"input", Signature="\u00e9"), "without a signature"),
        (made(ES, b"input", Signature=base64.b64encode(bytes(64)).decode()), "without a signature"),
        (b"", "out of reach"),
        (b"\x00" * 4096, "not HTTP"),
    ],
)
def test_whatever_is_no_signature_is_unavailable(
    key: KmsKey, server: Server, answer: bytes, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Refusals and rubbish are ``keys_unavailable`` with host and key named, and nowhere stands a credential."""
    caplog.set_level(logging.DEBUG)
    server.answers = [answer]
    with pytest.raises(Unavailable, match=why) as caught:
        key.sign(b"input", "ES256")
    assert caught.value.cause == "keys_unavailable"
    assert SHOWN in str(caught.value)
    assert "unguessable" not in f"{caught.value!r}{caught.value.__cause__!r}{caplog.text}{key!r}"


@pytest.mark.parametrize("code", ["UnrecognizedClientException", "ExpiredTokenException", "x#IncompleteSignature"])
def test_credentials_that_aws_does_not_know_are_looked_for_again(
    key: KmsKey, server: Server, chain: Chain, code: str
) -> None:
    """Those of a file may have been replaced; of a right that is missing the chain is not told."""
    server.answers = [said("400 Bad Request", __type=name) for name in (code, "AccessDeniedException")]
    for _ in range(2):
        with pytest.raises(Unavailable):
            key.sign(b"x", "ES256")
    assert chain.refusals == 1


def test_a_slow_answer_is_unavailable_within_the_timeout(
    key: KmsKey, server: Server, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One deadline for everything: an answer a byte at a time ends 2 s after the request began."""
    server.answers, dial = [made(ES, b"input")], server.dial

    def drip(*arguments: Any) -> Any:
        wire = dial(*arguments)
        wire.step, wire.pause = 1, 0.5
        return wire

    monkeypatch.setattr(key, "_dial", drip)
    began = clock.monotonic()
    with pytest.raises(Unavailable, match="no whole answer within 2 s"):
        key.sign(b"input", "ES256")
    assert clock.monotonic() - began == 2.0


# --- references ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uri", "server"),
    [
        (f"awskms:{ARN}", "https://kms.eu-central-1.amazonaws.com"),
        (f"awskms:{ALIAS}", "https://kms.eu-central-1.amazonaws.com"),
        (f"awskms:{ARN.replace('key/', 'key/mrk-')}", "https://kms.eu-central-1.amazonaws.com"),
        ("awskms:arn:aws-cn:kms:cn-north-1:111122223333:key/a", "https://kms.cn-north-1.amazonaws.com.cn"),
        ("awskms:arn:aws-us-gov:kms:us-gov-west-1:111122223333:key/a", "https://kms.us-gov-west-1.amazonaws.com"),
        ("awskms:arn:aws-eusc:kms:eusc-de-east-1:111122223333:key/a", "https://kms.eusc-de-east-1.amazonaws.eu"),
        ("awskms:arn:aws-iso:kms:us-iso-east-1:111122223333:key/a?endpoint=https://kms.ic", "https://kms.ic"),
        (f"awskms:{ARN}?endpoint=https://vpce-1.kms.example:8443/&ca=/ca.pem", "https://vpce-1.kms.example:8443"),
        (f"awskms:{ARN}?endpoint=http://127.0.0.1:80&unsafe_http_loopback=true", "http://127.0.0.1:80"),
    ],
)
def test_references(uri: str, server: str) -> None:
    """The endpoint is that of the ARN's partition and region, unless another one is named."""
    assert Place.parse(uri).server == server


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
        (f"awskms:{ARN}#x", "REGION:ACCOUNT"),
        (f"awskms:{ARN}?color=red", "at most once"),
        (f"awskms:{ARN}?ca=/a&ca=/b", "at most once"),
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


def test_an_alias_is_pinned(server: Server, clock: FakeClock, chain: Chain) -> None:
    """The reference to keep names the key that the alias stands for, options included; one with a key stays."""
    server.answers = [described(ES.public, "ECDSA_SHA_256")]
    uri = f"awskms:{ALIAS}?endpoint=https://kms.example"
    assert KmsKey(uri, clock=clock, dial=server.dial, chain=chain).pinned() == uri.replace(ALIAS, ARN)
    assert key_of(server, clock, chain).pinned() == f"awskms:{ARN}"


@pytest.mark.parametrize("named", [None, "x", ALIAS, f"{ARN}?ca=/x"])
def test_an_alias_of_no_key_is_unavailable(server: Server, clock: FakeClock, chain: Chain, named: Any) -> None:
    """An answer that names no key is not kept."""
    server.answers = [described(ES.public, "ECDSA_SHA_256", KeyId=named)]
    with pytest.raises(Unavailable, match="an answer that names no key"):
        key_of(server, clock, chain, ALIAS).pinned()


def test_an_alias_does_not_sign(server: Server, clock: FakeClock, chain: Chain) -> None:
    """It may stand for another key at any time, so nothing is asked."""
    with pytest.raises(ConfigurationError, match="an alias may stand for another key"):
        key_of(server, clock, chain, ALIAS).sign(b"x", "ES256")
    assert server.asked == []


# --- credentials ---------------------------------------------------------------------------------------------


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine on which nobody has credentials."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return monkeypatch


def soon(seconds: float = 30.0) -> Deadline:
    """Return a deadline that leaves this much to wait, however busy the machine is."""
    return Deadline(FakeClock(), seconds)


def test_credentials_of_the_environment(environment: pytest.MonkeyPatch) -> None:
    """The chain finds what boto3 finds."""
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("SESSION_TOKEN", "c")):
        environment.setenv(f"AWS_{name}", value)
    found = CredentialChain().credentials(soon())
    assert (found.access_key, found.secret_key, found.token) == ("a", "b", "c")


def test_no_credentials(environment: pytest.MonkeyPatch) -> None:
    """Where there are none it says where they may be, and finds those that come later."""
    chain = CredentialChain()
    with pytest.raises(FetchFailed, match="neither environment, files nor this machine"):
        chain.credentials(soon())
    environment.setenv("AWS_ACCESS_KEY_ID", "a")
    environment.setenv("AWS_SECRET_ACCESS_KEY", "b")
    assert chain.credentials(soon()).access_key == "a"


def test_credentials_of_a_file_are_kept_until_they_are_refused(
    environment: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A file is read once, and again after AWS refused what it held."""
    chain, path = CredentialChain(), tmp_path / "credentials"
    for name in ("a", "b"):
        path.write_text(f"[default]\naws_access_key_id = {name}\naws_secret_access_key = x\n")
        assert chain.credentials(soon()).access_key == "a"
    chain.refused()
    assert chain.credentials(soon()).access_key == "b"


def test_what_a_process_said_is_not_repeated(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A process of the chain that fails is named by its kind of error: its text may hold anything."""
    (tmp_path / "config").write_text(f"[default]\ncredential_process = sh -c 'echo {SECRET} >&2; exit 1'\n")
    with pytest.raises(FetchFailed) as caught:
        CredentialChain().credentials(soon())
    assert str(caught.value) == f"no AWS credentials: {CredentialRetrievalError.__name__}"
    assert (caught.value.__cause__, caught.value.__suppress_context__) == (None, True)


class Hanging:
    """A session whose chain hangs until it is let go."""

    def __init__(self) -> None:
        self.let_go, self.asked = threading.Event(), 0

    def __call__(self) -> Hanging:
        return self

    def set_default_client_config(self, _config: object) -> None:
        """Bound nothing."""

    def get_credentials(self) -> Any:
        self.asked += 1
        self.let_go.wait()
        return self

    def get_frozen_credentials(self) -> ReadOnlyCredentials:
        return FOUND


@pytest.fixture
def hanging(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hanging]:
    """A chain that hangs; let go at the end."""
    found = Hanging()
    monkeypatch.setattr(aws_credentials, "Session", found)
    yield found
    found.let_go.set()


def test_a_chain_that_hangs_is_one_thread(hanging: Hanging) -> None:
    """Each that asks waits until its own deadline; however many ask, the chain is walked once."""
    chain, before = CredentialChain(), threading.active_count()
    for _ in range(5):
        with pytest.raises(FetchFailed, match="not found in time"):
            chain.credentials(soon(0.01))
    assert (threading.active_count() - before, hanging.asked) == (1, 1)
    hanging.let_go.set()
    assert chain.credentials(soon()) == FOUND


def test_a_key_without_credentials_in_time_names_its_host(hanging: Hanging, clock: FakeClock) -> None:
    """A hanging chain is ``Unavailable`` as a host that is out of reach is."""
    key = KmsKey(f"awskms:{ARN}", timeout=0.01, clock=clock, chain=CredentialChain())
    with pytest.raises(Unavailable, match="credentials were not found in time") as caught:
        key.sign(b"x", "ES256")
    assert SHOWN in str(caught.value)


def test_a_walk_that_cannot_begin_is_waited_for_by_nobody(
    hanging: Hanging, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no thread can be started there are no credentials now; whoever asks later begins anew."""
    chain = CredentialChain()

    def start(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(FetchFailed, match="no AWS credentials: RuntimeError"):
            chain.credentials(soon(0.01))
    hanging.let_go.set()
    assert chain.credentials(soon()) == FOUND


def test_a_child_walks_a_chain_of_its_own(hanging: Hanging) -> None:
    """A child after a fork does not wait for the thread of its parent, nor for its lock."""
    chain = aws_credentials.CHAIN
    with pytest.raises(FetchFailed):
        chain.credentials(soon(0.01))
    with chain._lock:
        child = os.fork()
        if not child:
            # A child that waits for a lock which nobody opens ends by this.
            signal.alarm(20)
            hanging.let_go.set()
            os._exit(0 if chain.credentials(soon()) == FOUND else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    chain.forget()


def test_an_extra_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without botocore the error names the extra."""
    monkeypatch.setitem(sys.modules, "mqauth.keystore.reference.awskms", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'mqauth\[aws\]'"):
        open_holder(f"awskms:{ARN}")


def test_what_botocore_writes_at_debug_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG botocore writes requests and answers with the platform's token and the credentials for it."""
    with caplog.at_level(logging.DEBUG, "botocore"):
        logging.getLogger("botocore.parsers").debug("Response body: %r", b"<SecretAccessKey>hunter2")
        logging.getLogger("botocore.endpoint").debug(
            "Making request with params: %s", "WebIdentityToken=eyJhunter2"
        )
        logging.getLogger("botocore.credentials").info("Found credentials in shared file")
    assert [record.getMessage() for record in caplog.records] == [
        "<token>", "<token>", "Found credentials in shared file",
    ]  # fmt: skip
