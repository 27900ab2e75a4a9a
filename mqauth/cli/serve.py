"""The server on uvicorn of commands that stay: socket, certificate, settings and log."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import typer

from mqauth.audit import disk
from mqauth.errors import ConfigurationError, refusing, require
from mqauth.logs import JSONFormatter, emit

_BACKLOG: Final = 512


@contextlib.contextmanager
def log_lines(form: str, level: str) -> Iterator[None]:
    """Write the lines of mqauth, and errors of its server, to standard error within the block."""
    handler = logging.StreamHandler()
    text = logging.Formatter(
        "%(asctime)s %(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%SZ"
    )
    text.converter = time.gmtime
    handler.setFormatter(JSONFormatter() if form == "json" else text)
    # Whoever reaches the port chooses how many warnings uvicorn has.
    loggers = {
        logging.getLogger("mqauth"): logging.getLevelNamesMapping()[level.upper()],
        logging.getLogger("uvicorn"): logging.ERROR,
    }
    kept = {
        logger: (logger.handlers, logger.propagate, logger.level) for logger in loggers
    }
    try:
        for logger, own in loggers.items():
            logger.handlers, logger.propagate = [handler], False
            logger.setLevel(own)
        yield
    finally:
        for logger, (handlers, propagate, before) in kept.items():
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(before)


class Certificate:
    """A certificate that is read again when its file changes: it is renewed while the server runs.

    Args:
        chain, key: PEM files.

    Raises:
        ConfigurationError: they cannot be read, do not belong together, or the key has a passphrase.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._files = (chain, key)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._stamps = [disk.stamp(path) for path in self._files]
        self._load(self.context)

    async def renew(self) -> None:
        """Load the files again if one of them changed; only new connections use the new certificate."""
        stamps = [disk.stamp(path) for path in self._files]
        if stamps != self._stamps:
            self._stamps = stamps
            try:
                # A half-written pair must not reach the context that serves, so another one tries it first.
                self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
                self._load(self.context)
            except ConfigurationError as error:
                emit(
                    "serve.certificate_kept",
                    "%s; the certificate read before stays in use",
                    error,
                )

    def _load(self, context: ssl.SSLContext) -> None:
        chain, key = self._files
        # OpenSSL would ask for a passphrase at the terminal, and a server may have none.
        refuse: Any = partial(require, False, "the key has a passphrase", ValueError)
        try:
            context.load_cert_chain(chain, key, password=refuse)
        except (OSError, ValueError) as error:
            why = (
                getattr(error, "reason", None)
                or getattr(error, "strerror", None)
                or str(error)
            )
            raise ConfigurationError(
                f"--tls-cert {chain}, --tls-key {key}: {why}"
            ) from error


def listen(host: str, port: int, *, tls: bool) -> socket.socket:
    """Return a listening socket. Without TLS it listens on this machine's own addresses only.

    Args:
        host: address or name.
        port: 0 for any that is free.
        tls: whether the server has a certificate.

    Raises:
        ConfigurationError: the address is not allowed, or cannot be listened on.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM
        )[0]
        require(
            tls or ipaddress.ip_address(str(address[0])).is_loopback,
            f"--host {host}: reached from outside only with --tls-cert and --tls-key",
        )
        return socket.create_server(
            (str(address[0]), port), family=family, backlog=_BACKLOG
        )
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no such host"
        raise ConfigurationError(f"--host {host} --port {port}: {why}") from error


def server_of(
    application: Any,
    certificate: Certificate | None,
    *,
    requests: int,
    verb: str,
    extra: str,
) -> Any:
    """Return uvicorn with an application, and with nothing that the environment or another package could turn on.

    Args:
        application: ASGI.
        certificate: ``None`` for http.
        requests: how many are served at once; more are answered with 503.
        verb: of the command, for the error.
        extra: of mqauth, which installs uvicorn.

    Raises:
        ConfigurationError: uvicorn is not installed.
    """
    with refusing(
        ImportError, f'mqauth {verb} needs uvicorn: install "mqauth[cli,{extra}]"'
    ):
        import uvicorn

        from mqauth.cli import connections
    settings: dict[str, Any] = (
        {}
        if certificate is None
        else {
            "ssl_context_factory": lambda _config, _default: certificate.context,
            "callback_notify": certificate.renew,
            "timeout_notify": 60,
        }
    )
    return uvicorn.Server(
        uvicorn.Config(
            application,
            http=connections.Connection,
            loop=connections.LOOP,
            ws="none",
            lifespan="off",
            interface="asgi3",
            workers=1,
            log_config=None,
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=requests,
            backlog=_BACKLOG,
            timeout_graceful_shutdown=5,
            **settings,
        )
    )


class Serving:
    """How a command serves, by the options that all of them have; ``options`` makes it.

    Attributes: ``host``, where it listens, and ``certificate``, ``None`` for http.

    Raises:
        ConfigurationError: only one of the files of the certificate was given, or as for ``Certificate``.
    """

    def __init__(
        self,
        *,
        host: Annotated[
            str,
            typer.Option(
                "--host", help="Address to listen on; other than loopback only with TLS."
            ),
        ] = "127.0.0.1",
        tls_cert: Annotated[
            Path | None, typer.Option("--tls-cert", help="PEM file with the certificate.")
        ] = None,
        tls_key: Annotated[
            Path | None,
            typer.Option("--tls-key", help="PEM file with the key of the certificate."),
        ] = None,
        log: Annotated[
            Literal["text", "json"],
            typer.Option(
                "--log", help="Form of the log on standard error: text, or JSON lines."
            ),
        ] = "text",
        level: Annotated[
            Literal["debug", "info", "warning", "error"],
            typer.Option("--log-level", help="Least level of the log."),
        ] = "info",
    ) -> None:
        require(
            (tls_cert is None) is (tls_key is None),
            "--tls-cert and --tls-key go together",
        )
        self.certificate = (
            None
            if tls_cert is None or tls_key is None
            else Certificate(tls_cert, tls_key)
        )
        self.host, self._log, self._level = host, log, level

    def run(
        self,
        application: Any,
        listener: socket.socket,
        told: Callable[[], None],
        **settings: Any,
    ) -> None:
        """Serve until SIGTERM or SIGINT.

        Args:
            application: ASGI.
            listener: of ``listen``.
            told: prints where it serves, once nothing can keep it from that.
            settings: of ``server_of``.
        """
        server = server_of(application, self.certificate, **settings)
        with log_lines(self._log, self._level):
            told()
            # Uvicorn raises the signal again once it has ended, and the default handler would then kill the
            # process before it could clean up.
            before = signal.signal(signal.SIGTERM, lambda *_: None)
            try:
                server.run(sockets=[listener])
            finally:
                signal.signal(signal.SIGTERM, before)


def origin(listener: socket.socket, *, tls: bool) -> str:
    """Return scheme, host and port at which a listening socket is reached."""
    host, port = listener.getsockname()[:2]
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"
