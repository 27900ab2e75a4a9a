"""Kafka records sealed together, on a client of our own making: when, in which order, and what fails."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka.errors import IllegalStateError, KafkaTimeoutError
    from kafka.future import Future
    from kafka.partitioner import DefaultPartitioner, StickyPartitioner

    from integration.kafka_batches import BatchContract, FakeClient, Seen, Vault
    from mqauth.brokers import kafka
    from mqauth.brokers.kafka import sealing as kafka_sealing
    from mqauth.brokers.log import sealing as log_sealing

from mqauth.errors import Cause, ConfigurationError, MalformedMessage, Unavailable
from mqauth.testing import FakeClock, Forge


class FakeWorld:
    """One client that a test acknowledges."""

    topic = "orders"

    def __init__(self) -> None:
        self.made = FakeClient()

    def client(self, **settings: Any) -> FakeClient:
        """Return it."""
        self.made.config |= settings
        return self.made

    def settle(self) -> None:
        """Acknowledge."""
        self.made.acknowledge()

    def log(self) -> list[Seen]:
        """Return both partitions."""
        return [*self.made.logs["orders", 0], *self.made.logs["orders", 1]]


class TestContract(BatchContract):
    """The fake keeps the contract the real broker is held to."""

    @pytest.fixture
    def world(self) -> FakeWorld:
        """A client that a test acknowledges."""
        return FakeWorld()


class FakeAlarm:
    """An alarm a test rings."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self.ring = ring
        self.times: list[float] = []

    def set(self, seconds: float, /) -> None:
        """Note it."""
        self.times.append(seconds)


class Stand:
    """A producer, its client, key and alarm; its topic is known and a record is in flight."""

    def __init__(
        self,
        *,
        batch: int = 4,
        linger: float = 0.005,
        busy: bool = True,
        max_in_flight: int = 10_000,
        **config: Any,
    ) -> None:
        self.forge = Forge()
        self.vault = Vault(self.forge)
        self.client: Any = FakeClient(**config)
        self.producer = kafka.Producer(
            self.client,
            self.forge.signer(key=self.vault),
            batch=batch,
            linger=linger,
            max_in_flight=max_in_flight,
        )
        assert self.producer._sealing is not None
        self.sealing = self.producer._sealing
        self.alarm = FakeAlarm(lambda: self.sealing.flush(None))
        self.sealing._timer = self.alarm
        self.send(b"first")
        if not busy:
            self.client.acknowledge()

    def send(self, body: bytes, partition: int = 0, topic: str = "orders") -> Any:
        """Send to a partition."""
        return self.producer.send(topic, body, b"k", None, partition)

    def bodies(self, partition: int = 0, topic: str = "orders") -> list[bytes | None]:
        """Return what stands in a partition."""
        return [seen.value for seen in self.client.logs[topic, partition]]


def test_few_close_records_wait_for_none() -> None:
    """Records wait for others once some have come close behind each other, however long each took to be sent."""
    clock = FakeClock()
    buffer = log_sealing.ClientBuffer(0.0, 0.0, clock.monotonic)
    told = []
    for pause in (
        0.0,
        *[log_sealing.CLOSE / 2] * (log_sealing.BURST + 2),
        log_sealing.CLOSE * 2,
        0.0,
    ):
        clock.advance(pause)
        told.append(buffer.came())
        clock.advance(log_sealing.CLOSE * 2)
        buffer.taken()
    assert told == [False] * (log_sealing.BURST + 1) + [True] * 2 + [False] * 2


