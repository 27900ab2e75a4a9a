"""A stage on a real RabbitMQ for tests of pika's leaf, with an issuer and a consumer's pipeline."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pika

from mqauth import MemoryReplayStore, Pipeline
from mqauth.audit.file import AuditFile
from mqauth.brokers import pika as leaf
from mqauth.testing.forge import Forge
from mqauth.testing.stage_pika import PikaStage, close, connect

HEARTBEAT = 1
"""Seconds between two heartbeats; the broker ends a connection that is silent for longer than two of them."""


class World:
    """A stage, an issuer, and a consumer's pipeline."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        self.stage = PikaStage(url, prefetch=10)
        self.forge = Forge(lifetime=600)
        self.undo = ExitStack()
        self.audit = self.undo.enter_context(AuditFile(folder / "audit.jsonl", fsync=False))
        self.store = MemoryReplayStore()
        self.handled: list[bytes | None] = []

    @property
    def exchange(self) -> str:
        """The exchange of the stage."""
        return self.stage._exchange

    def connect(self, more: str = "") -> pika.BlockingConnection:
        """Return a connection that is closed in the end."""
        connection = connect(self.url + more)
        self.undo.callback(close, connection)
        return connection

    def producer(self, exchange: str | None = None, **settings: Any) -> leaf.Producer:
        """Return a producer that is closed in the end."""
        found = self.exchange if exchange is None else exchange
        return self.undo.enter_context(leaf.Producer(self.connect(), found, self.forge.signer(), **settings))

    def guard(self, audit: Any = None) -> Pipeline:
        """Return a pipeline."""
        policy = self.forge.policy(self.stage.destination)
        return Pipeline(
            verifier=self.forge.verifier(), policy=policy, replay=self.store, audit=audit or self.audit
        )

    def letters(self) -> leaf.DeadLetters:
        """Return dead letters on a connection of their own."""
        return leaf.DeadLetters(self.connect(), self.stage.dead, timeout=5)

    def consumer(self, handler: Any, more: str = "", *, audit: Any = None, **settings: Any) -> leaf.Consumer:
        """Return a consumer on connections of its own."""
        return leaf.Consumer(
            self.connect(more),
            self.stage.queue,
            self.guard(audit),
            handler,
            dead_letters=self.letters(),
            **settings,
        )

    def send(self, *bodies: bytes, **properties: Any) -> None:
        """Publish signed messages."""
        with leaf.Producer(self.connect(), self.exchange, self.forge.signer()) as producer:
            for body in bodies:
                producer.publish(body, "orders.created", pika.BasicProperties(**properties))

    def consumers(self) -> int:
        """Return how many consumers the queue has."""
        with connect(self.url) as connection:
            found = connection.channel().queue_declare(self.stage.queue, passive=True)
            return int(found.method.consumer_count)

    def left(self, queue: str = "") -> int:
        """Return how many messages wait in a queue."""
        with connect(self.url) as connection:
            found = connection.channel().queue_declare(queue or self.stage.queue, passive=True)
            return int(found.method.message_count)

    def close(self) -> None:
        """Tidy up."""
        self.undo.close()
        self.stage.close()
