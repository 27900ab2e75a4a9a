"""The example application on real brokers: three services, honest orders, and an attacker on every way in."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from integration.documentation import ROOT
from integration.services import Kafka, RabbitMQ
from mqauth import ActiveKey, Message, Signer
from mqauth.audit.chain import verify_chain
from mqauth.brokers.rabbitmq.translate import to_native
from mqauth.testing.forge import ISSUER
from mqauth.wire.keys import Key

client: Any = importlib.import_module("kafka")  # untyped
PATIENCE = 60.0
HONEST = 3
CONFIG = """
[producer]
issuer = "{issuer}"
subject = "{name}"
audience = "shop"
keys = "keys/{name}"

[consumer]
audience = "shop"

[[consumer.issuers]]
issuer = "{issuer}"
file = "jwks.json"

[[consumer.allow]]
subject = "{sender}"
destinations = ["{place}"]

[audit]
file = "{name}.jsonl"

[dead_letters]
name = "{shop}.{name}.dead"
"""


class Shop:
    """Names, keys and settings of the application.

    Args:
        folder: an empty one.
        rabbitmq: URL.
        kafka: address.
    """

    def __init__(self, folder: Path, rabbitmq: str, kafka: str) -> None:
        self.name = f"shop-{uuid.uuid4().hex[:8]}"
        self.folder = folder
        self.rabbitmq = rabbitmq
        self.kafka = kafka
        places = {
            "orders": ("customer", f"rabbitmq:/{self.name}.orders"),
            "dispatch": ("orders", f"rabbitmq:/{self.name}.accepted"),
            "billing": ("dispatch", f"kafka:{self.name}.payments"),
        }
        keys = [self._key(name) for name in ("customer", *places)]
        (folder / "jwks.json").write_text(json.dumps({"keys": keys}))
        for name, (sender, place) in places.items():
            text = CONFIG.format(issuer=ISSUER, name=name, sender=sender, place=place, shop=self.name)
            (folder / f"{name}.toml").write_text(text)

    @property
    def topics(self) -> list[str]:
        """Names of the topics."""
        return [f"{self.name}.payments", f"{self.name}.billing.dead"]

    def _key(self, name: str) -> Any:
        """Make the key of a service, and return its public half."""
        keys = str(self.folder / "keys" / name)
        run = [sys.executable, "-m", "mqauth", "keys"]
        subprocess.run([*run, "new", "--dir", keys, "--subject", name], check=True, capture_output=True)
        found = subprocess.run([*run, "jwks", "--dir", keys], check=True, capture_output=True)
        return json.loads(found.stdout)["keys"][0]

    def signer(self, name: str, key: Any = None) -> Signer:
        """Return the signer of a service, or one who has another key."""
        key = key or ActiveKey(self.folder / "keys" / name)
        return Signer(key=key, issuer=ISSUER, subject=name, audience="shop")

    @contextmanager
    def service(self, name: str, kind: str) -> Iterator[Output]:
        """Run a service until it is stopped by SIGTERM, gracefully."""
        environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "SHOP": self.name, "SHOP_RABBITMQ": self.rabbitmq,
            "SHOP_KAFKA": self.kafka, "SHOP_CONFIG": str(self.folder / f"{name}.toml"), "SHOP_CLIENT": kind,
        }  # fmt: skip
        process = subprocess.Popen(
            [sys.executable, "-m", f"integration.examples.{name}"], env=environment, cwd=self.folder,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        watch = threading.Timer(PATIENCE, process.kill)
        watch.start()
        output = Output(process)
        try:
            output.wait_for("ready")
            yield output
            process.send_signal(signal.SIGTERM)
            output.read()
            assert process.wait(PATIENCE) == 0, output.lines
        finally:
            watch.cancel()
            process.kill()
            process.wait()


class Output:
    """What a service printed.

    Args:
        process: the service.
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self._stream = process.stdout
        self.lines: list[str] = []

    def wait_for(self, begin: str, number: int = 1) -> None:
        """Read until so many lines begin so."""
        while number:
            line = self._stream.readline()
            assert line, self.lines
            self.lines.append(line)
            number -= line.startswith(begin)

    def read(self) -> None:
        """Read what is left."""
        self.lines += self._stream.readlines()
        self._stream.close()

    @property
    def handled(self) -> list[str]:
        """What the handler got, sorted."""
        return sorted(line.removeprefix("handled ").strip() for line in self.lines if line.startswith("handled "))


