"""What every client of Kafka promises, on the real broker: a silent broker, a slow handler, a damaged record."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from confluent_kafka import Producer
from kafka import KafkaProducer

from integration import scale
from integration.client_bench import BESIDE_GRACE, ClientBench
from integration.every_client import KAFKA, LONG, Consuming, Running
from integration.relay_kafka import Relay
from integration.services import Kafka
from mqauth.brokers import aiokafka, confluent, kafka
from mqauth.brokers.log.records import (
    CommitUnansweredError,
    PoisonRecordError,
    ProducerFatalError,
)
from mqauth.errors import RetryLater
from mqauth.testing.loop_thread import LoopThread
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_aiokafka import AiokafkaClients
from mqauth.testing.stage_confluent import ConfluentClients
from mqauth.testing.stage_kafka import servers
from mqauth.wire.message import Message

# FastStream's client, which is left where its own stop hangs, warns of its sockets once it is collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
SESSION = {"session_timeout_ms": 6000}
LIBRDKAFKA = SESSION | {"topic_metadata_refresh_interval_ms": 300_000}
"""The second is the client's default: one that asks each second may lose all its brokers for good in a freeze."""
OURS = {
    name: KAFKA[name]
    for name in ("kafka-python", "confluent", "confluent+aio", "aiokafka")
}
"""Every client of Kafka whose consumer is ours."""
SKIPPING = {name: KAFKA[name] for name in ("kafka-python", "aiokafka")}
"""Those that can skip records."""


class NotUtf8(str):
    """A header name that kafka-python sends as bytes that are no UTF-8."""

    def encode(self, *_: Any) -> bytes:  # type: ignore[override]
        """Return what no reader of kafka-python can decode."""
        return b"\xff\xfe"


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
    consuming, settings = (
        OURS[name],
        LIBRDKAFKA if name.startswith("confluent") else SESSION,
    )
    while rounds:
        with (
            suppress(CommitUnansweredError),
            consuming(bench.wiring(client=settings, grace=2)) as running,
        ):
            health: Any = running.health
            while rounds and health().running:
                bench.send(b"%d" % sent)
                wait_until(lambda: b"%d" % sent in bench.handled)  # noqa: B023
                bench.send(b"%d" % (sent + 1))
                bench.broker.pause()
                threading.Event().wait(random.uniform(15, 20))
                bench.broker.resume()
                bench.send(b"%d" % (sent + 2))
                for_long(
                    lambda: b"%d" % (sent + 2) in bench.handled or not health().running  # noqa: B023
                )
                rounds, sent = rounds - 1, sent + 3
    with consuming(bench.wiring(client=settings)):
        bench.send(b"last")
        wait_until(
            lambda: {b"%d" % number for number in range(sent)} <= set(bench.handled)
        )
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
        async with aiokafka.Consumer(
            client, bench.guard(), handler, dead_letters=letters
        ):
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


@pytest.fixture(params=OURS.values(), ids=OURS)
def ours(request: pytest.FixtureRequest) -> Consuming:
    """Each client whose consumer is ours."""
    return request.param  # type: ignore[no-any-return]


def until_it_ends(running: Running) -> None:
    """Wait until a consumer has ended by itself."""
    health: Any = running.health
    wait_until(lambda: not health().running)


@pytest.mark.parametrize("policy", ["stop", "skip"])
@pytest.mark.parametrize("consuming", SKIPPING.values(), ids=SKIPPING)
def test_a_header_that_cannot_be_parsed(
    consuming: Consuming, bench: ClientBench, policy: str
) -> None:
    """A header's name that is not UTF-8 ends the consumer by name, or its batch is audited and skipped."""
    bench.send(b"0")
    bench.stage._client.send(
        bench.source, value=b"poison", headers=[(NotUtf8("x"), b"v")]
    ).get(timeout=30)
    bench.send(b"1")
    wiring = bench.wiring(consumer={"on_poison": policy})
    if policy == "stop":
        with (
            pytest.raises(PoisonRecordError, match="offset 1 to 1 cannot be parsed"),
            consuming(wiring) as running,
        ):
            until_it_ends(running)
    else:
        with consuming(wiring):
            wait_until(lambda: bench.has_handled(2))
    expected = [b"0"] if policy == "stop" else [b"0", b"1"]
    assert (bench.handled, bench.committed(), bench.letters()) == (
        expected,
        2 * len(expected) - 1,
        [],
    )
    assert ("unparseable" in bench.audit.path.read_text("utf-8")) is (policy == "skip")


