"""A real Keycloak: tokens bound by DPoP, attacks on them, outages, rotations, and the page."""

from __future__ import annotations

import base64
import json
import os
import re
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import pytest

from integration import waiting
from integration.documentation import ROOT, Block, Reader, blocks, matches
from integration.services.keycloak import Keycloak
from integration.services.machine import LOOPBACK, Port
from mqauth import ClientCredentials, IdentityKey, Message, Signer, Unavailable
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS
from mqauth.errors import Cause
from mqauth.keystore import Keystore
from mqauth.keystore.identity.request import Asking, dpop_proof
from mqauth.wire.keys import Key, thumbprint

DOMAIN: Final = "wimse://prod.example"
ORDERS: Final = f"{DOMAIN}/shop/orders-api"
STOCK: Final = f"{DOMAIN}/shop/stock-api"
REALM: Final = "mqauth"
PATIENCE: Final = 180.0
"""Seconds in which what is waited for has to come."""
until: Final = partial(waiting.until, seconds=PATIENCE, moment=0.5)
_ENTRY: Final = "import sys; from mqauth.cli import main; sys.exit(main())"
_AUTHORITY: Final = """\
[authority]
trust_domain = "{domain}"
url = "{url}"
keys = "{folder}/authority-keys"
lifetime = 3600
audit = "{folder}/{name}.jsonl"
refusal_rate = 0

[[authority.credentials]]
name = "shop"
issuer = "{issuer}"
{source}
ca = "{ca}"
publish_delay = 0

[[authority.grants]]
credential = "shop"
match = {{ client_id = "orders-api", typ = "DPoP" }}
subject = "{orders}"
claims = {{ env = "prod" }}

[[authority.grants]]
credential = "shop"
match = {{ client_id = "brief", typ = "DPoP" }}
subject = "{stock}"
lifetime = 60

[[authority.grants]]
credential = "shop"
match = {{ client_id = "plain" }}
subject = "{domain}/shop/plain"

[[authority.grants]]
credential = "shop"
match = {{ client_id = "loose", typ = "DPoP" }}
subject = "{domain}/shop/loose"
"""
_PRODUCER: Final = """\
[producer]
audience = "billing"
lifetime = 20

[producer.identity]
authority = "{url}"
subject = "{orders}"
ca = "{ca}"
unsafe_http_loopback = true

[producer.identity.credential]
token_url = "{token_url}"
client_id = "orders-api"
client_secret_file = "{folder}/orders-api.secret"
"""
_CONSUMER: Final = """\
[consumer]
audience = "billing"

[[consumer.issuers]]
trust_domain = "{domain}"
jwks = "{url}/jwks.json"
unsafe_http_loopback = true

[[consumer.allow]]
subject = "{orders}"
destinations = ["kafka:orders"]
claims = {{ env = "prod" }}
"""


class Answered(NamedTuple):
    """An answer of the authority, and the audit record of the request."""

    status: int
    body: Mapping[str, Any]
    record: Mapping[str, Any] | None


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a JWT, unverified."""
    header, claims = (
        json.loads(base64.urlsafe_b64decode(part + "==")) for part in token.split(".")[:2]
    )
    return header, claims


def audience(name: str) -> dict[str, Any]:
    """Return the mapper that puts a name into ``aud`` of a client's access tokens."""
    return {
        "name": f"audience {name}", "protocol": "openid-connect", "protocolMapper": "oidc-audience-mapper",
        "config": {"included.custom.audience": name, "access.token.claim": "true", "id.token.claim": "false"},
    }  # fmt: skip


