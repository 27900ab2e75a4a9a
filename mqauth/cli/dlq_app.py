"""Options of ``mqauth dlq``."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mqauth.audit.log import parse_time
from mqauth.cli import dlq
from mqauth.cli.dlq_broker import Place
from mqauth.cli.dlq_settings import BrokerSettings
from mqauth.errors import ConfigurationError
from mqauth.letters.release import WAIVABLE
from mqauth.review import Filter

_WORD: Final = re.compile(r"\w*")
dlq_app: Final = typer.Typer(
    help="Dead letters: look, judge, redrive, discard.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

Broker = Annotated[str, typer.Option("--broker", help="amqp://... or kafka://host:port.")]
Queue = Annotated[str | None, typer.Option("--queue", help="The dead-letter queue, on RabbitMQ.")]
Topic = Annotated[str | None, typer.Option("--topic", help="The dead-letter topic, on Kafka.")]
BrokerFile = Annotated[
    Path | None,
    typer.Option("--broker-settings", help="TOML file with [broker]: certificates and credentials."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Config = Annotated[Path, typer.Option("--config", help="The consumer's configuration: its verifier judges.")]
Id = Annotated[str | None, typer.Option("--id", help="Id of a letter, or its beginning.")]
ForReason = Annotated[str | None, typer.Option("--reason", help="Rejected for this reason.")]
Issuer = Annotated[str | None, typer.Option("--issuer", help="Claiming this issuer.")]
Kid = Annotated[str | None, typer.Option("--kid", help="Claiming this key.")]
Subject = Annotated[str | None, typer.Option("--subject", help="Claiming this producer.")]
Destination = Annotated[str | None, typer.Option("--destination", help="Sent to this destination, canonical.")]
From = Annotated[str | None, typer.Option("--from", help="Rejected from this time on, RFC 3339.")]
To = Annotated[str | None, typer.Option("--to", help="Rejected before this time.")]
Sound = Annotated[bool | None, typer.Option("--sound/--unsound", help="Whose id and digest hold, or not.")]
ForReasonOrWhy = Annotated[
    str | None, typer.Option("--reason", help="Rejected for this reason; or, in words, the reason of the act.")
]
Why = Annotated[str | None, typer.Option("--why", help="The reason of the act, one line; required.")]
AuditOption = Annotated[Path, typer.Option("--audit", help="The reviewer's own audit file.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Rate = Annotated[float | None, typer.Option("--rate", help="Letters a second at most.")]
Reviewer = Annotated[str | None, typer.Option("--reviewer", help="Who decides.")]
PassphraseEnv = Annotated[
    str | None, typer.Option("--passphrase-env", help="Environment variable with the passphrase.")
]
PassphraseFile = Annotated[Path | None, typer.Option("--passphrase-file", help="File with the passphrase.")]


def _reasons(reason: str | None, why: str | None) -> tuple[str | None, str]:
    """Return the reason that is filtered by, and that of the act; a misspelt one must not act on everything.

    Raises:
        ConfigurationError: the act has none.
    """
    if why is None and reason is not None and not _WORD.fullmatch(reason):
        return None, reason
    if why is None:
        raise ConfigurationError("an act wants its reason: --why, or --reason in more than one word")
    return reason, why


@dlq_app.callback(invoke_without_command=True)
def dlq_group(context: typer.Context) -> None:
    """Look at dead letters, judge them again, let them through or discard them."""
    if context.invoked_subcommand is None:
        raise ConfigurationError("no command given: try mqauth dlq groups, or mqauth dlq --help")


@dlq_app.command("list")
def show_list(
    *, broker: Broker, queue: Queue = None, topic: Topic = None, id: Id = None, reason: ForReason = None,
    issuer: Issuer = None, kid: Kid = None, subject: Subject = None, destination: Destination = None,
    since: From = None, until: To = None, sound: Sound = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many.")] = 100, as_json: Json = False,
    broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Show letters in the order of the queue, consuming none."""
    wanted = _filter(id=id, reason=reason, issuer=issuer, kid=kid, subject=subject, destination=destination,
                     since=since, until=until, sound=sound)  # fmt: skip
    return dlq.show_list(place_of(broker, queue, topic, broker_settings), wanted, limit=limit, as_json=as_json)


