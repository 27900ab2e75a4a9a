"""``mqauth init`` on a real broker: the commands it prints lead to a handled and a rejected message."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from integration.services import Kafka, RabbitMQ

pytestmark = pytest.mark.slow

PATIENCE = 120


def mqauth(folder: Path, *arguments: str) -> str:
    """Run the command in a folder and return what it prints."""
    command = [sys.executable, "-m", "mqauth", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def running(folder: Path, words: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program beside the test; it ends with Ctrl-C."""
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_the_next_commands_lead_to_a_handled_and_a_rejected_message(
    broker: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The topology is declared, one message is handled, and the one without a token is a dead letter."""
    service: RabbitMQ | Kafka = request.getfixturevalue(broker)
    parts = urlsplit(service.url)
    url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    names = ("--producer", f"orders-{broker}", "--consumer", f"billing-{broker}")
    told = mqauth(tmp_path, "init", "shop", "--broker", broker, *names, "--url", url)
    shop = tmp_path / "shop"
    compose, apply, consume, produce, groups = re.findall(r"^  (\S.*?)(?:  +#.*)?$", told, re.MULTILINE)
    assert compose == "docker compose up -d --wait"
    for _ in range(2):
        mqauth(shop, *apply.split()[1:])
    consumer = [sys.executable, *consume.split()[1:]]
    with running(shop, consumer) as process:
        subprocess.run([sys.executable, *produce.split()[1:]], cwd=shop, check=True, timeout=PATIENCE)
        assert process.stdout is not None
        assert process.stdout.readline() == f'handled: from orders-{broker} {{"order": 1}}\n'
        found = _rejected(shop, groups.split()[1:])
    assert [(one["reason"], one["count"]) for one in found] == [("token_missing", 1)]


def _rejected(shop: Path, words: list[str]) -> list[dict[str, Any]]:
    """Return the groups of dead letters, once there are any."""
    for _ in range(30):
        groups: list[dict[str, Any]] = json.loads(mqauth(shop, *words, "--json"))["groups"]
        if groups:
            return groups
    raise AssertionError("no dead letter")
