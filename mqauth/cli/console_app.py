"""Options of ``mqauth console``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mqauth.cli import dlq
from mqauth.cli.dlq_app import (
    Broker,
    BrokerFile,
    Json,
    PassphraseEnv,
    PassphraseFile,
    Queue,
    Reviewer,
    Topic,
    place_of,
)
from mqauth.errors import ConfigurationError


def console(
    *, broker: Broker, queue: Queue = None, topic: Topic = None,
    config: Annotated[
        Path | None, typer.Option("--config", help="The consumer's configuration: its verifier judges.")
    ] = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="The reviewer's keystore folder or PEM file, to redrive.")
    ] = None,
    audit: Annotated[
        Path | None, typer.Option("--audit", help="The reviewer's own audit file; without it, only looking.")
    ] = None,
    files: Annotated[
        list[Path] | None, typer.Option("--audit-file", help="An audit file for the account; repeat it.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="Keeps the login tokens; made with mode 0600.")
    ] = None,
    oidc: Annotated[
        Path | None, typer.Option("--oidc", help="TOML file: log in at an OpenID provider.")
    ] = None,
    tokens: Annotated[
        bool, typer.Option("--tokens/--no-tokens", help="Local tokens beside --oidc, or none.")
    ] = True,
    host: Annotated[str, typer.Option("--host", help="Loopback, unless there is TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0: any that is free.")] = 8090,
    names: Annotated[
        list[str] | None, typer.Option("--name", help="Another host:port that people use; repeat it.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="PEM file with the certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM file with its key.")] = None,
    authority: Annotated[
        str | None, typer.Option("--authority", help="Issuer of the releases, as consumers know it.")
    ] = None,
    lifetime: Annotated[int, typer.Option("--lifetime", help="Seconds a release lives.")] = 3600,
    reviewer: Reviewer = None, passphrase_env: PassphraseEnv = None, passphrase_file: PassphraseFile = None,
    broker_settings: BrokerFile = None, as_json: Json = False,
) -> int:  # fmt: skip
    """Review dead letters in a browser, until it is stopped."""
    from mqauth.cli import console as console_command

    if (tls_cert is None) != (tls_key is None):
        raise ConfigurationError("--tls-cert and --tls-key go together")
    if key is None and authority is not None:
        raise ConfigurationError("--authority: only with --key")
    if not tokens and (oidc is None or token_file is not None):
        raise ConfigurationError("--no-tokens: only with --oidc, and without --token-file")
    signing = None if key is None else dlq.Key(
        path=key, reviewer=reviewer, authority=authority, lifetime=lifetime,
        passphrase_env=passphrase_env, passphrase_file=passphrase_file,
    )  # fmt: skip
    return console_command.console(
        place_of(broker, queue, topic, broker_settings),
        console_command.Settings(
            config=config, key=signing, reviewer=reviewer, audit=audit, files=files or (), token_file=token_file,
            oidc=oidc, tokens=tokens, host=host, port=port, names=names or (), as_json=as_json,
            tls=None if tls_cert is None or tls_key is None else (tls_cert, tls_key),
        ),
    )  # fmt: skip
