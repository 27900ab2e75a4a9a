"""The table of task queues: written from what was measured, and measured again."""

from __future__ import annotations

import json

import pytest

from integration.peers.__main__ import PAGE
from integration.peers.task_queues import FRAMEWORKS, KINDS, RESULTS, WAYS, Trial, written
from integration.services import RabbitMQ

KEPT = json.loads(RESULTS.read_text("utf-8"))


def test_the_page_has_the_table_of_the_outcomes() -> None:
    """Nobody wrote in it by hand."""
    page = PAGE.read_text("utf-8")
    assert written(page, KEPT) == page


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("way", WAYS)
def test_workers_do_what_the_table_says(name: str, way: str, rabbitmq: RabbitMQ) -> None:
    """Attacks succeed as often as when the table was written."""
    assert Trial(rabbitmq.url, KINDS[name], way).outcomes() == KEPT[way][name]
