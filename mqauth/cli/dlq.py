"""``mqauth dlq``: dead letters looked at, judged, redriven and discarded; tables for people, JSON for programs."""

from __future__ import annotations

import contextlib
import getpass
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

import mqauth
from mqauth import review
from mqauth.audit.file import AuditFile
from mqauth.audit.log import read_records
from mqauth.audit.record import iso_time
from mqauth.cli.dlq_broker import Opened, Place, opened
from mqauth.cli.messages import read_texts, standard_input
from mqauth.cli.output import print_json
from mqauth.config.toml_file import read_passphrase
from mqauth.errors import ConfigurationError, Reason
from mqauth.judging.pipeline import Pipeline
from mqauth.keystore import signing_key
from mqauth.letters.authorities import Releaser
from mqauth.letters.release import WAIVABLE
from mqauth.review import Account, Filter, Index, Pace, Reviewer, Terms


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """The reviewer's key and name.

    Args:
        path: a keystore folder or PEM file.
        reviewer: by default the key's only subject, else the user of this machine.
        authority: issuer of the releases; by default the only one the configuration trusts.
        lifetime: seconds a release lives.
        passphrase_env, passphrase_file: where the passphrase is.
    """

    path: Path
    reviewer: str | None = None
    authority: str | None = None
    lifetime: int = 3600
    passphrase_env: str | None = None
    passphrase_file: Path | None = None

    def releaser(self, guard: Pipeline) -> Releaser:
        """Return what signs releases.

        Raises:
            ConfigurationError: the key cannot be used, or it is not clear for which authority.
        """
        passphrase = read_passphrase(env=self.passphrase_env, file=self.passphrase_file)
        key = signing_key(self.path, passphrase=passphrase)
        trusted = [] if guard.verifier.release is None else list(guard.verifier.release.authorities)
        if not trusted:
            raise ConfigurationError("--config: has no [[release.authorities]]: its consumer takes no release")
        if self.authority is None and len(trusted) > 1:
            raise ConfigurationError("--authority: required, the configuration trusts several")
        subjects = sorted(key.subjects or ())
        reviewer = self.reviewer or (subjects[0] if len(subjects) == 1 else getpass.getuser())
        return Releaser(key=key, issuer=self.authority or trusted[0], reviewer=reviewer, lifetime=self.lifetime)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How an act runs.

    Args:
        why: the reason, for releases and audit.
        audit: the reviewer's own audit file.
        yes: do not ask.
        dry_run: only say what would be done.
        rate: letters a second at most.
        as_json: print JSON.
    """

    why: str
    audit: Path
    yes: bool
    dry_run: bool
    rate: float | None
    as_json: bool


def show_list(place: Place, wanted: Filter, *, limit: int, as_json: bool) -> int:
    """Print letters in the order of the queue."""
    with opened(place) as found, _survey(found, as_json) as index:
        rows, total = index.page(wanted, limit=limit), index.count(wanted)
        if as_json:
            letters = [_row(row) for row in rows]
            print_json({"as_of": iso_time(index.as_of), "total": total, "letters": letters})
            return 0
        columns = ("letter", "reason", "issuer", "subject", "destination", "time", "sound")
        table = _table(f"{total} letters of {found.box.name}, as of {iso_time(index.as_of)}", columns)
        for row in rows:
            cells = (row.id[:12], row.reason, row.issuer, row.subject, row.destination, _minute(row.time))
            _add(table, (*cells, "yes" if row.sound else "no"))
        Console().print(table)
        if total > len(rows):
            print(f"{total - len(rows)} more: --limit {total}")
    return 0


def show_groups(place: Place, wanted: Filter, *, as_json: bool) -> int:
    """Print groups by reason, issuer, kid, subject and destination, the largest first."""
    with opened(place) as found, _survey(found, as_json) as index:
        groups = index.groups(wanted)
        if as_json:
            print_json({"as_of": iso_time(index.as_of), "groups": [_group(group) for group in groups]})
            return 0
        columns = ("letters", "reason", "issuer", "kid", "subject", "destination", "from, to")
        title = f"{index.count(wanted)} letters of {found.box.name}, as of {iso_time(index.as_of)}"
        table = _table(title, columns)
        for group in groups:
            texts = (group.reason, group.issuer, group.kid[:8], group.subject, group.destination)
            _add(table, (str(group.count), *texts, f"{_minute(group.first)} {_minute(group.last)}"))
        Console().print(table)
    return 0


def show_letter(place: Place, letter: str) -> int:
    """Print one letter whole, as JSON.

    Raises:
        ConfigurationError: no letter's id begins so.
    """
    with opened(place) as found, _survey(found, True) as index:
        rows = index.page(Filter(id=letter))
        if not rows:
            raise ConfigurationError("no open letter has this id")
        for row in rows:
            print_json(index.reading(row.number).as_dict())
    return 0


def judge(place: Place, wanted: Filter, config: Path, *, as_json: bool) -> int:
    """Print what today's verifier would say of letters, touching none."""
    guard = mqauth.load(config).judge
    with opened(place) as found, _survey(found, as_json) as index:
        counts: Counter[str] = found.run(review.judge(index, guard, wanted, originals=found.originals))
        if as_json:
            print_json({"as_of": iso_time(index.as_of), "total": counts.total(), "pass": counts["accepted"],
                        "verdicts": dict(counts)})  # fmt: skip
            return 0
        _print_counts(f"{counts['accepted']} of {counts.total()} would pass now", counts)
    return 0


