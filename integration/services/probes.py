"""Protocol probes: each returns what a server says of its version, or tells why it does not answer."""

from __future__ import annotations

import socket
import ssl
import struct
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

_AMQP_HEADER = b"AMQP\x00\x00\x09\x01"
_KAFKA_FETCH = 1
_KAFKA_4_FETCH = 4  # Kafka 4.0 dropped the older ones
_KAFKA_API_VERSIONS = 18


class NotReadyError(RuntimeError):
    """The server did not answer its protocol in time."""


class _Wire:
    """A connection whose every read ends by one deadline."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def read(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            left = self._deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("timed out")
            self._connection.settimeout(left)
            part = self._connection.recv(size - len(data))
            if not part:
                raise ConnectionError("closed by the server")
            data += part
        return data

    def line(self) -> bytes:
        data = b""
        while not data.endswith(b"\r\n"):
            data += self.read(1)
        return data[:-2]


@contextmanager
def _connected(url: str, standard_port: int, timeout: float) -> Iterator[_Wire]:
    parts = urlsplit(url)
    host, port = parts.hostname or "127.0.0.1", parts.port or standard_port
    deadline = time.monotonic() + timeout
    try:
        with socket.create_connection((host, port), timeout) as plain:
            if parts.scheme in {"amqps", "rediss"}:
                with ssl.create_default_context().wrap_socket(
                    plain, server_hostname=host
                ) as secure:
                    yield _Wire(secure, deadline)
            else:
                yield _Wire(plain, deadline)
    except (OSError, struct.error) as error:
        raise NotReadyError(f"{parts.scheme}://{host}:{port}: {error}") from error


def amqp(url: str, timeout: float) -> str:
    """Return the version a RabbitMQ names when it opens the AMQP handshake."""
    with _connected(url, 5672, timeout) as wire:
        wire.send(_AMQP_HEADER)
        kind, _channel, size = struct.unpack(">BHI", wire.read(7))
        payload = wire.read(size + 1)
    if kind != 1 or payload[:4] != b"\x00\x0a\x00\x0a":
        raise NotReadyError(f"{url}: no AMQP 0-9-1 Connection.Start")
    key = b"\x07versionS"
    at = payload.find(key)
    if at < 0:
        return "unknown"
    at += len(key)
    (length,) = struct.unpack_from(">I", payload, at)
    return payload[at + 4 : at + 4 + length].decode()


def kafka(url: str, timeout: float) -> str:
    """Return `4.0+` or `<4.0`: ApiVersions tells which requests a Kafka takes, not its release."""
    client = b"mqauth-probe"
    request = struct.pack(">hhih", _KAFKA_API_VERSIONS, 0, 1, len(client)) + client
    with _connected(url, 9092, timeout) as wire:
        wire.send(struct.pack(">i", len(request)) + request)
        (size,) = struct.unpack(">i", wire.read(4))
        answer = wire.read(size)
    _correlation, error, count = struct.unpack_from(">ihi", answer)
    if error:
        raise NotReadyError(f"{url}: ApiVersions answered error {error}")
    oldest = {
        key: low
        for key, low, _high in struct.iter_unpack(">hhh", answer[10 : 10 + 6 * count])
    }
    return "4.0+" if oldest.get(_KAFKA_FETCH, 0) >= _KAFKA_4_FETCH else "<4.0"


def redis(url: str, timeout: float) -> str:
    """Return the version of a Redis or Valkey that answers PING."""
    parts = urlsplit(url)
    with _connected(url, 6379, timeout) as wire:
        if parts.password:
            user = [unquote(parts.username)] if parts.username else []
            _resp(wire, "AUTH", *user, unquote(parts.password))
        _resp(wire, "PING")
        info = _resp(wire, "INFO", "server")
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    return fields.get("valkey_version") or fields.get("redis_version", "unknown")


def _resp(wire: _Wire, *words: str) -> str:
    encoded = [word.encode() for word in words]
    wire.send(
        b"*%d\r\n" % len(words)
        + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
    )
    line = wire.line().decode()
    if line.startswith("-"):
        raise NotReadyError(f"{words[0]}: {line[1:]}")
    if line.startswith("$"):
        return wire.read(int(line[1:]) + 2).decode()
    return line[1:]


def until_ready(
    probe: Callable[[float], str],
    *,
    timeout: float,
    ended: Callable[[], bool],
    tail: Callable[[], str],
) -> str:
    """Probe until a server answers; where it ends or stays silent, raise with the tail of its log."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return probe(min(2.0, max(0.1, deadline - time.monotonic())))
        except NotReadyError as silent:
            if ended():
                raise NotReadyError(
                    f"the server ended before it was ready\n{tail()}"
                ) from silent
            if time.monotonic() > deadline:
                raise NotReadyError(
                    f"not ready within {timeout:g} s: {silent}\n{tail()}"
                ) from silent
        time.sleep(0.05)
