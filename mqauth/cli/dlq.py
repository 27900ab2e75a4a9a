"""``mqauth dlq``: lists, judges, redrives and discards dead letters through a review session, and prints."""

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
from mqauth.errors import require
from mqauth.letters.release import WAIVABLE

app: Final = group("List, check, redrive and discard dead letters.", "mqauth dlq groups")
_DONE: Final = {review.REDRIVE: "redriven", review.DISCARD: "discarded"}
Audit = Annotated[
    Path | None, typer.Option("--audit", help="The reviewer's own audit file.")
]
Why = Annotated[str, typer.Option("--why", help="Why you act, one line.")]


def _filtered(
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
    return review.Filter(**locals())


def _acting(
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
    """Return how an act is carried out."""
    return dict(locals())


@app.command("list")
@options(place=placed, wanted=_filtered)
def list_letters(
    *,
    place: LetterAddress,
    wanted: review.Filter,
    limit: Annotated[
        int, typer.Option("--limit", min=1, max=1_000_000_000, help="How many letters.")
    ] = 100,
    as_json: Json = False,
    wide: Wide = False,
) -> None:
    """List dead letters in the order of the queue. None is removed."""
    with _surveyed(place, as_json, wanted) as (session, index, meant):
        rows, total = index.page(meant, limit=limit), index.count(meant)
        letters = [
            vars(row) | {"time": review.time_text(row.time) or None} for row in rows
        ]
        cells = [
            (
                each.id,
                each.reason,
                shown_time(each.time),
                each.subject,
                each.issuer,
                each.destination,
                intact,
            )
            for each, intact in ((row, "yes" if row.intact else "no") for row in rows)
        ]
        more = [f"{total - len(rows)} more: --limit {total}"] if total > len(rows) else []
        answer(
            as_json,
            {"as_of": iso_time(index.as_of), "total": total, "letters": letters},
            *table_lines(_title(session, index, total), LETTER, cells, wide=wide),
            *more,
        )


@app.command("groups")
@options(place=placed, wanted=_filtered)
def groups(
    *,
    place: LetterAddress,
    wanted: review.Filter,
    as_json: Json = False,
    wide: Wide = False,
) -> None:
    """Count dead letters by reason, key, producer and destination."""
    with _surveyed(place, as_json, wanted) as (session, index, meant):
        kinds = index.groups(meant)
        cells = [
            (
                str(each.count),
                each.reason,
                each.kid,
                each.subject,
                each.issuer,
                each.destination,
                shown_time(each.first),
                shown_time(each.last),
            )
            for each in kinds
        ]
        told = [
            vars(each)
            | {
                name: review.time_text(getattr(each, name)) or None
                for name in ("first", "last")
            }
            for each in kinds
        ]
        answer(
            as_json,
            {"as_of": iso_time(index.as_of), "groups": told},
            *table_lines(
                _title(session, index, index.count(meant)), GROUP, cells, wide=wide
            ),
        )


@app.command("show")
@options(place=placed)
def show(
    *,
    letter: Annotated[str, typer.Argument(help="Id of a letter, or its beginning.")],
    place: LetterAddress,
    as_json: Json = False,
) -> None:
    """Print one dead letter whole, as JSON.

    It has the reason, whether the letter is intact, and the original message.
    """
    with _surveyed(place, True) as (_, index, _):
        whole = pick(letter, (id for id, _ in index.ids()), option="letter")
        for row in index.page(review.Filter(id=whole)):
            print_json(index.reading(row.number).as_dict())


@app.command("check")
@options(place=placed, wanted=_filtered)
def check(
    *,
    place: LetterAddress,
    wanted: review.Filter,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Ask what the verdict on dead letters would be today. Nothing is changed."""
    with _surveyed(place, as_json, wanted, guard=load(file_of(config)).trial) as (
        session,
        index,
        meant,
    ):
        counts = session.judge(index, meant)
        answer(
            as_json,
            {
                "as_of": iso_time(index.as_of),
                "total": counts.total(),
                "pass": counts["accepted"],
            }
            | {"verdicts": dict(counts)},
            *table_lines(
                f"{counts['accepted']} of {counts.total()} would pass now",
                VERDICT,
                ((str(count), verdict) for verdict, count in counts.most_common()),
            ),
        )


@app.command("redrive")
@options(place=placed, wanted=_filtered, acting=_acting)
def redrive(
    *,
    place: LetterAddress,
    wanted: review.Filter,
    acting: dict[str, Any],
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
    mine, guard = review_of(settings_of(config)), load(file_of(config)).trial
    audit = given(audit, "--audit", mine.audit)
    read_key = key_reader(given(key, "--key", mine.key), passphrase_env, passphrase_file)
    releaser = review.reviewers_releaser(
        guard, read_key, authority=authority or mine.authority, lifetime=lifetime
    )
    name = reviewer_of(read_key, reviewer or mine.reviewer)
    # A key that does not speak for the reviewer is refused before anything is connected.
    releaser(name)
    plan = review.Plan(
        act=review.REDRIVE,
        wanted=wanted,
        reason=why,
        waive=review.waivable(waive or ()),
        scope=scope,
        reviewer=name,
    )
    return _carry_out(place, plan, audit, **acting, guard=guard, releaser=releaser)


@app.command("discard")
@options(place=placed, wanted=_filtered, acting=_acting)
def discard(
    *,
    place: LetterAddress,
    wanted: review.Filter,
    acting: dict[str, Any],
    why: Why,
    config: Config = None,
    audit: Audit = None,
    reviewer: Reviewer = None,
) -> int:
    """Remove dead letters for good, each with an audit record. Exits with 1 where some were left."""
    mine = review_of(settings_of(config))
    name = reviewer or mine.reviewer or getpass.getuser()
    plan = review.Plan(act=review.DISCARD, wanted=wanted, reason=why, reviewer=name)
    return _carry_out(place, plan, given(audit, "--audit", mine.audit), **acting)


@app.command("export")
@options(place=placed, wanted=_filtered)
def export(*, place: LetterAddress, wanted: review.Filter, as_json: Json = False) -> None:
    """Print dead letters as JSON lines. None is removed."""
    with _surveyed(place, True, wanted) as (_, index, meant):
        for form in index.forms(meant):
            print_json(form)


@app.command("import")
@options(place=placed)
def import_letters(*, place: LetterAddress, as_json: Json = False) -> None:
    """Publish exported dead letters from standard input. The first that is not intact ends it."""
    with opened(place) as session:
        count = session.run(
            review.take_in(
                session.box,
                (parsed(raw) for _, raw in read_texts(standard_input(), lines=True)),
            )
        )
    answer(as_json, {"imported": count}, f"{count} letters imported")


@app.command("balance")
@options(place=placed)
def balance(
    *,
    files: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Audit files of consumers and reviewers.", show_default=False
        ),
    ] = None,
    place: LetterAddress,
    config: Config = None,
    as_json: Json = False,
) -> int:
    """Compare rejected with open + redriven + discarded.

    Exits with 1 where that does not add up: dead letters were lost, or removed by others.
    """
    files = require(
        files or list(review_of(settings_of(config)).audit_files),
        f"no audit files: name them, or [review] audit_files in {FILE}",
    )
    with _surveyed(place, as_json) as (session, index, _):
        ledger = session.ledger(index, files)
    as_of = "" if ledger.as_of is None else f", as of {shown_time(ledger.as_of)} UTC"
    lines = [
        f"{ledger.rejected} rejected = {ledger.open} open + {ledger.redriven} redriven"
        f" + {ledger.discarded} discarded + {len(ledger.missing)} missing{as_of}"
    ]
    for name, ids in (
        ("missing", ledger.missing),
        ("unknown", ledger.unknown),
        ("unproven", ledger.unproven),
    ):
        more = (
            [f"{name}: {len(ids) - 20} more (--json lists 100)"] if len(ids) > 20 else []
        )
        lines += [*(f"{name}: {letter}" for letter in ids[:20]), *more]
    answer(as_json, ledger.as_dict(), *lines)
    return 1 if ledger.difference else 0


@app.command("depth")
@options(place=placed)
def depth(
    *,
    most: Annotated[
        int | None,
        typer.Option(
            "--max", min=0, help="Exit with 1 where there are more dead letters."
        ),
    ] = None,
    place: LetterAddress,
    as_json: Json = False,
) -> int:
    """Count dead letters without reading them, for a probe.

    Exits with 1 where there are more than --max.
    """
    with opened(place) as session:
        letters, name = session.depth(), session.box.name
    answer(
        as_json,
        {"open": letters, "max": most},
        f"{letters} dead letters of {name}"
        + ("" if most is None else f"; at most {most}"),
    )
    return 1 if most is not None and letters > most else 0


def _title(session: review.Session, index: review.Index, total: int) -> str:
    letters = "dead letter" if total == 1 else "dead letters"
    return f"{total} {letters} of {session.box.name}, as of {shown_time(index.as_of)} UTC"


@contextmanager
def _surveyed(
    place: LetterAddress,
    quiet: bool,
    wanted: review.Filter = review.ALL,
    least: int = TO_READ,
    **settings: Any,
) -> Iterator[tuple[review.Session, review.Index, review.Filter]]:
    """Connect to a broker and read all letters, with their number on a terminal.

    The filter comes back with the whole ids of the letter and the key whose beginnings it has.
    """
    with opened(place, **settings) as session, review.Index(session.clock.now()) as index:
        with progress_bar("reading letters", None, quiet=quiet) as advance:
            session.survey(index, progress=advance)
        known = {
            "id": (id for id, _ in index.ids()),
            "kid": (group.kid for group in index.groups()),
        }
        # An empty id means letters without one.
        begun = {name: text for name in known if (text := getattr(wanted, name))}
        ids: Any = {
            name: pick(begun[name], known[name], option=f"--{name}", least=least)
            for name in begun
        }
        yield session, index, replace(wanted, **ids)


def _carry_out(
    place: LetterAddress,
    plan: review.Plan,
    audit: Path,
    *,
    rate: float | None,
    yes: bool,
    dry_run: bool,
    as_json: bool,
    **settings: Any,
) -> int:
    """Rehearse a plan, ask, and act; return 0 where every letter was acted on, else 1."""
    with _surveyed(place, as_json, plan.wanted, TO_CHANGE, **settings) as (
        session,
        index,
        meant,
    ):
        plan = replace(plan, wanted=meant, rate=rate)
        selection, counts = session.rehearse(index, plan)
        if dry_run:
            refused = Counter(
                {
                    reason: count
                    for reason, count in counts.items()
                    if reason != "accepted"
                }
            )
            answer(
                as_json,
                {
                    "dry_run": plan.act,
                    "would": counts["accepted"],
                    "refused": dict(refused),
                },
                f"would {plan.act} {counts['accepted']} of {counts.total()} letters",
                *(
                    f"{count} will not be redriven: {reason}"
                    for reason, count in refused.most_common()
                ),
            )
            return 0
        if not yes:
            end = " for good" if plan.act == review.DISCARD else ""
            ids = "".join(
                f", {key} {value}"
                for key, value in (("id", plan.wanted.id), ("kid", plan.wanted.kid))
                if value
            )
            confirmed(
                f"{plan.act.capitalize()} {counts['accepted']} of {counts.total()} letters"
                f" of {session.box.name}{ids}{end}?",
                "--yes: required where nobody can be asked (or look with --dry-run)",
                quiet=as_json,
            )
        # The letters on this disk have served. Ctrl-C stops before the next letter, and the account stays exact.
        index.close()
        cancelled = threading.Event()
        kept = signal.signal(signal.SIGINT, lambda *_: cancelled.set())
        try:
            session.audit = review.SharedAuditFile(audit)
            with progress_bar(plan.act, selection.total(), quiet=as_json) as advance:
                done = session.act(plan, selection, cancelled=cancelled, progress=advance)
        finally:
            signal.signal(signal.SIGINT, kept)
    counted = (
        (done.failed, "failed"),
        (done.gone, "gone meanwhile"),
        (done.left, "left"),
    )
    more = "".join(f", {count} {what}" for count, what in counted if count)
    lines = [
        f"{done.done} of {done.selected} {_DONE[plan.act]}{more}",
        *(f"{count} refused: {reason}" for reason, count in done.refused.most_common()),
        *([f"ended by: {done.error}"] if done.error else []),
    ]
    answer(as_json, {"act": _DONE[plan.act], **done.as_dict()}, *lines)
    return (
        INTERRUPTED
        if cancelled.is_set()
        else 0
        if done.done + done.gone == done.selected
        else 1
    )
