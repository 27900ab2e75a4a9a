"""Login at an OpenID provider: hostile tokens, answers and callbacks let nobody in; people get their own role."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import itertools
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, parse_qsl, urlencode, urlsplit

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from joserfc import jwt
from joserfc.jwk import ECKey, Key, RSAKey
from starlette.testclient import TestClient

from integration.documentation import blocks
from mqauth import ConfigurationError
from mqauth.console import OIDCSettings, Provider, Tokens, application, read_settings
from mqauth.console.application import MAX_AT_ONCE
from mqauth.console.oidc import (
    ALGORITHMS,
    LEEWAY,
    MAX_AGE,
    MAX_VALUES,
    IDTokenError,
    NoNameError,
    check,
    person,
)
from mqauth.console.oidc_provider import LIFETIME, MAX_USED, Attempts
from mqauth.keystore.remote.fetch import REDISCOVER
from mqauth.review import ALL, Index
from mqauth.testing import FakeClock, Forge
from mqauth.wire.jwk import MAX_DOCUMENT
from tests.conftest import rabbitmq_message
from tests.test_console import HOST, TOKENS, planned, post
from tests.test_console import Room as WithLetters

DEAD = "rabbitmq:/orders.dead"
CLIENT = "mqauth console"
SECRET = "a:secret %with/marks"
NONCE = "n" * 43
ISSUER = "https://id.example"
KEY = ECKey.generate_key("P-256", {"kid": "1", "use": "sig", "alg": "ES256"})
OTHER = ECKey.generate_key("P-256", {"kid": "1", "use": "sig", "alg": "ES256"})
RSA = RSAKey.generate_key(2048, {"kid": "1", "use": "sig"})
CONFIGURATION = "/.well-known/openid-configuration"


def public(*keys: Key) -> dict[str, Any]:
    return {"keys": [key.as_dict(private=False) for key in keys]}


class FakeProvider:
    """An OpenID provider on a loopback port that says what a test wants it to say; each code is good once."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.codes: dict[str, dict[str, str]] = {}
        self.numbers = itertools.count()
        self.asked: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.claims: dict[str, Any] = {
            "email": "ada@example.test",
            "email_verified": True,
            "groups": ["dlq-review"],
        }
        self.key: Key = KEY
        self.jwks = public(KEY)
        self.said: dict[str, Any] = {}
        self.hook: Callable[[BaseHTTPRequestHandler], bool] = lambda handler: False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.issuer = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}
        )
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def consent(self, location: str) -> dict[str, str]:
        """Do what a person does at the provider; return the parameters of the way back."""
        asked = dict(parse_qsl(urlsplit(location).query, strict_parsing=True))
        code = f"code{next(self.numbers)}"
        self.codes[code] = asked
        return {"code": code, "state": asked["state"], "iss": self.issuer}

    def configuration(self) -> dict[str, Any]:
        return {
            "issuer": self.issuer, "authorization_endpoint": f"{self.issuer}/authorize?tenant=1",
            "token_endpoint": f"{self.issuer}/token", "jwks_uri": f"{self.issuer}/jwks",
            "end_session_endpoint": f"{self.issuer}/leave", "code_challenge_methods_supported": ["S256"],
            "id_token_signing_alg_values_supported": ["ES256"],
            "authorization_response_iss_parameter_supported": True, **self.said,
        }  # fmt: skip

    def token(self, form: Mapping[str, str]) -> dict[str, Any] | None:
        """Return the answer for a code that is good, with the verifier that fits its challenge."""
        asked = self.codes.pop(form["code"], None)
        digest = base64.urlsafe_b64encode(
            hashlib.sha256(form["code_verifier"].encode()).digest()
        ).rstrip(b"=")
        if asked is None or asked["code_challenge"] != digest.decode():
            return None
        if asked["redirect_uri"] != form["redirect_uri"]:
            return None
        now = int(self.clock.now())
        claims = {
            "iss": self.issuer, "sub": "0815", "aud": CLIENT, "nonce": asked["nonce"], "iat": now, "exp": now + 60,
        }  # fmt: skip
        token = jwt.encode({"alg": "ES256", "kid": "1"}, claims | self.claims, self.key)
        return {"access_token": "x", "token_type": "Bearer", "id_token": token}

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked.append((self.path, {}, dict(self.headers)))
                if not provider.hook(self):
                    self.answer(
                        provider.configuration()
                        if self.path == CONFIGURATION
                        else provider.jwks
                    )

            def do_POST(self) -> None:
                form = dict(
                    parse_qsl(
                        self.rfile.read(int(self.headers["Content-Length"])).decode()
                    )
                )
                provider.asked.append((self.path, form, dict(self.headers)))
                if not provider.hook(self):
                    found = provider.token(form)
                    self.answer(
                        found or {"error": "invalid_grant"}, 200 if found else 400
                    )

            def answer(self, document: Any, status: int = 200) -> None:
                body = json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        return Handler


