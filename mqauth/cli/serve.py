"""``mqauth keys serve``: the JWK Set of keystores on uvicorn; the only module that imports it."""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from mqauth.cli.output import print_json
from mqauth.errors import ConfigurationError
from mqauth.keystore.disk import files
from mqauth.keystore.remote.keyserver import HEALTH, PATHS, KeyServer

if TYPE_CHECKING:
    import uvicorn

_BACKLOG: Final = 512
_CONCURRENT: Final = 512
_GRACE: Final = 5
_CERTIFICATE_EVERY: Final = 60
_LOG: Final = logging.getLogger("mqauth.keystore")


def serve(folders: Sequence[Path], *, host: str, port: int, tls: tuple[Path, Path] | None, as_json: bool) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        folders: the keystores.
        host: where to listen.
        port: at which port; 0 is any that is free.
        tls: PEM files of the certificate and its key; without it, loopback only.
        as_json: print where as JSON.

    Raises:
        ConfigurationError: uvicorn is missing, the address may not or cannot be had, or the keys cannot be
            published.
    """
    application = KeyServer(folders)
    certificate = None if tls is None else Certificate(*tls)
    listener = listen(host, port, tls=tls is not None)
    with listener:
        server = _server(application, certificate)
        _tell(listener, application, tls=tls is not None, as_json=as_json)
        before = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when it has ended
        try:
            server.run(sockets=[listener])
        finally:
            signal.signal(signal.SIGTERM, before)
    return 0


class Certificate:
    """A certificate that is read again when its file changes, for it is renewed while we run.

    Args:
        chain, key: PEM files.

    Raises:
        ConfigurationError: they cannot be read, do not belong together, or the key has a passphrase.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._files = (chain, key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._stamps = self._look()
        self._load(self.context)

    async def renew(self) -> None:
        """Load the files again where one changed; new connections get what they hold, if it is fit."""
        stamps = self._look()
        if stamps == self._stamps:
            return
        self._stamps = stamps
        try:
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))  # a half-written pair must not get in
            self._load(self.context)
        except ConfigurationError as error:
            _LOG.error("%s; the certificate read before stays in use", error)

    def _look(self) -> list[files.Stamp | None]:
        """Return what changes with the files."""
        return [files.stamp(path) for path in self._files]

    def _load(self, context: ssl.SSLContext) -> None:
        """Load certificate and key into a context."""
        chain, key = self._files
        try:
            context.load_cert_chain(chain, key, password=_refuse_passphrase)
        except (OSError, ValueError) as error:
            why = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error)
            raise ConfigurationError(f"--tls-cert {chain}, --tls-key {key}: {why}") from error


def _refuse_passphrase() -> str:
    """Refuse a key with a passphrase: nobody is there to be asked."""
    raise ValueError("the key has a passphrase")


def listen(host: str, port: int, *, tls: bool) -> socket.socket:
    """Return a listening socket; without TLS only on this machine's own addresses.

    Raises:
        ConfigurationError: the address may not or cannot be had.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        if not tls and not ipaddress.ip_address(str(address[0])).is_loopback:
            raise ConfigurationError(f"--host {host}: reached from outside only with --tls-cert and --tls-key")
        return socket.create_server((str(address[0]), port), family=family, backlog=_BACKLOG)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no such host"
        raise ConfigurationError(f"--host {host} --port {port}: {why}") from error


def _server(application: KeyServer, certificate: Certificate | None) -> uvicorn.Server:
    """Return the server, with nothing that the environment or another package could turn on."""
    try:
        import uvicorn
    except ImportError as error:
        raise ConfigurationError('mqauth keys serve needs uvicorn: install "mqauth[cli,serve]"') from error
    settings: dict[str, Any] = {}
    if certificate is not None:
        settings = {
            "ssl_context_factory": lambda _config, _default: certificate.context,
            "callback_notify": certificate.renew, "timeout_notify": _CERTIFICATE_EVERY,
        }  # fmt: skip
    config = uvicorn.Config(
        application, http="h11", loop="asyncio", ws="none", lifespan="off", interface="asgi3", workers=1,
        log_config=None, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
        limit_concurrency=_CONCURRENT, backlog=_BACKLOG, timeout_graceful_shutdown=_GRACE, **settings,
    )  # fmt: skip
    return uvicorn.Server(config)


def _tell(listener: socket.socket, application: KeyServer, *, tls: bool, as_json: bool) -> None:
    """Print where the keys are."""
    host, port = listener.getsockname()[:2]
    origin = f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
    url, keys = origin + PATHS[0], application.current.keys
    if as_json:
        print_json({"url": url, "health": origin + HEALTH, "keys": keys})
    else:
        print(f"{keys} {'key' if keys == 1 else 'keys'} at {url}", flush=True)
