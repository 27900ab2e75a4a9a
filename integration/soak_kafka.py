"""The soak's Kafka: a broker and a Redis of its own, two consumer processes, one of which is hunted."""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

warnings.filterwarnings("ignore", category=DeprecationWarning)

import kafka as kafka_python  # noqa: E402 - it reads its schemas by deprecated functions
import kafka.admin as kafka_admin  # noqa: E402
from kafka import TopicPartition  # noqa: E402
from kafka.errors import KafkaError  # noqa: E402

from integration.chaos.count import Letter  # noqa: E402
from integration.chaos.kafka_scene import Scene, until  # noqa: E402
from integration.services import Kafka, Redis  # noqa: E402
from integration.soak_rabbitmq import Process  # noqa: E402
from integration.victim import Orders  # noqa: E402
from mqauth.brokers import kafka  # noqa: E402

AT_ONCE = 100
PATIENCE = 150.0  # seconds: the client gives a record up after two minutes
WIDE, NARROW = "1048588", "1"  # bytes a topic lets a batch have: Kafka's own default, and none at all
_PYTHON: Any = kafka_python
_ADMIN: Any = kafka_admin


class Driver:
    """Kafka for the soak."""

    name = "kafka"

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._processes: dict[str, Process] = {}
        self._reader: Any = None

    def open(self) -> None:
        """Start broker, Redis and consumers."""
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        with patch.dict(os.environ):
            for variable in ("MQAUTH_REDIS_URL", "MQAUTH_KAFKA_URL"):
                os.environ.pop(variable, None)
            self._broker = self._stack.enter_context(Kafka.launch())
            self._redis = self._stack.enter_context(Redis.launch())
        self._scene = Scene(self._broker.url, folder, partitions=4, lifetime=600)
        self._producer = kafka.Producer(self._scene.publishing, self._scene.forge.signer())
        for name in ("steady", "hunted"):
            (folder / name).touch()
            orders: Any = self._orders(folder, name)
            self._processes[name] = Process(orders)

    def publish(self, honest: Sequence[bytes], forged: Sequence[bytes]) -> None:
        """Publish these, each again until it is confirmed."""
        waiting = [(self._producer.send, body) for body in honest]
        waiting += [(self._scene.publishing.send, body) for body in forged]
        while waiting:
            waiting = self._unconfirmed(waiting)

    def handled(self) -> Iterable[bytes]:
        """Return the body of each handler run since the last call."""
        return [body for process in self._processes.values() for body in process.handled()]

    def letters(self) -> Iterable[Letter]:
        """Return the dead letters since the last call; fewer while the broker is gone."""
        found: list[Letter] = []
        with suppress(KafkaError):
            reader = self._letter_reader()
            while records := reader.poll(timeout_ms=100):
                for record in (record for several in records.values() for record in several):
                    found.append(Letter.of(kafka.from_native(record, scope="soak")))
        return found

    def processes(self) -> Mapping[str, int]:
        """Return the consumer processes."""
        return {name: process.pid for name, process in self._processes.items()}

    def faults(self) -> Mapping[str, Callable[[float], None]]:
        """Return what can break."""
        return {
            "Kafka restarted": lambda _: self._broker.restart(),
            "Kafka killed": self._broker_killed,
            "Kafka paused": self._broker_paused,
            "Redis stopped": self._redis_stopped,
            "dead letters refused": self._letters_refused,
            "consumer killed": self._consumer_killed,
            "consumer away": self._consumer_away,
        }

    def close(self) -> None:
        """End it all."""
        for process in self._processes.values():
            process.stop()
        if self._reader is not None:
            self._reader.close()
        with suppress(Exception):  # whatever state a failed soak is in
            self._scene.strike()
        self._stack.close()

    def _orders(self, folder: Path, name: str) -> Orders:
        return self._scene.orders(
            redis=self._redis.url, handled=str(folder / name), audit=str(folder / f"{name}.jsonl"),
            assigned=str(folder), at_once=AT_ONCE,
        )  # fmt: skip

    def _unconfirmed(self, wanted: list[tuple[Any, bytes]]) -> list[tuple[Any, bytes]]:
        """Send each once, over all partitions, and return those without the broker's confirm."""
        failed, sent = [], []
        for number, (send, body) in enumerate(wanted):
            try:
                future = send(self._scene.name, value=body, key=b"k", partition=number % len(self._scene.places))
            except KafkaError:
                failed.append((send, body))
            else:
                sent.append(((send, body), future))
        for each, future in sent:
            try:
                future.get(timeout=PATIENCE)
            except KafkaError:
                failed.append(each)
        return failed

    def _letter_reader(self) -> Any:
        if self._reader is None:
            servers = self._scene.stage.servers
            self._reader = _PYTHON.KafkaConsumer(bootstrap_servers=servers, auto_offset_reset="earliest")
            self._reader.assign([TopicPartition(self._scene.dead, 0)])
        return self._reader

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

    def _consumer_away(self, seconds: float) -> None:
        self._processes["hunted"].stop()
        time.sleep(seconds)
        self._processes["hunted"].start()

    def _letters_refused(self, seconds: float) -> None:
        """Have the broker refuse dead letters; a topic deleted would take the letters it has along."""
        self._limit_letters(NARROW)
        time.sleep(seconds)
        self._limit_letters(WIDE)

    def _limit_letters(self, most: str) -> None:
        """Set how large a dead letter may be, as soon as the broker answers."""
        kind = _ADMIN.ConfigResourceType.TOPIC
        wanted = _ADMIN.ConfigResource(kind, self._scene.dead, configs={"max.message.bytes": most})

        def done() -> bool:
            with suppress(KafkaError):
                self._scene.stage.admin.alter_configs([wanted])
                return True
            return False

        until(done)
