"""What a producer and an authority say to each other, over real sockets; the authority has code of its own."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import jwt
import pytest

from mqauth import ActiveKey, ConfigurationError, Key, Rejection, Unavailable, load
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS
from mqauth.http.connection import FetchFailed
from mqauth.http.exchange import Response
from mqauth.keystore import Keystore
from mqauth.keystore.identity.request import (
    ClientCredentials,
    Credential,
    IdentityRequest,
    OwnKey,
    Refused,
    TokenFile,
    dpop_proof,
    enrolment_credential,
)
from mqauth.testing import FakeClock
from mqauth.testing.identity import OTHER_WORKLOAD, TRUST_DOMAIN, WORKLOAD, WITSigner
from mqauth.testing.token_attacks import honest_message
from mqauth.wire import jws
from mqauth.wire.jwk import dump_key_set, public_key
from mqauth.wire.jws import LocalSigningKey

SECRET = "a secret: +/%"


class Fake(ThreadingHTTPServer):
    """An authority and a token endpoint; what they are asked is kept, and their answers can be changed."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.signer = WITSigner()
        self.asked: list[dict[str, Any]] = []
        self.status, self.token_status, self.headers = 200, 200, dict[str, str]()
        self.issues: str | None = None
        self.change: Callable[[dict[str, Any]], Any] = lambda answer: answer
        self.token: dict[str, Any] = {"access_token": "a.b.c", "token_type": "DPoP"}

    def identity(self, headers: dict[str, str], body: dict[str, Any]) -> Any:
        """Judge a request as an authority does, and answer it."""
        scheme, _, credential = headers["authorization"].partition(" ")
        key = self.proven(headers["dpop"], "/v1/identity", credential)
        self.asked.append(
            {
                "scheme": scheme,
                "credential": credential,
                "sub": body["sub"],
                "jkt": key.kid,
            }
        )
        wit = self.signer.wit(self.issues or body["sub"], key)
        return {"wit": wit, "sub": body["sub"], "expires_in": 3600, "renew_in": 1800}

    def proven(self, proof: str, path: str, credential: str | None) -> Key:
        """Return the key that a DPoP proof shows, checked by PyJWT."""
        header = jwt.get_unverified_header(proof)
        assert header.keys() == {"typ", "alg", "jwk"}
        assert header["typ"] == "dpop+jwt"
        said = jwt.decode(
            proof, jwt.PyJWK(header["jwk"], header["alg"]).key, algorithms=[header["alg"]]
        )
        assert (said["htm"], said["htu"]) == ("POST", self.url + path)
        if credential is not None:
            digest = hashlib.sha256(credential.encode()).digest()
            assert said["ath"] == base64.urlsafe_b64encode(digest).decode().rstrip("=")
        public = public_key(header["jwk"])
        return Key(kid="workload", algorithm=header["alg"], public=public)

    def given(self, headers: dict[str, str], form: dict[str, list[str]]) -> Any:
        """Answer as a token endpoint."""
        assert form == {"grant_type": ["client_credentials"]}
        self.proven(headers["dpop"], "/token", None)
        basic = base64.b64decode(headers["authorization"].removeprefix("Basic ")).decode()
        self.asked.append({"basic": basic})
        return self.token


class _Handler(BaseHTTPRequestHandler):
    server: Fake

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        if self.path == "/token":
            self.answer(
                self.server.token_status,
                self.server.given(headers, parse_qs(raw.decode())),
            )
            return
        answer = self.server.identity(headers, json.loads(raw))
        self.answer(self.server.status, self.server.change(answer))

    def do_GET(self) -> None:
        self.answer(200, dump_key_set(self.server.signer.keys))

    def answer(self, status: int, document: Any) -> None:
        raw = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def fake() -> Iterator[Fake]:
    """A running fake."""
    with Fake() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    """A file with a token."""
    path = tmp_path / "token"
    path.write_text("one.two.three\n", "ascii")
    return path


