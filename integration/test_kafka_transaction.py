"""Dead letters and offsets in one transaction, on a real Kafka: no letter twice, none lost, zombies refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kafka as kafka_python
import pytest
from kafka import OffsetAndMetadata, TopicPartition

from integration.services import Kafka
from mqauth.audit.file import AuditFile
from mqauth.brokers import kafka as wrapper
from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.brokers.kafka.producer import ProducerFatalError
from mqauth.errors import Cause
from mqauth.judging.pipeline import Pipeline
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing.forge import Forge
from mqauth.testing.stage_kafka import KafkaStage, wait_until
from mqauth.wire.message import Message

_PYTHON: Any = kafka_python
ROUNDS = 5
EACH = 100


class Bench:
    """A topic, and consumers with transactional dead letters on it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.stage = KafkaStage(url)
        self.forge = Forge(lifetime=600)
        self.audit = AuditFile(folder / "audit.jsonl", fsync=False)
        self.handled: list[bytes | None] = []

    def forged(self, count: int, start: int = 0) -> None:
        """Send messages without tokens."""
        for number in range(start, start + count):
            self.stage.inject(
                Message(destination=self.stage.destination, body=b"forged %d" % number, key=b"%d" % number)
            )

    def letters(self, name: str, **settings: Any) -> wrapper.TransactionalDeadLetters:
        """Return a sink by a transactional id of this topic."""

        def make() -> Any:
            return _PYTHON.KafkaProducer(
                bootstrap_servers=self.stage.servers,
                transactional_id=f"{self.stage.group}.{name}",
                allow_auto_create_topics=False,
            )

        return wrapper.TransactionalDeadLetters(make, self.stage.dead, **settings)

    def consumer(self, letters: wrapper.TransactionalDeadLetters) -> tuple[Any, wrapper.Consumer]:
        """Return a client and the consumer around it."""
        client = self.stage.consumer(isolation_level="read_committed")
        guard = Pipeline(
            verifier=self.forge.verifier(),
            policy=self.forge.policy(self.stage.destination),
            replay=MemoryReplayStore(),
            audit=self.audit,
        )
        return client, wrapper.Consumer(client, guard, self._handle, dead_letters=letters)

    def consume(self, letters: wrapper.TransactionalDeadLetters, until: Callable[[], bool]) -> wrapper.Consumer:
        """Run a consumer until something holds."""
        client, consumer = self.consumer(letters)
        try:
            with consumer:
                wait_until(until, lambda: not consumer.failed)
        finally:
            client.close()
        return consumer

    def count(self) -> int:
        """Return how many letters are committed."""
        return len(self.stage.letters())

    def bodies(self) -> Counter[bytes | None]:
        """Return the bodies of the committed letters, with how often."""
        return Counter(letter.body for letter in self.stage.letters())

    def close(self) -> None:
        """Close everything."""
        self.audit.close()
        self.stage.close()

    def _handle(self, verified: Any) -> None:
        self.handled.append(verified.body)


@pytest.fixture
def bench(kafka: Kafka, tmp_path: Path) -> Iterator[Bench]:
    """A bench of its own."""
    bench = Bench(kafka.url, tmp_path)
    yield bench
    bench.close()


def test_missing_topic_stalls_and_recovers(bench: Bench) -> None:
    """Without its topic a letter waits, shown as stalled, and is written once when that is back."""
    bench.forged(3)
    bench.stage.remove_dead_letters()
    client, consumer = bench.consumer(bench.letters("a", timeout=3))
    with consumer:
        wait_until(lambda: consumer.health().cause is Cause.DEAD_LETTER_UNAVAILABLE)
        bench.stage.restore_dead_letters()
        wait_until(lambda: consumer.health().stalls == () and bench.count() == 3)
    client.close()
    assert bench.bodies() == {b"forged %d" % number: 1 for number in range(3)}


def test_fenced(bench: Bench) -> None:
    """A second consumer with the same transactional id shuts the first one out, which stops at once."""
    bench.forged(2)
    client, old = bench.consumer(bench.letters("same"))
    old.__enter__()
    wait_until(lambda: bench.count() == 2)
    young = bench.letters("same")
    young.prepare()
    bench.forged(2, start=2)
    wait_until(lambda: old.failed)
    with pytest.raises(ProducerFatalError, match="transactional id"):
        old.__exit__(None, None, None)
    client.close()
    assert bench.count() == 2
    bench.consume(young, lambda: bench.count() == 4)
    assert bench.bodies() == {b"forged %d" % number: 1 for number in range(4)}


def test_zombie_of_the_group(bench: Bench) -> None:
    """A former member's open transaction is refused by its generation, whatever its transactional id (KIP-447)."""
    bench.forged(2)
    place = TopicPartition(bench.stage.topic, 0)
    zombie = bench.stage.consumer(isolation_level="read_committed", group_instance_id=None)
    wait_until(lambda: bool(_polled(zombie)))
    stale = zombie.group_metadata()
    zombie.close()
    bench.consume(bench.letters("heir"), lambda: bench.count() == 2)
    producer = _PYTHON.KafkaProducer(
        bootstrap_servers=bench.stage.servers, transactional_id=f"{bench.stage.group}.zombie"
    )
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(bench.stage.dead, value=b"twice").get(timeout=10)
    with pytest.raises(kafka_python.errors.CommitFailedError):
        producer.send_offsets_to_transaction({place: OffsetAndMetadata(1)}, stale)
    producer.abort_transaction()
    producer.close()
    assert bench.bodies() == {b"forged 0": 1, b"forged 1": 1}


def test_letter_too_large_for_the_broker(bench: Bench) -> None:
    """A letter only the broker refuses is written in a smaller form, once, and those beside it once too."""
    bench.stage.remove_dead_letters()
    bench.stage.create(bench.stage.dead, config={"max.message.bytes": "4000"})
    bench.stage.inject(Message(destination=bench.stage.destination, body=b"x" * 5000, key=b"k"))
    bench.forged(2)
    bench.consume(bench.letters("a"), lambda: bench.count() == 3)
    forms = [letter.occurrences("mqauth-dead-form") for letter in bench.stage.letters()]
    assert sorted(map(len, forms)) == [0, 0, 1]
    assert max(bench.bodies().values()) == 1


@pytest.mark.slow
def test_rebalances(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    """Consumers that come and go while letters are committed double none and lose none."""
    bench.stage.admin.create_partitions({bench.stage.topic: 4})
    client, first = bench.consumer(bench.letters("0"))
    with first:
        for number in range(ROUNDS):
            bench.forged(EACH, start=number * EACH)
            other, second = bench.consumer(bench.letters("1"))
            with second:
                wait_until(lambda other=other: bool(other.assignment()))  # type: ignore[misc]
                bench.forged(EACH, start=(ROUNDS + number) * EACH)
            other.close()
        sent = 2 * ROUNDS * EACH
        wait_until(lambda: bench.count() >= sent)
    client.close()
    assert bench.bodies() == {b"forged %d" % number: 1 for number in range(sent)}
    with capsys.disabled():
        print(f"\nrebalances {2 * ROUNDS}: sent {sent}, dead-lettered {bench.count()}, twice 0, lost 0")


def _polled(client: Any) -> dict[Any, Any]:
    """Return what a bare client of a group polls, once its joins have been helped along."""
    kafka_repair.before_poll(client)
    records: dict[Any, Any] = client.poll(timeout_ms=200)
    return records
