"""An authority on a disk of its own, whoever asks it, and what they ask with: for the tests of the authority."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from mqauth import AuditFile, Detector, FloodGate, MisuseWatch
from mqauth.authority.application import AuthorityServer
from mqauth.authority.credential import CredentialIssuer
from mqauth.authority.issuing import CredentialDesk, Grant, IdentityAuthority
from mqauth.keystore import ActiveKey, Keystore
from mqauth.keystore.remote.keyserver import KeyServer
from mqauth.testing.clock import FakeClock
from mqauth.testing.forge import bent
from mqauth.wire import base64url, strict_json
from mqauth.wire.jws import LocalSigningKey
from mqauth.wire.keys import Key, KeySet, public_members

DOMAIN: Final = "wimse://prod.example"
ORDERS: Final = f"{DOMAIN}/shop/orders-api"
STOCK: Final = f"{DOMAIN}/shop/stock-api"
URL: Final = "https://authority.prod.example"
CLUSTER: Final = "https://kubernetes.default.svc"
MACHINES: Final = "https://machines.example"
ACCOUNT: Final = "system:serviceaccount:shop:orders-api"
LIFETIME: Final = 3600
CLUSTER_KEY: Final = Key.generate("RS256")


class Answered(NamedTuple):
    """An answer of the application."""

    status: int
    body: dict[str, Any]
    headers: dict[bytes, bytes]


def jws(header: Mapping[str, Any], claims: Mapping[str, Any], key: Key) -> str:
    """Return a JWS of exactly this header and these claims."""
    data = (
        base64url.encode(strict_json.dumps(header))
        + b"."
        + base64url.encode(strict_json.dumps(claims))
    )
    return (data + b"." + base64url.encode(LocalSigningKey(key).sign(data))).decode(
        "ascii"
    )


class World:
    """An authority with a cluster's credentials, machines that have keystores, and one honest workload.

    Args:
        folder: for keystore and audit file.
        url: of the authority.
        clock: of everybody.
        settings: of ``IdentityAuthority``.
    """

    def __init__(
        self, folder: Path, *, url: str = URL, clock: Any = None, **settings: Any
    ) -> None:
        self.url = url
        self.clock: Any = clock or FakeClock()
        self.cluster = CLUSTER_KEY
        self.machine = Key.generate("EdDSA", subjects=["orders-api"])
        self.key = Key.generate("EdDSA")
        self.keystore = Keystore(folder=folder / "authority-keys", clock=self.clock)
        self.keystore.create(overlap=LIFETIME)
        self.path = folder / "authority.jsonl"
        self.file = AuditFile(self.path, fsync=False)
        self.audit: Any = MisuseWatch(FloodGate(self.file), Detector(), clock=self.clock)
        self.grants = [
            Grant(
                credential="cluster",
                match={"sub": ACCOUNT},
                subject=ORDERS,
                claims={"env": "prod"},
            ),
            Grant(credential="machines", match={"sub": "orders-api"}, subject=ORDERS),
        ]
        self.sources: dict[str, Any] = {
            CLUSTER: KeySet([self.cluster]),
            MACHINES: KeySet([self.machine]),
        }
        refusals = settings.pop("refusals", 60)
        self.authority = self.start(**settings)
        keys = KeyServer([self.keystore.folder], most=60, clock=self.clock)
        self.server = AuthorityServer(
            self.authority, keys, refusals=refusals, clock=self.clock
        )

    def start(self, **settings: Any) -> IdentityAuthority:
        """Return the authority."""
        cluster = CredentialIssuer(
            name="cluster",
            issuer=CLUSTER,
            keys=self.sources[CLUSTER],
            max_lifetime=settings.pop("longest", 7200),
        )
        machines = CredentialIssuer(
            name="machines",
            issuer=MACHINES,
            keys=self.sources[MACHINES],
            max_lifetime=300,
            enrolment=True,
        )
        self.desk = CredentialDesk(
            issuers=[cluster, machines],
            grants=settings.pop("grants", self.grants),
            audience=self.url,
            clock=self.clock,
        )
        wanted: dict[str, Any] = {
            "trust_domain": DOMAIN, "desk": self.desk, "audit": self.audit, "clock": self.clock,
            "keys": ActiveKey(self.keystore.folder, clock=self.clock), "cutoffs": self.keystore.cutoffs,
        }  # fmt: skip
        return IdentityAuthority(**(wanted | settings))

    # --- what is asked with ---------------------------------------------------------------------------------

    def credential(
        self, *, header: Mapping[str, Any] | None = None, claims: Mapping[str, Any] | None = None,
        key: Key | None = None,
    ) -> str:  # fmt: skip
        """Return a token of the cluster, with any mistake."""
        key, now = key or self.cluster, int(self.clock.now())
        said = {"iss": CLUSTER, "sub": ACCOUNT, "aud": [self.url], "iat": now, "nbf": now, "exp": now + 3600,
                "jti": "t1", "kubernetes.io": {"namespace": "shop", "pod": {"name": "orders-1"}}}  # fmt: skip
        return jws(
            bent({"alg": key.algorithm, "kid": key.kid}, header), bent(said, claims), key
        )

    def enrolment(
        self, *, header: Mapping[str, Any] | None = None, claims: Mapping[str, Any] | None = None,
        key: Key | None = None,
    ) -> str:  # fmt: skip
        """Return a credential of a machine's own keystore, with any mistake."""
        key, now = key or self.machine, int(self.clock.now())
        said = {
            "iss": MACHINES,
            "sub": "orders-api",
            "aud": self.url,
            "iat": now,
            "exp": now + 60,
            "jti": "m1",
        }
        parameters = {"alg": key.algorithm, "kid": key.kid, "typ": "mqauth-enrol+jwt"}
        return jws(bent(parameters, header), bent(said, claims), key)

    def proof(
        self, credential: str, *, header: Mapping[str, Any] | None = None, claims: Mapping[str, Any] | None = None,
        key: Key | None = None, signer: Key | None = None,
    ) -> str:  # fmt: skip
        """Return a DPoP proof, with any mistake."""
        key = key or self.key
        said = {"htm": "POST", "htu": f"{self.url}/v1/identity", "iat": int(self.clock.now()), "jti": "p1",
                "ath": base64url.digest(credential.encode())}  # fmt: skip
        parameters = {
            "typ": "dpop+jwt",
            "alg": key.algorithm,
            "jwk": public_members(key.public),
        }
        return jws(bent(parameters, header), bent(said, claims), signer or key)

    # --- asking ---------------------------------------------------------------------------------------------

    def ask(
        self, credential: str | None = None, proof: str | None = None, *, body: bytes = b"",
        scheme: str = "Bearer", address: str = "10.0.0.7", headers: list[tuple[bytes, bytes]] | None = None,
    ) -> Answered:  # fmt: skip
        """Ask for an identity; what is left out is honest."""
        credential = self.credential() if credential is None else credential
        proof = self.proof(credential) if proof is None else proof
        given = [
            (b"authorization", f"{scheme} {credential}".encode()),
            (b"dpop", proof.encode()),
        ]
        return self.request(
            "POST", "/v1/identity", given if headers is None else headers, body, address
        )

    def request(
        self, method: str, path: str, headers: list[tuple[bytes, bytes]] | None = None, body: bytes = b"",
        address: str = "10.0.0.7",
    ) -> Answered:  # fmt: skip
        """Send one request to the application."""
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": headers or [],
            "client": (address, 1),
        }
        return asyncio.run(_answered(self.server, scope, body))

    def records(self) -> list[dict[str, Any]]:
        """Return the audit records that are not alerts."""
        return [record for record in self.all_records() if record["verdict"] != "alert"]

    def all_records(self) -> list[dict[str, Any]]:
        """Return all audit records."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]

    def alerts(self) -> list[str]:
        """Return the kinds of the alerts."""
        return [
            record["alert"]["kind"]
            for record in self.all_records()
            if record["verdict"] == "alert"
        ]


async def _answered(
    server: Callable[..., Any], scope: dict[str, Any], body: bytes
) -> Answered:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await server(scope, receive, send)
    raw = sent[1]["body"]
    return Answered(
        sent[0]["status"], json.loads(raw) if raw else {}, dict(sent[0]["headers"])
    )
