"""What mqauth init writes, on real brokers: its next commands, and a consumer that was stopped for days."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import kafka
import pika
import pytest

from integration.forked import words
from integration.scale import is_nightly, nightly
from integration.services import Kafka, RabbitMQ
from mqauth.testing.stage import wait_until
from mqauth.wire.json_form import from_form
from mqauth.wire.message import Message

pytestmark = pytest.mark.slow

PATIENCE = 120
DLQ = ("dlq", "groups", "--config", "consumer/mqauth.toml")


def mqauth(folder: Path, *arguments: str, stdin: str = "") -> str:
    """Run the command in a folder and return what it prints."""
    command = [*words("mqauth"), *arguments]
    done = subprocess.run(
        command,
        cwd=folder,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
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
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)


@contextmanager
def shop_of(
    broker: str,
    rung: str,
    folder: Path,
    request: pytest.FixtureRequest,
    framework: str = "",
) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Do what the command says comes next; give the folder, what the consumer printed, and the last command."""
    url, end = url_of(request.getfixturevalue(broker)), f"{rung}-{framework or broker}"
    names = (
        "--producer",
        f"orders-{end}",
        "--consumer",
        f"billing-{end}",
        "--rung",
        rung,
    )
    more = ("--framework", framework) if framework else ()
    told = mqauth(folder, "init", "shop", "--broker", broker, *more, *names, "--url", url)
    enter, compose, apply, consume, produce, last = re.findall(
        r"^  (\S.*?)(?:  +#.*)?$", told, re.MULTILINE
    )
    assert (enter, compose) == ("cd shop", "docker compose up -d --wait")
    shop = folder / "shop"
    for _ in range(2):
        assert "topology.json is declared" in mqauth(shop, *apply.split()[1:])
    with running(shop, [*words("python"), *consume.split()[1:]]) as process:
        subprocess.run(
            [*words("python"), *produce.split()[1:]],
            cwd=shop,
            check=True,
            timeout=PATIENCE,
        )
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


