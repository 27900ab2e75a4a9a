"""TLS in front of a real server: it may ask clients for a certificate, and passes on what they say.

A Kafka names its own port in its metadata; clients would go there, past the tunnel. So on the way back these
four bytes are replaced by those of the tunnel's port.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Final, Self

from mqauth.testing.loop_thread import LoopThread

_CHUNK: Final = 65_536
_TURNS: Final = 10


class Tunnel:
    """A TLS listener of 127.0.0.1; a context manager.

    Args:
        port: of the server, on this machine.
        certificate: PEM files of the listener's certificate and key.
        clients: PEM file of whom a client's certificate must be from, where one is asked for.
        advertised: whether the server names its port to its clients.
    """

    def __init__(
        self, port: int, certificate: tuple[Path, Path], clients: Path | None = None, *, advertised: bool = False
    ) -> None:  # fmt: skip
        self._broker = port
        self._advertised = advertised
        self._context = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH, cafile=clients
        )
        self._context.load_cert_chain(*certificate)
        if clients is not None:
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._thread = LoopThread()
        self.port = 0

    def __enter__(self) -> Self:
        self._server = self._thread.call(
            asyncio.start_server(self._accept, "127.0.0.1", 0)
        )
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.call(self._end())
        self._thread.close()

    async def _end(self) -> None:
        """Listen no more, and let go of what is still being passed on."""
        # A closed server takes no transport any more (Python 3.11 asserts it), and nobody would close the socket
        # of a connection that was just accepted: so it accepts no more first, and is closed after that.
        for listening in self._server.sockets:
            self._thread.loop.remove_reader(listening.fileno())
        await self._turns()
        self._server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        # An aborted connection closes its socket some turns of the loop later.
        await self._turns()

    @staticmethod
    async def _turns() -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Shake hands, and pass the bytes on; whatever happens, the connection is closed."""
        with contextlib.suppress(OSError):
            try:
                await writer.start_tls(self._context)
                await self._pass_on(reader, writer)
            finally:
                writer.transport.abort()

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Pass one connection's bytes on, both ways, until either side ends it."""
        inner_reader, inner_writer = await asyncio.open_connection(
            "127.0.0.1", self._broker
        )
        ours, theirs = (port.to_bytes(4, "big") for port in (self.port, self._broker))
        back = (theirs, ours) if self._advertised else (b"", b"")
        ways = [self._way(reader, inner_writer), self._way(inner_reader, writer, *back)]
        tasks = [asyncio.create_task(way) for way in ways]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            inner_writer.transport.abort()

    @staticmethod
    async def _way(
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        old: bytes = b"",
        new: bytes = b"",
    ) -> None:
        """Pass bytes on one way."""
        with contextlib.suppress(OSError):
            while data := await reader.read(_CHUNK):
                writer.write(data.replace(old, new) if old else data)
                await writer.drain()
