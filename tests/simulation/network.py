"""A simulated network: TCP connections with latency, kernel buffers, resets, and packets that get lost unnoticed.

A connection has two ends. The client's is an asyncio transport whose received bytes stand in a kernel buffer until
its loop gets a turn; the server's is an object that is called as bytes arrive.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World

READ_SIZE: Final = 256 * 1024
"""Bytes that asyncio reads from a socket at once."""
_EOF: Final = b"eof"
_RESET: Final = b"reset"
_HIGH_WATER: Final = 64 * 1024
_KERNEL_BUFFER: Final = 64 * 1024


class Server(Protocol):
    """The server's end of a connection."""

    def received(self, data: bytes) -> None:
        """Take bytes of the client."""

    def lost(self) -> None:
        """The client is gone: it closed the connection, or it was reset."""


class Network:
    """Listening hosts, the connections between them, and their latency.

    Args:
        world: whose network it is.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._hosts: dict[str, Callable[[Connection], Server]] = {}
        self.connections: list[Connection] = []
        self.latency = (0.0002, 0.002)

    def listen(self, address: str, accept: Callable[[Connection], Server]) -> None:
        """Have connections to an address accepted."""
        self._hosts[address] = accept

    def refuse(self, address: str) -> None:
        """Have connections to an address refused."""
        self._hosts.pop(address, None)

    def delay(self) -> float:
        """Return how long one packet takes, seconds."""
        return self._world.pace.uniform(*self.latency)

    async def connect(
        self, process: Process, factory: Any, address: str
    ) -> tuple[Transport, Any]:
        """Return a client's transport and protocol, as ``loop.create_connection`` does."""
        await asyncio.sleep(self.delay() * 2)
        accept = self._hosts.get(address)
        if accept is None:
            raise ConnectionRefusedError(111, f"Connect call failed ({address})")
        connection = Connection(self._world, process)
        self.connections.append(connection)
        transport = Transport(connection, process, factory())
        connection.client = transport
        connection.server = accept(connection)
        return transport, transport.get_protocol()


class Connection:
    """One TCP connection.

    Args:
        world: where it is.
        process: the client.
    """

    def __init__(self, world: World, process: Process) -> None:
        self.world = world
        self.process = process
        self.client: Transport
        self.server: Server
        self.cut = False
        """Whether packets of both directions get lost without either end knowing."""
        self.server_reads = True
        self._unread: deque[bytes] = deque()
        self._up = self._down = 0.0
        self._held: list[Callable[[], None]] | None = None
        self.server_open = True
        self.client_open = True

    def stall(self, seconds: float) -> None:
        """Delay all packets by so many seconds."""
        if self._held is None:
            self._held = []
            self.world.agenda.after(seconds, self._flow)

    def break_off(self, kind: bytes = _RESET) -> None:
        """End the connection at both ends, as something between them would."""
        if self.server_open:
            self.server_open = False
            self.server.lost()
        self._to_client(kind)

    def end_of_stream(self) -> None:
        """End the connection in order: the client finds an end of file behind what it has not read."""
        self.break_off(_EOF)

    # the server's calls

    def send(self, data: bytes) -> None:
        """Send bytes to the client."""
        if self.server_open:
            self._to_client(data)

    def close(self) -> None:
        """Close the server's end, in order."""
        if self.server_open:
            self.server_open = False
            self._to_client(_EOF)

    def read_again(self) -> None:
        """Let the server read the bytes that it left in its kernel."""
        self.server_reads = True
        while self._unread and self.server_reads and self.server_open:
            self.server.received(self._unread.popleft())
        self.client.drained()

    @property
    def unread(self) -> int:
        """Bytes that the server has not read."""
        return sum(map(len, self._unread))

    # the client's calls

    def client_sends(self, data: bytes, at: float) -> None:
        """Send bytes, or the end of them, to the server."""
        arrives = self._up = max(self._up, at + self.world.network.delay())
        self._carry(arrives, lambda: self._at_server(data))

    def _to_client(self, data: bytes) -> None:
        """Send bytes, or the end of them, to the client."""
        arrives = self._down = max(
            self._down, self.world.agenda.now + self.world.network.delay()
        )
        self._carry(arrives, lambda: self.client.arrived(data))

    def _carry(self, arrives: float, arrival: Callable[[], None]) -> None:
        """Let a packet arrive, unless packets get lost."""
        if not self.cut:
            self.world.agenda.at(arrives, lambda: self._arrive(arrival))

    def _arrive(self, arrival: Callable[[], None]) -> None:
        """Let a packet arrive now, or when packets flow again."""
        if self._held is not None:
            self._held.append(arrival)
        elif not self.cut:
            arrival()

    def _flow(self) -> None:
        """Let the delayed packets arrive."""
        held, self._held = self._held or [], None
        for arrival in held:
            self._arrive(arrival)

    def _at_server(self, data: bytes) -> None:
        """Bytes have come to the server's kernel."""
        if data is _EOF or data is _RESET:
            self.client_open = False
            if self.server_open:
                self.server_open = False
                self.server.lost()
        elif not self.server_open:
            self._to_client(_RESET)
        elif self.server_reads:
            self.server.received(data)
        else:
            self._unread.append(data)


