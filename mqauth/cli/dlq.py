"""``mqauth dlq``: lists, judges, redrives and discards dead letters.

Each command connects to the broker, reads all dead letters into an index, and asks a
review session. ``redrive`` and ``discard`` rehearse first, ask, and then act.
"""

from __future__ import annotations

import getpass
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mqauth import load, review
from mqauth.audit.record import iso_time
from mqauth.cli import INTERRUPTED
from mqauth.cli.app import (
    Authority,
    Config,
    From,
    Json,
    Lifetime,
    PassphraseEnv,
    PassphraseFile,
    Reviewer,
    To,
    Yes,
    answer,
    group,
    options,
    parsed,
    print_json,
    progress_bar,
    read_texts,
    standard_input,
)
from mqauth.cli.broker import LetterAddress, opened, placed
from mqauth.cli.forms import (
    GROUP,
    LETTER,
    TO_CHANGE,
    TO_READ,
    VERDICT,
    Wide,
    confirmed,
    known_reason,
    pick,
    shown_time,
    table_lines,
)
from mqauth.cli.settings import (
    FILE,
    file_of,
    given,
    key_reader,
    review_of,
    reviewer_of,
    settings_of,
)
from mqauth.errors import ConfigurationError
from mqauth.letters.release import WAIVABLE

app: Final = group("List, check, redrive and discard dead letters.", "mqauth dlq groups")
_DONE: Final = {review.REDRIVE: "redriven", review.DISCARD: "discarded"}
_SHOWN: Final = 20
"""How many ids of a kind ``balance`` prints."""
Audit = Annotated[
    Path | None, typer.Option("--audit", help="The reviewer's own audit file.")
]
Why = Annotated[str, typer.Option("--why", help="Why you act, one line.")]


def _filter(
    *,
    id: Annotated[
        str | None, typer.Option("--id", help="Id of a letter, or its beginning.")
    ] = None,
    reason: Annotated[
        str | None,
        typer.Option(
            "--reason",
            parser=known_reason,
            metavar="<str>",
            help="Dead letters rejected for this reason.",
        ),
    ] = None,
    issuer: Annotated[
        str | None, typer.Option("--issuer", help="Dead letters that claim this issuer.")
    ] = None,
    kid: Annotated[
        str | None, typer.Option("--kid", help="Dead letters that claim this key.")
    ] = None,
    subject: Annotated[
        str | None,
        typer.Option("--subject", help="Dead letters that claim this producer."),
    ] = None,
    destination: Annotated[
        str | None,
        typer.Option("--destination", help="Dead letters sent to this destination."),
    ] = None,
    since: From = None,
    until: To = None,
    intact: Annotated[
        bool | None,
        typer.Option(
            "--intact/--not-intact", help="Dead letters that are intact, or not."
        ),
    ] = None,
) -> review.Filter:
    """Return which dead letters are meant."""
    return review.Filter(
        id=id,
        reason=reason,
        issuer=issuer,
        kid=kid,
        subject=subject,
        destination=destination,
        since=since,
        until=until,
        intact=intact,
    )


def _manner(
    *,
    rate: Annotated[
        float | None, typer.Option("--rate", help="Rate limit (dead letters per second).")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be done.")
    ] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> dict[str, Any]:
    """Return how an act is carried out: arguments of ``_carry_out``."""
    return {"rate": rate, "dry_run": dry_run, "yes": yes, "as_json": as_json}


@app.command("list")
@options(address=placed, wanted=_filter)
def list_letters(
    *,
    address: LetterAddress,
    wanted: review.Filter,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000_000_000, help="How many letters.")
    ] = 100,
    as_json: Json = False,
    wide: Wide = False,
) -> None:
    """List dead letters in the order of the queue. None is removed."""
    with _survey(address, wanted, quiet=as_json) as (session, index, meant):
        rows = index.page(meant, limit=limit)
        total = index.count(meant)

        letters = []
        cells = []
        for row in rows:
            time = review.time_text(row.time) or None
            letters.append(vars(row) | {"time": time})

            names = (row.subject, row.issuer, row.destination)
            intact = "yes" if row.intact else "no"
            cells.append((row.id, row.reason, shown_time(row.time), *names, intact))

        lines = [*table_lines(_title(session, index, total), LETTER, cells, wide=wide)]
        if total > len(rows):
            lines.append(f"{total - len(rows)} more: --limit {total}")
        answer(
            as_json,
            {"as_of": iso_time(index.as_of), "total": total, "letters": letters},
            *lines,
        )


