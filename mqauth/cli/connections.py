"""Connections of a server on uvicorn: who lets it wait makes room for others.

Uvicorn serves so many connections and answers 503 on all others. It counts those on which nobody has asked
anything, and gives them no end. So whoever reaches the port could shut everybody out with a few hundred silent
connections. Here the connection that waits longest for its client goes, as soon as there is no room for another.
"""

from __future__ import annotations

import asyncio
from operator import attrgetter
from typing import Any, Final, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HANDSHAKE_SECONDS: Final = 5.0
"""Seconds in which a client has to end its TLS handshake; until then its connection is not counted."""
LOOP: Final = f"{__name__}:HandshakeLoop"
"""The loop, as uvicorn is told of it."""


class HandshakeLoop(asyncio.SelectorEventLoop):
    """An event loop whose servers wait for a TLS handshake no longer than ``HANDSHAKE_SECONDS``."""

    async def create_server(
        self, *args: Any, ssl: Any = None, **settings: Any
    ) -> asyncio.Server:
        """Return a server, as any event loop does."""
        if ssl is not None:
            settings["ssl_handshake_timeout"] = HANDSHAKE_SECONDS
        return await super().create_server(*args, ssl=ssl, **settings)


class Connection(H11Protocol):
    """A connection that makes room for a new one, if it has waited for its client longer than all others."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, and close another connection where there are more than may be."""
        super().connection_made(transport)
        self.begun, most = self.loop.time(), self.limit_concurrency or 0
        # Uvicorn also counts requests of connections that are gone; those of a closed one end in a moment.
        self.limit_concurrency = 2 * most
        if len(self.connections) > most:
            # Those whose client has not asked yet, asks slowly, or does not read its answer.
            others = (
                other for other in cast(set[Any], self.connections) if other is not self
            )
            waiting = [
                other
                for other in others
                if other.conn.their_state in (h11.IDLE, h11.SEND_BODY)
                or other.transport.get_write_buffer_size() > 0
            ]
            if waiting:
                # What is not sent is lost.
                oldest = min(waiting, key=attrgetter("begun"))
                self.connections.discard(oldest)
                oldest.transport.abort()
            else:
                # All are busy: this one is answered 503.
                self.limit_concurrency = 0
