"""``mqauth console``: the web console for dead letters, on uvicorn."""

from __future__ import annotations

import contextlib
import getpass
import ipaddress
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import mqauth
from mqauth.audit.file import AuditFile
from mqauth.cli.dlq import Key
from mqauth.cli.dlq_broker import Place, opened
from mqauth.cli.output import print_json
from mqauth.cli.serve import Certificate, listen
from mqauth.config.toml_file import read_passphrase
from mqauth.errors import ConfigurationError
from mqauth.judging.pipeline import Pipeline
from mqauth.keystore import signing_key
from mqauth.keystore.remote.connection import FetchFailed
from mqauth.letters.authorities import Releaser

if TYPE_CHECKING:
    from mqauth.console import Provider

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
        oidc: how people log in at an OpenID provider.
        tokens: whether there are local tokens.
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
    oidc: Path | None
    tokens: bool
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
        from mqauth.console import Desk, Tokens, application, redirect_uri
    except ImportError as error:
        raise ConfigurationError('mqauth console needs its packages: install "mqauth[cli,console]"') from error
    guard = None if settings.config is None else mqauth.load(settings.config).judge
    releaser, reviewer = _releasing(settings, guard)
    provider = None if settings.oidc is None else _provider(settings.oidc)
    certificate = None if settings.tls is None else Certificate(*settings.tls)
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(listen(settings.host, settings.port, tls=certificate is not None))
        hosts = _hosts(listener, settings.names, provider)
        back = None if provider is None else redirect_uri(hosts, provider, tls=certificate is not None)
        audit = None if settings.audit is None else stack.enter_context(AuditFile(settings.audit))
        found = stack.enter_context(opened(place))
        desk = Desk(
            found.box, found.run, guard=guard, releaser=releaser, audit=audit, files=settings.files,
            originals=found.originals,
        )  # fmt: skip
        stack.callback(desk.close)
        made = _tokens(settings)
        served = application(
            desk, tokens=Tokens(made[0]) if settings.tokens else None, provider=provider, hosts=hosts,
            reviewer=reviewer, tls=certificate is not None,
        )  # fmt: skip
        desk.read(reviewer)
        _tell(hosts[0], made, settings, back)
        _serve(served, listener, certificate)
    return 0


def _releasing(settings: Settings, guard: Pipeline | None) -> tuple[Callable[[str], Releaser] | None, str]:
    """Return what signs releases, tried once, and the name of the reviewer with the local token."""
    key = settings.key
    if key is None:
        return None, settings.reviewer or getpass.getuser()
    if guard is None:
        raise ConfigurationError("--key: wants --config too, the consumer's configuration")
    if not settings.tokens and key.reviewer is None:  # nobody in particular: any name it speaks for shows it good
        key = replace(key, reviewer=_spoken_for(key))
    found = key.releaser(guard)
    return lambda name: replace(key, reviewer=name).releaser(guard), found.reviewer


def _spoken_for(key: Key) -> str | None:
    """Return a name that the key speaks for."""
    passphrase = read_passphrase(env=key.passphrase_env, file=key.passphrase_file)
    return min(signing_key(key.path, passphrase=passphrase).subjects or (), default=None)


def _provider(path: Path) -> Provider:
    """Return the OpenID provider, asked once: what is wrong is told now, and what is out of reach may come.

    Raises:
        ConfigurationError: its file or what it says of itself cannot be used.
    """
    from mqauth.console import Provider, read_settings

    provider = Provider(read_settings(path))
    try:
        provider.metadata()
    except FetchFailed as error:
        print(f"warning: identity provider: {error}; it is asked again at each login", file=sys.stderr)
    return provider


def _tokens(settings: Settings) -> tuple[dict[str, str], bool]:
    """Return the local tokens, and whether they are new."""
    from mqauth.console.access import fresh_tokens, token_file

    if not settings.tokens:
        return {}, False
    return (fresh_tokens(), True) if settings.token_file is None else token_file(settings.token_file)


def _hosts(listener: socket.socket, names: Sequence[str], provider: Provider | None) -> list[str]:
    """Return the ``Host`` headers that are ours, the one to print first.

    Raises:
        ConfigurationError: the provider could not send anybody back to where we listen.
    """
    host, port = listener.getsockname()[:2]
    url = None if provider is None else provider.settings.url
    if provider is not None and url is None and ipaddress.ip_address(host).is_unspecified:
        raise ConfigurationError("--oidc: url: required, the console listens on every address")
    shown = f"[{host}]" if ":" in host else host
    more = [*names, *([] if url is None else [url.partition("://")[2]])]
    return [f"{shown}:{port}", f"localhost:{port}", *(name.lower() for name in more)]


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


def _tell(host: str, made: tuple[dict[str, str], bool], settings: Settings, back: str | None) -> None:
    """Print where the console is, the redirect URI of a provider, and new tokens, once."""
    url = f"{'http' if settings.tls is None else 'https'}://{host}/"
    tokens = made[0] if made[1] else {}
    if settings.as_json:
        print_json({"url": url, "tokens": tokens} | ({} if back is None else {"redirect_uri": back}))
        return
    print(f"console at {url}", flush=True)
    if back is not None:
        print(f"redirect URI at the identity provider: {back}", flush=True)
    for role, token in tokens.items():
        print(f"{role} token: {token}", flush=True)
    if settings.tokens and not tokens:
        print(f"tokens are in {settings.token_file}", flush=True)
