"""What the tests of task queues share: an absent store, a pickle that tells, letters, and attacks."""

from __future__ import annotations

import pickle
import threading
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Queue
from typing import Any, ClassVar

import pika
import pytest

from integration.services import RabbitMQ
from mqauth import (
    Allow,
    AuditFile,
    FileReplayStore,
    MemoryReplayStore,
    Pipeline,
    Verifier,
)
from mqauth.judging.rollout import WEEK, Rollout, RolloutEntry, Rung
from mqauth.testing.attack_probe import Probe
from mqauth.testing.attacks import AttackSuite
from mqauth.testing.forge import NEIGHBOUR, SUBJECT, Forge
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


class Shop(ABC):
    """A queue at RabbitMQ, its protected worker, and what its tasks did.

    Args:
        url: of RabbitMQ.
        folder: for files.

    Attributes:
        failures: how many of the next tasks fail.
    """

    exchange: ClassVar[str] = ""
    """Begins a destination; a name of the shop comes behind it."""
    beside: ClassVar[Sequence[str]] = ()
    """What names of further queues end with."""
    task_header: ClassVar[str] = ""
    """The header that names a task, if any."""
    unsigned: ClassVar[Any] = None
    """Properties of a pickled task that nobody signed."""
    with_other: ClassVar[Mapping[str, Any]] = {}
    one_at_a_time: ClassVar[dict[str, Any]] = {}
    """Settings of a worker that takes one task at a time."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.forge = Forge()
        self.name = f"tasks-{uuid.uuid4().hex}"
        self.dead = f"{self.name}.dead"
        self.store = Store(folder / "claims.db")
        self.store.asked = threading.Event()
        self.store.renewals = Queue()
        self.audit = AuditFile(folder / "audit.jsonl")
        self.ran: Queue[Any] = Queue()
        self.failures = 0
        self.guard = self.pipeline(self.store)

    def destinations(self) -> list[str]:
        """Return where tasks may be sent, the usual place first."""
        return [f"rabbitmq:/{self.name}"]

    def pipeline(self, replay: Any, **settings: Any) -> Pipeline:
        """Return a pipeline for the queue."""
        settings = {"policy": Allow({SUBJECT: self.destinations()})} | settings
        return Pipeline(
            verifier=self.forge.verifier(), replay=replay, audit=self.audit, **settings
        )

    @abstractmethod
    def working(self, **settings: Any) -> AbstractContextManager[Any]:
        """Run a protected worker."""

    @abstractmethod
    def sending(self, signer: Any = None) -> AbstractContextManager[Any]:
        """Yield the task of a program that signs, by default as the shop; ``False`` signs nothing."""

    @abstractmethod
    def send(self, task: Any, order: Any) -> None:
        """Send a task, pickled."""

    @abstractmethod
    def refused(self, why: str, **given: Any) -> None:
        """Assert that a worker is refused, where it is protected or as it starts."""

    def run(self, count: int) -> list[Any]:
        """Return what the next tasks were given, once they have run."""
        return [self.ran.get(timeout=PATIENCE) for _ in range(count)]

    def publish(
        self,
        body: bytes,
        properties: Any = None,
        *,
        exchange: str | None = None,
        key: str = "",
    ) -> None:
        """Publish what nobody signed, or what was taken."""
        exchange = (self.name if self.exchange else "") if exchange is None else exchange
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            connection.channel().basic_publish(
                exchange, key or self.name, body, properties
            )

    def publish_elsewhere(self, body: bytes, properties: Any) -> None:
        """Publish a task to another place than it was signed for."""
        name = self.name + self.beside[0]
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            connection.channel().queue_declare(name, durable=True)
        self.publish(body, properties, key=name)

    def take(self) -> tuple[Any, Any]:
        """Take a message of the queue; return its properties and its body."""
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            return connection.channel().basic_get(self.name, auto_ack=True)[1:]

    def buried(self, count: int) -> list[str]:
        """Return the reasons of so many dead letters, sorted, and take them."""
        return buried(self.url, self.dead, count)

    def end(self) -> None:
        """Leave nothing at the broker."""
        self.store.close()
        self.audit.close()
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            channel = connection.channel()
            for name in (self.name, self.dead, *(self.name + end for end in self.beside)):
                channel.queue_delete(name)
            if self.exchange:
                channel.exchange_delete(self.name)


class TaskContract:
    """What every protected worker does, on a real RabbitMQ; each test gets a ``shop``."""

    def test_only_signed_tasks_are_decoded(self, shop: Shop, tmp_path: Path) -> None:
        """A pickle that nobody, or a stranger, signed is a letter, and never decoded; a signed task runs once."""
        mark = tmp_path / "decoded"
        # The oracle writes.
        pickle.loads(pickle.dumps(Hijack(mark)))  # noqa: S301
        mark.unlink()
        neighbour = shop.forge.signer(key=shop.forge.neighbour, subject=NEIGHBOUR)
        with shop.working(), shop.sending() as honest:
            for signer in (
                Forge().signer(),
                shop.forge.signer(audience="others"),
                neighbour,
            ):
                with shop.sending(signer) as task:
                    shop.send(task, Hijack(mark))
            shop.publish(pickle.dumps(Hijack(mark)), shop.unsigned)
            shop.send(honest, "honest")
            assert shop.run(1) == ["honest"]
            refused = [
                "audience_mismatch",
                "key_unknown",
                "producer_forbidden",
                "token_missing",
            ]
            assert shop.buried(4) == refused
        assert not mark.exists()
        assert shop.ran.empty()

    def test_a_task_changed_on_its_way_is_a_letter(self, shop: Shop) -> None:
        """Another body, another name, another place, and a second copy: each is rejected with its reason."""
        with shop.sending() as honest:
            shop.send(honest, "caught")
        properties, body = shop.take()
        reasons = ["body_mismatch", "destination_mismatch", "replayed"]
        for content in (body, body, body + b" "):
            shop.publish(content, properties)
        shop.publish_elsewhere(body, properties)
        if shop.task_header:
            headers = properties.headers | {shop.task_header: "other"}
            shop.publish(
                body, pika.BasicProperties(**vars(properties) | {"headers": headers})
            )
            reasons.append("headers_mismatch")
        with shop.working(**shop.with_other):
            assert shop.run(1) == ["caught"]
            assert shop.buried(len(reasons)) == sorted(reasons)
        assert shop.ran.empty()

    @pytest.mark.parametrize("away", ["claim", "confirm"])
    def test_a_task_waits_for_the_store(self, shop: Shop, away: str) -> None:
        """While the replay store is away a task is no letter; it runs once, and is acked after that."""
        shop.store.away = away
        with shop.working(**shop.one_at_a_time), shop.sending() as honest:
            shop.send(honest, "waits")
            assert shop.store.asked.wait(PATIENCE)
            if away == "confirm":
                assert shop.run(1) == ["waits"]
            assert shop.ran.empty()
            shop.store.away = ""
            if away == "claim":
                assert shop.run(1) == ["waits"]
            # With one at a time the next one comes once it is acked.
            shop.send(honest, "next")
            assert shop.run(1) == ["next"]
        assert shop.take() == (None, None)

    def test_unsigned_tasks_run_at_observe(self, shop: Shop) -> None:
        """On the first rung of the ladder a task that nobody signed runs, and is on record."""
        day = datetime.now(UTC).date()
        entry = RolloutEntry(
            destinations=(shop.destinations()[0],), rung=Rung.OBSERVE, since=day, until=day + timedelta(9),
            owner="team", window=WEEK,
        )  # fmt: skip
        shop.guard = shop.pipeline(shop.store, rollout=Rollout([entry]))
        with shop.working(), shop.sending(False) as plain, shop.sending() as honest:
            shop.send(plain, "unsigned")
            shop.send(honest, "signed")
            assert sorted(shop.run(2)) == ["signed", "unsigned"]
        assert shop.take() == (None, None)
        assert "token_missing" in shop.audit.path.read_text("utf-8")

    def test_a_worker_that_lacks_something_is_refused(self, shop: Shop) -> None:
        """A worker without a pipeline or dead letters, and one with no store or one in memory, does not start."""
        signer = shop.forge.signer()
        shop.refused("guard=", signer=signer)
        shop.refused("dead_letters=", signer=signer, guard=lambda: shop.guard)
        for replay in (None, MemoryReplayStore()):
            guard = shop.pipeline(replay)
            shop.refused(
                "store on Redis",
                signer=signer,
                dead_letters=shop.dead,
                guard=lambda guard=guard: guard,
            )


def judge_of(probe: Probe, target: Any, store: Any, audit: AuditFile) -> Pipeline:
    """Return the pipeline of what is attacked."""
    return Pipeline(
        verifier=Verifier(keys=probe.keys, audience="billing"), policy=probe.forge.policy(target.destination),
        replay=store, audit=audit, observers=[probe.observer],
    )  # fmt: skip


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
                return self.worker(target, judge_of(probe, target, store, audit), probe)

            yield consuming
