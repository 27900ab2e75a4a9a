"""Keys that are fetched from a real server in another process, which hangs, ends, or proves to be another one.

Here time is real and short: a bound of a third of a second stands for one of five, and what is asserted is
that nothing takes longer than its bound.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from integration.keyserver import Authority, KeyServer
from mqauth import JWKS
from mqauth.clock import SYSTEM_CLOCK
from mqauth.errors import Unavailable
from mqauth.http.connection import Deadline, Endpoint, FetchFailed, connect, tls_context
from mqauth.keystore.remote.fetch import URLFetch
from mqauth.testing.stage import wait_until
from mqauth.wire.keys import Key

A, B, C = (Key.generate() for _ in range(3))
TIMEOUT = 0.4
SLACK = (
    10.0  # seconds a busy machine may add; without a bound it is half a minute and more
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A certificate authority of these tests."""
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def plain() -> Iterator[KeyServer]:
    """A server on plain http."""
    with KeyServer() as server:
        yield server


@pytest.fixture(scope="module")
def secure(authority: Authority) -> Iterator[KeyServer]:
    """A server on https."""
    with KeyServer(authority.issue()) as server:
        yield server


@pytest.fixture(params=["http", "https"])
def server(request: pytest.FixtureRequest) -> KeyServer:
    """Either server, behaving well, with A and B."""
    found: KeyServer = request.getfixturevalue(
        "plain" if request.param == "http" else "secure"
    )
    found.up()
    found.command(tls=True)
    found.serve([A, B])
    return found


def fetcher(
    server: KeyServer, authority: Authority, timeout: float = TIMEOUT
) -> URLFetch:
    """Return the product's own fetch of a server."""
    endpoint = Endpoint.parse(server.url, unsafe_http_loopback=True)
    return URLFetch(
        endpoint, timeout=timeout, context=tls_context(authority.path), clock=SYSTEM_CLOCK
    )


def cache(server: KeyServer, authority: Authority, **settings: Any) -> JWKS:
    """Return a cache of a server."""
    wanted: dict[str, Any] = {
        "timeout": TIMEOUT,
        "unsafe_http_loopback": True,
        "ca": authority.path,
    }
    return JWKS(server.url, **(wanted | settings))


def seconds(action: Callable[[], object]) -> float:
    """Return how long something takes."""
    began = time.monotonic()
    action()
    return time.monotonic() - began


@pytest.mark.parametrize("mode", ["hang", "drip_head", "drip_body"])
def test_the_whole_exchange_has_one_bound(
    server: KeyServer, authority: Authority, mode: str
) -> None:
    """A server that hangs, or sends a byte every 20 ms, is given up when the time for all of it is over."""
    server.serve([A, B], padding="x" * 10_000)
    server.behave(mode)

    def attempt() -> None:
        with pytest.raises(FetchFailed, match=r"within 0\.4 s|timed out"):
            fetcher(server, authority)(None)

    assert TIMEOUT <= seconds(attempt) < TIMEOUT + SLACK


def test_a_tls_handshake_that_never_comes_is_bounded(
    plain: KeyServer, authority: Authority
) -> None:
    """A plain server asked for https hangs in the handshake, and is given up in time."""
    plain.behave("hang")
    endpoint = Endpoint.parse(plain.url.replace("http:", "https:"))
    fetch = URLFetch(
        endpoint, timeout=TIMEOUT, context=tls_context(authority.path), clock=SYSTEM_CLOCK
    )

    def attempt() -> None:
        with pytest.raises(FetchFailed):
            fetch(None)

    assert seconds(attempt) < TIMEOUT + SLACK


@pytest.mark.parametrize("flaw", ["unknown authority", "other host", "expired"])
def test_bad_certificates_are_refused(
    authority: Authority, tmp_path: Path, flaw: str
) -> None:
    """A certificate of an unknown authority, for another host, or expired, is no way to our keys."""
    signer = Authority(tmp_path) if flaw == "unknown authority" else authority
    chosen: dict[str, Any] = (
        {"host": "other.example"}
        if flaw == "other host"
        else {"days": -1}
        if flaw == "expired"
        else {}
    )
    with KeyServer(signer.issue(**chosen)) as server:
        server.serve([A])
        with pytest.raises(FetchFailed, match="certificate is not trusted"):
            fetcher(server, authority)(None)
        assert server.requests == 0


def test_plain_text_on_a_tls_port_is_refused(
    secure: KeyServer, authority: Authority
) -> None:
    """A server that stopped speaking TLS is a failure, and gets no request in the clear."""
    secure.command(tls=False)
    before = secure.requests
    with pytest.raises(FetchFailed):
        fetcher(secure, authority)(None)
    assert secure.requests == before
    secure.command(tls=True)


def test_an_unknown_host_fails_in_time(authority: Authority) -> None:
    """A name that does not exist, or a resolver that does not answer, is bounded like everything else."""
    endpoint = Endpoint.parse("https://mqauth-test.invalid/jwks.json")
    fetch = URLFetch(
        endpoint, timeout=TIMEOUT, context=tls_context(None), clock=SYSTEM_CLOCK
    )

    def attempt() -> None:
        with pytest.raises(FetchFailed, match="host name"):
            fetch(None)

    assert seconds(attempt) < TIMEOUT + SLACK


def test_no_socket_is_left_open(server: KeyServer, authority: Authority) -> None:
    """After good and bad attempts nothing is left for the garbage collector to warn about."""
    for mode in ("ok", "large", "reset", "drip_body"):
        server.behave(mode)
        with suppress(FetchFailed):
            fetcher(server, authority, timeout=0.1)(None)
    gc.collect()  # a ResourceWarning is an error here
    endpoint = Endpoint.parse(server.url, unsafe_http_loopback=True)
    server.behave("ok")
    connect(endpoint, Deadline(SYSTEM_CLOCK, TIMEOUT), None).close()


# The cache, with its thread and real time


@pytest.mark.parametrize("locked", [False, True], ids=["fetching", "with the lock held"])
def test_a_child_after_a_fork_fetches_at_once(
    plain: KeyServer, authority: Authority, locked: bool
) -> None:
    """Whatever its parent was doing at the fork, a child has keys soon: it waits for no thread that it lacks."""
    plain.up()
    plain.serve([A])
    plain.behave("hang")
    before = plain.requests
    with cache(plain, authority, timeout=2) as jwks:
        wait_until(lambda: plain.requests > before)
        plain.behave("ok")
        with jwks._condition if locked else nullcontext():
            child = os.fork()
            if child == 0:
                # A child that waits for the lock, or for half a minute, ends by the signal.
                signal.alarm(int(SLACK))
                while True:
                    with suppress(Unavailable):
                        os._exit(0 if jwks.key_set().get(A.kid) else 1)
                    time.sleep(0.01)
        assert os.waitpid(child, 0)[1] == 0
