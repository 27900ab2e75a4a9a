"""What the documentation shows on a real broker is run on one: set-up, producer, consumer, demo."""

from __future__ import annotations

import asyncio
import importlib
import json
import re
import signal
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.exceptions import AMQPChannelError

from integration.documentation import KAFKA_ADDRESS, RABBITMQ_URL, Block, Reader, blocks
from integration.scale import is_nightly, nightly
from integration.services import Kafka, RabbitMQ
from mqauth.audit.chain import verify_chain

pytestmark = pytest.mark.slow

client: Any = importlib.import_module("kafka")  # untyped
PATIENCE = 60.0
HANDLED = "from orders-api b'{\"order\": 1}' "


def marked(page: str, mark: str) -> list[Block]:
    """Return the blocks of a page that need a broker; there are some."""
    found = [block for block in blocks(page) if block.mark == mark]
    assert found, f"{page} has no block for {mark}"
    return found


def named(name: str) -> Block:
    """Return the block that names itself so, of the README or the page of kafka-python."""
    page = "docs/kafka.md" if name.startswith("kafka_") else "README.md"
    (found,) = (block for block in blocks(page) if block.name == name)
    return found


def settle_in(reader: Reader) -> None:
    """Make the keys and files the README's examples import."""
    keys = next(
        block for block in blocks("README.md") if block.text.startswith("mqauth keys new")
    )
    reader.run(keys)
    for name in ("trust.py", "identity.py"):
        reader.write(named(name))


@contextmanager
def consuming(
    reader: Reader, block: Block, patience: float = PATIENCE, code: int = 0
) -> Iterator[Callable[[], str]]:
    """Run a consumer, give a function that waits for its next line, and stop it by SIGTERM, gracefully."""
    process = reader.start(block)
    assert process.stdout is not None
    watch = threading.Timer(patience, process.kill)
    watch.start()
    try:
        yield process.stdout.readline
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == code
    finally:
        watch.cancel()
        process.kill()
        process.wait()
        process.stdout.close()


def rejections(folder: Path) -> list[str]:
    """Return the reasons of an audit file whose chain is intact."""
    assert verify_chain(folder / "audit.jsonl").intact
    return [
        json.loads(line)["reason"]
        for line in (folder / "audit.jsonl").read_text().splitlines()
    ]


@pytest.fixture
def rabbitmq_reader(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Reader]:
    """Someone who has a RabbitMQ as the README declares it, and tidies up."""
    forget_rabbitmq(rabbitmq.url)
    reader = Reader(tmp_path, {RABBITMQ_URL: rabbitmq.url})
    yield reader
    forget_rabbitmq(rabbitmq.url)


def forget_rabbitmq(url: str) -> None:
    """Delete what the pages declare."""
    asyncio.run(_forget_rabbitmq(url))


async def _forget_rabbitmq(url: str) -> None:
    async with await aio_pika.connect(url) as connection:
        for name in ("billing", "billing.unparseable", "orders.dead", "orders-api.dead"):
            with suppress(AMQPChannelError):
                await (await connection.channel()).queue_delete(name)
        for name in ("shop", "orders-api"):
            with suppress(AMQPChannelError):
                await (await connection.channel()).exchange_delete(name)


@pytest.fixture
def kafka_reader(kafka: Kafka, tmp_path: Path) -> Iterator[Reader]:
    """Someone who has a Kafka as the README declares it, and tidies up."""
    forget_kafka(kafka.url)
    yield Reader(tmp_path, {KAFKA_ADDRESS: kafka.url.partition("://")[2]})
    forget_kafka(kafka.url)


def forget_kafka(url: str) -> None:
    """Delete what the pages create."""
    with client.KafkaAdminClient(bootstrap_servers=url.partition("://")[2]) as admin:
        ours = {
            f"{topic}{end}"
            for topic in ("orders", "orders-api")
            for end in ("", ".dead", ".dead.reviewed")
        }
        present = ours & set(admin.list_topics())
        if present:
            admin.delete_topics(sorted(present))