@app.command("groups")
@options(address=placed, wanted=_filter)
def groups(
    *,
    address: LetterAddress,
    wanted: review.Filter,
    as_json: Json = False,
    wide: Wide = False,
) -> None:
    """Count dead letters by reason, key, producer and destination."""
    with _survey(address, wanted, quiet=as_json) as (session, index, meant):
        counts = []
        cells = []
        for row in index.groups(meant):
            first = review.time_text(row.first) or None
            last = review.time_text(row.last) or None
            counts.append(vars(row) | {"first": first, "last": last})

            names = (row.reason, row.kid, row.subject, row.issuer, row.destination)
            times = (shown_time(row.first), shown_time(row.last))
            cells.append((str(row.count), *names, *times))

        title = _title(session, index, index.count(meant))
        answer(
            as_json,
            {"as_of": iso_time(index.as_of), "groups": counts},
            *table_lines(title, GROUP, cells, wide=wide),
        )


@app.command("show")
@options(address=placed)
def show(
    *,
    letter: Annotated[str, typer.Argument(help="Id of a letter, or its beginning.")],
    address: LetterAddress,
    as_json: Json = False,
) -> None:
    """Print one dead letter whole, as JSON.

    It has the reason, whether the letter is intact, and the original message.
    """
    with _survey(address, quiet=True) as (_, index, _):
        letter_ids = (letter_id for letter_id, _ in index.ids())
        whole_id = pick(letter, letter_ids, option="letter")

        for row in index.page(review.Filter(id=whole_id)):
            print_json(index.reading(row.number).as_dict())


