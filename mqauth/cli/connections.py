"""Connections of a server on uvicorn: who lets it wait makes room for others.

Uvicorn serves so many connections and answers 503 on all others. It counts those on which nobody has asked
anything, and gives them no end. So whoever reaches the port could shut everybody out with a few hundred silent
connections. Here the connection that waits longest for its client goes, as soon as there is no room for another.
"""

from __future__ import annotations

import asyncio
from operator import attrgetter
from typing import Any, Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HANDSHAKE_SECONDS: Final = 5.0
"""Seconds in which a client has to end its TLS handshake; until then its connection is not counted."""
LOOP: Final = f"{__name__}:HandshakeLoop"
"""The loop, as uvicorn is told of it."""
_CLIENTS_TURN: Final = (h11.IDLE, h11.SEND_BODY)


class HandshakeLoop(asyncio.SelectorEventLoop):
    """An event loop whose servers wait for a TLS handshake no longer than ``HANDSHAKE_SECONDS``."""

    async def create_server(self, *args: Any, ssl: Any = None, **settings: Any) -> asyncio.Server:
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
            waiting = [one for one in self.connections if one is not self and _waits(one)]
            if waiting:
                _close(min(waiting, key=attrgetter("begun")))
            else:
                # All are busy: this one is answered 503.
                self.limit_concurrency = 0


def _waits(connection: Any) -> bool:
    """Tell whether the client of a connection has not asked yet, asks slowly, or does not read its answer."""
    return connection.conn.their_state in _CLIENTS_TURN or connection.transport.get_write_buffer_size() > 0


def _close(connection: Any) -> None:
    """Close a connection now; what is not sent is lost."""
    connection.connections.discard(connection)
    connection.transport.abort()
