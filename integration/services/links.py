"""Wires between the nodes of a cluster, and mirrors of topics and queues."""

from __future__ import annotations

import os
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import combinations
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Final

from integration.services.kafka import LOG4J, LOGGING, Kafka, jars_of, java_words
from integration.services.local import LocalServer
from integration.services.machine import LOOPBACK, Port

_POM = Path(__file__).resolve().parents[1] / "pom-mirror.xml"
PREFIX = "eu"
"""Name of the source; a mirrored topic is ``eu.TOPIC``."""
_SETTINGS = """\
clusters = {source}, here
{source}.bootstrap.servers = {servers}
here.bootstrap.servers = {servers}
{source}->here.enabled = true
{source}->here.topics = {topic}
here->{source}.enabled = false
replication.factor = 1
offset-syncs.topic.replication.factor = 1
heartbeats.topic.replication.factor = 1
checkpoints.topic.replication.factor = 1
offset.storage.replication.factor = 1
status.storage.replication.factor = 1
config.storage.replication.factor = 1
emit.heartbeats.enabled = false
emit.checkpoints.enabled = false
sync.topic.acls.enabled = false
sync.group.offsets.enabled = false
refresh.topics.interval.seconds = 1
tasks.max = 1
"""


@contextmanager
def mirroring(kafka: Kafka, topic: str) -> Iterator[LocalServer]:
    """Mirror a topic to ``eu.TOPIC`` while the block runs; it takes half a minute until the first record is there.

    Args:
        kafka: both clusters.
        topic: its name, exact.
    """
    folder = Path(tempfile.mkdtemp(prefix="mqauth-mirror-"))
    name = topic.replace(".", "\\\\.")
    (folder / "mm2.properties").write_text(
        _SETTINGS.format(source=PREFIX, servers=kafka.bootstrap, topic=name)
    )
    (folder / LOG4J).write_text(LOGGING)
    words = [
        *java_words(folder, jars_of(_POM)),
        "org.apache.kafka.connect.mirror.MirrorMaker",
    ]
    server = LocalServer(
        origin="Maven Central", commands=[[*words, str(folder / "mm2.properties")]], env=os.environ, folder=folder,
        ports=[],
    )  # fmt: skip
    server.start()
    try:
        yield server
    finally:
        server.close()


_ALIVE: Final = 120
_PORT_PLEASE: Final = 122
_NAMES: Final = 110
_ALIVE_ANSWER: Final = 118
_PORT_ANSWER: Final = 119
_NOT_FOUND: Final = 1
_HIDDEN, _TCP, _HIGHEST, _LOWEST = 72, 0, 6, 5
_BUFFER: Final = 65_536


class _Server(ThreadingTCPServer):
    """Serves each connection to a loopback port in a thread."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 32

    def __init__(self, handler: type[BaseRequestHandler]) -> None:
        super().__init__((LOOPBACK, 0), handler)
        self.port: int = self.server_address[1]
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Accept no more."""
        self.shutdown()
        self.server_close()


class Link:
    """What runs between two nodes; open, or cut."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()

    def pump(self, source: socket.socket, target: socket.socket) -> None:
        """Forward one direction until it ends, while the link is open."""
        with suppress(OSError):
            while data := source.recv(_BUFFER):
                self.open.wait()
                target.sendall(data)
            self.open.wait()
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def carry(self, source: socket.socket, port: int) -> None:
        """Connect to a port once the link is open, and forward both directions."""
        self.open.wait()
        with suppress(OSError), socket.create_connection((LOOPBACK, port)) as target:
            back = threading.Thread(target=self.pump, args=(target, source), daemon=True)
            back.start()
            self.pump(source, target)
            back.join()


def _relay(link: Link, port: int) -> _Server:
    """Return a server that forwards to a port over a link."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            link.carry(self.request, port)

    return _Server(Handler)


class _PortMapper:
    """An epmd that one node asks: it knows the node itself, and the others by their relays.

    Args:
        ports: of the node and of the relays.
        alive: what has registered with any mapper of the cluster: nodes, and tools that nodes answer to.
    """

    def __init__(self, ports: dict[str, int], alive: dict[str, int]) -> None:
        self._ports = ports
        self._alive = alive

    def answer(self, request: bytes, connection: socket.socket) -> None:
        """Answer a request; a node that registers is known for as long as its connection is open."""
        kind = request[0]
        if kind == _ALIVE:
            self._register(request, connection)
        elif kind == _PORT_PLEASE:
            connection.sendall(self._port_of(request[1:].decode()))
        elif kind == _NAMES:
            lines = "".join(
                f"name {name} at port {port}\n" for name, port in self._alive.items()
            )
            own = connection.getsockname()[1]
            connection.sendall(struct.pack(">I", own) + lines.encode())

    def _register(self, request: bytes, connection: socket.socket) -> None:
        port, size = (
            struct.unpack_from(">H", request, 1)[0],
            struct.unpack_from(">H", request, 9)[0],
        )
        name = request[11 : 11 + size].decode()
        self._alive[name] = port
        connection.sendall(struct.pack(">BBI", _ALIVE_ANSWER, 0, 1))
        while connection.recv(_BUFFER):
            pass
        self._alive.pop(name, None)

    def _port_of(self, name: str) -> bytes:
        port = self._ports.get(name) or self._alive.get(name)
        if port is None:
            return bytes((_PORT_ANSWER, _NOT_FOUND))
        raw = name.encode()
        fixed = struct.pack(
            ">BBHBBHHH",
            _PORT_ANSWER,
            0,
            port,
            _HIDDEN + 5,
            _TCP,
            _HIGHEST,
            _LOWEST,
            len(raw),
        )
        return fixed + raw + struct.pack(">H", 0)


def _epmd(ports: dict[str, int], alive: dict[str, int]) -> _Server:
    mapper = _PortMapper(ports, alive)

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                (size,) = struct.unpack(">H", self.request.recv(2, socket.MSG_WAITALL))
                mapper.answer(self.request.recv(size, socket.MSG_WAITALL), self.request)

    return _Server(Handler)


class Links:
    """The port mappers of some nodes, and the links between each two of them.

    Args:
        names: of the nodes, without their host.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.ports = {name: Port() for name in names}
        self._links = {frozenset(pair): Link() for pair in combinations(names, 2)}
        self._servers: list[_Server] = []
        self._alive: dict[str, int] = {}
        self.epmd = {name: self._mapper(name) for name in names}

    def _mapper(self, name: str) -> int:
        """Start a node's port mapper, and the relays it names; return its port."""
        known = {name: self.ports[name].number}
        for other in self.ports.keys() - {name}:
            between = _relay(
                self._links[frozenset((name, other))], self.ports[other].number
            )
            self._servers.append(between)
            known[other] = between.port
        mapper = _epmd(known, self._alive)
        self._servers.append(mapper)
        return mapper.port

    def cut(self, name: str) -> None:
        """Let nothing through between a node and the others; its clients reach it all the same."""
        for pair, link in self._links.items():
            if name in pair:
                link.open.clear()

    def heal(self) -> None:
        """Let everything through again, with what has waited."""
        for link in self._links.values():
            link.open.set()

    def close(self) -> None:
        """End the relays and port mappers."""
        self.heal()
        for server in self._servers:
            server.close()