class Room(WithLetters):
    """A console with one dead letter, and the provider where people log in."""

    def __init__(self, clock: FakeClock, provider: FakeProvider) -> None:
        super().__init__(clock, Forge(clock))
        self.fake, self.attempts = provider, Attempts(clock)
        self.settings = OIDCSettings(
            issuer=provider.issuer, client_id=CLIENT, secret=SECRET, label="Example", unsafe_http_loopback=True,
            roles={"dlq-review": "reviewer", "dlq-look": "viewer"},
        )  # fmt: skip
        self.provider = Provider(self.settings, clock=clock)

    def client(
        self, *, tokens: bool = False, tls: bool = False, host: str = HOST
    ) -> TestClient:
        served = application(
            self.backend, tokens=Tokens(TOKENS) if tokens else None, provider=self.provider,
            hosts=[HOST, "localhost:8090"], reviewer="local", sessions=self.sessions, tls=tls,
            attempts=self.attempts,
        )  # fmt: skip
        return TestClient(
            served,
            base_url=f"{'https' if tls else 'http'}://{host}",
            follow_redirects=False,
        )

    def go_there(self, client: TestClient) -> dict[str, str]:
        """Begin a login and consent; return what comes back."""
        answer = client.get("/login/oidc")
        assert answer.status_code == 303, answer.text
        return self.fake.consent(answer.headers["location"])

    def log_in(self, client: TestClient | None = None) -> TestClient:
        client = client or self.client()
        answer = client.get("/login/callback", params=self.go_there(client))
        assert answer.status_code == 200, answer.text
        return client


@pytest.fixture
def fake(clock: FakeClock) -> Iterator[FakeProvider]:
    made = FakeProvider(clock)
    yield made
    made.close()


@pytest.fixture
def room(clock: FakeClock, fake: FakeProvider) -> Iterator[Room]:
    made = Room(clock, fake)
    yield made
    made.backend.close()


def refused(
    room: Room, client: TestClient, params: Mapping[str, str], status: int, words: str
) -> None:
    """Hold that a callback lets nobody in and says why."""
    answer = client.get("/login/callback", params=params)
    assert answer.status_code == status
    assert words in answer.text
    assert not any(name.endswith("mqauth") for name in client.cookies)
    assert client.get("/").status_code == 303
    assert not room.sessions._open


# --- the way there and back -------------------------------------------------------------------------------


def test_authorization_request(client: Any, room: Room) -> None:
    """The browser is sent to the provider with code, S256, state and nonce, fresh each time, and no secret."""
    seen = []
    for _ in range(2):
        where = urlsplit(client.get("/login/oidc").headers["location"])
        assert (
            f"{where.scheme}://{where.netloc}{where.path}"
            == f"{room.fake.issuer}/authorize"
        )
        seen.append({name: value for name, [value] in parse_qs(where.query).items()})
    first, second = seen
    secrets = {name: first.pop(name) for name in ("state", "nonce", "code_challenge")}
    assert all(len(value) == 43 for value in secrets.values())
    assert len({*secrets.values(), *(second[name] for name in secrets)}) == 6
    assert first == {
        "tenant": "1", "response_type": "code", "client_id": CLIENT, "scope": "openid email profile",
        "redirect_uri": f"http://{HOST}/login/callback", "code_challenge_method": "S256",
    }  # fmt: skip


def test_reviewer_acts_under_their_own_name(room: Room) -> None:
    """Who logs in with a reviewer's group acts, and the audit record names them."""
    room.send(rabbitmq_message())
    client = room.log_in()
    shown = client.get("/").text
    assert "ada@example.test (reviewer)" in shown
    planned(room, client, "discard")
    room.wait()
    record = room.audit[-1]
    assert (record["verdict"], record["review"]["reviewer"]) == (
        "discarded",
        "ada@example.test",
    )


def test_viewer_cannot_act(room: Room) -> None:
    """Who logs in with a viewer's group sees everything and is refused every act."""
    room.fake.claims["groups"] = ["staff", "dlq-look"]
    client = room.log_in()
    shown = client.get("/").text
    assert "(viewer)" in shown
    assert post(client, "/act/discard", why="x").status_code == 403
    assert room.backend.letters.ask(Index.count, 0, ALL) == 0


@pytest.fixture
def client(room: Room) -> Any:
    """A browser."""
    return room.client()


def test_nobody_without_a_role(
    client: Any, room: Room, caplog: pytest.LogCaptureFixture
) -> None:
    """A good login without a mapped group gets a page that says so, and no session."""
    room.fake.claims["groups"] = ["staff"]
    refused(
        room,
        client,
        room.go_there(client),
        403,
        "You are ada@example.test, but nothing gives you a role",
    )


@pytest.mark.parametrize("tls", [False, True])
def test_cookies(room: Room, tls: bool) -> None:
    """The login's cookie is lax and short, the session's strict; both HttpOnly, with TLS Secure, of our host."""
    client = room.client(tls=tls)
    begun = client.get("/login/oidc")
    cookie = begun.headers["set-cookie"]
    assert "SameSite=lax" in cookie
    assert f"Max-Age={LIFETIME}" in cookie
    ended = client.get(
        "/login/callback", params=room.fake.consent(begun.headers["location"])
    )
    session, gone = sorted(
        ended.headers.get_list("set-cookie"), key=lambda text: "login=" in text
    )
    assert "SameSite=strict" in session
    assert "Max-Age=0" in gone
    for text in (cookie, session, gone):
        assert "HttpOnly" in text
        assert ("Secure" in text, text.startswith("__Host-")) == (tls, tls)


