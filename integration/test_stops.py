"""SIGTERM to a process of each client and framework amid its work: the next one takes over at once."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import pika
import pytest

from integration.services import Redis
from integration.task_victim import BROKERS, TaskOrders
from integration.test_kills import FASTSTREAM, QUEUES
from integration.victim import CLIENTS, RABBIT, Orders
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire import destination
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.message import Message

pytestmark = pytest.mark.slow
COUNT: Final = 200
WORK: Final = 0.03
"""Seconds of a handler: long enough that the first process is stopped amid its work."""
LEASE: Final = 600
"""Seconds of a claim: longer than any test waits, so that a claim that nobody released is seen."""
POOLS: Final = {"celery-threads": ("--pool", "threads")}
TASKS: Final = (*BROKERS, *POOLS)


@contextmanager
def plain(
    client: str, folder: Path, url: str, forge: Forge, redis: str
) -> Iterator[Orders]:
    """Send messages to a client; give what starts a process of it."""
    stage: Any = RabbitMQStage(url) if client in QUEUES else KafkaStage(url)
    if client == RABBIT:
        stage.destination = destination.rabbitmq("", stage.queue)
    elif client in FASTSTREAM:
        stage.group = stage.topic
    is_queue = client in QUEUES
    for number in range(COUNT):
        key = None if is_queue else b"k"
        message = Message(destination=stage.destination, body=b"%d" % number, key=key)
        stage.produce(forge.signer(), message)
    try:
        yield Orders(
            client=client, url=url, destination=stage.destination, dead=stage.dead,
            source=stage.queue if is_queue else stage.topic, group="" if is_queue else stage.group,
            keys=str(folder / "keys"), handled=str(folder / "handled"), audit=str(folder / "audit.jsonl"),
            redis=redis, work=WORK, lease=LEASE,
        )  # fmt: skip
        assert stage.letters() == []
    finally:
        stage.close()


@contextmanager
def tasks(
    client: str, folder: Path, url: str, forge: Forge, redis: str
) -> Iterator[TaskOrders]:
    """Send tasks to a framework; give what starts a worker of it."""
    orders = TaskOrders(
        framework=client.partition("-")[0], url=url, queue=f"stops-{uuid.uuid4().hex}", redis=redis,
        keys=str(folder / "keys"), folder=str(folder), work=WORK, lease=LEASE, more=POOLS.get(client, ()),
    )  # fmt: skip
    send(orders, forge, range(COUNT))
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        try:
            yield orders
            dead = channel.queue_declare(orders.dead, passive=True).method
            assert dead.message_count == 0
        finally:
            for end in ("", ".dead", ".DQ", ".XQ"):
                connection.channel().queue_delete(orders.queue + end)


def send(orders: TaskOrders, forge: Forge, numbers: range) -> None:
    """Send tasks, signed where the orders are not bare."""
    broker = BROKERS[orders.framework](orders, forge.signer())

    async def by_taskiq() -> None:
        await broker.startup()
        for number in numbers:
            await broker.find_task("pack").kiq(number)
        await broker.shutdown()

    if orders.framework == "taskiq":
        asyncio.run(by_taskiq())
        return
    for number in numbers:
        if orders.framework == "celery":
            broker.tasks["pack"].delay(number)
        else:
            broker.get_actor("pack").send(number)
    broker.close()


@pytest.mark.parametrize("client", [*CLIENTS, *TASKS])
def test_the_next_process_takes_over_at_once(
    client: str, tmp_path: Path, redis: Redis, request: pytest.FixtureRequest
) -> None:
    """No claim of what was not begun outlives an orderly stop: all is handled, once, before any lease is over."""
    on_rabbitmq = client in (*QUEUES, *TASKS)
    service = request.getfixturevalue("rabbitmq" if on_rabbitmq else "kafka")
    forge = Forge(lifetime=3600)
    (tmp_path / "keys").write_text(json.dumps(dump_key_set(forge.keys)))
    (tmp_path / "handled").touch()

    def seen() -> Counter[bytes]:
        return Counter((tmp_path / "handled").read_bytes().split())

    world = tasks if client in TASKS else plain
    with (
        ExitStack() as undo,
        world(client, tmp_path, service.url, forge, redis.url) as orders,
        (tmp_path / "log").open("wb") as log,
    ):

        def start() -> subprocess.Popen[bytes]:
            process = orders.process(stdout=log, stderr=log)
            undo.callback(process.wait)
            undo.callback(process.kill)
            return process

        first = start()
        wait_until(lambda: len(seen()) > COUNT // 5)
        first.send_signal(signal.SIGTERM)
        after = start()
        wait_until(lambda: len(seen()) == COUNT, lambda: after.poll() is None)
        assert len(seen()) == COUNT, (tmp_path / "log").read_text()[-3000:]
        after.send_signal(signal.SIGTERM)
        assert (first.wait(60), after.wait(60)) == (0, 0)
    assert seen() == {b"%d" % number: 1 for number in range(COUNT)}
