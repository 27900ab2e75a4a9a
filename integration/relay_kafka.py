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
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def stand_still(self) -> None:
        """Pass nothing on, either way."""
        self._flows.clear()

    def go_on(self) -> None:
        """Pass on what came meanwhile, and what comes."""
        self._flows.set()

    def close(self) -> None:
        """Break every connection, and take no more."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        # Or it might accept for whoever is given the number of our descriptor next.
        self._accepting.join()
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
                threading.Thread(
                    target=self._pump, args=(client, broker), daemon=True
                ).start()
                threading.Thread(
                    target=self._pump_answers, args=(broker, client), daemon=True
                ).start()

    def _pump(self, client: socket.socket, broker: socket.socket) -> None:
        """Pass on what the client sends."""
        with suppress(OSError):
            while found := client.recv(65536):
                self._flows.wait()
                broker.sendall(found)
        _shut(client, broker)

    def _pump_answers(self, broker: socket.socket, client: socket.socket) -> None:
        """Pass on what the broker answers, one answer at a time, so that no port and no swap is cut in two."""
        ours, theirs = (
            HOST + struct.pack(">i", port) for port in (self._mine, self._port)
        )
        with suppress(OSError, EOFError):
            while True:
                size = _exactly(broker, 4)
                answer = _exactly(broker, int.from_bytes(size, "big"))
                for old, new in ({theirs: ours} | self.swaps).items():
                    answer = answer.replace(old, new)
                self._flows.wait()
                client.sendall(size + answer)
        _shut(client, broker)


def _exactly(source: socket.socket, size: int) -> bytes:
    """Read so many bytes."""
    found = bytearray()
    while len(found) < size:
        if not (more := source.recv(min(size - len(found), 65536))):
            raise EOFError
        found += more
    return bytes(found)


def _shut(*sockets: socket.socket) -> None:
    """End both ways of connections."""
    for each in sockets:
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
