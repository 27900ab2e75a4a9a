"""A key that another process has: each token costs a signature over a Unix socket.

The process that runs ``server.SigningServer`` has the key, and the private half never enters the producer's
process. Whoever may connect can have anything signed. Therefore the socket has mode 0600, and each end checks
which user the kernel names for the other one. A KMS or an HSM fits behind a ``SigningKeySource`` in the same way.

Both ends speak in frames: four bytes of length, then strict JSON, all bounded. Whatever goes wrong with a frame is
an ``OSError``: the other end is gone, is too slow, or sent something else. The connection is of no use after it.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

from mqauth.audit.disk import undone_on_error
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, KeyChanged, Unavailable, refusing, require, words_of
from mqauth.wire import base64url, claims, keys, strict_json

DEFAULT_TIMEOUT: Final = 2.0
MAX_DATA: Final = 32 * 1024
"""Bytes that a key signs at once; a token has at most 8 KiB."""
MAX_FRAME: Final = 64 * 1024
_DEPTH: Final = 3
_HEAD: Final = struct.Struct(">I")
_CREDENTIALS: Final = struct.Struct("iII")


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class RemoteKey:
    """The key of a signing process, as the process last described it: a ``SigningKey``.

    Args:
        signer: reaches the process.
        kid: the key id.
        algorithm: one of ``ALGORITHMS``.
        subjects: the producers it may speak for, ``None`` where it does not say.
    """

    signer: SocketSigner
    kid: str
    algorithm: str
    subjects: frozenset[str] | None

    def __repr__(self) -> str:
        return f"RemoteKey({self.kid!r}, {self.algorithm})"

    def sign(self, data: bytes, /) -> bytes:
        """Return the signature over ``data``, which is at most 32 KiB.

        Raises:
            KeyChanged: the process now signs with another key.
            Unavailable: ``keys_unavailable``: the process cannot be reached, is too slow, or has no key.
        """
        return self.signer.sign(self.kid, data)


class SocketSigner:
    """A signing process as a ``SigningKeySource``; it connects when it is first used.

    It has one connection, makes it again when it breaks, and makes its own in a child after a fork; threads take
    turns. A call blocks, usually for a fraction of a millisecond, at most for ``timeout``; producers on an event
    loop have it made on a thread.

    Args:
        path: the socket.
        timeout: seconds for a call, including the time to connect.
        users: ids of the users that the process may run as; by default our own user and root.
        clock: counts the seconds.

    Raises:
        ConfigurationError: the timeout is not above 0 and at most 60 s.
    """

    blocking: ClassVar[bool] = True

    def __init__(
        self, path: str | Path, *, timeout: float = DEFAULT_TIMEOUT, users: Collection[int] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:  # fmt: skip
        require(0 < timeout <= 60, f"timeout is above 0 and at most 60 seconds, not {timeout}")
        self.path = Path(path)
        self._timeout = timeout
        self._users = frozenset((os.geteuid(), 0) if users is None else users)
        self._clock = clock
        self._lock = threading.Lock()
        self._frames: FrameSocket | None = None
        self._process = os.getpid()
        self._number = 0
        self._key: RemoteKey | None = None

    def __repr__(self) -> str:
        return f"SocketSigner({str(self.path)!r})"

    def signing_key(self) -> RemoteKey:
        """Return the key that the process last described, and ask for it if that is not known.

        Raises:
            Unavailable: ``keys_unavailable``: the process cannot be reached, is too slow, or has no key.
        """
        return self._key or self._described(self._call({}))

    def sign(self, kid: str, data: bytes) -> bytes:
        """Return the signature of the key with a kid over ``data``.

        Raises:
            KeyChanged: the process now signs with another key.
            Unavailable: ``keys_unavailable``: the process cannot be reached, is too slow, or has no key.
        """
        require(len(data) <= MAX_DATA, f"at most {MAX_DATA} bytes are signed, not {len(data)}")
        answer = self._call({"kid": kid, "data": base64url.encode(data).decode("ascii")})
        require(
            self._described(answer).kid == kid and answer.get("error") != "key_changed",
            "the signing process has another key now",
            KeyChanged,
        )
        with refusing(
            (KeyError, AttributeError, ValueError), "the signing process gave no signature", _unavailable
        ):
            return base64url.decode(answer["signature"].encode("ascii"))

    def close(self) -> None:
        """Close the connection; the next call makes a new one."""
        with self._lock:
            self._hang_up()

    def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request."""
        # After a fork the connection is the parent's, and a thread of the parent may have held the lock.
        if self._process != os.getpid():
            self._lock, self._process = threading.Lock(), os.getpid()
            self._hang_up()
        deadline = self._clock.monotonic() + self._timeout
        require(
            self._lock.acquire(timeout=self._timeout), "others are waiting for the signing process", _unavailable
        )
        try:
            # An old connection may have broken since its last use; then a new one is worth a try.
            if self._frames is not None:
                with suppress(OSError):
                    return self._ask(request, deadline)
            return self._ask(request, deadline)
        except OSError as error:
            raise _unavailable(f"{self.path}: {words_of(error)}") from error
        finally:
            self._lock.release()

    def _ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        self._number += 1
        # After any failure the connection is not used again: a late answer could be taken for another one.
        with undone_on_error(self._hang_up):
            frames = self._frames = self._frames or self._connect(deadline)
            frames.send({"id": self._number, **request}, time_left(self._clock, deadline))
            answer = frames.receive(time_left(self._clock, deadline))
            require(answer.get("id") == self._number, "an answer to something else", ConnectionError)
        return answer

    def _connect(self, deadline: float) -> FrameSocket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with undone_on_error(connection.close):
            connection.settimeout(time_left(self._clock, deadline))
            connection.connect(str(self.path))
            # Another user may have put a socket of his own under the path.
            user = peer_user(connection)
            require(
                user is None or user in self._users,
                f"user {user} listens there, who may not sign for us",
                ConnectionError,
            )
        return FrameSocket(connection, self._clock)

    def _described(self, answer: dict[str, Any]) -> RemoteKey:
        """Return the key that an answer describes; the same object as before if it is the same key."""
        kid, algorithm, subjects = (answer.get(name) for name in ("kid", "algorithm", "subjects"))
        if (
            not claims.is_name(kid, 1, keys.MAX_KID)
            or algorithm not in keys.ALGORITHMS
            or not isinstance(subjects, list | None)
        ):
            self._key = None
            raise _unavailable("the signing process has no key that may sign now")
        known = self._key
        if known is None or known.kid != kid or known.algorithm != algorithm:
            known = self._key = RemoteKey(
                self, str(kid), str(algorithm), None if subjects is None else frozenset(subjects)
            )
        return known

    def _hang_up(self) -> None:
        if self._frames is not None:
            self._frames.close()
        self._frames = None


def _unavailable(detail: str) -> Unavailable:
    return Unavailable(Cause.KEYS_UNAVAILABLE, detail)


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
        raw = strict_json.dumps(members)
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
        with refusing(strict_json.StrictJSONError, "a frame is not JSON", ConnectionError):
            members: dict[str, Any] = strict_json.loads(self._read(size, deadline), depth=_DEPTH)
        require(isinstance(members, dict), "a frame is not a JSON object", ConnectionError)
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
            require(chunk, "the connection was closed", ConnectionError)
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
