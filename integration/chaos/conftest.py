"""Fixtures of the chaos table: the printing of sums, and brokers and stores of our own that may be stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from integration.chaos.count import Count
from integration.services import RabbitMQ

INTERCEPTOR = "message_interceptors.incoming.set_header_timestamp.overwrite = true"


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """Mark each test of this folder slow: the contracts have its rules, it has the faults of real services."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def report(capsys: pytest.CaptureFixture[str]) -> Callable[[Count], None]:
    """Print the sums of a row, whatever pytest captures, and assert them."""

    def report(count: Count) -> None:
        with capsys.disabled():
            print(f"\n{count.line}")
        count.check()

    return report


@pytest.fixture(scope="session")
def _our_rabbitmq() -> Iterator[RabbitMQ]:
    """A RabbitMQ with the interceptor that stamps what it receives."""
    with RabbitMQ.launch(extra_config=[INTERCEPTOR]) as broker:
        yield broker


@pytest.fixture
def own_rabbitmq(_our_rabbitmq: RabbitMQ) -> Iterator[RabbitMQ]:
    """A RabbitMQ that gives evidence of append time and that the test may stop; it is brought back."""
    yield _our_rabbitmq
    _our_rabbitmq.start()
