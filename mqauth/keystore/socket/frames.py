"""The frames between a signing process and its clients: four bytes of length, then strict JSON, all bounded.

Whatever goes wrong with a frame is an ``OSError``: the other end is gone, is too slow, or sent something else.
The connection is of no use after it.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Any, Final

from mqauth.clock import Clock
from mqauth.wire import strict_json as strictjson

MAX_DATA: Final = 32 * 1024
"""Bytes that a key signs at once; a token has at most 8 KiB."""
MAX_FRAME: Final = 64 * 1024
_DEPTH: Final = 3
_HEAD: Final = struct.Struct(">I")
_CREDENTIALS: Final = struct.Struct("iII")


class FrameSocket:
    """A connection that is read and written in whole frames.

    Args:
        connection: a connected stream socket; ``close`` closes it, too.
        clock: counts the seconds.
    """

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        self._socket = connection
        self._clock = clock

    def send(self, members: dict[str, Any], seconds: float) -> None:
        """Send one frame within a number of seconds.

        Raises:
            OSError: it could not be sent.
        """
        raw = strictjson.dumps(members)
        if len(raw) > MAX_FRAME:
            raise ConnectionError(f"a frame of {len(raw)} bytes is over {MAX_FRAME}")
        self._socket.settimeout(seconds)
        self._socket.sendall(_HEAD.pack(len(raw)) + raw)

    def receive(self, seconds: float, *, idle: float | None = None) -> dict[str, Any]:
        """Return the next frame.

        Args:
            seconds: the time within which it must come; with ``idle``, counted from its first byte.
            idle: seconds to wait for its first byte.

        Raises:
            OSError: no frame came in time.
        """
        start = b"" if idle is None else self._read(1, self._clock.monotonic() + idle)
        # One deadline for the whole frame: a client that sends a byte now and then must not hold a thread.
        deadline = self._clock.monotonic() + seconds
        (size,) = _HEAD.unpack(self._read(_HEAD.size, deadline, start))
        if size > MAX_FRAME:
            raise ConnectionError(f"a frame of {size} bytes is over {MAX_FRAME}")
        try:
            members = strictjson.loads(self._read(size, deadline), depth=_DEPTH)
        except strictjson.StrictJSONError as error:
            raise ConnectionError("a frame is not JSON") from error
        if not isinstance(members, dict):
            raise ConnectionError("a frame is not a JSON object")
        return members

    def hang_up(self) -> None:
        """Break the connection off, which wakes the thread that reads from it; that thread closes it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _read(self, size: int, deadline: float, start: bytes = b"") -> bytes:
        raw = bytearray(start)
        while len(raw) < size:
            self._socket.settimeout(time_left(self._clock, deadline))
            chunk = self._socket.recv(size - len(raw))
            if not chunk:
                raise ConnectionError("the connection was closed")
            raw += chunk
        return bytes(raw)


def time_left(clock: Clock, deadline: float) -> float:
    """Return the seconds until a deadline, more than 0.

    Raises:
        TimeoutError: it has passed.
    """
    left = deadline - clock.monotonic()
    if left <= 0:
        raise TimeoutError("too slow")
    return left


def peer_user(connection: socket.socket) -> int | None:
    """Return the user id of the process at the other end, ``None`` on a system that does not tell.

    On Linux the kernel knows the credentials of the process that connected or listened (``SO_PEERCRED``,
    unix(7)).
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return int(user)
