"""``mqauth console``: the web console for dead letters, on uvicorn."""

from __future__ import annotations

import contextlib
import getpass
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import mqauth
from mqauth.auditfile import AuditFile
from mqauth.cli.dlq import Key
from mqauth.cli.dlq_broker import Place, opened
from mqauth.cli.output import print_json
from mqauth.cli.serve import Certificate, listen
from mqauth.errors import ConfigurationError
from mqauth.pipeline import Pipeline
from mqauth.release import Releaser

if TYPE_CHECKING:
    pass

_CONCURRENT: Final = 64
_GRACE: Final = 5
_CERTIFICATE_EVERY: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How the console runs.

    Args:
        config: the consumer's configuration, which judges.
        key: the reviewer's; signs releases.
        reviewer: who acts; by default the key's subject, else the user of this machine.
        audit: the reviewer's own audit file; without it nothing can be acted on.
        files: audit files for the account.
        token_file: keeps the tokens; without it they are new at every start.
        host, port: where to listen.
        names: other ``Host`` headers people use.
        tls: PEM files of certificate and key.
        as_json: print JSON.
    """

    config: Path | None
    key: Key | None
    reviewer: str | None
    audit: Path | None
    files: Sequence[Path]
    token_file: Path | None
    host: str
    port: int
    names: Sequence[str]
    tls: tuple[Path, Path] | None
    as_json: bool


def console(place: Place, settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT.

    Raises:
        ConfigurationError: an extra is missing, or something cannot be had.
    """
    try:
        from mqauth.console import Desk, Tokens, application
        from mqauth.console.access import fresh_tokens, token_file
    except ImportError as error:
        raise ConfigurationError('mqauth console needs its packages: install "mqauth[cli,console]"') from error
    guard = None if settings.config is None else mqauth.load(settings.config).judge
    releaser, reviewer = _releasing(settings, guard)
    certificate = None if settings.tls is None else Certificate(*settings.tls)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.port, tls=certificate is not None))
        audit = None if settings.audit is None else stack.enter_context(AuditFile(settings.audit))
        found = stack.enter_context(opened(place))
        desk = Desk(found.box, found.run, guard=guard, releaser=releaser, audit=audit, files=settings.files)
        stack.callback(desk.close)
        made = (fresh_tokens(), True) if settings.token_file is None else token_file(settings.token_file)
        hosts = _hosts(listener, settings.names)
        served = application(
            desk, tokens=Tokens(made[0]), hosts=hosts, reviewer=reviewer, tls=certificate is not None
        )
        desk.read(reviewer)
        _tell(hosts[0], made, settings)
        _serve(served, listener, certificate)
    return 0


def _releasing(settings: Settings, guard: Pipeline | None) -> tuple[Callable[[str], Releaser] | None, str]:
    """Return what signs releases, tried once, and the name of the reviewer with the local token."""
    key = settings.key
    if key is None:
        return None, settings.reviewer or getpass.getuser()
    if guard is None:
        raise ConfigurationError("--key: wants --config too, the consumer's configuration")
    found = key.releaser(guard)
    return lambda name: replace(key, reviewer=name).releaser(guard), found.reviewer


def _hosts(listener: socket.socket, names: Sequence[str]) -> list[str]:
    """Return the ``Host`` headers that are ours, the one to print first."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return [f"{shown}:{port}", f"localhost:{port}", *(name.lower() for name in names)]


def _serve(served: Any, listener: socket.socket, certificate: Certificate | None) -> None:
    """Run uvicorn, with nothing that the environment could turn on."""
    import uvicorn

    settings: dict[str, Any] = {}
    if certificate is not None:
        settings = {
            "ssl_context_factory": lambda _config, _default: certificate.context,
            "callback_notify": certificate.renew, "timeout_notify": _CERTIFICATE_EVERY,
        }  # fmt: skip
    config = uvicorn.Config(
        served, http="h11", loop="asyncio", ws="none", lifespan="off", interface="asgi3", workers=1,
        log_config=None, log_level="warning", access_log=False, server_header=False, proxy_headers=False,
        limit_concurrency=_CONCURRENT, timeout_graceful_shutdown=_GRACE, **settings,
    )  # fmt: skip
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when it has ended
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        signal.signal(signal.SIGTERM, before)


def _tell(host: str, made: tuple[dict[str, str], bool], settings: Settings) -> None:
    """Print where the console is, and new tokens, once."""
    url = f"{'http' if settings.tls is None else 'https'}://{host}/"
    tokens = made[0] if made[1] else {}
    if settings.as_json:
        print_json({"url": url, "tokens": tokens})
        return
    print(f"console at {url}", flush=True)
    for role, token in tokens.items():
        print(f"{role} token: {token}", flush=True)
    if not tokens:
        print(f"tokens are in {settings.token_file}", flush=True)
