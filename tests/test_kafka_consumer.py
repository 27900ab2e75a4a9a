"""``mqauth.brokers.kafka``: the consumer on a client of our own making; the real one is under integration."""

from __future__ import annotations

import signal
import threading
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import pytest

from mqauth import (
    Cause,
    ConfigurationError,
    MemoryReplayStore,
    Message,
    Pipeline,
    Unavailable,
    Verdict,
    Verified,
)
from mqauth.brokers.log.offsets import CODECS
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.start import Committed, Start
from mqauth.flow import Attempts, ColourError
from mqauth.testing import FakeClock, Forge
from mqauth.testing.forge import ISSUER
from tests.test_rabbitmq_consumer import Letters

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import ConsumerRebalanceListener, OffsetAndMetadata, TopicPartition
    from kafka.consumer.subscription_state import SubscriptionState
    from kafka.errors import (
        KafkaTimeoutError,
        TopicAuthorizationFailedError,
    )
    from kafka.protocol.consumer.offsets import OffsetResetStrategy

    from mqauth.brokers import kafka
    from mqauth.brokers.kafka import repair as kafka_repair
    from mqauth.brokers.kafka.consumer import Listener
    from mqauth.brokers.kafka.producer import Replies as KafkaReplies
    from tests.simulation.kafka_broker import Record

ZERO, ONE = TopicPartition("orders", 0), TopicPartition("orders", 1)
record = partial(Record, "orders")


class Subscription:
    """Stands for what kafka-python keeps of a subscription."""

    def __init__(self, listener: Any) -> None:
        self.rebalance_listener = listener
        self.subscribed_pattern = None


class Client:
    """A ``KafkaConsumer`` over lists; ``idle`` is called when a poll finds nothing."""

    def __init__(self, listener: Any = None, **config: Any) -> None:
        self.config = {
            "enable_auto_commit": False, "key_deserializer": None, "value_deserializer": None,
            "group_id": "billing", "auto_offset_reset": "earliest",
        } | config  # fmt: skip
        self._subscription = Subscription(listener)
        self._coordinator: Any = SimpleNamespace(
            rejoining=False,
            need_rejoin=lambda: False,
            fetch_committed_offsets=self.group_offsets,
        )
        self.log: dict[Any, list[Any]] = {ZERO: [], ONE: []}
        self.position = {ZERO: 0, ONE: 0}
        self.held = {ZERO, ONE}
        self._paused: set[Any] = set()
        self.commits: list[dict[Any, int]] = []
        self.seeks: list[tuple[Any, int]] = []
        self.max_records = 500
        self.events: list[Callable[[], None]] = []
        self.idle: Callable[[], None] = lambda: None

    @property
    def listener(self) -> Any:
        return self._subscription.rebalance_listener

    @property
    def committed(self) -> dict[Any, int]:
        merged: dict[Any, int] = {}
        for commit in self.commits:
            merged |= commit
        return merged

    def subscription(self) -> set[str] | None:
        return {"orders"}

    def group_offsets(self, places: list[Any], timeout_ms: int) -> dict[Any, Any]:
        """Return offsets that the group committed before."""
        return dict.fromkeys(places, OffsetAndMetadata(0, "mqauth partitions=2", -1))

    def beginning_offsets(self, places: list[Any], timeout_ms: int) -> dict[Any, int]:
        return {
            place: min([record.offset for record in self.log[place]], default=0)
            for place in places
        }

    def assignment(self) -> set[Any]:
        return set(self.held)

    def paused(self) -> set[Any]:
        return set(self._paused)

    def pause(self, *partitions: Any) -> None:
        self._paused |= set(partitions)

    def resume(self, *partitions: Any) -> None:
        self._paused -= set(partitions)

    def seek(self, partition: Any, offset: int) -> None:
        self.seeks.append((partition, offset))
        self.position[partition] = offset

    def commit(self, offsets: dict[Any, Any], timeout_ms: int) -> None:
        assert timeout_ms > 0
        assert all(isinstance(offset, OffsetAndMetadata) for offset in offsets.values())
        self.commits.append(
            {partition: offset.offset for partition, offset in offsets.items()}
        )

    def poll(self, timeout_ms: int) -> dict[Any, list[Any]]:
        if self.events:
            self.events.pop(0)()
        found = {}
        for partition in sorted(self.held - self._paused):
            batch = [
                record
                for record in self.log[partition]
                if record.offset >= self.position[partition]
            ]
            if batch[: self.max_records]:
                found[partition] = batch[: self.max_records]
                self.position[partition] = found[partition][-1].offset + 1
        if not found:
            self.idle()
        return found