def test_as_it_comes(forge: Forge, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any setting a record alone has the single form, and those sent behind it share a token by topic."""
    monkeypatch.setattr(log_sealing, "CLOSE", math.inf)
    monkeypatch.setattr(log_sealing, "BURST", 0)
    client: Any = FakeClient()
    client.topics["refunds"] = 1
    producer = kafka.Producer(client, forge.signer())
    producer._sealing._timer = alarm = FakeAlarm(print)
    for topic in ("orders", "refunds"):
        producer.send(topic, b"first", b"k", None, 0)
    for n in range(3):
        for topic in ("orders", "refunds"):
            producer.send(topic, b"%d" % n, b"k", None, 0)
    producer.flush()
    for topic, alone in {"orders": 1, "refunds": 0}.items():
        heads = [seen.headers[-1][1].partition(b"~") for seen in client.logs[topic, 0]]
        assert [bool(proof) for *_, proof in heads] == [
            number >= alone for number in range(4)
        ]
        assert len({token for token, *_ in heads}) == 1 + alone
    shared = {
        client.logs[topic, 0][1].headers[-1][1].partition(b"~")[0]
        for topic in ("orders", "refunds")
    }
    assert len(shared) == 2
    assert alarm.times == [0]


def test_records_that_come_slowly_are_sealed_at_once(
    forge: Forge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A record that comes long after another waits for none, though that one is in flight: no thread is woken."""
    monkeypatch.setattr(log_sealing, "CLOSE", 0.0)
    client: Any = FakeClient()
    producer = kafka.Producer(client, forge.signer())
    producer._sealing._timer = alarm = FakeAlarm(print)
    for _ in range(2):
        producer.send("orders", b"x", b"k", None, 0)
    producer.flush()
    alarm.times.clear()
    for _ in range(2):
        producer.send("orders", b"x", b"k", None, 0)
    heads = [seen.headers[-1][1].partition(b"~") for seen in client.logs["orders", 0]]
    assert [bool(proof) for *_, proof in heads] == [False] * 4
    assert alarm.times == []


def test_a_client_that_waits() -> None:
    """A record is held while its client waits anyway, but not when it is about to send, nor with an empty one."""
    now = [100.0]
    buffer = log_sealing.ClientBuffer(4, 0, lambda: now[0])
    assert buffer.hold() == 0
    buffer.filled()
    now[0] += 1
    assert buffer.hold() == 2
    # What joins does not make the client wait for longer.
    buffer.filled()
    now[0] += 2.5
    assert buffer.hold() == 0
    assert log_sealing.ClientBuffer(4, 0.5, lambda: now[0]).hold() == 0.5
    now[0] += 0.5
    buffer.filled()
    assert buffer.hold() == 3


def test_at_once_needs_no_alarm() -> None:
    """With nothing in flight no time passes, and no thread is needed."""
    stand = Stand(busy=False)
    for n in range(3):
        stand.send(b"%d" % n)
        stand.client.acknowledge()
    assert (len(stand.bodies()), stand.alarm.times) == (4, [])


def test_new_topic() -> None:
    """The first record of a topic waits for its metadata on its sender's thread, then for others."""
    stand = Stand()
    stand.send(b"waits")
    with pytest.raises(KafkaTimeoutError):
        stand.send(b"1", topic="new")
    assert (stand.bodies(), stand.producer._room.taken) == ([b"first"], 2)
    stand.client.topics["new"] = 1
    stand.send(b"2", topic="new")
    assert stand.bodies(topic="new") == []
    stand.send(b"3", topic="new")
    stand.producer.flush()
    assert stand.bodies(topic="new") == [b"2", b"3"]


def test_the_first_record_of_a_topic_fails_as_any_does() -> None:
    """Without a key the first record of a topic fails its future, as each later one does."""
    stand = Stand()
    stand.client.topics["new"] = 1
    stand.vault.error = Unavailable(Cause.KEYS_UNAVAILABLE)
    futures = [stand.send(b"v", topic="new") for _ in range(2)]
    stand.alarm.ring()
    assert all(isinstance(future.exception, Unavailable) for future in futures)


def test_records_without_a_key_share_a_partition() -> None:
    """What shares a token goes to one partition, the next token to another; keys and names stay."""
    stand = Stand(batch=3, partitioner=DefaultPartitioner())
    for n in range(6):
        stand.producer.send("orders", b"%d" % n)
    stand.producer.send("orders", b"keyed", b"k", None)
    stand.producer.send("orders", b"named", partition=1)
    stand.producer.flush()
    assert stand.bodies() == [b"first", b"3", b"4", b"5"]
    assert stand.bodies(1) == [b"0", b"1", b"2", b"keyed", b"named"]


def test_a_partition_that_cannot_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the client fails to choose a partition that record fails, and the others of its batch are sent."""
    stand = Stand(batch=3, partitioner=DefaultPartitioner())
    choices = iter([TypeError("no partitions")])

    def choose(*_: Any) -> int:
        if (error := next(choices, None)) is not None:
            raise error
        return 0

    monkeypatch.setattr(stand.client, "_partition", choose)
    futures = [stand.producer.send("orders", b"%d" % n) for n in range(3)]
    assert isinstance(futures[0].exception, TypeError)
    assert stand.bodies() == [b"first", b"1", b"2"]


def test_a_partitioner_that_may_look_at_values_is_asked_each_time() -> None:
    """Where the client has a partitioner of another kind each record is its choice."""
    stand = Stand(batch=3, partitioner=StickyPartitioner())  # type: ignore[no-untyped-call]
    for n in range(3):
        stand.producer.send("orders", b"%d" % n)
    assert stand.bodies() == [b"first", b"0", b"1", b"2"]


def test_too_many_headers() -> None:
    """Records whose token would be over its size fail alone."""
    stand = Stand()
    headers = [(f"header-{number}", b"x") for number in range(1000)]
    large = stand.producer.send("orders", b"large", b"k", headers, 0)
    small = stand.send(b"small")
    stand.producer.flush()
    assert isinstance(large.exception, MalformedMessage)
    assert small.succeeded()
    assert stand.bodies() == [b"first", b"small"]


def test_closed_gives_room_back() -> None:
    """What is refused after the end takes no place."""
    stand = Stand()
    stand.producer.close()
    for _ in range(3):
        with pytest.raises(IllegalStateError):
            stand.send(b"late")
    assert stand.producer._room.taken == 0


def test_lost_topic() -> None:
    """A topic whose metadata is gone is waited for once a batch, not once a record; other topics go on."""
    stand = Stand()
    stand.client.topics["gone"] = 1
    lost = [stand.send(b"v", topic="gone") for _ in range(3)]
    del stand.client.topics["gone"]
    kept = stand.send(b"kept")
    assert stand.client.sends.count("gone") == 1
    assert all(isinstance(future.exception, KafkaTimeoutError) for future in lost)
    stand.client.topics["gone"] = 1
    again = stand.send(b"again", topic="gone")
    stand.producer.flush()
    assert kept.succeeded()
    assert again.succeeded()


def test_loud(caplog: pytest.LogCaptureFixture) -> None:
    """A batch that cannot be sealed is logged as an error, by its size and cause."""
    stand = Stand()
    stand.vault.error = Unavailable(Cause.KEYS_UNAVAILABLE, "secret place")
    stand.send(b"1")
    stand.send(b"2")
    stand.alarm.ring()
    (record,) = caplog.records
    assert record.getMessage() == "2 of 2 records not sent: Unavailable keys_unavailable"
    assert stand.bodies() == [b"first"]


def test_interrupted() -> None:
    """What interrupts the sealing thread is raised on it; every future of the batch knows, and places are free."""
    stand = Stand(batch=2)
    first = stand.send(b"1")
    stand.vault.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        stand.send(b"2")
    assert isinstance(first.exception, KeyboardInterrupt)
    stand.vault.error = None
    stand.send(b"3")
    stand.producer.flush()
    assert (stand.bodies(), stand.producer._room.taken) == ([b"first", b"3"], 0)


def test_callback_sends() -> None:
    """A callback may send again and fill a batch, whichever thread it runs on, also when its record has failed."""
    stand = Stand(batch=2)
    stand.vault.error = Unavailable(Cause.KEYS_UNAVAILABLE)

    def retry(_error: Exception) -> None:
        stand.vault.error = None
        for n in range(3):
            stand.send(b"again %d" % n)

    stand.send(b"1").add_errback(retry)
    stand.send(b"2")
    stand.producer.flush()
    assert stand.bodies() == [b"first", b"again 0", b"again 1", b"again 2"]


class Stuck(FakeClient):
    """A client whose ``send`` hangs when it is told to."""

    def __init__(self, **config: Any) -> None:
        super().__init__(**config)
        self.hang, self.hangs, self.go = False, threading.Event(), threading.Event()

    def send(self, topic: str, **record: Any) -> Any:
        """Hang first."""
        if self.hang:
            self.hangs.set()
            assert self.go.wait(timeout=30)
        return super().send(topic, **record)


def test_another_thread_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread hangs in the client others do not hang with it; their records go afterwards, in order."""
    monkeypatch.setattr("tests.test_kafka_sealing.FakeClient", Stuck)
    stand = Stand(batch=2, max_block_ms=0)
    stand.client.hang = True
    stand.send(b"1")
    thread = threading.Thread(target=stand.send, args=(b"2",))
    thread.start()
    assert stand.client.hangs.wait(timeout=30)
    futures = [stand.send(b"%d" % n) for n in range(3, 8)]
    with pytest.raises(KafkaTimeoutError):
        stand.producer.flush(timeout=0)
    assert not any(future.is_done for future in futures)
    assert (
        len(stand.alarm.times) == 6
    )  # also for the two batches that were full and could not go
    stand.client.go.set()
    thread.join(timeout=30)
    stand.alarm.ring()
    assert stand.bodies() == [b"first", *(b"%d" % n for n in range(1, 8))]


def test_room() -> None:
    """Records that wait take room: no more are held than may be in flight."""
    stand = Stand(max_block_ms=0)
    stand.producer._room._bound = 3
    stand.send(b"1")
    stand.send(b"2")
    with pytest.raises(KafkaTimeoutError, match="in flight"):
        stand.send(b"3")
    stand.producer.flush()
    stand.send(b"4")
    assert stand.bodies() == [b"first", b"1", b"2", b"4"]


@pytest.mark.parametrize(
    "wrong",
    [{"batch": 0}, {"batch": 1025}, {"batch": True}, {"batch": 2.0}, {"linger": -1}, {"linger": 10.1},
     {"max_in_flight": 0}],
    ids=str,
)  # fmt: skip
def test_settings_refused(wrong: dict[str, Any], forge: Forge) -> None:
    """A batch, a time or a number of records out of its limits is refused."""
    client: Any = FakeClient()
    with pytest.raises(ConfigurationError):
        kafka.Producer(client, forge.signer(), **wrong)


def test_stage() -> None:
    """What waits for a batch wakes at its end; a call that comes in between is neither lost nor made twice."""
    sealing = Stand().sealing
    future, sent = (
        kafka_sealing.RecordFuture(sealing),
        kafka_sealing.FailedFuture(OSError("gone")),
    )
    record: Any = ("orders", 0, None, None, future)
    calls: list[Any] = []
    assert (sealing.is_sent(future, 0), sealing.keep(future, calls.append)) == (
        False,
        True,
    )
    tells = [*sealing.handed([record], [sent]), *sealing.handed([record], [sent])]
    assert (sealing.is_sent(future, 0), sealing.keep(future, calls.append)) == (
        True,
        False,
    )
    for tell in tells:
        tell()
    assert calls == [sent]
    chained: Any = Future()  # type: ignore[no-untyped-call]
    future.chain(chained)
    assert chained.exception is sent.exception


def test_places() -> None:
    """The places of a batch are free once all of it is done, in whatever order that comes."""
    room = kafka_sealing.InFlightLimit(3)
    futures: list[Any] = [Future() for _ in range(3)]  # type: ignore[no-untyped-call]
    for _ in futures:
        room.enter(0)
    room.leave_with(futures)
    for index, taken in ((1, 3), (2, 3), (0, 0)):
        futures[index].success(None) if index else futures[index].failure(OSError("gone"))
        assert room.taken == taken
    room.leave_with([])
    assert room.taken == 0


Act = tuple[str, int]


@settings(max_examples=60, deadline=None)
@given(
    acts=st.lists(
        st.tuples(st.sampled_from(["send"] * 8 + ["large", "ring", "flush", "settle", "down", "up"]),
                  st.integers(0, 1)), max_size=60),
    batch=st.integers(2, 5),
)  # fmt: skip
def test_any_course(acts: list[Act], batch: int) -> None:
    """Whatever happens, in each partition what was sent stands in order, and each future resolves exactly once."""
    stand = Stand(batch=batch, max_request_size=100)
    told: list[list[Any]] = []
    for number, (act, partition) in enumerate(acts):
        if act in {"send", "large"}:
            body = b"%d" % number if act == "send" else bytes(200)
            told.append([partition, body])
            future = stand.send(body, partition)
            future.add_callback(told[-1].append)
            future.add_errback(told[-1].append)
        elif act in {"down", "up"}:
            stand.vault.error = (
                Unavailable(Cause.KEYS_UNAVAILABLE) if act == "down" else None
            )
        else:
            {
                "ring": stand.alarm.ring,
                "flush": stand.producer.flush,
                "settle": stand.client.acknowledge,
            }[act]()
    stand.producer.close()
    assert [len(found) for found in told] == [3] * len(told)
    for partition in (0, 1):
        sent = [
            body
            for place, body, outcome in told
            if place == partition and not isinstance(outcome, Exception)
        ]
        assert stand.bodies(partition)[1 - partition :] == sent
        for seen in stand.client.logs["orders", partition]:
            assert seen.headers[-1][0] == "mqauth-token"
    assert stand.producer._room.taken == 0


def test_alarm() -> None:
    """An alarm rings once for all that was set, and sooner where it was set sooner."""
    rang = threading.Semaphore(0)
    alarm = log_sealing.ThreadTimer(rang.release)
    alarm.set(3600)
    while not alarm._changed._waiters:  # type: ignore[attr-defined]
        os.sched_yield()
    alarm.set(0)
    assert rang.acquire(timeout=30)
    assert alarm._due is None
    alarm.set(3600)
    assert not rang.acquire(blocking=False)


def test_alarm_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its thread ends when there was nothing to wait for, and there is another when it is needed."""
    monkeypatch.setattr(log_sealing, "IDLE", 0)
    rang = threading.Semaphore(0)
    alarm = log_sealing.ThreadTimer(rang.release)
    for _ in range(2):
        alarm.set(0)
        assert rang.acquire(timeout=30)
        while (thread := alarm._thread) is not None:
            thread.join(timeout=30)
            assert not thread.is_alive()
