"""The soak's RabbitMQ: a broker and a Redis of its own, two consumer processes, one of which is hunted."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import aio_pika
from pamqp import commands

from integration.chaos.conftest import INTERCEPTOR
from integration.chaos.count import Letter
from integration.chaos.rabbitmq_scene import Scene, until
from integration.services import RabbitMQ, Redis
from integration.victim import Orders
from mqauth.brokers import rabbitmq
from mqauth.brokers.rabbitmq.channel import LOST, closing_is_an_error

R = TypeVar("R")
LEASE = 15
PREFETCH = 50
AGAIN = 0.2
GLANCE = 10.0
_ROOT = Path(__file__).resolve().parents[1]


class Process:
    """A consumer process that can be killed and started again."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._read = 0
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


class Driver:
    """RabbitMQ for the soak."""

    name = "rabbitmq"

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._loop = asyncio.new_event_loop()
        self._letters = threading.Lock()
        self._processes: dict[str, Process] = {}
        self._seen: set[str | None] = set()

    def open(self) -> None:
        """Start broker, Redis and consumers."""
        warnings.filterwarnings("ignore", "coroutine 'Connection.close' was never awaited")  # aio-pika's own
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._broker = self._stack.enter_context(RabbitMQ.launch(extra_config=[INTERCEPTOR]))
        with patch.dict(os.environ):
            os.environ.pop("MQAUTH_REDIS_URL", None)
            self._redis = self._stack.enter_context(Redis.launch())
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._scene = Scene(self._broker.url, folder, lifetime=600)
        self._call(self._declare())
        self._broker.restart()  # or a kill soon after it could take a young quorum queue with it
        self._call(self._connected())
        for name in ("steady", "hunted"):
            (folder / name).touch()
            self._processes[name] = Process(self._orders(folder, name))

    def publish(self, honest: Sequence[bytes], forged: Sequence[bytes]) -> None:
        """Publish these, each again until it is confirmed."""
        self._call(self._publish(honest, forged))

    def handled(self) -> Iterable[bytes]:
        """Return the body of each handler run since the last call."""
        return [body for process in self._processes.values() for body in process.handled()]

    def letters(self) -> Iterable[Letter]:
        """Take the dead letters there are; none while the queue or the broker is gone."""
        with self._letters:
            return self._call(self._taken())

    def processes(self) -> Mapping[str, int]:
        """Return the consumer processes."""
        return {name: process.pid for name, process in self._processes.items()}

    def faults(self) -> Mapping[str, Callable[[float], None]]:
        """Return what can break."""
        return {
            "RabbitMQ restarted": lambda _: self._broker.restart(),
            "RabbitMQ killed": self._broker_killed,
            "RabbitMQ paused": self._broker_paused,
            "Redis stopped": self._redis_stopped,
            "dead-letter queue gone": self._letters_gone,
            "consumer killed": self._consumer_killed,
        }

    def close(self) -> None:
        """End it all."""
        for process in self._processes.values():
            process.stop()
        with suppress(Exception):  # whatever state a failed soak is in
            self._call(self._scene.strike())
        self._stack.close()
        self._loop.call_soon_threadsafe(self._loop.stop)

    def _call(self, work: Coroutine[Any, Any, R]) -> R:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _orders(self, folder: Path, name: str) -> Orders:
        return self._scene.orders(
            redis=self._redis.url, handled=str(folder / name), audit=str(folder / f"{name}.jsonl"), lease=LEASE,
            at_once=PREFETCH,
        )  # fmt: skip

    async def _declare(self) -> None:
        """Declare the source, and a classic dead-letter queue, which can be deleted only when empty."""
        await self._scene.set()
        await self._scene.publishing.queue_delete(self._scene.dead)
        await self._declare_dead()

    async def _declare_dead(self) -> None:
        async with await aio_pika.connect(self._broker.url) as connection:
            channel = await connection.channel()
            arguments: dict[str, Any] = {"x-queue-type": "classic", "x-overflow": "reject-publish"}
            await channel.declare_queue(self._scene.dead, durable=True, arguments=arguments)

    async def _connected(self) -> None:
        """Wait until the publishing channel is back after a restart."""

        async def answers() -> bool:
            try:
                return await self._scene.waiting() >= 0
            except (*LOST, RuntimeError):
                return False

        await until(answers)

    async def _publish(self, honest: Sequence[bytes], forged: Sequence[bytes]) -> None:
        await asyncio.gather(
            *(self._confirmed(self._signed, body) for body in honest),
            *(self._confirmed(self._unsigned, body) for body in forged),
        )

    async def _confirmed(self, publish: Callable[[bytes], Coroutine[Any, Any, Any]], body: bytes) -> None:
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
        producer = rabbitmq.Producer(self._scene.publishing.default_exchange, self._scene.forge.signer())
        await producer.publish(aio_pika.Message(body, delivery_mode=2), self._scene.name)

    async def _unsigned(self, body: bytes) -> None:
        exchange = self._scene.publishing.default_exchange
        result = await exchange.publish(aio_pika.Message(body, delivery_mode=2), self._scene.name)
        if not isinstance(result, commands.Basic.Ack):  # returned: aio-pika raises nothing
            raise TimeoutError

    async def _taken(self) -> list[Letter]:
        """Take letters, each noted before it is acked, and once: an ack that gets lost brings it again."""
        found: list[Letter] = []
        try:
            async with asyncio.timeout(GLANCE), await aio_pika.connect(self._broker.url) as connection:
                queue = await (await connection.channel()).get_queue(self._scene.dead, ensure=False)
                while (letter := await queue.get(fail=False)) is not None:
                    if letter.message_id not in self._seen:
                        self._seen.add(letter.message_id)
                        found.append(Letter.of(rabbitmq.from_native(letter, queue=self._scene.dead)))
                    await letter.ack()
        except (*LOST, TimeoutError, RuntimeError):
            pass
        return found

    def _broker_killed(self, seconds: float) -> None:
        self._broker.kill()
        time.sleep(seconds)
        self._broker.start()

    def _broker_paused(self, seconds: float) -> None:
        self._broker.pause()
        time.sleep(seconds)
        self._broker.resume()

    def _redis_stopped(self, seconds: float) -> None:
        self._redis.stop()
        time.sleep(seconds)
        self._redis.start()

    def _consumer_killed(self, seconds: float) -> None:
        self._processes["hunted"].kill()
        time.sleep(seconds)
        self._processes["hunted"].start()

    def _letters_gone(self, seconds: float) -> None:
        self._call(self._delete_when_empty())
        time.sleep(seconds)
        self._call(self._declare_dead())

    async def _delete_when_empty(self) -> None:
        """Delete the dead-letter queue at a moment when nothing would go with it."""
        while True:
            try:
                async with await aio_pika.connect(self._broker.url) as connection:
                    await (await connection.channel()).queue_delete(self._scene.dead, if_empty=True)
            except aio_pika.exceptions.ChannelPreconditionFailed:
                await asyncio.sleep(AGAIN)
            else:
                return
