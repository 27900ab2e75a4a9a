"""Connections to a service: the checked URL, TLS, and sockets under one deadline for everything."""

from __future__ import annotations

import io
import ipaddress
import os
import re
import select
import socket
import ssl
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mqauth.clock import Clock
from mqauth.errors import MqauthError, refusing, require
from mqauth.threads import DaemonThread

MAX_TIMEOUT: Final = 5.0
VISIBLE: Final = re.compile(r"[!-~]+", re.ASCII)


class FetchFailed(MqauthError):
    """The issuer gave no good answer; the text names neither the URL nor the body."""

    code = "fetch"


expect: Final = partial(require, error=FetchFailed)
"""Refuse an answer unless a condition holds: ``FetchFailed`` with the text that is given."""


class Deadline:
    """A moment after which nothing is waited for.

    Args:
        clock: tells the time.
        seconds: the time until then.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._end = clock.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds that are left, more than 0.

        Raises:
            FetchFailed: none are left.
        """
        left = self._end - self._clock.monotonic()
        expect(left > 0, f"no whole answer within {self._seconds:g} s")
        return left


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A checked URL: https, or http on loopback where that was allowed by name."""

    host: str
    port: int
    authority: str
    target: str
    tls: bool

    @classmethod
    def parse(
        cls, url: str, *, unsafe_http_loopback: bool = False, name: str = "a JWKS URL"
    ) -> Endpoint:
        """Check a URL.

        Args:
            url: the URL.
            unsafe_http_loopback: allow http on loopback.
            name: what it is called in errors.

        Raises:
            ConfigurationError: it is neither https nor an allowed http on loopback, or has a user, a password or
                a fragment.
        """
        require(
            isinstance(url, str) and VISIBLE.fullmatch(url),
            f"{name} is ASCII text without spaces",
        )
        with refusing(ValueError, f"{name} is malformed"):
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        require(
            host and "@" not in parts.netloc and not parts.fragment,
            f"{name} has a host, and neither user, password nor fragment",
        )
        tls = parts.scheme == "https"
        require(
            tls
            or (parts.scheme == "http" and unsafe_http_loopback and is_loopback(host)),
            f"{name} is https; http only on loopback, with unsafe_http_loopback",
        )
        return cls(
            host=host,
            port=port or (443 if tls else 80),
            authority=parts.netloc,
            target=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
            tls=tls,
        )

    @property
    def shown(self) -> str:
        """The URL for people, without its query, which may hold a secret."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.target.partition('?')[0]}"


Dial = Callable[[Endpoint, Deadline, ssl.SSLContext | None], socket.socket]
"""Opens a connection, as ``connect`` does; tests put another function in its place."""


def tls_context(ca: str | Path | None) -> ssl.SSLContext:
    """Return TLS settings that check certificates and names, against the CAs of a file or of the system.

    Raises:
        ConfigurationError: the file holds no certificate.
    """
    with refusing(OSError, f"{ca}: no PEM certificates"):
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def connect(
    endpoint: Endpoint, deadline: Deadline, context: ssl.SSLContext | None
) -> socket.socket:
    """Open a connection to one of the addresses of a host.

    Raises:
        FetchFailed: the host is not known, or the deadline has passed.
        OSError: no address could be reached.
    """
    # The resolver of the system takes no timeout, so it runs on a thread that is left behind when time is up.
    resolver = DaemonThread("mqauth-resolve")
    looked = resolver.submit(
        socket.getaddrinfo, endpoint.host, endpoint.port, type=socket.SOCK_STREAM
    )
    resolver.shutdown()
    with (
        refusing((OSError, UnicodeError), "the host name is not known", FetchFailed),
        refusing(TimeoutError, "the host name was not looked up in time", FetchFailed),
    ):
        addresses = looked.result(deadline.remaining())
    failure: OSError = OSError("no address")
    for position, (family, _, _, _, address) in enumerate(addresses):
        wire = socket.socket(family, socket.SOCK_STREAM)
        try:
            # Each address gets its share of the time, so that a dead one does not use it up.
            wire.settimeout(deadline.remaining() / (len(addresses) - position))
            wire.connect(address)
            # The body is sent behind the headers; without this it waits for their acknowledgement, 40 ms.
            wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            wire.settimeout(deadline.remaining())
            return (
                wire
                if context is None
                else context.wrap_socket(wire, server_hostname=endpoint.host)
            )
        except BaseException as error:
            wire.close()
            # A host whose TLS fails at one address is not asked at another one.
            if not isinstance(error, OSError) or isinstance(error, ssl.SSLError):
                raise
            failure = error
    raise failure


class Kept:
    """Keeps the connection that the last request left open. A request takes it, and has it alone.

    Whoever asks meanwhile opens one of their own, so that threads share none. A connection comes back only after a
    whole answer, and goes where more has come: what answers one question is not read as the answer to another,
    unless a server sends it behind the next question. A child after a fork opens its own.
    """

    def __init__(self) -> None:
        # Both ends of it are atomic.
        self._idle: deque[tuple[int, socket.socket]] = deque()
        weakref.finalize(self, _close_all, self._idle)

    def take(self) -> socket.socket | None:
        """Return the connection, ``None`` where there is none that may be used."""
        while self._idle:
            process, wire = self._idle.pop()
            if process == os.getpid() and _is_silent(wire):
                return wire
            wire.close()
        return None

    def give(self, wire: socket.socket) -> None:
        """Take a connection back after a whole answer."""
        if self._idle:
            wire.close()
        else:
            self._idle.append((os.getpid(), wire))


def _is_silent(wire: socket.socket) -> bool:
    """Return whether nothing has come since the last answer, neither an end nor what nobody asked for."""
    # What TLS has decrypted already is no longer on the socket.
    if isinstance(wire, ssl.SSLSocket) and wire.pending():
        return False
    reading = select.poll()
    reading.register(wire, select.POLLIN)
    return not reading.poll(0)


def _close_all(idle: deque[tuple[int, socket.socket]]) -> None:
    for _, wire in idle:
        wire.close()


class DeadlineSocket(io.RawIOBase):
    """A socket under one deadline, with the methods that ``http.client`` calls.

    ``http.client`` sets a timeout for each read. A server that sends one byte at a time would hold it for ever,
    so each read here gets what is left of one deadline.
    """

    def __init__(self, wire: socket.socket, deadline: Deadline) -> None:
        self._wire = wire
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        """Send all data before the deadline."""
        self._wire.settimeout(self._deadline.remaining())
        self._wire.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a file that reads until the deadline."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        """Return true."""
        return True

    def readinto(self, buffer: Any, /) -> int:
        """Read some bytes before the deadline."""
        self._wire.settimeout(self._deadline.remaining())
        return self._wire.recv_into(buffer)

    def close(self) -> None:
        """Do nothing: ``http.client`` calls this before the body is read. The opener closes the connection."""


def is_loopback(host: str) -> bool:
    """Tell whether a host can only be this machine; it is not looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
