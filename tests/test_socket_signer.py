"""A key in another process: who may connect, what may come over the wire, and what a broken one costs."""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mqauth.clock import SYSTEM_CLOCK
from mqauth.errors import ConfigurationError, KeyChanged, Unavailable
from mqauth.keystore.socket import server as serving
from mqauth.keystore.socket.server import SigningServer
from mqauth.keystore.socket.signer import MAX_DATA, MAX_FRAME, FrameSocket, SocketSigner
from mqauth.wire import jws
from mqauth.wire.keys import Key, SigningKey

LONG = 30.0
NOBODY = 65_534


class Source:
    """A source whose key can be exchanged or taken away."""

    def __init__(self) -> None:
        self.key: Key | None = Key.generate(subjects=["orders-api"])

    def signing_key(self) -> SigningKey:
        if self.key is None:
            raise ConfigurationError("/secret/place: no active key")
        return jws.LocalSigningKey(self.key)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "s"


@pytest.fixture
def server(path: Path, source: Source) -> Iterator[SigningServer]:
    with SigningServer(path, source, timeout=LONG) as running:
        yield running


@pytest.fixture
def client(server: SigningServer) -> Iterator[SocketSigner]:
    signer = SocketSigner(server.path, timeout=LONG)
    yield signer
    signer.close()


def raw(path: Path) -> socket.socket:
    """Return a connection that says what it likes."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(LONG)
    connection.connect(str(path))
    return connection


def ended(connection: socket.socket) -> bool:
    """Wait for the other end to hang up; with bytes of ours unread it resets."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def until_alone(server: SigningServer) -> None:
    """Wait until the server has no client."""
    waiting = threading.Event()
    for _ in range(6000):
        if not server._open:
            return
        waiting.wait(0.005)
    raise TimeoutError


def public(source: Source) -> Key:
    assert source.key is not None
    return source.key.public_only


def signs(client: SocketSigner, source: Source) -> bool:
    """Tell whether the client gets good signatures of the source's key."""
    token = jws.compact(b"x", client.signing_key()).encode()
    jws.verify(jws.take_apart(token), public(source))
    return True


# --- who may ----------------------------------------------------------------------------------------------


def test_socket_is_the_owners_alone(server: SigningServer) -> None:
    """The socket and its lock have mode 0600, whatever the umask."""
    for found in (server.path, Path(f"{server.path}.lock")):
        assert stat.S_IMODE(found.stat().st_mode) == 0o600


def test_group_may_be_let_in(path: Path, source: Source) -> None:
    """With a group the mode is 0660 and the group is set."""
    with SigningServer(path, source, group=os.getegid()):
        found = path.stat()
    assert (stat.S_IMODE(found.st_mode), found.st_gid) == (0o660, os.getegid())


def test_other_users_are_hung_up_on(path: Path, source: Source, caplog: pytest.LogCaptureFixture) -> None:
    """A client whose user, by the kernel's word, is not on the list gets nothing signed, and is told of."""
    with (
        SigningServer(path, source, users=[NOBODY]),
        pytest.raises(Unavailable, match=r"closed|reset|Broken pipe"),
    ):
        SocketSigner(path, timeout=LONG).signing_key()
    assert f"user {os.geteuid()} may not have anything signed" in caplog.text


def test_client_checks_who_listens(server: SigningServer) -> None:
    """A process of another user that squats the path is not trusted with what is to be signed."""
    with pytest.raises(Unavailable, match="listens there, who may not sign for us"):
        SocketSigner(server.path, timeout=LONG, users=[NOBODY]).signing_key()


def test_file_mode_alone_counts_where_the_kernel_says_nothing(
    server: SigningServer, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a system without peer credentials both ends rely on the socket's mode."""
    monkeypatch.delattr(socket, "SO_PEERCRED")
    client = SocketSigner(server.path, timeout=LONG, users=[NOBODY])
    assert signs(client, source)
    client.close()


def test_one_server_a_path(server: SigningServer, source: Source) -> None:
    """A second server on the path is refused, and the first goes on."""
    with pytest.raises(ConfigurationError, match="another process serves there"):
        SigningServer(server.path, source)
    client = SocketSigner(server.path, timeout=LONG)
    assert signs(client, source)
    client.close()


def test_leftover_of_a_crash_is_replaced(path: Path, source: Source) -> None:
    """A socket file nobody listens on any more does not keep the next server from starting."""
    left = socket.socket(socket.AF_UNIX)
    left.bind(str(path))
    left.close()
    with SigningServer(path, source):
        client = SocketSigner(path, timeout=LONG)
        assert signs(client, source)
        client.close()


def test_path_of_something_else_is_refused(path: Path, source: Source) -> None:
    """A file that is no socket is not removed, and a path too long or nowhere is one line."""
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match="in use"):
        SigningServer(path, source)
    assert path.read_text() == "mine"
    with pytest.raises(ConfigurationError, match="too long"):
        SigningServer(path.parent / ("x" * 110), source)
    with pytest.raises(ConfigurationError, match="No such file"):
        SigningServer(path.parent / "nowhere" / "s", source)


