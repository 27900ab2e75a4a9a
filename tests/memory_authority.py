"""A whole authority in memory: the application that ``mqauth authority serve`` runs, asked without a socket."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from mqauth import JWKS, AuditFile, IdentityKey, Key, KeySet
from mqauth.authority.application import AuthorityServer
from mqauth.authority.credential import CredentialIssuer
from mqauth.authority.issuing import (
    LIFETIME,
    RATE,
    CredentialDesk,
    Grant,
    IdentityAuthority,
)
from mqauth.clock import SYSTEM_RANDOMNESS, Clock
from mqauth.http.connection import MAX_TIMEOUT, Deadline
from mqauth.http.exchange import Response
from mqauth.keystore import ActiveKey, Keystore
from mqauth.keystore.identity.request import Credential, IdentityRequest, OwnKey
from mqauth.keystore.remote.fetch import ThreadRefresher
from mqauth.keystore.remote.keyserver import KeyServer
from mqauth.keystore.remote.rules import Answer
from mqauth.testing.identity import TRUST_DOMAIN
from mqauth.wire import jwk, strict_json

URL: Final = "https://authority.prod.example"
MACHINES: Final = "https://machines.example"


class OnTheSpot(ThreadRefresher):
    """Does what is due where it is asked for, without a thread."""

    def __init__(self, condition: threading.Condition, work: Callable[[], float]) -> None:
        super().__init__(condition, work)
        self._on = True

    def ensure(self) -> None:
        """Do what is due."""
        if self._on:
            self._work()

    wake = ensure

    def close(self) -> None:
        """Do nothing any more."""
        self._on = False


class MemoryAuthority:
    """An authority whose producers enrol with keys of their own; it is a ``KeySource`` of its consumers too.

    Args:
        folder: for its keystore.
        audit: where its records go.
        grants: the identity of each producer, by its name.
        clock: tells the time.
        rate: identities of one subject a minute.
    """

    def __init__(
        self,
        folder: Path,
        audit: AuditFile,
        grants: Mapping[str, str],
        *,
        clock: Clock,
        rate: int = RATE,
    ) -> None:
        self.clock = clock
        self._rate = rate
        self.machines = {name: Key.generate(subjects=[name]) for name in grants}
        self._audit = audit
        self._keystore = Keystore(folder=folder, clock=clock)
        self._keystore.create(overlap=LIFETIME)
        self._server = self._serving(grants)
        self._grants = dict(grants)

    def enrolled(self, name: str, subject: str) -> IdentityKey:
        """Return the key of a producer, which enrols with its own key and renews without a thread."""
        return IdentityKey(
            URL, subject=subject, credential=self.credential(name), clock=self.clock,
            ask=self.request(subject, self.credential(name)), keys=self._followed, refresher=OnTheSpot,
        )  # fmt: skip

    def credential(self, name: str, key: Key | None = None) -> OwnKey:
        """Return what a producer shows, signed by its key or by another one."""
        return OwnKey(key or self.machines[name], issuer=MACHINES, subject=name)

    def request(self, subject: str, credential: Credential) -> IdentityRequest:
        """Return what asks for an identity."""
        return _Request(self, subject, credential)

    def cut_off(self, name: str, reason: str) -> None:
        """Take a producer's grant back, then refuse all its identities that were issued up to now."""
        subject = self._grants.pop(name)
        self._server = self._serving(self._grants)
        self._keystore.cut_off(subject, reason=reason)

    def key_set(self) -> KeySet:
        """Return the JWK Set as it is served (``KeySource``)."""
        _, body, _ = self.answer("GET", "/jwks.json", {}, b"")
        return jwk.load_key_set(body)

    def refresh(self, _kid: str, _received: float, /) -> KeySet:
        """Return the JWK Set as it is served (``KeySource``)."""
        return self.key_set()

    def answer(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, bytes, float]:
        """Return status, body and ``Retry-After`` of the application's answer to one request."""
        given = [
            (name.lower().encode(), value.encode()) for name, value in headers.items()
        ]
        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "headers": given,
            "client": ("127.0.0.1", 1),
        }
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        # A thread of its own, since the caller may be in an event loop.
        asked = threading.Thread(
            target=lambda: asyncio.run(self._server(scope, receive, send))
        )
        asked.start()
        asked.join()
        sent_headers = dict(sent[0]["headers"])
        return (
            sent[0]["status"],
            sent[1]["body"],
            float(sent_headers.get(b"retry-after", b"0")),
        )

    def _serving(self, grants: Mapping[str, str]) -> AuthorityServer:
        machines = CredentialIssuer(
            name="machines",
            issuer=MACHINES,
            keys=KeySet(self.machines.values()),
            max_lifetime=300,
            enrolment=True,
        )
        granted = [
            Grant(credential="machines", match={"sub": name}, subject=subject)
            for name, subject in grants.items()
        ]
        desk = CredentialDesk(
            issuers=[machines], grants=granted, audience=URL, clock=self.clock
        )
        authority = IdentityAuthority(
            trust_domain=TRUST_DOMAIN, desk=desk, keys=ActiveKey(self._keystore.folder, clock=self.clock),
            audit=self._audit, rate=self._rate, cutoffs=self._keystore.cutoffs, clock=self.clock,
        )  # fmt: skip
        # No copy of the set is kept: a cut-off is seen by the next look.
        return AuthorityServer(
            authority,
            KeyServer([self._keystore.folder], clock=self.clock),
            clock=self.clock,
        )

    def _followed(self) -> JWKS:
        return JWKS(
            f"{URL}/jwks.json", fetch=lambda _: Answer(keys=self.key_set()), fresh=60, clock=self.clock,
            refresher=OnTheSpot,
        )  # fmt: skip


class _Request(IdentityRequest):
    """A request that reaches the application without a socket."""

    def __init__(
        self, authority: MemoryAuthority, subject: str, credential: Credential
    ) -> None:
        super().__init__(
            URL, subject=subject, credential=credential, timeout=MAX_TIMEOUT, ca=None, unsafe_http_loopback=False,
            clock=authority.clock, randomness=SYSTEM_RANDOMNESS,
        )  # fmt: skip
        self._of = authority

    def post(
        self, headers: Mapping[str, str], document: Mapping[str, str], _deadline: Deadline
    ) -> Response:
        """Ask the application."""
        status, body, wait = self._of.answer(
            "POST", "/v1/identity", headers, strict_json.dumps(document)
        )
        return Response(document=json.loads(body), status=status, retry_after=wait)