class World:
    """A realm, an authority that trusts it, and the clients of the realm.

    Args:
        keycloak: the server.
        folder: for files.
    """

    def __init__(self, keycloak: Keycloak, folder: Path) -> None:
        self.keycloak, self.folder = keycloak, folder
        self.port = Port()
        self.url = f"http://{LOOPBACK}:{self.port.number}"
        self.issuer = f"{keycloak.secure}/realms/{REALM}"
        self.token_url = f"{self.issuer}/protocol/openid-connect/token"
        self.secrets: dict[str, str] = {}
        self.name, self.process = "", cast(subprocess.Popen[str] | None, None)
        Keystore(folder=folder / "authority-keys").create(overlap=3600)
        self.write("producer.toml", _PRODUCER)
        self.write("consumer.toml", _CONSUMER)

    def write(self, name: str, text: str, **more: str) -> Path:
        """Write a file of settings, with the names of this world in it."""
        path = self.folder / name
        names = {
            "domain": DOMAIN, "url": self.url, "folder": str(self.folder), "issuer": self.issuer, "orders": ORDERS,
            "stock": STOCK, "ca": str(self.keycloak.ca), "token_url": self.token_url, "name": path.stem,
        }  # fmt: skip
        path.write_text(text.format(**(names | more)))
        return path

    # --- the realm ------------------------------------------------------------------------------------------

    def realm(
        self, name: str = REALM, *clients: Mapping[str, Any], **settings: Any
    ) -> None:
        """Make a realm with clients."""
        self.keycloak.tell(
            "POST",
            "realms",
            {"realm": name, "enabled": True, "clients": clients, **settings},
        )

    def client(
        self,
        name: str,
        *audiences: str,
        attributes: Mapping[str, str] | None = None,
        **more: Any,
    ) -> Any:
        """Return a client of the realm, with a secret in a private file, as a producer has it."""
        self.secrets[name] = secret = secrets.token_urlsafe(24)
        path = self.folder / f"{name.replace('/', '_')}.secret"
        path.touch(0o600)
        path.write_text(secret)
        return {
            "clientId": name, "secret": secret, "publicClient": False, "serviceAccountsEnabled": True,
            "standardFlowEnabled": False, "fullScopeAllowed": False, "attributes": attributes or {},
            "protocolMappers": [audience(each) for each in audiences or (self.url,)], **more,
        }  # fmt: skip

    def user(self, name: str) -> None:
        """Make a person who may log in by a password."""
        self.secrets[name] = secrets.token_urlsafe(24)
        self.keycloak.tell(
            "POST", f"realms/{REALM}/users",
            {"username": name, "enabled": True, "firstName": name, "lastName": name, "emailVerified": True,
             "email": f"{name}@shop.example",
             "credentials": [{"type": "password", "value": self.secrets[name], "temporary": False}]},
        )  # fmt: skip

    def tell_client(self, name: str, **changes: Any) -> None:
        """Change a client of the realm."""
        (found,) = self.keycloak.tell("GET", f"realms/{REALM}/clients?clientId={name}")
        self.keycloak.tell(
            "PUT", f"realms/{REALM}/clients/{found['id']}", found | changes
        )

    def signing_keys(self) -> list[dict[str, Any]]:
        """Return the realm's providers of RS256 keys."""
        kind = "org.keycloak.keys.KeyProvider"
        found = self.keycloak.tell("GET", f"realms/{REALM}/components?type={kind}")
        return [each for each in found if each["providerId"] == "rsa-generated"]

    def add_signing_key(self) -> None:
        """Let the realm sign with a new key from now on, and publish the old one beside it."""
        realm = self.keycloak.tell("GET", f"realms/{REALM}")["id"]
        config = {
            "priority": ["200"],
            "enabled": ["true"],
            "active": ["true"],
            "algorithm": ["RS256"],
        }
        self.keycloak.tell(
            "POST", f"realms/{REALM}/components",
            {"name": "new", "providerId": "rsa-generated", "providerType": "org.keycloak.keys.KeyProvider",
             "parentId": realm, "config": config},
        )  # fmt: skip

    # --- tokens ---------------------------------------------------------------------------------------------

    def tokens(
        self, client: str, key: Key | None = None, *, realm: str = REALM, **form: str
    ) -> Mapping[str, Any]:
        """Return what the token endpoint answers a client, with a DPoP proof where there is a key."""
        url = self.token_url.replace(f"/realms/{REALM}/", f"/realms/{realm}/")
        return self.answer(
            client, url, None if key is None else self.proof(key, url), **form
        )

    def token(self, client: str, key: Key | None = None, **form: str) -> str:
        """Return an access token of a client."""
        return str(self.tokens(client, key, **form)["access_token"])

    def by_http(self, client: str, key: Key) -> str:
        """Return a token of the realm under its other URL, the one without TLS."""
        url = self.token_url.replace(self.keycloak.secure, self.keycloak.url)
        return str(self.answer(client, url, self.proof(key, url))["access_token"])

    def answer(
        self, client: str, url: str | None = None, proof: str | None = None, **form: str
    ) -> Mapping[str, Any]:
        """Return what a token endpoint answers a client that shows this proof.

        Raises:
            ValueError: it refuses; the text has its answer.
        """
        said = {
            "grant_type": "client_credentials",
            "client_id": client,
            "client_secret": self.secrets[client],
        }
        headers = {} if proof is None else {"DPoP": proof}
        answer: dict[str, Any] = self.keycloak.post(
            url or self.token_url, said | form, headers
        )
        return answer

    def proof(
        self, key: Key, url: str | None = None, credential: str | None = None
    ) -> str:
        """Return a DPoP proof, of a request to the authority where no other URL is given."""
        return dpop_proof(
            key, method="POST", url=url or f"{self.url}/v1/identity", credential=credential, clock=SYSTEM_CLOCK,
            randomness=SYSTEM_RANDOMNESS,
        )  # fmt: skip

    def credentials(self, client: str) -> ClientCredentials:
        """Return what a producer of ours shows an authority."""
        return ClientCredentials(
            self.token_url, client_id=client, client_secret_file=self.folder / f"{client}.secret",
            ca=self.keycloak.ca,
        )  # fmt: skip

    def enrolled(self, client: str, subject: str, credential: Any = None) -> IdentityKey:
        """Return the key of a producer."""
        given = credential or self.credentials(client)
        return IdentityKey(
            self.url, subject=subject, credential=given, unsafe_http_loopback=True
        )

    # --- the authority --------------------------------------------------------------------------------------

    def start(self, name: str = "authority", source: str = "discovery = true") -> None:
        """Serve identities, in place of the authority before.

        Args:
            name: of its settings, its log and its audit file.
            source: of the realm's keys, as its settings say it.
        """
        self.stop()
        self.name = name
        settings = self.write(f"{name}.toml", _AUTHORITY, source=source)
        words = [
            "authority",
            "serve",
            "--config",
            str(settings),
            "--port",
            str(self.port.number),
        ]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _ENTRY, *words],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        assert f"{self.url}/v1/identity" in self.process.stdout.readline(), self.log()

    def stop(self) -> None:
        """Stop the authority, if one runs."""
        if self.process is not None:
            self.process.terminate()
            _, code = self.process.communicate(timeout=PATIENCE), self.process.returncode
            self.process = None
            assert code == 0, self.log()

    def log(self) -> str:
        """Return the log of the authority."""
        return (self.folder / f"{self.name}.log").read_text()

    def records(self) -> list[dict[str, Any]]:
        """Return the audit records of the authority that are no alerts."""
        path = self.folder / f"{self.name}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [found for found in map(json.loads, lines) if found["verdict"] != "alert"]

    def ask(
        self, credential: str, key: Key, *, scheme: str = "DPoP", proof: str | None = None, body: bytes = b""
    ) -> Answered:  # fmt: skip
        """Ask the authority for an identity; the record is that of this request."""
        before, proof = (
            len(self.records()),
            proof or self.proof(key, credential=credential),
        )
        headers = {"Authorization": f"{scheme} {credential}", "DPoP": proof}
        asked = urllib.request.Request(  # noqa: S310
            f"{self.url}/v1/identity", body, headers, method="POST"
        )
        try:
            with urllib.request.urlopen(asked, timeout=PATIENCE) as answer:  # noqa: S310
                status, raw = answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            status, raw = refused.code, refused.read()
        new = self.records()[before:]
        return Answered(status, json.loads(raw), new[0] if len(new) == 1 else None)

    def mqauth(self, *words: str, given: str = "") -> subprocess.CompletedProcess[str]:
        """Run a command of ours."""
        return subprocess.run(
            [sys.executable, "-c", _ENTRY, *words], input=given, cwd=self.folder, capture_output=True, text=True,
            timeout=PATIENCE, check=False,
        )  # fmt: skip

    def close(self) -> None:
        """Stop the authority, and give its port back."""
        self.stop()
        self.port.release()


