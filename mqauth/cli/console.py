"""``mqauth console``: serves the web console for dead letters on uvicorn."""

from __future__ import annotations

import getpass
import ipaddress
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from mqauth import load
from mqauth.cli.app import (
    Authority,
    Broker,
    Config,
    Json,
    Lifetime,
    PassphraseEnv,
    PassphraseFile,
    Queue,
    Reviewer,
    Topic,
    answer,
    options,
)
from mqauth.cli.broker import opened, places_of
from mqauth.cli.serve import Serving, listen, origin
from mqauth.cli.settings import file_of, key_reader, review_of, reviewer_of, settings_of
from mqauth.errors import refusing, require
from mqauth.http.connection import FetchFailed
from mqauth.review import SharedAuditFile, reviewers_releaser


@options(serving=Serving)
def console(
    *,
    serving: Serving,
    broker: Broker = None,
    queue: Queue = None,
    topic: Topic = None,
    config: Config = None,
    key: Annotated[
        Path | None,
        typer.Option(
            "--key", help="The reviewer's keystore folder or PEM file, to redrive."
        ),
    ] = None,
    audit: Annotated[
        Path | None,
        typer.Option(
            "--audit", help="The reviewer's own audit file; without it, only looking."
        ),
    ] = None,
    files: Annotated[
        list[Path] | None,
        typer.Option(
            "--audit-file", help="An audit file for the balance; may be repeated."
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", help="Keeps the login tokens; made with mode 0600."),
    ] = None,
    oidc: Annotated[
        Path | None,
        typer.Option(
            "--oidc", help="TOML file of the OpenID provider where people sign in."
        ),
    ] = None,
    tokens: Annotated[
        bool,
        typer.Option("--tokens/--no-tokens", help="Local tokens beside --oidc, or none."),
    ] = True,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65_535, help="0 for any that is free.")
    ] = 8090,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--name", help="Another host:port that people use; may be repeated."
        ),
    ] = None,
    authority: Authority = None,
    lifetime: Lifetime = 3600,
    reviewer: Reviewer = None,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> None:
    """Review dead letters in a browser. It runs until Ctrl-C."""
    tls = serving.certificate is not None
    require(
        tokens or (oidc is not None and token_file is None),
        "--no-tokens: only with --oidc, and without --token-file",
    )
    settings = settings_of(config)
    mine = review_of(settings)
    key, audit, files = (
        key or mine.key,
        audit or mine.audit,
        files or list(mine.audit_files),
    )
    authority, reviewer = authority or mine.authority, reviewer or mine.reviewer
    require(key is not None or authority is None, "--authority: only with --key")
    addresses = places_of(broker, queue, topic, settings)
    with refusing(
        ImportError, 'mqauth console needs its packages: install "mqauth[cli,console]"'
    ):
        from mqauth.console import (
            Backend,
            Provider,
            Tokens,
            application,
            read_settings,
            redirect_uri,
        )
        from mqauth.console.site import fresh_tokens, tokens_of
    read_key = None if key is None else key_reader(key, passphrase_env, passphrase_file)

    require(
        read_key is None or settings.consumer,
        "--key: needs --config too, the consumer's configuration",
    )

    def powers() -> dict[str, Any]:
        """Return the pipeline and the releaser of one session; each has its own, since each has its own loop."""
        guard = None if settings.consumer is None else load(file_of(config)).trial
        signs = (
            None
            if guard is None or read_key is None
            else reviewers_releaser(
                guard, read_key, authority=authority, lifetime=lifetime
            )
        )
        return {"guard": guard, "releaser": signs}

    name = "" if read_key is not None else reviewer or getpass.getuser()
    if read_key is not None:
        # The name of whoever signs in with the local token, for which the key has to speak. Without tokens
        # everybody has a name of their own; any name that the key speaks for shows that it is good.
        subjects = () if tokens else getattr(read_key(), "subjects", None) or ()
        name = reviewer_of(read_key, reviewer or min(subjects, default=None))
        powers()["releaser"](name)
    # Wrong settings of the provider are told now. One that cannot be reached stops no start: it may come back.
    provider = None if oidc is None else Provider(read_settings(oidc))
    try:
        _ = None if provider is None else provider.metadata()
    except FetchFailed as error:
        print(
            f"warning: identity provider: {error}; the console asks it again at each login",
            file=sys.stderr,
        )
    with ExitStack() as stack:
        listener = stack.enter_context(listen(serving.host, port, tls=tls))
        # The ``Host`` headers that the console answers to; the first one is printed.
        address, number = listener.getsockname()[:2]
        url = None if provider is None else provider.settings.url
        require(
            provider is None
            or url is not None
            or not ipaddress.ip_address(address).is_unspecified,
            "--oidc: url: required, since the console listens on every address",
        )
        own = origin(listener, tls=tls)
        hosts = [
            own.partition("://")[2],
            f"localhost:{number}",
            *map(str.lower, names or ()),
            *([] if url is None else [url.partition("://")[2].lower()]),
        ]
        back = None if provider is None else redirect_uri(hosts, provider, tls=tls)
        sink = None if audit is None else SharedAuditFile(audit)
        backends = {}
        for called, address in addresses.items():
            backends[called] = Backend(
                stack.enter_context(opened(address, audit=sink, **powers())),
                files=files or (),
            )
            stack.callback(backends[called].close)
        made, fresh = (
            (fresh_tokens(), True) if token_file is None else tokens_of(token_file)
        )
        served = application(
            backends,
            tokens=Tokens(made) if tokens else None,
            provider=provider,
            hosts=hosts,
            reviewer=name,
            tls=tls,
        )
        shown = made if tokens and fresh else {}

        def told() -> None:
            for backend in backends.values():
                backend.read(name)
            answer(
                as_json,
                {"url": f"{own}/", "tokens": shown}
                | ({} if back is None else {"redirect_uri": back}),
                f"console at {own}/",
                *(
                    []
                    if back is None
                    else [f"redirect URI at the identity provider: {back}"]
                ),
                *(f"{role} token: {token}" for role, token in shown.items()),
                *([f"tokens are in {token_file}"] if tokens and not fresh else []),
            )

        serving.run(served, listener, told, requests=64, verb="console", extra="console")
