"""What ``mqauth dlq`` prints: letters, groups, verdicts, what an act did, and the balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.table import Table
from rich.text import Text

from mqauth.audit.record import iso_time
from mqauth.cli.app import answer
from mqauth.review import DISCARD, REDRIVE, Account, Filter, Index, Ledger, Session, time_text

_DONE: Final = {REDRIVE: "redriven", DISCARD: "discarded"}
_IDS: Final = 20


def print_letters(session: Session, index: Index, wanted: Filter, *, limit: int, as_json: bool) -> None:
    """Print a page of letters."""
    rows, total = index.page(wanted, limit=limit), index.count(wanted)
    letters = [_as_json(row, without=("number", "today"), times=("time",)) for row in rows]
    title = f"{total} letters of {session.box.name}, as of {iso_time(index.as_of)}"
    cells = (
        (row.id[:12], row.reason, row.issuer, row.subject, row.destination, _minute(row.time),
         "yes" if row.sound else "no")
        for row in rows
    )  # fmt: skip
    table = _table(title, ("letter", "reason", "issuer", "subject", "destination", "time", "sound"), cells)
    more = [f"{total - len(rows)} more: --limit {total}"] if total > len(rows) else []
    answer(as_json, {"as_of": iso_time(index.as_of), "total": total, "letters": letters}, table, *more)


def print_groups(session: Session, index: Index, wanted: Filter, *, as_json: bool) -> None:
    """Print how many letters each group has."""
    groups = index.groups(wanted)
    title = f"{index.count(wanted)} letters of {session.box.name}, as of {iso_time(index.as_of)}"
    cells = (
        (str(one.count), one.reason, one.issuer, one.kid[:8], one.subject, one.destination,
         f"{_minute(one.first)} {_minute(one.last)}")
        for one in groups
    )  # fmt: skip
    table = _table(title, ("letters", "reason", "issuer", "kid", "subject", "destination", "from, to"), cells)
    found = [_as_json(one, without=(), times=("first", "last")) for one in groups]
    answer(as_json, {"as_of": iso_time(index.as_of), "groups": found}, table)


def print_verdicts(index: Index, counts: Counter[str], *, as_json: bool) -> None:
    """Print how many letters would get each verdict."""
    title = f"{counts['accepted']} of {counts.total()} would pass now"
    cells = ((str(count), verdict) for verdict, count in counts.most_common())
    table = _table(title, ("letters", "verdict now"), cells)
    told = {"as_of": iso_time(index.as_of), "total": counts.total(), "pass": counts["accepted"]}
    answer(as_json, told | {"verdicts": dict(counts)}, table)


def print_rehearsal(act: str, counts: Counter[str], *, as_json: bool) -> None:
    """Print what an act would do."""
    refused = Counter({reason: count for reason, count in counts.items() if reason != "accepted"})
    lines = [f"{count} would be refused: {reason}" for reason, count in refused.most_common()]
    told = {"dry_run": act, "would": counts["accepted"], "refused": dict(refused)}
    answer(as_json, told, f"would {act} {counts['accepted']} of {counts.total()} letters", *lines)


def print_account(act: str, account: Account, *, as_json: bool) -> None:
    """Print what an act did."""
    counts = ((account.failed, "failed"), (account.gone, "gone meanwhile"), (account.left, "left"))
    more = "".join(f", {count} {what}" for count, what in counts if count)
    lines = [f"{account.done} of {account.selected} {_DONE[act]}{more}"]
    lines += [f"{count} refused: {reason}" for reason, count in account.refused.most_common()]
    lines += [f"ended by: {account.error}"] if account.error else []
    answer(as_json, {"act": _DONE[act], **account.as_dict()}, *lines)


def print_ledger(ledger: Ledger, *, as_json: bool) -> None:
    """Print the balance of audit files and queue."""
    lines = [
        f"{ledger.rejected} rejected = {ledger.open} open + {ledger.redriven} redriven"
        f" + {ledger.discarded} discarded + {len(ledger.missing)} missing"
    ]
    for name, ids in (("missing", ledger.missing), ("unknown", ledger.unknown), ("unproven", ledger.unproven)):
        lines += [f"{name}: {letter}" for letter in ids[:_IDS]]
        lines += [f"{name}: {len(ids) - _IDS} more (--json lists 100)"] if len(ids) > _IDS else []
    answer(as_json, ledger.as_dict(), *lines)


def _as_json(found: Any, *, without: Sequence[str], times: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a row or a group, with times as text."""
    fields = {name: value for name, value in asdict(found).items() if name not in without}
    return fields | {name: time_text(fields[name]) or None for name in times}


def _table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("letters", "letter", "reason", "kid"))
    for row in rows:
        # As Text: a letter may hold what Rich would take for markup.
        table.add_row(*map(Text, row))
    return table


def _minute(seconds: float | None) -> str:
    return time_text(seconds)[:16].replace("T", " ")
