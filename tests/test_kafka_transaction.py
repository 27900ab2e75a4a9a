"""Dead letters and offsets in one transaction, on clients of our own making; integration has the real ones."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from mqauth.brokers.log.transaction import Transactions
from mqauth.clock import Backoff
from mqauth.delivery.partition import Partition
from mqauth.errors import Cause, ConfigurationError
from mqauth.flow import run
from mqauth.testing import FakeClock, Forge
from tests.log_leaves import KafkaFuture as Future
from tests.test_kafka_consumer import ONE, ZERO, Bench, Client, record
from tests.test_kafka_producer import letter

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import OffsetAndMetadata
    from kafka.errors import (
        KafkaError,
        KafkaTimeoutError,
        MessageSizeTooLargeError,
        ProducerFencedError,
    )

    from mqauth.brokers import kafka


METADATA = "mqauth partitions=2"


@dataclass
class Broker:
    """What a broker keeps of transactions; each step may be told to fail the next times it comes."""

    committed: list[bytes] = field(default_factory=list)
    offsets: dict[Any, int] = field(default_factory=dict)
    failures: dict[str, list[Exception]] = field(default_factory=dict)
    made: list[Producer] = field(default_factory=list)
    metadata: list[Any] = field(default_factory=list)
    events: list[Callable[[], None]] = field(default_factory=list)
    applies: bool = True
    limit: int = 10_000
    late_limit: int = 10_000

    def step(self, name: str) -> None:
        """Fail, if that is due."""
        if self.failures.get(name):
            raise self.failures[name].pop(0)


class Producer:
    """A transactional ``KafkaProducer``."""

    def __init__(self, broker: Broker, **config: Any) -> None:
        self.broker = broker
        self.config = {
            "transactional_id": "billing.0", "key_serializer": None, "value_serializer": None,
            "max_block_ms": 60_000, "transaction_timeout_ms": 60_000,
        } | config  # fmt: skip
        self._transaction_manager = SimpleNamespace(last_error=None)
        self.closed = False
        self.open: list[bytes] | None = None
        self.offsets: dict[Any, int] = {}
        broker.made.append(self)

    def init_transactions(self) -> None:
        self.broker.step("init")

    def begin_transaction(self) -> None:
        self.broker.step("begin")
        assert self.open is None
        self.open = []

    def send(self, topic: str, *, value: bytes, key: Any, headers: Any) -> Future:
        assert (topic, self.open is None) == ("orders.dead", False)
        self.broker.step("send")
        if len(value) > self.broker.limit:
            raise MessageSizeTooLargeError(len(value))
        failures = self.broker.failures.get("confirm")
        self.open.append(value)  # type: ignore[union-attr]
        refused = (
            MessageSizeTooLargeError(len(value))
            if len(value) > self.broker.late_limit
            else None
        )
        return Future(failures.pop(0) if failures else refused)

    def send_offsets_to_transaction(self, offsets: dict[Any, Any], group: Any) -> None:
        self.broker.step("offsets")
        self.broker.metadata.append(group)
        assert {offset.metadata for offset in offsets.values()} == {METADATA}
        self.offsets = {partition: offset.offset for partition, offset in offsets.items()}

    def commit_transaction(self) -> None:
        if self.broker.events:
            self.broker.events.pop(0)()
        failing = bool(self.broker.failures.get("commit"))
        if not failing or self.broker.applies:
            self.broker.committed += self.open or []
            self.broker.offsets |= self.offsets
        self.open = None
        self.broker.step("commit")

    def close(self, timeout: float) -> None:
        self.closed = True
        self.broker.step("close")


class Member(Client):
    """A ``KafkaConsumer`` that is a member of its group."""

    def __init__(self, broker: Broker, **config: Any) -> None:
        super().__init__(**({"isolation_level": "read_committed"} | config))
        self.broker = broker
        self.generations: list[int] = []

    def group_metadata(self) -> Any:
        return SimpleNamespace(
            generation_id=self.generations.pop(0) if self.generations else 3
        )

    def group_offsets(self, places: list[Any], timeout_ms: int) -> dict[Any, Any]:
        assert timeout_ms > 0
        # Where partitions begin is asked before anything is committed.
        if self.broker.metadata:
            self.broker.step("committed")
        return {
            place: OffsetAndMetadata(self.broker.offsets.get(place, 0), METADATA, -1)
            for place in places
        }


class Stand(Bench):
    """A bench whose dead letters are transactional."""

    client: Member

    def __init__(self, clock: FakeClock, forge: Forge) -> None:
        super().__init__(clock, forge)
        self.broker = Broker()
        self.client = Member(self.broker)

    def sink(self, **settings: Any) -> kafka.TransactionalDeadLetters:
        """Return a sink."""
        return kafka.TransactionalDeadLetters(
            lambda: Producer(self.broker), "orders.dead", **settings
        )  # type: ignore

    def make(self, guard: Any = None, **settings: Any) -> Any:
        return super().make(guard, **({"dead_letters": self.sink()} | settings))

    @property
    def plain(self) -> dict[Any, int]:
        """Return what was committed without a transaction."""
        return {
            partition: offset
            for commit in self.client.commits
            for partition, offset in commit.items()
        }


@pytest.fixture
def stand(clock: FakeClock, forge: Forge) -> Stand:
    """A stand of its own."""
    return Stand(clock, forge)


def test_letters_and_offsets_are_one(stand: Stand) -> None:
    """The letters of a batch and the prefix they stand in are committed at once, by the membership of then."""
    stand.add(b"0")
    stand.add(b"evil", b"worse", sealed=False)
    stand.add(b"3")
    stand.add(b"other", partition=ONE)
    stand.run()
    assert (stand.broker.committed, stand.broker.offsets) == (
        [b"evil", b"worse"],
        {ZERO: 4, ONE: 1},
    )
    assert [group.generation_id for group in stand.broker.metadata] == [3]
    assert (stand.plain, sorted(stand.bodies)) == ({}, [b"0", b"3", b"other"])
    # the client holds its partitions as a set: there is an order within each alone
    assert stand.bodies.index(b"0") < stand.bodies.index(b"3")
    assert [producer.closed for producer in stand.broker.made] == [True]


def test_audit_is_durable_first(stand: Stand) -> None:
    """When a letter is committed its record has been written; without the record there is no letter."""
    seen: list[int] = []
    stand.broker.events = [lambda: seen.append(len(stand.audit.written))]
    stand.audit.down = True
    stand.add(b"evil", sealed=False)
    stand.client.events = [lambda: None] * 8 + [
        lambda: seen.append(len(stand.broker.committed)),
        lambda: setattr(stand.audit, "down", False),
    ]
    stand.run(rounds=60, seconds=1)
    assert seen == [0, 1]
    assert stand.broker.committed == [b"evil"]


def test_without_letters_no_transaction(stand: Stand) -> None:
    """Offsets without letters are committed plainly."""
    stand.add(b"0", b"1")
    stand.run()
    assert (stand.plain, stand.broker.offsets, stand.broker.metadata) == (
        {ZERO: 2},
        {},
        [],
    )


@pytest.mark.parametrize("step", ["init", "begin", "send", "confirm", "offsets"])
def test_made_again(step: str, stand: Stand) -> None:
    """A transaction that fails anywhere is made again with the same letters, by a new producer."""
    stand.broker.failures[step] = [KafkaError("no"), KafkaTimeoutError("stale")]
    stand.add(b"0")
    stand.add(b"evil", b"worse", sealed=False)
    stand.run(rounds=60, seconds=1)
    assert (stand.broker.committed, stand.broker.offsets) == (
        [b"evil", b"worse"],
        {ZERO: 3},
    )
    assert (stand.bodies, len(stand.audit.written), stand.plain) == ([b"0"], 2, {})
    assert [producer.closed for producer in stand.broker.made] == [True] * (
        2 if step == "confirm" else 3
    )


@pytest.mark.parametrize("applied", [True, False])
def test_doubt(applied: bool, stand: Stand) -> None:
    """Where a commit's outcome is not known the broker is asked: no letter twice, none lost."""
    stand.broker.applies = applied
    stand.broker.failures = {
        "commit": [KafkaTimeoutError("gone")],
        "committed": [KafkaTimeoutError("gone")],
    }
    stand.add(b"evil", sealed=False)
    stand.run(rounds=60, seconds=1)
    assert (stand.broker.committed, stand.broker.offsets) == ([b"evil"], {ZERO: 1})
    assert stand.broker.failures["committed"] == []
    assert stand.consumer.health().stalls == ()


