"""``mqauth dlq``: lists, judges, redrives and discards dead letters through a review session, and prints."""

from __future__ import annotations

import getpass
import signal
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mqauth import AuditFile, ConfigurationError, Key, load
from mqauth.cli.app import (
    INTERRUPTED,
    Authority,
    Broker,
    BrokerFile,
    Config,
    From,
    Json,
    Lifetime,
    PassphraseEnv,
    PassphraseFile,
    Queue,
    Reviewer,
    To,
    Topic,
    answer,
    group,
    print_json,
    progress_bar,
    read_texts,
    standard_input,
)
from mqauth.cli.broker import Place, opened, place_of
from mqauth.cli.forms import TO_CHANGE, TO_READ, WORD, CommandFailed, known_reason, pick
from mqauth.cli.letter_tables import (
    print_account,
    print_groups,
    print_ledger,
    print_letters,
    print_rehearsal,
    print_verdicts,
)
from mqauth.cli.settings import FILE, file_of, given, review_of, settings_of
from mqauth.cli.tables import Wide
from mqauth.config.toml_file import read_passphrase
from mqauth.errors import require
from mqauth.keystore import ReferenceKey, signing_key
from mqauth.letters.release import WAIVABLE
from mqauth.review import (
    DISCARD,
    REDRIVE,
    Account,
    Filter,
    Index,
    Plan,
    Selection,
    Session,
    reviewers_releaser,
    take_in,
    waivable,
)

app: Final = group("List, check, redrive and discard dead letters.", "mqauth dlq groups")
Id = Annotated[str | None, typer.Option("--id", help="Id of a letter, or its beginning.")]
Rejected = Annotated[
    str | None,
    typer.Option("--reason", parser=known_reason, metavar="<str>", help="Dead letters rejected for this reason."),
]
Issuer = Annotated[str | None, typer.Option("--issuer", help="Dead letters that claim this issuer.")]
Kid = Annotated[str | None, typer.Option("--kid", help="Dead letters that claim this key.")]
Subject = Annotated[str | None, typer.Option("--subject", help="Dead letters that claim this producer.")]
Destination = Annotated[str | None, typer.Option("--destination", help="Dead letters sent to this destination.")]
Sound = Annotated[bool | None, typer.Option("--intact/--not-intact", help="Dead letters that are intact, or not.")]
RejectedOrWhy = Annotated[
    str | None,
    typer.Option(
        "--reason",
        parser=known_reason,
        metavar="<str>",
        help="Dead letters rejected for this reason; or, in several words, why you act.",
    ),
]
Why = Annotated[str | None, typer.Option("--why", help="Why you act, one line; required.")]
Audit = Annotated[Path | None, typer.Option("--audit", help="The reviewer's own audit file.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
Rate = Annotated[float | None, typer.Option("--rate", help="Rate limit (dead letters per second).")]


@app.command("list")
def list_letters(
    *, broker: Broker = None, config: Config = None, queue: Queue = None, topic: Topic = None,
    id: Id = None, reason: Rejected = None, issuer: Issuer = None, kid: Kid = None, subject: Subject = None,
    destination: Destination = None, since: From = None, until: To = None, sound: Sound = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="How many letters.")] = 100, as_json: Json = False,
    broker_settings: BrokerFile = None, wide: Wide = False,
) -> None:  # fmt: skip
    """List dead letters in the order of the queue. None is removed."""
    wanted = Filter(since=since, until=until, id=id, reason=reason, issuer=issuer, kid=kid, subject=subject,
                     destination=destination, sound=sound)  # fmt: skip
    with _surveyed(_place(broker, queue, topic, broker_settings, config), as_json) as (session, index):
        print_letters(session, index, _resolved(index, wanted), limit=limit, as_json=as_json, wide=wide)


@app.command("groups")
def groups(
    *, broker: Broker = None, config: Config = None, queue: Queue = None, topic: Topic = None,
    id: Id = None, reason: Rejected = None, issuer: Issuer = None, kid: Kid = None, subject: Subject = None,
    destination: Destination = None, since: From = None, until: To = None, sound: Sound = None,
    as_json: Json = False, broker_settings: BrokerFile = None, wide: Wide = False,
) -> None:  # fmt: skip
    """Count dead letters by reason, key, producer and destination."""
    wanted = Filter(since=since, until=until, id=id, reason=reason, issuer=issuer, kid=kid, subject=subject,
                     destination=destination, sound=sound)  # fmt: skip
    with _surveyed(_place(broker, queue, topic, broker_settings, config), as_json) as (session, index):
        print_groups(session, index, _resolved(index, wanted), as_json=as_json, wide=wide)


