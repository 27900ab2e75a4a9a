"""RabbitMQ's interceptor is proved, never believed: on every client, where it is on, and where it is off."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import aio_pika
import pytest

from integration.client_bench import ClientBench
from integration.every_client import RABBITMQ, Consuming
from integration.rollout_world import Shifted
from integration.services import RabbitMQ
from integration.wire import Wire
from mqauth import Pipeline
from mqauth.brokers import pika, rabbitmq
from mqauth.brokers.amqp_messages import APPEND_HEADER
from mqauth.brokers.pika import consumer as pika_queue
from mqauth.brokers.pika.link import LOST
from mqauth.brokers.pika.translate import to_properties
from mqauth.brokers.rabbitmq import channel as rabbitmq_channel
from mqauth.cli import main as command
from mqauth.errors import ConfigurationError, MqauthError, Reason
from mqauth.judging.verifier import Issuer
from mqauth.testing.loop_thread import LoopThread
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_pika import connect
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire.destination import parse
from mqauth.wire.keys import Key, KeySet, Revocation
from mqauth.wire.message import Message

APPEND: dict[str, Any] = {
    "at": "append",
    "max_queue_age": 604_800,
    "append_evidence": "interceptor",
}
BELIEVED = "append_evidence: RabbitMQ leaves the timestamp_in_ms of a sender as it is"
HOUR = 3600


class Bench(ClientBench):
    """A queue, and a consumer that judges its messages by the append times of the broker.

    Args:
        broker: has the queue.
        folder: for a folder with the audit.
        settings: of the verifier.
    """

    def __init__(self, broker: RabbitMQ, folder: Path, **settings: Any) -> None:
        own = folder / broker.url[-6:-1]
        own.mkdir()
        super().__init__(broker, own)
        self.stolen = replace(
            Key.generate(subjects=[self.forge.subject]),
            revocation=Revocation(reason="stolen", revoked_at=int(time.time()) - HOUR),
        )
        self.clock = Shifted()
        trusted = {self.forge.issuer: Issuer(keys=KeySet([self.forge.key, self.stolen]))}
        self._verifier = self.forge.verifier(keys=trusted, **APPEND | settings)

    def guard(self, **settings: Any) -> Pipeline:
        """Return a pipeline that goes by append times."""
        return super().guard(verifier=self._verifier, clock=self.clock, **settings)

    def forge_with_the_stolen_key(self, body: bytes, url: str | None = None) -> None:
        """Publish a message of a thief, who dates it back to before the key was revoked."""
        then = Shifted()
        then.hours = -2
        signed = self.forge.signer(key=self.stolen, clock=then).sign(
            Message(destination=self.stage.destination, body=body)
        )
        forged = replace(
            signed, headers=(*signed.headers, (APPEND_HEADER, int(then.now() * 1000)))
        )
        exchange, key = parse(forged.destination)[1:]
        with connect(url or self.broker.url) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish(
                exchange, key, forged.body or b"", to_properties(forged)
            )

    def reasons(self) -> list[str]:
        """Return why messages were dead-lettered."""
        return [
            str(dict(letter.headers)["mqauth-dead-reason"])
            for letter in self.stage.letters()
        ]


def queues_of_the_question(broker: RabbitMQ) -> set[str]:
    """Return the names of a broker's queues whose name the broker has given."""
    return {
        name
        for name in broker.ctl("-q", "list_queues", "name").split()
        if name.startswith("amq.gen-")
    }


@pytest.fixture
def bench(own_rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Bench]:
    """A bench on the RabbitMQ with the interceptor."""
    found = Bench(own_rabbitmq, tmp_path)
    with found.ending:
        yield found


@pytest.fixture
def plain(believing: RabbitMQ, tmp_path: Path) -> Iterator[Bench]:
    """A bench on a RabbitMQ without it."""
    found = Bench(believing, tmp_path)
    with found.ending:
        yield found


