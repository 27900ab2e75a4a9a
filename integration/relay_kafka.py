"""A TCP relay before one Kafka broker that no client gets around.

A Kafka client goes where the broker's metadata send it: the relay writes its own port in place of the broker's.
So a test can let the wire stand still without a word to either side, and lose nothing of what is on it.
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress

HOST = b"127.0.0.1"


class Relay:
    """Relays to one broker until it is closed.

    Args:
        server: its ``127.0.0.1:port``.

    Attributes:
        swaps: bytes to write in place of others, of the same length, in what the broker sends.
    """

    def __init__(self, server: str) -> None:
        self._port = int(server.rpartition(":")[2])
        self._listener = socket.create_server((HOST.decode(), 0))
        self._mine = self._listener.getsockname()[1]
        self.server = f"{HOST.decode()}:{self._mine}"
        self._flows = threading.Event()
        self._flows.set()
        self._sockets: list[socket.socket] = []
        self.swaps: dict[bytes, bytes] = {}
        threading.Thread(target=self._accept, daemon=True).start()

    def stand_still(self) -> None:
        """Pass nothing on, either way."""
        self._flows.clear()

    def go_on(self) -> None:
        """Pass on what came meanwhile, and what comes."""
        self._flows.set()

    def close(self) -> None:
        """Break every connection, and take no more."""
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._flows.set()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                broker = socket.create_connection((HOST.decode(), self._port))
                self._sockets += [client, broker]
                ours, theirs = (HOST + struct.pack(">i", port) for port in (self._mine, self._port))
                threading.Thread(target=self._pump, args=(client, broker, b"", b""), daemon=True).start()
                threading.Thread(target=self._pump, args=(broker, client, theirs, ours), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, theirs: bytes, ours: bytes) -> None:
        """Pass on what comes; a port that is cut in two by the end of what came waits for its rest."""
        kept = b""
        with suppress(OSError):
            while found := source.recv(65536):
                text = kept + found
                for old, new in ({theirs: ours} | self.swaps if theirs else {}).items():
                    text = text.replace(old, new)
                cut = next((size for size in range(len(theirs) - 1, 0, -1) if text.endswith(theirs[:size])), 0)
                kept = text[len(text) - cut :]
                self._flows.wait()
                target.sendall(text[: len(text) - cut])
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
