"""What every client of RabbitMQ promises on the real broker, and every AMQP value that aio-pika can send."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractQueue
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from integration import scale
from integration.client_bench import BESIDE_GRACE, ClientBench
from integration.every_client import RABBITMQ, Consuming
from integration.scale import nightly
from integration.services import RabbitMQ
from mqauth.brokers import pika, rabbitmq
from mqauth.errors import RejectNow
from mqauth.judging.verified import Verified
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_pika import connect
from mqauth.wire import destination
from mqauth.wire.destination import parse
from mqauth.wire.envelope import is_transport
from mqauth.wire.message import PROTECTED_PROPERTIES

AWAY = 3.0
"""Seconds for which a queue is missing."""


@pytest.fixture
def bench(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[ClientBench]:
    """A fresh bench."""
    found = ClientBench(rabbitmq, tmp_path)
    with found.ending:
        yield found


@pytest.fixture(params=RABBITMQ.values(), ids=RABBITMQ)
def client(request: pytest.FixtureRequest) -> Consuming:
    """Each client."""
    return request.param  # type: ignore[no-any-return]


class TestSilentBroker:
    """A broker that is frozen answers nothing, and keeps its connections open."""

    def test_idle(self, client: Consuming, bench: ClientBench) -> None:
        """A consumer that waits for messages stops within seconds."""
        with client(bench.wiring(grace=0.5)) as running:
            assert bench.stopped_within(running) < 0.5 + BESIDE_GRACE

    @pytest.mark.parametrize("seconds", [1, 4], ids=["within its grace", "beyond it"])
    def test_a_handler_runs(
        self, client: Consuming, bench: ClientBench, seconds: int
    ) -> None:
        """A handler has its grace; its message is settled or comes again, and no other one is lost."""
        begun = threading.Event()

        def handler(message: Any) -> None:
            begun.set()
            threading.Event().wait(seconds)
            bench.handled.append(message.body)

        bench.send(b"first")
        with client(bench.wiring(handler, grace=2)) as running:
            assert begun.wait(30)
            assert bench.stopped_within(running) < 2 + BESIDE_GRACE
        wait_until(lambda: bench.handled == [b"first"])
        bench.send(b"second")
        with client(bench.wiring()):
            wait_until(lambda: b"second" in bench.handled)

    def test_a_letter_has_no_confirm(self, client: Consuming, bench: ClientBench) -> None:
        """A dead letter without its confirm ends with the grace; its message is dead-lettered all the same.

        Where the broker wrote the first letter, too, there are two, with one `mqauth-dead-id`.
        """
        frozen = threading.Event()

        def handler(_message: Any) -> None:
            bench.broker.pause()
            frozen.set()
            raise RejectNow("no such article")

        bench.send(b"first")
        with client(bench.wiring(handler, grace=1)) as running:
            assert frozen.wait(30)
            assert bench.stopped_within(running) < 1 + BESIDE_GRACE

        def refuse(_message: Any) -> None:
            raise RejectNow("no such article")

        def ready(queue: str) -> int:
            with connect(bench.broker.url) as connection:
                return int(
                    connection.channel()
                    .queue_declare(queue, passive=True)
                    .method.message_count
                )

        # FastStream goes on stopping when the broker does: then the confirm arrives, and nothing comes again.
        with client(bench.wiring(refuse)):
            wait_until(lambda: ready(bench.source) == 0 and ready(bench.stage.dead) > 0)
        letters = bench.stage.letters()
        assert len(letters) in (1, 2)
        assert len({letter.occurrences("mqauth-dead-id") for letter in letters}) == 1


@pytest.mark.slow
def test_a_queue_is_deleted_and_made_anew(client: Consuming, bench: ClientBench) -> None:
    """A consumer goes on once its queue is back, each time; RabbitMQ 4.0 ends who consumes it again at once."""
    rounds = scale.nightly(20, otherwise=4)
    with client(bench.wiring()):
        for number in range(rounds):
            with connect(bench.broker.url) as connection:
                channel = connection.channel()
                channel.queue_delete(bench.stage.queue)
                time.sleep(AWAY)
                pika.declare_source(channel, bench.stage.queue)
                exchange, key = parse(bench.stage.destination)[1:]
                channel.queue_bind(bench.stage.queue, exchange, key)
            bench.send(b"order %d" % number)
            wait_until(partial(bench.has_handled, number + 1))
    assert bench.handled == [b"order %d" % number for number in range(rounds)]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SHORT = TEXT.filter(lambda text: len(text.encode()) <= 255)
TIMES = st.datetimes(
    datetime(1970, 1, 2),
    datetime(2100, 1, 1),
    timezones=st.sampled_from([UTC, timezone(timedelta(hours=5))]),
)
DECIMALS = st.builds(
    lambda mantissa, places: Decimal(mantissa).scaleb(-places),
    st.integers(-(2**31), 2**31 - 1),
    st.integers(0, 28),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), TEXT, st.binary(max_size=30).map(bytearray),
    st.floats(-3e38, 3e38), TIMES, TIMES.map(lambda time: time.replace(tzinfo=None)), DECIMALS,
)  # fmt: skip
NAMES = TEXT.filter(lambda name: len(name.encode()) <= 128)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)
    ),
    max_leaves=6,
)
APPLICATION = st.text(
    st.characters(min_codepoint=97, max_codepoint=122), min_size=1, max_size=40
)
COVERED = APPLICATION.filter(
    lambda name: name not in PROTECTED_PROPERTIES and not is_transport(name)
)
HEADERS = st.dictionaries(COVERED, VALUES, max_size=4)
PROPERTIES = st.fixed_dictionaries(
    {},
    optional={
        name.replace("-", "_"): SHORT
        for name in PROTECTED_PROPERTIES
        if name != "reply-to"
    },
)
EVERY_TYPE: dict[str, Any] = {
    "null": None, "true": True, "i8": -5, "u8": 200, "i16": -30_000, "u16": 65_535, "i32": -(2**31),
    "u32": 2**32 - 1, "i64": -(2**63), "max": 2**63 - 1, "float": 0.1, "text": "ü€😀", "nothing": "",
    "raw": bytearray(b"\xff\x00"), "ascii": bytearray(b"abc"), "noraw": bytearray(),
    "decimal": Decimal("-12.50"), "zero": Decimal("0.00"),
    "time": datetime(2024, 1, 1, 0, 0, 0, 500, tzinfo=UTC), "naive": datetime(2024, 1, 1),
    "list": [1, "x", None, [1.25]], "table": {"a": {"b": [bytearray(b"z"), {}]}, "": 0},
    "nolist": [], "notable": {}, "x" * 128: 1, "CC": ["other"],
}  # fmt: skip


class Loopback:
    """One queue on a real broker: what is published signed is got and verified."""

    def __init__(self, url: str) -> None:
        self.runner = asyncio.Runner()
        self.forge = Forge(lifetime=3600)
        self.verifier = self.forge.verifier()
        self.runner.run(self._open(url))

    async def _open(self, url: str) -> None:
        self.connection = await aio_pika.connect(url)
        self.channel: AbstractChannel = await self.connection.channel()
        self.queue: AbstractQueue = await rabbitmq.declare_dead_letters(
            self.channel, f"mqauth-{uuid.uuid4().hex}"
        )

    def close(self) -> None:
        """Delete the queue and disconnect."""

        async def end() -> None:
            await self.queue.delete(if_unused=False, if_empty=False)
            await self.connection.close()

        self.runner.run(end())
        self.runner.close()

    def there_and_back(self, native: aio_pika.Message) -> Verified:
        """Publish a message signed, get it as the broker has it, and verify it."""
        return self.runner.run(self._there_and_back(native))

    async def _there_and_back(self, native: aio_pika.Message) -> Verified:
        producer = rabbitmq.Producer(self.channel.default_exchange, self.forge.signer())
        await producer.publish(native, self.queue.name)
        incoming = await self.queue.get(timeout=10)
        await incoming.ack()
        message = rabbitmq.from_native(incoming, queue=self.queue.name)
        candidate = self.verifier.open(message)
        return self.verifier.verify(
            message, candidate, self.forge.keys, self.forge.clock.now()
        )


@pytest.fixture(scope="module")
def loopback(rabbitmq: RabbitMQ) -> Iterator[Loopback]:
    """A loopback for all examples."""
    loopback = Loopback(rabbitmq.url)
    yield loopback
    loopback.close()


@settings(
    max_examples=nightly(150, otherwise=50),
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@example(
    headers=EVERY_TYPE, properties={"content_type": "", "type": "t", "app_id": "é" * 127}
)
@given(headers=HEADERS, properties=PROPERTIES)
def test_every_value_survives(
    loopback: Loopback, headers: dict[str, Any], properties: dict[str, str]
) -> None:
    """Headers of every type and properties of every text verify after a real round trip, as they were bound."""
    native = aio_pika.Message(b"body", headers=dict(headers), **properties)  # type: ignore[arg-type]
    native.message_id = native.message_id or "m"
    bound = rabbitmq.to_message(native, exchange="", routing_key=loopback.queue.name)
    verified = loopback.there_and_back(native)
    assert native.headers == headers
    assert dict(verified.headers) == dict(bound.headers)
    assert len(verified.headers) == len(headers)
    assert verified.properties == bound.properties
    assert verified.destination == destination.rabbitmq("", loopback.queue.name)


def test_blind_copies_are_not_bound(loopback: Loopback) -> None:
    """RabbitMQ removes BCC before it delivers, so BCC is not bound and the message verifies."""
    verified = loopback.there_and_back(
        aio_pika.Message(b"", headers={"BCC": ["other"], "kept": 1})
    )
    assert verified.headers == (("kept", 1),)
    assert "BCC" not in verified.native.headers