def test_sealed_cookie_shows_nothing(client: Any) -> None:
    """Neither state nor nonce nor the verifier can be read from the cookie."""
    asked = parse_qs(urlsplit(client.get("/login/oidc").headers["location"]).query)
    sealed = base64.urlsafe_b64decode(client.cookies["mqauth-login"])
    assert asked["state"][0].encode() not in sealed
    assert asked["nonce"][0].encode() not in sealed


def test_other_name_begins_at_the_registered_one(room: Room) -> None:
    """Whoever uses another name of the console begins at the one where the provider sends people back to."""
    answer = room.client(host="localhost:8090").get("/login/oidc")
    assert answer.headers["location"] == f"http://{HOST}/login/oidc"
    assert "set-cookie" not in answer.headers


def test_session_is_never_one_that_was_sent(room: Room) -> None:
    """An id planted in the browser is not taken over, and the session before ends with the new login."""
    client = room.client(tokens=True)
    client.cookies.set("mqauth", "planted", domain="console.test")
    params = room.go_there(client)
    client.get("/login/callback", params=params)
    assert room.sessions.find("planted") is None
    first = next(
        cookie.value
        for cookie in client.cookies.jar
        if cookie.name == "mqauth" and cookie.value != "planted"
    )
    assert room.sessions.find(first or "") is not None
    other = room.client()
    begun = other.get("/login/oidc")
    other.cookies.set("mqauth", first or "")
    other.get("/login/callback", params=room.fake.consent(begun.headers["location"]))
    assert room.sessions.find(first or "") is None


def test_login_page(room: Room) -> None:
    """The button has the provider's name; the form for a token is there only where tokens are."""
    without, both = (
        room.client().get("/login").text,
        room.client(tokens=True).get("/login").text,
    )
    for shown in (without, both):
        assert f'href="http://{HOST}/login/oidc"' in shown
        assert "Sign in with Example" in shown
    assert ('name="token"' in without, 'name="token"' in both) == (False, True)


def test_tokens_switched_off(room: Room) -> None:
    """Without local tokens none is taken, not even a good one."""
    answer = room.client().post("/login", data={"token": TOKENS["reviewer"]})
    assert (answer.status_code, "switched off" in answer.text) == (403, True)
    assert not room.sessions._open
    assert (
        room.client(tokens=True)
        .post("/login", data={"token": TOKENS["reviewer"]})
        .status_code
        == 303
    )


def test_nobody_could_log_in(room: Room) -> None:
    """A console without tokens and without a provider is refused."""
    with pytest.raises(ConfigurationError, match="nobody could sign in"):
        application(room.backend, hosts=[HOST], reviewer="ada")


def test_without_provider_there_is_no_such_page(room: Room) -> None:
    """Where no provider is configured its pages are not there."""
    served = application(
        room.backend, tokens=Tokens(TOKENS), hosts=[HOST], reviewer="ada"
    )
    client = TestClient(served, base_url=f"http://{HOST}", follow_redirects=False)
    assert [
        client.get(path).status_code
        for path in ("/login/oidc", "/login/callback?code=x&state=x")
    ] == [
        404,
        404,
    ]
    assert "Sign in with" not in client.get("/login").text


@pytest.mark.parametrize("url", ["https://console.test:8090", "http://elsewhere.test"])
def test_url_of_another_scheme_or_host(room: Room, url: str) -> None:
    """Settings that would send people back to another scheme or host are refused at the start."""
    room.provider = Provider(
        OIDCSettings(issuer=ISSUER, client_id="x", roles={}, url=url)
    )
    with pytest.raises(ConfigurationError, match="url: must be http:// and a host"):
        room.client()


# --- hostile callbacks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["", "x" * 43, "é"])
def test_wrong_state(client: Any, room: Room, state: str) -> None:
    """A callback with another state, or none, is refused before the provider is asked."""
    refused(room, client, room.go_there(client) | {"state": state}, 403, "not begun here")
    assert [path for path, _, _ in room.fake.asked] == [CONFIGURATION]


def test_another_browsers_login(room: Room) -> None:
    """A login begun elsewhere cannot be ended in another browser: nobody is logged in as somebody else."""
    attacker, victim = room.client(), room.client()
    params = room.go_there(attacker)
    refused(room, victim, params, 403, "not begun here")
    room.go_there(victim)
    refused(room, victim, params, 403, "not begun here")


@pytest.mark.parametrize("sealed", ["", "x", "é", "gAAAA" + "A" * 100])
def test_forged_cookie(room: Room, sealed: str) -> None:
    """A cookie that we did not seal begins nothing."""
    assert room.attempts.redeem(sealed, "x") is None


def test_cookie_of_another_process(room: Room, clock: FakeClock) -> None:
    """A cookie sealed before the console was started again is refused, for its key is gone."""
    attempt, sealed = Attempts(clock).begin()
    assert room.attempts.redeem(sealed, attempt.state) is None


def test_state_replay(client: Any, room: Room) -> None:
    """A callback that is sent again with its cookie is refused, and the provider is not asked again."""
    begun = client.get("/login/oidc")
    cookie = client.cookies["mqauth-login"]
    params = room.fake.consent(begun.headers["location"])
    client.get("/login/callback", params=params)
    assert len(room.sessions._open) == 1
    asked = len(room.fake.asked)
    again = room.client()
    again.cookies.set("mqauth-login", cookie)
    answer = again.get("/login/callback", params=params)
    assert (answer.status_code, "used before" in answer.text) == (403, True)
    assert len(room.fake.asked) == asked
    assert len(room.sessions._open) == 1


