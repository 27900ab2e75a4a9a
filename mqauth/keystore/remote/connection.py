"""Connections to an issuer: where to ask, how long to wait, whom to trust, and sockets that keep a deadline."""

from __future__ import annotations

import io
import ipaddress
import queue
import re
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from mqauth.clock import Clock
from mqauth.errors import ConfigurationError, MqauthError

MAX_TIMEOUT: Final = 5.0
VISIBLE: Final = re.compile(r"[!-~]+", re.ASCII)


class FetchFailed(MqauthError):
    """The issuer gave no good answer; the text holds neither URL nor body."""

    code = "fetch"


class Deadline:
    """A moment after which nothing is waited for.

    Args:
        clock: tells the time.
        seconds: from now.
    """

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock = clock
        self._seconds = seconds
        self._end = clock.monotonic() + seconds

    def remaining(self) -> float:
        """Return the seconds left, more than 0.

        Raises:
            FetchFailed: none are left.
        """
        left = self._end - self._clock.monotonic()
        if left <= 0:
            raise FetchFailed(f"no whole answer within {self._seconds:g} s")
        return left


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where to ask: a checked https URL, or http on loopback where that was allowed by name."""

    host: str
    port: int
    target: str
    tls: bool

    @classmethod
    def parse(cls, url: str, *, unsafe_http_loopback: bool = False) -> Endpoint:
        """Check a URL.

        Raises:
            ConfigurationError: not https (or allowed loopback http), or with user, password or fragment.
        """
        if not isinstance(url, str) or not VISIBLE.fullmatch(url):
            raise ConfigurationError("a JWKS URL is ASCII text without spaces")
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise ConfigurationError("a JWKS URL is malformed") from error
        if not host or "@" in parts.netloc or parts.fragment:
            raise ConfigurationError("a JWKS URL has a host, and neither user, password nor fragment")
        tls = parts.scheme == "https"
        if not tls and not (parts.scheme == "http" and unsafe_http_loopback and _is_loopback(host)):
            raise ConfigurationError("a JWKS URL is https; http only on loopback, with unsafe_http_loopback")
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return cls(host=host, port=port or (443 if tls else 80), target=target, tls=tls)

    @property
    def shown(self) -> str:
        """The URL without its query, which may hold what is nobody's business."""
        return f"{'https' if self.tls else 'http'}://{self.authority}{self.target.partition('?')[0]}"

    @property
    def authority(self) -> str:
        """Host and, where it is not the scheme's own, port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


Dial = Callable[[Endpoint, Deadline, ssl.SSLContext | None], socket.socket]


def check_timeout(seconds: float) -> float:
    """Return the timeout of a whole attempt, if it is allowed.

    Raises:
        ConfigurationError: not more than 0 and at most 5 s.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_TIMEOUT:
        raise ConfigurationError(f"timeout is more than 0 and at most {MAX_TIMEOUT:g} seconds")
    return seconds


def trust(ca: str | Path | None) -> ssl.SSLContext:
    """Return the TLS settings: certificates and names checked, by the system's CAs or by those of a file.

    Raises:
        ConfigurationError: the file holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"{ca}: no PEM certificates") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


def connect(endpoint: Endpoint, deadline: Deadline, context: ssl.SSLContext | None) -> socket.socket:
    """Open a connection; each address gets its share of the time, so that one dead one does not use it up."""
    addresses = _resolve(endpoint, deadline)
    failure: OSError = OSError("no address")
    for position, (family, address) in enumerate(addresses):
        wire = socket.socket(family, socket.SOCK_STREAM)
        try:
            wire.settimeout(deadline.remaining() / (len(addresses) - position))
            wire.connect(address)
            wire.settimeout(deadline.remaining())
            return wire if context is None else context.wrap_socket(wire, server_hostname=endpoint.host)
        except ssl.SSLError:
            wire.close()
            raise
        except OSError as error:
            wire.close()
            failure = error
        except BaseException:
            wire.close()
            raise
    raise failure


def _resolve(endpoint: Endpoint, deadline: Deadline) -> list[tuple[int, Any]]:
    """Look a name up within the deadline; the system's resolver has none, so it is left behind."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def look_up() -> None:
        try:
            answers.put(socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.put(error)

    threading.Thread(target=look_up, name="mqauth-resolve", daemon=True).start()
    try:
        found = answers.get(timeout=deadline.remaining())
    except queue.Empty:
        raise FetchFailed("the host name was not looked up in time") from None
    if isinstance(found, Exception):
        raise FetchFailed("the host name is not known") from found
    return [(family, address) for family, _, _, _, address in found]


class DeadlineSocket:
    """A socket under one deadline, in the shape ``http.client`` wants; whoever opened it closes it."""

    def __init__(self, wire: socket.socket, deadline: Deadline) -> None:
        self._wire = wire
        self._deadline = deadline

    def sendall(self, data: bytes) -> None:
        """Send all of it before the deadline."""
        self._wire.settimeout(self._deadline.remaining())
        self._wire.sendall(data)

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a file that reads until the deadline."""
        return io.BufferedReader(_Reader(self._wire, self._deadline))

    def close(self) -> None:
        """Do nothing: ``http.client`` closes the connection while the body is still to be read."""


class _Reader(io.RawIOBase):
    """The reading end of a ``DeadlineSocket``."""

    def __init__(self, wire: socket.socket, deadline: Deadline) -> None:
        self._wire = wire
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        self._wire.settimeout(self._deadline.remaining())
        return self._wire.recv_into(buffer)


def _is_loopback(host: str) -> bool:
    """Tell whether a host can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
