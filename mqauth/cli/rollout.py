"""``mqauth rollout``: who does not sign yet, and the steps up and down the ladder."""

from __future__ import annotations

import difflib
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from mqauth.audit.chain import verify_chain
from mqauth.audit.file import with_parts
from mqauth.audit.record import read_records
from mqauth.check.adoption import Asked, Seen, Standing, standings
from mqauth.cli.app import Json, answer, group, one_line
from mqauth.cli.settings import file_of, settings_of
from mqauth.clock import SYSTEM_CLOCK
from mqauth.config.rollout_file import accepted_key, changed, number_of, split, text_value
from mqauth.config.rollout_settings import RolloutSettings
from mqauth.config.settings import FileSettings
from mqauth.config.toml_file import read_toml
from mqauth.errors import ConfigurationError, file_errors, refusing, require
from mqauth.judging.journal import few
from mqauth.judging.rollout import Rung

app: Final = group("Bring signatures to a running system, step by step.", "mqauth rollout status")
Config = Annotated[Path | None, typer.Option("--config", envvar="MQAUTH_CONFIG", help="The configuration file.")]
Audit = Annotated[
    list[Path] | None,
    typer.Option("--audit", help="Audit file of a consumer; give those of all of them."),
]
Destination = Annotated[str, typer.Argument(help="A destination or pattern, as the file lists it.")]
Why = Annotated[str, typer.Option("--why", help="The reason, kept in the file.")]
Print = Annotated[bool, typer.Option("--print", help="Print the new file, and change nothing.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]
_WHO: Final = 32


def _now() -> float:
    return SYSTEM_CLOCK.now()


@app.command("status")
def status(config: Config = None, audit: Audit = None, json: Json = False) -> int:
    """Show who does not sign yet. Exits with 0 where every entry is safe to go up and none is overdue."""
    found = _standings(settings_of(file_of(config)), audit)
    answer(json, [one.as_dict() for one in found], *(line for one in found for line in _lines(one)))
    return 0 if all(one.is_safe and one.days_left >= 0 for one in found) else 1


@app.command("up")
def up(
    destination: Destination,
    *,
    config: Config = None,
    audit: Audit = None,
    force: Annotated[bool, typer.Option("--force", help="Go up although it is not safe; needs --why.")] = False,
    why: Annotated[str | None, typer.Option("--why", help="The reason, kept in the file.")] = None,
    only_print: Print = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Go up one rung, to a stricter one. Exits with 1 where that is not safe."""
    require(not force or why, "--force needs --why")
    file = settings_of(file_of(config))
    number, entry = _held(file, destination)
    standing = _standing(file, number, destination, audit)
    if entry.at is not Rung.OFF and not force and not standing.is_safe:
        return _refuse(standing, json)
    rung = Rung(entry.at + 1)
    values: dict[str, str | None] = {"rung": text_value(rung.label), "since": _today().isoformat()}
    if rung is Rung.ENFORCE:
        values["until"] = None
    change = _Change(destination, values, why, number=number)
    return _apply(config, change, only_print=only_print, yes=yes, as_json=json)


@app.command("down")
def down(
    destination: Destination,
    why: Why,
    until: Annotated[str, typer.Option("--until", help="The day by which it is to end, like 2027-01-31.")],
    *,
    config: Config = None,
    only_print: Print = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Go down one rung, to a less strict one. It always works."""
    entry = _entry(config, destination)
    rung = Rung.of(str(entry["rung"]))
    require(rung > Rung.OFF, f"{destination} is at off")
    below = Rung(rung - 1)
    with refusing(ValueError, "--until is a date like 2027-01-31"):
        day = date.fromisoformat(until)
    values: dict[str, str | None] = {"rung": text_value(below.label), "since": _today().isoformat(),
                                     "until": day.isoformat()}  # fmt: skip
    return _apply(config, _Change(destination, values, why), only_print=only_print, yes=yes, as_json=json)


@app.command("accept")
def accept(
    destination: Destination,
    found: Annotated[str, typer.Argument(metavar="GROUP", help="Id of a group, or a reason and a destination.")],
    why: Why,
    *,
    config: Config = None,
    only_print: Print = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Accept a group that does not sign. It no longer speaks against going up, and the file says so."""
    values = {accepted_key(found): text_value(why)}
    return _apply(config, _Change(destination, values), only_print=only_print, yes=yes, as_json=json)


def _standings(file: FileSettings, audit: list[Path] | None) -> list[Standing]:
    files = audit or _own_files(file)
    reports = ((path, verify_chain(with_parts([path]))) for path in files)
    broken = next((f"{path}: {report.what}" for path, report in reports if not report.intact), None)
    consumers = 1 if file.check is None else file.check.consumers
    asked = Asked(now=_now(), consumers=consumers, broken=broken, consumer=file.consumer)
    return standings(file.rollout, read_records(with_parts(files)), asked)


def _held(file: FileSettings, destination: str) -> tuple[int, RolloutSettings]:
    """Return the entry that decides on a destination, and its number."""
    entries = ((number, each) for number, each in enumerate(file.rollout) if each.entry.holds(destination))
    number, entry = next(entries, (0, None))
    return number, require(
        entry if entry is not None and entry.at < Rung.ENFORCE else None,
        f"{destination} is in no entry below enforce",
    )


def _standing(file: FileSettings, number: int, destination: str, audit: list[Path] | None) -> Standing:
    """Return how a destination stands: by itself where it is listed, else as its whole entry does."""
    entry = file.rollout[number]
    if destination in entry.destinations:
        entry = replace(entry, destinations=(destination,))
    entries = (*file.rollout[:number], entry, *file.rollout[number:])
    found = _standings(replace(file, rollout=entries), audit)
    return next(one for one in found if one.entry is entry)


def _refuse(standing: Standing, as_json: bool) -> int:
    answer(as_json, standing.as_dict() | {"written": False}, *_lines(standing))
    return 1


def _own_files(file: Any) -> list[Path]:
    """Return the audit files of ``[audit]``, of all processes."""
    if file.audit is None:
        raise ConfigurationError("give --audit FILE: the configuration has no [audit]")
    path: Path = file.audit.file
    return sorted(path.parent.glob(path.name.replace("{pid}", "*")))


def _entry(config: Path | None, destination: str) -> Mapping[str, Any]:
    text, members = read_toml(file_of(config))
    entry: Mapping[str, Any] = members["rollout"][number_of(text, destination)]
    return entry


@dataclass(frozen=True, slots=True)
class _Change:
    """What is to be changed.

    Args:
        destination: of the entry.
        values: in TOML, by key; ``None`` removes one.
        why: kept in the file.
        number: of the entry that holds the destination, which gets an entry of its own; ``None`` for the one that
            lists it.
    """

    destination: str
    values: Mapping[str, str | None]
    why: str | None = None
    number: int | None = None


def _apply(config: Path | None, change: _Change, *, only_print: bool, yes: bool, as_json: bool) -> int:
    """Change the lines of an entry in the file, after showing them and asking."""
    path = file_of(config)
    text, _ = read_toml(path)
    new = _changed(path, text, change)
    if only_print:
        answer(as_json, {"text": new}, new.removesuffix("\n"))
        return 0
    diff = list(difflib.unified_diff(text.splitlines(), new.splitlines(), str(path), str(path), lineterm=""))
    shown = sys.stderr if as_json else sys.stdout
    print(*diff, sep="\n", file=shown)
    written = yes or typer.confirm("Write it? It counts from the next start of each consumer.", err=as_json)
    if written:
        with file_errors(path):
            path.write_text(new, "utf-8")
    facts = {"destination": change.destination, "rung": _rung_in(new, change.destination), "written": written}
    answer(as_json, facts | {"lines": diff})
    return 0 if written else 1


def _changed(path: Path, text: str, change: _Change) -> str:
    """Return the new text of the file."""
    number = change.number
    if number is None:
        number = number_of(text, change.destination)
    else:
        text = split(text, number, change.destination)
    why = {} if change.why is None else {accepted_key(f"why {_today()}"): text_value(change.why)}
    new = changed(text, number, {**change.values, **why})
    _refuse_wrong(path, tomllib.loads(new)["rollout"][number])
    return new


def _rung_in(text: str, destination: str) -> str:
    return str(tomllib.loads(text)["rollout"][number_of(text, destination)]["rung"])


def _refuse_wrong(path: Path, members: Mapping[str, Any]) -> None:
    """Refuse an entry that the configuration would refuse, before the file is changed."""
    from mqauth.config.declaration import read
    from mqauth.config.rollout_settings import RolloutSettings
    from mqauth.config.toml_file import Table

    read(RolloutSettings, Table(file=str(path), name="[[rollout]]", members=members))


def _today() -> date:
    return datetime.fromtimestamp(_now(), UTC).date()


def _lines(one: Standing) -> Iterator[str]:
    """Yield the lines of an entry's report."""
    entry = one.entry
    left = f"{one.days_left} days left" if one.days_left >= 0 else f"OVERDUE for {-one.days_left} days"
    moved = f", end moved {one.moved} times" if one.moved else ""
    places, owner = one_line(", ".join(entry.destinations)), one_line(entry.owner)
    yield f"{places}   {entry.rung} since {entry.since}   {left}{moved}   {owner}"
    would = sum(seen.count for seen in one.groups) + one.other
    yield (
        f"last {entry.entry.window / 86_400:g} d, {one.processes} consumers:"
        f" {sum(one.accepted.values()):,} accepted, {would:,} would be rejected"
    )
    if one.groups:
        yield "  count  reason              who (* says the broker)           where  first UTC    last UTC     id"
    yield from map(_line, one.groups)
    if one.never_signed:
        yield one_line(f"signed nothing: {few(one.never_signed)}")
    yield "safe to go up" if one.is_safe else one_line(f"NOT safe to go up: {'; '.join(one.against)}")


def _line(seen: Seen) -> str:
    """Return the line of a group; what a sender wrote is escaped and cut."""
    where = ",".join(map(str, sorted(seen.partitions)[:4])) or "-"
    times = "  ".join(one_line(text[5:16].replace("T", " ")) for text in (seen.first, seen.last))
    who, code = one_line(seen.who)[:_WHO], one_line(seen.group.code)[:18]
    return f"{seen.count:>7,}  {code:<18}  {who:<{_WHO}}  {where:<5}  {times}  {seen.group.id}"
