"""The server of commands that stay, and who lets it wait: silent connections, slow bodies, floods of log lines."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from mqauth.cli import connections
from mqauth.cli.serve import listen, log_lines
from tests.authority_world import World
from tests.test_authority_http import asked, fetch, serving

ROOM = 64
"""Connections of the server that ``serving`` starts, at most."""
SLOW = {
    "silent": b"",
    "half a head": b"POST /v1/identity HTTP/1.1\r\nHost: ",
    "half a body": b"POST /v1/identity HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{",
}


@pytest.mark.parametrize("begun", SLOW.values(), ids=SLOW)
def test_who_lets_the_server_wait_shuts_nobody_out(tmp_path: Path, begun: bytes) -> None:
    """As many slow connections as the server may have, and more: whoever asks is answered."""
    world = World(tmp_path)
    with ExitStack() as stack:
        listener = stack.enter_context(listen("127.0.0.1", 0, tls=False))
        stack.enter_context(serving(world, listener))
        port = listener.getsockname()[1]
        for _ in range(ROOM + 8):
            stack.enter_context(
                closing(socket.create_connection(("127.0.0.1", port)))
            ).sendall(begun)
        assert [fetch(port, "GET", "/healthz")[0], asked(world, port)[0]] == [200, 200]


def test_a_tls_handshake_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that never begins its handshake is closed by the loop's own bound, not after a minute."""
    monkeypatch.setattr(connections, "HANDSHAKE_SECONDS", 0.05)
    with asyncio.Runner(loop_factory=connections.HandshakeLoop) as runner:
        assert runner.run(_silent()) == b""


async def _silent() -> bytes:
    """Return what a server with TLS sends to a client that says nothing, until it closes."""
    server = await asyncio.get_running_loop().create_server(
        asyncio.Protocol, "127.0.0.1", 0, ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    )
    async with server, asyncio.timeout(20):
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        with closing(writer):
            return await reader.read()


def test_a_warning_of_uvicorn_is_not_written(capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever reaches the port cannot fill the log: uvicorn's warnings are left out, its errors are told."""
    uvicorn = logging.getLogger("uvicorn.error")
    with log_lines("text", "info"):
        uvicorn.warning("Invalid HTTP request received.")
        uvicorn.error("an error")
    assert [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "an error"
    ]