def test_used_logins_are_bounded(clock: FakeClock) -> None:
    """What is remembered of used logins has a bound, far above what people log in."""
    attempts = Attempts(clock)
    for _ in range(3):
        attempt, sealed = attempts.begin()
        assert attempts.redeem(sealed, attempt.state) == attempt
    assert len(attempts._used) == 3
    for number in range(MAX_USED):
        attempts._used.keep(str(number), None)
    attempt, sealed = attempts.begin()
    assert attempts.redeem(sealed, attempt.state) == attempt
    assert attempts.redeem(sealed, attempt.state) is None
    assert len(attempts._used) == MAX_USED


def test_code_replay(room: Room) -> None:
    """A code used before, put into a login of one's own, is refused by the provider's answer."""
    first, second = room.client(), room.client()
    params = room.go_there(first)
    assert first.get("/login/callback", params=params).status_code == 200
    before = len(room.sessions._open)
    stolen = room.go_there(second) | {"code": params["code"]}
    assert second.get("/login/callback", params=stolen).status_code == 502
    assert len(room.sessions._open) == before


def test_code_of_another_login(room: Room) -> None:
    """A stolen code that is still good is refused: its verifier is in the other browser's cookie (PKCE)."""
    victim, thief = room.client(), room.client()
    code = room.go_there(victim)["code"]
    refused(room, thief, room.go_there(thief) | {"code": code}, 502, "no good answer")


@pytest.mark.parametrize("issuer", ["https://evil.example", "", None])
def test_mixed_up_issuer(client: Any, room: Room, issuer: str | None) -> None:
    """An answer of another issuer, or of none where ours promised its name, is refused unasked (RFC 9207)."""
    params = room.go_there(client)
    params = (
        {**params, "iss": issuer}
        if issuer is not None
        else {k: v for k, v in params.items() if k != "iss"}
    )
    refused(room, client, params, 403, "not of our identity provider")
    assert [path for path, _, _ in room.fake.asked] == [CONFIGURATION]


def test_provider_that_does_not_name_itself(client: Any, room: Room) -> None:
    """Where the provider promises no ``iss``, an answer without is taken, and a wrong one is not."""
    room.fake.said["authorization_response_iss_parameter_supported"] = False
    refused(
        room,
        client,
        room.go_there(client) | {"iss": "https://evil.example"},
        403,
        "not of our",
    )
    params = room.go_there(client)
    del params["iss"]
    assert client.get("/login/callback", params=params).status_code == 200


@pytest.mark.parametrize(
    ("error", "words"),
    [("access_denied", "cancelled"), ("<script>alert(1)</script>", "refused the login")],
)
def test_error_answer(client: Any, room: Room, error: str, words: str) -> None:
    """An error of the provider is words of ours; what it says is never shown, and the login is over."""
    params = room.go_there(client)
    del params["code"]
    refused(
        room,
        client,
        params | {"error": error, "error_description": "<b>call 555</b>"},
        403,
        words,
    )
    shown = client.get("/login/callback", params=params | {"error": error}).text
    assert "<script>alert" not in shown
    assert "call 555" not in shown
    assert "not begun here" in shown


def test_answer_out_of_form(client: Any, room: Room) -> None:
    """A parameter that comes twice, no code, and a code beyond any size are refused."""
    params = room.go_there(client)
    assert client.get(f"/login/callback?{urlencode(params)}&state=x").status_code == 400
    params = room.go_there(client)
    refused(
        room,
        client,
        {"state": params["state"], "iss": params["iss"]},
        400,
        "not in its form",
    )
    refused(
        room, client, room.go_there(client) | {"code": "x" * 5000}, 502, "no good answer"
    )
    assert "/token" not in [path for path, _, _ in room.fake.asked]


# --- hostile ID tokens ------------------------------------------------------------------------------------


def token(
    clock: FakeClock,
    *,
    key: Key = KEY,
    header: Mapping[str, Any] | None = None,
    drop: str = "",
    **claims: Any,
) -> str:
    """Return an ID token that is good but for what a test changes."""
    now = int(clock.now())
    said = {
        "iss": ISSUER,
        "sub": "0815",
        "aud": CLIENT,
        "nonce": NONCE,
        "iat": now,
        "exp": now + 60,
    } | claims
    said.pop(drop, None)
    head = {"alg": "ES256", "kid": "1"} | (header or {})
    head = {name: value for name, value in head.items() if value is not None}
    return jwt.encode(head, said, key, algorithms=[head["alg"]])


def expected(clock: FakeClock) -> dict[str, Any]:
    settings = OIDCSettings(issuer=ISSUER, client_id=CLIENT, roles={})
    return {"settings": settings, "nonce": NONCE, "now": clock.now()}