@app.command("show")
def show(
    *, letter: Annotated[str, typer.Argument(help="Id of a letter, or its beginning.")],
    broker: Broker = None, config: Config = None, queue: Queue = None, topic: Topic = None,
    as_json: Json = False, broker_settings: BrokerFile = None,
) -> None:  # fmt: skip
    """Print one dead letter whole, as JSON.

    It has the reason, whether the letter is intact, and the original message.
    """
    with _surveyed(_place(broker, queue, topic, broker_settings, config), True) as (_, index):
        whole = pick(letter, (id for id, _ in index.ids()), option="letter")
        for row in index.page(Filter(id=whole)):
            print_json(index.reading(row.number).as_dict())


@app.command("check")
def check(
    *, broker: Broker = None, config: Config = None, queue: Queue = None, topic: Topic = None, id: Id = None,
    reason: Rejected = None, issuer: Issuer = None, kid: Kid = None, subject: Subject = None,
    destination: Destination = None, since: From = None, until: To = None, sound: Sound = None,
    as_json: Json = False, broker_settings: BrokerFile = None,
) -> None:  # fmt: skip
    """Ask what the verdict on dead letters would be today. Nothing is changed."""
    wanted = Filter(since=since, until=until, id=id, reason=reason, issuer=issuer, kid=kid, subject=subject,
                     destination=destination, sound=sound)  # fmt: skip
    place, guard = _place(broker, queue, topic, broker_settings, config), load(file_of(config)).trial
    with _surveyed(place, as_json, guard=guard) as (session, index):
        print_verdicts(index, session.judge(index, _resolved(index, wanted)), as_json=as_json)