OTHER: Final = Key.generate()
"""A thief's key."""


class Shown(NamedTuple):
    """What somebody shows: a token, the scheme, and the key behind the proof, or another proof."""

    token: str
    scheme: str = "Bearer"
    key: Key = OTHER
    proof: str | None = None
    body: bytes = b""


def stolen(world: World, key: Key) -> str:
    """Return a token of the honest client, bound to its key."""
    return world.token("orders-api", key)


def of_a_person(world: World) -> Shown:
    """Return a token that a person got through the honest client, bound to the person's key."""
    form = {"grant_type": "password", "username": "ada", "password": world.secrets["ada"]}
    token = world.token("orders-api", OTHER, **form)
    assert parts(token)[1]["azp"] == "orders-api"
    return Shown(token, "DPoP")


_KEY: Final = Key.generate()
"""The honest client's key."""
_NOBODY: Final = b'{"sub": "wimse://prod.example/shop/loose"}'
INVALID: Final = (401, "invalid_client")
NO_PROOF: Final = (400, "invalid_dpop_proof")
DENIED: Final = (403, "access_denied")
Attack = tuple[Callable[[World], Shown], tuple[int, str], str, str]
ATTACKS: dict[str, Attack] = {
    "another audience": (
        lambda w: Shown(w.token("other-audience")), INVALID, "credential_audience", "its aud is not ours alone",
    ),
    "two audiences": (
        lambda w: Shown(w.token("two-audiences")), INVALID, "credential_audience", "its aud is not ours alone",
    ),
    "our audience, and account": (
        lambda w: Shown(w.token("full-scope")), INVALID, "credential_audience", "its aud is not ours alone",
    ),
    "no audience": (
        lambda w: Shown(w.token("no-audience")), INVALID, "credential_audience", "its aud is not ours alone",
    ),
    "another realm": (
        lambda w: Shown(w.tokens("elsewhere", OTHER, realm="other")["access_token"], "DPoP"), INVALID,
        "credential_issuer", "its iss is not configured",
    ),
    "the realm by another URL": (
        lambda w: Shown(w.by_http("orders-api", OTHER), "DPoP"), INVALID,
        "credential_issuer", "its iss is not configured",
    ),
    "stolen, with another key": (
        lambda w: Shown(stolen(w, _KEY), "DPoP"), INVALID, "credential_binding", "it is bound to another key",
    ),
    "stolen, as Bearer": (
        lambda w: Shown(stolen(w, _KEY)), INVALID, "credential_binding", "it is bound to another key",
    ),
    "bound, as Bearer": (
        lambda w: Shown(stolen(w, OTHER)), INVALID, "credential_binding",
        "it is shown as Bearer where it is bound, or else as DPoP",
    ),
    "not bound, as DPoP": (
        lambda w: Shown(w.token("plain"), "DPoP"), INVALID, "credential_binding",
        "it is shown as Bearer where it is bound, or else as DPoP",
    ),
    "not bound, where the grant asks for it": (
        lambda w: Shown(w.token("loose")), DENIED, "grant_missing", "no grant matches",
    ),
    "for too long": (
        lambda w: Shown(w.token("too-long")), INVALID, "credential_time", "it lives longer than the limit",
    ),
    "a client that no grant names": (
        lambda w: Shown(w.token("stranger", OTHER), "DPoP"), DENIED, "grant_missing", "no grant matches",
    ),
    "an identity of another client": (
        lambda w: Shown(stolen(w, OTHER), "DPoP", body=_NOBODY), DENIED, "grant_missing",
        "no grant for the sub asked for",
    ),
    "a person, through the honest client": (of_a_person, DENIED, "grant_missing", "no grant matches"),
    "an ID token": (
        lambda w: Shown(w.tokens("plain", scope="openid")["id_token"]), INVALID, "credential_audience",
        "its aud is not ours alone",
    ),
    "an ID token of a client that is called as the authority": (
        lambda w: Shown(w.tokens(w.url, scope="openid")["id_token"]), DENIED, "grant_missing", "no grant matches",
    ),
    "a refresh token": (
        lambda w: Shown(w.tokens("plain")["refresh_token"]), INVALID, "credential_malformed",
        "its alg is not on the list",
    ),
    "an algorithm that is not ours": (
        lambda w: Shown(w.token("by-RS512")), INVALID, "credential_malformed", "its alg is not on the list",
    ),
}  # fmt: skip


