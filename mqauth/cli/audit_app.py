"""Options of ``mqauth audit``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from mqauth.audit.log import DIMENSIONS, Selection, parse_time
from mqauth.cli import audit
from mqauth.config.load import load
from mqauth.errors import ConfigurationError

audit_app: Final = typer.Typer(
    help="Audit files: whole or not, and what they say.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

Files = Annotated[list[Path], typer.Argument(help="Audit files, in order; rotated parts are found.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
From = Annotated[str | None, typer.Option("--from", help="From this time on, RFC 3339.")]
To = Annotated[str | None, typer.Option("--to", help="Before this time.")]


@audit_app.callback(invoke_without_command=True)
def audit_group(context: typer.Context) -> None:
    """Check, read and question audit files."""
    if context.invoked_subcommand is None:
        raise ConfigurationError("no command given: try mqauth audit verify FILE, or mqauth audit --help")


@audit_app.command("verify")
def verify(
    files: Files,
    heads: Annotated[Path | None, typer.Option("--heads", help="Signed heads to hold the log against.")] = None,
    keys: Annotated[Path | None, typer.Option("--keys", help="JWK Set of who may sign heads.")] = None,
    continued: Annotated[
        bool, typer.Option("--continued", help="Older files are archived: begin at a signed head.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Find any edited, removed, inserted or reordered record; with heads also what was recomputed or cut."""
    return audit.verify(files, heads=heads, keys=keys, continued=continued, json=as_json)


@audit_app.command("tail")
def tail(
    file: Annotated[Path, typer.Argument(help="An audit file.")],
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=100_000, help="How many.")] = 20,
    on: Annotated[bool, typer.Option("--follow", "-f", help="Go on as it grows, through rotation.")] = False,
    as_json: Json = False,
) -> int:
    """Show the last records, and with --follow those that come, until interrupted."""
    return audit.tail(file, lines=lines, on=on, json=as_json)


@audit_app.command("show")
def show(record_id: Annotated[str, typer.Argument(help="Id of a record or a dead letter.")], files: Files) -> int:
    """Print one record whole, as JSON."""
    return audit.show(files, record_id)


@audit_app.command("trace")
def trace(
    *,
    files: Files,
    kid: Annotated[str | None, typer.Option("--kid", help="What this key signed.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="What this producer sent.")] = None,
    jti: Annotated[str | None, typer.Option("--jti", help="Where this token was seen.")] = None,
    verified: Annotated[bool, typer.Option("--verified", help="Nothing that was merely claimed.")] = False,
    since: From = None,
    until: To = None,
    as_json: Json = False,
) -> int:
    """Print what a key, a producer or a token left, in order."""
    if kid is None and subject is None and jti is None:
        raise ConfigurationError("trace wants --kid, --subject or --jti")
    found = Selection(kid=kid, subject=subject, jti=jti, verified=verified, since=_time(since), until=_time(until))
    return audit.trace(files, found, json=as_json)


@audit_app.command("stats")
def stats(
    files: Files,
    by: Annotated[str, typer.Option("--by", help=", ".join(DIMENSIONS))] = "reason",
    since: From = None,
    until: To = None,
    as_json: Json = False,
) -> int:
    """Count records by reason, issuer, kid, subject, destination, verdict, alert or time, drawn as bars."""
    return audit.stats(files, Selection(since=_time(since), until=_time(until)), by=by, json=as_json)


@audit_app.command("detect")
def detect(
    files: Files,
    config: Annotated[Path | None, typer.Option("--config", help="Thresholds of its [misuse].")] = None,
    as_json: Json = False,
) -> int:
    """Run the misuse detectors over an old log: 0 nothing found, 1 something."""
    return audit.detect(files, json=as_json, thresholds=None if config is None else load(config).thresholds)


def _time(text: str | None) -> float | None:
    """Return UTC seconds, where a time was given."""
    return None if text is None else parse_time(text)
