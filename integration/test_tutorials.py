"""The tutorials are followed from top to bottom on a real broker: a forgery is rejected, seen and discarded."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from integration.documentation import KAFKA_ADDRESS, Block, Reader, blocks, matches
from integration.services import Kafka, RabbitMQ
from integration.test_docs import consuming, forget_kafka, forget_rabbitmq
from mqauth.audit.chain import verify_chain

TEN_MINUTES = 600.0
TRIES = 10
PAGES = {"rabbitmq": "docs/tutorials/rabbitmq.md", "kafka": "docs/tutorials/kafka.md"}


def changes(service: RabbitMQ | Kafka) -> dict[str, str]:
    """Return what this machine has in place of the brokers that the pages name."""
    place = urlsplit(service.url)
    return {said: f"{place.hostname}:{place.port}" for said in ("localhost:5672", KAFKA_ADDRESS)}


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

    def follow(self, block: Block) -> None:
        """Do what one block says; what a block shows must be what was printed."""
        where = f"{block.page}:{block.line}"
        if block.mark == "consumer":
            self._next_line = self._terminals.enter_context(consuming(self._reader, block, patience=TEN_MINUTES))
        elif block.mark == "handled":
            assert self._next_line() == block.text, where
        elif block.language == "text" and block.mark == self._broker:
            self._shows(block.text, where)
        elif block.language == "sh" and block.mark == self._broker:
            self._last, self._printed = block, self._reader.run(block)
        elif block.language in ("python", "toml"):
            self._reader.write(block)

    def _shows(self, text: str, where: str) -> None:
        """Hold what was printed against the page; a reader who is faster than the consumer asks again."""
        for _ in range(TRIES):
            if matches(text, self._printed):
                return
            assert self._last is not None, where
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
        json.loads(line)["verdict"] for line in (tmp_path / "consumer/reviewer.jsonl").read_text().splitlines()
    ]
    assert acts == ["discarded", "discarded", "redriven"]