async def attack_rabbitmq(shop: Shop) -> None:
    """Publish honest orders, and on both queues what nobody may handle."""
    orders, accepted = (f"{shop.name}.{name}" for name in ("orders", "accepted"))
    honest = [
        shop.signer("customer").sign(
            Message(
                destination=f"rabbitmq:/{orders}",
                body=b'{"order": %d}' % number,
                properties={"message-id": f"m{number}"},
            )
        )
        for number in range(HONEST)
    ]
    stranger = shop.signer("customer", Key.generate(subjects=["customer"]))
    async with await aio_pika.connect(shop.rabbitmq) as connection:
        exchange = (await connection.channel()).default_exchange

        async def send(queue: str, message: Message) -> None:
            name = message.properties.get("message-id", "m")
            await exchange.publish(to_native(message, message_id=name), queue)

        for message in (*honest, honest[0]):
            await send(orders, message)
        for queue in (orders, accepted):
            bare = Message(
                destination=f"rabbitmq:/{queue}", body=b'{"order": 666}', properties={"message-id": "m"}
            )
            await send(queue, bare)
            await send(queue, stranger.sign(bare))
        await send(accepted, honest[1])


def attack_kafka(shop: Shop) -> None:
    """Send an unsigned and a forged payment, and copy an honest one."""
    topic = f"{shop.name}.payments"
    bare = Message(destination=f"kafka:{topic}", body=b'{"pay": 666}')
    forged = shop.signer("dispatch", Key.generate(subjects=["dispatch"])).sign(bare)
    with (
        client.KafkaConsumer(topic, bootstrap_servers=shop.kafka, auto_offset_reset="earliest") as consumer,
        client.KafkaProducer(bootstrap_servers=shop.kafka) as producer,
    ):
        honest = next(consumer)
        for value, headers in (
            (bare.body, []), (forged.body, list(forged.headers)), (honest.value, list(honest.headers)),
        ):  # fmt: skip
            producer.send(topic, value=value, headers=headers).get(PATIENCE)


async def letters_of_rabbitmq(shop: Shop, name: str, number: int) -> list[str]:
    """Return the reasons of so many dead letters of a service, sorted."""
    found: list[str] = []
    async with await aio_pika.connect(shop.rabbitmq) as connection:
        queue = await (await connection.channel()).get_queue(f"{shop.name}.{name}.dead")
        async with asyncio.timeout(PATIENCE), queue.iterator() as letters:
            async for letter in letters:
                await letter.ack()
                found.append(str(letter.headers["mqauth-dead-reason"]))
                if len(found) == number:
                    break
    return sorted(found)


def letters_of_kafka(shop: Shop, number: int) -> list[str]:
    """Return the reasons of so many dead letters of the billing service, sorted."""
    with client.KafkaConsumer(
        f"{shop.name}.billing.dead", bootstrap_servers=shop.kafka, auto_offset_reset="earliest",
        consumer_timeout_ms=int(PATIENCE * 1000),
    ) as consumer:  # fmt: skip
        return sorted(dict(next(consumer).headers)["mqauth-dead-reason"].decode() for _ in range(number))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kafka", "confluent"])
def test_shop(kind: str, rabbitmq: RabbitMQ, kafka: Kafka, tmp_path: Path) -> None:
    """What is forged, replayed, moved or unsigned reaches none of three services, and becomes a dead letter."""
    shop = Shop(tmp_path, rabbitmq.url, kafka.url.partition("://")[2])
    with client.KafkaAdminClient(bootstrap_servers=shop.kafka) as admin:
        admin.create_topics(
            [client.admin.NewTopic(name=name, num_partitions=1, replication_factor=1) for name in shop.topics]
        )
    with ExitStack() as stack:
        billing, dispatch, orders = (
            stack.enter_context(shop.service(name, kind)) for name in ("billing", "dispatch", "orders")
        )
        asyncio.run(attack_rabbitmq(shop))
        billing.wait_for("handled", HONEST)
        attack_kafka(shop)
        at_orders = asyncio.run(letters_of_rabbitmq(shop, "orders", 3))
        at_dispatch = asyncio.run(letters_of_rabbitmq(shop, "dispatch", 3))
        at_billing = letters_of_kafka(shop, 3)
    assert at_orders == at_billing == ["key_unknown", "replayed", "token_missing"]
    # what a customer signed for one queue was moved to another
    assert at_dispatch == ["destination_mismatch", "key_unknown", "token_missing"]
    assert orders.handled == [f'customer {{"order": {number}}}' for number in range(HONEST)]
    assert dispatch.handled == [f'orders {{"order":{number}}}' for number in range(HONEST)]
    assert billing.handled == [f'dispatch {{"pay":{number}}}' for number in range(HONEST)]
    for name in ("orders", "dispatch", "billing"):
        assert verify_chain(tmp_path / f"{name}.jsonl").intact
    asyncio.run(forget(shop))


async def forget(shop: Shop) -> None:
    """Leave nothing at the brokers."""
    async with await aio_pika.connect(shop.rabbitmq) as connection:
        channel = await connection.channel()
        for name in ("orders", "accepted", "orders.dead", "dispatch.dead"):
            await channel.queue_delete(f"{shop.name}.{name}")
    with client.KafkaAdminClient(bootstrap_servers=shop.kafka) as admin:
        admin.delete_topics(shop.topics)
