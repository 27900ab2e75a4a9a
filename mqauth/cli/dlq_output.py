"""What ``mqauth dlq`` prints: tables for people, JSON for programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mqauth.audit.record import iso_time
from mqauth.cli.app import print_json
from mqauth.review import DISCARD, REDRIVE, Account, Filter, Index, Ledger, Session, time_text

_DONE: Final = {REDRIVE: "redriven", DISCARD: "discarded"}
_IDS: Final = 20


def print_letters(session: Session, index: Index, wanted: Filter, *, limit: int, as_json: bool) -> None:
    """Print letters in the order of the queue, at most ``limit``."""
    rows, total = index.page(wanted, limit=limit), index.count(wanted)
    if as_json:
        letters = [_as_json(row, without=("number", "today"), times=("time",)) for row in rows]
        print_json({"as_of": iso_time(index.as_of), "total": total, "letters": letters})
        return
    title = f"{total} letters of {session.box.name}, as of {iso_time(index.as_of)}"
    table = _table(title, ("letter", "reason", "issuer", "subject", "destination", "time", "sound"))
    for row in rows:
        cells = (row.id[:12], row.reason, row.issuer, row.subject, row.destination, _minute(row.time))
        _add(table, (*cells, "yes" if row.sound else "no"))
    Console().print(table)
    if total > len(rows):
        print(f"{total - len(rows)} more: --limit {total}")


def print_groups(session: Session, index: Index, wanted: Filter, *, as_json: bool) -> None:
    """Print the groups of letters, the largest first."""
    groups = index.groups(wanted)
    if as_json:
        found = [_as_json(group, without=(), times=("first", "last")) for group in groups]
        print_json({"as_of": iso_time(index.as_of), "groups": found})
        return
    title = f"{index.count(wanted)} letters of {session.box.name}, as of {iso_time(index.as_of)}"
    table = _table(title, ("letters", "reason", "issuer", "kid", "subject", "destination", "from, to"))
    for group in groups:
        texts = (group.reason, group.issuer, group.kid[:8], group.subject, group.destination)
        _add(table, (str(group.count), *texts, f"{_minute(group.first)} {_minute(group.last)}"))
    Console().print(table)


def print_verdicts(index: Index, counts: Counter[str], *, as_json: bool) -> None:
    """Print how many letters would pass today, and the verdicts on the others."""
    if as_json:
        print_json({"as_of": iso_time(index.as_of), "total": counts.total(), "pass": counts["accepted"],
                    "verdicts": dict(counts)})  # fmt: skip
        return
    table = _table(f"{counts['accepted']} of {counts.total()} would pass now", ("letters", "verdict now"))
    for verdict, count in counts.most_common():
        _add(table, (str(count), verdict))
    Console().print(table)


def print_rehearsal(act: str, counts: Counter[str], *, as_json: bool) -> None:
    """Print what an act would do."""
    refused = Counter({reason: count for reason, count in counts.items() if reason != "accepted"})
    if as_json:
        print_json({"dry_run": act, "would": counts["accepted"], "refused": dict(refused)})
        return
    print(f"would {act} {counts['accepted']} of {counts.total()} letters")
    for reason, count in refused.most_common():
        print(f"{count} would be refused: {reason}")


def print_account(act: str, account: Account, *, as_json: bool) -> None:
    """Print what became of the letters of an act."""
    if as_json:
        print_json({"act": _DONE[act], **account.as_dict()})
        return
    counts = ((account.failed, "failed"), (account.gone, "gone meanwhile"), (account.left, "left"))
    more = "".join(f", {count} {what}" for count, what in counts if count)
    print(f"{account.done} of {account.selected} {_DONE[act]}{more}")
    for reason, count in account.refused.most_common():
        print(f"{count} refused: {reason}")
    if account.error:
        print(f"ended by: {account.error}")


def print_ledger(ledger: Ledger, *, as_json: bool) -> None:
    """Print whether all dead letters add up, and the ids of those that do not."""
    if as_json:
        print_json(ledger.as_dict())
        return
    print(f"{ledger.rejected} rejected = {ledger.open} open + {ledger.redriven} redriven"
          f" + {ledger.discarded} discarded + {len(ledger.missing)} missing")  # fmt: skip
    for name, ids in (("missing", ledger.missing), ("unknown", ledger.unknown), ("unproven", ledger.unproven)):
        for letter in ids[:_IDS]:
            print(f"{name}: {letter}")
        if len(ids) > _IDS:
            print(f"{name}: {len(ids) - _IDS} more (--json lists 100)")


def _as_json(found: Any, *, without: Sequence[str], times: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a row or a group, with times as text."""
    fields = {name: value for name, value in asdict(found).items() if name not in without}
    return fields | {name: time_text(fields[name]) or None for name in times}


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left")
    for column in columns:
        table.add_column(column, overflow="fold", no_wrap=column in ("letters", "letter", "reason", "kid"))
    return table


def _add(table: Table, cells: Sequence[str]) -> None:
    # As Text: a letter may hold what Rich would take for markup.
    table.add_row(*(Text(cell) for cell in cells))


def _minute(seconds: float | None) -> str:
    return time_text(seconds)[:16].replace("T", " ")
