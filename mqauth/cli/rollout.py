"""``mqauth rollout``: who does not sign yet, and the steps up and down the ladder."""

from __future__ import annotations

import difflib
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from mqauth.audit.chain import verify_chain
from mqauth.audit.disk import write_whole
from mqauth.audit.file import files_of, with_parts
from mqauth.audit.query import read_records
from mqauth.audit.record import HOUR, iso_time
from mqauth.check import Severity, check
from mqauth.check.rollout import Standing, standings
from mqauth.cli.app import Config, Json, Yes, answer, group
from mqauth.cli.forms import one_line
from mqauth.cli.rollout_steps import (
    Value,
    broker_for,
    changed,
    emptied,
    number_of,
    unread,
)
from mqauth.cli.settings import file_of, settings_of
from mqauth.clock import SYSTEM_CLOCK
from mqauth.config.settings import FileSettings
from mqauth.config.toml_file import read_toml
from mqauth.errors import file_errors, refusing, require
from mqauth.judging.journal import few
from mqauth.judging.rollout import Rollout, Rung
from mqauth.wire import destination as places

app: Final = group(
    "Bring signatures to a running system, step by step.", "mqauth rollout status"
)
Audit = Annotated[
    list[Path] | None,
    typer.Option(
        "--audit-file", help="Audit file of a consumer; give those of all of them."
    ),
]
Destination = Annotated[
    str, typer.Argument(help="A destination or pattern, as the file lists it.")
]
Why = Annotated[str, typer.Option("--why", help="The reason, kept in the file.")]
Print = Annotated[
    bool, typer.Option("--print", help="Print the new file, and change nothing.")
]
_WHO: Final = 32
_DAY: Final = 86_400


_now: Final = SYSTEM_CLOCK.now


@app.command("status")
def status(config: Config = None, audit: Audit = None, json: Json = False) -> int:
    """Show who does not sign yet. Exits with 0 where every entry is safe to go up and none is overdue."""
    file = settings_of(file_of(config))
    files = audit or _own_files(file)
    entries = _standings(file, files)
    answer(
        json,
        [standing.as_dict() | {"files": list(map(str, files))} for standing in entries],
        one_line(
            f"{len(files)} audit files read: {few(list(map(str, files)))}"
            if files
            else _no_files(file)
        ),
        *(line for standing in entries for line in _lines(standing)),
    )
    return (
        0
        if all(standing.is_safe and standing.days_left >= 0 for standing in entries)
        else 1
    )


