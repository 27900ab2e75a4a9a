"""What the tests of task queues share: an absent store, a pickle that tells, letters, and attacks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing
from pathlib import Path
from queue import Queue
from typing import Any

import pika
import pytest

from integration.services import RabbitMQ
from mqauth import AuditFile, FileReplayStore, Pipeline, Verifier
from mqauth.testing.attack_probe import Probe
from mqauth.testing.attacks import AttackSuite
from mqauth.testing.stage_rabbitmq import RabbitMQStage

PATIENCE = 60.0


class Store(FileReplayStore):
    """A replay store that may be away."""

    away: str = ""
    asked: threading.Event
    renewals: Queue[Any] | None = None

    def claim(self, request: Any, /) -> Any:
        """Claim, or fail; note what is renewed."""
        self._fail("claim")
        if request.renew and self.renewals is not None:
            self.renewals.put(request)
        return super().claim(request)

    def confirm(self, request: Any, /) -> Any:
        """Confirm, or fail."""
        self._fail("confirm")
        return super().confirm(request)

    def _fail(self, what: str) -> None:
        if self.away == what:
            self.asked.set()
            raise ConnectionError


class Hijack:
    """A pickle that writes a file where it is decoded."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self._path, "decoded"))


def buried(url: str, name: str, count: int) -> list[str]:
    """Return the reasons of so many dead letters, sorted, and take them."""
    reasons = []
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        for method, properties, _ in channel.consume(name, inactivity_timeout=PATIENCE):
            assert method is not None
            reasons.append(str(properties.headers["mqauth-dead-reason"]))
            channel.basic_ack(method.delivery_tag)
            if len(reasons) == count:
                return sorted(reasons)
    raise AssertionError


class WorkerAttacks(AttackSuite):
    """The attack suite against what a worker is given.

    Attributes:
        worker: runs a worker on a queue, whose tasks a probe is given.
    """

    worker: Callable[[Any, Pipeline, Probe], AbstractContextManager[Any]]

    @pytest.fixture
    def target(self, rabbitmq: RabbitMQ) -> Iterator[RabbitMQStage]:
        """Yield a queue."""
        stage = RabbitMQStage(rabbitmq.url)
        stage.url = rabbitmq.url  # type: ignore[attr-defined]
        yield stage
        stage.close()

    @pytest.fixture
    def make_consumer(
        self, target: Any, tmp_path: Path
    ) -> Iterator[Callable[[Probe], AbstractContextManager[Any]]]:
        """Yield what consumes; its store and audit outlive it."""
        store = FileReplayStore(tmp_path / "c.db")
        with closing(store), AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:

            def consuming(probe: Probe) -> AbstractContextManager[Any]:
                guard = Pipeline(
                    verifier=Verifier(keys=probe.keys, audience="billing"),
                    policy=probe.forge.policy(target.destination), replay=store, audit=audit,
                    observers=[probe.observer],
                )  # fmt: skip
                return self.worker(target, guard, probe)

            yield consuming
