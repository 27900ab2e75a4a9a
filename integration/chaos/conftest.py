"""Fixtures of the chaos table: the printing of sums, and brokers and stores of our own that may be stopped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from integration.chaos.row import Count

INTERCEPTOR = "message_interceptors.incoming.set_header_timestamp.overwrite = true"


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark each test of this folder slow: the contracts have its rules, it has the faults of real services."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[Count], Count]:
    """Print the sums of a row, whatever pytest captures, assert them, and return them."""

    def report(count: Count) -> Count:
        with capsys.disabled():
            print(f"\n{count.line}")
        count.check()
        return count

    return report