def asking(fake: Fake, credential: Credential, **settings: Any) -> IdentityRequest:
    """Return what asks the fake."""
    wanted: dict[str, Any] = {
        "subject": WORKLOAD, "timeout": 5, "ca": None, "unsafe_http_loopback": True, "clock": SYSTEM_CLOCK,
        "randomness": SYSTEM_RANDOMNESS,
    }  # fmt: skip
    return IdentityRequest(fake.url, credential=credential, **(wanted | settings))


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "ES384"])
def test_each_request_has_a_new_key_and_the_token_of_now(
    fake: Fake, token: Path, algorithm: str
) -> None:
    """A token file is read for each request, and each WIT vouches for a key of its own."""
    ask = asking(fake, TokenFile(token), algorithm=algorithm)
    first = ask()
    token.write_text("four.five.six", "ascii")
    second = ask()
    assert [found["credential"] for found in fake.asked] == [
        "one.two.three",
        "four.five.six",
    ]
    assert {found["scheme"] for found in fake.asked} == {"Bearer"}
    assert first.key.identity.jkt != second.key.identity.jkt
    assert (first.expires_in, first.renew_in, first.key.algorithm) == (
        3600,
        1800,
        algorithm,
    )


def test_a_producers_own_key_signs_a_credential(fake: Fake, tmp_path: Path) -> None:
    """The credential of a keystore names the authority, and is by the active key."""
    keystore = Keystore(folder=tmp_path / "keys")
    keystore.create(subjects=["orders-api"])
    own = OwnKey(
        ActiveKey(tmp_path / "keys"),
        issuer="https://orders.example",
        subject="orders-api",
    )
    asking(fake, own)()
    credential = fake.asked[0]["credential"]
    active = keystore.ring().active
    said = jwt.decode(
        credential, active.key.public, algorithms=["EdDSA"], audience=fake.url
    )
    assert jwt.get_unverified_header(credential)["typ"] == "mqauth-enrol+jwt"
    assert (said["iss"], said["sub"]) == ("https://orders.example", "orders-api")
    with pytest.raises(ConfigurationError, match="does not speak"):
        asking(
            fake, OwnKey(ActiveKey(tmp_path / "keys"), issuer="i", subject="stock-api")
        )()


def credentials(fake: Fake, folder: Path, mode: int = 0o600) -> ClientCredentials:
    """Return a client's credentials, its secret in a file of a mode."""
    secret = folder / "secret"
    secret.write_text(SECRET + "\n", "ascii")
    secret.chmod(mode)
    return ClientCredentials(
        f"{fake.url}/token",
        client_id="orders",
        client_secret_file=secret,
        unsafe_http_loopback=True,
    )


@pytest.mark.parametrize(
    ("kind", "scheme"), [("DPoP", "DPoP"), ("dpop", "DPoP"), ("Bearer", "Bearer")]
)
def test_client_credentials_bring_a_token(
    fake: Fake, tmp_path: Path, kind: str, scheme: str
) -> None:
    """An access token of a provider is shown with the scheme of its type; id and secret are encoded for Basic."""
    fake.token["token_type"] = kind
    asking(fake, credentials(fake, tmp_path))()
    assert fake.asked[0] == {"basic": "orders:a%20secret%3A%20%2B%2F%25"}
    assert (fake.asked[1]["scheme"], fake.asked[1]["credential"]) == (scheme, "a.b.c")