@app.command("up")
def up(
    destination: Destination,
    *,
    config: Config = None,
    audit: Audit = None,
    settled: Annotated[
        bool,
        typer.Option(
            "--settled",
            help="Nothing unsigned waits any more; by default the broker is asked.",
        ),
    ] = False,
    broker: Annotated[
        str | None,
        typer.Option("--broker", help="URL of the broker, or a name of [brokers.NAME]."),
    ] = None,
    scope: Annotated[
        str | None,
        typer.Option(
            "--scope", help="The consumer group or queue; by default [consumer] scope."
        ),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Go up although it is not safe; needs --why.")
    ] = False,
    why: Annotated[
        str | None, typer.Option("--why", help="The reason, kept in the file.")
    ] = None,
    only_print: Print = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Go up one rung, to a stricter one. Exits with 1 where that is not safe."""
    require(not force or why, "--force needs --why")
    file = settings_of(file_of(config))
    # The entry that decides on the destination.
    held = [
        number
        for number, each in enumerate(file.rollout)
        if each.build().holds(destination)
    ]
    require(
        held and file.rollout[held[0]].at < Rung.ENFORCE,
        f"{destination} is in no entry below enforce",
    )
    number, entry = held[0], file.rollout[held[0]]
    rung, on_kafka = Rung(entry.at + 1), places.is_kafka(destination)
    if rung is Rung.ENFORCE and not force:
        # The destination stands by itself where it is listed, else as its whole entry does.
        alone = (
            replace(entry, destinations=(destination,))
            if destination in entry.destinations
            else entry
        )
        narrowed = replace(
            file, rollout=(*file.rollout[:number], alone, *file.rollout[number:])
        )

        def look() -> Standing:
            return next(
                each
                for each in _standings(narrowed, audit or _own_files(file))
                if each.entry is alone
            )

        # what the reports say, and then what the broker says of what waits
        standing = look()
        if standing.is_safe and not settled:
            against = None
            # With the interceptor the reports say how old what consumers got in the last minute is.
            if standing.oldest is not None and _now() - standing.oldest > HOUR:
                against = (
                    f"the oldest delivery of the last minute was appended at {iso_time(standing.oldest)}:"
                    " let the consumers catch up"
                )
            if on_kafka or standing.oldest is None:
                asked = broker_for(destination, broker, file)
                consumer = file.consumer
                known = require(
                    scope or (None if consumer is None else consumer.scope),
                    "--scope: required, the consumer group or queue; or [consumer] scope; or --settled",
                )
                exempt = (
                    []
                    if consumer is None
                    else [each.build() for each in consumer.unsigned]
                )
                consumers = 1 if file.check is None else file.check.consumers
                against = (
                    unread(
                        places.parse(destination)[1],
                        known,
                        entry,
                        Rollout((), exempt),
                        asked,
                    )
                    if on_kafka
                    else emptied(known, asked, consumers, look, _now)
                )
            # meanwhile there may be new reports
            standing = look()
            standing.against += [] if against is None else [against]
        if not standing.is_safe:
            answer(json, standing.as_dict() | {"written": False}, *_lines(standing))
            return 1
    ended: dict[str, Value] = {"until": None} if rung is Rung.ENFORCE else {}
    return _apply(
        config,
        destination,
        ended | {"rung": rung.label, "since": _today()},
        {} if why is None else {f"why {_today()}": why},
        number=number,
        note="the history stays unsigned: who reads it from its beginning needs a group of his own, at observe"
        if on_kafka and rung is Rung.ENFORCE
        else None,
        only_print=only_print,
        yes=yes,
        as_json=json,
    )


@app.command("down")
def down(
    destination: Destination,
    why: Why,
    until: Annotated[
        str,
        typer.Option("--until", help="The day by which it is to end, like 2027-01-31."),
    ],
    *,
    config: Config = None,
    only_print: Print = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Go down one rung, to a less strict one. It always works."""
    entries = read_toml(file_of(config))[1].get("rollout", [])
    rung = Rung.of(str(entries[number_of(entries, destination)]["rung"]))
    require(rung > Rung.OFF, f"{destination} is at off")
    with refusing(ValueError, "--until is a date like 2027-01-31"):
        day = date.fromisoformat(until)
    values: dict[str, Value] = {
        "rung": Rung(rung - 1).label,
        "since": _today(),
        "until": day,
    }
    return _apply(
        config,
        destination,
        values,
        {f"why {_today()}": why},
        only_print=only_print,
        yes=yes,
        as_json=json,
    )


@app.command("accept")
def accept(
    destination: Destination,
    group: Annotated[
        str,
        typer.Argument(
            metavar="GROUP", help="Id of a group, or a reason and a destination."
        ),
    ],
    why: Why,
    *,
    config: Config = None,
    only_print: Print = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Accept a group that does not sign. It no longer speaks against going up, and the file says so."""
    return _apply(
        config,
        destination,
        {},
        {group: why},
        only_print=only_print,
        yes=yes,
        as_json=json,
    )


# The reports


def _own_files(file: FileSettings) -> list[Path]:
    """Return the audit files of ``[audit]``, of all processes."""
    return files_of(
        require(
            file.audit, "give --audit-file FILE: the configuration has no [audit]"
        ).file,
        None if file.consumer is None else file.consumer.scope,
    )


def _no_files(file: FileSettings) -> str:
    name = "" if file.audit is None else file.audit.file
    return f"no audit file is there: {name}: start the consumers, or give --audit-file FILE of each"


def _standings(file: FileSettings, files: list[Path]) -> list[Standing]:
    reports = ((path, verify_chain(with_parts([path]))) for path in files)
    broken = (
        f"an audit file does not hold: {path}: {each.what}"
        for path, each in reports
        if not each.intact
    )
    return standings(
        file,
        read_records(with_parts(files)),
        now=_now(),
        broken=next(broken, None if files else _no_files(file)),
    )


# The file


def _apply(
    config: Path | None,
    destination: str,
    values: Mapping[str, Value],
    accepted: Mapping[str, str],
    *,
    number: int | None = None,
    note: str | None = None,
    only_print: bool,
    yes: bool,
    as_json: bool,
) -> int:
    """Change an entry in the file, after the new file was judged and shown, and somebody asked.

    Args:
        config: the file.
        destination: of the entry.
        values: by key; ``None`` removes one.
        accepted: what the entry keeps with a reason.
        number: of the entry that holds the destination, which gets an entry of its own; ``None`` for the one that
            lists it.
        note: what people should know of it.
        only_print: print the new file, and change nothing.
        yes: do not ask.
        as_json: print JSON.
    """
    path = file_of(config)
    text, members = read_toml(path)
    alone = None if number is None else destination
    number = (
        number_of(members.get("rollout", []), destination) if number is None else number
    )
    new = changed(text, number, alone, values, accepted)
    with (
        file_errors(path),
        tempfile.NamedTemporaryFile("wb", dir=path.parent, suffix=".toml") as trial,
    ):
        trial.write(new.encode("utf-8"))
        trial.flush()
        # Refused is an error that mqauth check finds in the new file alone; it builds what a consumer builds.
        before = {(each.code.name, each.message) for each in check(path).findings}
        for each in check(Path(trial.name)).findings:
            require(
                each.severity is not Severity.ERROR
                or (each.code.name, each.message) in before,
                f"nothing was written: the new file has {each.key}: {each.message}",
            )
    if only_print:
        answer(as_json, {"text": new}, new.removesuffix("\n"))
        return 0
    diff = list(
        difflib.unified_diff(
            text.splitlines(), new.splitlines(), str(path), str(path), lineterm=""
        )
    )
    print(
        *diff,
        *([] if note is None else [f"note: {note}"]),
        sep="\n",
        file=sys.stderr if as_json else sys.stdout,
    )
    # Ctrl-C on a terminal, else the end of standard input.
    with refusing(
        () if sys.stdin is not None and sys.stdin.isatty() else RuntimeError,
        "--yes: required where nobody can be asked (or look with --print)",
    ):
        written = yes or typer.confirm(
            "Write it? It counts from the next start of each consumer.", err=as_json
        )
    if written:
        write_whole(path, new.encode("utf-8"), public=True)
    answer(
        as_json,
        {
            "destination": destination,
            "rung": str(values.get("rung") or members["rollout"][number]["rung"]),
            "written": written,
        }
        | {"lines": diff, "note": note},
    )
    return 0 if written else 1


def _today() -> date:
    return datetime.fromtimestamp(_now(), UTC).date()


# What people read


def _lines(standing: Standing) -> Iterator[str]:
    """Yield the lines of an entry's report."""
    entry = standing.entry
    left = (
        f"{standing.days_left} days left"
        if standing.days_left >= 0
        else f"OVERDUE for {-standing.days_left} days"
    )
    moved = f", end moved {standing.moved} times" if standing.moved else ""
    listed, owner = one_line(", ".join(entry.destinations)), one_line(entry.owner)
    yield f"{listed}   {entry.rung} since {entry.since}   {left}{moved}   {owner}"
    would, window = (
        sum(seen.count for seen in standing.groups) + standing.other,
        entry.window,
    )
    span = f"{window // 3600} h" if window % _DAY else f"{window // _DAY} d"
    yield (
        f"last {span}, {len(standing.reported)} consumers:"
        f" {sum(standing.accepted.values()):,} accepted, {would:,} would be rejected"
    )
    if standing.groups:
        yield "  count  reason              who (* says the broker)           where  first UTC    last UTC     id"
    for seen in standing.groups:
        # What a sender wrote is escaped and cut.
        where = ",".join(map(str, sorted(seen.partitions)[:4])) or "-"
        times = "  ".join(
            one_line(text[5:16].replace("T", " ")) for text in (seen.first, seen.last)
        )
        who, code = one_line(seen.who)[:_WHO], one_line(seen.group.code)[:18]
        yield f"{seen.count:>7,}  {code:<18}  {who:<{_WHO}}  {where:<5}  {times}  {seen.group.id}"
    if standing.oldest is not None:
        yield f"oldest delivery of the last minute: appended at {iso_time(standing.oldest)}"
    if standing.never_signed:
        yield one_line(f"signed nothing: {few(standing.never_signed)}")
    waits = (
        "; rollout up asks the broker what still waits"
        if entry.at is Rung.OBSERVE and standing.oldest is None
        else ""
    )
    yield (
        f"safe to go up{waits}"
        if standing.is_safe
        else one_line(f"NOT safe to go up: {'; '.join(standing.against)}")
    )
