"""A source on a shared broker that a test may freeze, its producer, and what any client's consumer is made of."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from integration import pace
from integration.every_client import Wiring
from integration.services import Kafka, RabbitMQ
from mqauth import MemoryReplayStore, Pipeline
from mqauth.audit.file import AuditFile
from mqauth.signer import Signer
from mqauth.testing.forge import Forge
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire.message import Message


def stage_on(broker: str, make: Callable[..., Any], *strategies: str) -> Any:
    """Return the fixture that yields a fresh stage at a broker.

    Args:
        broker: the fixture of the broker.
        make: makes a stage at a URL.
        strategies: the ways of sharing out partitions of confluent-kafka with which each test runs, if any.
    """

    @pytest.fixture(params=strategies or None)
    def stage(_self: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
        settings = {"partition_assignment_strategy": request.param} if strategies else {}
        with closing(make(request.getfixturevalue(broker).url, **settings)) as found:
            yield found

    return stage


BESIDE_GRACE = 5.0
"""Seconds that a stop may take beside its grace, whatever the broker does."""


class ClientBench:
    """A source on a broker, an issuer, and what was handled.

    Args:
        broker: runs when ``ending`` has ended.
        folder: for the audit.
        stage: one of a client's own, in place of the first client's.
    """

    def __init__(self, broker: Kafka | RabbitMQ, folder: Path, stage: Any = None) -> None:
        self.broker = broker
        self.ending = ExitStack()
        on_kafka = isinstance(broker, Kafka)
        self.stage: Any = stage or (
            KafkaStage(broker.url) if on_kafka else RabbitMQStage(broker.url)
        )
        self.source = self.stage.topic if on_kafka else self.stage.queue
        self._scope, self._key = (
            (self.stage.group, b"k") if on_kafka else (self.source, None)
        )
        self.ending.callback(self.stage.close)
        self.ending.callback(broker.start)
        self.forge = Forge(lifetime=3000)
        self.audit = self.ending.enter_context(
            AuditFile(folder / "audit.jsonl", fsync=False)
        )
        self.handled: list[bytes | None] = []

    def handle(self, verified: Any) -> None:
        """Note a message."""
        self.handled.append(verified.body)

    def guard(self, **settings: Any) -> Pipeline:
        """Return a pipeline, of these parts and of the bench's own."""
        wanted: dict[str, Any] = {
            "verifier": self.forge.verifier(), "policy": self.forge.policy(self.stage.destination),
            "replay": MemoryReplayStore(), "audit": self.audit,
        }  # fmt: skip
        return Pipeline(**(wanted | settings))

    def wiring(self, handler: Any = None, **settings: Any) -> Wiring:
        """Return the parts of a consumer."""
        return Wiring(
            url=self.broker.url, source=self.source, dead=self.stage.dead, scope=self._scope,
            handler=handler or self.handle, **({"guard": self.guard()} | settings),
        )  # fmt: skip

    def signed(self, body: bytes, signer: Signer | None = None) -> Message:
        """Return a signed message, by default of the honest producer."""
        plain = Message(destination=self.stage.destination, body=body, key=self._key)
        return (signer or self.forge.signer()).sign(plain)

    def send(self, *bodies: bytes, signer: Signer | None = None) -> None:
        """Publish signed messages, by default of the honest producer."""
        for body in bodies:
            self.stage.inject(self.signed(body, signer))

    def forge_some(self, *bodies: bytes) -> None:
        """Publish messages without tokens."""
        for body in bodies:
            self.stage.inject(
                Message(destination=self.stage.destination, body=body, key=self._key)
            )

    def letters(self) -> list[bytes | None]:
        """Return the bodies of the dead letters, in order."""
        return [letter.body for letter in self.stage.letters()]

    def has_handled(self, number: int) -> bool:
        """Return whether so many messages were handled."""
        return len(self.handled) == number

    def committed(self) -> int:
        """Return how many records the group has committed."""
        found: Any = self.stage.admin.list_group_offsets({self.stage.group: None})
        return sum(commit.offset for commit in found[self.stage.group].values())

    def stopped_within(self, running: Any) -> float:
        """Freeze the broker, stop a consumer, and return the seconds that took; the broker goes on after it.

        Time in which this machine had no CPU for this process does not count.
        """
        self.broker.pause()
        own, began = os.getpid(), time.monotonic()
        before = pace.read().delays[own]
        try:
            running.stop()
            return time.monotonic() - began - (pace.read().delays[own] - before)
        finally:
            self.broker.resume()
