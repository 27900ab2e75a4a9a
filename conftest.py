"""What holds for all tests, units and integration: their pace."""

from __future__ import annotations

import pytest

from integration.pace import Pace


def pytest_configure(config: pytest.Config) -> None:
    """Hold every test to the pace."""
    config.pluginmanager.register(Pace(), "pace")