@pytest.mark.parametrize(
    "answer",
    [
        {}, {"access_token": "a.b.c"}, {"access_token": "a.b.c", "token_type": "mac"},
        {"access_token": 1, "token_type": "Bearer"}, {"access_token": "a b", "token_type": "Bearer"},
        {"access_token": "a" * 16_385, "token_type": "Bearer"},
    ],
)  # fmt: skip
def test_a_provider_that_gives_no_token_is_a_failure(
    fake: Fake, tmp_path: Path, answer: dict[str, Any]
) -> None:
    """Without a token of a known type nothing is asked of the authority."""
    fake.token = answer
    with pytest.raises(FetchFailed, match="token endpoint"):
        asking(fake, credentials(fake, tmp_path))()
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    ("status", "answer", "says"),
    [
        (
            401,
            {"error": "unauthorized_client", "error_description": SECRET},
            "refused, 401 unauthorized_client",
        ),
        (400, {"error": "use_dpop_nonce"}, "refused, 400 use_dpop_nonce"),
        (400, {"error": f"x {SECRET}"}, "refused, 400 no error of its kind"),
        (500, {"error": "unknown_error"}, "status 500"),
        (None, {}, "out of reach"),
    ],
)
def test_a_provider_that_says_no_is_named(
    fake: Fake, tmp_path: Path, status: int | None, answer: dict[str, Any], says: str
) -> None:
    """The error names the provider's host, what it answered, and never the secret; the authority is not asked."""
    secret = tmp_path / "secret"
    secret.write_text(SECRET, "ascii")
    secret.chmod(0o600)
    fake.token, fake.token_status = answer, status or 200
    url = f"{fake.url}/token" if status else "http://127.0.0.1:1/token"
    given = ClientCredentials(
        url, client_id="orders", client_secret_file=secret, unsafe_http_loopback=True
    )
    with pytest.raises(FetchFailed) as caught:
        asking(fake, given)()
    assert str(caught.value).startswith(f"the token endpoint {url.split('/')[2]}: {says}")
    assert SECRET not in f"{caught.value!r}{caught.value.__cause__!r}"
    assert all("sub" not in asked for asked in fake.asked)


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, {"error": "invalid_dpop_proof"}, "refused, 400 invalid_dpop_proof"),
        (401, {"error": "invalid_client"}, "refused, 401 invalid_client"),
        (403, {"error": "access_denied"}, "refused, 403 access_denied"),
        (429, {"error": "slow_down"}, "refused, 429 slow_down"),
        (
            503,
            {"error": "temporarily_unavailable"},
            "refused, 503 temporarily_unavailable",
        ),
        (403, {"error": "\x1b[2J one.two.three"}, "refused, 403 no error of its kind"),
        (403, {}, "refused, 403 no error of its kind"),
    ],
)
def test_a_refusal_says_status_and_error(
    fake: Fake, token: Path, status: int, body: Any, said: str
) -> None:
    """A refusal names its status and error, nothing else of the answer, and how long to wait."""
    fake.status, fake.change, fake.headers = status, lambda _: body, {"Retry-After": "7"}
    with pytest.raises(Refused) as caught:
        asking(fake, TokenFile(token))()
    assert (str(caught.value), caught.value.retry_after) == (said, 7)


@pytest.mark.parametrize(
    "change",
    [
        {"wit": "a.b.c"}, {"wit": 7}, {"wit": None}, {"sub": OTHER_WORKLOAD}, {"sub": None}, {"expires_in": 0},
        {"expires_in": 86_401}, {"expires_in": 3600.0}, {"expires_in": True}, {"expires_in": "3600"},
        {"renew_in": 0}, {"renew_in": 3601}, {"renew_in": None},
        b"[]", b"{", b'{"wit":1,"wit":2}', b"{}" + b" " * 20_000,
    ],
)  # fmt: skip
def test_an_answer_that_is_none_is_a_failure(
    fake: Fake, token: Path, change: Any
) -> None:
    """An answer with a wrong WIT, subject or life, and one that is no object within 16 KiB, is none."""
    fake.change = lambda answer: change if isinstance(change, bytes) else answer | change
    with pytest.raises(
        FetchFailed, match=None if isinstance(change, bytes) else "it answered with"
    ):
        asking(fake, TokenFile(token))()


def test_what_is_shown_of_an_answer_holds_no_token() -> None:
    """An answer of a token endpoint may land in a log or a traceback, and shows its status there."""
    shown = repr(Response(document={"access_token": "eyJhbGciOi"}, status=200))
    assert "status=200" in shown
    assert "eyJ" not in shown


