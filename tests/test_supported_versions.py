"""The lower bounds that pyproject.toml promises, and the page that says what they were tried with."""

from __future__ import annotations

from pathlib import Path

from integration import versions

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "supported-versions.md"


def test_the_page_is_what_the_command_writes() -> None:
    """Everything below the mark comes from the results that are kept."""
    assert versions.page() == PAGE.read_text("utf-8")


def test_lower_bounds_are_what_was_tried() -> None:
    """A lower bound that nobody has tried is no promise."""
    tried = versions.results()["lowest"]["releases"]
    assert {name: tried.get(name) for name in versions.lower_bounds()} == versions.lower_bounds()