class Records:
    """Audit records in a list, unavailable while told so."""

    def __init__(self) -> None:
        self.down = False
        self.written: list[Any] = []

    def write(self, record: Any, /) -> None:
        if self.down:
            raise OSError("disk full")
        self.written.append(record)


class Bench:
    """A consumer with everything around it; runs on the caller's thread until all is quiet."""

    def __init__(self, clock: FakeClock, forge: Forge) -> None:
        self.clock, self.forge = clock, forge
        self.client, self.letters, self.audit = Client(), Letters(), Records()
        self.handled: list[Verified] = []
        self.handler: Callable[[Verified], Any] = self.handled.append
        self.consumer: Any = None
        self.quiet = 0

    def guard(self, **settings: Any) -> Pipeline:
        wanted: dict[str, Any] = {
            "verifier": self.forge.verifier(), "policy": self.forge.policy("kafka:orders"),
            "replay": MemoryReplayStore(clock=self.clock), "audit": self.audit, "clock": self.clock,
            "attempts": Attempts(limit=2, wait=0, wait_max=0),
        }  # fmt: skip
        return Pipeline(**(wanted | settings))

    def add(
        self,
        *bodies: bytes,
        partition: Any = ZERO,
        sealed: bool = True,
        headers: Any = (),
    ) -> None:
        for body in bodies:
            message = Message(
                destination="kafka:orders", body=body, key=b"k", headers=tuple(headers)
            )
            message = self.forge.seal(message) if sealed else message
            log = self.client.log[partition]
            log.append(
                record(
                    partition.partition,
                    len(log),
                    message.body,
                    message.key,
                    list(message.headers),
                )
            )

    def make(self, guard: Pipeline | None = None, **settings: Any) -> Any:
        wanted: dict[str, Any] = {"dead_letters": self.letters, "workers": 0}
        self.consumer = kafka.Consumer(
            self.client,  # type: ignore[arg-type]
            guard or self.guard(),
            lambda verified: self.handler(verified),  # noqa: PLW0108 - looked up at each call
            **(wanted | settings),
        )
        return self.consumer

    def run(self, rounds: int = 5, seconds: float = 0.0, **settings: Any) -> None:
        """Run until so many polls found nothing; each lets so much time pass."""
        if self.consumer is None or settings:
            self.make(**settings)

        def idle() -> None:
            self.quiet += 1
            self.clock.advance(seconds)
            if self.quiet >= rounds:
                self.consumer.stop()

        self.client.idle = idle
        self.consumer.run()

    @property
    def bodies(self) -> list[bytes | None]:
        return [seen.body for seen in self.handled]


@pytest.fixture
def bench(clock: FakeClock, forge: Forge) -> Bench:
    """A bench of its own."""
    return Bench(clock, forge)


def test_runs_once(bench: Bench) -> None:
    """A second run of one consumer is refused: it would start with the stop of the first."""
    bench.run()
    with pytest.raises(ConfigurationError, match="once"):
        bench.consumer.run()


def test_assignment_unknown(bench: Bench) -> None:
    """A listener whose client cannot say what it holds drops what is revoked, and raises nothing."""
    bench.make()
    bench.add(b"0")

    def fail() -> set[Any]:
        raise RuntimeError

    bench.consumer._assignment.begin(
        {ZERO: Start(0, Committed(0, ""), seek=False)}, {ZERO}
    )
    part = bench.consumer._assignment.partition(ZERO)
    bench.client.assignment = fail  # type: ignore[method-assign]
    bench.client.listener.on_partitions_revoked({ZERO})
    assert not part.alive