@app.command("redrive")
def redrive(
    *, broker: Broker = None, config: Config = None, audit: Audit = None,
    key: Annotated[
        Path | None, typer.Option("--key", help="The reviewer's keystore folder or PEM file.")
    ] = None,
    queue: Queue = None, topic: Topic = None, id: Id = None, reason: RejectedOrWhy = None, issuer: Issuer = None,
    kid: Kid = None, subject: Subject = None, destination: Destination = None, since: From = None,
    until: To = None, sound: Sound = None,
    waive: Annotated[
        list[str] | None, typer.Option("--waive", help=f"Waive where needed: {', '.join(WAIVABLE)}.")
    ] = None,
    scope: Annotated[
        str | None, typer.Option("--scope", help="Release for this consumer group or queue only.")
    ] = None,
    authority: Authority = None, lifetime: Lifetime = 3600, reviewer: Reviewer = None,
    passphrase_env: PassphraseEnv = None, passphrase_file: PassphraseFile = None, rate: Rate = None,
    dry_run: DryRun = False, yes: Yes = False, as_json: Json = False, why: Why = None,
    broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Send the original messages back, each with a release.

    A release is your signed permission. Exits with 1 where some were refused or left.
    """
    reason, why = filter_and_why(reason, why)
    wanted = Filter(since=since, until=until, id=id, reason=reason, issuer=issuer, kid=kid, subject=subject,
                     destination=destination, sound=sound)  # fmt: skip
    place, mine = _place(broker, queue, topic, broker_settings, config), review_of(settings_of(config))
    audit, guard = given(audit, "--audit", mine.audit), load(file_of(config)).trial
    read_key = key_reader(given(key, "--key", mine.key), passphrase_env, passphrase_file)
    releaser = reviewers_releaser(guard, read_key, authority=authority or mine.authority, lifetime=lifetime)
    name = reviewer_of(read_key, reviewer or mine.reviewer)
    # A key that does not speak for the reviewer is refused before anything is connected.
    releaser(name)
    plan = Plan(act=REDRIVE, wanted=wanted, reason=why, waive=waivable(waive or ()), scope=scope, rate=rate,
                reviewer=name)  # fmt: skip
    return _carry_out(place, plan, audit, yes=yes, dry_run=dry_run, as_json=as_json, guard=guard,
                      releaser=releaser)  # fmt: skip


@app.command("discard")
def discard(
    *, broker: Broker = None, config: Config = None, audit: Audit = None,
    queue: Queue = None, topic: Topic = None, id: Id = None,
    reason: RejectedOrWhy = None, issuer: Issuer = None, kid: Kid = None, subject: Subject = None,
    destination: Destination = None, since: From = None, until: To = None, sound: Sound = None,
    reviewer: Reviewer = None, rate: Rate = None, dry_run: DryRun = False, yes: Yes = False,
    as_json: Json = False, why: Why = None, broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Remove dead letters for good, each with an audit record. Exits with 1 where some were left."""
    reason, why = filter_and_why(reason, why)
    wanted = Filter(since=since, until=until, id=id, reason=reason, issuer=issuer, kid=kid, subject=subject,
                     destination=destination, sound=sound)  # fmt: skip
    place, mine = _place(broker, queue, topic, broker_settings, config), review_of(settings_of(config))
    name = reviewer or mine.reviewer or getpass.getuser()
    plan = Plan(act=DISCARD, wanted=wanted, reason=why, rate=rate, reviewer=name)
    return _carry_out(place, plan, given(audit, "--audit", mine.audit), yes=yes, dry_run=dry_run, as_json=as_json)


@app.command("export")
def export(
    *, broker: Broker = None, config: Config = None, queue: Queue = None, topic: Topic = None,
    id: Id = None, reason: Rejected = None, issuer: Issuer = None, kid: Kid = None, subject: Subject = None,
    destination: Destination = None, since: From = None, until: To = None, sound: Sound = None,
    as_json: Json = False, broker_settings: BrokerFile = None,
) -> None:  # fmt: skip
    """Print dead letters as JSON lines. None is removed."""
    wanted = Filter(since=since, until=until, id=id, reason=reason, issuer=issuer, kid=kid, subject=subject,
                     destination=destination, sound=sound)  # fmt: skip
    with _surveyed(_place(broker, queue, topic, broker_settings, config), True) as (_, index):
        for form in index.forms(_resolved(index, wanted)):
            print_json(form)


@app.command("import")
def import_letters(
    *, broker: Broker = None, config: Config = None, queue: Queue = None, topic: Topic = None,
    as_json: Json = False, broker_settings: BrokerFile = None,
) -> None:  # fmt: skip
    """Publish exported dead letters from standard input. The first that is not intact ends it."""
    with opened(_place(broker, queue, topic, broker_settings, config)) as session:
        forms = (text.parse() for text in read_texts(standard_input(), lines=True))
        count = session.run(take_in(session.box, forms))
    answer(as_json, {"imported": count}, f"{count} letters imported")


@app.command("balance")
def balance(
    *,
    files: Annotated[
        list[Path] | None, typer.Argument(help="Audit files of consumers and reviewers.", show_default=False)
    ] = None,
    broker: Broker = None, config: Config = None, queue: Queue = None, topic: Topic = None, as_json: Json = False,
    broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Compare rejected with open + redriven + discarded.

    Exits with 1 where that does not add up: dead letters were lost, or removed by others.
    """
    files = files or list(review_of(settings_of(config)).audit_files)
    require(files, f"no audit files: name them, or [review] audit_files in {FILE}")
    with _surveyed(_place(broker, queue, topic, broker_settings, config), as_json) as (session, index):
        ledger = session.ledger(index, files)
    print_ledger(ledger, as_json=as_json)
    return 1 if ledger.difference else 0


@app.command("depth")
def depth(
    *,
    most: Annotated[
        int | None, typer.Option("--max", min=0, help="Exit with 1 where there are more dead letters.")
    ] = None,
    broker: Broker = None, config: Config = None, queue: Queue = None, topic: Topic = None, as_json: Json = False,
    broker_settings: BrokerFile = None,
) -> int:  # fmt: skip
    """Count dead letters without reading them, for a probe.

    Exits with 1 where there are more than --max.
    """
    with opened(_place(broker, queue, topic, broker_settings, config)) as session:
        found, name = session.depth(), session.box.name
    limit = "" if most is None else f"; at most {most}"
    answer(as_json, {"open": found, "max": most}, f"{found} dead letters of {name}{limit}")
    return 1 if most is not None and found > most else 0


def _place(
    broker: str | None, queue: str | None, topic: str | None, settings: Path | None, config: Path | None
) -> Place:
    return place_of(broker, queue, topic, settings, settings_of(config))


def key_reader(
    path: Path, passphrase_env: str | None, passphrase_file: Path | None
) -> Callable[[], Key | ReferenceKey]:
    """Return a function that reads the reviewer's key from a keystore folder or PEM file."""
    return lambda: signing_key(path, passphrase=read_passphrase(env=passphrase_env, file=passphrase_file))


def reviewer_of(read_key: Callable[[], Key | ReferenceKey], named: str | None) -> str:
    """Return the name of the reviewer: as given, the key's only subject, or the user of this machine."""
    subjects = sorted(read_key().subjects or ())
    return named or (subjects[0] if len(subjects) == 1 else getpass.getuser())


def filter_and_why(reason: str | None, why: str | None) -> tuple[str | None, str]:
    """Return the reason to filter by, and the reason of the act, from ``--reason`` and ``--why``.

    ``--reason`` in several words is the reason of the act. A single word is always a filter: a misspelt ``expird``
    must not become the reason of an act on all letters.

    Raises:
        ConfigurationError: the act has no reason.
    """
    if why is None and reason is not None and not WORD.fullmatch(reason):
        return None, reason
    if why is None:
        raise ConfigurationError("an act needs a reason: --why, or --reason in more than one word")
    return reason, why


@contextmanager
def _surveyed(place: Place, quiet: bool, **settings: Any) -> Iterator[tuple[Session, Index]]:
    """Connect to a broker and read all letters, with their number on a terminal."""
    with opened(place, **settings) as session, _index_of(session, quiet) as index:
        yield session, index


def _index_of(session: Session, quiet: bool) -> Index:
    with progress_bar("reading letters", None, quiet=quiet) as advance:
        return session.survey(progress=advance)


def _resolved(index: Index, wanted: Filter, least: int = TO_READ) -> Filter:
    """Return a filter with the whole ids of the letter and the key whose beginnings it has."""
    # An empty id means letters without one.
    if wanted.id:
        wanted = replace(wanted, id=pick(wanted.id, (id for id, _ in index.ids()), option="--id", least=least))
    if wanted.kid:
        kids = (one.kid for one in index.groups())
        wanted = replace(wanted, kid=pick(wanted.kid, kids, option="--kid", least=least))
    return wanted


def _carry_out(
    place: Place, plan: Plan, audit: Path, *, yes: bool, dry_run: bool, as_json: bool, **settings: Any
) -> int:
    """Rehearse a plan, ask, and act; return 0 where every letter was acted on, else 1."""
    with opened(place, **settings) as session:
        with _index_of(session, as_json) as index:
            plan = replace(plan, wanted=_resolved(index, plan.wanted, TO_CHANGE))
            selection, counts = session.rehearse(index, plan)
        if dry_run:
            print_rehearsal(plan.act, counts, as_json=as_json)
            return 0
        if not yes:
            _ask(plan, session.box.name, counts, as_json=as_json)
        with AuditFile(audit) as session.audit:
            done, interrupted = _act(session, plan, selection, quiet=as_json)
    print_account(plan.act, done, as_json=as_json)
    return INTERRUPTED if interrupted else 0 if done.done + done.gone == done.selected else 1


def _ask(plan: Plan, name: str, counts: Counter[str], *, as_json: bool) -> None:
    require(
        not as_json and sys.stdin.isatty(), "--yes: required where nobody can be asked (or look with --dry-run)"
    )
    end = " for good" if plan.act == DISCARD else ""
    ids = "".join(f", {key} {found}" for key, found in (("id", plan.wanted.id), ("kid", plan.wanted.kid)) if found)
    question = f"{plan.act.capitalize()} {counts['accepted']} of {counts.total()} letters of {name}{ids}{end}?"
    if not typer.confirm(question, err=True):
        raise CommandFailed("nothing was done")


def _act(session: Session, plan: Plan, selection: Selection, *, quiet: bool) -> tuple[Account, bool]:
    """Act with progress on a terminal. Ctrl-C stops before the next letter, and the account stays exact."""
    cancelled = threading.Event()
    kept = signal.signal(signal.SIGINT, lambda *_: cancelled.set())
    try:
        with progress_bar(plan.act, len(selection), quiet=quiet) as advance:
            done = session.act(plan, selection, cancelled=cancelled, progress=advance)
            return done, cancelled.is_set()
    finally:
        signal.signal(signal.SIGINT, kept)
