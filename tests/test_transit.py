"""Keys in the transit engine of OpenBao or Vault: what is asked, and what counts as an answer."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tenacity
from cryptography.hazmat.primitives import serialization

from mqauth import ConfigurationError, Key, Unavailable
from mqauth.http.connection import Endpoint
from mqauth.keystore.reference.key import ReferenceKey
from mqauth.keystore.reference.transit import TransitKey
from mqauth.keystore.reference.uri import TransitReference
from mqauth.testing import FakeClock
from mqauth.wire import base64url, jws
from tests.test_jwks import Wire, response

ED, ES, ES384 = (Key.generate(name) for name in ("EdDSA", "ES256", "ES384"))
SECRET = "s.UnguessableTokenOfABank"
TYPES = {"EdDSA": "ed25519", "ES256": "ecdsa-p256", "ES384": "ecdsa-p384"}


class Server:
    """Answers from a script, and keeps what it was asked."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.answers: list[bytes] = []
        self.wires: list[Wire] = []
        self.asked: list[str] = []

    def dial(self, endpoint: Endpoint, _deadline: object, _context: object) -> Any:
        self.asked.append(endpoint.shown)
        self.wires.append(Wire(self.answers.pop(0), self.clock))
        return self.wires[-1]

    def sent(self) -> tuple[str, Any]:
        """Return the head of the last request, and its JSON."""
        head, _, body = self.wires[-1].sent.partition(b"\r\n\r\n")
        return head.decode(), json.loads(body) if body else None


@pytest.fixture
def server(clock: FakeClock) -> Server:
    """A server that answers what a test says."""
    return Server(clock)


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A private file with a token in it."""
    path = tmp_path / "token"
    path.write_text(f"{SECRET}\n")
    path.chmod(0o600)
    return path


def reference(token: Path, **options: str) -> str:
    """Return the reference of a key, its version pinned to 2."""
    found = {"token_file": str(token), "key_version": "2", **options}
    words = "&".join(f"{name}={value}" for name, value in found.items())
    return f"transit:https://bao.example:8200/team/transit/orders?{words}"


@pytest.fixture
def key(server: Server, token: Path, clock: FakeClock) -> TransitKey:
    """The key under test."""
    return TransitKey(reference(token), clock=clock, dial=server.dial)


def data(**members: Any) -> bytes:
    """Return an answer that has some data."""
    return response(json.dumps({"request_id": "x", "data": members}).encode())


def signed(key: Key, text: bytes, version: int = 2) -> bytes:
    """Return the answer of the engine that holds a key."""
    raw = jws.LocalSigningKey(key).sign(text)
    encoded = base64.b64encode(raw) if key.algorithm == "EdDSA" else base64url.encode(raw)
    return data(signature=f"vault:v{version}:{encoded.decode()}", key_version=version)


def described(key: Key, **changes: Any) -> bytes:
    """Return what the engine says of a key, whose version 2 it is."""
    raw = key.public.public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    ).decode()
    if key.algorithm == "EdDSA":
        raw = base64.b64encode(key.public.public_bytes_raw()).decode()  # type: ignore[union-attr]
    usual = {
        "type": TYPES[key.algorithm],
        "derived": False,
        "exportable": False,
        "allow_plaintext_backup": False,
    }
    return data(
        **{
            **usual,
            "keys": {"1": {"public_key": "old"}, "2": {"public_key": raw}},
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("held", "asked"),
    [
        (ED, {}),
        (ES, {"hash_algorithm": "sha2-256", "marshaling_algorithm": "jws"}),
        (ES384, {"hash_algorithm": "sha2-384", "marshaling_algorithm": "jws"}),
    ],
    ids=["EdDSA", "ES256", "ES384"],
)
def test_a_signature_is_asked_of_the_pinned_version(
    key: TransitKey, server: Server, held: Key, asked: Mapping[str, str]
) -> None:
    """One POST to the key's path, with input, version and the token; the raw signature comes out."""
    server.answers = [signed(held, b"input")]
    signature = key.sign(b"input", held.algorithm)
    jws.verify(
        jws.Opened(held.algorithm, held.kid, b"input", b"", signature), held.public_only
    )
    head, body = server.sent()
    assert server.asked == ["https://bao.example:8200/v1/team/transit/sign/orders"]
    assert head.startswith("POST /v1/team/transit/sign/orders HTTP/1.1\r\n")
    assert f"X-Vault-Token: {SECRET}\r\n" in head
    assert "X-Vault-Request: true\r\n" in head + "\r\n"
    assert body == {
        "input": base64.b64encode(b"input").decode(),
        "key_version": 2,
        **asked,
    }