def test_an_identity_of_another_is_none(fake: Fake, token: Path) -> None:
    """A WIT for another key, and one of another subject, is a failure, whatever stands beside it."""
    fake.issues = OTHER_WORKLOAD
    with pytest.raises(FetchFailed, match="it answered with another subject"):
        asking(fake, TokenFile(token))()
    fake.change = lambda answer: (
        answer | {"wit": fake.signer.wit(WORKLOAD, Key.generate())}
    )
    with pytest.raises(FetchFailed, match="it answered with no identity of ours"):
        asking(fake, TokenFile(token))()


@pytest.mark.parametrize("content", [b"", b"two tokens", b"\xff.a.b", b"a" * 17_000])
def test_a_token_file_holds_one_token(fake: Fake, token: Path, content: bytes) -> None:
    """A token file without one ASCII token within 16 KiB is refused, and its content is not shown."""
    token.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        asking(fake, TokenFile(token))()
    assert "two tokens" not in str(caught.value)
    assert fake.asked == []


def test_a_secret_that_others_can_read_is_refused(fake: Fake, tmp_path: Path) -> None:
    """A client's secret in a file that is open to others is not used."""
    with pytest.raises(ConfigurationError):
        asking(fake, credentials(fake, tmp_path, 0o644))()
    assert fake.asked == []


# --- in the configuration ---------------------------------------------------------------------------------

HEAD = '[producer]\naudience = "billing"\n'


def written(folder: Path, text: str) -> Path:
    """Return a configuration file."""
    path = folder / "mqauth.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize("refuses", [False, True])
def test_a_configured_producer_signs_with_an_identity(
    fake: Fake, token: Path, tmp_path: Path, *, refuses: bool
) -> None:
    """``[producer.identity]`` gives issuer, subject and key; while the authority refuses each message says so."""
    if refuses:
        fake.status, fake.change = 403, lambda _: {"error": "access_denied"}
    identity = (
        f'[producer.identity]\nauthority = "{fake.url}"\nsubject = "{WORKLOAD}"\nunsafe_http_loopback = true\n'
        f'credential = {{ token_file = "{token.name}" }}\n'
    )
    config = load(written(tmp_path, HEAD + identity))
    signer = config.signer
    config.identity.close()
    assert (signer.issuer, signer.subject) == (TRUST_DOMAIN, WORKLOAD)
    if refuses:
        with pytest.raises(
            Unavailable, match=r"127\.0\.0\.1:\d+: refused, 403 access_denied"
        ):
            signer.sign(honest_message("kafka:orders"))
    else:
        assert signer.sign(honest_message("kafka:orders")).headers
    assert len(fake.asked) == 1


GOOD = f'authority = "https://a.example"\nsubject = "{WORKLOAD}"\n'


@pytest.mark.parametrize(
    ("head", "identity", "said"),
    [
        (
            'keys = "keys"\n',
            GOOD + 'credential = { token_file = "t" }',
            "keys: contradicts identity",
        ),
        (
            'issuer = "i"\n',
            GOOD + 'credential = { token_file = "t" }',
            "issuer: contradicts identity",
        ),
        (
            'subject = "s"\n',
            GOOD + 'credential = { token_file = "t" }',
            "subject: contradicts identity",
        ),
        (
            "lifetime = 43171\n",
            GOOD + 'credential = { token_file = "t" }',
            "lifetime: must be at most 43170",
        ),
        ("", GOOD, "credential: required"),
        (
            "",
            GOOD + "credential = {}",
            "needs one of token_file, keys and token_url, not none",
        ),
        (
            "",
            GOOD + 'credential = { token_file = "t", keys = "k" }',
            "not token_file and keys",
        ),
        (
            "",
            GOOD + 'credential = { keys = "k", subject = "s" }',
            "issuer: required with keys",
        ),
        (
            "",
            GOOD + 'credential = { token_file = "t", issuer = "i" }',
            "issuer: only with keys",
        ),
        (
            "",
            GOOD + 'credential = { token_url = "https://a/t", client_id = "c" }',
            "client_secret_file: required",
        ),
        (
            "",
            'authority = "https://a.example"\ncredential = { token_file = "t" }',
            "subject: required",
        ),
        (
            "",
            GOOD.replace(WORKLOAD, "orders-api") + 'credential = { token_file = "t" }',
            "subject: must be wimse",
        ),
        (
            "",
            GOOD + 'algorithm = "RS256"\ncredential = { token_file = "t" }',
            "algorithm: must be",
        ),
    ],
)
def test_contradictions_are_refused(
    tmp_path: Path, head: str, identity: str, said: str
) -> None:
    """What contradicts itself is refused before anything is asked, with table and key."""
    with pytest.raises(ConfigurationError, match=r"producer") as caught:
        load(written(tmp_path, f"{HEAD}{head}[producer.identity]\n{identity}\n"))
    assert said in str(caught.value)


