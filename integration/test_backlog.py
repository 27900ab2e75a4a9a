"""What `mqauth init` writes, stopped and started again: nothing that waited is condemned, no copy handled.

The consumer's program runs as it was written, in a process with another time of day, as if it had been stopped
until then; the broker's clock and the producer's stay.
"""

from __future__ import annotations

import base64
import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import kafka
import pika
import pytest

from integration.forked import words
from integration.scale import is_nightly, nightly
from integration.services import Kafka, RabbitMQ
from integration.test_init import letters, mqauth, url_of
from mqauth.testing.stage import wait_until
from mqauth.wire.json_form import from_form
from mqauth.wire.message import Message

pytestmark = pytest.mark.slow

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
    with subprocess.Popen(command, cwd=shop, stdout=subprocess.PIPE, text=True) as process:
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

    def __init__(self, folder: Path, broker: str, service: RabbitMQ | Kafka, *options: str) -> None:
        self.broker, self.url = broker, service.url
        self.producer = f"orders-{os.urandom(4).hex()}"
        names = ("--producer", self.producer, "--consumer", f"billing-{self.producer}")
        mqauth(folder, "init", "shop", "--broker", broker, *names, "--url", url_of(service), *options)
        self.folder = folder / "shop"
        mqauth(self.folder, "init", ".", "--apply")

    def sign(self, count: int) -> list[Message]:
        """Return messages that the producer signed."""
        on_kafka = self.broker == "kafka"
        place = f"kafka:{self.producer}" if on_kafka else f"rabbitmq:{self.producer}/created"
        bodies = [base64.b64encode(b"%d" % number).decode() for number in range(count)]
        forms = [{"destination": place, "body": body} | ({"key": body} if on_kafka else {}) for body in bodies]
        lines = "".join(json.dumps(form) + "\n" for form in forms)
        told = mqauth(self.folder, "sign", "--lines", "--config", "producer/mqauth.toml", stdin=lines)
        return [from_form(json.loads(line)) for line in told.splitlines()]

    def publish(self, messages: Sequence[Message]) -> None:
        """Publish messages as they are."""
        if self.broker == "rabbitmq":
            with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
                channel = connection.channel()
                channel.confirm_delivery()
                for message in messages:
                    sent = pika.BasicProperties(headers=dict(message.headers))
                    channel.basic_publish(self.producer, "created", message.body, sent, mandatory=True)
            return
        client: Any = kafka.KafkaProducer(bootstrap_servers=self.url.partition("://")[2])
        for message in messages:
            client.send(self.producer, value=message.body, key=message.key, headers=list(message.headers))
        client.flush()
        client.close()

    def wait_until_left(self) -> None:
        """Wait until RabbitMQ misses the consumer: what it sends to one that was killed comes as redelivered."""
        if self.broker == "rabbitmq":
            with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
                queue, channel = f"billing-{self.producer}", connection.channel()
                wait_until(lambda: channel.queue_declare(queue, passive=True).method.consumer_count == 0)

    def rotate(self) -> None:
        """Give the producer another key, and the consumer the set."""
        mqauth(self.folder, "keys", "new", "--dir", "producer/keys", "--publish-delay", "0")
        mqauth(self.folder, "keys", "rotate", "--dir", "producer/keys")
        mqauth(self.folder, "keys", "jwks", "--dir", "producer/keys", "--out", "consumer/jwks.json")


WAITS = {
    "six days": ((), 6 * 24 * HOUR), "managed, 23 hours": (("--managed",), 23 * HOUR),
} | ({"an hour": ((), HOUR), "a day": ((), 24 * HOUR)} if is_nightly() else {})  # fmt: skip
"""How long a backlog waits; a shorter wait than six days is told of at night."""


@pytest.mark.parametrize(("options", "later"), WAITS.values(), ids=WAITS)
@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_a_backlog_is_handled(
    broker: str, options: tuple[str, ...], later: int, tmp_path: Path, request: pytest.FixtureRequest
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
        assert {(group["reason"], group["count"]) for group in letters(shop.folder, 3)} == {("replayed", 3)}
