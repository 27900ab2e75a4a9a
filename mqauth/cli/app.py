"""The ``mqauth`` command's options, and the one place where errors become a line and an exit code."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mqauth._version import __version__
from mqauth.cli import keys as key_commands
from mqauth.cli import sign as sign_command
from mqauth.cli import verify as verify_command
from mqauth.cli.audit_app import audit_app
from mqauth.cli.bench import bench
from mqauth.cli.broker import check_url, reached
from mqauth.cli.console_app import console
from mqauth.cli.dlq_app import dlq_app
from mqauth.cli.output import abandon_output, print_error
from mqauth.errors import ConfigurationError, MqauthError, Unavailable
from mqauth.wire.keys import ALGORITHMS

USAGE: Final = 2
UNDECIDED: Final = 3
_INTERRUPTED: Final = 130
_SETTINGS: Final[dict[str, Any]] = {
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["--help", "-h"]},
}

app = typer.Typer(help="Signed tokens on RabbitMQ and Kafka messages.", **_SETTINGS)
keys_app = typer.Typer(help="A producer's keys on disk.", **_SETTINGS)
app.add_typer(keys_app, name="keys")
app.add_typer(audit_app, name="audit")
app.add_typer(dlq_app, name="dlq")
app.command()(console)
app.command()(bench)

Config = Annotated[Path, typer.Option("--config", help="The configuration file (mqauth.toml).")]
Lines = Annotated[bool, typer.Option("--lines", help="One message a line.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Dir = Annotated[Path, typer.Option("--dir", help="The keystore folder.")]
FolderOrPEM = Annotated[Path, typer.Option("--dir", help="The keystore folder, or a single PEM file.")]
Kid = Annotated[str, typer.Option("--kid", help="Which key.")]
PassphraseEnv = Annotated[
    str | None, typer.Option("--passphrase-env", help="Environment variable with the passphrase.")
]
PassphraseFile = Annotated[Path | None, typer.Option("--passphrase-file", help="File with the passphrase.")]
_KEYS: Final = Path("keys")


def run(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code; every error we know of is one line on standard error."""
    if sys.stdout is None:
        return _failed("standard output is closed", 1)
    command = typer.main.get_command(app)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # not every terminal has every letter of a name
    try:
        code = command.main(list(arguments), prog_name="mqauth", standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        return _failed(f"{_first_line(error)} (try mqauth --help)", USAGE)
    except Unavailable as error:
        return _failed(str(error), UNDECIDED)
    except MqauthError as error:
        return _failed(str(error), USAGE)
    except BrokenPipeError:
        abandon_output()
        return 1
    except OSError as error:
        abandon_output()  # it may be what failed, and would fail again on exit
        place = f"{error.filename}: " if error.filename else ""
        return _failed(f"{place}{error.strerror or type(error).__name__}", 1)
    except (KeyboardInterrupt, typer.Abort):
        return _INTERRUPTED
    return code if isinstance(code, int) else 0


@app.callback(invoke_without_command=True)
def mqauth_command(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    """Signed tokens on RabbitMQ and Kafka messages, verified before any handler runs."""
    if version:
        print(f"mqauth {__version__}")
        raise typer.Exit(0)
    if context.invoked_subcommand is None:
        raise ConfigurationError("no command given: try mqauth demo, or mqauth --help")


@app.command()
def demo(
    broker: Annotated[
        str | None, typer.Option("--broker", help="amqp://... or kafka://host:port; by default in memory.")
    ] = None,
    as_json: Json = False,
    audit: Annotated[Path | None, typer.Option("--audit", help="Leave the audit file here.")] = None,
    messages: Annotated[int, typer.Option("--messages", min=1, help="Honest messages.")] = 3,
) -> int:
    """Run a producer, a consumer and an attacker, and show what became of every message."""
    from mqauth.cli import demo as demo_command

    if broker is None:
        return demo_command.demo(None, as_json=as_json, audit=audit, messages=messages)
    check_url("--broker", broker)
    with reached("--broker"):
        return demo_command.demo(broker, as_json=as_json, audit=audit, messages=messages)


@app.command()
def sign(
    *,
    config: Config,
    lines: Lines = False,
    batch: Annotated[
        int, typer.Option("--batch", min=1, max=1024, help="Messages that share a signature, with --lines.")
    ] = 1,
    to: Annotated[
        str | None, typer.Option("--to", help="Destination; the body is standard input, as it is.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", help="Kafka record key, with --to.")] = None,
    header: Annotated[list[str] | None, typer.Option("--header", help="name=value, with --to.")] = None,
    property_: Annotated[list[str] | None, typer.Option("--property", help="name=value, with --to.")] = None,
) -> int:
    """Read messages as JSON and print them with a token; a bad one ends it, those before it are printed."""
    if batch > 1 and not lines:
        raise ConfigurationError("--batch: only with --lines")
    if to is None:
        for name, value in (("--key", key), ("--header", header), ("--property", property_)):
            if value:
                raise ConfigurationError(f"{name}: only with --to")
        return sign_command.sign_forms(config, lines=lines, batch=batch)
    if lines:
        raise ConfigurationError("--lines contradicts --to: the body is standard input, as it is")
    return sign_command.sign_body(config, to, key=key, headers=header or (), properties=property_ or ())


@app.command()
def verify(config: Config, lines: Lines = False) -> int:
    """Read messages as JSON and print the verdict on each.

    Exits 1 where a message was rejected, else 3 where one was deferred or a duplicate, else 0.
    """
    return verify_command.verify_forms(config, lines=lines)


@app.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The configuration file (mqauth.toml).")],
    as_json: Json = False,
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
    online: Annotated[bool, typer.Option("--online", help="Not in this version.")] = False,
) -> int:
    """Find the pitfalls of a configuration file; exits 1 where an error is among them."""
    from mqauth.cli import check as check_command

    return check_command.check_file(file, as_json=as_json, strict=strict, online=online)


@keys_app.callback(invoke_without_command=True)
def keys(context: typer.Context) -> None:
    """Make, list and publish a producer's keys."""
    if context.invoked_subcommand is None:
        raise ConfigurationError("no command given: try mqauth keys new, or mqauth keys --help")


@keys_app.command("new")
def keys_new(
    *,
    folder: Dir = _KEYS,
    algorithm: Annotated[str, typer.Option("--alg", help=", ".join(ALGORITHMS))] = "EdDSA",
    subject: Annotated[
        list[str] | None, typer.Option("--subject", help="A producer it may speak for; else the last key's.")
    ] = None,
    publish_delay: Annotated[
        int | None, typer.Option("--publish-delay", help="Seconds a new key stays pending; kept.")
    ] = None,
    pending: Annotated[bool, typer.Option("--pending", help="A first key does not sign at once.")] = False,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
    as_json: Json = False,
) -> int:
    """Make a key; the first of a folder signs at once, later ones are pending."""
    if algorithm not in ALGORITHMS:
        raise ConfigurationError(f"--alg: must be {', '.join(ALGORITHMS)}")
    return key_commands.new(
        key_commands.Place(folder=folder, passphrase_env=passphrase_env, passphrase_file=passphrase_file),
        algorithm=algorithm, subjects=subject or (), publish_delay=publish_delay, pending=pending,
        as_json=as_json,
    )  # fmt: skip


@keys_app.command("jwks")
def keys_jwks(
    folder: FolderOrPEM = _KEYS, passphrase_env: PassphraseEnv = None, passphrase_file: PassphraseFile = None
) -> int:
    """Print the public keys as a JWK Set."""
    place = key_commands.Place(folder=folder, passphrase_env=passphrase_env, passphrase_file=passphrase_file)
    return key_commands.jwks(place)


@keys_app.command("list")
def keys_list(folder: Dir = _KEYS, as_json: Json = False) -> int:
    """Show every key with its state and times."""
    return key_commands.show(key_commands.Place(folder=folder), as_json=as_json)


@keys_app.command("rotate")
def keys_rotate(folder: Dir = _KEYS, as_json: Json = False) -> int:
    """Advance every key by its clock; safe from cron at any time. Running producers notice within seconds."""
    return key_commands.rotate(key_commands.Place(folder=folder), as_json=as_json)


@keys_app.command("retire")
def keys_retire(kid: Kid, folder: Dir = _KEYS, as_json: Json = False) -> int:
    """Let a key sign nothing more; what it signed is verified still."""
    return key_commands.retire(key_commands.Place(folder=folder), kid, as_json=as_json)


@keys_app.command("revoke")
def keys_revoke(
    kid: Kid,
    reason: Annotated[str, typer.Option("--reason", help="Why, for those who read the JWK Set.")],
    folder: Dir = _KEYS,
    since: Annotated[str | None, typer.Option("--from", help="From this time on; by default wholly.")] = None,
    as_json: Json = False,
) -> int:
    """Let nothing more be verified with a key."""
    place = key_commands.Place(folder=folder)
    return key_commands.revoke(place, kid, since=since, reason=reason, as_json=as_json)


@keys_app.command("serve")
def keys_serve(
    *,
    folders: Annotated[list[Path] | None, typer.Option("--dir", help="A keystore folder; repeat it.")] = None,
    host: Annotated[str, typer.Option("--host", help="Loopback, unless there is TLS.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0: any that is free.")] = 8080,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="PEM file with the certificate.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="PEM file with its key.")] = None,
    as_json: Json = False,
) -> int:
    """Publish the public keys over HTTP(S) at /jwks.json, following rotation, until it is stopped."""
    from mqauth.cli import serve as serve_command

    if (tls_cert is None) != (tls_key is None):
        raise ConfigurationError("--tls-cert and --tls-key go together")
    tls = None if tls_cert is None or tls_key is None else (tls_cert, tls_key)
    return serve_command.serve(folders or [_KEYS], host=host, port=port, tls=tls, as_json=as_json)


def _failed(text: str, code: int) -> int:
    """Print an error and return its exit code."""
    print_error(text)
    return code


def _first_line(error: typer.TyperException) -> str:
    """Return a usage error in one line, without its full stop."""
    return " ".join(error.format_message().split()).rstrip(".")
