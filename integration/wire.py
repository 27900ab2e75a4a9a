"""A TCP relay between a client and a server, so that a test can cut the wire without a word to either.

Before several servers it is what a TCP load balancer is: a connection goes to the first that accepts it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class Wire:
    """Relays to the host and port of a URL while it is entered; ``url`` is the way through it.

    Args:
        url: of the real server.
        others: to be tried in turn where it takes no connection.
    """

    def __init__(self, url: str, *others: str) -> None:
        self._parts = urlsplit(url)
        self._places = [
            (each.hostname, each.port) for each in map(urlsplit, (url, *others))
        ]
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._mute = asyncio.Event()
        self._far: set[asyncio.StreamWriter] = set()
        self._underway: dict[asyncio.StreamWriter, bytes] | None = None
        self.url = url

    async def __aenter__(self) -> Self:
        """Listen on a free port."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        place = self._parts.netloc.rpartition("@")
        self.url = urlunsplit(
            self._parts._replace(netloc=f"{place[0]}{place[1]}127.0.0.1:{port}")
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening and cut what is connected."""
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def lead_to(self, url: str) -> None:
        """Relay new connections to another server."""
        place = urlsplit(url)
        self._places = [(place.hostname, place.port)]

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

    def slow(self) -> None:
        """Keep what servers say from now on underway."""
        self._underway = {}

    def lose_servers(self) -> None:
        """End every connection with a server; clients do not hear of it before what is underway arrives."""
        for writer in self._far:
            writer.close()
        self._far.clear()

    def arrive(self) -> None:
        """Deliver what is underway, and then the end of those connections."""
        underway, self._underway = self._underway or {}, None
        for writer, data in underway.items():
            writer.write(data)
            writer.close()

    def _down(self, sink: asyncio.StreamWriter, data: bytes) -> None:
        """Say something of a server's to a client, or keep it underway."""
        if self._underway is None:
            sink.write(data)
        else:
            self._underway[sink] = self._underway.get(sink, b"") + data

    def _up(self, sink: asyncio.StreamWriter, mute: asyncio.Event, data: bytes) -> None:
        """Say something of a client's to a server, or swallow it."""
        if not mute.is_set():
            sink.write(data)

    async def _accept(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Connect a client to the server."""
        far_reader, far_writer = await self._connect()
        self._writers |= {writer, far_writer}
        self._far.add(far_writer)
        up, down = partial(self._up, far_writer, self._mute), partial(self._down, writer)
        for source, sink, say in ((reader, far_writer, up), (far_reader, writer, down)):
            task = asyncio.create_task(self._relay(source, sink, say))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection to the first server that accepts one."""
        for host, port in self._places[:-1]:
            with suppress(OSError):
                return await asyncio.open_connection(host, port)
        host, port = self._places[-1]
        return await asyncio.open_connection(host, port)

    async def _relay(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        say: Callable[[bytes], None],
    ) -> None:
        """Copy one direction until it ends."""
        try:
            while data := await source.read(65_536):
                say(data)
                await sink.drain()
        except OSError:
            pass
        finally:
            if self._underway is None or sink not in self._underway:
                sink.close()