def bare(header: Mapping[str, Any], claims: Any, signature: bytes = b"") -> str:
    """Return a token with any header, signed by nobody."""
    parts = (json.dumps(header).encode(), json.dumps(claims).encode(), signature)
    return ".".join(
        base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts
    )


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"iss": "https://evil.example"}, "wrong: iss"),
        ({"iss": ISSUER + "/"}, "wrong: iss"),
        ({"iss": [ISSUER]}, "wrong: iss"),
        ({"drop": "iss"}, "wrong"),
        ({"aud": "another"}, "wrong: aud"),
        ({"aud": ["another"]}, "wrong: aud"),
        ({"aud": [CLIENT, "another"]}, "for others too"),
        ({"aud": []}, "wrong: aud"),
        ({"aud": {CLIENT: 1}}, "wrong: aud"),
        ({"drop": "aud"}, "wrong"),
        ({"azp": "another"}, "another client"),
        ({"nonce": "x" * 43}, "another login"),
        ({"nonce": [NONCE]}, "another login"),
        ({"nonce": ""}, "wrong: nonce"),
        ({"drop": "nonce"}, "wrong"),
        ({"exp": 1_900_000_000 - LEEWAY - 1}, "wrong: exp"),
        ({"exp": True}, "wrong: exp"),
        ({"exp": "1900000060"}, "wrong: exp"),
        ({"drop": "exp"}, "wrong"),
        ({"iat": 1_900_000_000 + LEEWAY + 1}, "wrong: iat"),
        ({"iat": 1_900_000_000 - MAX_AGE - 1}, "old"),
        ({"drop": "iat"}, "wrong"),
        ({"nbf": 1_900_000_000 + LEEWAY + 1}, "wrong: nbf"),
        ({"sub": ""}, "wrong: sub"),
        ({"sub": 7}, "wrong: sub"),
        ({"sub": "x" * 256}, "names nobody"),
        ({"sub": "a\nb"}, "names nobody"),
        ({"drop": "sub"}, "wrong"),
    ],
)
def test_wrong_claims(clock: FakeClock, claims: dict[str, Any], words: str) -> None:
    """An ID token with a claim that is wrong, missing or of another login is refused."""
    with pytest.raises(IDTokenError, match=words):
        check(token(clock, **claims), public(KEY), **expected(clock))


@pytest.mark.parametrize(
    "alg", ["none", "None", "HS256", "HS512", "ES256K", "", None, ["ES256"]]
)
def test_forbidden_algorithms(clock: FakeClock, alg: Any) -> None:
    """No algorithm but those of the list gets as far as a key, even if the caller would allow it."""
    made = token(clock)
    _, payload, signature = made.split(".")
    head = (
        base64.urlsafe_b64encode(json.dumps({"alg": alg, "kid": "1"}).encode())
        .rstrip(b"=")
        .decode()
    )
    wide = expected(clock) | {"algorithms": [*ALGORITHMS, "none", "HS256"]}
    for forged in (f"{head}.{payload}.", f"{head}.{payload}.{signature}"):
        with pytest.raises(IDTokenError):
            check(forged, public(KEY), **wide)


@pytest.mark.parametrize(
    "secret", [SECRET.encode(), RSA.as_pem(private=False), KEY.as_pem(private=False)]
)
def test_hmac_with_what_others_know(clock: FakeClock, secret: bytes) -> None:
    """A token "signed" by HMAC with our secret or a public key is refused (RFC 8725, section 2.1)."""
    claims = token(clock).split(".")[1]
    head = bare({"alg": "HS256", "kid": "1"}, {}).split(".")[0]
    signature = hmac.digest(secret, f"{head}.{claims}".encode(), "sha256")
    forged = (
        f"{head}.{claims}.{base64.urlsafe_b64encode(signature).rstrip(b'=').decode()}"
    )
    symmetric = {
        "kty": "oct",
        "kid": "1",
        "k": base64.urlsafe_b64encode(secret).rstrip(b"=").decode(),
    }
    for jwks in (public(KEY), public(RSA), {"keys": [symmetric]}):
        with pytest.raises(IDTokenError):
            check(forged, jwks, **expected(clock))


@pytest.mark.parametrize(
    "jwks",
    [
        public(OTHER),
        public(KEY, OTHER),
        {"keys": [KEY.as_dict(private=False) | {"kid": "2"}]},
        {"keys": [KEY.as_dict(private=False) | {"use": "enc"}]},
        {"keys": [KEY.as_dict(private=False) | {"alg": "ES384"}]},
        {"keys": [KEY.as_dict(private=False) | {"key_ops": ["sign"]}]},
        {"keys": [KEY.as_dict(private=False) | {"x": "AAAA"}]},
        {"keys": [KEY.as_dict(private=False) | {"crv": "P-384"}]},
        {"keys": [{"kty": "oct", "kid": "1", "k": "AAAA"}]},
        {"keys": [None, 7, "x"]},
        {"keys": {"1": KEY.as_dict(private=False)}},
        {"keys": []},
        {},
    ],
)
def test_key_swap(clock: FakeClock, jwks: dict[str, Any]) -> None:
    """A key that is another, ambiguous, for another use or malformed verifies nothing."""
    with pytest.raises(IDTokenError):
        check(token(clock), jwks, **expected(clock))


