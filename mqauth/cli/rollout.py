"""``mqauth rollout``: who does not sign yet, and the steps up and down the ladder."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Mapping
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
from mqauth.config.rollout_file import accepted_key, changed, number_of, text_value
from mqauth.config.toml_file import read_toml
from mqauth.errors import ConfigurationError, file_errors, refusing, require
from mqauth.judging.rollout import Rung

app: Final = group("See who does not sign yet, and go up or down the ladder.", "mqauth rollout status")
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
    """Show who does not sign yet; exits with 0 where every entry is safe to go up and none is overdue."""
    found = _standings(config, audit)
    answer(json, [one.as_dict() for one in found], *(line for one in found for line in _lines(one)))
    return 0 if all(one.is_safe and one.days_left >= 0 for one in found) else 1


@app.command("up")
def up(
    destination: Destination,
    *,
    config: Config = None,
    audit: Audit = None,
    mark: Annotated[
        str | None,
        typer.Option("--mark", help="The mark of enforce-new, in TOML."),
    ] = None,
    settled: Annotated[
        bool, typer.Option("--settled", help="All before the mark is settled: the queue is empty, or has no lag.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Go up although it is not safe; needs --why.")] = False,
    why: Annotated[str | None, typer.Option("--why", help="The reason, kept in the file.")] = None,
    only_print: Print = False,
    yes: Yes = False,
) -> int:
    """Go up one rung; refused with exit code 1 where that is not safe."""
    require(not force or why, "--force needs --why")
    known = {place: one for one in _standings(config, audit) for place in one.entry.destinations}
    standing = require(known.get(destination), f"{destination} is in no entry below enforce")
    rung = Rung(standing.entry.at + 1)
    if standing.entry.at is not Rung.OFF and not force and not standing.is_safe:
        answer(False, None, *_lines(standing))
        return 1
    values: dict[str, str | None] = {"rung": text_value(rung.label), "since": _today().isoformat()}
    if rung is Rung.ENFORCE_NEW:
        require(len(standing.entry.destinations) == 1, "enforce-new has one destination an entry: split it first")
        values["from"] = mark or _time_mark(destination)
    if rung is Rung.ENFORCE:
        require(settled or force, "all before the mark has to be settled: say --settled once it is")
        values |= {"from": None, "until": None}
    return _apply(config, destination, values, why, only_print=only_print, yes=yes)


@app.command("down")
def down(
    destination: Destination,
    why: Why,
    until: Annotated[str, typer.Option("--until", help="The day by which it is to end, like 2027-01-31.")],
    *,
    config: Config = None,
    only_print: Print = False,
    yes: Yes = False,
) -> int:
    """Go down one rung; it always works."""
    entry = _entry(config, destination)
    rung = Rung.of(str(entry["rung"]))
    require(rung > Rung.OFF, f"{destination} is at off")
    below = Rung.OBSERVE if rung is Rung.ENFORCE else Rung(rung - 1)
    with refusing(ValueError, "--until is a date like 2027-01-31"):
        day = date.fromisoformat(until)
    values: dict[str, str | None] = {"rung": text_value(below.label), "since": _today().isoformat(),
                                     "until": day.isoformat(), "from": None}  # fmt: skip
    return _apply(config, destination, values, why, only_print=only_print, yes=yes)


@app.command("accept")
def accept(
    destination: Destination,
    found: Annotated[str, typer.Argument(metavar="GROUP", help="Id of a group, or a reason and a destination.")],
    why: Why,
    *,
    config: Config = None,
    only_print: Print = False,
    yes: Yes = False,
) -> int:
    """Say that a group is known and does not speak against going up; it is kept in the file."""
    values = {accepted_key(found): text_value(why)}
    return _apply(config, destination, values, None, only_print=only_print, yes=yes)


def _standings(config: Path | None, audit: list[Path] | None) -> list[Standing]:
    file = settings_of(file_of(config))
    paths = with_parts(audit or _own_files(file))
    reports = ((path, verify_chain(with_parts([path]))) for path in audit or _own_files(file))
    broken = next((f"{path}: {report.what}" for path, report in reports if not report.intact), None)
    consumers = 1 if file.check is None else file.check.consumers
    return standings(file.rollout, read_records(paths), Asked(now=_now(), consumers=consumers, broken=broken))


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


def _apply(
    config: Path | None, destination: str, values: Mapping[str, str | None], why: str | None, *,
    only_print: bool, yes: bool,
) -> int:  # fmt: skip
    """Change the lines of an entry in the file, after showing them and asking."""
    path = file_of(config)
    text, _ = read_toml(path)
    number = number_of(text, destination)
    values = {**values, **({} if why is None else {accepted_key(f"why {_today()}"): text_value(why)})}
    new = changed(text, number, values)
    if only_print:
        print(new, end="")
        return 0
    for line in difflib.unified_diff(text.splitlines(), new.splitlines(), str(path), str(path), lineterm=""):
        print(line)
    settings = tomllib.loads(new)["rollout"][number]
    _refuse_wrong(path, settings)
    if not yes and not typer.confirm("Write it? It counts from the next start of each consumer."):
        return 1
    with file_errors(path):
        path.write_text(new, "utf-8")
    return 0


def _refuse_wrong(path: Path, members: Mapping[str, Any]) -> None:
    """Refuse an entry that the configuration would refuse, before the file is changed."""
    from mqauth.config.declaration import read
    from mqauth.config.rollout_settings import RolloutSettings
    from mqauth.config.toml_file import Table

    read(RolloutSettings, Table(file=str(path), name="[[rollout]]", members=members))


def _time_mark(destination: str) -> str:
    require(destination.startswith("rabbitmq:"), "--mark is needed on Kafka: the topic id and the end offsets")
    # The next second: messages of the one that runs are queued already, and stand before the mark.
    return datetime.fromtimestamp(int(_now()) + 1, UTC).isoformat().replace("+00:00", "Z")


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
    yield "safe to go up" if one.is_safe else one_line(f"NOT safe to go up: {'; '.join(one.against)}")


def _line(seen: Seen) -> str:
    """Return the line of a group; what a sender wrote is escaped and cut."""
    where = ",".join(map(str, sorted(seen.partitions)[:4])) or "-"
    times = "  ".join(one_line(text[5:16].replace("T", " ")) for text in (seen.first, seen.last))
    who, code = one_line(seen.who)[:_WHO], one_line(seen.group.code)[:18]
    return f"{seen.count:>7,}  {code:<18}  {who:<{_WHO}}  {where:<5}  {times}  {seen.group.id}"