def test_doubt_about_what_was_lost(stand: Stand) -> None:
    """A partition taken away meanwhile is no concern any more, whatever was committed of it."""
    stand.broker.applies = False
    stand.broker.failures = {"commit": [KafkaTimeoutError("gone")]}
    stand.broker.events = [stand.client.held.clear]
    stand.client.events = [lambda: None] * 2 + [
        lambda: stand.client.listener.on_partitions_lost({ZERO, ONE})
    ]
    stand.add(b"evil", sealed=False)
    stand.run(rounds=20, seconds=1)
    assert (stand.broker.committed, stand.broker.offsets, stand.plain) == ([], {}, {})


def fenced(stand: Stand, after: float = 0) -> Callable[[], None]:
    """Return what lets a producer be told that another has its id."""

    def shut_out() -> None:
        stand.clock.advance(after)
        stand.broker.made[-1]._transaction_manager.last_error = ProducerFencedError()

    stand.broker.applies = False
    stand.broker.failures["commit"] = [ProducerFencedError()]
    return shut_out


def test_fenced(stand: Stand) -> None:
    """A consumer whose transactional id another has taken stops, commits nothing, and stands at its letter."""
    stand.broker.events = [fenced(stand)]
    stand.add(b"0")
    stand.add(b"evil", sealed=False)
    with pytest.raises(kafka.ProducerFatalError, match="transactional id"):
        stand.run()
    assert (stand.broker.committed, stand.broker.offsets, stand.plain) == ([], {}, {})
    assert stand.client.position[ZERO] == 1


