"""A producer's key in another process, the client: a signature for each token over a Unix socket.

``socketserver.SigningServer`` has the key; the producer's process never holds its private half. Whoever may
connect can have anything signed, so the socket has mode 0600 and each end checks whom the kernel says the
other is. A KMS or an HSM is put behind a ``SigningKeySource`` in the same way.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import Cause, ConfigurationError, KeyChanged, Unavailable
from mqauth.keystore.socket.frames import MAX_DATA, FrameError, FrameSocket, peer_user
from mqauth.wire import base64url
from mqauth.wire.claims import is_name
from mqauth.wire.keys import ALGORITHMS, MAX_KID

DEFAULT_TIMEOUT: Final = 2.0
_CHANGED: Final = "key_changed"


class RemoteKey:
    """The key of a signing process, as it was when it was told of: a ``SigningKey``.

    Args:
        signer: reaches the process.
        kid: the key id.
        algorithm: one of ``ALGORITHMS``.
        subjects: the producers it may speak for, where it says.
    """

    __slots__ = ("_signer", "algorithm", "kid", "subjects")

    def __init__(self, signer: SocketSigner, kid: str, algorithm: str, subjects: frozenset[str] | None) -> None:
        self._signer = signer
        self.kid = kid
        self.algorithm = algorithm
        self.subjects = subjects

    def __repr__(self) -> str:
        return f"RemoteKey({self.kid!r}, {self.algorithm})"

    def sign(self, data: bytes, /) -> bytes:
        """Return the signature over ``data``, at most 32 KiB.

        Raises:
            KeyChanged: the process signs with another key now.
            Unavailable: ``keys_unavailable``, it cannot be reached, is too slow, or has no key.
        """
        return self._signer.sign(self.kid, data)


class SocketSigner:
    """A signing process as a ``SigningKeySource``; nothing is connected before the first use.

    One connection, made again when it breaks, and by a child after a fork; threads take turns on it. A call
    blocks for a fraction of a millisecond, and at most for ``timeout``, event loops too.

    Args:
        path: the socket.
        timeout: seconds for a call, connecting included.
        users: ids of the users the process may run as; by default our own and root.
        clock: counts the seconds.

    Raises:
        ConfigurationError: the timeout is not above 0 and at most 60 s.
    """

    def __init__(
        self, path: str | Path, *, timeout: float = DEFAULT_TIMEOUT, users: Collection[int] | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:  # fmt: skip
        if not 0 < timeout <= 60:
            raise ConfigurationError("timeout is above 0 and at most 60 seconds")
        self.path = Path(path)
        self._timeout = timeout
        self._users = frozenset((os.geteuid(), 0) if users is None else users)
        self._clock = clock
        self._lock = threading.Lock()
        self._wire: FrameSocket | None = None
        self._process = os.getpid()
        self._number = 0
        self._key: RemoteKey | None = None

    def __repr__(self) -> str:
        return f"SocketSigner({str(self.path)!r})"

    def signing_key(self) -> RemoteKey:
        """Return the key the process last told of; asks for it where none was told.

        Raises:
            Unavailable: ``keys_unavailable``, it cannot be reached, is too slow, or has no key.
        """
        key = self._key
        return key if key is not None else self._learned(self._call({}))

    def sign(self, kid: str, data: bytes) -> bytes:
        """Return the signature of one key over ``data``.

        Raises:
            KeyChanged: the process signs with another key now.
            Unavailable: ``keys_unavailable``, it cannot be reached, is too slow, or has no key.
        """
        if len(data) > MAX_DATA:
            raise ConfigurationError(f"at most {MAX_DATA} bytes are signed")
        answer = self._call({"kid": kid, "data": base64url.encode(data).decode("ascii")})
        if self._learned(answer).kid != kid or answer.get("error") == _CHANGED:
            raise KeyChanged("the signing process has another key now")
        try:
            return base64url.decode(answer["signature"].encode("ascii"))
        except (KeyError, AttributeError, ValueError) as error:
            raise _unavailable("the signing process gave no signature") from error

    def close(self) -> None:
        """Close the connection; the next call makes another."""
        with self._lock:
            self._hang_up()

    def _call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Ask once, and once more on a new connection where the old one broke."""
        if self._process != os.getpid():  # the parent's connection, and perhaps a lock one of its threads held
            self._lock, self._process = threading.Lock(), os.getpid()
            self._hang_up()
        deadline = self._clock.monotonic() + self._timeout
        if not self._lock.acquire(timeout=self._timeout):
            raise _unavailable("others are waiting for the signing process")
        try:
            fresh = self._wire is None
            try:
                return self._ask(request, deadline)
            except FrameError:
                if fresh:
                    raise
                return self._ask(request, deadline)
        except (FrameError, OSError) as error:
            why = str(error) if isinstance(error, FrameError) else error.strerror or type(error).__name__
            raise _unavailable(f"{self.path}: {why}") from error
        finally:
            self._lock.release()

    def _ask(self, request: dict[str, Any], deadline: float) -> dict[str, Any]:
        """Send a request and return its answer; a connection that failed once is not used again."""
        self._number += 1
        try:
            wire = self._wire = self._wire or self._connect(deadline)
            wire.send({"id": self._number, **request}, self._left(deadline))
            answer = wire.receive(self._left(deadline))
            if answer.get("id") != self._number:
                raise FrameError("an answer to something else")
        except BaseException:
            self._hang_up()
            raise
        return answer

    def _connect(self, deadline: float) -> FrameSocket:
        """Connect, and check who listens."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self._left(deadline))
            connection.connect(str(self.path))
            user = peer_user(connection)
            if user is not None and user not in self._users:
                raise FrameError(f"user {user} listens there, who may not sign for us")
        except BaseException:
            connection.close()
            raise
        return FrameSocket(connection, self._clock)

    def _left(self, deadline: float) -> float:
        """Return the seconds left."""
        left = deadline - self._clock.monotonic()
        if left <= 0:
            raise FrameError("too slow")
        return left

    def _learned(self, answer: dict[str, Any]) -> RemoteKey:
        """Return the key an answer tells of; the one known before where it is the same."""
        kid, algorithm, subjects = (answer.get(name) for name in ("kid", "algorithm", "subjects"))
        known = self._key
        if not is_name(kid, 1, MAX_KID) or algorithm not in ALGORITHMS or not isinstance(subjects, list | None):
            self._key = None
            raise _unavailable("the signing process has no key that may sign now")
        if known is None or known.kid != kid or known.algorithm != algorithm:
            known = RemoteKey(self, str(kid), str(algorithm), None if subjects is None else frozenset(subjects))
            self._key = known
        return known

    def _hang_up(self) -> None:
        """Close the connection, if there is one."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.close()


def _unavailable(detail: str) -> Unavailable:
    """Return the error of a signing process out of reach."""
    return Unavailable(Cause.KEYS_UNAVAILABLE, detail)
