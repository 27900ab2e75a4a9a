"""The page on delivery and the chaos table hold each other to their word."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path

import pytest

from integration.documentation import ROOT

PAGE = (ROOT / "docs" / "delivery.md").read_text("utf-8")
NAMED = {name for name in re.findall(r"`(test_\w+)(?:\[\w+\])?`", PAGE)}
CONTRACTS = [
    *(ROOT / "tests" / "kit").glob("delivery_contract*.py"),
    ROOT / "mqauth" / "testing" / "contract.py",
]
ROWS_OF_BOTH = ROOT / "integration" / "chaos" / "rows.py"
FILES = [ROWS_OF_BOTH, *sorted((ROOT / "integration" / "chaos").glob("test_*.py"))]
TABLE = PAGE.partition("## When something goes wrong")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| (?!what goes wrong)(.*) \|$", TABLE, re.MULTILINE)


def names_in(files: Iterable[Path]) -> set[str]:
    """Return the names of the tests in some files."""
    trees = [ast.parse(file.read_text("utf-8")) for file in files]
    return {
        node.name
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def chaos(subject: str) -> set[str]:
    """Return the names of the chaos tests of a broker, or of identities."""
    return names_in(file for file in FILES if file.name.startswith(f"test_{subject}_"))


def test_every_named_test_exists() -> None:
    """Each test the page names is of the chaos table, of a delivery contract, or of a file it names."""
    named = set(re.findall(r"`(test_\w+\.py)`", PAGE))
    beside = {
        path for path in (ROOT / "integration").rglob("test_*.py") if path.name in named
    }
    assert {path.name for path in beside} == named
    assert names_in((*FILES, *beside, *CONTRACTS)) >= NAMED - {
        file.stem for file in beside
    }


@pytest.mark.parametrize("subject", ["rabbitmq", "kafka", "identity"])
def test_every_chaos_test_is_told(subject: str) -> None:
    """Each chaos test stands on the page."""
    assert chaos(subject) | names_in([ROWS_OF_BOTH]) <= NAMED


@pytest.mark.parametrize("row", ROWS)
def test_every_row_names_its_test(row: str) -> None:
    """A row's promise on either broker names the test that keeps it; a dash says that there is no such thing."""
    for cell in row.split("|")[1:]:
        none = cell.strip() == "-" or cell.strip().startswith("(no such thing")
        assert none or re.search(r"`test_\w+(\[\w+\])?`", cell), cell
