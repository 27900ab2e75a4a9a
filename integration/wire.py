"""A TCP relay between a client and a server, so that a test can cut the wire without a word to either."""

from __future__ import annotations

import asyncio
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class Wire:
    """Relays to the host and port of a URL while it is entered; ``url`` is the way through it.

    Args:
        url: of the real server.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._mute = asyncio.Event()
        self.url = url

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        place = self._parts.netloc.rpartition("@")
        self.url = urlunsplit(self._parts._replace(netloc=f"{place[0]}{place[1]}127.0.0.1:{port}"))
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening and cut what is connected."""
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection, both ways; new ones are taken."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()
        self._mute = asyncio.Event()

    def end(self, last: bytes) -> None:
        """Say something last on every connection, and end it in order; new ones are taken."""
        for writer in self._writers:
            writer.write(last)
            writer.close()
        self._writers.clear()
        self._mute = asyncio.Event()

    def mute(self) -> None:
        """Swallow what clients say from now on, on the connections there are; servers are still heard."""
        self._mute.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect a client to the server."""
        far_reader, far_writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        self._writers |= {writer, far_writer}
        for source, sink, mute in ((reader, far_writer, self._mute), (far_reader, writer, asyncio.Event())):
            task = asyncio.create_task(_relay(source, sink, mute))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


async def _relay(source: asyncio.StreamReader, sink: asyncio.StreamWriter, mute: asyncio.Event) -> None:
    """Copy one direction until it ends, or swallow it where it is muted."""
    try:
        while data := await source.read(65_536):
            if not mute.is_set():
                sink.write(data)
                await sink.drain()
    except OSError:
        pass
    finally:
        sink.close()