@pytest.mark.parametrize("door", ["rabbitmq", "pika"])
def test_examples_on_rabbitmq(
    door: str, rabbitmq: RabbitMQ, rabbitmq_reader: Reader, tmp_path: Path
) -> None:
    """The pages' consumers handle what their producers sent, dead-letter a forgery, and stop on SIGTERM."""
    settle_in(rabbitmq_reader)
    rabbitmq_reader.run(named("rabbitmq_topology.py"))
    if door == "rabbitmq":
        producer, consumer = named("rabbitmq_producer.py"), named("rabbitmq_consumer.py")
    else:
        producer, consumer = marked("docs/pika.md", "rabbitmq")
    with consuming(rabbitmq_reader, consumer) as next_line:
        rabbitmq_reader.run(producer)
        assert next_line() == HANDLED + "acme\n"
        letter = asyncio.run(_forge_on_rabbitmq(rabbitmq.url))
    assert letter == "token_missing"
    assert rejections(tmp_path) == ["token_missing"]


async def _forge_on_rabbitmq(url: str) -> str:
    """Publish without a token, and return the reason of the first dead letter."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange("shop")
        await exchange.publish(aio_pika.Message(b"forged"), "orders.created")
        async with (
            asyncio.timeout(PATIENCE),
            (await channel.get_queue("orders.dead")).iterator() as letters,
        ):
            async for letter in letters:
                assert letter.body == b"forged"
                return str(letter.headers["mqauth-dead-reason"])
    raise AssertionError("no dead letter")


def line_of_handler(next_line: Callable[[], str]) -> str:
    """Return the next line that a handler printed, past FastStream's log."""
    return next(line for line in iter(next_line, "") if line.startswith("from "))


def test_faststream_rabbitmq_examples(
    rabbitmq: RabbitMQ, rabbitmq_reader: Reader, tmp_path: Path
) -> None:
    """The page's application handles what its producer sent, and dead-letters a forgery; the other one loads."""
    settle_in(rabbitmq_reader)
    rabbitmq_reader.run(named("rabbitmq_topology.py"))
    producer, consumer, converted = marked("docs/faststream.md", "rabbitmq")
    with consuming(rabbitmq_reader, consumer) as next_line:
        rabbitmq_reader.run(producer)
        assert line_of_handler(next_line) == "from orders-api {'order': 1} acme\n"
        letter = asyncio.run(_forge_on_rabbitmq(rabbitmq.url))
    assert letter == "token_missing"
    assert rejections(tmp_path) == ["token_missing"]
    rabbitmq_reader.run(converted)


@pytest.mark.parametrize(
    "door",
    [
        "kafka",
        "confluent",
        "confluent_aio",
        "aiokafka",
        "faststream_kafka",
        "faststream_confluent",
    ],
)
def test_examples_on_kafka(
    door: str, kafka: Kafka, kafka_reader: Reader, tmp_path: Path
) -> None:
    """The pages' consumers handle what their producers sent, dead-letter a forgery, and stop on SIGTERM."""
    settle_in(kafka_reader)
    kafka_reader.run(named("kafka_topology.py"))
    page = door.partition("_")[0]
    found = {block.name: block for block in marked(f"docs/{page}.md", "kafka")}
    kafka_reader.run(found[f"{door}_producer.py"])
    with consuming(kafka_reader, found[f"{door}_consumer.py"]) as next_line:
        if page == "faststream":
            assert line_of_handler(next_line) == "from orders-api {'order': 1} b'acme'\n"
        else:
            assert next_line() == HANDLED + "b'acme'\n"
        letter = _forge_on_kafka(kafka.url.partition("://")[2])
    assert letter == "token_missing"
    assert rejections(tmp_path) == ["token_missing"]


def _forge_on_kafka(address: str) -> str:
    """Send a record without a token, and return the reason of the first dead letter."""
    with client.KafkaProducer(bootstrap_servers=address) as producer:
        producer.send("orders", value=b"forged").get(PATIENCE)
    with client.KafkaConsumer(
        "orders.dead", bootstrap_servers=address, auto_offset_reset="earliest",
        consumer_timeout_ms=int(PATIENCE * 1000),
    ) as consumer:  # fmt: skip
        letter = next(consumer)
    assert letter.value == b"forged"
    return dict(letter.headers)["mqauth-dead-reason"].decode()