# --- rotation ---------------------------------------------------------------------------------------------


def test_key_told_of_has_its_subjects(client: SocketSigner, source: Source) -> None:
    """The client knows whom the key speaks for, so that a signer can refuse another subject."""
    assert client.signing_key().subjects == {"orders-api"}


def test_exchanged_key_is_told_at_once(client: SocketSigner, source: Source) -> None:
    """A request for the old key is answered with the next one's name; the next token is the next key's."""
    old = client.signing_key()
    source.key = Key.generate()
    with pytest.raises(KeyChanged):
        old.sign(b"x")
    assert client.signing_key().kid == source.key.kid
    assert signs(client, source)


def test_no_key_is_unavailable_and_tells_nothing(
    client: SocketSigner, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """A process without active key says so without saying where; its own log has the line."""
    key = client.signing_key()
    source.key = None
    for action in (lambda: key.sign(b"x"), client.signing_key):
        with pytest.raises(Unavailable) as caught:
            action()
        assert "secret" not in str(caught.value)
    assert "/secret/place: no active key" in caplog.text
    source.key = Key.generate()
    assert signs(client, source)


def test_broken_key_is_unavailable(
    client: SocketSigner, source: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What a key raises stays in the process that has it, which goes on serving."""
    key = client.signing_key()
    monkeypatch.setattr(jws.LocalSigningKey, "sign", lambda self, data: 1 / 0)
    with pytest.raises(Unavailable, match="no signature"):
        key.sign(b"x")
    assert "ZeroDivisionError" in caplog.text
    monkeypatch.undo()
    assert signs(client, source)


# --- the wire ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sent",
    [struct.pack(">I", MAX_FRAME + 1), struct.pack(">I", 1) + b"{", struct.pack(">I", 2) + b"[]", b"GET / HTTP"],
    ids=["large", "no-json", "no-object", "http"],
)  # fmt: skip
def test_what_is_no_frame_is_hung_up_on(server: SigningServer, source: Source, sent: bytes) -> None:
    """Garbage and frames over the bound end their connection, and nobody else's."""
    with raw(server.path) as connection:
        connection.sendall(sent)
        assert ended(connection)
    client = SocketSigner(server.path, timeout=LONG)
    assert signs(client, source)
    client.close()


@pytest.mark.parametrize("data", [1, "=", None, "A" * 45_056], ids=["number", "padded", "null", "large"])
def test_malformed_request_is_refused(server: SigningServer, source: Source, data: Any) -> None:
    """Data that is no base64url text of at most 32 KiB is not signed; the connection goes on."""
    with raw(server.path) as connection:
        wire = FrameSocket(connection, SYSTEM_CLOCK)
        wire.send({"id": 1, "kid": public(source).kid, "data": data}, LONG)
        answer = wire.receive(LONG)
        assert (answer["id"], answer["error"]) == (1, "malformed")
        assert "signature" not in answer


def test_too_much_data_is_refused_before_it_is_sent(client: SocketSigner) -> None:
    """More than 32 KiB are refused by the client itself."""
    with pytest.raises(ConfigurationError):
        client.signing_key().sign(bytes(MAX_DATA + 1))
    assert len(client.signing_key().sign(bytes(MAX_DATA))) == 64


def test_server_gives_a_slow_frame_up(path: Path, source: Source) -> None:
    """A frame that began and does not end holds a thread for the timeout, and no longer."""
    with SigningServer(path, source, timeout=0.05), raw(path) as connection:
        connection.sendall(b"\0\0")
        assert ended(connection)


def test_silent_client_is_hung_up_on_and_comes_again(path: Path, source: Source) -> None:
    """A connection idle for long is closed by the server, and the client's next call makes another."""
    with SigningServer(path, source, idle=0.05) as server:
        client = SocketSigner(path, timeout=LONG)
        assert signs(client, source)
        until_alone(server)
        assert signs(client, source)
        client.close()


def test_client_that_is_gone_at_once_ends_nothing(
    server: SigningServer, source: Source, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that fails while its user is looked up is logged, and the next client is served."""
    failures = [OSError(107, "Transport endpoint is not connected")]
    real = serving.peer_user

    def peer_user(connection: socket.socket) -> int | None:
        if failures:
            raise failures.pop()
        return real(connection)

    monkeypatch.setattr(serving, "peer_user", peer_user)
    with raw(server.path) as connection:
        assert ended(connection)
    client = SocketSigner(server.path, timeout=LONG)
    assert signs(client, source)
    client.close()
    assert "not connected" in caplog.text


def test_connections_are_bounded(path: Path, source: Source, caplog: pytest.LogCaptureFixture) -> None:
    """Clients beyond the bound are hung up on; a place is free again when one goes."""
    with SigningServer(path, source, connections=1, timeout=LONG) as server:
        client = SocketSigner(path, timeout=LONG)
        assert signs(client, source)
        with pytest.raises(Unavailable):
            SocketSigner(path, timeout=LONG).signing_key()
        assert "too many clients" in caplog.text
        client.close()
        until_alone(server)
        assert signs(client, source)
        client.close()


# --- a broken one -----------------------------------------------------------------------------------------


def test_restarted_server_costs_no_message(path: Path, source: Source) -> None:
    """A connection that broke is made again within the same call."""
    client = SocketSigner(path, timeout=LONG)
    with SigningServer(path, source):
        assert signs(client, source)
    with SigningServer(path, source):
        assert signs(client, source)
    client.close()


def test_no_server_is_unavailable(path: Path) -> None:
    """Nobody there is ``keys_unavailable``, in one line that names the path."""
    with pytest.raises(Unavailable, match=r"keys_unavailable: .*/s: No such file"):
        SocketSigner(path).signing_key()


class Liar:
    """A listener that answers each connection by a script of its own."""

    def __init__(self, path: Path, answers: list[Any]) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()
        self.answers = answers
        self.asked = 0
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        while self.answers:
            answer = self.answers.pop(0)
            connection, _ = self.listener.accept()
            with connection:
                wire = FrameSocket(connection, SYSTEM_CLOCK)
                try:
                    request = wire.receive(LONG)
                    self.asked += 1
                    if answer is None:
                        wire.receive(LONG)  # silence, until the other end gives up
                    else:
                        wire.send({"id": request["id"], **answer}, LONG)
                except OSError:
                    pass
        self.listener.close()


@pytest.mark.parametrize(
    "answer",
    [
        {}, {"kid": 1, "algorithm": "EdDSA"}, {"kid": "k", "algorithm": "HS256"}, {"kid": "k"},
        {"kid": "k", "algorithm": "EdDSA", "subjects": "all"}, {"kid": "\n", "algorithm": "EdDSA"},
    ],
    ids=repr,
)  # fmt: skip
def test_answer_that_names_no_key_is_unavailable(path: Path, answer: dict[str, Any]) -> None:
    """A kid, an algorithm or subjects out of their limits are not believed."""
    liar = Liar(path, [answer])
    client = SocketSigner(path, timeout=LONG)
    with pytest.raises(Unavailable, match="no key that may sign"):
        client.signing_key()
    client.close()
    liar.thread.join()


def test_answer_to_something_else_is_not_taken(path: Path) -> None:
    """An answer with another number, as after a lost one, ends the connection instead of giving a signature."""
    liar = Liar(path, [{"id": 99}])
    with pytest.raises(Unavailable, match="something else"):
        SocketSigner(path, timeout=LONG).signing_key()
    liar.thread.join()


def test_silent_server_is_given_up(path: Path) -> None:
    """A server that does not answer costs the timeout."""
    liar = Liar(path, [None])
    with pytest.raises(Unavailable, match=r"timed out|too slow"):
        SocketSigner(path, timeout=0.05).signing_key()
    liar.thread.join()


def test_child_after_a_fork_has_its_own_connection(client: SocketSigner, source: Source) -> None:
    """Parent and child sign at once after a fork, and neither gets the other's signature."""
    assert signs(client, source)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if all(signs(client, source) for _ in range(50)) else 1)
        finally:
            os._exit(2)
    assert all(signs(client, source) for _ in range(50))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("timeout", [0, -1, 61, float("nan")])
def test_timeout_is_bounded(path: Path, timeout: float) -> None:
    """No endless wait can be configured."""
    with pytest.raises(ConfigurationError):
        SocketSigner(path, timeout=timeout)


def test_nothing_of_the_key_is_shown(client: SocketSigner, server: SigningServer) -> None:
    """The client's objects show a path and a kid."""
    assert repr(client) == f"SocketSigner('{server.path}')"
    assert repr(client.signing_key()) == f"RemoteKey('{client.signing_key().kid}', EdDSA)"
