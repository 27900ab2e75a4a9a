"""A proxy on loopback, between a client and a server that speak HTTP with one request a connection.

It passes on what both say, until a test gives it another answer.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Self
from urllib.parse import urlsplit

from integration.services.machine import LOOPBACK, Port

Answer = Callable[[bytes, Callable[[bytes], bytes]], bytes | None]
"""Makes an answer of a request and of what asks the server; ``None`` to say nothing until the client has gone."""
_PATIENCE: Final = 30.0


def honest(request: bytes, server: Callable[[bytes], bytes]) -> bytes:
    """Return what the server answers."""
    return server(request)


class Proxy:
    """A proxy in threads of this process; a context manager.

    Args:
        server: URL of the server, http.
        context: TLS settings, to be asked by https.

    Attributes:
        answer: makes each answer; a test may set another one at any time.
        url: where the proxy listens.
        requests: how many came.
    """

    def __init__(self, server: str, context: ssl.SSLContext | None = None) -> None:
        parts = urlsplit(server)
        self._server = (parts.hostname or LOOPBACK, parts.port or 80)
        self._port = Port()
        self._listener = socket.create_server((LOOPBACK, self._port.number))
        self._context = context
        self.url = f"{'https' if context else 'http'}://{LOOPBACK}:{self._port.number}"
        self.answer: Answer = honest
        self.requests = 0
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._port.release()

    def _run(self) -> None:
        with suppress(OSError):
            while True:
                wire, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(wire,), daemon=True).start()

    def _serve(self, wire: socket.socket) -> None:
        wire.settimeout(_PATIENCE)
        with wire, suppress(OSError):
            if self._context is None:
                self._answer(wire)
            else:
                with self._context.wrap_socket(wire, server_side=True) as secure:
                    self._answer(secure)

    def _answer(self, wire: socket.socket) -> None:
        request = _whole(wire)
        self.requests += 1
        answer = self.answer(request, self._ask)
        if answer is None:
            wire.recv(1)
        else:
            wire.sendall(answer)

    def _ask(self, request: bytes) -> bytes:
        with socket.create_connection(self._server, timeout=_PATIENCE) as wire:
            # So the server ends the connection behind its answer, and tells the client so.
            line, _, rest = request.partition(b"\r\n")
            rest = rest.replace(b"Connection: keep-alive\r\n", b"", 1)
            wire.sendall(line + b"\r\nConnection: close\r\n" + rest)
            answer = b""
            while chunk := wire.recv(65_536):
                answer += chunk
        return answer


def _whole(wire: socket.socket) -> bytes:
    """Return a request, head and body."""
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += _more(wire)
    head, _, body = raw.partition(b"\r\n\r\n")
    sizes = [line.split(b":")[1] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < int((sizes or [b"0"])[0]):
        body += _more(wire)
    return head + b"\r\n\r\n" + body


def _more(wire: socket.socket) -> bytes:
    chunk = wire.recv(65_536)
    if not chunk:
        raise ConnectionResetError
    return chunk
