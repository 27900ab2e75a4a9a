"""The browser of the console's tests: installed before the first of them begins, whose time is measured."""

from __future__ import annotations

import pytest

from integration.console import browser


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    """A browser is there."""
    browser.prepare()
