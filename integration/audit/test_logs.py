"""No token in any log: real traffic of aio-pika and kafka-python at DEBUG, every line of every logger."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mqauth.audit.file import AuditFile
from mqauth.audit.redaction import REDACTED
from mqauth.audit.sinks import FanOut, LoggingSink, MisuseWatch
from mqauth.flow import Attempts
from mqauth.judging.pipeline import Pipeline
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing.forge import Forge
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.testing.token_attacks import ATTACKS, honest_message
from mqauth.wire.message import Message

pytestmark = pytest.mark.slow

HONEST = 5
TOKEN = re.compile(rb"eyJ[\w-]+\.[\w-]*\.[\w-]*")
ANY_TOKEN = re.compile(r"eyJ[\w-]{16,}")
PIECE = 16


class Everything(logging.Handler):
    """Keeps every line of every logger, formatted as a service would, tracebacks and all."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(name)s %(levelname)s %(message)s"))
        self.lines: list[str] = []
        self.names: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self.lines.append(self.format(record))
        self.names.add(record.name)


@pytest.fixture
def logs() -> Iterator[Everything]:
    """Every logger at DEBUG, those of client libraries too."""
    root, handler = logging.getLogger(), Everything()
    known = [logging.getLogger(name) for name in ("aio_pika", "aiormq", "pamqp", "kafka", "asyncio", "mqauth")]
    before = [(logger, logger.level) for logger in (root, *known)]
    for logger, _ in before:
        logger.setLevel(logging.DEBUG)
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)
    for logger, level in before:
        logger.setLevel(level)


def pieces(tokens: list[bytes]) -> set[str]:
    """Return pieces of payloads and signatures that would stand in a line that holds a part of a token."""
    found = set()
    for token in tokens:
        for segment in token.split(b".")[1:]:
            text = segment.decode()
            found |= {text[at : at + PIECE] for at in range(0, max(0, len(text) - PIECE), PIECE)}
    return {piece for piece in found if len({*piece}) > 4}  # a row of one letter is no secret


def tokens_of(message: Message) -> list[bytes]:
    """Return every token a message carries, under whatever name."""
    values = [value.encode() if isinstance(value, str) else value for _, value in message.headers]
    return [token for value in values if isinstance(value, bytes) for token in TOKEN.findall(value)]


LOGGERS = {"rabbitmq": {"aio_pika", "aiormq", "mqauth"}, "kafka": {"kafka", "mqauth"}}


@pytest.mark.parametrize(("broker", "kind"), [("rabbitmq", RabbitMQStage), ("kafka", KafkaStage)])
def test_no_token_in_any_log(
    broker: str, kind: Any, logs: Everything, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Producers, consumers, dead letters and every attack at DEBUG leave no piece of a token in any line."""
    stage, forge = kind(request.getfixturevalue(broker).url), Forge(lifetime=600)
    tokens: list[bytes] = []
    attacks = [attack for attack in ATTACKS if attack.fits(stage.destination)]
    with AuditFile(tmp_path / "audit.jsonl") as file:
        guard = Pipeline(
            verifier=forge.verifier(), policy=forge.policy(stage.destination), replay=MemoryReplayStore(),
            audit=MisuseWatch(FanOut(file, LoggingSink())), record="all", attempts=Attempts(limit=2, wait=0),
        )  # fmt: skip
        handled: list[str] = []

        def handler(verified: Any) -> None:
            tokens.extend(tokens_of(verified._facts.message))
            handled.append(verified.jti)
            if len(handled) == 1:
                raise RuntimeError("once")

        for number in range(HONEST):
            stage.produce(forge.signer(), honest_message(stage.destination, number))
        for number, attack in enumerate(attacks):
            hostile = attack.mount(forge, replace(honest_message(stage.destination, number)))
            tokens.extend(tokens_of(hostile))
            stage.inject(hostile)
        stage.consume(guard, handler, until=lambda: len(stage.letters()) == len(attacks))
    stage.close()
    text = "\n".join(logs.lines)
    assert {name.partition(".")[0] for name in logs.names} >= LOGGERS[broker]
    assert REDACTED in text
    assert ANY_TOKEN.findall(text) == []
    assert len(pieces(tokens)) > 100
    assert [piece for piece in pieces(tokens) if piece in text] == []
    assert not re.search(r"PRIVATE KEY|\"d\":", text)