@pytest.fixture(params=RABBITMQ.values(), ids=RABBITMQ)
def client(request: pytest.FixtureRequest) -> Consuming:
    """Each client."""
    return request.param  # type: ignore[no-any-return]


def test_a_backlog_is_judged_by_the_broker(client: Consuming, bench: Bench) -> None:
    """With the interceptor a token may end while its message waits."""
    bench.send(b"an order")
    bench.clock.hours = 24
    with client(bench.wiring()):
        wait_until(lambda: bench.handled == [b"an order"])
    assert bench.reasons() == []


def test_a_thief_cannot_date_back(client: Consuming, bench: Bench) -> None:
    """The broker overwrites his stamp, and the key that was revoked before it is refused."""
    bench.forge_with_the_stolen_key(b"a transfer")
    with client(bench.wiring()):
        wait_until(lambda: bench.reasons() == ["key_revoked"])
    assert bench.handled == []


def test_without_the_interceptor_no_consumer_starts(
    client: Consuming, plain: Bench
) -> None:
    """The error says what to set; nothing is consumed."""
    plain.forge_with_the_stolen_key(b"a transfer")
    with pytest.raises(ConfigurationError, match=BELIEVED), client(plain.wiring()):
        pass
    assert (plain.handled, plain.reasons()) == ([], [])


