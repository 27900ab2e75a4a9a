"""The page of task queues: its worker runs what its program sends, and loses nothing when it is killed."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import aio_pika
import pytest
from aio_pika.exceptions import AMQPChannelError

from integration.documentation import RABBITMQ_URL, Block, Reader, blocks
from integration.scale import nightly
from integration.services import RabbitMQ, Redis
from integration.test_docs import settle_in

pytestmark = pytest.mark.slow
PATIENCE = 120.0
TASKS = nightly(10_000, otherwise=400)
KILLS = nightly(12, otherwise=3)
_LOOK_EVERY = 0.05
MANY = """# many.py
import asyncio

from taskiq_app import bill, broker


async def main() -> None:
    await broker.startup()
    for first in range(0, {tasks}, 50):
        await asyncio.gather(*(bill.kiq(order) for order in range(first, first + 50)))
    await broker.shutdown()


asyncio.run(main())
"""


@pytest.fixture
def taskiq_reader(rabbitmq: RabbitMQ, redis: Redis, tmp_path: Path) -> Iterator[Reader]:
    """Someone who follows the page of task queues to its worker, and tidies up."""
    asyncio.run(_forget(rabbitmq.url))
    changes = {RABBITMQ_URL: rabbitmq.url, "redis://localhost": redis.url, "policy=": "lease=1, policy="}
    reader = Reader(tmp_path, changes)
    command = tmp_path / ".commands" / "taskiq"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m taskiq "$@"\n')
    command.chmod(0o755)
    settle_in(reader)
    yield reader
    asyncio.run(_forget(rabbitmq.url))


async def _forget(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        for name in ("taskiq", "taskiq.dead", "taskiq.dead_letter"):
            with suppress(AMQPChannelError):
                await (await connection.channel()).queue_delete(name)


def marked(mark: str) -> list[Block]:
    """Return the blocks of a framework."""
    found = [block for block in blocks("docs/task-queues.md") if block.mark == mark]
    assert found
    return found


@contextmanager
def worker(reader: Reader, command: Block, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a worker with its output in a file, and stop it by SIGTERM."""
    with (folder / "worker.txt").open("a") as output:
        process = reader.start(command, stdout=output, stderr=output, start_new_session=True)
        try:
            yield process
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(PATIENCE)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def billed(folder: Path) -> list[int]:
    """Return what the tasks of all workers printed so far."""
    output = folder / "worker.txt"
    lines = output.read_text().splitlines() if output.exists() else []
    return [int(line.split()[1]) for line in lines if line.startswith("billed ") and line.split()[1:]]


def until(folder: Path, count: int) -> None:
    """Wait until so many different tasks have run."""
    ends = time.monotonic() + PATIENCE
    while len({*billed(folder)}) < count:
        assert time.monotonic() < ends, (folder / "worker.txt").read_text()[-3000:]
        time.sleep(_LOOK_EVERY)


def rejected(folder: Path) -> list[str]:
    """Return the reasons of the audit files of all processes."""
    lines = [line for path in folder.glob("audit-*.jsonl") for line in path.read_text().splitlines()]
    return [json.loads(line)["reason"] for line in lines]


def test_the_page_of_taskiq(taskiq_reader: Reader, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """The worker runs what the program sends, and dead-letters what a stranger does."""
    application, program, command = marked("taskiq")
    taskiq_reader.write(application)
    with worker(taskiq_reader, command, tmp_path):
        taskiq_reader.run(program)
        until(tmp_path, 1)
        asyncio.run(_stranger(rabbitmq.url))
        ends = time.monotonic() + PATIENCE
        while rejected(tmp_path) != ["token_missing"]:
            assert time.monotonic() < ends
            time.sleep(_LOOK_EVERY)
    assert billed(tmp_path) == [1]


async def _stranger(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        exchange = await (await connection.channel()).get_exchange("taskiq")
        await exchange.publish(aio_pika.Message(b'{"task_name": "taskiq_app:bill"}'), "taskiq")


def test_killed_workers_of_taskiq(taskiq_reader: Reader, tmp_path: Path) -> None:
    """Workers that are killed again and again run every task, and condemn none."""
    application, _, command = marked("taskiq")
    taskiq_reader.write(application)
    (tmp_path / "many.py").write_text(MANY.format(tasks=TASKS))
    sender = Block(page="", line=0, language="sh", mark="", text="python many.py")
    for kill in range(KILLS):
        with worker(taskiq_reader, command, tmp_path) as process:
            if not kill:
                taskiq_reader.run(sender)
            until(tmp_path, (kill + 1) * TASKS // (KILLS + 1))
            os.killpg(process.pid, signal.SIGKILL)
    with worker(taskiq_reader, command, tmp_path):
        until(tmp_path, TASKS)
    assert {*billed(tmp_path)} == {*range(TASKS)}
    assert rejected(tmp_path) == []
