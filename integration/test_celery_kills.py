"""Celery where the broker, or a child of its pool, is killed: what was sent is not lost."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path
from typing import Any, Final

import pytest
from kombu.exceptions import OperationalError

from integration.services import RabbitMQ, Redis
from integration.task_victim import TaskOrders, celery_app
from integration.test_stops import send
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until
from mqauth.wire.jwk import dump_key_set

pytestmark = pytest.mark.slow
COUNT: Final = 200


class Sending(threading.Thread):
    """Sends tasks until so many ``delay()`` have returned, and waits while the broker is away.

    Attributes:
        returned: the numbers of the tasks whose ``delay()`` returned.
        refused: how many raised.
        up: whether the broker is thought to be there.
    """

    def __init__(self, orders: TaskOrders, forge: Forge) -> None:
        super().__init__(daemon=True)
        self.app = celery_app(orders, forge.signer())
        self.returned: list[int] = []
        self.refused = 0
        self.up = threading.Event()
        self.up.set()

    def run(self) -> None:
        """Send."""
        number = 0
        while len(self.returned) < COUNT:
            self.up.wait()
            try:
                self.app.tasks["pack"].delay(number)
                self.returned.append(number)
            except OperationalError:
                self.refused += 1
            number += 1


def world(
    folder: Path, url: str, redis: str, **settings: Any
) -> tuple[TaskOrders, Forge]:
    """Return what starts a worker, and the one who signs its tasks."""
    forge = Forge(lifetime=3600)
    (folder / "keys").write_text(json.dumps(dump_key_set(forge.keys)))
    (folder / "handled").touch()
    orders = TaskOrders(
        framework="celery", url=url, queue=f"kills-{folder.name}", redis=redis, keys=str(folder / "keys"),
        folder=str(folder), lease=2, **{"work": 0.01, **settings},
    )  # fmt: skip
    return orders, forge


def handled(folder: Path) -> Counter[int]:
    """Return what ran, with how often."""
    return Counter(int(each) for each in (folder / "handled").read_bytes().split())


def test_a_broker_that_is_killed_loses_no_task(
    own_rabbitmq: RabbitMQ, redis: Redis, tmp_path: Path
) -> None:
    """Each task whose `delay()` returned runs, although its broker was killed twice meanwhile."""
    orders, forge = world(tmp_path, own_rabbitmq.url, redis.url)
    sending = Sending(orders, forge)
    with (tmp_path / "log").open("wb") as log:
        worker = orders.process(stdout=log, stderr=log)
    try:
        sending.start()
        for least in (COUNT // 3, 2 * COUNT // 3):
            wait_until(lambda: len(sending.returned) >= least)  # noqa: B023
            sending.up.clear()
            own_rabbitmq.kill()
            own_rabbitmq.start()
            sending.up.set()
        sending.join(60)
        assert len(sending.returned) == COUNT
        wait_until(lambda: {*sending.returned} <= {*handled(tmp_path)})
        worker.terminate()
        assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize("kept", [True, False], ids=["rejected", "acked"])
def test_a_child_that_is_killed(
    kept: bool, rabbitmq: RabbitMQ, redis: Redis, tmp_path: Path
) -> None:
    """A killed child's task runs again with `task_reject_on_worker_lost`; else it is lost, as the start says."""
    settings = {"task_reject_on_worker_lost": kept}
    orders, forge = world(
        tmp_path, rabbitmq.url, redis.url, settings=settings, dies=10, work=0
    )
    send(orders, forge, range(60))
    with (tmp_path / "log").open("wb") as log:
        worker = orders.process(stdout=log, stderr=log)
    runs = {number for number in range(60) if kept or number % 10}
    try:
        wait_until(
            lambda: {*handled(tmp_path)} >= runs and len([*tmp_path.glob("died-*")]) == 6
        )
        worker.terminate()
        assert worker.wait(60) == 0
    finally:
        worker.kill()
        worker.wait()
    assert handled(tmp_path) == dict.fromkeys(runs, 1)
    said = (tmp_path / "log").read_text().count("task_reject_on_worker_lost")
    assert said == (0 if kept else 1)
