"""What ``mqauth dlq`` prints: letters, groups, verdicts, what an act did, and the balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final

from mqauth.audit.record import iso_time
from mqauth.cli.app import answer
from mqauth.cli.forms import shown_time
from mqauth.cli.tables import Column, table_lines
from mqauth.review import DISCARD, REDRIVE, Account, Filter, Index, Ledger, Session, time_text

_DONE: Final = {REDRIVE: "redriven", DISCARD: "discarded"}
_IDS: Final = 20
LETTER: Final = (
    Column("letter", is_id=True, cut=False), Column("reason", cut=False), Column("time (UTC)", goes=3, cut=False),
    Column("subject"), Column("issuer", goes=1), Column("destination", goes=4),
    Column("intact", goes=2, cut=False),
)  # fmt: skip
GROUP: Final = (
    Column("letters", cut=False), Column("reason", cut=False), Column("kid", is_id=True, cut=False),
    Column("subject"), Column("issuer", goes=2), Column("destination", goes=4),
    Column("first (UTC)", goes=1, cut=False),
    Column("last (UTC)", goes=3, cut=False),
)  # fmt: skip
VERDICT: Final = (Column("letters", cut=False), Column("verdict now"))


def print_letters(
    session: Session, index: Index, wanted: Filter, *, limit: int, as_json: bool, wide: bool
) -> None:
    """Print a page of letters."""
    rows, total = index.page(wanted, limit=limit), index.count(wanted)
    letters = [_as_json(row, without=("number", "today"), times=("time",)) for row in rows]
    cells = (
        (row.id, row.reason, shown_time(row.time), row.subject, row.issuer, row.destination,
         "yes" if row.sound else "no")
        for row in rows
    )  # fmt: skip
    more = [f"{total - len(rows)} more: --limit {total}"] if total > len(rows) else []
    lines = table_lines(_title(session, index, total), LETTER, cells, wide=wide)
    answer(as_json, {"as_of": iso_time(index.as_of), "total": total, "letters": letters}, *lines, *more)


def print_groups(session: Session, index: Index, wanted: Filter, *, as_json: bool, wide: bool) -> None:
    """Print how many letters each group has."""
    groups = index.groups(wanted)
    cells = (
        (str(one.count), one.reason, one.kid, one.subject, one.issuer, one.destination,
         shown_time(one.first), shown_time(one.last))
        for one in groups
    )  # fmt: skip
    found = [_as_json(one, without=(), times=("first", "last")) for one in groups]
    lines = table_lines(_title(session, index, index.count(wanted)), GROUP, cells, wide=wide)
    answer(as_json, {"as_of": iso_time(index.as_of), "groups": found}, *lines)


def print_verdicts(index: Index, counts: Counter[str], *, as_json: bool) -> None:
    """Print how many letters would get each verdict."""
    cells = ((str(count), verdict) for verdict, count in counts.most_common())
    lines = table_lines(f"{counts['accepted']} of {counts.total()} would pass now", VERDICT, cells)
    told = {"as_of": iso_time(index.as_of), "total": counts.total(), "pass": counts["accepted"]}
    answer(as_json, told | {"verdicts": dict(counts)}, *lines)


def _title(session: Session, index: Index, total: int) -> str:
    letters = "dead letter" if total == 1 else "dead letters"
    return f"{total} {letters} of {session.box.name}, as of {shown_time(index.as_of)} UTC"


def print_rehearsal(act: str, counts: Counter[str], *, as_json: bool) -> None:
    """Print what an act would do."""
    refused = Counter({reason: count for reason, count in counts.items() if reason != "accepted"})
    lines = [f"{count} will not be redriven: {reason}" for reason, count in refused.most_common()]
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
    as_of = "" if ledger.as_of is None else f", as of {shown_time(ledger.as_of)} UTC"
    lines = [
        f"{ledger.rejected} rejected = {ledger.open} open + {ledger.redriven} redriven"
        f" + {ledger.discarded} discarded + {len(ledger.missing)} missing{as_of}"
    ]
    for name, ids in (("missing", ledger.missing), ("unknown", ledger.unknown), ("unproven", ledger.unproven)):
        lines += [f"{name}: {letter}" for letter in ids[:_IDS]]
        lines += [f"{name}: {len(ids) - _IDS} more (--json lists 100)"] if len(ids) > _IDS else []
    answer(as_json, ledger.as_dict(), *lines)


def _as_json(found: Any, *, without: Sequence[str], times: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a row or a group, with times as text."""
    fields = {name: value for name, value in asdict(found).items() if name not in without}
    return fields | {name: time_text(fields[name]) or None for name in times}
