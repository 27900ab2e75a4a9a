"""Tables for people: they fit the terminal, no cell is wrapped, and no id is cut below 12 characters.

Piped they are another output: a line of names, then tab-separated lines with whole values.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Annotated, Final, NamedTuple

import typer
from rich.cells import cell_len, set_cell_size

from mqauth.cli.app import one_line
from mqauth.cli.forms import SHORT

Wide = Annotated[bool, typer.Option("--wide", help="Whole values, wider than the terminal.")]


class Column(NamedTuple):
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


LETTER: Final = (
    Column("letter", is_id=True, cut=False),
    Column("reason", cut=False),
    Column("time (UTC)", goes=3, cut=False),
    Column("subject"),
    Column("issuer", goes=1),
    Column("destination", goes=4),
    Column("intact", goes=2, cut=False),
)
"""Of dead letters."""
GROUP: Final = (
    Column("letters", cut=False),
    Column("reason", cut=False),
    Column("kid", is_id=True, cut=False),
    Column("subject"),
    Column("issuer", goes=2),
    Column("destination", goes=4),
    Column("first (UTC)", goes=1, cut=False),
    Column("last (UTC)", goes=3, cut=False),
)
"""Of groups of dead letters."""
VERDICT: Final = (Column("letters", cut=False), Column("verdict now"))


def table_lines(
    title: str, columns: Sequence[Column], rows: Iterable[Sequence[str]], *, wide: bool = False
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
        yield from fitted(title, columns, cells, width=100_000 if wide else width, whole=wide)


def terminal_width() -> int | None:
    """Return how many cells the terminal has in a line, ``None`` where standard output is none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(
    title: str, columns: Sequence[Column], rows: Sequence[Sequence[str]], *, width: int, whole: bool = False
) -> Iterator[str]:
    """Yield the lines of a table of at most ``width`` cells.

    What is the same in all rows moves to the top. Then columns go, and texts are cut in the middle.
    """
    yield middle(title, width)
    shown = [[column.name, *(row[at] for row in rows)] for at, column in enumerate(columns)]
    kept = list(range(len(columns)))
    if not whole:
        shown = [
            [text if number == 0 or not columns[at].is_id else text[:SHORT] for number, text in enumerate(texts)]
            for at, texts in enumerate(shown)
        ]
        # Columns whose cells are all the same, unless all columns are.
        same = [at for at in kept if len(rows) > 1 and not columns[at].is_id and len(set(shown[at][1:])) == 1]
        if len(same) < len(columns):
            yield from (middle(f"{columns[at].name}: {shown[at][1] or '-'}", width) for at in same)
            kept = [at for at in kept if at not in same]
    full = {at: max(map(cell_len, shown[at])) for at in kept}
    # Two cells are between columns. A text that may be cut keeps ten; where that is too much, columns go.
    least = {at: min(size, 10) if columns[at].cut else size for at, size in full.items()}
    for _, at in sorted((columns[at].goes, at) for at in kept if columns[at].goes):
        if sum(least.values()) + 2 * len(least) - 2 > width:
            del least[at]
    # The widest text is cut first. What still does not fit loses the middle of its lines.
    widths = {at: full[at] for at in least}
    while sum(widths.values()) + 2 * len(widths) - 2 > width and widths != least:
        widths[max((at for at in least if widths[at] > least[at]), key=widths.__getitem__)] -= 1
    for number in range(len(rows) + 1) if rows else ():
        cells = (set_cell_size(middle(shown[at][number], size), size) for at, size in widths.items())
        yield middle("  ".join(cells).rstrip(), width)


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
