"""The process that has the key: signs over a Unix socket for whom the kernel says is allowed."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from mqauth.audit.disk import open_private
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import ConfigurationError, MqauthError
from mqauth.keystore.socket.frames import MAX_DATA, FrameError, FrameSocket, peer_user
from mqauth.wire import base64url
from mqauth.wire.keys import SigningKey, SigningKeySource

_OWNER: Final = 0o600
_GROUP: Final = 0o660
_TICK: Final = 0.2
_LOG: Final = logging.getLogger("mqauth.keystore")


class SigningServer:
    """Signs with the key of a source for the clients of a Unix socket; a context manager.

    Args:
        path: the socket; made with mode 0600, and a lock file beside it. What a crash left is replaced.
        source: whose key signs, ``mqauth.ActiveKey`` for example.
        users: ids of the users whose processes may connect; by default our own and root.
        group: id of a group that may connect too, mode 0660; its users are to be named in ``users``.
        timeout: seconds for reading or writing a frame.
        idle: seconds until a silent client is hung up on; it connects again.
        connections: most at once; further ones are hung up on.
        clock: counts the seconds.

    Raises:
        ConfigurationError: another process serves there, or the socket cannot be made.
    """

    def __init__(
        self, path: str | Path, source: SigningKeySource, *, users: Collection[int] | None = None,
        group: int | None = None, timeout: float = 2, idle: float = 300, connections: int = 64,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:  # fmt: skip
        self.path = Path(path)
        self._source = source
        self._users = frozenset((os.geteuid(), 0) if users is None else users)
        self._timeout = timeout
        self._idle = idle
        self._clock = clock
        self._free = threading.BoundedSemaphore(connections)
        self._stopping = threading.Event()
        self._open: set[FrameSocket] = set()
        self._lock = _locked(self.path)
        try:
            self._listener = _listen(self.path, group)
        except BaseException:
            os.close(self._lock)
            raise
        self._thread = threading.Thread(target=self.run, name="mqauth-signing", daemon=True)

    def __enter__(self) -> Self:
        """Serve in the background."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, hang up, and remove the socket."""
        self.stop()
        self._thread.join()
        self.close()

    def run(self) -> None:
        """Serve until ``stop`` is called."""
        self._listener.settimeout(_TICK)
        while not self._stopping.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError as error:  # no descriptors left, for example
                if self._stopping.is_set():
                    return
                _LOG.error("%s: %s", self.path, error.strerror or type(error).__name__)
                self._stopping.wait(_TICK)
                continue
            self._welcome(connection)

    def stop(self) -> None:
        """Let ``run`` end; may be called from a signal handler."""
        self._stopping.set()
        with suppress(OSError):  # wakes accept, where the system does that
            self._listener.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Hang up on everybody, remove the socket, and let another process serve."""
        self.stop()
        self._listener.close()
        for wire in list(self._open):
            wire.hang_up()
        with suppress(OSError):
            self.path.unlink()
        os.close(self._lock)

    def _welcome(self, connection: socket.socket) -> None:
        """Give a connection a thread, if its user may and there is room."""
        user = peer_user(connection)
        if user is not None and user not in self._users:
            _LOG.error("%s: user %d may not have anything signed", self.path, user)
        elif not self._free.acquire(blocking=False):
            _LOG.error("%s: too many clients at once", self.path)
        else:
            wire = FrameSocket(connection, self._clock)
            self._open.add(wire)
            threading.Thread(target=self._serve, args=(wire,), daemon=True).start()
            return
        connection.close()

    def _serve(self, wire: FrameSocket) -> None:
        """Answer one client until it goes."""
        try:
            while not self._stopping.is_set():
                request = wire.receive(self._timeout, idle=self._idle)
                wire.send(self._answer(request), self._timeout)
        except FrameError:
            pass  # it went, or does not speak our language
        finally:
            self._open.discard(wire)
            wire.close()
            self._free.release()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request; what goes wrong here is logged here, and the client hears only that it did."""
        answer: dict[str, Any] = {"id": request.get("id")}
        try:
            key = self._source.signing_key()
            answer |= _told(key)
            if "data" in request:
                answer |= _signed(key, request)
        except MqauthError as error:
            _LOG.error("%s: %s", self.path, error)
            answer["error"] = "no_key"
        except Exception:
            _LOG.exception("%s: signing broke", self.path)
            answer["error"] = "broken"
        return answer


def _told(key: SigningKey) -> dict[str, Any]:
    """Return what clients are told of a key with every answer."""
    subjects = getattr(key, "subjects", None)
    return {
        "kid": key.kid,
        "algorithm": key.algorithm,
        "subjects": None if subjects is None else sorted(subjects),
    }


def _signed(key: SigningKey, request: dict[str, Any]) -> dict[str, Any]:
    """Return the signature a request wants, if it is for this key."""
    if request.get("kid") != key.kid:
        return {"error": "key_changed"}
    try:
        data = base64url.decode(request["data"].encode("ascii"))
    except (AttributeError, ValueError):
        return {"error": "malformed"}
    if len(data) > MAX_DATA:
        return {"error": "malformed"}
    return {"signature": base64url.encode(key.sign(data)).decode("ascii")}


def _locked(path: Path) -> int:
    """Return the descriptor of a lock that no other process holds; it is left behind when we end."""
    try:
        lock = open_private(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_NOFOLLOW)
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or 'no lock file'}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigurationError(f"{path}: another process serves there") from error
    return lock


def _listen(path: Path, group: int | None) -> socket.socket:
    """Return a listening socket; nobody can connect before its mode is set."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.is_socket():
            path.unlink()
        listener.bind(str(path))
        if group is not None:
            os.chown(path, -1, group)
        path.chmod(_OWNER if group is None else _GROUP)
        listener.listen()
    except OSError as error:
        listener.close()
        raise ConfigurationError(f"{path}: {error.strerror or error}") from error
    return listener