@pytest.mark.parametrize("name", ["confluent", "confluent+aio"])
def test_a_header_that_kills(name: str, bench: ClientBench) -> None:
    """A header's name that is not UTF-8, which would end the process, is one dead letter; its neighbours go on."""
    # So many that the interpreter has specialised the call that reads headers, and then checks no error of it.
    before = [b"%d" % number for number in range(100)]
    bench.send(*before)
    bench.stage._client.send(
        bench.source, value=b"poison", headers=[(NotUtf8("x"), b"v")]
    ).get(timeout=30)
    bench.send(b"after")
    with OURS[name](bench.wiring()):
        wait_until(lambda: bench.handled == [*before, b"after"])
    (letter,) = bench.stage.letters()
    assert (letter.body, letter.occurrences("mqauth-dead-reason")) == (
        b"poison",
        (b"message_malformed",),
    )
    assert bench.committed() == 102


def test_a_batch_that_cannot_be_parsed(ours: Consuming, bench: ClientBench) -> None:
    """A batch with a wrong checksum ends the consumer by name; nothing of it is begun or committed, or lost."""
    relay = Relay(bench.stage.servers[0])
    relay.swaps = {b"rotten apple": b"rotten pears"}
    checking = (
        {"check_crcs": True}
        if ours in (KAFKA["confluent"], KAFKA["confluent+aio"])
        else {}
    )
    wiring = replace(
        bench.wiring(client=SESSION | checking), url=f"kafka://{relay.server}"
    )
    bench.send(b"0")
    named = pytest.raises(PoisonRecordError, match=r"offset 1.* cannot be parsed")
    with named, ours(wiring) as running:
        wait_until(lambda: bench.committed() == 1)
        bench.send(b"rotten apple", b"2")
        until_it_ends(running)
    relay.close()
    assert (bench.handled, bench.committed(), bench.letters()) == ([b"0"], 1, [])
    with ours(bench.wiring(client=SESSION)):
        wait_until(lambda: bench.handled == [b"0", b"rotten apple", b"2"])


def test_reads_on_after_a_stop(ours: Consuming, bench: ClientBench) -> None:
    """Whoever goes on with the client after a stop reads on at the first record that is not settled."""
    bench.send(b"0", b"1", b"2")
    put_off = threading.Event()

    def handler(message: Any) -> None:
        if message.body == b"1":
            put_off.set()
            raise RetryLater("not now")
        bench.handled.append(message.body)

    with ours(bench.wiring(handler)) as running:
        assert put_off.wait(60)
        running.stop()
        assert (running.read_on or bytes)() == b"1"
    assert (bench.handled, bench.committed()) == ([b"0"], 1)


def test_an_answer(ours: Consuming, bench: ClientBench) -> None:
    """What ``Verified.reply`` sends is signed, with the correlation id, on the topic that the request names."""
    request = Message(
        destination=bench.stage.destination, body=b"ask", key=b"k",
        headers=(("reply-to", bench.stage.dead.encode()), ("correlation-id", b"7")),
    )  # fmt: skip
    bench.stage.produce(bench.forge.signer(), request)

    def handler(message: Any) -> Any:
        sent = message.reply(b"yes")
        # In an event loop it is awaited there.
        return sent if isinstance(sent, Awaitable) else sent.get(30) and None

    with ours(bench.wiring(handler, replies=bench.forge.signer())):
        wait_until(lambda: len(bench.letters()) == 1)
    (answer,) = bench.stage.letters()
    verifier = bench.forge.verifier()
    verified = verifier.verify(
        answer, verifier.open(answer), bench.forge.keys, bench.forge.clock.now()
    )
    assert (verified.body, verified.properties) == (b"yes", {"correlation-id": "7"})


