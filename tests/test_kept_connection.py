"""A connection that is kept between requests, over real sockets: when it is used again, and when it may not be."""

from __future__ import annotations

import io
import os
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from mqauth.clock import SYSTEM_CLOCK
from mqauth.http.connection import Deadline, Endpoint, FetchFailed, Kept
from mqauth.http.exchange import request

GOOD = b'{"n": 1}'


class Server(ThreadingHTTPServer):
    """Answers each request as the next of its plans says, and counts.

    Attributes:
        plans: what becomes of the requests, in their order; a good answer where there is none any more.
        connections: how many were opened.
        requests: the connection that each request came by.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plans: list[Callable[[Handler], None]] = []
        self.connections = 0
        self.requests: list[int] = []
        self.ended = threading.Semaphore(0)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def setup(self) -> None:
        """Count it."""
        super().setup()
        self.server.connections += 1
        self.number = self.server.connections

    def finish(self) -> None:
        """Say that it has ended."""
        super().finish()
        self.server.ended.release()

    def do_GET(self) -> None:
        """Do what is planned."""
        self.server.requests.append(self.number)
        plan = self.server.plans.pop(0) if self.server.plans else good
        plan(self)

    def log_message(self, *_words: Any) -> None:
        """Say nothing."""

    def answer(
        self,
        body: bytes = GOOD,
        *,
        length: int | None = None,
        status: int = 200,
        **headers: str,
    ) -> None:
        """Send an answer."""
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


def good(handler: Handler) -> None:
    """Answer."""
    handler.answer()


def resets(handler: Handler) -> None:
    """Reset the connection without an answer."""
    handler.connection.setsockopt(
        socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0"
    )
    handler.connection.close()
    handler.close_connection = True


def breaks_off(handler: Handler) -> None:
    """Answer in part, and reset the connection."""
    handler.answer(length=100)
    resets(handler)


def too_much(handler: Handler) -> None:
    """Answer twice what was asked once, in one piece: what comes after a next request cannot be told apart."""
    wire, handler.wfile = handler.wfile, io.BytesIO()
    handler.answer()
    handler.answer(b'{"n": 2}')
    wire.write(handler.wfile.getvalue())
    handler.wfile = wire


@pytest.fixture
def server() -> Iterator[Server]:
    """A server in a thread."""
    with Server() as found:
        thread = threading.Thread(
            target=found.serve_forever, kwargs={"poll_interval": 0.01}
        )
        thread.start()
        yield found
        found.shutdown()
        thread.join()


@pytest.fixture
def kept() -> Kept:
    """What keeps the connection."""
    return Kept()


def ask(server: Server, kept: Kept) -> Any:
    """Return the number in the answer."""
    endpoint = Endpoint.parse(
        f"http://127.0.0.1:{server.server_address[1]}/x", unsafe_http_loopback=True
    )
    document = request(
        endpoint, deadline=Deadline(SYSTEM_CLOCK, 5), context=None, kept=kept
    ).document
    return document["n"]


def test_half_an_answer_is_not_asked_for_again(server: Server, kept: Kept) -> None:
    """An answer that breaks off is a failure: the server may have done what it was asked."""
    server.plans = [good, breaks_off]
    ask(server, kept)
    with pytest.raises(FetchFailed):
        ask(server, kept)
    assert server.requests == [1, 1]


def test_an_answer_that_nobody_asked_for_is_never_read(
    server: Server, kept: Kept
) -> None:
    """What a server sends beyond an answer is not taken for the next one."""
    server.plans = [too_much, good, too_much, good]
    assert [ask(server, kept) for _ in range(4)] == [1] * 4


def test_bytes_that_came_meanwhile_end_a_connection() -> None:
    """A connection on which something waits is closed and not given out."""
    ours, theirs = socket.socketpair()
    kept = Kept()
    kept.give(ours)
    theirs.sendall(b"HTTP/1.1 200 OK\r\n")
    assert kept.take() is None
    assert ours.fileno() == -1
    theirs.close()


def test_bytes_that_tls_holds_end_a_connection() -> None:
    """What came in one TLS record with an answer, and waits decrypted, ends a connection, too."""
    ours, theirs = (
        _secured(wire, server)
        for wire, server in zip(socket.socketpair(), (False, True), strict=True)
    )
    with ThreadPoolExecutor(1) as other:
        done = other.submit(theirs.do_handshake)
        ours.do_handshake()
        done.result()
    kept = Kept()
    theirs.sendall(b"the answer, and HTTP/1.1 200 OK")
    assert ours.recv(10) == b"the answer"
    kept.give(ours)
    assert kept.take() is None
    theirs.close()


def _secured(wire: socket.socket, server: bool) -> ssl.SSLSocket:
    """Return one end of a connection with TLS, of a suite that needs no certificate."""
    context = ssl.SSLContext(
        ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT
    )
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aNULL:@SECLEVEL=0")
    return context.wrap_socket(wire, server_side=server, do_handshake_on_connect=False)


def test_threads_share_none(server: Server, kept: Kept) -> None:
    """Requests at the same time have a connection each, of which one is kept."""
    meet = threading.Barrier(3)

    def together(handler: Handler) -> None:
        meet.wait(30)
        handler.answer()

    server.plans = [together] * 3
    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(lambda _: ask(server, kept), range(3))) == [1] * 3
    assert sorted(server.requests) == [1, 2, 3]
    for _ in range(2):
        assert server.ended.acquire(timeout=30)
    ask(server, kept)
    assert server.connections == 3


def test_a_child_after_a_fork_opens_its_own(server: Server, kept: Kept) -> None:
    """A child does not write into its parent's connection, which the parent uses on."""
    ask(server, kept)
    child = os.fork()
    if not child:
        # A child that waits ends by the signal.
        signal.alarm(20)
        os._exit(0 if ask(server, kept) == 1 else 1)
    assert os.waitpid(child, 0)[1] == 0
    ask(server, kept)
    assert server.requests == [1, 2, 1]