def test_too_long_is_not_fenced(stand: Stand) -> None:
    """A transaction the broker ended for its age is made again."""
    stand.broker.events = [fenced(stand, after=61)]
    stand.add(b"evil", sealed=False)
    stand.run(rounds=60, seconds=1)
    assert (stand.broker.committed, stand.broker.offsets) == ([b"evil"], {ZERO: 1})


def test_no_generation_no_transaction(stand: Stand) -> None:
    """While a rebalance has no generation nothing is committed: the broker would not check the membership."""
    stand.client.generations = [-1, -1]
    stand.add(b"evil", sealed=False)
    stand.run(rounds=20, seconds=1)
    assert stand.client.generations == []
    assert [group.generation_id for group in stand.broker.metadata] == [3]
    assert stand.broker.committed == [b"evil"]


def test_a_letter_before_its_offset(clock: FakeClock) -> None:
    """A letter whose record is not settled yet waits: committed without its offset, it would come twice."""
    broker = Broker()
    sink = kafka.TransactionalDeadLetters(lambda: Producer(broker), "orders.dead")  # type: ignore[arg-type, return-value]
    partition = Partition(ZERO, metadata=METADATA)
    for offset, body in enumerate([b"settled", b"under way"]):
        partition.letters.append((offset, letter(body=body)))
    assignment: Any = SimpleNamespace(settled_offsets=lambda: {partition: 1})
    member = SimpleNamespace(membership=lambda: SimpleNamespace(generation_id=3))
    transactions = Transactions(member, sink, assignment, clock, Backoff())
    assert run(transactions.committing()) == {}
    assert transactions._attempt is not None
    assert transactions._attempt.over.wait(60)
    assert (broker.committed, broker.offsets) == ([b"settled"], {ZERO: 1})


def test_lost_with_its_letters(stand: Stand) -> None:
    """The letters of a partition that was taken away are dropped; of one that stays they are written."""
    stand.broker.failures["offsets"] = [KafkaTimeoutError("stale")]
    stand.add(b"evil", sealed=False)
    stand.add(b"worse", sealed=False, partition=ONE)

    def lose() -> None:
        stand.client.held.discard(ZERO)
        stand.client.listener.on_partitions_revoked({ZERO})

    stand.client.events = [lambda: None] * 2 + [lose]
    stand.run(rounds=60, seconds=1)
    assert (stand.broker.committed, stand.broker.offsets) == ([b"worse"], {ONE: 1})


def test_outage_of_letters_alone(stand: Stand) -> None:
    """While letters cannot be written their partition stands still and shows why; others go on and commit."""
    stand.broker.failures["begin"] = [KafkaError("no")] * 1000
    stand.add(b"evil", sealed=False)
    stand.add(b"behind", b"far behind")
    stand.client.max_records = 2
    stand.add(b"other", partition=ONE)
    seen: list[Any] = []
    stand.client.events = [lambda: None] * 6 + [
        lambda: seen.append(stand.consumer.health())
    ]
    stand.run(rounds=12, seconds=0.2)
    (stall,) = seen[0].stalls
    assert (stall.topic, stall.partition, stall.offset) == ("orders", 0, 0)
    assert (stall.cause, stall.detail) == (Cause.DEAD_LETTER_UNAVAILABLE, "KafkaError")
    assert stand.plain == {ONE: 1}
    assert b"far behind" not in stand.bodies
    assert stand.client.position[ZERO] == 0


def test_open_for_long(stand: Stand) -> None:
    """A transaction whose end does not come is waited for, shown as stalled, and never doubled."""
    gate = threading.Event()

    def wait() -> None:
        assert gate.wait(30)

    stand.broker.events = [wait]
    stand.add(b"evil", sealed=False)
    seen: list[Any] = []
    stand.client.events = [lambda: None] * 6 + [
        lambda: seen.append(stand.consumer.health().detail),
        gate.set,
    ]
    stand.run(rounds=12, seconds=10)
    assert seen == ["a transaction is still open"]
    assert (stand.broker.committed, stand.broker.offsets) == ([b"evil"], {ZERO: 1})
    assert len(stand.broker.made) == 1


