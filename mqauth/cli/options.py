"""Options that several verbs of ``mqauth`` take, and the application of a verb that has verbs of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mqauth.errors import ConfigurationError, require

SETTINGS: Final[dict[str, Any]] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "add_completion": False,
    "context_settings": {"help_option_names": ["--help", "-h"]},
}
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
PassphraseEnv = Annotated[
    str | None, typer.Option("--passphrase-env", help="Environment variable with the passphrase.")
]
PassphraseFile = Annotated[Path | None, typer.Option("--passphrase-file", help="File with the passphrase.")]
Host = Annotated[str, typer.Option("--host", help="Address to listen on; other than loopback only with TLS.")]
TLSCert = Annotated[Path | None, typer.Option("--tls-cert", help="PEM file with the certificate.")]
TLSKey = Annotated[Path | None, typer.Option("--tls-key", help="PEM file with the key of the certificate.")]
Broker = Annotated[str, typer.Option("--broker", help="amqp://... or kafka://host:port.")]
Queue = Annotated[str | None, typer.Option("--queue", help="The dead-letter queue, on RabbitMQ.")]
Topic = Annotated[str | None, typer.Option("--topic", help="The dead-letter topic, on Kafka.")]
BrokerFile = Annotated[
    Path | None,
    typer.Option("--broker-settings", help="TOML file with [broker]: certificates and credentials."),
]
Reviewer = Annotated[str | None, typer.Option("--reviewer", help="Name of the reviewer, in releases and audit.")]
Authority = Annotated[
    str | None, typer.Option("--authority", help="Issuer of the releases, as the consumers know it.")
]
Lifetime = Annotated[int, typer.Option("--lifetime", help="Seconds for which a release is valid.")]


def group(text: str, example: str) -> typer.Typer:
    """Return the application of a verb with verbs of its own.

    Args:
        text: the line of help.
        example: a command to try, for whoever names no verb.
    """
    app = typer.Typer(help=text, **SETTINGS)

    @app.callback(invoke_without_command=True)
    def named(context: typer.Context) -> None:
        require(
            context.invoked_subcommand is not None,
            f"no command given: try {example}, or {context.command_path} --help",
        )

    return app


def certificate_files(certificate: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """Return the two files of ``--tls-cert`` and ``--tls-key``, ``None`` without them.

    Raises:
        ConfigurationError: only one of them was given.
    """
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigurationError("--tls-cert and --tls-key go together")
    return certificate, key
