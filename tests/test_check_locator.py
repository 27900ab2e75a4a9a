"""Lines of a TOML file: found where ``tomllib`` sees each key."""

from __future__ import annotations

import json
import tomllib
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mqauth.config.toml_file import lines_of, nearest

TRICKY = '''\
# [not.a.table]
top = 1
"quoted key" = "x # no comment"
'literal.key' = 'c:\\dir'

[a.b]   # comment
text = """
[no.table]
key = 1 \\"""
""""
raw = \'\'\'
[[no]]
\'\'\'\'\'
dotted . "in side".deep = [ 1,
  2, # comment, with ] and }
  [3, {k = 4, "l" = [5]}],
]
when = 1979-05-27 07:32:00Z
[[list]]
n = 1
[list.inner]
m = 2
[[list]]
[[list.sub]]
s = { x = "a\\"b", y.z = 3 }
[a]
last = true'''


def test_lines_of_tricky_text() -> None:
    """Strings over several lines, comments, quotes, dots and arrays of tables mislead nobody."""
    found = lines_of(TRICKY)
    wanted = {
        ("top",): 2, ("quoted key",): 3, ("literal.key",): 4, ("a", "b"): 6, ("a", "b", "text"): 7,
        ("a", "b", "raw"): 11, ("a", "b", "dotted", "in side", "deep"): 14,
        ("a", "b", "dotted", "in side", "deep", 1): 14, ("a", "b", "dotted", "in side", "deep", 2, 1, "l", 0): 14,
        ("a", "b", "when"): 18, ("list",): 19, ("list", 0): 19, ("list", 0, "n"): 20,
        ("list", 0, "inner", "m"): 22,
        ("list", 1): 23, ("list", 1, "sub", 0): 24, ("list", 1, "sub", 0, "s", "y", "z"): 25, ("a",): 26,
        ("a", "last"): 27,
    }  # fmt: skip
    assert {path: found.get(path) for path in wanted} == wanted


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[tuple[Any, ...], Any]]:
    """Return every path to a value that is no container."""
    if not isinstance(value, dict | list):
        return [(path, value)]
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for name, item in inner for leaf in leaves(item, (*path, name))]


NAMES = st.text(
    st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from(".#\"'[]={}\\ "),
    max_size=6,
)
SHAPES: Any = st.just(0)
# As deep as any table of ours, and one more.
for _ in range(4):
    SHAPES = (
        st.just(0)
        | st.lists(SHAPES, max_size=3)
        | st.dictionaries(NAMES, SHAPES, max_size=3)
    )
TABLES = st.dictionaries(NAMES, st.dictionaries(NAMES, SHAPES, max_size=3) | st.lists(
    st.dictionaries(NAMES, SHAPES, max_size=2), min_size=1, max_size=3
), max_size=3)  # fmt: skip


@given(
    tables=TABLES,
    gaps=st.lists(st.sampled_from(["", "# [x]\n", "\n", "\n\n"]), min_size=1, max_size=5),
)
def test_lines_are_those_of_the_values(tables: dict[str, Any], gaps: list[str]) -> None:
    """In a file whose every number is the line that its key stands on, the scanner says that number for each."""
    writer = Writer(gaps)
    for name, table in tables.items():
        for one in table if isinstance(table, list) else [table]:
            header = f"[{json.dumps(name, ensure_ascii=False)}]"
            writer.line(f"[{header}]" if isinstance(table, list) else header)
            for key, value in one.items():
                writer.pair(key, value)
    found = lines_of(writer.text)
    read = leaves(tomllib.loads(writer.text))
    assert [(path, found.get(path)) for path, _ in read] == read


class Writer:
    """Writes TOML in which every value is the number of its key's line."""

    def __init__(self, gaps: list[str]) -> None:
        self.text, self._at = "", 0
        self._gaps = gaps

    def line(self, text: str) -> None:
        """Write a line, with a gap before it."""
        self.text += self._gaps[len(self.text) % len(self._gaps)] + text + "\n"

    def pair(self, key: str, value: Any) -> None:
        """Write a key with a value."""
        self.text += (
            self._gaps[len(self.text) % len(self._gaps)]
            + json.dumps(key, ensure_ascii=False)
            + " = "
        )
        self._at = self.text.count("\n") + 1
        self._value(value)
        self.text += "\n"

    def _value(self, value: Any) -> None:
        if isinstance(value, dict):
            self.text += "{ "
            for number, (key, item) in enumerate(value.items()):
                self.text += (
                    (", " if number else "") + json.dumps(key, ensure_ascii=False) + " = "
                )
                self._value(item)
            self.text += " }"
        elif isinstance(value, list):
            self.text += "["
            for item in value:
                self.text += "\n  # a ] here\n  "
                self._value(item)
                self.text += ","
            self.text += "\n]"
        else:
            self.text += str(self._at)


def test_absent_key_has_the_line_of_its_table() -> None:
    """What is missing from a table is shown at the table; what has no table has no line."""
    found = lines_of("[a]\n[a.b]\n")
    assert nearest(found, ("a", "b", "c", 0)) == 2
    assert nearest(found, ("z",)) is None


def test_text_that_cannot_be_read_gives_what_was_found() -> None:
    """Of what is no TOML, or a newer one, the lines up to there are told."""
    assert lines_of("a = 1\n= 2\n") == {("a",): 1}


def test_deep_text_gives_what_was_found() -> None:
    """Nesting as deep as ``tomllib`` follows, or deeper, costs lines at most, never the check."""
    text = "a = 1\nb = " + "[" * 2000 + "]" * 2000
    assert lines_of(text)[("a",)] == 1
