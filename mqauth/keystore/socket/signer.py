"""A key that another process has: each token costs a signature over a Unix socket.

The process that runs ``server.SigningServer`` has the key, and the private half never enters the producer's
process. Whoever may connect can have anything signed. Therefore the socket has mode 0600, and each end checks
which user the kernel names for the other one. A KMS or an HSM fits behind a ``SigningKeySource`` in the same way.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, ConfigurationError, KeyChanged, Unavailable
from mqauth.keystore.disk.files import reason
from mqauth.keystore.socket.frames import MAX_DATA, FrameSocket, peer_user, time_left
from mqauth.wire import base64url
from mqauth.wire.claims import is_name
from mqauth.wire.keys import ALGORITHMS, MAX_KID

DEFAULT_TIMEOUT: Final = 2.0


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
    turns. A call blocks, in an event loop too: usually for a fraction of a millisecond, at most for ``timeout``.

    Args:
        path: the socket.
        timeout: seconds for a call, including the time to connect.
        users: ids of the users that the process may run as; by default our own user and root.
        clock: counts the seconds.

    Raises:
        ConfigurationError: the timeout is not above 0 and at most 60 s.
    """

    def __init__(
        self, path: str | Path, *, timeout: float = DEFAULT_TIMEOUT, users: Collection[int] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:  # fmt: skip
        if not 0 < timeout <= 60:
            raise ConfigurationError(f"timeout is above 0 and at most 60 seconds, not {timeout}")
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
        key = self._key
        return key if key is not None else self._described(self._call({}))

    def sign(self, kid: str, data: bytes) -> bytes:
        """Return the signature of the key with a kid over ``data``.

        Raises:
            KeyChanged: the process now signs with another key.
            Unavailable: ``keys_unavailable``: the process cannot be reached, is too slow, or has no key.
        """
        if len(data) > MAX_DATA:
            raise ConfigurationError(f"at most {MAX_DATA} bytes are signed, not {len(data)}")
        answer = self._call({"kid": kid, "data": base64url.encode(data).decode("ascii")})
        if self._described(answer).kid != kid or answer.get("error") == "key_changed":
            raise KeyChanged("the signing process has another key now")
        try:
            return base64url.decode(answer["signature"].encode("ascii"))
        except (KeyError, AttributeError, ValueError) as error:
            raise _unavailable("the signing process gave no signature") from error

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
        if not self._lock.acquire(timeout=self._timeout):
            raise _unavailable("others are waiting for the signing process")
        try:
            # An old connection may have broken since its last use; then a new one is worth a try.
            if self._frames is not None:
                with suppress(OSError):
                    return self._ask(request, deadline)
            return self._ask(request, deadline)
        except OSError as error:
            raise _unavailable(f"{self.path}: {reason(error)}") from error
        finally:
            self._lock.release()

    def _ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        self._number += 1
        # After any failure the connection is not used again: a late answer could be taken for another one.
        try:
            frames = self._frames = self._frames or self._connect(deadline)
            frames.send({"id": self._number, **request}, time_left(self._clock, deadline))
            answer = frames.receive(time_left(self._clock, deadline))
            if answer.get("id") != self._number:
                raise ConnectionError("an answer to something else")
        except BaseException:
            self._hang_up()
            raise
        return answer

    def _connect(self, deadline: float) -> FrameSocket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(time_left(self._clock, deadline))
            connection.connect(str(self.path))
            # Another user may have put a socket of his own under the path.
            user = peer_user(connection)
            if user is not None and user not in self._users:
                raise ConnectionError(f"user {user} listens there, who may not sign for us")
        except BaseException:
            connection.close()
            raise
        return FrameSocket(connection, self._clock)

    def _described(self, answer: dict[str, Any]) -> RemoteKey:
        """Return the key that an answer describes; the same object as before if it is the same key."""
        kid, algorithm, subjects = (answer.get(name) for name in ("kid", "algorithm", "subjects"))
        if not is_name(kid, 1, MAX_KID) or algorithm not in ALGORITHMS or not isinstance(subjects, list | None):
            self._key = None
            raise _unavailable("the signing process has no key that may sign now")
        known = self._key
        if known is None or known.kid != kid or known.algorithm != algorithm:
            names = None if subjects is None else frozenset(subjects)
            known = self._key = RemoteKey(self, str(kid), str(algorithm), names)
        return known

    def _hang_up(self) -> None:
        if self._frames is not None:
            self._frames.close()
        self._frames = None


def _unavailable(detail: str) -> Unavailable:
    return Unavailable(Cause.KEYS_UNAVAILABLE, detail)