async def _made(make: Callable[..., Any], *arguments: Any) -> Any:
    """Make something on an event loop."""
    return make(*arguments)


def letters_of(name: str, bench: ClientBench, transactional_id: str) -> Any:
    """Return a client's transactional letters."""
    servers, identity = bench.stage.servers, f"{bench.stage.group}.{transactional_id}"
    if name == "kafka-python":
        return kafka.TransactionalDeadLetters(
            lambda: KafkaProducer(bootstrap_servers=servers, transactional_id=identity),
            bench.stage.dead,
        )
    if name == "aiokafka":
        # They begin on an event loop, and have threads for what waits.
        thread = bench.ending.enter_context(closing(LoopThread()))
        return thread.call(
            _made(
                aiokafka.TransactionalDeadLetters,
                lambda: AIOKafkaProducer(
                    bootstrap_servers=servers, transactional_id=identity
                ),
                bench.stage.dead,
                10,
            )
        )
    config = ConfluentClients(servers, "").producer_settings(transactional_id=identity)
    return confluent.TransactionalDeadLetters(
        lambda: Producer(config), bench.stage.dead, 10, config=config
    )


def transactional(
    name: str, bench: ClientBench, letters: Any
) -> AbstractContextManager[Running]:
    """Return what consumes with transactional letters."""
    committed = (
        {} if name.startswith("confluent") else {"isolation_level": "read_committed"}
    )
    return OURS[name](bench.wiring(letters=letters, client=committed))


@pytest.mark.parametrize("name", OURS)
def test_a_transaction(name: str, bench: ClientBench) -> None:
    """Letters are committed with their offsets, in their order, one too large for the broker in a smaller form."""
    bench.stage.remove_dead_letters()
    bench.stage.create(bench.stage.dead, config={"max.message.bytes": "4000"})
    bench.forge_some(b"a", b"x" * 5000, b"b")
    bench.send(b"0")
    with transactional(name, bench, letters_of(name, bench, "a")):
        wait_until(lambda: bench.committed() == 4)
    bodies = bench.letters()
    assert (len(bodies), bodies[0], bodies[2], bench.handled) == (3, b"a", b"b", [b"0"])
    assert bodies[1] != b"x" * 5000


@pytest.mark.parametrize("name", OURS)
def test_a_fenced_consumer(name: str, bench: ClientBench) -> None:
    """A second consumer with the same transactional id shuts the first one out, which stops at once."""
    bench.forge_some(b"a")
    young = letters_of(name, bench, "same")
    named = pytest.raises(ProducerFatalError, match="transactional id")
    with named, transactional(name, bench, letters_of(name, bench, "same")) as old:
        wait_until(lambda: bench.letters() == [b"a"])
        young.prepare()
        bench.forge_some(b"b")
        until_it_ends(old)
    with transactional(name, bench, young):
        wait_until(lambda: bench.letters() == [b"a", b"b"])


@pytest.mark.slow
def test_rebalances_beside_transactions(bench: ClientBench) -> None:
    """Consumers that come and go while letters are committed double none and lose none."""
    bench.stage.admin.create_partitions({bench.source: 4})

    def consumer(name: str) -> tuple[Any, kafka.Consumer]:
        client = bench.stage.consumer(isolation_level="read_committed")
        letters = letters_of("kafka-python", bench, name)
        return client, kafka.Consumer(
            client, bench.guard(), bench.handle, dead_letters=letters
        )

    sent: list[bytes] = []

    def forge_more() -> None:
        for number in range(len(sent), len(sent) + 100):
            sent.append(b"%d" % number)
            message = Message(
                destination=bench.stage.destination, body=sent[-1], key=sent[-1]
            )
            bench.stage.inject(message)

    client, first = consumer("0")
    with first:
        for _ in range(5):
            forge_more()
            other, second = consumer("1")
            with second:
                wait_until(lambda other=other: bool(other.assignment()))  # type: ignore[misc]
                forge_more()
            other.close()
        wait_until(lambda: len(bench.letters()) >= len(sent))
    client.close()
    assert Counter(bench.letters()) == Counter(sent)
