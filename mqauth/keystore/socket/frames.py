"""Frames between a signing process and its clients: four bytes of length, then strict JSON; all bounded."""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import Any, Final

from mqauth.clock import Clock
from mqauth.errors import MqauthError
from mqauth.wire import strict_json as strictjson

MAX_DATA: Final = 32 * 1024
"""Bytes a key signs at once; tokens have at most 8 KiB."""
MAX_FRAME: Final = 64 * 1024
_DEPTH: Final = 3
_HEAD: Final = struct.Struct(">I")
_CREDENTIALS: Final = struct.Struct("iII")


class FrameError(MqauthError):
    """The other end is gone, too slow, or says what is no frame."""

    code = "wire"


class FrameSocket:
    """One connection, read and written in whole frames.

    Args:
        connection: a connected stream socket; closed with the wire.
        clock: counts the seconds.
    """

    def __init__(self, connection: socket.socket, clock: Clock) -> None:
        self._socket = connection
        self._clock = clock

    def send(self, members: dict[str, Any], seconds: float) -> None:
        """Send one frame within so many seconds.

        Raises:
            FrameError: it could not be sent.
        """
        raw = strictjson.dumps(members)
        if len(raw) > MAX_FRAME:
            raise FrameError("a frame is too large")
        try:
            self._socket.settimeout(seconds)
            self._socket.sendall(_HEAD.pack(len(raw)) + raw)
        except OSError as error:
            raise FrameError(f"not sent: {_named(error)}") from error

    def receive(self, seconds: float, *, idle: float | None = None) -> dict[str, Any]:
        """Return the next frame.

        Args:
            seconds: it may take, from its first byte where ``idle`` is given.
            idle: seconds until its first byte.

        Raises:
            FrameError: it did not come, or is none.
        """
        start = b"" if idle is None else self._some(1, self._clock.monotonic() + idle)
        deadline = self._clock.monotonic() + seconds
        (size,) = _HEAD.unpack(self._exactly(_HEAD.size, deadline, start))
        if size > MAX_FRAME:
            raise FrameError("a frame is too large")
        try:
            members = strictjson.loads(self._exactly(size, deadline), depth=_DEPTH)
        except strictjson.StrictJSONError as error:
            raise FrameError("a frame is no JSON") from error
        if not isinstance(members, dict):
            raise FrameError("a frame is no JSON object")
        return members

    def hang_up(self) -> None:
        """Break the connection off, and wake whoever reads it; that one closes it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def _exactly(self, size: int, deadline: float, start: bytes = b"") -> bytes:
        """Return so many bytes."""
        raw = bytearray(start)
        while len(raw) < size:
            raw += self._some(size - len(raw), deadline)
        return bytes(raw)

    def _some(self, most: int, deadline: float) -> bytes:
        """Return at least one byte, and at most so many."""
        left = deadline - self._clock.monotonic()
        if left <= 0:
            raise FrameError("too slow")
        try:
            self._socket.settimeout(left)
            raw = self._socket.recv(most)
        except OSError as error:
            raise FrameError(f"not received: {_named(error)}") from error
        if not raw:
            raise FrameError("the connection was closed")
        return raw


def peer_user(connection: socket.socket) -> int | None:
    """Return the user id of the process at the other end as the kernel knows it, ``None`` where it does not say.

    Linux gives the credentials of who connected or listened (``SO_PEERCRED``, unix(7)).
    """
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return None
    _, user, _ = _CREDENTIALS.unpack(connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size))
    return int(user)


def _named(error: OSError) -> str:
    """Return what went wrong in words."""
    return error.strerror or type(error).__name__