@pytest.mark.parametrize("held", [ED, ES, ES384], ids=lambda key: key.algorithm)
def test_the_public_half_is_that_of_the_pinned_version(
    key: TransitKey, server: Server, held: Key
) -> None:
    """A GET gives the key as the engine describes it, and the version's public half is taken."""
    server.answers = [described(held)]
    assert key.public() == held.public
    assert server.asked == ["https://bao.example:8200/v1/team/transit/keys/orders"]
    assert server.sent()[0].startswith("GET ")


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"type": "rsa-4096"}, "none of"),
        ({"type": "aes256-gcm96", "keys": {"2": 1795962141}}, "none of"),
        ({"type": None}, "none of"),
        ({"derived": True}, "none of"),
        ({"exportable": True}, "can be copied"),
        ({"allow_plaintext_backup": True}, "can be copied"),
        ({"keys": {"1": {"public_key": "x"}}}, "no public half of version 2"),
        ({"keys": {"2": 7}}, "no public half"),
        ({"keys": {"2": {"public_key": "AAAA"}}}, "no public half"),
        (
            {"keys": {"2": {"public_key": "-----BEGIN PUBLIC KEY-----\n"}}},
            "no public half",
        ),
        ({"keys": {"2": {"public_key": None}}}, "no public half"),
        ({"keys": []}, "no public half"),
        ({"type": "ecdsa-p256"}, "another type"),
    ],
)
def test_a_key_that_cannot_be_ours_is_refused(
    key: TransitKey, server: Server, changes: Mapping[str, Any], why: str
) -> None:
    """A key of another type, whose private half can be copied, or without the version is a configuration error."""
    server.answers = [described(ED, **changes)]
    with pytest.raises(ConfigurationError, match=why):
        key.public()


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (
            response(b'{"errors":["permission denied"]}', status="403 Forbidden"),
            "status 403: the token has ended",
        ),
        (
            response(b'{"errors":["Vault is sealed"]}', status="503 Service Unavailable"),
            "status 503: sealed",
        ),
        (
            response(b'{"errors":["signing key not found"]}', status="400 Bad Request"),
            "status 400: the key is gone",
        ),
        (response(b'{"errors":[]}', status="404 Not Found"), "status 404: no such key"),
        (response(b"{}", status="500 Internal Server Error"), "status 500$"),
        (
            response(
                b"", status="307 Temporary Redirect", Location="https://evil.example/"
            ),
            "redirect",
        ),
        (response(b"<html>", Content_Type="text/html"), "content type"),
        (response(b"[]"), "not a JSON object"),
        (response(b"{}"), "an answer without data"),
        (response(b'{"data":[]}'), "an answer without data"),
        (data(), "without a signature"),
        (data(signature=None), "without a signature"),
        (data(signature=["x"]), "without a signature"),
        (data(signature="vault:v2:####"), "without a signature"),
        (data(signature=base64.b64encode(bytes(64)).decode()), "without a signature"),
        (data(signature="vault:v2:\u00e9"), "without a signature"),
        (signed(ED, b"input", version=3), "without a signature of version 2"),
        (b"", "out of reach"),
        (b"\x00" * 4096, "not HTTP"),
    ],
)
def test_whatever_is_no_signature_is_unavailable(
    key: TransitKey,
    server: Server,
    answer: bytes,
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Refusals and rubbish are ``keys_unavailable`` with the host named, and nowhere stands the token."""
    caplog.set_level(logging.DEBUG)
    server.answers = [answer]
    with pytest.raises(Unavailable, match=why) as caught:
        key.sign(b"input", "EdDSA")
    assert caught.value.cause == "keys_unavailable"
    assert "https://bao.example:8200/team/transit/orders version 2" in str(caught.value)
    assert SECRET not in f"{caught.value!r}{caught.value.__cause__!r}{caplog.text}{key!r}"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620])
def test_a_token_that_others_may_read_is_not_used(
    key: TransitKey, server: Server, token: Path, mode: int
) -> None:
    """A token file is private, as every file of ours that holds a secret."""
    token.chmod(mode)
    with pytest.raises(Unavailable, match="open to others"):
        key.sign(b"x", "EdDSA")
    assert server.asked == []


def test_an_algorithm_that_transit_does_not_sign_for_us_is_refused(
    key: TransitKey,
) -> None:
    """RSA keys are no transit keys here."""
    with pytest.raises(ConfigurationError, match="sign EdDSA, ES256, ES384"):
        key.sign(b"x", "RS256")


BASE = "transit:https://bao.example/transit/orders?key_version=1&token_file=/t"


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("transit:", "ASCII text"),
        (BASE.replace("https", "http"), "http only on loopback"),
        (
            BASE.replace("https", "http") + "&unsafe_http_loopback=true",
            "http only on loopback",
        ),
        (
            BASE.replace("https://bao.example", "http://127.0.0.1"),
            "http only on loopback",
        ),
        (BASE + "&unsafe_http_loopback=false", "is true, or left out"),
        (BASE.replace("bao.example", "user:pass@bao.example"), "neither user"),
        (BASE + "#x", "no fragment"),
        (BASE.replace("/transit/orders", "/orders"), "ends in"),
        (BASE.replace("orders", "../x"), "ends in"),
        (BASE.replace("orders", "a%2fb"), "ends in"),
        (BASE.replace("orders", ""), "ends in"),
        (BASE.replace("key_version=1&", ""), "key_version"),
        (BASE.replace("=1", "=0"), "key_version"),
        (BASE.replace("=1", "=latest"), "key_version"),
        (BASE + "&key_version=2", "stands twice"),
        (BASE + "&color=red", "not .color."),
        (BASE.replace("&token_file=/t", ""), "names a token_file"),
        (BASE.replace("=/t", "=t"), "absolute paths"),
        (BASE + "&ca=ca.pem", "absolute paths"),
    ],
)
def test_what_is_no_reference_is_refused(uri: str, why: str) -> None:
    """A reference that leaves anything open, or says more than is known, is a configuration error."""
    with pytest.raises(ConfigurationError, match=why):
        TransitReference.parse(uri)


def test_a_file_of_cas_that_holds_none_is_refused(token: Path) -> None:
    """CAs of one's own are read when the key is opened, so that a mistake shows at once."""
    with pytest.raises(ConfigurationError, match="no PEM certificates"):
        TransitKey(reference(token, ca=str(token)))


# As a keystore has it


@pytest.fixture
def entry(key: TransitKey, monkeypatch: pytest.MonkeyPatch) -> ReferenceKey:
    """The key as a keystore's entry, whose attempts do not wait."""
    monkeypatch.setattr("mqauth.keystore.reference.key.tried.wait", tenacity.wait_none())
    return ReferenceKey(ED, "transit:x", key)


def test_each_signature_is_checked(entry: ReferenceKey, server: Server) -> None:
    """After good signatures too, one of another input is no signature; the next attempt's good one is taken."""
    good, wrong = signed(ED, b"x"), signed(ED, b"y")
    server.answers = [good, good, wrong, wrong, good]
    for _ in range(3):
        signature = entry.sign(b"x")
        jws.verify(jws.Opened("EdDSA", ED.kid, b"x", b"", signature), ED.public_only)
    assert server.answers == []


def test_a_failure_is_logged_once_a_minute(
    entry: ReferenceKey, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """One line at ERROR names kid, host and status, however often it is asked; another cause has its own line."""
    sealed = response(b"{}", status="503 Service Unavailable")
    server.answers = [sealed] * 6 + [response(b"{}", status="403 Forbidden")] * 3
    for _ in range(3):
        with pytest.raises(Unavailable):
            entry.sign(b"x")
    lines = [
        record.getMessage()
        for record in caplog.records
        if record.name == "mqauth.keystore"
    ]
    assert [line.partition("status ")[2][:3] for line in lines] == ["503", "403"]
    assert all(ED.kid in line and "https://bao.example:8200" in line for line in lines)
    assert {record.levelname for record in caplog.records} == {"ERROR"}
