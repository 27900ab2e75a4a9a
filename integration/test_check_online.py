"""``mqauth check --online`` against a real issuer and real brokers: what is there, what is wrong, what is away."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from integration.services import Kafka, RabbitMQ
from mqauth.cli import main
from mqauth.keystore import Keystore

FILE = """
[consumer]
audience = "billing"
[[consumer.issuers]]
issuer = "https://auth.example"
jwks = "{jwks}"
unsafe_http_loopback = true
[[consumer.allow]]
subject = "orders-api"
destinations = ["kafka:orders"]
[brokers.rabbit]
url = "{rabbit}"
queue = "{queue}"
[brokers.log]
url = "{log}"
topic = "{topic}"
"""


@pytest.fixture
def issuer(tmp_path: Path) -> Iterator[str]:
    """An issuer: ``mqauth keys serve`` on this machine."""
    Keystore(folder=tmp_path / "keys").create(subjects=["orders-api"])
    command = [sys.executable, "-m", "mqauth", "keys", "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
        process.terminate()


def asked(file: Path, capsys: pytest.CaptureFixture[str], text: str) -> tuple[int, dict[str, tuple[int, str]]]:
    """Return the exit code, and each answer by who was asked."""
    file.write_text(text)
    code = main(["check", str(file), "--online", "--json"])
    found: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["online"]
    return code, {one["what"]: (one["code"], one["said"]) for one in found}


@pytest.mark.slow
def test_issuers_and_brokers_are_asked(
    issuer: str, rabbitmq: RabbitMQ, kafka: Kafka, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """0 where all answer; 1 where a queue or topic is missing; 3 where nobody answers, each with its line."""
    for broker, service in (("rabbitmq", rabbitmq), ("kafka", kafka)):
        parts = urlsplit(service.url)
        url = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        names = ["--producer", f"online-{broker}", "--consumer", f"asked-{broker}", "--url", url]
        assert main(["init", str(tmp_path / broker), "--broker", broker, *names, "--apply"]) == 0
    capsys.readouterr()
    parts = urlsplit(rabbitmq.url)
    values = {
        "jwks": issuer, "rabbit": parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl(),
        "queue": "online-rabbitmq.dead", "log": kafka.url, "topic": "online-kafka.dead",
    }  # fmt: skip
    file = tmp_path / "mqauth.toml"
    code, found = asked(file, capsys, FILE.format(**values))
    assert (code, found["issuer https://auth.example"]) == (0, (0, "1 key"))
    assert found["[brokers.rabbit]"] == (0, "reached; online-rabbitmq.dead is there")
    assert found["[brokers.log]"] == (0, "reached; online-kafka.dead is there")
    code, found = asked(file, capsys, FILE.format(**values | {"queue": "nowhere", "topic": "nowhere"}))
    assert (code, found["[brokers.rabbit]"][0], found["[brokers.log]"]) == (1, 1, (1, "there is no topic nowhere"))
    away = {"jwks": "http://127.0.0.1:1/jwks.json", "rabbit": "amqp://127.0.0.1:1/", "log": "kafka://127.0.0.1:1"}
    code, found = asked(file, capsys, FILE.format(**values | away))
    assert (code, {one[0] for one in found.values()}) == (3, {3})
    assert "cannot reach amqp://127.0.0.1:1: connection refused" in found["[brokers.rabbit]"][1]