def redrive(
    place: Place,
    wanted: Filter,
    config: Path,
    key: Key,
    settings: Run,
    *,
    waive: Sequence[str],
    scope: str | None,
) -> int:
    """Send letters back with a release; 1 where some were refused or left."""
    guard = mqauth.load(config).judge
    releaser = key.releaser(guard)
    terms = Terms(releaser=releaser, reason=settings.why, waive=_reasons(waive), scope=scope)
    with opened(place) as found:
        with _survey(found, settings.as_json) as index:
            selection = index.freeze(wanted)
            counts: Counter[str] = found.run(
                review.rehearse(index, wanted, guard=guard, terms=terms, originals=found.originals)
            )
        if settings.dry_run:
            return _rehearsed("redrive", counts, settings)
        _confirm(f"Redrive {counts['accepted']} of {len(selection)} letters of {found.box.name}?", settings)

        def act(reviewer: Reviewer, pace: Pace) -> Account:
            done: Account = found.run(
                review.redrive(
                    found.box,
                    selection,
                    guard=guard,
                    terms=terms,
                    reviewer=reviewer,
                    pace=pace,
                    originals=found.originals,
                )
            )
            return done

        return _act("redriven", len(selection), settings, releaser.reviewer, act)


def discard(place: Place, wanted: Filter, settings: Run, *, reviewer: str | None) -> int:
    """Remove letters for good; 1 where some were left."""
    with opened(place) as found:
        with _survey(found, settings.as_json) as index:
            selection = index.freeze(wanted)
        if settings.dry_run:
            return _rehearsed("discard", Counter(accepted=len(selection)), settings)
        _confirm(f"Discard {len(selection)} letters of {found.box.name} for good?", settings)

        def act(who: Reviewer, pace: Pace) -> Account:
            done: Account = found.run(
                review.discard(found.box, selection, reviewer=who, reason=settings.why, pace=pace)
            )
            return done

        return _act("discarded", len(selection), settings, reviewer or getpass.getuser(), act)


def export(place: Place, wanted: Filter) -> int:
    """Print letters in the message form, one a line."""
    with opened(place) as found, _survey(found, True) as index:
        for form in index.forms(wanted):
            print_json(form)
    return 0


def take_in(place: Place, *, as_json: bool) -> int:
    """Publish the letters of standard input, one a line."""
    with opened(place) as found:
        forms = (text.parse() for text in read_texts(standard_input(), lines=True))
        count = found.run(review.take_in(found.box, forms))
    if as_json:
        print_json({"imported": count})
    else:
        print(f"{count} letters imported")
    return 0


def account(place: Place, files: Sequence[Path], *, as_json: bool) -> int:
    """Hold audit files against the queue; 1 where they do not add up."""
    with opened(place) as found, _survey(found, as_json) as index:
        ledger = review.account(read_records(files), index.ids())
    if as_json:
        print_json(ledger.as_dict())
    else:
        print(f"{ledger.rejected} rejected = {ledger.open} open + {ledger.redriven} redriven"
              f" + {ledger.discarded} discarded + {len(ledger.missing)} missing")  # fmt: skip
        for name, ids in (("missing", ledger.missing), ("unknown", ledger.unknown), ("unproven", ledger.unproven)):
            for letter in ids[:20]:
                print(f"{name}: {letter}")
            if len(ids) > 20:
                print(f"{name}: {len(ids) - 20} more (--json lists 100)")
    return 1 if ledger.difference else 0


