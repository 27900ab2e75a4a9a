"""The forms in which every command takes and shows ids, times and tables.

Tables for people fit the terminal, no cell is wrapped, and no id is cut below 12 characters. Piped they are
another output: a line of names, then tab-separated lines with whole values.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from difflib import get_close_matches
from typing import Annotated, Final, NamedTuple

import typer

from mqauth.clock import SYSTEM_CLOCK
from mqauth.errors import MqauthError, Reason, require

SHORT: Final = 12
"""Characters of an id in a table."""
TO_READ: Final = 4
"""Characters of an id that are enough where nothing is changed."""
TO_CHANGE: Final = 8
_NAMED: Final = 5


class CommandFailed(MqauthError):
    """A command ends without doing what it was asked.

    Args:
        text: one line: what, where, why, and what to do.
        code: the exit code: 1 failed or nothing found, 3 out of reach.
    """

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.exit_code = code


def pick(given: str, known: Iterable[str], *, option: str, least: int = TO_READ) -> str:
    """Return the one id that is meant.

    Args:
        given: the id, or its beginning.
        known: all ids; only those that fit are kept.
        option: where it was given, for errors.
        least: characters that a beginning must have.

    Raises:
        CommandFailed: no id begins so; exit code 1.
        ConfigurationError: several do, or the beginning is too short.
    """
    fitting = sorted({id for id in known if id.startswith(given)})
    if given in fitting:
        return given
    require(
        len(given) >= least,
        f"{option} {given}: give the id, or at least its first {least} characters",
    )
    require(fitting, f"{option} {given}: there is none that begins so", CommandFailed)
    more = ", ..." if len(fitting) > _NAMED else ""
    require(
        len(fitting) == 1,
        f"{option} {given}: {len(fitting)} begin so: {', '.join(fitting[:_NAMED])}{more}",
    )
    return fitting[0]


def confirmed(question: str, refusal: str, *, quiet: bool) -> None:
    """Ask a question on a terminal; go on only where the answer is yes.

    Args:
        question: what is asked.
        refusal: of a command that can ask nobody.
        quiet: whether the command prints JSON, and asks nobody.

    Raises:
        ConfigurationError: nobody can be asked.
        CommandFailed: the answer is no.
    """
    require(not quiet and sys.stdin is not None and sys.stdin.isatty(), refusal)
    require(typer.confirm(question, err=True), "nothing was done", CommandFailed)


def moment(text: str) -> float:
    """Return UTC seconds of a time with a zone, of a span such as ``2h`` or ``7d`` ago, or of ``now``.

    Raises:
        typer.BadParameter: the text is none of them.
    """
    ago = re.compile(r"(\d{1,6})([smhd])").fullmatch(text)
    if ago or text == "now":
        return SYSTEM_CLOCK.now() - (
            int(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86_400}[ago[2]] if ago else 0
        )
    with suppress(ValueError, OverflowError):
        time = datetime.fromisoformat(text)
        if time.tzinfo is not None and time.timestamp() >= 0:
            return time.timestamp()
    # Without a zone the moment would depend on the machine on which it is typed.
    raise typer.BadParameter(
        "give a time with a zone like 2026-11-25T10:00:00Z, or 2h or 7d (ago), or now"
    )


def known_reason(text: str) -> str:
    """Return a reason of the library as it is.

    Raises:
        typer.BadParameter: it is none; letters of it would be none, whatever was meant.
    """
    known = [reason.value for reason in Reason]
    if text not in ("", *known):
        near = "".join(get_close_matches(text, known, 1))
        raise typer.BadParameter(
            f"no such reason; {f'did you mean {near}' if near else 'see mqauth dlq groups'}"
        )
    return text


def shown_time(seconds: float | None) -> str:
    """Return UTC seconds to the minute, with the year unless it is this one; empty where no calendar has them."""
    with suppress(OverflowError, ValueError, OSError):
        if seconds is not None:
            time = datetime.fromtimestamp(seconds, UTC)
            this_year = time.year == datetime.fromtimestamp(SYSTEM_CLOCK.now(), UTC).year
            return f"{time:%m-%d %H:%M}" if this_year else f"{time:%Y-%m-%d %H:%M}"
    return ""


def one_line(text: str) -> str:
    """Return text with line breaks as spaces and every other character that does not print escaped."""
    joined = " ".join(text.split())
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1]
        for character in joined
    )


Wide = Annotated[
    bool, typer.Option("--wide", help="Whole values, wider than the terminal.")
]


class Column(NamedTuple):
    """A column of a table.

    Args:
        name: its heading.
        is_id: shown by its first characters, and never cut further.
        more: whether only ``--wide`` and other programs get it.
        cut: whether its texts may be cut.
    """

    name: str
    is_id: bool = False
    more: bool = False
    cut: bool = True


LETTER: Final = (
    Column("letter", is_id=True, cut=False),
    Column("reason", cut=False),
    Column("time (UTC)", cut=False),
    Column("subject"),
    Column("issuer", more=True),
    Column("destination"),
    Column("intact", more=True),
)
"""Of dead letters."""
GROUP: Final = (
    Column("letters", cut=False),
    Column("reason", cut=False),
    Column("kid", is_id=True, cut=False),
    Column("subject"),
    Column("issuer", more=True),
    Column("destination"),
    Column("first (UTC)", more=True),
    Column("last (UTC)", more=True),
)
"""Of groups of dead letters."""
VERDICT: Final = (Column("letters", cut=False), Column("verdict now"))


def table_lines(
    title: str,
    columns: Sequence[Column],
    rows: Iterable[Sequence[str]],
    *,
    wide: bool = False,
) -> Iterator[str]:
    """Yield the lines of a table, for a terminal or for another program.

    Args:
        title: what it shows; only for people.
        columns: its columns.
        rows: the cells; what does not print in them is escaped.
        wide: do not fit it into the terminal.
    """
    cells = [[one_line(cell) for cell in row] for row in rows]
    width = terminal_width()
    if width is None:
        yield "\t".join(column.name for column in columns)
        yield from map("\t".join, cells)
        return
    # Texts that do not fit are cut at their end.
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [number for number, column in enumerate(columns) if wide or not column.more]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in (columns[number] for number in shown):
        table.add_column(column.name, no_wrap=not column.cut, overflow="ellipsis")
    for row in cells:
        texts = (
            row[number][: None if wide or not columns[number].is_id else SHORT]
            for number in shown
        )
        table.add_row(*(Text(text, no_wrap=True, overflow="ellipsis") for text in texts))
    console = Console(width=100_000 if wide else width, color_system=None)
    with console.capture() as captured:
        console.print(Text(title, no_wrap=True, overflow="ellipsis"))
        console.print(table if cells else "", end="")
    yield from (line.rstrip() for line in captured.get().splitlines())


def terminal_width() -> int | None:
    """Return how many cells the terminal has in a line, ``None`` where standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