@pytest.mark.slow
@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_attacks_on_your_own_broker(broker: str, request: pytest.FixtureRequest) -> None:
    """The page's suite for a broker attacks a consumer on it, and prints that nothing got through.

    Of the four pairs of a consumer and a form of tokens two are attacked; all four at night, as the page says.
    """
    reader: Reader = request.getfixturevalue(f"{broker}_reader")
    page = "docs/how-to/attack-your-consumer.md"
    reader.write(next(block for block in blocks(page) if block.name == "conftest.py"))
    (block,) = marked(page, broker)
    words = f"python -m pytest -q {reader.write(block).name}"
    if not is_nightly():
        words += " -k 'not single-warm and not batch-cold'"
    printed = reader.run(Block(page=page, line=0, language="sh", mark="", text=words))
    counts = {
        "rabbitmq": (nightly(876, otherwise=496), "197 attacks of 57 classes"),
        "kafka": (nightly(904, otherwise=510), "204 attacks of 58 classes"),
    }
    attempts, attacks = counts[broker]
    assert (
        f"{attempts} attempts by {attacks}, accepted 0, other verdict or reason 0"
        in printed
    )
    honest = nightly(98, otherwise=53)
    assert (
        f"{honest} honest messages, condemned 0; handler calls for attacks 0" in printed
    )


@pytest.mark.parametrize("broker", ["rabbitmq", "kafka"])
def test_demo_command(broker: str, request: pytest.FixtureRequest) -> None:
    """The demo command shown for a broker runs on it: at least 15 kinds of attack, each dead-lettered."""
    reader: Reader = request.getfixturevalue(f"{broker}_reader")
    (block,) = (block for block in marked("README.md", broker) if block.language == "sh")
    report = json.loads(reader.run(block))
    assert report["broker"] == broker
    assert (report["audit_chain"], report["lost"]) == ("intact", 0)
    assert sum(case["verdict"] == "rejected" for case in report["cases"]) >= 15


def test_every_broker_block_is_run() -> None:
    """No block marked with a broker is left out by the tests of this file."""
    left = [
        block.name
        for page, broker in (("README.md", "rabbitmq"), ("docs/kafka.md", "kafka"))
        for block in marked(page, broker)
        if block.language == "python" and block.name not in RUN_BY_NAME
    ]
    assert left == []


RUN_BY_NAME = {
    f"{broker}_{part}.py"
    for broker in ("rabbitmq", "kafka")
    for part in ("topology", "producer", "consumer")
}


def test_fastapi_example(rabbitmq_reader: Reader) -> None:
    """The page's lifespan, in a Starlette application, publishes and handles a signed message."""
    settle_in(rabbitmq_reader)
    rabbitmq_reader.run(named("rabbitmq_topology.py"))
    (shop,) = marked("docs/how-to/use-fastapi.md", "rabbitmq")
    rabbitmq_reader.write(shop)
    served = Block(
        page=shop.page, line=0, language="python", mark="rabbitmq", text=SERVED
    )
    with consuming(rabbitmq_reader, served) as next_line:
        assert next_line() == HANDLED + "acme\n"


CONVERTED = "docs/how-to/convert-a-service.md"
OLD_RABBITMQ = """# old_topology.py
import asyncio

import aio_pika


async def main() -> None:
    async with await aio_pika.connect_robust("amqp://guest:guest@localhost/") as connection:
        channel = await connection.channel()
        exchange = await channel.declare_exchange("shop", aio_pika.ExchangeType.TOPIC, durable=True)
        queue = await channel.declare_queue("billing", durable=True)
        await queue.bind(exchange, "orders.*")


asyncio.run(main())
"""
OLD_KAFKA = """# old_topology.py
from confluent_kafka.admin import AdminClient, NewTopic

admin = AdminClient({"bootstrap.servers": "localhost:9092"})
admin.create_topics([NewTopic("orders", 3)])["orders"].result()
"""
"""What a service has before it is converted: a classic queue, and a topic with the times of its producers."""
PUBLISH_RABBITMQ = """# publish.py
import asyncio
import sys

import aio_pika
from signing import on_rabbitmq


async def main() -> None:
    async with await aio_pika.connect_robust("amqp://guest:guest@localhost/") as connection:
        exchange = await (await connection.channel()).get_exchange("shop")
        message = aio_pika.Message(b'{"order": %s}' % sys.argv[2].encode())
        sender = on_rabbitmq(exchange) if sys.argv[1] == "new" else exchange
        await sender.publish(message, routing_key="orders.created")


asyncio.run(main())
"""
PUBLISH_KAFKA = """# publish.py
import sys

import confluent_kafka
from signing import on_kafka

settings = {"bootstrap.servers": "localhost:9092", "enable.idempotence": True}
sender = on_kafka(settings) if sys.argv[1] == "new" else confluent_kafka.Producer(settings)
sender.produce("orders", b'{"order": %s}' % sys.argv[2].encode())
assert sender.flush(60) == 0
"""
"""What the service publishes with, before and after its step 4."""