@pytest.mark.parametrize("late", [False, True])
def test_too_large(late: bool, stand: Stand) -> None:
    """A letter that is too large goes in a smaller form, whoever refuses it; its neighbour as it is."""
    setattr(stand.broker, "late_limit" if late else "limit", 1000)
    stand.add(*[b"x" * 5000] * 20, b"evil", sealed=False)
    stand.run(rounds=60, seconds=0.2)
    *references, other = stand.broker.committed
    assert (all(b"body_size" in reference for reference in references), other) == (
        True,
        b"evil",
    )
    assert stand.broker.offsets == {ZERO: 21}
    # The broker says of a transaction only that the largest was too large, and these have two sizes.
    assert len(stand.broker.made) == (3 if late else 1)


def test_no_form_fits(stand: Stand) -> None:
    """Where not even a reference fits nothing is committed, until the limit is raised."""
    stand.broker.limit = 1
    stand.add(b"evil", sealed=False)
    seen: list[Any] = []
    stand.client.events = [lambda: None] * 5 + [
        lambda: seen.append(stand.consumer.health().cause),
        lambda: setattr(stand.broker, "limit", 100),
    ]
    stand.run(rounds=60, seconds=1)
    assert seen == [Cause.DEAD_LETTER_UNAVAILABLE]
    assert (stand.broker.committed, stand.broker.offsets) == ([b"evil"], {ZERO: 1})


def test_log_went_back(stand: Stand) -> None:
    """A log that goes back costs no letter: those from before are kept, those read again are not doubled."""
    stand.broker.failures["begin"] = [KafkaError("no")]
    stand.add(b"evil", b"worse", sealed=False)

    def back() -> None:
        stand.client.log[ZERO] = [
            record(0, 1, b"worse", b"k", []),
            record(0, 2, b"worst", b"k", []),
        ]
        stand.client.position[ZERO] = 1
        stand.client._paused.clear()

    stand.client.events = [lambda: None] * 2 + [back]
    stand.run(rounds=60, seconds=1)
    assert (stand.broker.committed, stand.broker.offsets) == (
        [b"evil", b"worse", b"worst"],
        {ZERO: 3},
    )


def test_a_client_that_does_not_close(stand: Stand) -> None:
    """A producer that cannot be closed is forced to, and stops nothing."""
    forced: list[bool] = []
    stand.broker.failures = {"close": [KafkaTimeoutError("flush")]}
    stand.add(b"evil", sealed=False)
    stand.make()
    stand.broker.made[0]._sender = SimpleNamespace(
        force_close=lambda: forced.append(True)
    )  # type: ignore
    stand.run()
    assert (stand.broker.committed, forced) == ([b"evil"], [True])


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"transactional_id": None}, "transactional_id"),
        ({"key_serializer": str}, "key_serializer"),
        ({"value_serializer": str}, "value_serializer"),
    ],
)
def test_producer_refused(config: dict[str, Any], what: str) -> None:
    """A producer without transactions, or that changes what it sends, is refused at once."""
    with pytest.raises(ConfigurationError, match=what):
        kafka.TransactionalDeadLetters(lambda: Producer(Broker(), **config), "dead")  # type: ignore


@pytest.mark.parametrize(("timeout", "block"), [(30, 5000), (2, 2000)])
def test_missing_topic_is_noticed_soon(timeout: float, block: int, stand: Stand) -> None:
    """The producer waits for metadata at most 5 s, and never longer than for a confirm."""
    stand.sink(timeout=timeout)
    assert stand.broker.made[0].config["max_block_ms"] == block


def test_settings_refused(stand: Stand) -> None:
    """A client where a function is wanted, no topic, and no time are refused."""
    producer: Any = Producer(stand.broker)
    for arguments in (
        (producer, "dead"),
        (lambda: producer, ""),
        (lambda: producer, "dead", 0),
    ):
        with pytest.raises(ConfigurationError):
            kafka.TransactionalDeadLetters(*arguments)


@pytest.mark.parametrize("level", ["read_uncommitted", None])
def test_reader_of_uncommitted_refused(level: Any, stand: Stand) -> None:
    """A consumer that could read an offset under an open transaction would write its letter twice: refused."""
    stand.client.config["isolation_level"] = level
    with pytest.raises(ConfigurationError, match="read_committed"):
        stand.make()


def test_no_letter_without_its_offset(stand: Stand) -> None:
    """For those who commit themselves a transactional sink takes no letter."""
    with pytest.raises(ConfigurationError, match="offsets"):
        stand.sink().publish(letter())
