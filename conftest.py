"""What holds for all tests, units and integration: their pace."""

from __future__ import annotations

import pytest

# Before they are imported, so that a contract that fails says what it found.
pytest.register_assert_rewrite(
    "integration.kafka_batches",
    "mqauth.testing.contract",
    "mqauth.testing.delivery_contract",
    "mqauth.testing.signing_contract",
    "mqauth.testing.store_contract",
)

from integration.pace import Pace  # noqa: E402


def pytest_configure(config: pytest.Config) -> None:
    """Hold every test to the pace."""
    config.pluginmanager.register(Pace(), "pace")
