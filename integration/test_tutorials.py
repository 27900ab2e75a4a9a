"""The tutorials are followed from top to bottom on a real broker: a forgery is rejected, seen and discarded."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import pytest

from integration.documentation import KAFKA_ADDRESS, Block, Reader, blocks, matches
from integration.services import Kafka, RabbitMQ
from integration.test_docs import consuming, forget_kafka, forget_rabbitmq
from mqauth.audit.chain import verify_chain

TEN_MINUTES = 600.0
BETWEEN = (0.5, 1.0, 2.0, 4.0, *[8.0] * 15)
"""Consumers learn within a minute what an authority cut off; a try is a process, so seconds pass between two."""
LINES = 300
"""Lines that a terminal may print before the one that a page shows."""
PAGES = {"rabbitmq": "docs/tutorials/rabbitmq.md", "kafka": "docs/tutorials/kafka.md"}


def changes(service: RabbitMQ | Kafka) -> dict[str, str]:
    """Return what this machine has in place of the brokers that the pages name."""
    place = urlsplit(service.url)
    return {
        said: f"{place.hostname}:{place.port}"
        for said in ("localhost:5672", KAFKA_ADDRESS)
    }


class Follower:
    """Someone who does what a tutorial says, block by block, with a consumer in a second terminal.

    Args:
        reader: has the folder that they work in.
        broker: the mark of the page's blocks.
        terminals: stops the consumer at its end.
    """

    def __init__(self, reader: Reader, broker: str, terminals: ExitStack) -> None:
        self._reader, self._broker, self._terminals = reader, broker, terminals
        self._last: Block | None = None
        self._open_now: dict[str, ExitStack] = {}
        self._lines: dict[str, Callable[[], str]] = {}

    def follow(self, block: Block) -> None:
        """Do what one block says; what a block shows must be what was printed."""
        where = f"{block.page}:{block.line}"
        if block.mark in ("consumer", "again", "attacker"):
            self._open(block)
        elif block.mark == "handled":
            assert self._next_line() == self._reader.here(block.text), where
        elif block.language == "text" and block.mark in self._lines:
            self._hears(block.mark, block.text, where)
        elif block.language == "text" and block.mark == self._broker:
            self._shows(block.text, where)
        elif block.language == "sh" and block.mark == self._broker:
            self._last, self._printed = block, self._reader.run(block)
        elif block.language in ("python", "toml"):
            self._reader.write(block)

    def _open(self, block: Block) -> None:
        """Run a command in a terminal of its own, in place of the same command that runs in one."""
        if block.mark == "again":
            self._open_now.pop(block.text).close()
        terminal = self._open_now[block.text] = self._terminals.enter_context(ExitStack())
        code = -signal.SIGTERM if block.mark == "attacker" else 0
        self._next_line = terminal.enter_context(
            consuming(self._reader, block, patience=TEN_MINUTES, code=code)
        )
        self._lines[block.text.split()[-1]] = self._next_line
        if block.mark == "again":
            self._next_line()

    def _hears(self, terminal: str, text: str, where: str) -> None:
        """Wait for a line in the terminal whose command ends with a word; others may come before it."""
        for _ in range(LINES):
            if self._lines[terminal]() == text:
                return
        raise AssertionError(f"{where}: {LINES} lines, and none is {text!r}")

    def _shows(self, text: str, where: str) -> None:
        """Hold what was printed against the page; a reader who is faster than the consumer asks again."""
        for seconds in BETWEEN:
            if matches(text, self._printed):
                return
            assert self._last is not None, where
            threading.Event().wait(seconds)
            self._printed = self._reader.run(self._last)
        raise AssertionError(f"{where}: printed {self._printed}")


@pytest.mark.slow
@pytest.mark.parametrize("broker", PAGES)
def test_tutorial(broker: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Whoever does what the page says has messages handled, rejected, discarded and redriven, each recorded."""
    service: RabbitMQ | Kafka = request.getfixturevalue(broker)
    forget = {"rabbitmq": forget_rabbitmq, "kafka": forget_kafka}[broker]
    forget(service.url)
    with ExitStack() as terminals:
        follower = Follower(Reader(tmp_path, changes(service)), broker, terminals)
        for block in blocks(PAGES[broker]):
            follower.follow(block)
    forget(service.url)
    (audit,) = (tmp_path / "consumer").glob("audit-*.jsonl")
    assert verify_chain(audit).intact
    records = [json.loads(line) for line in audit.read_text().splitlines()]
    rejected = [record["reason"] for record in records if record["verdict"] == "rejected"]
    assert rejected == ["token_missing", "key_unknown", "lifetime_excessive"]
    acts = [
        json.loads(line)["verdict"]
        for line in (tmp_path / "consumer/reviewer.jsonl").read_text().splitlines()
    ]
    assert acts == ["discarded", "discarded", "redriven"]


@pytest.mark.slow
def test_agents(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """Two agents task each other; once one is stolen and cut off, the other does nothing that the thief says."""
    asyncio.run(_forget_agents(rabbitmq.url))
    here = changes(rabbitmq) | {"8443": str(_free_port())}
    with ExitStack() as terminals:
        follower = Follower(Reader(tmp_path, here), "rabbitmq", terminals)
        for block in blocks("docs/tutorials/agents.md"):
            follower.follow(block)
    asyncio.run(_forget_agents(rabbitmq.url))
    records = [
        json.loads(line)
        for line in (tmp_path / "worker/audit.jsonl").read_text().splitlines()
    ]
    assert {
        record["reason"] for record in records if record["verdict"] == "rejected"
    } == {"key_revoked"}
    assert verify_chain(tmp_path / "worker/audit.jsonl").intact
    assert verify_chain(tmp_path / "authority/audit.jsonl").intact


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def _forget_agents(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        for name in (
            "planner",
            "worker",
            "planner.unparseable",
            "worker.unparseable",
            "agents.dead",
        ):
            await (await connection.channel()).queue_delete(name)
        await (await connection.channel()).exchange_delete("agents")