class Transport(asyncio.Transport):
    """The client's end: what asyncio's own socket transport does, without a socket.

    Args:
        connection: of which it is an end.
        process: whose end it is.
        protocol: told of what is read.
    """

    def __init__(self, connection: Connection, process: Process, protocol: Any) -> None:
        super().__init__({"peername": ("broker", 5672), "sockname": ("client", 1)})
        self._connection = connection
        self._process = process
        self._protocol = protocol
        self._kernel: deque[bytes] = deque()
        self._closing = self._reading_paused = self._writing_paused = self._ended = False
        process.loop._selector.sockets[self] = None
        process.loop.call_soon(protocol.connection_made, self)

    @property
    def readable(self) -> bool:
        """Whether the loop has something to read here."""
        return bool(self._kernel) and not self._reading_paused and not self._closing

    def arrived(self, data: bytes) -> None:
        """Bytes, or the end of them, have come to the kernel."""
        if not self._process.alive or self._ended:
            return
        self._kernel.append(data)
        if self.readable:
            self._process.poke(self._process.time())

    def read_ready(self) -> None:
        """Read once, as the loop does when the selector says so."""
        if not self.readable:
            return
        if (data := self._take()) is not None:
            self._protocol.data_received(data)
        elif self._kernel.popleft() is _EOF:
            if not self._protocol.eof_received():
                self.close()
        else:
            self._lose(ConnectionResetError(104, "Connection reset by peer"))

    def _take(self) -> bytes | None:
        """Return at most a read's bytes from the kernel, ``None`` where the end comes first."""
        taken: list[bytes] = []
        size = 0
        while self._kernel and size < READ_SIZE and self._kernel[0] not in (_EOF, _RESET):
            taken.append(self._kernel.popleft())
            size += len(taken[-1])
        return b"".join(taken) if taken else None

    def die(self) -> None:
        """The process died: its kernel closes the socket."""
        if not self._ended:
            self._ended = self._closing = True
            self._connection.client_sends(_EOF, self._connection.world.agenda.now)

    def drained(self) -> None:
        """Tell the protocol that it may write again."""
        if self._writing_paused and self.get_write_buffer_size() <= _HIGH_WATER // 4:
            self._writing_paused = False
            self._process.loop.call_soon(self._protocol.resume_writing)

    # asyncio's own interface

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes; what the server does not read piles up."""
        if self._ended or self._closing:
            return
        self._connection.client_sends(bytes(data), self._process.time())
        if not self._writing_paused and self.get_write_buffer_size() > _HIGH_WATER:
            self._writing_paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        """Return the bytes that the kernels between here and the server did not take."""
        return max(0, self._connection.unread - _KERNEL_BUFFER)

    def can_write_eof(self) -> bool:
        """Return ``True``: TCP can send an end of file."""
        return True

    def write_eof(self) -> None:
        """Send no more; the server takes it as the end, as RabbitMQ does."""
        self._send_end(_EOF)

    def close(self) -> None:
        """Send what there is, then close."""
        if not self._closing:
            self._send_end(_EOF)
            self._lose(None)

    def abort(self) -> None:
        """Close at once."""
        self._send_end(_RESET)
        self._lose(None)

    def is_closing(self) -> bool:
        """Tell whether it was closed."""
        return self._closing

    def pause_reading(self) -> None:
        """Leave what arrives in the kernel."""
        self._reading_paused = True

    def resume_reading(self) -> None:
        """Resume reading."""
        self._reading_paused = False

    def is_reading(self) -> bool:
        """Tell whether what arrives is read."""
        return not self._reading_paused and not self._closing

    def get_protocol(self) -> Any:
        """Return the protocol that receives the data."""
        return self._protocol

    def set_protocol(self, protocol: Any) -> None:
        """Replace the protocol that receives the data."""
        self._protocol = protocol

    def _send_end(self, kind: bytes) -> None:
        """Tell the server that nothing more comes, once."""
        if not self._ended:
            self._ended = True
            self._connection.client_sends(kind, self._process.time())

    def _lose(self, error: Exception | None) -> None:
        """Tell the protocol that the connection is over."""
        if self in self._process.loop._selector.sockets:
            self._closing = True
            del self._process.loop._selector.sockets[self]
            self._process.loop.call_soon(self._protocol.connection_lost, error)
