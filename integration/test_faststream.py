"""FastStream on a real RabbitMQ and a real Kafka: requests, and a shop of services."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import subprocess
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from faststream.rabbit import RabbitBroker
from faststream.rabbit.opentelemetry import RabbitTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider

from integration.documentation import ROOT
from integration.forked import words
from integration.services import Kafka, RabbitMQ
from mqauth import (
    ActiveKey,
    AuditFile,
    Key,
    KeySet,
    MemoryReplayStore,
    Message,
    Pipeline,
    Signer,
    Verified,
)
from mqauth.audit.chain import verify_chain
from mqauth.brokers import rabbitmq as wrapper
from mqauth.brokers.rabbitmq.translate import to_native
from mqauth.integrations.faststream import VerifiedMessage, protect
from mqauth.testing.forge import ISSUER, Forge

PATIENCE = 60.0


class Shop:
    """A protected broker on RabbitMQ, and what its handler got.

    Args:
        url: of RabbitMQ.
        audit: where its records go.
        signer: of what it publishes, in place of the forge's.
        trusts: keys of the issuer beside the forge's.
    """

    def __init__(
        self, url: str, audit: AuditFile, *, signer: Signer | None = None,
        trusts: Sequence[Key] = (),
    ) -> None:  # fmt: skip
        self.forge = Forge()
        self.name = f"orders-{uuid.uuid4().hex}"
        self.dead = f"{self.name}.dead"
        self.handled: asyncio.Queue[Verified] = asyncio.Queue()
        self.guard = Pipeline(
            verifier=self.forge.verifier(keys={self.forge.issuer: KeySet([*self.forge.keys, *trusts])}),
            policy=self.forge.policy(f"rabbitmq:/{self.name}", "rabbitmq:/amq.rabbitmq.reply-to.#"),
            replay=MemoryReplayStore(), audit=audit,
        )  # fmt: skip
        self.broker: Any = protect(
            RabbitBroker(url, graceful_timeout=0.1),
            guard=self.guard,
            dead_letters=self.letters,
            signer=signer or self.forge.signer(),
        )

    async def letters(self) -> wrapper.DeadLetters:
        """Return the dead letters, their queue declared."""
        connection = await self.broker.connect()
        found = wrapper.DeadLetters(await connection.channel(), self.dead)
        await found.declare()
        return found

    async def buried(self, number: int) -> list[tuple[str, bytes]]:
        """Return reason and body of so many dead letters."""
        channel = await (await self.broker.connect()).channel()
        found = []
        async with (
            asyncio.timeout(PATIENCE),
            (await channel.get_queue(self.dead)).iterator() as letters,
        ):
            async for letter in letters:
                found.append((str(letter.headers["mqauth-dead-reason"]), letter.body))
                await letter.ack()
                if len(found) == number:
                    return found
        raise AssertionError

    async def ask(self, order: dict[str, int]) -> Any:
        """Return the answer to a request."""
        # RabbitMQ 4.0.5 returns direct replies in its first seconds, and delivers them to nobody (seen here).
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await self.broker.request(order, self.name, timeout=2)
                except TimeoutError:
                    continue

    async def end(self) -> None:
        """Stop, and leave nothing at the broker."""
        await self.broker.stop()
        async with await aio_pika.connect(self.broker.specification.url[0]) as connection:
            channel = await connection.channel()
            for name in (self.name, self.dead):
                await channel.queue_delete(name)


@pytest.fixture
async def shop(rabbitmq: RabbitMQ, tmp_path: Path) -> Any:
    """Yield a shop that is not started yet."""
    with AuditFile(tmp_path / "audit.jsonl") as audit:
        shop = Shop(rabbitmq.url, audit)
        yield shop
        await shop.end()
    assert verify_chain(tmp_path / "audit.jsonl").intact


async def test_rabbitmq_request(shop: Shop) -> None:
    """A request and its answer are both signed and verified, by FastStream's direct reply-to, traced or not."""
    shop.broker.add_middleware(
        RabbitTelemetryMiddleware(tracer_provider=TracerProvider())
    )

    @shop.broker.subscriber(shop.name)
    async def take(order: dict[str, int], verified: VerifiedMessage) -> dict[str, int]:
        shop.handled.put_nowait(verified)
        return {"taken": order["order"]}

    await shop.broker.start()
    answer = await shop.ask({"order": 7})
    assert await answer.decode() == {"taken": 7}
    request = shop.handled.get_nowait()
    # the trace's header came after the signature: it is there, and not shown
    assert ("traceparent" in request.native.headers, request.headers) == (True, ())