pytestmark = pytest.mark.slow

PAGE: Final = "docs/how-to/use-keycloak.md"
AUTHORITY_PAGE: Final = "docs/how-to/start-an-authority.md"

BOUND: Final = {"dpop.bound.access.tokens": "true"}
ALGORITHMS: Final = ("PS256", "ES256", "ES384", "EdDSA")
"""Of access tokens, beside Keycloak's RS256."""
KEPT: Final = 'discovery = true\nsnapshot = "realm-keys.json"'
MESSAGE: Final = Message(destination="kafka:orders", body=b"{}")


@pytest.fixture(scope="module")
def world(
    keycloak: Keycloak, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A realm with an honest client and many others, and an authority that runs."""
    found = World(keycloak, tmp_path_factory.mktemp("keycloak"))
    found.realm(REALM, *clients(found))
    found.realm("other", found.client("elsewhere", attributes=BOUND))
    found.user("ada")
    # A realm makes the key of an algorithm when it first needs it; the authority then gets all of them at once.
    for algorithm in ALGORITHMS:
        found.token(f"by-{algorithm}")
    found.start(source=KEPT)
    yield found
    found.close()


def clients(world: World) -> list[Any]:
    """Return the clients of the realm."""
    return [
        world.client("orders-api", attributes=BOUND, directAccessGrantsEnabled=True),
        world.client("brief", attributes=BOUND),
        world.client("stranger", attributes=BOUND),
        world.client(
            "plain", attributes={"client_credentials.use_refresh_token": "true"}
        ),
        world.client("loose"),
        world.client("too-long", attributes={"access.token.lifespan": "3700"}),
        world.client("rfc9068", attributes={"access.token.header.type.rfc9068": "true"}),
        world.client("other-audience", "https://other.example"),
        world.client("two-audiences", world.url, "https://other.example"),
        world.client("full-scope", fullScopeAllowed=True),
        world.client("no-audience") | {"protocolMappers": []},
        world.client(world.url),
        *(
            world.client(
                f"by-{algorithm}",
                attributes={"access.token.signed.response.alg": algorithm},
            )
            for algorithm in (*ALGORITHMS, "RS512")
        ),
    ]


class Seen:
    """A credential that keeps what it showed, and for which key.

    Args:
        credential: what makes it.
    """

    def __init__(self, credential: ClientCredentials) -> None:
        self._credential = credential
        self.shown: list[tuple[str, str, str]] = []

    def __call__(self, asking: Asking, /) -> tuple[str, str]:
        """Return what the other one makes."""
        scheme, token = self._credential(asking)
        self.shown.append((scheme, token, thumbprint(asking.key.public)))
        return scheme, token


def signed_and_judged(world: World) -> tuple[int, Any]:
    """Sign a message by the settings of a producer, and return the verdict by those of a consumer."""
    signed = world.mqauth(
        "sign", "--config", "producer.toml", "--to", "kafka:orders", given="{}"
    )
    assert signed.returncode == 0, signed.stderr
    judged = world.mqauth("verify", "--config", "consumer.toml", given=signed.stdout)
    return judged.returncode, json.loads(judged.stdout)


# --- honest producers ---------------------------------------------------------------------------------------


def test_a_producer_signs_and_a_consumer_accepts(world: World) -> None:
    """By settings alone a producer gets its identity with a secret, and a consumer accepts what it signs."""
    code, verdict = signed_and_judged(world)
    assert (code, verdict["verdict"]) == (0, "accepted")
    assert (verdict["claims"]["iss"], verdict["claims"]["sub"]) == (DOMAIN, ORDERS)
    assert [record["verdict"] for record in world.records()][-1] == "identity_issued"


def test_each_identity_has_a_fresh_key_that_its_token_is_bound_to(world: World) -> None:
    """The access token says ``cnf.jkt`` of the new key, and the identity too; it is renewed for another key."""
    seen = Seen(world.credentials("brief"))
    with world.enrolled("brief", STOCK, seen) as enrolled:
        first = enrolled.signing_key().identity.jkt
        until(lambda: enrolled.health().counters["renewed"] >= 2)
        second = enrolled.signing_key().identity.jkt
    assert first != second
    (scheme, token, key), (_, next_token, next_key) = seen.shown[:2]
    assert (scheme, key, next_key) == ("DPoP", first, second)
    assert [parts(each)[1]["cnf"]["jkt"] for each in (token, next_token)] == [
        first,
        second,
    ]
    given = [
        record for record in world.records() if record["verdict"] == "identity_issued"
    ]
    assert [record["asked"]["jkt"] for record in given if record["token"]["verified"]["sub"] == STOCK][:2] == [
        first, second,
    ]  # fmt: skip


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "ES384"])
def test_keycloak_takes_a_proof_of_each_algorithm(world: World, algorithm: str) -> None:
    """Keycloak binds a token to a key of each algorithm that an identity may have."""
    key = Key.generate(algorithm)
    answered = world.ask(world.token("orders-api", key), key)
    assert (answered.status, answered.body["sub"]) == (200, ORDERS)


@pytest.mark.parametrize(
    "client", ["rfc9068", *(f"by-{algorithm}" for algorithm in ALGORITHMS)]
)
def test_tokens_of_each_kind_are_read(world: World, client: str) -> None:
    """Tokens of each algorithm, and those with ``typ`` at+jwt, are believed; only the grant is missing."""
    answered = world.ask(world.token(client), OTHER, scheme="Bearer")
    assert (answered.status, answered.record["reason"]) == (403, "grant_missing")
    assert answered.record["asked"]["credential"]["verified"] is True


def test_a_token_that_is_not_bound_gets_what_its_grant_says(world: World) -> None:
    """A grant that does not ask for DPoP takes a bearer token, with a proof of the key that is vouched for."""
    assert world.ask(world.token("plain"), OTHER, scheme="Bearer").status == 200


# --- attacks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_get_nothing(world: World, name: str) -> None:
    """What is wrong with a token has its answer, and the audit record says what it was, and never the token."""
    make, (status, error), reason, detail = ATTACKS[name]
    token, scheme, key, proof, body = make(world)
    answered = world.ask(token, key, scheme=scheme, proof=proof, body=body)
    assert (answered.status, answered.body) == (status, {"error": error})
    assert answered.record is not None
    assert (answered.record["verdict"], answered.record["reason"]) == (
        "identity_refused",
        reason,
    )
    assert detail in answered.record["detail"]
    assert token[:40] not in json.dumps(answered.record)


def test_the_count_of_the_attacks() -> None:
    """So many were tried on the real Keycloak."""
    assert len(ATTACKS) == 19


def test_keycloak_gives_no_token_without_a_proof(world: World) -> None:
    """With the switch of DPoP on, a client that shows no proof gets nothing, whatever secret it has."""
    with pytest.raises(ValueError, match=r"400 .*DPoP proof is missing"):
        world.token("orders-api")


def test_keycloak_takes_a_proof_once_and_for_its_own_url(world: World) -> None:
    """A proof that was used before, and one for another URL, get no token from Keycloak."""
    key = Key.generate()
    for proof in (
        used := world.proof(key, world.token_url),
        world.proof(key, "https://other.example/token"),
    ):
        if proof is used:
            world.answer("orders-api", proof=used)
        with pytest.raises(ValueError, match=r"400 .*invalid_request"):
            world.answer("orders-api", proof=proof)


def test_a_wrong_secret(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """The error names Keycloak's host and its answer, never the secret, and the authority is not asked."""
    secret, before = "a-wrong-secret-of-mine", len(world.records())
    path = world.folder / "wrong.secret"
    path.touch(0o600)
    path.write_text(secret)
    given = ClientCredentials(
        world.token_url,
        client_id="orders-api",
        client_secret_file=path,
        ca=world.keycloak.ca,
    )
    with world.enrolled("orders-api", ORDERS, given) as enrolled:
        with pytest.raises(Unavailable) as caught:
            enrolled.signing_key()
        host = world.token_url.split("/")[2]
        assert f"the token endpoint {host}: refused, 401 unauthorized_client" in str(
            caught.value
        )
        # The line comes just after the state that the caller sees.
        until(lambda: host in caplog.text)
        assert secret not in f"{caught.value!r}{caught.value.__cause__!r}{caplog.text}"
        assert len(world.records()) == before
        path.write_text(world.secrets["orders-api"])
        until(lambda: enrolled.health().state == "fresh")


def test_a_client_that_was_disabled(world: World) -> None:
    """A client that Keycloak shuts out gets no token, and its producer says so; it goes on once that is over."""
    world.tell_client("stranger", enabled=False)
    with (
        world.enrolled("stranger", ORDERS) as enrolled,
        pytest.raises(Unavailable, match="refused, 401"),
    ):
        enrolled.signing_key()
    world.tell_client("stranger", enabled=True)
    assert world.ask(world.token("stranger", OTHER), OTHER).status == 403


# --- what happens to Keycloak -------------------------------------------------------------------------------


def test_a_rotation_is_followed_without_a_restart(world: World) -> None:
    """A new key of the realm counts at once, and one that was taken away counts no more."""
    process, old = world.process, world.token("plain")
    before = world.signing_keys()
    assert world.ask(old, OTHER, scheme="Bearer").status == 200
    world.add_signing_key()
    new = world.token("plain")
    assert parts(new)[0]["kid"] != parts(old)[0]["kid"]
    until(lambda: world.ask(new, OTHER, scheme="Bearer").status == 200)
    assert world.ask(old, OTHER, scheme="Bearer").status == 200
    for provider in before:
        world.keycloak.tell("DELETE", f"realms/{REALM}/components/{provider['id']}")
    until(lambda: world.ask(old, OTHER, scheme="Bearer").status != 200)
    refused = world.ask(old, OTHER, scheme="Bearer")
    assert refused.record is not None
    assert (refused.status, refused.body) == (401, {"error": "invalid_client"})
    assert refused.record["reason"] == "credential_key"
    assert world.ask(new, OTHER, scheme="Bearer").status == 200
    assert world.process is process


def test_keycloak_is_killed_and_comes_back(world: World, keycloak: Keycloak) -> None:
    """The authority goes on with the keys that it has or kept; one without says 503; all go on by themselves.

    A producer signs while its identity lives, and then says that Keycloak is out of reach, with its host.
    """
    host, key = world.token_url.split("/")[2], Key.generate()
    with world.enrolled("brief", STOCK) as enrolled:
        signer = Signer(
            key=enrolled, issuer=DOMAIN, subject=STOCK, audience="billing", lifetime=4
        )
        signer.sign(MESSAGE)
        token = world.token("orders-api", key)
        keycloak.kill()
        assert world.ask(token, key).status == 200
        until(lambda: enrolled.health().state == "failing")
        signer.sign(MESSAGE)
        until(lambda: enrolled.health().state == "unavailable")
        with pytest.raises(
            Unavailable, match=f"the token endpoint {host}: out of reach"
        ) as caught:
            signer.sign(MESSAGE)
        assert caught.value.cause is Cause.KEYS_UNAVAILABLE
        world.start("kept", KEPT)
        assert world.ask(token, key).status == 200
        world.start("restarted", f'jwks = "{world.issuer}/protocol/openid-connect/certs"')
        answered = world.ask(token, key)
        assert (answered.status, answered.body) == (
            503,
            {"error": "temporarily_unavailable"},
        )
        assert answered.record is None
        assert host in world.log()
        keycloak.start()
        until(lambda: enrolled.health().state == "fresh")
        signer.sign(MESSAGE)
        until(lambda: world.ask(world.token("orders-api", key), key).status == 200)


# --- the how-to page ----------------------------------------------------------------------------------------


def reader_of(
    keycloak: Keycloak, folder: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> Reader:
    """Return someone who follows the page with this Keycloak, and an authority at a URL."""
    (folder / "home").mkdir()
    monkeypatch.setenv("PATH", str(keycloak.program.parent), prepend=os.pathsep)
    ca = str(keycloak.ca)
    for name, value in (
        ("HOME", str(folder / "home")),
        ("KC_CLI_PASSWORD", keycloak.password),
        ("SSL_CERT_FILE", ca),
    ):
        monkeypatch.setenv(name, value)
    local = f'ca = "{ca}"\nunsafe_http_loopback = true'
    secret, subject = 'client_secret_file="orders-api.secret",', f'subject="{ORDERS}",'
    # Keycloak has a CA of its own here, and the authority none.
    return Reader(
        folder,
        {
            "--server https://sso.prod.example": f"--server {keycloak.url}",
            'authority = "https://authority.prod.example"': f'authority = "{url}"\n{local}',
            "discovery = true": f'discovery = true\nca = "{ca}"',
            secret: f'{secret} ca="{ca}",', subject: f"{subject} unsafe_http_loopback=True,",
            "https://sso.prod.example": keycloak.secure, "https://authority.prod.example": url,
            "http://127.0.0.1:8443": url,
        },
    )  # fmt: skip


def shell(text: str) -> Block:
    """Return a command that the page does not show."""
    return Block(page=PAGE, line=0, language="sh", mark="", text=text)


@contextmanager
def serving(reader: Reader, port: int) -> Iterator[None]:
    """Serve identities by the page's settings while the block runs."""
    process = reader.start(shell(f"mqauth authority serve --port {port}"))
    assert process.stdout is not None
    try:
        assert f":{port}/v1/identity" in process.stdout.readline()
        yield
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_the_page_does_what_it_says(
    keycloak: Keycloak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who follows the page gets what it shows; its producer signs, and a consumer of the authority accepts."""
    keycloak.tell("POST", "realms", {"realm": "shop", "enabled": True})
    port = Port()
    reader = reader_of(keycloak, tmp_path, f"http://127.0.0.1:{port.number}", monkeypatch)
    reader.run(shell("mqauth keys new --dir authority-keys --pinned --overlap 3600"))
    printed, steps = "", {block.name: block for block in blocks(PAGE)}
    with ExitStack() as running:
        running.callback(port.release)
        for block in blocks(PAGE):
            if block.mark == "output":
                assert matches(block.text, printed), printed
            elif block.language == "toml":
                reader.write(block)
            else:
                printed = reader.run(block)
            if block.name == "producer.toml":
                running.enter_context(serving(reader, port.number))
        (consumer,) = (
            block for block in blocks(AUTHORITY_PAGE) if block.name == "consumer.toml"
        )
        reader.write(consumer)
        verdict = json.loads(
            reader.run(shell("mqauth verify --config consumer.toml < signed.json"))
        )
        assert (verdict["verdict"], verdict["claims"]["sub"]) == ("accepted", ORDERS)
        with pytest.raises(AssertionError, match="HTTP Error 400"):
            reader.run(steps["ask.py"])


def test_the_page_names_what_was_seen() -> None:
    """Each refusal in the page's table is one of the attacks', as the audit says it."""
    rows = re.findall(
        r"^\| `(\w+)` \| `(.+?)` \|", (ROOT / PAGE).read_text("utf-8"), re.MULTILINE
    )
    assert len(rows) == 4
    assert {*rows} <= {(reason, detail) for _, _, reason, detail in ATTACKS.values()}