def test_a_rebalance_inside_a_poll_waits(bench: Bench) -> None:
    """A rebalance that becomes due while the client polls is not begun there, as long as a handler runs."""
    coordinator, seen = Coordinator(), list[bool]()
    coordinator.rejoining = False
    bench.client._coordinator = coordinator
    polled = threading.Event()

    def polling() -> None:
        coordinator.rejoin_needed = True
        seen.append(coordinator.need_rejoin())
        coordinator.rejoin_needed = bool(bench.handled)
        polled.set()

    def handler(verified: Verified) -> None:
        assert polled.wait(30)
        bench.handled.append(verified)
        bench.consumer.stop()

    bench.handler = handler
    bench.client.events = [lambda: None, polling]
    bench.add(b"0")
    bench.run(rounds=10**9, workers=1)
    assert seen == [False]
    coordinator.rejoin_needed = True
    assert coordinator.need_rejoin()


def test_a_rebalance_inside_a_poll_waits_for_a_commit(bench: Bench) -> None:
    """A rebalance that becomes due while the client polls is not begun there, while an offset is uncommitted."""
    coordinator, seen = Coordinator(), list[Any]()
    coordinator.rejoining = False
    bench.client._coordinator = coordinator

    def polling() -> None:
        coordinator.rejoin_needed = True
        seen.append((coordinator.need_rejoin(), bench.client.committed))

    # Offsets are committed ten times a second at most, and this clock stands still.
    bench.client.events = [lambda: None, polling, polling]
    bench.add(b"0")
    bench.run()
    assert seen == [(False, {}), (True, {ZERO: 1})]


def test_a_poll_that_is_refused_for_good(bench: Bench) -> None:
    """It ends the run with the client's own error."""
    bench.client.events = [mock.Mock(side_effect=TopicAuthorizationFailedError("orders"))]
    with pytest.raises(TopicAuthorizationFailedError):
        bench.run()


@pytest.mark.parametrize(
    "first", [TopicAuthorizationFailedError("orders"), KeyboardInterrupt()]
)
def test_the_first_error_is_raised(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, first: BaseException
) -> None:
    """What ended a run is raised, also where the last commit and leaving the client fail; they are noted."""

    def end() -> None:
        monkeypatch.setattr(
            calls,
            "commit",
            mock.Mock(side_effect=TopicAuthorizationFailedError("orders")),
        )
        raise first

    calls = bench.make().calls
    bench.client.events = [end]
    monkeypatch.setattr(calls, "close", mock.Mock(side_effect=LookupError("key=secret")))
    with pytest.raises(type(first)) as raised:
        bench.run()
    assert raised.value is first
    assert first.__notes__ == [
        "and later: TopicAuthorizationFailedError",
        "and later: LookupError",
    ]
    assert not bench.consumer.health().consuming