SERVICES = {
    "rabbitmq": (OLD_RABBITMQ, PUBLISH_RABBITMQ, "rabbitmq:shop/orders.*"),
    "kafka": (OLD_KAFKA, PUBLISH_KAFKA, "kafka:orders"),
}


@pytest.mark.parametrize("broker", SERVICES)
def test_convert_a_service(
    broker: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """The page's steps take a service from nothing to enforce: old messages are handled, later they are not."""
    reader: Reader = request.getfixturevalue(f"{broker}_reader")
    old, publish, destination = SERVICES[broker]

    def run(language: str, text: str) -> str:
        return reader.run(
            Block(page=CONVERTED, line=0, language=language, mark="", text=text)
        )

    run("python", old)
    found = list(blocks(CONVERTED))
    for block in found:
        if block.language == "sh":
            reader.run(block)
        elif block.name.endswith((".toml", ".py")):
            reader.write(block)
    settings = tmp_path / "mqauth.toml"
    today = datetime.now(UTC).date()
    dates = {"since": today, "until": today + timedelta(days=90)}
    for name, day in dates.items():
        settings.write_text(
            re.sub(
                rf"^{name} = .+$",
                f"{name} = {day}",
                settings.read_text(),
                flags=re.MULTILINE,
            )
        )
    if broker == "kafka":
        text = settings.read_text().replace('append_evidence = "interceptor"\n', "")
        text = text.replace(
            "amqp://localhost:5672/", request.getfixturevalue("kafka").url
        )
        settings.write_text(text.replace("rabbitmq:shop/orders.*", "kafka:orders"))
    else:
        url = request.getfixturevalue("rabbitmq").url
        settings.write_text(
            settings.read_text().replace(
                "amqp://localhost:5672/", url.replace("guest:guest@", "")
            )
        )
    named_ = {block.name: block for block in found}
    reader.run(named_[f"{broker}_letters.py"])
    (tmp_path / "publish.py").write_text(reader.here(publish))
    assert "is there" in run("sh", "mqauth check --online mqauth.toml")
    billing = named_[f"{broker}_billing.py"]
    with consuming(reader, billing) as next_line:
        for number, kind in enumerate(("old", "new")):
            run("sh", f"python publish.py {kind} {number}")
            assert next_line() == f"billed {number}\n"
    run("sh", f"mqauth rollout up '{destination}' --force --why 'a test' --yes")
    with consuming(reader, billing) as next_line:
        for number, kind in enumerate(("old", "new")):
            run("sh", f"python publish.py {kind} {number}")
        assert next_line() == "billed 1\n"
    assert "token_missing" in run("sh", "mqauth dlq groups")


SERVED = """# served.py
import asyncio
import signal

import aio_pika
from shop import lifespan
from starlette.applications import Starlette


async def main() -> None:
    app, stopped = Starlette(lifespan=lifespan), asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with app.router.lifespan_context(app):
        message = aio_pika.Message(b'{"order": 1}', headers={"tenant": "acme"})
        await app.state.producer.publish(message, routing_key="orders.created")
        await stopped.wait()


asyncio.run(main())
"""
"""What FastAPI and uvicorn do with a lifespan: they enter it, serve, and leave it on SIGTERM."""


def test_start_an_authority(tmp_path: Path) -> None:
    """The page's authority gives an identity, its consumer accepts that, and the cut-off is published."""
    page = "docs/how-to/start-an-authority.md"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reader = Reader(tmp_path, {"8443": str(port)})
    serve, judge, cut = marked(page, "authority")
    for block in blocks(page):
        if block.language == "toml":
            reader.write(block)
        elif block.language in ("python", "sh") and block.mark == "":
            reader.run(block)
    with consuming(reader, serve) as next_line:
        assert f"http://127.0.0.1:{port}/v1/identity" in next_line()
        verdict = json.loads(reader.run(judge))
        assert (verdict["verdict"], verdict["claims"]["sub"]) == (
            "accepted",
            "wimse://prod.example/shop/orders-api",
        )
        assert "is cut off" in reader.run(cut)
        with urllib.request.urlopen(
            f"http://127.0.0.1:{port}/jwks.json", timeout=PATIENCE
        ) as answer:
            assert (
                json.load(answer)["mqauth_cutoff"][0]["reason"] == "stolen on the train"
            )
    records = [
        json.loads(line)
        for line in (tmp_path / "authority.jsonl").read_text().splitlines()
    ]
    assert [record["verdict"] for record in records] == ["identity_issued"]
    assert verify_chain(tmp_path / "authority.jsonl").intact
