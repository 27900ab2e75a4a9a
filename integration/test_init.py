"""``mqauth init`` on a real broker: the commands it prints lead to a handled and a rejected message."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from integration.forked import words
from integration.services import Kafka, RabbitMQ
from mqauth.testing.stage import wait_until

pytestmark = pytest.mark.slow

PATIENCE = 120
DLQ = ("dlq", "groups", "--config", "consumer/mqauth.toml")


def mqauth(folder: Path, *arguments: str, stdin: str = "") -> str:
    """Run the command in a folder and return what it prints."""
    command = [*words("mqauth"), *arguments]
    done = subprocess.run(
        command, cwd=folder, input=stdin, capture_output=True, text=True, check=False, timeout=PATIENCE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def url_of(service: RabbitMQ | Kafka) -> str:
    """Return the address of a broker without a password, as it may stand in a file."""
    parts = urlsplit(service.url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


@contextmanager
def running(folder: Path, command: list[str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program beside the test; it ends with Ctrl-C."""
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)


@contextmanager
def shop_of(
    broker: str, rung: str, folder: Path, request: pytest.FixtureRequest, framework: str = ""
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Do what the command says comes next; give the folder, what the consumer printed, and the last command."""
    url, end = url_of(request.getfixturevalue(broker)), f"{rung}-{framework or broker}"
    names = ("--producer", f"orders-{end}", "--consumer", f"billing-{end}", "--rung", rung)
    more = ("--framework", framework) if framework else ()
    told = mqauth(folder, "init", "shop", "--broker", broker, *more, *names, "--url", url)
    enter, compose, apply, consume, produce, last = re.findall(r"^  (\S.*?)(?:  +#.*)?$", told, re.MULTILINE)
    assert (enter, compose) == ("cd shop", "docker compose up -d --wait")
    shop = folder / "shop"
    for _ in range(2):
        assert "topology.json is declared" in mqauth(shop, *apply.split()[1:])
    with running(shop, [*words("python"), *consume.split()[1:]]) as process:
        subprocess.run([*words("python"), *produce.split()[1:]], cwd=shop, check=True, timeout=PATIENCE)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(1 if rung == "enforce" else 2)]
        yield shop, lines, last.split()[1:]


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_the_next_commands_lead_to_a_handled_and_a_rejected_message(
    broker: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The topology is declared, one message is handled, and the one without a token is a dead letter."""
    with shop_of(broker, "enforce", tmp_path, request) as (shop, lines, last):
        assert lines == [f'handled: from orders-enforce-{broker} {{"order": 1}}\n']
        found = letters(shop, 1, last)
    assert [(one["reason"], one["count"]) for one in found] == [("token_missing", 1)]


@pytest.mark.parametrize(("rung", "ran", "rejected"), [("enforce", [1], 1), ("observe", [1, 666], 0)])
def test_the_next_commands_lead_to_a_task_that_ran(
    rung: str, ran: list[int], rejected: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """A worker of taskiq runs the signed task; the one without a token is a dead letter, or runs at observe."""
    with shop_of("rabbitmq", rung, tmp_path, request, "taskiq") as (shop, lines, last):
        assert sorted(lines) == [f"handled: order {order}\n" for order in ran]
        found = letters(shop, rejected, last)
    assert [one["reason"] for one in found] == ["token_missing"] * rejected


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_a_consumer_that_observes_handles_both(
    broker: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """It starts, and the message without a token reaches the old handler, with what would have been said."""
    with shop_of(broker, "observe", tmp_path, request) as (shop, lines, _last):
        assert sorted(lines) == [
            f'handled: from orders-observe-{broker} {{"order": 1}}\n',
            'not proven: token_missing {"order": 666}\n',
        ]
    # the command that the file names says who does not sign, from the files that the consumer wrote
    assert "mqauth rollout status says who does not sign" in (shop / "consumer" / "mqauth.toml").read_text()
    command = [*words("mqauth"), "rollout", "status", "--config", "consumer/mqauth.toml", "--json"]
    (found,) = json.loads(subprocess.run(command, cwd=shop, capture_output=True, check=False).stdout)
    assert [(group["code"], group["count"]) for group in found["groups"]] == [("token_missing", 1)]
    assert (sum(found["accepted"].values()), found["processes"], len(found["files"])) == (1, 1, 1)


def recorded(shop: Path) -> int:
    """Return how many rejections the consumer has recorded."""
    lines = [line for file in (shop / "consumer").glob("audit*.jsonl") for line in file.read_text().splitlines()]
    return sum(json.loads(line)["verdict"] == "rejected" for line in lines if line.endswith("}"))


def letters(shop: Path, count: int, asked: Sequence[str] = DLQ) -> list[dict[str, Any]]:
    """Return the groups of dead letters, once there are so many: the command is asked when all are recorded."""
    for _ in range(2):  # a consumer that was killed is missed by Kafka after most of a minute
        with suppress(TimeoutError):
            wait_until(lambda: recorded(shop) >= count)
    for _ in range(30):
        groups: list[dict[str, Any]] = json.loads(mqauth(shop, *asked, "--json"))["groups"]
        if sum(group["count"] for group in groups) >= count:
            return groups
    raise AssertionError(f"fewer than {count} letters")
