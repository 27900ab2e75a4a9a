"""Tables for people: they fit the terminal, no cell is wrapped, and no id is cut below 12 characters.

Piped they are another output: a line of names, then tab-separated lines with whole values.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Final

import typer
from rich.cells import cell_len, set_cell_size

from mqauth.cli.app import one_line
from mqauth.cli.forms import SHORT

Wide = Annotated[bool, typer.Option("--wide", help="Whole values, wider than the terminal.")]
_GAP: Final = 2
_ENDLESS: Final = 100_000
_LEAST: Final = 10
"""Cells that are left of a text that is cut."""
Row = Sequence[str]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Args:
        name: its heading.
        goes: the order in which columns go where there is no room, the lowest first; 0 stays.
        is_id: shown by its first characters, and never cut further.
        cut: whether its texts may be cut in the middle.
    """

    name: str
    goes: int = 0
    is_id: bool = False
    cut: bool = True


def table_lines(
    title: str, columns: Sequence[Column], rows: Iterable[Row], *, wide: bool = False
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
    else:
        yield from fitted(title, columns, cells, width=_ENDLESS if wide else width, whole=wide)


def terminal_width() -> int | None:
    """Return how many cells the terminal has in a line, ``None`` where standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(
    title: str, columns: Sequence[Column], rows: Sequence[Row], *, width: int, whole: bool = False
) -> Iterator[str]:
    """Yield the lines of a table of at most ``width`` cells.

    What is the same in all rows moves to the top. Then texts are cut in the middle, then columns go. What still
    does not fit is printed as blocks of ``name: value``.
    """
    yield middle(title, width)
    if not whole:
        rows = [
            [cell[:SHORT] if column.is_id else cell for column, cell in zip(columns, row, strict=True)]
            for row in rows
        ]
        # Columns whose cells are all the same, unless all columns are.
        same = [
            index for index, column in enumerate(columns)
            if len(rows) > 1 and not column.is_id and len({row[index] for row in rows}) == 1
        ]  # fmt: skip
        kept = [index for index in range(len(columns)) if index not in same]
        if kept:
            yield from (middle(f"{columns[index].name}: {rows[0][index] or '-'}", width) for index in same)
            columns, rows = [columns[index] for index in kept], [[row[index] for index in kept] for row in rows]
    # The columns that stay, by their index, and how wide each is.
    full = [
        max(cell_len(column.name), *(cell_len(row[index]) for row in rows), 0)
        for index, column in enumerate(columns)
    ]
    kept, going = (
        list(range(len(columns))),
        sorted((each.goes, at) for at, each in enumerate(columns) if each.goes),
    )
    widths = _cut(full, columns, width)
    while _total(widths) > width and going:
        kept.remove(going.pop(0)[1])
        widths = _cut([full[index] for index in kept], [columns[index] for index in kept], width)
    if _total(widths) > width:
        for row in rows:
            yield ""
            yield from (middle(f"{column.name}: {cell}", width) for column, cell in zip(columns, row, strict=True))
    elif rows:
        for line in ([column.name for column in columns], *rows):
            cells = (set_cell_size(middle(line[at], size), size) for at, size in zip(kept, widths, strict=True))
            yield (" " * _GAP).join(cells).rstrip()


def middle(text: str, width: int) -> str:
    """Return a text of at most ``width`` cells, cut in the middle."""
    if cell_len(text) <= width:
        return text
    head = set_cell_size(text, (width - 1) // 2).rstrip(" ")
    rest = width - 1 - cell_len(head)
    tail = text[-rest:]
    while cell_len(tail) > rest:
        tail = tail[1:]
    return f"{head}…{tail}"


def _cut(full: Sequence[int], columns: Sequence[Column], width: int) -> list[int]:
    """Return widths that fit, the widest texts cut first; as narrow as they may be where nothing fits."""
    widths = list(full)
    while _total(widths) > width:
        may_cut = (index for index, column in enumerate(columns) if column.cut)
        widest = max(may_cut, key=widths.__getitem__, default=None)
        if widest is None or widths[widest] <= _LEAST:
            break
        widths[widest] -= 1
    return widths


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + _GAP * (len(widths) - 1)
