"""``mqauth keys serve`` as consumers meet it: over real HTTP and TLS, by the real cache, through restarts."""

from __future__ import annotations

import asyncio
import http.client
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from integration.keys.scene import IssuerProcess
from integration.keyserver import Authority
from integration.waiting import PATIENCE, until
from mqauth import JWKS, Unavailable
from mqauth.cli import main
from mqauth.cli.serve import Certificate
from mqauth.keystore import Keystore


def made(folder: Path, **settings: Any) -> Keystore:
    """Return a keystore with one key."""
    store = Keystore(folder=folder)
    store.create(**{"subjects": ["orders-api"], **settings})
    return store


@pytest.fixture
def store(tmp_path: Path) -> Keystore:
    """A keystore whose only key signs."""
    return made(tmp_path / "keys")


@pytest.fixture
def issuer(store: Keystore) -> Iterator[IssuerProcess]:
    """That keystore, served."""
    with IssuerProcess([store.folder]) as running:
        yield running


def get(
    url: str, method: str = "GET", context: ssl.SSLContext | None = None, **headers: str
) -> tuple[int, Any, bytes]:
    """Return status, headers and body of one request."""
    scheme, _, rest = url.partition("://")
    place, _, path = rest.partition("/")
    kind: Any = (
        http.client.HTTPConnection if scheme == "http" else http.client.HTTPSConnection
    )
    settings = {} if context is None else {"context": context}
    with closing(kind(place, timeout=PATIENCE, **settings)) as connection:
        connection.request(
            method,
            f"/{path}",
            headers={name.replace("_", "-"): value for name, value in headers.items()},
        )
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


def test_conditional_requests_over_the_wire(issuer: IssuerProcess) -> None:
    """GET, HEAD and If-None-Match do over HTTP what the application says; a date is added, no server name."""
    status, headers, body = get(issuer.url)
    assert (status, headers["Content-Type"]) == (200, "application/jwk-set+json")
    assert headers["Date"]
    assert headers["Server"] is None
    head, head_headers, nothing = get(issuer.url, "HEAD")
    assert (head, head_headers["Content-Length"], nothing) == (200, str(len(body)), b"")
    again, _, nothing = get(issuer.url, If_None_Match=headers["ETag"])
    assert (again, nothing) == (304, b"")
    assert get(issuer.url.replace("jwks.json", "healthz"))[0] == 200


def test_cache_reads_it(store: Keystore, issuer: IssuerProcess) -> None:
    """The real cache takes keys, subjects and delay from it: a kid that a young set lacks is unknown."""
    with JWKS(issuer.url, unsafe_http_loopback=True) as keys:
        until(lambda: keys.health().state == "fresh")
        (key,) = keys.key_set()
        assert key.kid == store.signing_key().kid
        assert key.subjects == frozenset(["orders-api"])
        assert keys._cache.publish_delay == 600
        found = keys.refresh("nobody", 0)
        assert found.get("nobody") is None
        assert keys.health().counters["attempts"] == 1


def test_tls(store: Keystore, tmp_path: Path) -> None:
    """With a certificate it speaks TLS 1.2 or newer to a cache with that CA, and to no other."""
    authority, stranger = Authority(tmp_path), Authority(tmp_path)
    chain, key = authority.issue()
    with IssuerProcess(
        [store.folder], "--tls-cert", str(chain), "--tls-key", str(key)
    ) as issuer:
        assert issuer.url.startswith("https://127.0.0.1:")
        with JWKS(issuer.url, ca=authority.path) as keys:
            until(lambda: keys.health().state == "fresh")
        with JWKS(issuer.url, ca=stranger.path) as keys:
            until(lambda: keys.health().counters.get("failed", 0) > 0)
            with pytest.raises(Unavailable):
                keys.key_set()
        context = ssl.create_default_context(cafile=str(authority.path))
        assert get(issuer.url, context=context)[0] == 200


def shown(certificate: Certificate, authority: Authority) -> int:
    """Return the serial number of the certificate that a handshake in memory shows."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = certificate.context.wrap_bio(to_server, to_client, server_side=True)
    trusting = ssl.create_default_context(cafile=str(authority.path))
    client = trusting.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    for _ in range(4):
        for end in (client, server):
            with suppress(ssl.SSLWantReadError):
                end.do_handshake()
    return int(client.getpeercert()["serialNumber"], 16)  # type: ignore[index, arg-type]


def test_renewed_certificate_is_read_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """New connections get a renewed certificate; a half-written one is logged, and the last good one stays."""
    authority = Authority(tmp_path)
    (chain, key), (next_chain, next_key) = authority.issue(), authority.issue()
    certificate = Certificate(chain, key)
    first = shown(certificate, authority)
    chain.write_bytes(next_chain.read_bytes())
    asyncio.run(certificate.renew())  # a certificate without its key
    assert shown(certificate, authority) == first
    assert "stays in use" in caplog.text
    key.write_bytes(next_key.read_bytes())
    asyncio.run(certificate.renew())
    assert shown(certificate, authority) != first


@pytest.fixture
def serve(store: Keystore, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run the command, which refuses with exit code 2 and one line, and return that."""

    def run(*options: str, port: str = "0") -> str:
        assert (
            main(["keys", "serve", "--dir", str(store.folder), "--port", port, *options])
            == 2
        )
        said = capsys.readouterr()
        assert (said.out, said.err.count("\n")) == ("", 1)
        return said.err

    return run


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--host", "::"], "reached from outside only with"),
        (
            ["--tls-cert", "x", "--tls-key", "y"],
            "--tls-cert x, --tls-key y: No such file",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_served_is_one_line(
    serve: Callable[..., str], options: list[str], text: str
) -> None:
    """An address that may not be had, and a certificate that is not there: exit 2 and one line."""
    assert text in serve(*options)


def test_address_in_use_is_one_line(
    serve: Callable[..., str], issuer: IssuerProcess
) -> None:
    """A second server at the same port says so."""
    assert "Address already in use" in serve(
        port=issuer.url.rpartition(":")[2].partition("/")[0]
    )


def test_key_with_a_passphrase_is_refused(
    serve: Callable[..., str], tmp_path: Path
) -> None:
    """A TLS key that would ask somebody for a passphrase is refused instead."""
    from cryptography.hazmat.primitives import serialization

    chain, key = Authority(tmp_path).issue()
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )  # fmt: skip
    assert "the key has a passphrase" in serve(
        "--tls-cert", str(chain), "--tls-key", str(key)
    )


def test_missing_server_library_is_one_line(
    serve: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the extra the command says what to install."""
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert (
        serve()
        == 'mqauth: mqauth keys serve needs uvicorn: install "mqauth[cli,serve]"\n'
    )