# What a producer shows an authority: a DPoP proof of its new key, and a credential by its own.


NOW = 1_900_000_000
JKT = "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"
URL = "https://authority.prod.example/v1/identity"
ALGORITHMS = ("EdDSA", "ES256", "ES384")


def seen(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a JWS, read by PyJWT."""
    return jwt.get_unverified_header(token), jwt.decode(
        token, options={"verify_signature": False}
    )


def proof(key: Key, *, url: str = URL, credential: str = "token") -> str:
    """Return a proof made at a fixed moment."""
    return dpop_proof(
        key,
        method="POST",
        url=url,
        credential=credential,
        clock=FakeClock(NOW),
        randomness=lambda size: b"r" * size,
    )


def credential(key: Key, **changes: Any) -> str:
    """Return a credential made at a fixed moment."""
    said: dict[str, Any] = {
        "issuer": "https://orders.example", "subject": "orders-api", "authority": "https://authority.prod.example",
        "jkt": JKT, "clock": FakeClock(NOW), "randomness": lambda size: b"r" * size,
    }  # fmt: skip
    return enrolment_credential(LocalSigningKey(key), **(said | changes))


def test_a_proof_shows_no_private_half() -> None:
    """The key in the header has public members only."""
    header, _ = seen(proof(Key.generate("ES256")))
    assert header["jwk"].keys() == {"kty", "crv", "x", "y"}


def test_a_public_key_proves_nothing() -> None:
    """Without the private half there is no proof."""
    with pytest.raises(ConfigurationError, match="proves nothing"):
        proof(Key.generate().public_only)


@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "RS256", "PS256"])
def test_a_credential_is_a_jws_by_the_producers_key(algorithm: str) -> None:
    """Another library verifies a credential; its header is exactly typ, alg and kid, its audience one text."""
    key = Key.generate(algorithm)
    token = credential(key)
    said = jwt.decode(
        token, key.public, algorithms=[algorithm], audience="https://authority.prod.example",
        options={"verify_exp": False, "verify_iat": False},
    )  # fmt: skip
    assert jwt.get_unverified_header(token) == {
        "typ": "mqauth-enrol+jwt",
        "alg": algorithm,
        "kid": key.kid,
    }
    assert json.loads(json.dumps(said)) == {
        "iss": "https://orders.example", "sub": "orders-api", "aud": "https://authority.prod.example", "iat": NOW,
        "exp": NOW + 60, "jti": said["jti"], "cnf": {"jkt": JKT},
    }  # fmt: skip


@pytest.mark.parametrize("lifetime", [0, 301, -1])
def test_a_credential_lives_for_minutes(lifetime: int) -> None:
    """A credential of no time, or of more than 300 s, is refused where it would be made."""
    with pytest.raises(ConfigurationError, match="1 to 300"):
        credential(Key.generate(), lifetime=lifetime)


@pytest.mark.parametrize("name", ["issuer", "subject", "authority"])
@pytest.mark.parametrize("text", ["", "a" * 257, "line\nbreak"])
def test_names_have_their_limits(name: str, text: str) -> None:
    """Names that an authority would refuse are refused here."""
    with pytest.raises(ConfigurationError, match="names"):
        credential(Key.generate(), **{name: text})


def test_a_credential_is_no_message_token() -> None:
    """A consumer refuses a credential by its type."""
    with pytest.raises(Rejection) as caught:
        jws.take_apart(credential(Key.generate()).encode())
    assert caught.value.reason == "token_type"
