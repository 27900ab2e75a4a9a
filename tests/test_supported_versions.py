"""The lower bounds that pyproject.toml promises, and the page that says what they were tried with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from integration import versions

PAGE = Path(__file__).parent.parent / "docs" / "reference" / "supported-versions.md"


def test_the_page_is_what_the_command_writes() -> None:
    """Everything below the mark comes from the results that are kept."""
    assert versions.page() == PAGE.read_text("utf-8")


def test_each_lower_bound_is_one_release() -> None:
    """Every dependency that a service may have beside us has a lower bound, so that the oldest can be tried."""
    bounds = versions.lower_bounds()
    assert bounds.keys() >= {
        "PyJWT",
        "cryptography",
        "tenacity",
        "aio-pika",
        "kafka-python",
        "confluent-kafka",
        "redis",
    }
    assert all(release[0].isdigit() for release in bounds.values())


@pytest.mark.parametrize(("passed", "code"), [(True, 0), (False, 1)])
def test_what_failed_is_told(
    passed: bool,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A column with a failure ends the command with 1 and stands on the page, beside its releases."""
    page, results = tmp_path / "page.md", tmp_path / "versions.json"
    page.write_text(f"Words.\n{versions.MARK}an old table\n")
    seen: dict[str, Any] = {
        "units": True, "promises": passed, "stores": True,
        "releases": {"Python": "3.11.7", "pika": "1.3.2"}, "brokers": {"Valkey": "8.1.1"},
    }  # fmt: skip
    monkeypatch.setattr(versions, "PAGE", page)
    monkeypatch.setattr(versions, "RESULTS", results)
    monkeypatch.setattr(versions, "KINDS", {"lowest": lambda _folder, _rest: seen})
    assert versions.run(["lowest"]) == code
    assert ("failed: lowest: promises" in capsys.readouterr().err) is not passed
    head, _, table = page.read_text().partition(versions.MARK)
    assert head == "Words.\n"
    assert "an old table" not in table
    assert {"|pika|1.3.2|", "|Valkey|8.1.1|", "|*unit tests*|passed|"} <= set(
        table.split("\n")
    )
    assert ("|*what every client promises*|**failed**|" in table) is not passed