def test_a_client_that_cannot_be_left_is_told(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without an earlier error, the one of leaving the client is raised."""
    monkeypatch.setattr(
        bench.make().calls, "close", mock.Mock(side_effect=LookupError("closed"))
    )
    with pytest.raises(LookupError, match="closed"):
        bench.run()


def test_poll_for_now(bench: Bench) -> None:
    """A poll that fails for now is made again."""
    bench.add(b"0")

    def slow() -> None:
        raise KafkaTimeoutError("slow")

    bench.client.events = [slow]
    bench.run()
    assert bench.bodies == [b"0"]


class Batch:
    """Stands for kafka-python's record batch."""

    next_offset = 5


class Iterated:
    """Stands for kafka-python's iterator over a partition's records; the name of its method is what is found."""

    topic_partition = ZERO
    next_fetch_offset = 2

    def _unpack_records(self, batch: Batch) -> None:
        raise ValueError("no UTF-8")

    def fail(self) -> None:
        self._unpack_records(Batch())


def poisoned() -> Exception:
    """Return an exception as ``poll()`` raises it."""
    with pytest.raises(ValueError, match="UTF-8") as caught:
        Iterated().fail()
    return caught.value


def test_poison_stops(bench: Bench) -> None:
    """A record that cannot be parsed ends the run by default, named exactly; what came before it is committed."""
    bench.add(b"0", b"1")
    bench.client.events = [lambda: None, lambda: None, Iterated().fail]
    with pytest.raises(
        kafka.PoisonRecordError,
        match=r"orders-0: the batch from offset 2 to 4 .*ValueError",
    ):
        bench.run()
    assert bench.client.committed == {ZERO: 2}
    assert bench.audit.written == []


@pytest.mark.parametrize("codec", ["zstd", "snappy", "lz4"])
def test_a_codec_that_is_missing_here(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    """Honest records in a codec that is missing here are not skipped: the run ends, and names the package."""
    number = {name: number for number, name in CODECS.items()}[codec]
    monkeypatch.setattr(Batch, "compression_type", number, raising=False)
    monkeypatch.setattr(f"kafka.codec.has_{codec}", lambda: False)
    bench.add(b"0", b"1")
    bench.client.events = [lambda: None, lambda: None, Iterated().fail]
    package = {"zstd": "zstandard", "snappy": "python-snappy", "lz4": "lz4"}[codec]
    with pytest.raises(
        ConfigurationError,
        match=rf"orders-0: .*offset 2 .*{codec}.*pip install {package}$",
    ):
        bench.run(on_poison="skip")
    assert (bench.client.committed, bench.audit.written) == ({ZERO: 2}, [])


def test_poison_skipped(bench: Bench) -> None:
    """With ``skip`` the batch is put on record, then stepped over and committed, and the rest goes on."""
    bench.add(b"0", b"1")
    bench.client.log[ZERO] += [replace(bench.client.log[ZERO][0], offset=7, headers=[])]
    bench.client.max_records = 2

    def poison() -> None:
        Iterated().fail()

    bench.client.events = [lambda: None, poison]
    bench.run(on_poison="skip")
    record = bench.audit.written[0].as_dict()
    assert (record["verdict"], record["reason"], record["scope"]) == (
        "rejected",
        "message_malformed",
        "billing",
    )
    assert (record["broker"]["offset"], record["broker"]["last_offset"]) == (2, 4)
    assert (ZERO, 5) in bench.client.seeks
    assert bench.client.committed == {ZERO: 8}
    assert [letter.message.origin.offset for letter in bench.letters.found] == [7]


def test_poison_waits_for_audit(bench: Bench) -> None:
    """Nothing is skipped that could not be put on record first; the partition waits for the audit."""
    bench.audit.down = True
    bench.make(on_poison="skip")
    stalls: list[Any] = []

    def up() -> None:
        stalls.append(bench.consumer.health())
        bench.audit.down = False

    def poison() -> None:
        if ZERO not in bench.client.paused():
            Iterated().fail()

    bench.client.events = [poison, up] + [poison] * 4
    bench.run(rounds=5, seconds=1)
    assert stalls[0].cause is Cause.AUDIT_UNAVAILABLE
    assert len(bench.audit.written) >= 1
    assert bench.client.committed == {ZERO: 5}


class Fetcher:
    """Stands for kafka-python's fetcher, which keeps an exception for the next poll."""

    def __init__(self) -> None:
        self._next_in_line_exception_metadata: Any = None
        self._next_partition_records: Any = None
        self._paused_partition_records: dict[Any, Any] = {}


def test_poison_postponed(bench: Bench) -> None:
    """An exception kept for the next poll is dealt with at once, after the records that came with it."""
    fetcher = Fetcher()
    bench.client._fetcher = fetcher  # type: ignore[attr-defined]
    bench.add(b"other", partition=ONE)

    class Kept:
        exception = poisoned()

    def keep() -> None:
        fetcher._next_in_line_exception_metadata = Kept
        fetcher._next_partition_records = Iterated()
        fetcher._paused_partition_records[ZERO] = Iterated()

    bench.client.events = [keep]
    bench.run(on_poison="skip")
    assert bench.bodies == [b"other"]
    assert len(bench.audit.written) == 1
    assert fetcher._next_in_line_exception_metadata is None
    assert fetcher._next_partition_records is None
    assert fetcher._paused_partition_records == {}
    assert bench.client.committed == {ZERO: 5, ONE: 1}


class Coordinator:
    """Stands for kafka-python's coordinator after a poll that was too short."""

    def __init__(self) -> None:
        self.rejoining = True
        self.rejoin_needed = False
        self.waits: list[int] = []

    def request_rejoin(self) -> None:
        self.rejoin_needed = True

    def need_rejoin(self) -> bool:
        return self.rejoin_needed

    def poll(self, timeout_ms: int) -> None:
        self.waits.append(timeout_ms)
        self.rejoining = self.rejoin_needed = False

    fetch_committed_offsets = Client().group_offsets


def test_half_done_join(bench: Bench) -> None:
    """A join that kafka-python would forget is asked for again, and waited for longer than a short poll."""
    coordinator = Coordinator()
    bench.client._coordinator = coordinator
    bench.run()
    assert coordinator.waits == [1000]


class Exhausted:
    """Stands for an iterator over records that are all delivered: there, and false."""

    def __bool__(self) -> bool:
        return False


def test_parked_records(bench: Bench) -> None:
    """An exhausted iterator is taken out of the line, where it would keep parked records from being delivered."""
    fetcher = Fetcher()
    fetcher._next_partition_records = Exhausted()
    bench.client._fetcher = fetcher  # type: ignore[attr-defined]
    bench.run()
    assert fetcher._next_partition_records is None


class Looking(Fetcher):
    """Stands for a fetcher that found nothing; ``landed`` is what has come since."""

    def __init__(self, found: Any, landed: list[str]) -> None:
        super().__init__()
        self.found = found
        self._completed_fetches = landed

    def fetch_records(self, *_: Any, **__: Any) -> Any:
        """Return what was found, and whether there is nothing to wait for."""
        return self.found


@pytest.mark.parametrize(
    ("found", "landed", "told"),
    [
        (({}, True), ["response"], ({}, False)),
        (({}, True), [], ({}, True)),
        (({}, False), ["response"], ({}, False)),
        ({"of": "another version"}, ["response"], {"of": "another version"}),
    ],
)
def test_a_response_that_has_just_come(
    bench: Bench, found: Any, landed: list[str], told: Any
) -> None:
    """While a consumer runs, its client is not told to sleep over a response; it is handed back as it was."""
    fetcher, seen = Looking(found, landed), list[Any]()
    bench.client._fetcher = fetcher  # type: ignore[attr-defined]
    bench.client.events = [
        lambda: None,
        lambda: seen.append(fetcher.fetch_records(500, timeout_ms=200)),
    ]
    bench.run()
    assert seen == [told]
    assert vars(fetcher).keys() == vars(Looking(found, landed)).keys()


def test_a_method_of_theirs_is_handed_back(bench: Bench) -> None:
    """What somebody had put into the client before us is there again."""
    fetcher = Looking(({}, True), [])
    theirs = fetcher.fetch_records = lambda *_, **__: ({}, False)  # type: ignore[method-assign]
    bench.client._fetcher = fetcher  # type: ignore[attr-defined]
    bench.run()
    assert fetcher.fetch_records is theirs


def test_grace(bench: Bench) -> None:
    """A handler that outlasts the grace time is left behind: not committed, and read again."""
    go_on = threading.Event()
    ended = threading.Event()

    def handler(_verified: Verified) -> None:
        bench.consumer.stop()
        go_on.wait(timeout=30)
        ended.set()

    bench.handler = handler
    bench.add(b"0", b"1")
    bench.run(rounds=10**9, workers=1, grace=0)
    assert bench.client.committed == {}
    assert bench.client.position[ZERO] == 0
    go_on.set()
    assert ended.wait(timeout=30)
    assert bench.handled == []


def test_context_manager(bench: Bench) -> None:
    """``with`` runs in the background and stops gracefully at the end of the block."""
    handled = threading.Event()
    bench.handler = lambda verified: (bench.handled.append(verified), handled.set())
    bench.add(b"0")
    with bench.make(workers=1) as consumer:
        assert handled.wait(timeout=30)
        assert not consumer.failed
    assert bench.client.committed == {ZERO: 1}


def test_context_manager_raises(bench: Bench) -> None:
    """What ended a background run is raised at the end of the block."""
    bench.client.events = [Iterated().fail]
    consumer = bench.make().__enter__()
    consumer._background.join(timeout=30)
    assert consumer.failed
    with pytest.raises(kafka.PoisonRecordError):
        consumer.__exit__(None, None, None)


def test_signals(bench: Bench) -> None:
    """SIGTERM stops it gracefully, and the process gets its own handlers back."""
    kept = signal.getsignal(signal.SIGTERM)
    bench.handler = lambda verified: (
        bench.handled.append(verified),
        signal.raise_signal(signal.SIGTERM),
    )
    bench.add(b"0")
    bench.make().run(signals=True)
    assert bench.client.committed == {ZERO: 1}
    assert signal.getsignal(signal.SIGTERM) is kept


def test_signals_elsewhere(bench: Bench) -> None:
    """Signals belong to the main thread; elsewhere asking for them is refused."""
    errors: list[Exception] = []

    def run() -> None:
        try:
            bench.make().run(signals=True)
        except ConfigurationError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_decode(bench: Bench) -> None:
    """A value is decoded after verification; a body that cannot be costs its message a dead letter, at once."""
    calls = []

    def decode(body: bytes) -> int:
        calls.append(body)
        return int(body)

    bench.add(b"7", b"seven", b"8")
    bench.run(decode=decode)
    assert [seen.value for seen in bench.handled] == [7, 8]
    assert calls == [b"7", b"seven", b"8"]
    assert bench.letters.found[0].rejection.detail == "decode: ValueError"


def test_decode_with_the_message(bench: Bench) -> None:
    """What requires a second argument gets the message too; one that is optional is left alone."""
    bench.add(b"7")
    bench.run(decode=lambda body, verified: (body, verified.subject))
    bench.add(b"8")
    bench.run(decode=lambda body, schema=None: (body, schema))
    assert [seen.value for seen in bench.handled] == [(b"7", "orders-api"), (b"8", None)]


def test_tombstone(bench: Bench) -> None:
    """A tombstone is handled like any message, and not decoded."""
    message = bench.forge.seal(Message(destination="kafka:orders", body=None, key=b"k"))
    bench.client.log[ZERO].append(record(0, 0, None, b"k", list(message.headers)))
    bench.run(decode=int)
    assert [(seen.body, seen.value) for seen in bench.handled] == [(None, None)]


class Replies:
    """Stands for a ``Producer``."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, topic: str, value: bytes, headers: Any) -> Any:
        self.sent.append((topic, value, headers))
        return SimpleNamespace(get=lambda timeout: topic, is_done=True)

    def responder(self) -> KafkaReplies:
        """Return what sends answers."""
        return KafkaReplies(cast(Any, self))

    def check_alive(self) -> None:
        """Say nothing: it is well."""


def test_reply(bench: Bench) -> None:
    """An answer goes to the topic in reply-to with the correlation id, and the handler gets the future."""
    replies = Replies()
    futures: list[Any] = []
    bench.handler = lambda verified: futures.append(verified.reply(b"pong"))
    bench.add(b"ping", headers=[("reply-to", b"answers"), ("correlation-id", b"7")])
    bench.add(b"ping", headers=[("reply-to", b"answers")])
    bench.run(replies=replies)
    assert replies.sent == [
        ("answers", b"pong", [("correlation-id", b"7")]),
        ("answers", b"pong", []),
    ]
    assert [(future.get(), future.is_done) for future in futures] == [
        ("answers", True)
    ] * 2


@pytest.mark.parametrize("replies", [None, Replies()])
def test_no_reply(bench: Bench, replies: Any) -> None:
    """Without ``replies``, or without reply-to, an answer is refused and the handler fails."""
    bench.handler = lambda verified: verified.reply(b"pong")
    bench.add(b"ping")
    bench.run(replies=replies)
    assert bench.letters.found[0].rejection.detail.startswith("ConfigurationError in ")


class Later:
    """An asynchronous plug-in of every kind."""

    version = "later"
    name = "later"

    async def claim(self, request: Any, /) -> Any: ...

    async def confirm(self, request: Any, /) -> None: ...

    async def release(self, request: Any, /) -> None: ...

    async def write(self, record: Any, /) -> None: ...

    async def decide(self, verified: Any, /) -> Any: ...

    async def publish(self, letter: Any, /) -> None: ...

    async def refresh(self, kid: str, received: float, /) -> Any: ...

    def key_set(self) -> Any: ...


async def later(_: Verified) -> None: ...


def on(**config: Any) -> Callable[[Bench], Any]:
    """Return what makes a consumer on a client with these settings."""
    return lambda bench: setattr(bench, "client", Client(**config)) or bench.make()


def of(**settings: Any) -> Callable[[Bench], Any]:
    """Return what makes a consumer of a pipeline with these settings."""
    return lambda bench: bench.make(bench.guard(**settings))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        pytest.param(on(enable_auto_commit=True), "enable_auto_commit", id="a client that would lose messages"),
        pytest.param(on(value_deserializer=int), "value_deserializer", id="a client that would change a body"),
        pytest.param(on(key_deserializer=int), "key_deserializer", id="a client that would change a key"),
        pytest.param(on(group_id=None), "group_id", id="a client without a group"),
        pytest.param(on(listener=object()), "listener", id="an asynchronous listener, which cannot be kept"),
        *((lambda bench, settings=settings: bench.make(**settings), next(iter(settings))) for settings in (
            {"grace": -1}, {"workers": -1}, {"commit_interval": 0}, {"on_poison": "spin"})),
        pytest.param(of(audit=None), "audit", id="without an audit sink no rejection could be settled"),
        # What is asynchronous would be deferred for ever.
        *((of(**{name: Later()}), "asynchronous") for name in ("replay", "audit", "policy")),
        pytest.param(lambda bench: of(verifier=bench.forge.verifier(keys={ISSUER: Later()}))(bench),
                     "asynchronous", id="an asynchronous key source"),
        pytest.param(lambda bench: bench.make(dead_letters=Later()), "asynchronous",
                     id="asynchronous dead letters"),
        pytest.param(lambda bench: kafka.Consumer(bench.client, bench.guard(), later, dead_letters=bench.letters),
                     "handler", id="an asynchronous handler"),
    ],
)  # fmt: skip
def test_refused(bench: Bench, make: Callable[[Bench], Any], said: str) -> None:
    """What would lose, change or condemn messages, or could never be used, is refused, naming the setting."""
    with pytest.raises(ConfigurationError, match=said):
        make(bench)


def test_resets_go_to_what_is_left(bench: Bench) -> None:
    """kafka-python resets an offset that is out of range to the earliest one, and tells; seeks are left alone."""
    states = SubscriptionState("latest")
    states.subscribe(topics=["orders"])
    states.assign_from_subscribed([ZERO, ONE])
    bench.client._subscription, told = states, list[Any]()  # type: ignore[assignment]
    assert kafka_repair.position(bench.client, ZERO) is None
    kafka_repair.reset_to_earliest(bench.client, told.append)
    states.request_offset_reset(ZERO)
    states.request_offset_reset(ONE, OffsetResetStrategy.LATEST)
    found = [states.assignment[place].reset_strategy for place in (ZERO, ONE)]
    assert (found, told) == (
        [OffsetResetStrategy.EARLIEST, OffsetResetStrategy.LATEST],
        [ZERO],
    )
    kafka_repair.hand_back(bench.client)
    states.request_offset_reset(ZERO)
    assert states.assignment[ZERO].reset_strategy == OffsetResetStrategy.LATEST
    states.assignment[ZERO].seek(7)
    assert kafka_repair.position(bench.client, ZERO) == 7


@pytest.mark.parametrize("workers", [0, 1])
def test_hidden_coroutine(bench: Bench, workers: int) -> None:
    """A coroutine that comes back from a plain handler ends the run: no message is condemned for it."""

    async def later() -> None: ...

    bench.handler = lambda verified: later()
    bench.add(b"0")
    with pytest.raises(ColourError):
        bench.run(rounds=10**9, workers=workers)
    assert bench.client.committed == {}
    assert bench.letters.found == []


def test_nothing_subscribed(bench: Bench) -> None:
    """A client with nothing subscribed or assigned is refused."""
    bench.client.subscription = lambda: None  # type: ignore[method-assign]
    bench.client.held = set()
    with pytest.raises(ConfigurationError, match="subscribe"):
        bench.make()


def test_assigned_by_hand(bench: Bench) -> None:
    """Partitions assigned by hand are served without a listener."""
    bench.client.subscription = lambda: None  # type: ignore[method-assign]
    bench.add(b"0")
    bench.run()
    assert bench.client.committed == {ZERO: 1}
    assert bench.client.listener is None


class Public:
    """A client that shows nothing private."""

    def __init__(self) -> None:
        self.config = Client().config
        self.subscribed: list[Any] = []

    def subscription(self) -> set[str]:
        return {"b", "a"}

    def subscribe(self, topics: list[str], listener: Any) -> None:
        self.subscribed.append((topics, listener))


def test_public_subscribe(bench: Bench) -> None:
    """Where the client shows no listener of its own, ours is registered by subscribing again."""
    client = Public()
    kafka.Consumer(client, bench.guard(), bench.handler, dead_letters=bench.letters)  # type: ignore[arg-type]
    ((topics, listener),) = client.subscribed
    assert topics == ["a", "b"]
    assert isinstance(listener, ConsumerRebalanceListener)


class Theirs(ConsumerRebalanceListener):
    """A user's own listener, which fails."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def on_partitions_revoked(self, revoked: Any) -> None:
        self.calls.append(("revoked", revoked))
        raise ValueError

    def on_partitions_assigned(self, assigned: Any) -> None:
        self.calls.append(("assigned", assigned))


def test_their_listener(bench: Bench) -> None:
    """The listener the client had is still called, and its failure goes no further."""
    theirs = Theirs()
    bench.client = Client(listener=theirs)
    bench.make()
    bench.make()
    bench.client.listener.on_partitions_revoked({ZERO})
    bench.client.listener.on_partitions_assigned({ZERO})
    assert theirs.calls == [("revoked", {ZERO}), ("assigned", {ZERO})]


@pytest.mark.parametrize(("generation", "position"), [(4, 7), (5, None), (9, None)])
def test_positions_after_a_rebalance(generation: int, position: int | None) -> None:
    """What came back is read on in the next generation; after one in between, from its committed offset.

    kafka-python keeps the position, and another member may have had the partition, and committed.
    """
    states = SubscriptionState("earliest")
    states.subscribe(topics=["orders"])
    states.assign_from_subscribed([ZERO, ONE])
    for place in (ZERO, ONE):
        states.assignment[place].seek(OffsetAndMetadata(7, "", -1))
    member = SimpleNamespace(generation_id=3)
    client = SimpleNamespace(
        _subscription=states, _coordinator=SimpleNamespace(group_metadata=lambda: member),
        assignment=states.assigned_partitions,
    )  # fmt: skip
    assignment = Assignment(FakeClock())
    listener = Listener(client, assignment)
    assignment.begin({ZERO: Start(7, Committed(7, ""), seek=False)}, {ZERO})
    stays = assignment.partition(ZERO)
    listener.on_partitions_revoked({ZERO, ONE})
    member.generation_id = generation
    states.assign_from_subscribed([ZERO])
    listener.on_partitions_assigned({ZERO})
    found = states.assignment[ZERO]
    assert (found.position.offset if found.has_valid_position else None) == position
    assert (assignment.partition(ZERO) is stays) is (position is not None)


def test_judge_rejected(bench: Bench) -> None:
    """A rejected record is audited and dead-lettered by ``dead_letter``, and deferred while that cannot be."""
    bench.add(b"0", sealed=False)
    judgement = kafka.judge(bench.guard(), bench.client.log[ZERO][0], scope="billing")
    assert (judgement.verdict, str(judgement.reason)) == (
        Verdict.REJECTED,
        "token_missing",
    )
    bench.letters.down = True
    assert judgement.dead_letter(bench.letters).verdict is Verdict.DEFERRED
    assert judgement.cause is Cause.DEAD_LETTER_UNAVAILABLE
    bench.letters.down = False
    assert (
        judgement.dead_letter(bench.letters).outcome.dead_letter
        == bench.letters.found[0].id
    )


class Changing:
    """A source of keys that knows none until it is told to, and then tells."""

    def __init__(self, keys: Any) -> None:
        self.keys, self.known = keys, False
        self.listeners: list[Callable[[Any], None]] = []

    def key_set(self) -> Any:
        if not self.known:
            raise Unavailable(Cause.KEYS_UNAVAILABLE, "down")
        return self.keys

    def refresh(self, kid: str, received: float, /) -> Any:
        return self.key_set()

    def subscribe(self, listener: Callable[[Any], None]) -> Callable[[], None]:
        self.listeners.append(listener)
        return lambda: self.listeners.remove(listener)

    def change(self) -> None:
        self.known = True
        for listener in self.listeners:
            listener(self.keys)


def test_changed_keys_are_not_waited_for(bench: Bench) -> None:
    """A record that waits for a key goes on when the keys change, with no time passed."""
    source = Changing(bench.forge.keys)
    bench.add(b"0", b"1")
    bench.client.events = [lambda: None] * 3 + [source.change]
    bench.make(bench.guard(verifier=bench.forge.verifier(keys={ISSUER: source})))
    bench.run(rounds=8, seconds=0)
    assert bench.bodies == [b"0", b"1"]
    assert bench.client.committed == {ZERO: 2}
    assert source.listeners == []
