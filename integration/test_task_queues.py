"""The page of task queues: its worker runs what its program sends, and loses nothing when it is killed."""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote, urlsplit

import aio_pika
import pika
import pytest
import redis
from aio_pika.exceptions import AMQPChannelError

from integration.documentation import RABBITMQ_URL, Block, Reader, blocks
from integration.keyserver import Authority, KeyServer
from integration.review.tunnel import Tunnel
from integration.scale import nightly
from integration.services import RabbitMQ, Redis
from integration.task_parts import Hijack, buried
from integration.test_docs import settle_in

pytestmark = pytest.mark.slow
PATIENCE = 120.0
TASKS = nightly(10_000, otherwise=400)
HALF = nightly(500, otherwise=100)
"""Half of a round's tasks; each half ends with a kill."""
_LOOK_EVERY = 0.02
MANY = {
    "taskiq": """
import asyncio

from taskiq_app import bill, broker


async def main() -> None:
    await broker.startup()
    for first in range({begin}, {end}, 50):
        await asyncio.gather(*(bill.kiq(order) for order in range(first, first + 50)))
    await broker.shutdown()


asyncio.run(main())
""",
    "dramatiq": """
from dramatiq_app import bill

for order in range({begin}, {end}):
    bill.send(order)
""",
    "celery": """
from celery_app import bill

for order in range({begin}, {end}):
    bill.delay(order)
""",
}
DELAYED = {
    "taskiq": """
import asyncio

from taskiq_app import bill, broker


async def main() -> None:
    await broker.startup()
    for order in range(20):
        await bill.kicker().with_labels(delay=3600).kiq(order)
    await broker.shutdown()


asyncio.run(main())
""",
    "dramatiq": """
from dramatiq_app import bill

for order in range(20):
    bill.send_with_options(args=(order,), delay=3_600_000)
""",
    "celery": """
from celery_app import bill

for order in range(20):
    bill.apply_async((order,), countdown=3600)
""",
}
STRANGERS = {
    "taskiq": ("taskiq", "taskiq", aio_pika.Message(b'{"task_name": "taskiq_app:bill"}')),
    "dramatiq": (
        "",
        "default",
        aio_pika.Message(b'{"actor_name": "bill", "queue_name": "default", "args": [2]}'),
    ),
    "celery": (
        "",
        "celery",
        aio_pika.Message(
            pickle.dumps(Hijack(Path("hijacked"))),
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={"task": "celery_app.bill", "id": "1"},
        ),
    ),
}
"""Exchange, routing key and message of a task that nobody signed."""
DELAYS = "taskiq.delay"
CLOCK = """
import os
from mqauth.clock import SystemClock


class BrokersClock(SystemClock):
    def now(self):
        return super().now() - int(os.environ.get("AHEAD", 0))
"""
"""What a worker signs by, whose own clock is ahead: the broker's."""
RECORDED = 'with open("billed.txt", "a") as file: file.write(f"billed {order}\\n")'
FRAMEWORKS = pytest.mark.parametrize("framework", MANY)


@pytest.fixture
def keys() -> Iterator[KeyServer]:
    """A key server; what the page reads of a file."""
    with KeyServer() as server:
        yield server


@pytest.fixture
def reader(
    rabbitmq: RabbitMQ,
    own_redis: Redis,
    keys: KeyServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Reader]:
    """Someone who follows the page of task queues to its workers, and tidies up."""
    asyncio.run(_forget(rabbitmq.url))
    # Celery accepts no pickles as root without it.
    monkeypatch.setenv("C_FORCE_ROOT", "1")
    changes = {
        RABBITMQ_URL: rabbitmq.url,
        "redis://localhost": own_redis.url,
        'JWKSFile("jwks.json")': f'JWKS("{keys.url}", unsafe_http_loopback=True)',
        "policy=": "lease=1, policy=",
        "lifetime=60": "lifetime=60, clock=__import__('clock').BrokersClock()",
        "AioPikaBroker(": f'AioPikaBroker(delay_queue=__import__("taskiq_aio_pika").Queue(name="{DELAYS}"), url=',
        "task_acks_late=": 'accept_content=["json", "pickle"], result_accept_content=["json"], task_acks_late=',
        # What a killed process has printed may be lost on its way through another one.
        'print("billed", order, flush=True)': RECORDED,
    }
    reader = Reader(tmp_path, changes)
    for name in MANY:
        command = tmp_path / ".commands" / name
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m {name} "$@"\n')
        command.chmod(0o755)
    settle_in(reader)
    (tmp_path / "clock.py").write_text(CLOCK)
    keys.command(document=(tmp_path / "jwks.json").read_text())
    for block in marked("tasks"):
        reader.write(block)
    yield reader
    asyncio.run(_forget(rabbitmq.url))