@dlq_app.command("groups")
def show_groups(
    *, broker: Broker, queue: Queue = None, topic: Topic = None, id: Id = None, reason: ForReason = None,
    issuer: Issuer = None, kid: Kid = None, subject: Subject = None, destination: Destination = None,
    since: From = None, until: To = None, sound: Sound = None, as_json: Json = False,
    broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Show groups by reason, issuer, kid, subject and destination."""
    wanted = _filter(id=id, reason=reason, issuer=issuer, kid=kid, subject=subject, destination=destination,
                     since=since, until=until, sound=sound)  # fmt: skip
    return dlq.show_groups(place_of(broker, queue, topic, broker_settings), wanted, as_json=as_json)


@dlq_app.command("show")
def show(
    *, letter: Annotated[str, typer.Argument(help="Id of a letter, or its beginning.")], broker: Broker,
    queue: Queue = None, topic: Topic = None, as_json: Json = False,
    broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Print one letter whole, as JSON: what it says, whether it holds, and the original message."""
    return dlq.show_letter(place_of(broker, queue, topic, broker_settings), letter)


@dlq_app.command("judge")
def judge(
    *, broker: Broker, config: Config, queue: Queue = None, topic: Topic = None, id: Id = None,
    reason: ForReason = None, issuer: Issuer = None, kid: Kid = None, subject: Subject = None,
    destination: Destination = None, since: From = None, until: To = None, sound: Sound = None,
    as_json: Json = False,
    broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Say what today's verifier would make of letters, touching none."""
    wanted = _filter(id=id, reason=reason, issuer=issuer, kid=kid, subject=subject, destination=destination,
                     since=since, until=until, sound=sound)  # fmt: skip
    return dlq.judge(place_of(broker, queue, topic, broker_settings), wanted, config, as_json=as_json)


@dlq_app.command("redrive")
def redrive(
    *, broker: Broker, config: Config, audit: AuditOption,
    key: Annotated[Path, typer.Option("--key", help="The reviewer's keystore folder or PEM file.")],
    queue: Queue = None, topic: Topic = None, id: Id = None, reason: ForReasonOrWhy = None, issuer: Issuer = None,
    kid: Kid = None, subject: Subject = None, destination: Destination = None, since: From = None,
    until: To = None, sound: Sound = None,
    waive: Annotated[
        list[str] | None, typer.Option("--waive", help=f"Where needed: {', '.join(WAIVABLE)}.")
    ] = None,
    scope: Annotated[
        str | None, typer.Option("--scope", help="For this consumer group or queue; else each letter's own.")
    ] = None,
    authority: Annotated[
        str | None, typer.Option("--authority", help="Issuer of the releases, as consumers know it.")
    ] = None,
    lifetime: Annotated[int, typer.Option("--lifetime", help="Seconds a release lives.")] = 3600,
    reviewer: Reviewer = None, passphrase_env: PassphraseEnv = None, passphrase_file: PassphraseFile = None,
    rate: Rate = None, dry_run: DryRun = False, yes: Yes = False, as_json: Json = False,
    why: Why = None, broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Send the originals back, each with a release; 1 where some were refused or left."""
    reason, why = _reasons(reason, why)
    wanted = _filter(id=id, reason=reason, issuer=issuer, kid=kid, subject=subject, destination=destination,
                     since=since, until=until, sound=sound)  # fmt: skip
    signing = dlq.Key(path=key, reviewer=reviewer, authority=authority, lifetime=lifetime,
                      passphrase_env=passphrase_env, passphrase_file=passphrase_file)  # fmt: skip
    settings = dlq.Run(why=why, audit=audit, yes=yes, dry_run=dry_run, rate=rate, as_json=as_json)
    place = place_of(broker, queue, topic, broker_settings)
    return dlq.redrive(place, wanted, config, signing, settings, waive=waive or (), scope=scope)


@dlq_app.command("discard")
def discard(
    *, broker: Broker, audit: AuditOption, queue: Queue = None, topic: Topic = None, id: Id = None,
    reason: ForReasonOrWhy = None, issuer: Issuer = None, kid: Kid = None, subject: Subject = None,
    destination: Destination = None, since: From = None, until: To = None, sound: Sound = None,
    reviewer: Reviewer = None, rate: Rate = None, dry_run: DryRun = False, yes: Yes = False,
    as_json: Json = False,
    why: Why = None, broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Remove letters for good, each with an audit record."""
    reason, why = _reasons(reason, why)
    wanted = _filter(id=id, reason=reason, issuer=issuer, kid=kid, subject=subject, destination=destination,
                     since=since, until=until, sound=sound)  # fmt: skip
    settings = dlq.Run(why=why, audit=audit, yes=yes, dry_run=dry_run, rate=rate, as_json=as_json)
    return dlq.discard(place_of(broker, queue, topic, broker_settings), wanted, settings, reviewer=reviewer)


@dlq_app.command("export")
def export(
    *, broker: Broker, queue: Queue = None, topic: Topic = None, id: Id = None, reason: ForReason = None,
    issuer: Issuer = None, kid: Kid = None, subject: Subject = None, destination: Destination = None,
    since: From = None, until: To = None, sound: Sound = None, as_json: Json = False,
    broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Print letters as JSON lines in the message form, removing none."""
    wanted = _filter(id=id, reason=reason, issuer=issuer, kid=kid, subject=subject, destination=destination,
                     since=since, until=until, sound=sound)  # fmt: skip
    return dlq.export(place_of(broker, queue, topic, broker_settings), wanted)


@dlq_app.command("import")
def take_in(
    *, broker: Broker, queue: Queue = None, topic: Topic = None, as_json: Json = False,
    broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Publish exported letters from standard input; one that does not hold ends it."""
    return dlq.take_in(place_of(broker, queue, topic, broker_settings), as_json=as_json)


@dlq_app.command("account")
def account(
    *, files: Annotated[list[Path], typer.Argument(help="Audit files of consumers and reviewers.")],
    broker: Broker, queue: Queue = None, topic: Topic = None, as_json: Json = False,
    broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Show rejected = open + redriven + discarded, and what does not add up: 1 where something does not."""
    return dlq.account(place_of(broker, queue, topic, broker_settings), files, as_json=as_json)


def place_of(broker: str, queue: str | None, topic: str | None, settings: Path | None) -> Place:
    """Return which dead letters, and how their broker is reached.

    Raises:
        ConfigurationError: no broker URL, a queue on Kafka or a topic on RabbitMQ, or settings refused.
    """
    loaded = BrokerSettings() if settings is None else BrokerSettings.load(settings)
    return Place(broker=broker, queue=queue, topic=topic, settings=loaded)


def _filter(*, since: str | None, until: str | None, sound: bool | None, **texts: Any) -> Filter:
    """Return which letters are meant."""
    first = None if since is None else parse_time(since)
    beyond = None if until is None else parse_time(until)
    return replace(Filter(since=first, until=beyond, sound=sound), **texts)
