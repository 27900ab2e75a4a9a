"""The soak's brokers: each with a Redis of its own and two consumer processes, one of which is hunted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from unittest.mock import patch

import aio_pika
from pamqp import commands

from integration.chaos.conftest import INTERCEPTOR
from integration.chaos.rabbitmq_scene import BlockingScene
from integration.chaos.row import Letter
from integration.services import Kafka, RabbitMQ, Redis
from integration.victim import Orders
from integration.waiting import until
from mqauth.brokers import rabbitmq
from mqauth.brokers.rabbitmq.channel import LOST, closing_is_an_error

with warnings.catch_warnings():
    # kafka-python reads its schemas by deprecated functions.
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka as kafka_python
    import kafka.admin as kafka_admin
    from kafka import TopicPartition
    from kafka.errors import KafkaError

    from integration.chaos import kafka_scene
    from mqauth.brokers import kafka

R = TypeVar("R")
AGAIN = 0.2
GLANCE = 10.0
PATIENCE = 150.0
"""Seconds: Kafka's client gives a record up after two minutes."""
WIDE, NARROW = "1048588", "1"
"""Bytes that a topic lets a batch have: Kafka's own default, and none at all."""
_ROOT = Path(__file__).resolve().parents[1]
_PYTHON: Any = kafka_python
_ADMIN: Any = kafka_admin


class Process:
    """A consumer process that can be killed and started again."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._read = 0
        Path(orders.handled).touch()
        self.start()

    def start(self) -> None:
        """Start it."""
        with Path(self._orders.handled + ".log").open("ab") as log:
            self._process = subprocess.Popen(self._orders.command, cwd=_ROOT, stderr=log)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def kill(self) -> None:
        """Kill it by SIGKILL."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """Stop it gracefully, or kill it where it does not heed."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self.kill()

    def handled(self) -> list[bytes]:
        """Return the bodies it has handled since the last call."""
        with Path(self._orders.handled).open("rb") as file:
            file.seek(self._read)
            whole, _, _ = file.read().rpartition(b"\n")
        self._read += len(whole) + bool(whole)
        return whole.split(b"\n") if whole else []