@app.command("check")
@options(address=placed, wanted=_filter)
def check(
    *,
    address: LetterAddress,
    wanted: review.Filter,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Ask what the verdict on dead letters would be today. Nothing is changed."""
    guard = load(file_of(config)).trial
    with _survey(address, wanted, quiet=as_json, guard=guard) as (session, index, meant):
        verdicts = session.judge(index, meant)
        total = verdicts.total()
        accepted = verdicts["accepted"]

        value = {
            "as_of": iso_time(index.as_of),
            "total": total,
            "pass": accepted,
            "verdicts": dict(verdicts),
        }
        title = f"{accepted} of {total} would pass now"
        cells = [(str(count), verdict) for verdict, count in verdicts.most_common()]
        answer(as_json, value, *table_lines(title, VERDICT, cells))


@app.command("redrive")
@options(address=placed, wanted=_filter, manner=_manner)
def redrive(
    *,
    address: LetterAddress,
    wanted: review.Filter,
    manner: dict[str, Any],
    why: Why,
    config: Config = None,
    audit: Audit = None,
    key: Annotated[
        Path | None,
        typer.Option("--key", help="The reviewer's keystore folder or PEM file."),
    ] = None,
    waive: Annotated[
        list[str] | None,
        typer.Option("--waive", help=f"Waive where needed: {', '.join(WAIVABLE)}."),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option("--scope", help="Release for this consumer group or queue only."),
    ] = None,
    authority: Authority = None,
    lifetime: Lifetime = 3600,
    reviewer: Reviewer = None,
    passphrase_env: PassphraseEnv = None,
    passphrase_file: PassphraseFile = None,
) -> int:
    """Send the original messages back, each with a release.

    A release is your signed permission. Exits with 1 where some were refused or left.
    """
    # What no option says, [review] says.
    settings = review_of(settings_of(config))
    guard = load(file_of(config)).trial
    audit = given(audit, "--audit", settings.audit)
    key = given(key, "--key", settings.key)
    read_key = key_reader(key, passphrase_env, passphrase_file)
    authority = authority or settings.authority

    # A key that does not speak for the reviewer is refused before anything is connected.
    releaser = review.reviewers_releaser(
        guard, read_key, authority=authority, lifetime=lifetime
    )
    name = reviewer_of(read_key, reviewer or settings.reviewer)
    releaser(name)

    plan = review.Plan(
        act=review.REDRIVE,
        wanted=wanted,
        reason=why,
        waive=review.waivable(waive or ()),
        scope=scope,
        reviewer=name,
    )
    return _carry_out(address, plan, audit, **manner, guard=guard, releaser=releaser)


@app.command("discard")
@options(address=placed, wanted=_filter, manner=_manner)
def discard(
    *,
    address: LetterAddress,
    wanted: review.Filter,
    manner: dict[str, Any],
    why: Why,
    config: Config = None,
    audit: Audit = None,
    reviewer: Reviewer = None,
) -> int:
    """Remove dead letters for good, each with an audit record. Exits with 1 where some were left."""
    settings = review_of(settings_of(config))
    name = reviewer or settings.reviewer or getpass.getuser()
    plan = review.Plan(act=review.DISCARD, wanted=wanted, reason=why, reviewer=name)
    audit = given(audit, "--audit", settings.audit)
    return _carry_out(address, plan, audit, **manner)


@app.command("export")
@options(address=placed, wanted=_filter)
def export(
    *, address: LetterAddress, wanted: review.Filter, as_json: Json = False
) -> None:
    """Print dead letters as JSON lines. None is removed."""
    with _survey(address, wanted, quiet=True) as (_, index, meant):
        for form in index.forms(meant):
            print_json(form)


@app.command("import")
@options(address=placed)
def import_letters(*, address: LetterAddress, as_json: Json = False) -> None:
    """Publish exported dead letters from standard input. The first that is not intact ends it."""
    with opened(address) as session:
        forms = (parsed(raw) for _, raw in read_texts(standard_input(), lines=True))
        count = session.run(review.take_in(session.box, forms))
    answer(as_json, {"imported": count}, f"{count} letters imported")


@app.command("balance")
@options(address=placed)
def balance(
    *,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Audit files of consumers and reviewers.", show_default=False
        ),
    ] = None,
    address: LetterAddress,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Compare rejected with open + redriven + discarded.

    Exits with 1 where that does not add up: dead letters were lost, or removed by others.
    """
    files = files or list(review_of(settings_of(config)).audit_files)
    if not files:
        raise ConfigurationError(
            f"no audit files: name them, or [review] audit_files in {FILE}"
        )

    with _survey(address, quiet=as_json) as (session, index, _):
        ledger = session.ledger(index, files)

    as_of = "" if ledger.as_of is None else f", as of {shown_time(ledger.as_of)} UTC"
    lines = [
        f"{ledger.rejected} rejected = {ledger.open} open + {ledger.redriven} redriven"
        f" + {ledger.discarded} discarded + {len(ledger.missing)} missing{as_of}"
    ]

    for name, letter_ids in (
        ("missing", ledger.missing),
        ("unknown", ledger.unknown),
        ("unproven", ledger.unproven),
    ):
        lines += [f"{name}: {letter_id}" for letter_id in letter_ids[:_SHOWN]]
        if len(letter_ids) > _SHOWN:
            lines.append(f"{name}: {len(letter_ids) - _SHOWN} more (--json lists 100)")

    answer(as_json, ledger.as_dict(), *lines)
    return 1 if ledger.difference else 0


@app.command("depth")
@options(address=placed)
def depth(
    *,
    most: Annotated[
        int | None,
        typer.Option(
            "--max", min=0, help="Exit with 1 where there are more dead letters."
        ),
    ] = None,
    address: LetterAddress,
    as_json: Json = False,
) -> int:
    """Count dead letters without reading them, for a probe.

    Exits with 1 where there are more than --max.
    """
    with opened(address) as session:
        letters = session.depth()
        name = session.box.name

    line = f"{letters} dead letters of {name}"
    if most is not None:
        line += f"; at most {most}"
    answer(as_json, {"open": letters, "max": most}, line)

    if most is not None and letters > most:
        return 1
    return 0


def _title(session: review.Session, index: review.Index, total: int) -> str:
    letters = "dead letter" if total == 1 else "dead letters"
    return f"{total} {letters} of {session.box.name}, as of {shown_time(index.as_of)} UTC"


@contextmanager
def _survey(
    address: LetterAddress,
    wanted: review.Filter = review.ALL,
    *,
    quiet: bool,
    least: int = TO_READ,
    **settings: Any,
) -> Iterator[tuple[review.Session, review.Index, review.Filter]]:
    """Connect to a broker and read all letters, with their number on a terminal.

    Args:
        address: the dead-letter queue or topic.
        wanted: which letters are meant; it comes back with the whole ids of the letter and
            the key whose beginnings it has.
        quiet: show no number.
        least: characters that the beginning of an id must have.
        settings: of the ``Session``.
    """
    with (
        opened(address, **settings) as session,
        review.Index(session.clock.now()) as index,
    ):
        with progress_bar("reading letters", None, quiet=quiet) as advance:
            session.survey(index, progress=advance)

        # An empty id stays as it is: it means letters without one.
        if wanted.id:
            letter_ids = (letter_id for letter_id, _ in index.ids())
            letter_id = pick(wanted.id, letter_ids, option="--id", least=least)
            wanted = replace(wanted, id=letter_id)
        if wanted.kid:
            kids = (row.kid for row in index.groups())
            wanted = replace(
                wanted, kid=pick(wanted.kid, kids, option="--kid", least=least)
            )

        yield session, index, wanted


def _carry_out(
    address: LetterAddress,
    plan: review.Plan,
    audit: Path,
    *,
    rate: float | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Rehearse a plan, ask, and act; return 0 where every letter was acted on, else 1."""
    survey = _survey(address, plan.wanted, quiet=as_json, least=TO_CHANGE, **settings)
    with survey as (session, index, meant):
        plan = replace(plan, wanted=meant, rate=rate)
        selection, verdicts = session.rehearse(index, plan)

        if dry_run:
            _print_rehearsal(plan, verdicts, as_json=as_json)
            return 0
        if not yes:
            _ask(session, plan, verdicts, quiet=as_json)

        # The act reads the letters again, one by one: those on this disk have served.
        index.close()

        # Ctrl-C stops before the next letter, so that the account stays exact.
        cancelled = threading.Event()
        previous = signal.signal(signal.SIGINT, lambda *_: cancelled.set())
        try:
            session.audit = review.SharedAuditFile(audit)
            with progress_bar(plan.act, selection.total(), quiet=as_json) as advance:
                account = session.act(
                    plan, selection, cancelled=cancelled, progress=advance
                )
        finally:
            signal.signal(signal.SIGINT, previous)

    _print_account(plan, account, as_json=as_json)

    if cancelled.is_set():
        return INTERRUPTED
    if account.done + account.gone != account.selected:
        return 1
    return 0


def _print_rehearsal(plan: review.Plan, verdicts: Counter[str], *, as_json: bool) -> None:
    accepted = verdicts["accepted"]
    lines = [f"would {plan.act} {accepted} of {verdicts.total()} letters"]

    refused = verdicts.copy()
    del refused["accepted"]
    for reason, count in refused.most_common():
        lines.append(f"{count} will not be redriven: {reason}")

    value = {"dry_run": plan.act, "would": accepted, "refused": dict(refused)}
    answer(as_json, value, *lines)


def _ask(
    session: review.Session, plan: review.Plan, verdicts: Counter[str], *, quiet: bool
) -> None:
    question = (
        f"{plan.act.capitalize()} {verdicts['accepted']} of {verdicts.total()} letters"
    )
    question += f" of {session.box.name}"

    # The whole ids, since only their beginnings may have been typed.
    if plan.wanted.id:
        question += f", id {plan.wanted.id}"
    if plan.wanted.kid:
        question += f", kid {plan.wanted.kid}"
    if plan.act == review.DISCARD:
        question += " for good"

    refusal = "--yes: required where nobody can be asked (or look with --dry-run)"
    confirmed(f"{question}?", refusal, quiet=quiet)


def _print_account(plan: review.Plan, account: review.Account, *, as_json: bool) -> None:
    act = _DONE[plan.act]
    line = f"{account.done} of {account.selected} {act}"
    if account.failed:
        line += f", {account.failed} failed"
    if account.gone:
        line += f", {account.gone} gone meanwhile"
    if account.left:
        line += f", {account.left} left"

    lines = [line]
    for reason, count in account.refused.most_common():
        lines.append(f"{count} refused: {reason}")
    if account.error:
        lines.append(f"ended by: {account.error}")

    answer(as_json, {"act": act, **account.as_dict()}, *lines)