@pytest.mark.parametrize(
    ("rung", "ran", "rejected"), [("enforce", [1], 1), ("observe", [1, 666], 0)]
)
def test_the_next_commands_lead_to_a_task_that_ran(
    rung: str,
    ran: list[int],
    rejected: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
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
    assert (
        "mqauth rollout status says who does not sign"
        in (shop / "consumer" / "mqauth.toml").read_text()
    )
    command = [
        *words("mqauth"),
        "rollout",
        "status",
        "--config",
        "consumer/mqauth.toml",
        "--json",
    ]
    (found,) = json.loads(
        subprocess.run(command, cwd=shop, capture_output=True, check=False).stdout
    )
    assert [(group["code"], group["count"]) for group in found["groups"]] == [
        ("token_missing", 1)
    ]
    assert (sum(found["accepted"].values()), found["processes"], len(found["files"])) == (
        1,
        1,
        1,
    )


def recorded(shop: Path) -> int:
    """Return how many rejections the consumer has recorded."""
    lines = [
        line
        for file in (shop / "consumer").glob("audit*.jsonl")
        for line in file.read_text().splitlines()
    ]
    return sum(
        json.loads(line)["verdict"] == "rejected" for line in lines if line.endswith("}")
    )


def letters(shop: Path, count: int, asked: Sequence[str] = DLQ) -> list[dict[str, Any]]:
    """Return the groups of dead letters, once there are so many: the command is asked when all are recorded."""
    for _ in range(
        2
    ):  # a consumer that was killed is missed by Kafka after most of a minute
        with suppress(TimeoutError):
            wait_until(lambda: recorded(shop) >= count)
    for _ in range(30):
        groups: list[dict[str, Any]] = json.loads(mqauth(shop, *asked, "--json"))[
            "groups"
        ]
        if sum(group["count"] for group in groups) >= count:
            return groups
    raise AssertionError(f"fewer than {count} letters")


COUNT: Final = nightly(1000, otherwise=100)
HOUR: Final = 3600
LATER: Final = """
import runpy, sys, time

now, later = time.time, int(sys.argv[1])
time.time = lambda: now() + later
runpy.run_path("consumer/consumer.py", run_name="__main__")
"""
"""Runs the consumer's program so many seconds later by the time of day."""


@contextmanager
def consumer(shop: Path, later: int, *, killed: bool) -> Iterator[subprocess.Popen[str]]:
    """Run the program that init wrote as if it were later, and kill it in the end, or stop it in order."""
    command = [*words("python"), "-c", LATER, str(later)]
    with subprocess.Popen(
        command, cwd=shop, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
            if not killed:
                process.terminate()
                assert process.wait(60) == 0
        finally:
            process.kill()


def handled(process: subprocess.Popen[str], count: int) -> set[str]:
    """Return the bodies of the next messages that the program prints."""
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(count)]
    assert all(line.startswith("handled: ") for line in lines), lines[-1]
    return {line.split()[-1] for line in lines}


class Shop:
    """A folder that init wrote, and its broker."""

    def __init__(
        self, folder: Path, broker: str, service: RabbitMQ | Kafka, *options: str
    ) -> None:
        self.broker, self.url = broker, service.url
        self.producer = f"orders-{os.urandom(4).hex()}"
        names = ("--producer", self.producer, "--consumer", f"billing-{self.producer}")
        mqauth(
            folder,
            "init",
            "shop",
            "--broker",
            broker,
            *names,
            "--url",
            url_of(service),
            *options,
        )
        self.folder = folder / "shop"
        mqauth(self.folder, "init", ".", "--apply")

    def sign(self, count: int) -> list[Message]:
        """Return messages that the producer signed."""
        on_kafka = self.broker == "kafka"
        place = (
            f"kafka:{self.producer}" if on_kafka else f"rabbitmq:{self.producer}/created"
        )
        bodies = [base64.b64encode(b"%d" % number).decode() for number in range(count)]
        forms = [
            {"destination": place, "body": body} | ({"key": body} if on_kafka else {})
            for body in bodies
        ]
        lines = "".join(json.dumps(form) + "\n" for form in forms)
        told = mqauth(
            self.folder,
            "sign",
            "--lines",
            "--config",
            "producer/mqauth.toml",
            stdin=lines,
        )
        return [from_form(json.loads(line)) for line in told.splitlines()]

    def publish(self, messages: Sequence[Message]) -> None:
        """Publish messages as they are."""
        if self.broker == "rabbitmq":
            with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                for message in messages:
                    sent = pika.BasicProperties(headers=dict(message.headers))
                    channel.basic_publish(
                        self.producer, "created", message.body, sent, mandatory=True
                    )
            return
        client: Any = kafka.KafkaProducer(bootstrap_servers=self.url.partition("://")[2])
        for message in messages:
            client.send(
                self.producer,
                value=message.body,
                key=message.key,
                headers=list(message.headers),
            )
        client.flush()
        client.close()

    def wait_until_left(self) -> None:
        """Wait until RabbitMQ misses the consumer: what it sends to one that was killed comes as redelivered."""
        if self.broker == "rabbitmq":
            with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
                queue, channel = f"billing-{self.producer}", connection.channel()
                wait_until(
                    lambda: (
                        channel.queue_declare(queue, passive=True).method.consumer_count
                        == 0
                    )
                )

    def rotate(self) -> None:
        """Give the producer another key, and the consumer the set."""
        mqauth(
            self.folder, "keys", "new", "--dir", "producer/keys", "--publish-delay", "0"
        )
        mqauth(self.folder, "keys", "rotate", "--dir", "producer/keys")
        mqauth(
            self.folder,
            "keys",
            "jwks",
            "--dir",
            "producer/keys",
            "--output",
            "consumer/jwks.json",
        )


PRINTS: Final = '    print("handled:'
"""How a handler of what init writes begins."""
SENDS: Final = '    await AsyncKicker("bill", broker, {}).kiq(1)'


def send_tasks(shop: Path, count: int) -> None:
    """Have the program that sends a task of taskiq send so many."""
    producer = shop / "producer" / "producer.py"
    text = producer.read_text()
    assert SENDS in text
    many = f"    for order in range({count}):\n    {SENDS.replace('1', 'order')}"
    (shop / "producer" / "many.py").write_text(text.replace(SENDS, many))
    command = [*words("python"), "producer/many.py"]
    subprocess.run(command, cwd=shop, check=True, timeout=PATIENCE)


@pytest.mark.parametrize("count", [1, 200], ids=["idle", "load"])
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("program", ["rabbitmq", "kafka", "taskiq"])
def test_a_program_ends_well(
    program: str,
    asked: signal.Signals,
    count: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """Asked to end, idle or at work, a program exits with 0; the next one handles the rest, nothing twice."""
    broker = "kafka" if program == "kafka" else "rabbitmq"
    framework = ("--framework", program) if program == "taskiq" else ()
    shop = Shop(tmp_path, broker, request.getfixturevalue(broker), *framework)
    if framework:
        send_tasks(shop.folder, count)
    else:
        shop.publish(shop.sign(count))

    # A handler takes its time, so that the signal comes amid the work.
    consumes = shop.folder / "consumer" / "consumer.py"
    text = consumes.read_text()
    assert PRINTS in text
    pause = "__import__('time')" if program == "kafka" else "await asyncio"
    consumes.write_text(text.replace(PRINTS, f"    {pause}.sleep(0.05)\n{PRINTS}"))

    told = tmp_path / "told"
    told.touch()

    def seen() -> list[str]:
        lines = told.read_text().splitlines()
        return [line.split()[-1] for line in lines if line.startswith("handled: ")]

    with told.open("a") as output:
        for enough in sorted({min(count, 20), count}):
            command = [*words("python"), "consumer/consumer.py"]
            process = subprocess.Popen(command, cwd=shop.folder, stdout=output)
            try:
                wait_until(lambda: len(seen()) >= enough)  # noqa: B023
                process.send_signal(asked)
                assert process.wait(40) == 0
            finally:
                process.kill()
    assert sorted(seen(), key=int) == [str(number) for number in range(count)]


WAITS = {
    "six days": ((), 6 * 24 * HOUR), "managed, 23 hours": (("--managed",), 23 * HOUR),
} | ({"an hour": ((), HOUR), "a day": ((), 24 * HOUR)} if is_nightly() else {})  # fmt: skip
"""How long a backlog waits; a shorter wait than six days is told of at night."""


@pytest.mark.parametrize(("options", "later"), WAITS.values(), ids=WAITS)
@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_a_backlog_is_handled(
    broker: str,
    options: tuple[str, ...],
    later: int,
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    """All that waited for a stopped consumer is handled once, although its key was rotated, and nothing condemned.

    Then the process is killed and started again: a copy of what it had handled is no message. Kafka misses a
    process that was killed after most of a minute, so that only one row of each broker waits for that.
    """
    killed = later == 6 * 24 * HOUR
    shop = Shop(tmp_path, broker, request.getfixturevalue(broker), *options)
    waiting = shop.sign(COUNT)
    shop.publish(waiting)
    shop.rotate()
    with consumer(shop.folder, later, killed=killed) as process:
        assert handled(process, COUNT) == {str(number) for number in range(COUNT)}
        # The last claim is confirmed before the next message is handled.
        shop.publish(shop.sign(1))
        assert handled(process, 1) == {"0"}
    shop.wait_until_left()
    with consumer(shop.folder, later, killed=killed):
        shop.publish(waiting[:3])
        assert {
            (group["reason"], group["count"]) for group in letters(shop.folder, 3)
        } == {("replayed", 3)}