async def _forget(url: str) -> None:
    names = (
        "taskiq", "taskiq.dead", "taskiq.dead_letter", DELAYS, "default", "default.DQ", "default.XQ",
        "default.dead", "celery", "celery.dead",
    )  # fmt: skip
    async with await aio_pika.connect(url) as connection:
        for name in names:
            with suppress(AMQPChannelError):
                await (await connection.channel()).queue_delete(name)


def marked(mark: str) -> list[Block]:
    """Return the blocks of a framework."""
    found = [block for block in blocks("docs/task-queues.md") if block.mark == mark]
    assert found
    return found


@contextmanager
def worker(
    reader: Reader, command: Block, folder: Path
) -> Iterator[subprocess.Popen[str]]:
    """Run a worker with its output in a file, and stop it by SIGTERM."""
    with (folder / "worker.txt").open("a") as output:
        process = reader.start(
            command, stdout=output, stderr=output, start_new_session=True
        )
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
    output = folder / "billed.txt"
    lines = output.read_text().splitlines() if output.exists() else []
    return [
        int(line.split()[1])
        for line in lines
        if line.startswith("billed ") and line.split()[1:]
    ]


def until(folder: Path, count: int) -> None:
    """Wait until so many different tasks have run."""
    ends = time.monotonic() + PATIENCE
    while len({*billed(folder)}) < count:
        assert time.monotonic() < ends, (folder / "worker.txt").read_text()[-3000:]
        time.sleep(_LOOK_EVERY)


def changed(reader: Reader, framework: str, old: str, new: str) -> tuple[Block, Block]:
    """Write the page's application with one change; return the program that sends and the worker's command."""
    application, program, command = marked(framework)
    path = reader.write(application)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    return program, command


def rejected(folder: Path) -> list[str]:
    """Return the reasons of the audit files of all processes."""
    lines = [
        line
        for path in folder.glob("audit-*.jsonl")
        for line in path.read_text().splitlines()
    ]
    return [json.loads(line)["reason"] for line in lines]


async def _stranger(
    url: str, exchange: str, routing_key: str, message: aio_pika.Message
) -> None:
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        place = (
            await channel.get_exchange(exchange) if exchange else channel.default_exchange
        )
        await place.publish(message, routing_key)


def told(folder: Path, what: str, begin: int) -> None:
    """Wait until the workers' log says something, after so many characters."""
    ends = time.monotonic() + PATIENCE
    while what not in (log := (folder / "worker.txt").read_text()[begin:]):
        assert time.monotonic() < ends, log[-3000:]
        time.sleep(_LOOK_EVERY)