def test_nothing_is_left_of_the_question(
    own_rabbitmq: RabbitMQ, plain: Bench, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Neither beside consumers that run, one on each client, nor after those that did not start."""
    with ExitStack() as ending:
        for client in RABBITMQ.values():
            bench = Bench(own_rabbitmq, tmp_path_factory.mktemp("question"))
            ending.enter_context(bench.ending)
            bench.send(b"an order")
            ending.enter_context(client(bench.wiring()))
            wait_until(lambda bench=bench: bench.handled == [b"an order"])
            with (
                pytest.raises(ConfigurationError, match=BELIEVED),
                client(plain.wiring()),
            ):
                pass
        assert queues_of_the_question(own_rabbitmq) == set()
    assert queues_of_the_question(plain.broker) == set()


def test_unsafe_goes_without_the_proof(
    client: Consuming,
    believing: RabbitMQ,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is said at the start; and then the thief is believed."""
    bench = Bench(believing, tmp_path, unsafe_append_evidence=True)
    bench.forge_with_the_stolen_key(b"a transfer")
    with bench.ending, client(bench.wiring()):
        wait_until(lambda: bench.handled == [b"a transfer"])
    (said,) = [
        record
        for record in caplog.records
        if getattr(record, "event", "") == "client.append_unproved"
    ]
    assert (said.levelname, "nobody has proved them" in said.message) == ("WARNING", True)


@pytest.fixture(scope="module")
def account(own_rabbitmq: RabbitMQ) -> str:
    """The name of an account of the broker, without permissions; its password is its name."""
    name = f"poor-{uuid.uuid4().hex[:8]}"
    own_rabbitmq.ctl("add_user", name, name)
    return name


@pytest.mark.parametrize(
    "permissions",
    [("^orders", ".*", ".*"), (".*", "^mqauth", ".*"), (".*", ".*", "^mqauth")],
    ids=["configure", "write", "read"],
)
def test_an_account_that_may_not_ask(
    account: str, permissions: tuple[str, ...], bench: Bench
) -> None:
    """The error names the permissions, on each client, whichever of them is lacking."""
    bench.broker.ctl("set_permissions", account, *permissions)
    parts = urlsplit(bench.broker.url)
    url = parts._replace(
        netloc=f"{account}:{account}@{parts.hostname}:{parts.port}"
    ).geturl()
    for client in RABBITMQ.values():
        with (
            pytest.raises(
                ConfigurationError,
                match=r"ACCESS_REFUSED.* configure and read for \"amq.gen-",
            ),
            client(replace(bench.wiring(), url=url)),
        ):
            pass


def test_a_connection_that_is_lost_meanwhile(
    client: Consuming,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    """That is an outage: a client that connects again asks again, and pika's consumer ends with pika's error."""
    asked = []
    for module in (rabbitmq_channel, pika_queue):

        async def echoed(
            connection: Any, headers: Any, body: bytes, real: Any = module.echoed
        ) -> Any:
            asked.append(body)
            if len(asked) == 1:
                bench.broker.ctl("close_all_connections", "a test")
            return await real(connection, headers, body)

        monkeypatch.setattr(module, "echoed", echoed)
    bench.send(b"an order")
    if request.node.callspec.id == "pika":
        with pytest.raises((*LOST, MqauthError)) as raised, client(bench.wiring()):
            pass
        assert not isinstance(raised.value, ConfigurationError)
    with client(bench.wiring()):
        wait_until(lambda: bench.handled == [b"an order"])
    assert len(asked) == 2


def test_a_broker_that_is_short_of_memory(
    client: Consuming,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It answers nobody who publishes: the consumer waits, says so, and starts once the alarm is over."""
    monkeypatch.setattr("mqauth.brokers.queue.client.WITHIN", 0.5)
    bench.send(b"an order")

    with ExitStack() as alarm:

        def lets_go(record: Any) -> bool:
            if "append times" in record.getMessage():
                alarm.close()
            return True

        bench.broker.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        alarm.callback(bench.broker.ctl, "set_vm_memory_high_watermark", "0.6")
        monkeypatch.setattr(caplog.handler, "filters", [lets_go])
        with client(bench.wiring()):
            wait_until(lambda: bench.handled == [b"an order"])
    assert [record for record in caplog.records if "append times" in record.getMessage()]


async def test_a_stop_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A consumer that waits for the broker's proof still hears that it is to stop."""
    monkeypatch.setattr("mqauth.brokers.queue.client.WITHIN", 0.2)
    async with (
        await aio_pika.connect_robust(bench.broker.url) as consuming,
        await aio_pika.connect_robust(bench.broker.url) as publishing,
    ):
        queue = await (await consuming.channel()).get_queue(bench.stage.queue)
        letters = rabbitmq.DeadLetters(await publishing.channel(), bench.stage.dead)
        consumer = rabbitmq.Consumer(
            queue, bench.guard(), bench.handled.append, dead_letters=letters
        )
        bench.broker.ctl("set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            running = asyncio.create_task(consumer.run(signals=True))
            await asyncio.to_thread(wait_until, lambda: "append times" in caplog.text)
            signal.raise_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                await running
        finally:
            bench.broker.ctl("set_vm_memory_high_watermark", "0.6")


@pytest.mark.parametrize("name", ["aio-pika", "faststream"])
def test_another_broker_after_a_reconnect(
    name: str, bench: Bench, plain: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Each connection is asked: one that leads to a broker without the interceptor ends the consumer."""
    copy_topology(bench.stage, plain.broker.url)
    refused: Any = (
        pytest.raises(ConfigurationError, match=BELIEVED)
        if name == "aio-pika"
        else nullcontext()
    )
    with closing(LoopThread()) as thread:
        wire = Wire(bench.broker.url)
        thread.call(wire.__aenter__())
        with refused, RABBITMQ[name](replace(bench.wiring(), url=wire.url)):
            bench.send(b"an order")
            wait_until(lambda: bench.handled == [b"an order"])
            bench.forge_with_the_stolen_key(b"a transfer", plain.broker.url)
            wire.lead_to(plain.broker.url)
            thread.loop.call_soon_threadsafe(wire.cut)
            wait_until(
                lambda: (
                    "consumer.failed"
                    in {getattr(found, "event", "") for found in caplog.records}
                )
            )
        thread.call(wire.__aexit__(None, None, None))
    assert bench.handled == [b"an order"]


class TestOwnConsumers:
    """Who has a consumer of his own has it proved with the first delivery of a connection."""

    async def test_by_aio_pika(self, bench: Bench, plain: Bench) -> None:
        """``judge`` and ``guarded``."""
        bench.forge_with_the_stolen_key(b"a transfer")
        plain.forge_with_the_stolen_key(b"a transfer")
        for each in (bench, plain):
            async with await aio_pika.connect(each.broker.url) as connection:
                channel = await connection.channel()
                queue = await channel.get_queue(each.stage.queue)
                letters = rabbitmq.DeadLetters(channel, each.stage.dead)
                calls = rabbitmq.guarded(
                    each.guard(),
                    each.handled.append,
                    dead_letters=letters,
                    queue=queue.name,
                )
                message = await queue.get()
                assert message is not None
                if each is plain:
                    with pytest.raises(ConfigurationError, match=BELIEVED):
                        await rabbitmq.judge(each.guard(), message, queue=queue.name)
                    with pytest.raises(ConfigurationError, match=BELIEVED):
                        await calls(message)
                else:
                    judged = await rabbitmq.judge(each.guard(), message, queue=queue.name)
                    assert judged.outcome.reason is Reason.KEY_REVOKED
                    await calls(message)
        assert (bench.reasons(), plain.reasons(), bench.handled, plain.handled) == (
            ["key_revoked"],
            [],
            [],
            [],
        )

    def test_by_pika(self, bench: Bench, plain: Bench) -> None:
        """``judge``, in a callback of ``basic_consume``."""
        reasons: list[Reason | None] = []
        bench.forge_with_the_stolen_key(b"a transfer")
        plain.forge_with_the_stolen_key(b"a transfer")
        consume(bench, reasons)
        assert reasons == [Reason.KEY_REVOKED]
        with pytest.raises(ConfigurationError, match=BELIEVED):
            consume(plain, reasons)
        assert reasons == [Reason.KEY_REVOKED]


def consume(bench: Bench, reasons: list[Reason | None]) -> None:
    """Judge the message of a queue in a callback of pika's."""

    def on_message(channel: Any, method: Any, properties: Any, body: bytes) -> None:
        judged = pika.judge(
            bench.guard(), channel, method, properties, body, queue=bench.stage.queue
        )
        reasons.append(judged.reason)
        channel.stop_consuming()

    with connect(bench.broker.url) as connection:
        channel = connection.channel()
        channel.basic_consume(bench.stage.queue, on_message)
        channel.start_consuming()


def copy_topology(stage: RabbitMQStage, url: str) -> None:
    """Declare the exchange and the queues of a stage at another broker."""
    exchange, key = parse(stage.destination)[1:]
    with connect(url) as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange, "topic", durable=True)
        pika.declare_source(channel, stage.queue)
        channel.queue_bind(stage.queue, exchange, key)
        pika.declare_dead_letters(channel, stage.dead)


def test_commands_ask_the_same(
    bench: Bench, plain: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """``init --apply`` and ``check --online`` find out what a consumer would."""
    for each, proved in ((bench, True), (plain, False)):
        parts = urlsplit(each.broker.url)
        folder = tmp_path / str(parts.port)
        url = parts._replace(netloc=f"{parts.hostname}:{parts.port}").geturl()
        names = [
            "--producer",
            f"asks-{parts.port}",
            "--consumer",
            f"asked-{parts.port}",
            "--url",
            url,
        ]
        assert command(["init", str(folder), "--broker", "rabbitmq", *names]) == 0
        file = folder / "consumer" / "mqauth.toml"
        assert 'append_evidence = "interceptor"' in file.read_text("utf-8")
        capsys.readouterr()
        assert command(["init", str(folder), "--apply"]) == (0 if proved else 2)
        assert (BELIEVED in capsys.readouterr().err) is not proved
        assert command(["check", str(file), "--online", "--json"]) == (0 if proved else 1)
        asked = {
            one["what"]: one["said"]
            for one in json.loads(capsys.readouterr().out)["online"]
        }
        told = asked["append_evidence of [broker]"]
        assert told.startswith("proved: it overwrites" if proved else BELIEVED)
