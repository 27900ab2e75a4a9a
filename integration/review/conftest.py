"""A scene on each real broker."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from integration.review.scene import Scene


@pytest.fixture(params=["rabbitmq", "kafka"])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """A scene on each broker, its own queues and topics."""
    from integration.review.scene import (
        scene_at,
    )  # kafka-python warns when it is imported

    with scene_at(request.getfixturevalue(request.param).url, tmp_path) as scene:
        yield scene