@pytest.mark.filterwarnings("ignore::joserfc.errors.SecurityWarning")
def test_weak_rsa(clock: FakeClock) -> None:
    """A provider's RSA key of 1024 bits verifies nothing."""
    weak = RSAKey.generate_key(1024, {"kid": "1"})
    with pytest.raises(IDTokenError, match="fewer than 2048"):
        check(
            token(clock, key=weak, header={"alg": "RS256"}),
            public(weak),
            **expected(clock),
        )


@pytest.mark.parametrize(
    "text",
    ["", ".", "..", "a.b.c", "é.é.é", "x" * 200_000, bare({"alg": "ES256", "kid": "1"}, [], b"x" * 64),
     bare({"alg": "ES256", "kid": "1", "crit": ["x"], "x": 1}, {}, b"x" * 64), bare([], {}, b"x")],
)  # fmt: skip
def test_garbage(clock: FakeClock, text: str) -> None:
    """What is no token, is too large or has a critical header is one refusal, never another exception."""
    with pytest.raises(IDTokenError):
        check(text, public(KEY), **expected(clock))


def test_critical_header(clock: FakeClock) -> None:
    """A token whose signature holds is refused when a header must be understood that we do not know."""
    now = int(clock.now())
    claims = {
        "iss": ISSUER,
        "sub": "0815",
        "aud": CLIENT,
        "nonce": NONCE,
        "iat": now,
        "exp": now + 60,
    }

    def sign(header: dict[str, Any]) -> str:
        head = bare(header, claims).rpartition(".")[0]
        r, s = decode_dss_signature(
            KEY.private_key.sign(head.encode(), ec.ECDSA(hashes.SHA256()))
        )  # type: ignore[union-attr]
        raw = r.to_bytes(32, "big") + s.to_bytes(32, "big")
        return f"{head}.{base64.urlsafe_b64encode(raw).rstrip(b'=').decode()}"

    assert check(sign({"alg": "ES256", "kid": "1"}), public(KEY), **expected(clock))
    with pytest.raises(IDTokenError):
        check(
            sign({"alg": "ES256", "kid": "1", "crit": ["x"], "x": 1}),
            public(KEY),
            **expected(clock),
        )


