"""The process that has the key, and signs over a Unix socket for the users who may connect."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
from collections.abc import Collection
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self

from mqauth.audit.disk import open_private, undone_on_error
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import MqauthError, file_errors, refusing, words_of
from mqauth.keystore.socket.signer import MAX_DATA, FrameSocket, peer_user
from mqauth.logs import emit
from mqauth.wire import base64url, keys

_TICK: Final = 0.2


class SigningServer:
    """Signs with the key of a source, for the clients of a Unix socket; a context manager.

    Args:
        path: the socket. It is made with mode 0600, beside a lock file, and replaces one that a crash has left.
        source: the source of the key, ``mqauth.ActiveKey`` for example.
        users: ids of the users whose processes may connect; by default our own user and root.
        group: id of a group that may connect, too; the mode is 0660 then. Its users must stand in ``users``.
        timeout: seconds for reading or writing a frame.
        idle: seconds after which a silent client is disconnected; it connects again when it needs to.
        connections: the most connections at once; further ones are closed.
        clock: counts the seconds.

    Raises:
        ConfigurationError: another process serves the path, or the socket cannot be made.
    """

    def __init__(
        self, path: str | Path, source: keys.SigningKeySource, *, users: Collection[int] | None = None,
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
        self._lock = _lock(self.path)
        with undone_on_error(os.close, self._lock):
            self._listener = _listen(self.path, group)
        self._thread = threading.Thread(target=self.run, name="mqauth-signing", daemon=True)

    def __enter__(self) -> Self:
        """Serve in the background."""
        self._thread.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Stop, disconnect the clients, and remove the socket."""
        self.stop()
        self._thread.join()
        self.close()

    def run(self) -> None:
        """Serve until ``stop`` is called."""
        # Not every system wakes accept when the listener is shut down, hence the timeout.
        self._listener.settimeout(_TICK)
        while not self._stopping.is_set():
            try:
                self._accept(self._listener.accept()[0])
            # The process may be out of descriptors until some client goes, or a client may be gone already.
            except OSError as error:
                if not isinstance(error, TimeoutError) and not self._stopping.is_set():
                    emit("signer.client_failed", "%s: %s", self.path, words_of(error))
                    self._stopping.wait(_TICK)

    def stop(self) -> None:
        """Let ``run`` return; a signal handler may call this."""
        self._stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Disconnect all clients, remove the socket, and let another process serve the path."""
        self.stop()
        self._listener.close()
        for client in list(self._open):
            client.hang_up()
        with suppress(OSError):
            self.path.unlink()
        # The lock goes last: until then the socket under this path is ours to remove.
        os.close(self._lock)

    def _accept(self, connection: socket.socket) -> None:
        """Start a thread for a client, if its user may connect and there is room."""
        with ExitStack() as unless_served:
            unless_served.callback(connection.close)
            user = peer_user(connection)
            if user is not None and user not in self._users:
                emit("signer.refused", "%s: user %d may not have anything signed", self.path, user)
            elif not self._free.acquire(blocking=False):
                emit("signer.too_many", "%s: too many clients at once", self.path)
            else:
                client = FrameSocket(connection, self._clock)
                self._open.add(client)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()
                unless_served.pop_all()

    def _serve(self, client: FrameSocket) -> None:
        """Answer one client until it disconnects or sends something that is not a frame."""
        try:
            with suppress(OSError):
                while not self._stopping.is_set():
                    client.send(self._answer(client.receive(self._timeout, idle=self._idle)), self._timeout)
        finally:
            self._open.discard(client)
            client.close()
            self._free.release()

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Return the answer to a request: the state of the key and, where data came, its signature."""
        answer: dict[str, Any] = {"id": request.get("id")}
        # The log of this process has the details of a failure. The client is told only that there was one: the
        # text may name paths of the owner.
        try:
            key = self._source.signing_key()
            subjects = getattr(key, "subjects", None)
            answer |= {
                "kid": key.kid,
                "algorithm": key.algorithm,
                "subjects": None if subjects is None else sorted(subjects),
            }
            if "data" in request:
                answer |= _signature(key, request)
        except MqauthError as error:
            emit("signer.client_failed", "%s: %s", self.path, error)
            answer["error"] = "no_key"
        except Exception as error:
            emit("signer.failed", "%s: signing failed", self.path, error=error)
            answer["error"] = "broken"
        return answer


def _signature(key: keys.SigningKey, request: dict[str, Any]) -> dict[str, Any]:
    """Return the signature that a request asks for, or the error where it is not for this key."""
    if request.get("kid") != key.kid:
        return {"error": "key_changed"}
    try:
        data = base64url.decode(request["data"].encode("ascii"))
    except (AttributeError, ValueError):
        data = None
    if data is None or len(data) > MAX_DATA:
        return {"error": "malformed"}
    return {"signature": base64url.encode(key.sign(data)).decode("ascii")}


def _lock(path: Path) -> int:
    """Return the descriptor of the lock file beside a socket, locked; the file itself stays when we end."""
    with file_errors(path):
        lock = open_private(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_NOFOLLOW)
    with undone_on_error(os.close, lock), refusing(OSError, f"{path}: another process serves there"):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def _listen(path: Path, group: int | None) -> socket.socket:
    """Return a socket that listens under a path; nobody can connect before its mode is set."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with file_errors(path), undone_on_error(listener.close):
        if path.is_socket():
            path.unlink()
        listener.bind(str(path))
        if group is not None:
            os.chown(path, -1, group)
        path.chmod(0o600 if group is None else 0o660)
        # A connection to a socket that is bound and does not listen yet is refused.
        listener.listen()
    return listener
