"""The browser of the console's tests: installed before the first of them begins, whose time is measured."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _installed() -> None:
    """A browser is there."""
    # Imported here: kafka-python's deprecated calls are forgiven once this folder's parent is read.
    from integration.console import browser

    browser.prepare()