@pytest.mark.parametrize("claims", [{"iss": "https://evil.example"}, {"nonce": "x" * 43}])
def test_wrong_token_lets_nobody_in(
    room: Room, claims: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Through the whole login, a token that is wrong begins no session, and the page tells nothing of it."""
    room.fake.claims |= claims
    client = room.client()
    refused(room, client, room.go_there(client), 403, "could not be trusted")
    assert "a login failed: " in caplog.text
    assert "evil.example" not in caplog.text


def test_key_swap_while_running(room: Room) -> None:
    """A rotated key is good at once, and one that was withdrawn is none."""
    room.log_in()
    room.fake.key = OTHER
    client = room.client()
    answer = client.get("/login/callback", params=room.go_there(client))
    assert answer.status_code == 403
    room.fake.jwks = public(OTHER)
    room.log_in()
    room.fake.key = KEY
    client = room.client()
    assert client.get("/login/callback", params=room.go_there(client)).status_code == 403


# --- hostile provider -------------------------------------------------------------------------------------


def send(
    status: int = 200, body: bytes = b"{}", **headers: str
) -> Callable[[BaseHTTPRequestHandler], bool]:
    def answer(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(status)
        for name, value in {"Content-Type": "application/json", **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        with contextlib.suppress(OSError):
            handler.wfile.write(body)
        return True

    return answer


HOSTILE = {
    "huge": send(body=b'{"a": "' + b"x" * (MAX_DOCUMENT + 1) + b'"}'),
    "huge_by_its_length": send(Content_Length=str(10**9)),
    "redirect": send(302, Location="http://127.0.0.1:1/token"),
    "redirect_kept_method": send(307, Location="http://127.0.0.1:1/token"),
    "html": send(body=b"<html>", Content_Type="text/html"),
    "no_json": send(body=b"{"),
    "list": send(body=b"[]"),
    "empty": send(),
    "duplicate": send(body=b'{"id_token": "a", "id_token": "b"}'),
    "no_text": send(body=b'{"id_token": 7}'),
    "status": send(500),
}


@pytest.mark.parametrize("fault", HOSTILE)
@pytest.mark.parametrize("where", ["/token", "/jwks"])
def test_hostile_answers(room: Room, where: str, fault: str) -> None:
    """An answer that is huge, elsewhere or out of form lets nobody in; no redirect is followed."""
    room.fake.hook = lambda handler: handler.path == where and HOSTILE[fault](handler)
    client = room.client()
    answer = client.get("/login/callback", params=room.go_there(client))
    assert answer.status_code in (502, 403)
    assert not room.sessions._open
    assert [path for path, _, _ in room.fake.asked].count(where) == 1


@pytest.mark.parametrize(
    "fault", [name for name in HOSTILE if name not in ("duplicate", "no_text")]
)
def test_hostile_configuration(client: Any, room: Room, fault: str) -> None:
    """A configuration that is huge, elsewhere or out of form begins no login; the next one is asked anew."""
    room.fake.hook = HOSTILE[fault]
    answer = client.get("/login/oidc")
    assert (answer.status_code, "no good answer" in answer.text) == (502, True)
    assert "set-cookie" not in answer.headers
    room.fake.hook = lambda handler: False
    room.log_in(client)


@pytest.mark.parametrize(
    "said",
    [
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"token_endpoint": "http://id.example/token"},
        {"jwks_uri": "ftp://id.example/jwks"},
        {"authorization_endpoint": "javascript:alert(1)"},
        {"authorization_endpoint": "http://id.example/authorize"},
        {"authorization_endpoint": "https://user@id.example/authorize"},
        {"authorization_endpoint": "https://id.example/" + "x" * 3000},
        {"end_session_endpoint": "javascript:alert(1)"},
        {"token_endpoint": None},
        {"code_challenge_methods_supported": ["plain"]},
        {"id_token_signing_alg_values_supported": ["HS256", "none"]},
        {"token_endpoint_auth_methods_supported": ["private_key_jwt"]},
    ],
)
def test_unusable_configuration(room: Room, said: dict[str, Any]) -> None:
    """Another issuer's configuration, endpoints without TLS, a provider without PKCE or signatures are refused."""
    room.fake.said = said
    with pytest.raises(ConfigurationError):
        room.provider.metadata()
    assert room.client().get("/login/oidc").status_code == 502


@pytest.mark.parametrize(
    "issuer",
    ["http://id.example", "https://id.example?x=1", "https://u:p@id.example", "id"],
)
def test_issuer_without_tls(issuer: str) -> None:
    """An issuer is an https URL; http only on loopback, where that was allowed by name."""
    with pytest.raises(ConfigurationError, match="issuer: must be"):
        Provider(
            OIDCSettings(
                issuer=issuer, client_id="x", roles={}, unsafe_http_loopback=True
            )
        )
    with pytest.raises(ConfigurationError, match="issuer: must be"):
        Provider(OIDCSettings(issuer="http://127.0.0.1:1", client_id="x", roles={}))


def test_configuration_is_read_each_hour(room: Room) -> None:
    """What the provider says of itself is asked again after an hour, and not at every login."""
    for _ in range(2):
        room.log_in()
    assert [path for path, _, _ in room.fake.asked].count(CONFIGURATION) == 1
    room.clock.advance(REDISCOVER)
    room.log_in()
    assert [path for path, _, _ in room.fake.asked].count(CONFIGURATION) == 2


def test_logins_at_once_are_bounded(room: Room) -> None:
    """While so many logins wait for a slow provider, one more is told to try again, and takes no thread."""
    held, free = threading.Semaphore(0), threading.Event()

    def slow(handler: BaseHTTPRequestHandler) -> bool:
        held.release()
        free.wait(30)
        return False

    room.fake.hook = slow
    client = room.client()
    threads = [
        threading.Thread(target=client.get, args=("/login/oidc",))
        for _ in range(MAX_AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert held.acquire(timeout=30)
    answer = client.get("/login/oidc")
    free.set()
    for thread in threads:
        thread.join()
    assert (answer.status_code, "Try again" in answer.text) == (503, True)
    assert client.get("/login/oidc").status_code == 303


# --- who we are -------------------------------------------------------------------------------------------


def test_secret_in_the_header(room: Room) -> None:
    """By default the secret goes form-encoded into the Basic header (RFC 6749, section 2.3.1), nowhere else."""
    room.log_in()
    [(_, form, headers)] = [asked for asked in room.fake.asked if asked[0] == "/token"]
    pair = base64.b64decode(headers["Authorization"].removeprefix("Basic ")).decode()
    assert pair == "mqauth+console:a%3Asecret+%25with%2Fmarks"
    assert {*form} == {"grant_type", "code", "redirect_uri", "code_verifier"}
    assert SECRET not in repr(room.settings)


def test_secret_in_the_form(room: Room) -> None:
    """Where the provider wants it so the secret goes in the form."""
    room.fake.said["token_endpoint_auth_methods_supported"] = ["client_secret_post"]
    room.log_in()
    [(_, form, headers)] = [asked for asked in room.fake.asked if asked[0] == "/token"]
    assert (form["client_id"], form["client_secret"]) == (CLIENT, SECRET)
    assert "Authorization" not in headers


# --- who they are -----------------------------------------------------------------------------------------

PEOPLE = OIDCSettings(
    issuer=ISSUER, client_id="x", roles={"r": "reviewer", "v": "viewer"}, name_claim="sub"
)
DEEP = OIDCSettings(
    issuer=ISSUER,
    client_id="x",
    roles={"r": "reviewer"},
    name_claim="sub",
    role_claim=("realm_access", "roles"),
)


@pytest.mark.parametrize(
    ("settings", "claims", "role"),
    [
        (PEOPLE, {"groups": ["v"]}, "viewer"),
        (PEOPLE, {"groups": ["x", "v", "r"]}, "reviewer"),
        (PEOPLE, {"groups": "r"}, "reviewer"),
        (PEOPLE, {"groups": ["reviewer", "R", "r ", ["r"], {"r": 1}, 7, None]}, None),
        (PEOPLE, {"groups": {"r": True}}, None),
        (PEOPLE, {"groups": None}, None),
        (PEOPLE, {"groups": []}, None),
        (PEOPLE, {"groups": ["r"] * (MAX_VALUES + 1)}, None),
        (PEOPLE, {"roles": ["r"]}, None),
        (PEOPLE, {}, None),
        (DEEP, {"realm_access": {"roles": ["r"]}}, "reviewer"),
        (DEEP, {"realm_access": ["roles", "r"]}, None),
        (DEEP, {"realm_access.roles": ["r"]}, None),
    ],
)
def test_roles(settings: OIDCSettings, claims: dict[str, Any], role: str | None) -> None:
    """Only a value that is mapped, letter for letter, in the one claim gives a role; of several the highest."""
    assert person({"sub": "ada", **claims}, settings) == ("ada", role)


@pytest.mark.parametrize(
    "claims",
    [
        {},
        {"email": "ada@example.test"},
        {"email": "ada@example.test", "email_verified": False},
        {"email": "ada@example.test", "email_verified": "true"},
        {"email": "", "email_verified": True},
        {"email": "a\nb", "email_verified": True},
        {"email": " ada@example.test", "email_verified": True},
        {"email": ["ada@example.test"], "email_verified": True},
        {"email": "x" * 300, "email_verified": True},
    ],
)
def test_names(claims: dict[str, Any]) -> None:
    """Nobody gets in whose name is missing, malformed, or an address that was not verified."""
    settings = OIDCSettings(issuer=ISSUER, client_id="x", roles={"r": "reviewer"})
    with pytest.raises(NoNameError):
        person({"sub": "ada", "groups": ["r"], **claims}, settings)


def test_unnamed_person_is_told(client: Any, room: Room) -> None:
    """Whose address was not verified, or whose naming claim is missing, gets a page that says so."""
    room.fake.claims["email_verified"] = False
    refused(
        room,
        client,
        room.go_there(client),
        403,
        "The identity provider has not verified your e-mail address.",
    )
    room.provider.settings = replace(room.settings, name_claim="employeeID")
    refused(
        room,
        client,
        room.go_there(client),
        403,
        "The identity provider sent no employeeID for you.",
    )


# --- the settings -----------------------------------------------------------------------------------------

GOOD = """\
issuer = "https://id.example/realms/shop"
client_id = "mqauth-console"
client_secret_file = "secret"
url = "https://Console.example:8443/"
role_claim = ["realm_access", "roles"]

[roles]
viewer = ["dlq-look"]
reviewer = ["dlq-review"]
"""


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    secret = tmp_path / "secret"
    secret.write_text("hush\n")
    secret.chmod(0o600)
    path = tmp_path / "oidc.toml"
    path.write_text(GOOD)
    return path


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_secret_others_may_read(settings_file: Path, mode: int) -> None:
    """A secret that others may read is refused, and not repeated."""
    (settings_file.parent / "secret").chmod(mode)
    with pytest.raises(ConfigurationError, match="secret") as caught:
        read_settings(settings_file)
    assert "hush" not in str(caught.value)


def test_secret_from_the_environment(
    settings_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The secret may come from a variable, which must be set."""
    settings_file.write_text(
        GOOD.replace('client_secret_file = "secret"', 'client_secret_env = "OIDC_SECRET"')
    )
    monkeypatch.delenv("OIDC_SECRET", raising=False)
    with pytest.raises(ConfigurationError, match="client_secret_env"):
        read_settings(settings_file)
    monkeypatch.setenv("OIDC_SECRET", "from the environment")
    assert read_settings(settings_file).secret == "from the environment"


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ("client_id", "client_secret", "unknown key"),
        ('client_id = "mqauth-console"', "", "client_id: required"),
        ('issuer = "https://id.example/realms/shop"', "", "issuer: required"),
        ('url = "', 'scopes = ["email"]\nurl = "', "scopes"),
        ('url = "', 'scopes = ["openid email"]\nurl = "', "scopes"),
        ('url = "', 'client_secret_env = "X"\nurl = "', "contradicts client_secret_file"),
        ("8443/", "8443/path", "url"),
        ("https://Console", "ftp://Console", "url"),
        ("https://Console", "https://user@Console", "url"),
        ("[roles]\n", "", "roles: must be|unknown key"),
        ("[roles]", "[rules]", "unknown key"),
        ('["dlq-look"]', '["dlq-review"]', "another role too"),
        ('["dlq-look"]', "[1]", "must be a string"),
        ('viewer = ["dlq-look"]\nreviewer = ["dlq-review"]', "", "at least one"),
        ("viewer =", "admin =", "unknown key"),
        ("issuer", "issuer issuer", "not TOML"),
        ('"secret"', '"missing"', "missing"),
    ],
)
def test_bad_settings(settings_file: Path, before: str, after: str, words: str) -> None:
    """A key that is unknown, missing or out of its limits is one line that names it."""
    assert before in GOOD
    settings_file.write_text(GOOD.replace(before, after))
    with pytest.raises(ConfigurationError, match=words) as caught:
        read_settings(settings_file)
    assert "\n" not in str(caught.value)


def test_the_pages_example(tmp_path: Path) -> None:
    """The page's file is read as it stands there."""
    [block] = [block for block in blocks("docs/console.md") if block.name == "oidc.toml"]
    (tmp_path / "oidc.toml").write_text(block.text)
    (tmp_path / "oidc.secret").write_text("hush")
    (tmp_path / "oidc.secret").chmod(0o600)
    found = read_settings(tmp_path / "oidc.toml")
    assert found.roles == {"support": "viewer", "orders-oncall": "reviewer"}
