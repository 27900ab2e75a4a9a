"""An audit log that is tampered with, flooded, and killed; and what no log line holds."""

from __future__ import annotations

import logging
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from integration.audit.flood import flood
from integration.audit.tamper import Log, cuts, deeds
from integration.documentation import ROOT
from integration.keys.scene import LANES
from integration.scale import nightly
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

DEEDS = 1000
CUTS = 200


@pytest.fixture
def log(tmp_path: Path) -> Log:
    """An honest log with signed heads."""
    return Log(tmp_path)


def test_honest_log_is_intact(log: Log) -> None:
    """The log the deeds are done to is intact under its heads: what is found is found for a reason."""
    assert log.verdict(log.lines, heads=log.heads) == {
        "intact": True, "anchored": True, "records": len(log.lines), "first_bad": None, "what": None,
    }  # fmt: skip


def test_a_thousand_deeds(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 1,000 random edits, deletions, swaps and insertions all are found and named, without heads."""
    findings = deeds(log, DEEDS, random.Random(5))
    with capsys.disabled():
        print("\n" + "\n".join(findings.lines()))
    assert findings.found.total() == findings.named.total() == DEEDS


def test_two_hundred_cuts(log: Log, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 200 cut or recomputed chains heads find all; without them the answer is never intact (asserted there)."""
    findings = cuts(log, CUTS, random.Random(5))
    with capsys.disabled():
        print("\n" + "\n".join(findings.lines()))
    assert findings.found.total() == findings.named.total() == CUTS


pytestmark = pytest.mark.slow


def test_a_hundred_kills(capsys: pytest.CaptureFixture[str]) -> None:
    """After 100 kills the log is intact under its heads, no settled message lacks its record, none has two."""
    done = subprocess.run(  # in a process of its own: it forks
        [sys.executable, "-m", "integration.audit.kill", "--times", "100"],
        cwd=ROOT, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    with capsys.disabled():
        print("\n" + done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "100 kills" in done.stdout
    assert " 0 missing, 0 twice; intact" in done.stdout
    assert ", 0 of them tore a line" not in done.stdout


FORGED = nightly(5000, otherwise=400)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broker", "forged"), [("rabbitmq", FORGED), ("kafka", min(FORGED, 1000))]
)
def test_flood(
    broker: str,
    forged: int,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Audit bytes and alerts are bounded, every honest message is handled, every forged one dead-lettered."""
    with closing(LANES[broker](request.getfixturevalue(broker).url)) as lane:
        counts = flood(lane, forged, tmp_path)
    with capsys.disabled():
        print("\n" + "\n".join(counts.lines()))
    assert counts.good, counts
    assert counts.flooded > 0
    assert counts.alerts > 0


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
    known = [
        logging.getLogger(name)
        for name in ("aio_pika", "aiormq", "pamqp", "kafka", "asyncio", "mqauth")
    ]
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
            found |= {
                text[at : at + PIECE] for at in range(0, max(0, len(text) - PIECE), PIECE)
            }
    return {
        piece for piece in found if len({*piece}) > 4
    }  # a row of one letter is no secret


def tokens_of(message: Message) -> list[bytes]:
    """Return every token a message carries, under whatever name."""
    values = [
        value.encode() if isinstance(value, str) else value
        for _, value in message.headers
    ]
    return [
        token
        for value in values
        if isinstance(value, bytes)
        for token in TOKEN.findall(value)
    ]


LOGGERS = {"rabbitmq": {"aio_pika", "aiormq", "mqauth"}, "kafka": {"kafka", "mqauth"}}


@pytest.mark.parametrize(
    ("broker", "kind"), [("rabbitmq", RabbitMQStage), ("kafka", KafkaStage)]
)
def test_no_token_in_any_log(
    broker: str,
    kind: Any,
    logs: Everything,
    request: pytest.FixtureRequest,
    tmp_path: Path,
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
            hostile = attack.mount(
                forge, replace(honest_message(stage.destination, number))
            )
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
