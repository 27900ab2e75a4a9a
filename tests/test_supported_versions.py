"""The lower bounds that pyproject.toml promises, and the page that says what they were tried with."""

from __future__ import annotations

from pathlib import Path

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