@contextlib.contextmanager
def _survey(found: Opened, quiet: bool) -> Iterator[Index]:
    """Look through the letter box, with a count for people."""
    with _progress(quiet, None, "reading letters") as advance:
        index: Index = found.run(review.survey(found.box, progress=advance))
    with index:
        yield index


def _act(what: str, total: int, settings: Run, reviewer: str, act: Callable[[Reviewer, Pace], Account]) -> int:
    """Act with progress; Ctrl-C stops before the next letter, and the account is printed all the same."""
    with AuditFile(settings.audit) as audit, _progress(settings.as_json, total, what) as advance:
        pace = Pace(rate=settings.rate, progress=lambda account: advance(account.selected - account.left))
        kept = signal.signal(signal.SIGINT, lambda *_: pace.cancelled.set())
        try:
            account = act(Reviewer(name=reviewer, audit=audit), pace)
        finally:
            signal.signal(signal.SIGINT, kept)
    if settings.as_json:
        print_json({"act": what, **account.as_dict()})
    else:
        left = f", {account.left} left" if account.left else ""
        gone = f", {account.gone} gone meanwhile" if account.gone else ""
        failed = f", {account.failed} failed" if account.failed else ""
        print(f"{account.done} of {account.selected} {what}{failed}{gone}{left}")
        for reason, count in account.refused.most_common():
            print(f"{count} refused: {reason}")
        if account.error:
            print(f"ended by: {account.error}")
    return 0 if account.done + account.gone == account.selected else 1


def _rehearsed(what: str, counts: Counter[str], settings: Run) -> int:
    """Print what an act would do."""
    refused = {reason: count for reason, count in counts.items() if reason != "accepted"}
    if settings.as_json:
        print_json({"dry_run": what, "would": counts["accepted"], "refused": refused})
    else:
        print(f"would {what} {counts['accepted']} of {counts.total()} letters")
        for reason, count in Counter(refused).most_common():
            print(f"{count} would be refused: {reason}")
    return 0


def _confirm(question: str, settings: Run) -> None:
    """Ask, unless told not to.

    Raises:
        ConfigurationError: nobody is there to answer.
    """
    if settings.yes:
        return
    if settings.as_json or not sys.stdin.isatty():
        raise ConfigurationError("--yes: required where nobody is asked (or look with --dry-run)")
    typer.confirm(question, abort=True, err=True)


@contextlib.contextmanager
def _progress(quiet: bool, total: int | None, what: str) -> Iterator[Callable[[int], None]]:
    """Show progress on standard error, to people only."""
    if quiet or not sys.stderr.isatty():
        yield lambda count: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.update(task, completed=count)


def _reasons(names: Sequence[str]) -> frozenset[Reason]:
    """Return the reasons to waive."""
    for name in names:
        if name not in {reason.value for reason in WAIVABLE}:
            raise ConfigurationError(f"--waive: must be {', '.join(WAIVABLE)}")
    return frozenset(Reason(name) for name in names)


def _row(row: review.Row) -> dict[str, Any]:
    """Return a row as JSON values."""
    names = ("id", "mark", "reason", "detail", "issuer", "kid", "subject", "destination", "scope", "form",
             "size", "sound")  # fmt: skip
    return {name: getattr(row, name) for name in names} | {"time": _time(row.time) or None}


def _group(group: review.Group) -> dict[str, Any]:
    """Return a group as JSON values."""
    names = ("count", "reason", "issuer", "kid", "subject", "destination")
    times = {"first": _time(group.first) or None, "last": _time(group.last) or None}
    return {name: getattr(group, name) for name in names} | times


def _table(title: str, columns: Sequence[str]) -> Table:
    """Return an empty table."""
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("letters", "letter", "reason", "kid"))
    return table


def _add(table: Table, cells: Sequence[str]) -> None:
    """Add a row; what an attacker wrote is text, never markup."""
    table.add_row(*(Text(cell) for cell in cells))


def _print_counts(title: str, counts: Counter[str]) -> None:
    """Print counts, the largest first."""
    table = _table(title, ("letters", "verdict now"))
    for verdict, count in counts.most_common():
        _add(table, (str(count), verdict))
    Console().print(table)


def _minute(seconds: float | None) -> str:
    """Return a time for tables, to the minute."""
    return _time(seconds)[:16].replace("T", " ")


def _time(seconds: float | None) -> str:
    """Return a time, empty where there is none or it is beyond the calendar."""
    try:
        return "" if seconds is None else iso_time(seconds)
    except (OverflowError, ValueError, OSError):
        return ""