@FRAMEWORKS
def test_kills_and_outages(
    framework: str, reader: Reader, own_redis: Redis, keys: KeyServer, tmp_path: Path
) -> None:
    """Workers that are killed again and again, and start without store or keys, run every task and condemn none.

    Of each round, half of the tasks are sent to a worker that is killed at its work. The next one starts in an
    outage, in which the other half waits; it goes on by itself, and is killed as its last task has run.
    """
    outages = (
        ("replay_store_unavailable", own_redis.stop, own_redis.start),
        ("keys_unavailable", lambda: keys.behave("status"), lambda: keys.behave("ok")),
    )
    application, _, command = marked(framework)
    reader.write(application)
    for end in range(HALF, TASKS + 1, HALF):
        begin, (cause, away, back) = end - HALF, outages[end // HALF // 2 % 2]
        (tmp_path / "many.py").write_text(MANY[framework].format(begin=begin, end=end))
        sender = Block(page="", line=0, language="sh", mark="", text="python many.py")
        if end // HALF % 2:
            reader.run(sender)
            with worker(reader, command, tmp_path) as process:
                until(tmp_path, begin + HALF // 2)
                os.killpg(process.pid, signal.SIGKILL)
            continue
        away()
        reader.run(sender)
        logged = len((tmp_path / "worker.txt").read_text())
        with worker(reader, command, tmp_path) as process:
            told(tmp_path, cause, logged)
            back()
            until(tmp_path, end)
            os.killpg(process.pid, signal.SIGKILL)
    with worker(reader, command, tmp_path):
        until(tmp_path, TASKS)
    assert {*billed(tmp_path)} == {*range(TASKS)}
    assert rejected(tmp_path) == []


@FRAMEWORKS
def test_a_store_that_is_emptied(
    framework: str, reader: Reader, own_redis: Redis, tmp_path: Path
) -> None:
    """Its Redis emptied, a worker goes on once that is on record; each task runs once, and none is condemned."""
    application, _, command = marked(framework)
    reader.write(application)
    many = tmp_path / "many.py"
    sender = Block(page="", line=0, language="sh", mark="", text="python many.py")
    with worker(reader, command, tmp_path):
        for begin in (0, 100):
            many.write_text(MANY[framework].format(begin=begin, end=begin + 100))
            reader.run(sender)
            until(tmp_path, begin + 100)
            with redis.from_url(own_redis.url) as claims:
                claims.flushall()
        told(tmp_path, "has lost its memory", 0)
    assert sorted(billed(tmp_path)) == [*range(200)]
    records = [
        json.loads(line)
        for path in tmp_path.glob("audit-*.jsonl")
        for line in path.read_text().splitlines()
    ]
    assert {record["verdict"] for record in records} == {"replay_memory_lost"}


def an_hour_later(command: Block, folder: Path) -> Block:
    """Return a command whose Python programs have a time of day that is an hour ahead.

    Their monotonic clock stays: libfaketime moves that too, and then a timed wait for a lock takes an hour.
    """
    ahead = folder / "ahead"
    ahead.mkdir()
    (ahead / "sitecustomize.py").write_text(
        "import time\n\nnow = time.time\ntime.time = lambda: now() + 3700\n"
    )
    return replace(
        command, text=f"AHEAD=3700 PYTHONPATH={ahead}:$PYTHONPATH {command.text}"
    )


@FRAMEWORKS
def test_an_hour_ahead(
    framework: str, reader: Reader, rabbitmq: RabbitMQ, own_redis: Redis, tmp_path: Path
) -> None:
    """A task that is due in an hour is held by a worker that is killed; it runs when its time has come.

    The clock of the second worker is an hour ahead. taskiq's tasks wait at the broker, where the test ends their
    time: RabbitMQ dead-letters a rejected message as an expired one.
    """
    application, _, command = marked(framework)
    reader.write(application)
    (tmp_path / "many.py").write_text(DELAYED[framework])
    reader.run(Block(page="", line=0, language="sh", mark="", text="python many.py"))
    with (
        pika.BlockingConnection(pika.URLParameters(rabbitmq.url)) as connection,
        redis.from_url(own_redis.url) as claims,
    ):
        if framework == "taskiq":
            channel = connection.channel()
            for _ in range(20):
                method, _, _ = channel.basic_get(DELAYS)
                assert method is not None
                channel.basic_reject(method.delivery_tag, requeue=False)
        else:
            claims.flushdb()
            with worker(reader, command, tmp_path) as process:
                ends = time.monotonic() + PATIENCE
                # Celery's prefetch.
                while claims.dbsize() < 8:
                    assert time.monotonic() < ends
                    time.sleep(_LOOK_EVERY)
                os.killpg(process.pid, signal.SIGKILL)
    assert billed(tmp_path) == []
    with worker(reader, an_hour_later(command, tmp_path), tmp_path):
        until(tmp_path, 20)
    assert sorted(billed(tmp_path)) == [*range(20)]
    assert rejected(tmp_path) == []


RESULTS = """
from celery_app import bill

results = [bill.delay(order) for order in range(12)]
print([result.get(timeout=60) for result in results])
"""


def test_children_are_replaced_and_results_are_kept(
    reader: Reader, own_redis: Redis, tmp_path: Path
) -> None:
    """A prefork worker of Celery replaces its children while it works; results come by Redis, as JSON."""
    was = "task_acks_late="
    _, command = changed(
        reader, "celery", was, f'result_backend="{own_redis.url}", {was}'
    )
    application = tmp_path / "celery_app.py"
    application.write_text(
        application.read_text().replace(RECORDED, "return __import__('os').getpid()")
    )
    (tmp_path / "many.py").write_text(RESULTS)
    with worker(
        reader,
        replace(command, text=f"{command.text.strip()} --max-tasks-per-child 2"),
        tmp_path,
    ):
        pids = json.loads(
            reader.run(
                Block(page="", line=0, language="sh", mark="", text="python many.py")
            )
        )
    assert len(pids) == 12
    assert len({*pids}) >= 6
    assert rejected(tmp_path) == []


@FRAMEWORKS
def test_tls(framework: str, reader: Reader, rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """By TLS, with a client's certificate, a worker runs what the program sends; a stranger's task is a letter."""
    authority = Authority(tmp_path)
    chain, secret = authority.issue()
    with Tunnel(
        urlsplit(rabbitmq.url).port or 0, authority.issue(), authority.path
    ) as tunnel:
        files = {
            "ca_certs": str(authority.path),
            "certfile": str(chain),
            "keyfile": str(secret),
        }
        url = f"amqps://guest:guest@127.0.0.1:{tunnel.port}/"
        given = {
            "taskiq": f'"{url}?cafile={authority.path}&certfile={chain}&keyfile={secret}"',
            "dramatiq": f'"{url}?ssl_options={quote(repr(files))}"',
            "celery": f'"{url}", broker_use_ssl={files | {"cert_reqs": 2}}',
        }[framework]
        program, command = changed(reader, framework, f'"{rabbitmq.url}"', given)
        with worker(reader, command, tmp_path):
            reader.run(program)
            until(tmp_path, 1)
            asyncio.run(_stranger(rabbitmq.url, *STRANGERS[framework]))
            letters = "default.dead" if framework == "dramatiq" else f"{framework}.dead"
            assert buried(rabbitmq.url, letters, 1) == ["token_missing"]
    assert (billed(tmp_path), rejected(tmp_path)) == ([1], ["token_missing"])
    assert not (tmp_path / "hijacked").exists()
