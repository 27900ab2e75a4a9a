"""The authority over real HTTP: uvicorn in this process, a client of the standard library, and a consumer."""

from __future__ import annotations

import http.client
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from mqauth import (
    IdentityKey,
    Message,
    OwnKey,
    Signer,
    TrustDomain,
    Unavailable,
    Verifier,
    WITKey,
)
from mqauth.cli.serve import listen, server_of
from mqauth.clock import SYSTEM_CLOCK
from mqauth.wire import jwk
from tests.authority_world import DOMAIN, MACHINES, ORDERS, STOCK, World

MESSAGE = Message(destination="kafka:orders", body=b'{"order": 1}')


@contextmanager
def serving(world: World, listener: socket.socket) -> Iterator[None]:
    """Serve within the block, by the server of the command."""
    uvicorn = server_of(
        world.server, None, requests=64, verb="authority serve", extra="serve"
    )
    thread = threading.Thread(
        target=uvicorn.run, kwargs={"sockets": [listener]}, daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        uvicorn.should_exit = True
        thread.join(30)


@pytest.fixture
def world(tmp_path: Path) -> World:
    """An authority and those who ask it."""
    return World(tmp_path)


@pytest.fixture
def port(world: World) -> Iterator[int]:
    """The port of a server that runs while the test does."""
    with listen("127.0.0.1", 0, tls=False) as listener, serving(world, listener):
        yield listener.getsockname()[1]


def fetch(
    port: int, method: str, path: str, body: bytes = b"", **headers: str
) -> tuple[int, Any]:
    """Send one request, and return status and body."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())


def asked(world: World, port: int) -> tuple[int, Any]:
    """Ask for an identity, and return status and body."""
    credential = world.credential()
    return fetch(
        port,
        "POST",
        "/v1/identity",
        Authorization=f"Bearer {credential}",
        DPoP=world.proof(credential),
    )


def test_from_a_credential_to_a_verified_message(world: World, port: int) -> None:
    """A workload gets a WIT over HTTP and signs; a consumer that has the served JWK Set alone accepts that."""
    status, body = asked(world, port)
    assert status == 200
    key = WITKey(body["wit"], world.key, clock=world.clock)
    signed = Signer(
        key=key, issuer=DOMAIN, subject=ORDERS, audience="billing", clock=world.clock
    ).sign(MESSAGE)
    keys = jwk.load_key_set(json.dumps(fetch(port, "GET", "/jwks.json")[1]).encode())
    verifier = Verifier(keys={DOMAIN: TrustDomain(keys=keys)}, audience="billing")
    verified = verifier.verify(signed, verifier.open(signed), keys, world.clock.now())
    assert verified.subject == ORDERS
    assert dict(verified.identity.claims) == {"env": "prod"}


def test_a_body_over_the_limit_is_refused(world: World, port: int) -> None:
    """A large body is answered and not kept; the next request of the same address is served."""
    credential = world.credential()
    headers = {"Authorization": f"Bearer {credential}", "DPoP": world.proof(credential)}
    assert fetch(port, "POST", "/v1/identity", b" " * 100_000, **headers) == (
        400,
        {"error": "invalid_request"},
    )
    assert asked(world, port)[0] == 200


def test_a_producer_of_ours_that_is_not_granted_signs_nothing(tmp_path: Path) -> None:
    """Our client without a grant is told so, and signing raises."""
    with listen("127.0.0.1", 0, tls=False) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        world = World(tmp_path, url=url, clock=SYSTEM_CLOCK)
        own = OwnKey(world.machine, issuer=MACHINES, subject="orders-api")
        enrolled = IdentityKey(
            url, subject=STOCK, credential=own, unsafe_http_loopback=True
        )
        with (
            serving(world, listener),
            enrolled as key,
            pytest.raises(Unavailable, match="403 access_denied"),
        ):
            key.signing_key()
    assert world.records()[0]["reason"] == "grant_missing"
