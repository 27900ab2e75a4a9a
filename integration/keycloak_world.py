"""A realm of a real Keycloak, an authority that takes its tokens, and whoever asks: for the tests of Keycloak.

All is configured as a user does it: the realm by Keycloak's REST API, the rest by TOML. The authority is ``mqauth
authority serve`` in a process of its own, and both are asked over sockets.
"""

from __future__ import annotations

import base64
import json
import secrets
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

from integration.services.keycloak import Keycloak
from integration.services.machine import LOOPBACK, Port
from mqauth import ClientCredentials, IdentityKey
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS
from mqauth.keystore import Keystore
from mqauth.wire import dpop
from mqauth.wire.keys import Key

DOMAIN: Final = "wimse://prod.example"
ORDERS: Final = f"{DOMAIN}/shop/orders-api"
STOCK: Final = f"{DOMAIN}/shop/stock-api"
REALM: Final = "mqauth"
PATIENCE: Final = 180.0
"""Seconds in which what is waited for has to come."""
_MOMENT: Final = 0.5
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


def until(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until a condition holds.

    Raises:
        TimeoutError: it did not come to hold.
    """
    waiting, ends = threading.Event(), time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends:
            raise TimeoutError("the condition did not come to hold")
        waiting.wait(_MOMENT)


def parts(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return header and claims of a JWT, unverified."""
    header, claims = (json.loads(base64.urlsafe_b64decode(part + "==")) for part in token.split(".")[:2])
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

    def realm(self, name: str = REALM, *clients: Mapping[str, Any], **settings: Any) -> None:
        """Make a realm with clients."""
        self.keycloak.tell("POST", "realms", {"realm": name, "enabled": True, "clients": clients, **settings})

    def client(self, name: str, *audiences: str, attributes: Mapping[str, str] | None = None, **more: Any) -> Any:
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

    def foreign_kid(self) -> str:
        """Return the kid of a key that signs for another realm."""
        (found, *_) = [
            key for key in self.keycloak.tell("GET", "realms/other/keys")["keys"] if key["use"] == "SIG"
        ]
        return str(found["kid"])

    def tell_client(self, name: str, **changes: Any) -> None:
        """Change a client of the realm."""
        (found,) = self.keycloak.tell("GET", f"realms/{REALM}/clients?clientId={name}")
        self.keycloak.tell("PUT", f"realms/{REALM}/clients/{found['id']}", found | changes)

    def signing_keys(self) -> list[dict[str, Any]]:
        """Return the realm's providers of RS256 keys."""
        kind = "org.keycloak.keys.KeyProvider"
        found = self.keycloak.tell("GET", f"realms/{REALM}/components?type={kind}")
        return [each for each in found if each["providerId"] == "rsa-generated"]

    def add_signing_key(self) -> None:
        """Let the realm sign with a new key from now on, and publish the old one beside it."""
        realm = self.keycloak.tell("GET", f"realms/{REALM}")["id"]
        config = {"priority": ["200"], "enabled": ["true"], "active": ["true"], "algorithm": ["RS256"]}
        self.keycloak.tell(
            "POST", f"realms/{REALM}/components",
            {"name": "new", "providerId": "rsa-generated", "providerType": "org.keycloak.keys.KeyProvider",
             "parentId": realm, "config": config},
        )  # fmt: skip

    # --- tokens ---------------------------------------------------------------------------------------------

    def tokens(self, client: str, key: Key | None = None, *, realm: str = REALM, **form: str) -> Mapping[str, Any]:
        """Return what the token endpoint answers a client, with a DPoP proof where there is a key."""
        url = self.token_url.replace(f"/realms/{REALM}/", f"/realms/{realm}/")
        return self.answer(client, url, None if key is None else self.proof(key, url), **form)

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
        said = {"grant_type": "client_credentials", "client_id": client, "client_secret": self.secrets[client]}
        headers = {} if proof is None else {"DPoP": proof}
        answer: dict[str, Any] = self.keycloak.post(url or self.token_url, said | form, headers)
        return answer

    def proof(self, key: Key, url: str | None = None, credential: str | None = None) -> str:
        """Return a DPoP proof, of a request to the authority where no other URL is given."""
        return dpop.proof(
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
        return IdentityKey(self.url, subject=subject, credential=given, unsafe_http_loopback=True)

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
        words = ["authority", "serve", "--config", str(settings), "--port", str(self.port.number)]
        with (self.folder / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _ENTRY, *words], stdout=subprocess.PIPE, stderr=log, text=True
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
        before, proof = len(self.records()), proof or self.proof(key, credential=credential)
        headers = {"Authorization": f"{scheme} {credential}", "DPoP": proof}
        asked = urllib.request.Request(f"{self.url}/v1/identity", body, headers, method="POST")  # noqa: S310
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
