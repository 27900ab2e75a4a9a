"""The table of what each client can do: complete, true to the tests, and what the page says."""

from __future__ import annotations

import ast

import pytest

from integration.capabilities import table
from integration.documentation import ROOT


@pytest.mark.parametrize(
    "row", [*table.CAPABILITIES, *table.TASK_QUEUES], ids=lambda row: row.name
)
def test_no_cell_is_empty(row: table.Capability) -> None:
    """Each client has a cell, which names a test that exists."""
    assert set(row.cells) == set(
        table.TASKS if row in table.TASK_QUEUES else table.CLIENTS
    )
    for cell in row.cells.values():
        file, _, name = cell.test.partition("::")
        path = ROOT / file if file.startswith("tests/") else ROOT / "integration" / file
        defined = {
            node.name
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if hasattr(node, "name")
        }
        assert cell.says
        assert name.partition("::")[0] in defined, cell.test


def test_the_page_has_the_table() -> None:
    """docs/clients.md is written from the table by ``python -m integration.reference``."""
    assert table.page() in (ROOT / "docs" / "clients.md").read_text("utf-8")
