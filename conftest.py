"""What holds for all tests, units and integration: their pace, and the examples of property tests."""

from __future__ import annotations

import gc

import pytest
from hypothesis import HealthCheck, settings

# Before they are imported, so that a contract that fails says what it found.
pytest.register_assert_rewrite(
    "integration.kafka_batches",
    "mqauth.testing.contract",
    "tests.kit.delivery_contract",
    "mqauth.testing.signing_contract",
    "mqauth.testing.store_contract",
    "tests.kit.store_machine",
)

pytest_plugins = ["mqauth.testing.attacks"]

from integration import scale  # noqa: E402
from integration.pace import Pace  # noqa: E402

# No test depends on the machine's speed: there is no deadline, and drawing examples may be slow. Every run but
# the nightly one has the same examples: what breaks a test is a change, never luck.
settings.register_profile(
    "unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile(
    "everyday", settings.get_profile("unhurried"), derandomize=True, max_examples=50
)
settings.register_profile("nightly", settings.get_profile("unhurried"), max_examples=1000)
settings.load_profile("nightly" if scale.is_nightly() else "everyday")


def pytest_configure(config: pytest.Config) -> None:
    """Hold every test to the pace."""
    config.pluginmanager.register(Pace(), "pace")


def pytest_collection_finish() -> None:
    """Leave what is there before the first test out of every search for garbage, whose larger part it would be."""
    gc.collect()
    gc.freeze()