async def test_rabbitmq_unroutable(shop: Shop) -> None:
    """What no queue takes is an error; a message whose result nobody can get is dead-lettered, not acked."""

    @shop.broker.subscriber(shop.name)
    @shop.broker.publisher(f"{shop.name}.missing")
    async def take(order: int, verified: VerifiedMessage) -> int:
        return order

    await shop.broker.start()
    with pytest.raises(wrapper.UnroutableError):
        await shop.broker.publish(7, f"{shop.name}.missing")
    await shop.broker.publish(7, shop.name)
    assert await shop.buried(1) == [("handler_failed", b"7")]


client: Any = importlib.import_module("kafka")  # untyped


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


class Application:
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
            text = CONFIG.format(
                issuer=ISSUER, name=name, sender=sender, place=place, shop=self.name
            )
            (folder / f"{name}.toml").write_text(text)

    @property
    def topics(self) -> list[str]:
        """Names of the topics."""
        return [f"{self.name}.payments", f"{self.name}.billing.dead"]

    def _key(self, name: str) -> Any:
        """Make the key of a service, and return its public half."""
        keys = str(self.folder / "keys" / name)
        run = [*words("mqauth"), "keys"]
        subprocess.run(
            [*run, "new", "--dir", keys, "--subject", name],
            check=True,
            capture_output=True,
        )
        found = subprocess.run(
            [*run, "jwks", "--dir", keys], check=True, capture_output=True
        )
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
            [*words("python"), str(ROOT / "integration" / "examples" / f"{name}.py")], env=environment,
            cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
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
        return sorted(
            line.removeprefix("handled ").strip()
            for line in self.lines
            if line.startswith("handled ")
        )


async def attack_rabbitmq(shop: Application) -> None:
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
                destination=f"rabbitmq:/{queue}",
                body=b'{"order": 666}',
                properties={"message-id": "m"},
            )
            await send(queue, bare)
            await send(queue, stranger.sign(bare))
        await send(accepted, honest[1])


def attack_kafka(shop: Application) -> None:
    """Send an unsigned and a forged payment, and copy an honest one."""
    topic = f"{shop.name}.payments"
    bare = Message(destination=f"kafka:{topic}", body=b'{"pay": 666}')
    forged = shop.signer("dispatch", Key.generate(subjects=["dispatch"])).sign(bare)
    with (
        client.KafkaConsumer(
            topic, bootstrap_servers=shop.kafka, auto_offset_reset="earliest"
        ) as consumer,
        client.KafkaProducer(bootstrap_servers=shop.kafka) as producer,
    ):
        honest = next(consumer)
        for value, headers in (
            (bare.body, []), (forged.body, list(forged.headers)), (honest.value, list(honest.headers)),
        ):  # fmt: skip
            producer.send(topic, value=value, headers=headers).get(PATIENCE)


async def letters_of_rabbitmq(shop: Application, name: str, number: int) -> list[str]:
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


def letters_of_kafka(shop: Application, number: int) -> list[str]:
    """Return the reasons of so many dead letters of the billing service, sorted."""
    with client.KafkaConsumer(
        f"{shop.name}.billing.dead", bootstrap_servers=shop.kafka, auto_offset_reset="earliest",
        consumer_timeout_ms=int(PATIENCE * 1000),
    ) as consumer:  # fmt: skip
        return sorted(
            dict(next(consumer).headers)["mqauth-dead-reason"].decode()
            for _ in range(number)
        )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kafka", "confluent"])
def test_shop(kind: str, rabbitmq: RabbitMQ, kafka: Kafka, tmp_path: Path) -> None:
    """What is forged, replayed, moved or unsigned reaches none of three services, and becomes a dead letter."""
    shop = Application(tmp_path, rabbitmq.url, kafka.url.partition("://")[2])
    with client.KafkaAdminClient(bootstrap_servers=shop.kafka) as admin:
        admin.create_topics(
            [
                client.admin.NewTopic(name=name, num_partitions=1, replication_factor=1)
                for name in shop.topics
            ]
        )
    with ExitStack() as stack:
        billing, dispatch, orders = (
            stack.enter_context(shop.service(name, kind))
            for name in ("billing", "dispatch", "orders")
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
    assert orders.handled == [
        f'customer {{"order": {number}}}' for number in range(HONEST)
    ]
    assert dispatch.handled == [
        f'orders {{"order":{number}}}' for number in range(HONEST)
    ]
    assert billing.handled == [f'dispatch {{"pay":{number}}}' for number in range(HONEST)]
    for name in ("orders", "dispatch", "billing"):
        assert verify_chain(tmp_path / f"{name}.jsonl").intact
    asyncio.run(forget(shop))


async def forget(shop: Application) -> None:
    """Leave nothing at the brokers."""
    async with await aio_pika.connect(shop.rabbitmq) as connection:
        channel = await connection.channel()
        for name in ("orders", "accepted", "orders.dead", "dispatch.dead"):
            await channel.queue_delete(f"{shop.name}.{name}")
    with client.KafkaAdminClient(bootstrap_servers=shop.kafka) as admin:
        admin.delete_topics(shop.topics)
