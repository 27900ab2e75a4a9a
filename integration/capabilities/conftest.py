"""A bench of each client, on its real broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from integration.capabilities.bench import Bench

CLIENTS = (
    "rabbitmq aio-pika", "rabbitmq pika", "rabbitmq faststream", "kafka kafka-python", "kafka confluent",
    "kafka confluent+aio", "kafka aiokafka", "kafka faststream", "kafka faststream-confluent",
)  # fmt: skip


@pytest.fixture(params=CLIENTS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A bench of each client, whose consumer judges by its own clock."""
    from integration.capabilities.bench import (
        Bench,
    )  # kafka-python warns when it is imported

    service = request.getfixturevalue(request.param.partition(" ")[0])
    bench = Bench(request.param, service.url, tmp_path)
    yield bench
    bench.close()
