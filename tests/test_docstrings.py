"""Docstrings keep their shape: no reflow has cut a word, glued a list to prose, or left a word alone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_GLUED = re.compile(r"[.:;,] [*-] \S|\w ={4,}|={4,} \w")
"""A list item, or the line under a heading, in the middle of a line."""


def broken(text: str) -> Iterator[str]:
    """Yield the lines of a docstring that a reflow has broken."""
    lines = text.splitlines()
    for line, after in zip(lines[1:], (*lines[2:], ""), strict=False):
        words, goes_on = line.split(), after.strip() and _indent(after) == _indent(line)
        cut = goes_on and re.search(r"[a-z]-$", line)
        # a paragraph has no line of one word, unless its sentence ends there
        alone = (
            goes_on and len(words) == 1 and len(line.strip()) < 20 and line[-1].isalpha()
        )
        if cut or alone or _GLUED.search(line):
            yield line.strip()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


@pytest.mark.parametrize("folder", ["mqauth", "integration", "tests"])
def test_no_docstring_is_broken(folder: str) -> None:
    """Every docstring reads as it was written."""
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(
                node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
            ):
                lines = broken(ast.get_docstring(node) or "")
                found += [
                    f"{path.relative_to(ROOT)}, {getattr(node, 'name', 'its head')}: {line}"
                    for line in lines
                ]
    assert found == []


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("How it works ======= A client polls.", "How it works ======= A client polls."),
        ("It does two things: * it polls.", "It does two things: * it polls."),
        ("A record is deli-\nvered once.", "A record is deli-"),
        ("Nearly every mistake\npasses\nit.", "passes"),
        ("Two kinds:\n\n* one\n* the other", None),
        ("How it works\n============\n\nA client polls.", None),
        ("It ends.\nDone.\nThen it begins.", None),
    ],
)
def test_a_broken_line_is_seen(text: str, line: str | None) -> None:
    """Each way in which a reflow has broken one is seen, and lists and headings are not taken for it."""
    assert list(broken(f"First line.\n\n{text}")) == ([] if line is None else [line])
