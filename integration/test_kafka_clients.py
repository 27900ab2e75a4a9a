"""What every client of Kafka promises, on the real broker: a silent broker, a slow handler, a missing codec."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from integration import scale
from integration.client_bench import BESIDE_GRACE, ClientBench
from integration.every_client import KAFKA, LONG, Consuming
from integration.services import Kafka
from mqauth.brokers import aiokafka
from mqauth.brokers.log.records import CommitUnansweredError, dead_letter_headers
from mqauth.errors import ConfigurationError
from mqauth.testing.loop_thread import LoopThread
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_aiokafka import AiokafkaClients
from mqauth.testing.stage_kafka import servers

# FastStream's client, which is left where its own stop hangs, warns of its sockets once it is collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SESSION = {"session_timeout_ms": 6000}
LIBRDKAFKA = SESSION | {"topic_metadata_refresh_interval_ms": 300_000}
"""The second is the client's default: one that asks each second may lose all its brokers for good in a freeze."""
OURS = {name: KAFKA[name] for name in ("kafka-python", "confluent", "confluent+aio", "aiokafka")}
"""Every client of Kafka whose consumer is ours."""
SKIPPING = {name: KAFKA[name] for name in ("kafka-python", "aiokafka")}
"""Those that can skip records."""


@pytest.fixture
def bench(kafka: Kafka, tmp_path: Path) -> Iterator[ClientBench]:
    """A bench; the broker runs when it ends."""
    found = ClientBench(kafka, tmp_path)
    with found.ending:
        yield found
    gc.collect()


@pytest.fixture(params=KAFKA.values(), ids=KAFKA)
def client(request: pytest.FixtureRequest) -> Consuming:
    """Each client."""
    return request.param  # type: ignore[no-any-return]


def for_long(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds, for two minutes at most."""
    with suppress(TimeoutError):
        return wait_until(condition)
    wait_until(condition)


@pytest.mark.slow
class TestSilentBroker:
    """A broker that is frozen answers nothing, and keeps its connections open."""

    def test_idle(self, client: Consuming, bench: ClientBench) -> None:
        """A consumer that waits for messages stops within seconds."""
        bench.send(b"first")
        with client(bench.wiring(grace=0.5)) as running:
            wait_until(lambda: bench.handled == [b"first"])
            assert bench.stopped_within(running) < 0.5 + BESIDE_GRACE

    def test_while_it_waits(self, client: Consuming, bench: ClientBench) -> None:
        """A consumer whose broker has been frozen for a while, so that calls wait for it, stops within seconds."""
        bench.send(b"first")
        with client(bench.wiring(grace=0.5)) as running:
            wait_until(lambda: bench.handled == [b"first"])
            bench.broker.pause()
            threading.Event().wait(4)
            assert bench.stopped_within(running) < 0.5 + BESIDE_GRACE

    def test_a_handler_runs(self, client: Consuming, bench: ClientBench) -> None:
        """A handler has its grace; its message is settled or comes again, and no other one is lost."""
        begun = threading.Event()

        def handler(message: Any) -> None:
            begun.set()
            threading.Event().wait(1)
            bench.handled.append(message.body)

        bench.send(b"first")
        with client(bench.wiring(handler, grace=2)) as running:
            assert begun.wait(60)
            assert bench.stopped_within(running) < 2 + BESIDE_GRACE
        wait_until(lambda: bench.handled == [b"first"])
        bench.send(b"second")
        with client(bench.wiring()):
            wait_until(lambda: b"second" in bench.handled)


@pytest.mark.slow
@pytest.mark.parametrize("name", OURS)
def test_a_freeze_that_is_over(name: str, bench: ClientBench) -> None:
    """After a freeze of the broker a consumer goes on, or ends with an error where its client is lost."""
    rounds, sent = scale.nightly(100, otherwise=1), 0
    consuming, settings = OURS[name], LIBRDKAFKA if name.startswith("confluent") else SESSION
    while rounds:
        with suppress(CommitUnansweredError), consuming(bench.wiring(client=settings, grace=2)) as running:
            health: Any = running.health
            while rounds and health().running:
                bench.send(b"%d" % sent)
                wait_until(lambda: b"%d" % sent in bench.handled)  # noqa: B023
                bench.send(b"%d" % (sent + 1))
                bench.broker.pause()
                threading.Event().wait(random.uniform(15, 20))
                bench.broker.resume()
                bench.send(b"%d" % (sent + 2))
                for_long(lambda: b"%d" % (sent + 2) in bench.handled or not health().running)  # noqa: B023
                rounds, sent = rounds - 1, sent + 3
    with consuming(bench.wiring(client=settings)):
        bench.send(b"last")
        wait_until(lambda: {b"%d" % number for number in range(sent)} <= set(bench.handled))
        wait_until(lambda: bench.committed() == sent + 1)
    assert bench.stage.letters() == []


@pytest.mark.slow
def test_a_handler_that_blocks_for_longer_than_the_session(bench: ClientBench) -> None:
    """A plain handler that blocks the event loop for longer than the session runs once, and is committed."""
    bench.send(b"0", b"1", b"2")

    def handler(message: Any) -> None:
        bench.handled.append(message.body)
        threading.Event().wait(8)

    async def play() -> None:
        clients = AiokafkaClients(servers(bench.broker.url), bench.stage.group)
        client = await clients.consumer(bench.stage.topic, **SESSION)
        producer = await clients.producer()
        letters = aiokafka.DeadLetters(producer, bench.stage.dead)
        async with aiokafka.Consumer(client, bench.guard(), handler, dead_letters=letters):
            async with asyncio.timeout(100):
                while await asyncio.to_thread(bench.committed) < 3:  # noqa: ASYNC110
                    await asyncio.sleep(0.2)
        await client.stop()
        await producer.stop()

    thread = LoopThread()
    try:
        thread.call(play(), LONG)
    finally:
        thread.close()
    assert Counter(bench.handled) == {b"0": 1, b"1": 1, b"2": 1}


@pytest.mark.parametrize("consuming", SKIPPING.values(), ids=SKIPPING)
def test_a_codec_that_is_not_installed(
    consuming: Consuming, bench: ClientBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Honest records in a codec that is missing here are not skipped: the consumer ends, and names the package."""
    monkeypatch.setattr("kafka.codec.has_zstd", lambda: False)
    monkeypatch.setattr("aiokafka.codec.has_zstd", lambda: False)
    producer = Producer(
        {"bootstrap.servers": servers(bench.broker.url)[0], "compression.type": "zstd", "linger.ms": 500}
    )

    def consume() -> None:
        bench.send(b"plain")
        with consuming(bench.wiring(consumer={"on_poison": "skip"})) as running:
            health: Any = running.health
            wait_until(lambda: bench.committed() == 1)
            for number in range(30):
                message = bench.signed(b"x" * 200 + b"%d" % number)
                headers: Any = dead_letter_headers(message.headers)
                producer.produce(bench.stage.topic, message.body, message.key, headers=headers)
            assert producer.flush(60) == 0
            wait_until(lambda: not health().running)

    with pytest.raises(ConfigurationError, match=r"compressed with zstd.*pip install (zstandard|cramjam)$"):
        consume()
    assert (bench.handled, bench.committed(), bench.stage.letters()) == ([b"plain"], 1, [])