class Driver(ABC):
    """One broker with its queues or topics, its consumer processes, and the ways to break them.

    Bodies are unique. Every call may come while a fault is on, from another thread than the fault's.
    """

    name: ClassVar[str]
    orders: ClassVar[dict[str, Any]]
    """What consumer processes are to do."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._processes: dict[str, Process] = {}
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        with patch.dict(os.environ):
            for variable in (
                "MQAUTH_REDIS_URL",
                "MQAUTH_KAFKA_URL",
                "MQAUTH_RABBITMQ_URL",
            ):
                os.environ.pop(variable, None)
            self._broker: Any = self._stack.enter_context(self.launch())
            self._redis = self._stack.enter_context(Redis.launch())
        self._scene = self.scene()
        for name in ("steady", "hunted"):
            self._processes[name] = Process(
                self._scene.orders(
                    redis=self._redis.url, handled=str(self._folder / name),
                    audit=str(self._folder / f"{name}.jsonl"), **self.orders,
                )
            )  # fmt: skip

    @abstractmethod
    def launch(self) -> Any:
        """Return the broker, to be entered."""

    @abstractmethod
    def scene(self) -> Any:
        """Return its queues or topics."""

    @abstractmethod
    def publish(self, honest: Sequence[bytes], forged: Sequence[bytes]) -> None:
        """Publish these, each again until it is confirmed."""

    @abstractmethod
    def letters(self) -> Iterable[Letter]:
        """Take the dead letters there are; fewer, or none, while the broker is gone."""

    @abstractmethod
    def letters_gone(self, seconds: float) -> None:
        """Have the broker take no dead letters for so long."""

    def handled(self) -> Iterable[bytes]:
        """Return the body of each handler run since the last call."""
        return [
            body for process in self._processes.values() for body in process.handled()
        ]

    def processes(self) -> Mapping[str, int]:
        """Return the consumer processes there are: a name that outlives a restart, and the process id."""
        return {name: process.pid for name, process in self._processes.items()}

    def faults(self) -> Mapping[str, Callable[[float], None]]:
        """Return the faults by name: each breaks something for so many seconds and mends it again."""
        broker, redis, hunted = self._broker, self._redis, self._processes["hunted"]

        def away(
            end: Callable[[], None], start: Callable[[], None]
        ) -> Callable[[float], None]:
            def fault(seconds: float) -> None:
                end()
                time.sleep(seconds)
                start()

            return fault

        return {
            "broker restarted": lambda _: broker.restart(),
            "broker killed": away(broker.kill, broker.start),
            "broker paused": away(broker.pause, broker.resume),
            "Redis stopped": away(redis.stop, redis.start),
            "consumer killed": away(hunted.kill, hunted.start),
            "consumer away": away(hunted.stop, hunted.start),
            "dead letters gone": self.letters_gone,
        }

    def close(self) -> None:
        """End it all."""
        for process in self._processes.values():
            process.stop()
        # Whatever state a failed soak is in.
        with suppress(Exception):
            self._scene.strike()
        self._stack.close()


class RabbitMQDriver(Driver):
    """RabbitMQ for the soak."""

    name = "rabbitmq"
    orders: ClassVar = {"lease": 15, "at_once": 50}

    def launch(self) -> Any:
        """Return a RabbitMQ that stamps what it receives, and an event loop for it."""
        # aio-pika's own.
        warnings.filterwarnings(
            "ignore", "coroutine 'Connection.close' was never awaited"
        )
        self._taking = threading.Lock()
        self._seen: set[str | None] = set()
        return RabbitMQ.launch(extra_config=[INTERCEPTOR])

    def scene(self) -> BlockingScene:
        """Return a source, and a classic dead-letter queue, which can be deleted only when empty."""
        scene = BlockingScene(self._broker, self._folder, lifetime=600)
        scene.call(scene.publishing.queue_delete(scene.dead))
        scene.call(self._declare_dead(scene.dead))
        # Or a kill soon after it could take a young quorum queue with it.
        self._broker.restart()
        return scene

    def publish(self, honest: Sequence[bytes], forged: Sequence[bytes]) -> None:
        """Publish these, each again until it is confirmed."""

        async def publish() -> None:
            await asyncio.gather(
                *(self._confirmed(self._signed, body) for body in honest),
                *(self._confirmed(self._unsigned, body) for body in forged),
            )

        self._scene.call(publish())

    async def _confirmed(
        self, publish: Callable[[bytes], Coroutine[Any, Any, Any]], body: bytes
    ) -> None:
        while True:
            try:
                async with asyncio.timeout(10):
                    with closing_is_an_error():
                        await publish(body)
            except (*LOST, TimeoutError, RuntimeError):
                await asyncio.sleep(AGAIN)
            else:
                return

    async def _signed(self, body: bytes) -> None:
        producer = rabbitmq.Producer(
            self._scene.publishing.default_exchange, self._scene.forge.signer()
        )
        await producer.publish(aio_pika.Message(body, delivery_mode=2), self._scene.name)

    async def _unsigned(self, body: bytes) -> None:
        exchange = self._scene.publishing.default_exchange
        result = await exchange.publish(
            aio_pika.Message(body, delivery_mode=2), self._scene.name
        )
        # It was returned: aio-pika raises nothing.
        if not isinstance(result, commands.Basic.Ack):
            raise TimeoutError

    def letters(self) -> Iterable[Letter]:
        """Take letters, each noted before it is acked, and once: an ack that gets lost brings it again."""
        found: list[Letter] = []

        async def take() -> None:
            async with (
                asyncio.timeout(GLANCE),
                await aio_pika.connect(self._broker.url) as connection,
            ):
                queue = await (await connection.channel()).get_queue(
                    self._scene.dead, ensure=False
                )
                while (letter := await queue.get(fail=False)) is not None:
                    if letter.message_id not in self._seen:
                        self._seen.add(letter.message_id)
                        found.append(
                            Letter.of(
                                rabbitmq.from_native(letter, queue=self._scene.dead)
                            )
                        )
                    await letter.ack()

        with self._taking, suppress(*LOST, TimeoutError, RuntimeError):
            self._scene.call(take())
        return found

    def letters_gone(self, seconds: float) -> None:
        """Delete the dead-letter queue at a moment when nothing would go with it."""

        async def delete() -> None:
            while True:
                try:
                    async with await aio_pika.connect(self._broker.url) as connection:
                        await (await connection.channel()).queue_delete(
                            self._scene.dead, if_empty=True
                        )
                except aio_pika.exceptions.ChannelPreconditionFailed:
                    await asyncio.sleep(AGAIN)
                else:
                    return

        self._scene.call(delete())
        time.sleep(seconds)
        self._scene.call(self._declare_dead(self._scene.dead))

    async def _declare_dead(self, name: str) -> None:
        async with await aio_pika.connect(self._broker.url) as connection:
            arguments: dict[str, Any] = {
                "x-queue-type": "classic",
                "x-overflow": "reject-publish",
            }
            await (await connection.channel()).declare_queue(
                name, durable=True, arguments=arguments
            )


class KafkaDriver(Driver):
    """Kafka for the soak."""

    name = "kafka"
    orders: ClassVar = {"at_once": 100}

    def launch(self) -> Any:
        """Return a Kafka."""
        self._reader: Any = None
        return Kafka.launch()

    def scene(self) -> kafka_scene.Scene:
        """Return a source of four partitions."""
        scene = kafka_scene.Scene(
            self._broker.url, self._folder, partitions=4, lifetime=600
        )
        self._producer = kafka.Producer(scene.publishing, scene.forge.signer())
        return scene

    def publish(self, honest: Sequence[bytes], forged: Sequence[bytes]) -> None:
        """Publish these over all partitions, each again until it is confirmed."""
        waiting: list[tuple[Any, bytes]] = [
            (self._producer.send, body) for body in honest
        ]
        waiting += [(self._scene.publishing.send, body) for body in forged]
        while waiting:
            sent, again = [], []
            for number, (send, body) in enumerate(waiting):
                partition = number % len(self._scene.places)
                try:
                    sent.append(
                        (
                            (send, body),
                            send(
                                self._scene.name,
                                value=body,
                                key=b"k",
                                partition=partition,
                            ),
                        )
                    )
                except KafkaError:
                    again.append((send, body))
            for each, future in sent:
                try:
                    future.get(timeout=PATIENCE)
                except KafkaError:
                    again.append(each)
            waiting = again

    def letters(self) -> Iterable[Letter]:
        """Return the dead letters since the last call."""
        found: list[Letter] = []
        with suppress(KafkaError):
            if self._reader is None:
                servers = self._scene.stage.servers
                self._reader = self._scene.keep(
                    _PYTHON.KafkaConsumer(
                        bootstrap_servers=servers, auto_offset_reset="earliest"
                    )
                )
                self._reader.assign([TopicPartition(self._scene.dead, 0)])
            while records := self._reader.poll(timeout_ms=100):
                for record in (
                    record for several in records.values() for record in several
                ):
                    found.append(Letter.of(kafka.from_native(record, scope="soak")))
        return found

    def letters_gone(self, seconds: float) -> None:
        """Have the broker refuse dead letters; a topic deleted would take the letters it has along."""
        for most in (NARROW, WIDE):
            kind = _ADMIN.ConfigResourceType.TOPIC
            wanted = _ADMIN.ConfigResource(
                kind, self._scene.dead, configs={"max.message.bytes": most}
            )

            def done(wanted: Any = wanted) -> bool:
                with suppress(KafkaError):
                    self._scene.stage.admin.alter_configs([wanted])
                    return True
                return False

            # As soon as the broker answers.
            until(done)
            if most is NARROW:
                time.sleep(seconds)


DRIVERS = {"rabbitmq": RabbitMQDriver, "kafka": KafkaDriver}
