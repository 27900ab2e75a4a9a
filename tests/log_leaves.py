"""Doubles of the producers of kafka-python, confluent-kafka and aiokafka, and how a test drives a leaf on each.

They are the clients' own classes where those can be made without a broker, so that a leaf's checks of them hold.
"""

from __future__ import annotations

import asyncio
import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import confluent_kafka
import pytest
from aiokafka import AIOKafkaProducer, ConsumerRecord
from aiokafka import errors as aio_errors
from confluent_kafka import KafkaError, KafkaException

from mqauth import MemoryReplayStore, Message, Origin, Pipeline, Reason, Rejection
from mqauth.brokers import aiokafka, confluent
from mqauth.brokers.aiokafka.producer import Replies as AioReplies
from mqauth.brokers.confluent.confirmed import TooLargeError
from mqauth.brokers.confluent.producer import Replies as ConfluentReplies
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing import Forge
from tests.conftest import KAFKA

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from kafka import errors as kafka_errors

    from mqauth.brokers import kafka

QUIET = {"log_level": 0}
IDEMPOTENT = {"enable.idempotence": True}


class KafkaFuture:
    """A future of kafka-python that a test completes."""

    def __init__(self, outcome: Any = None, *, done: bool = True) -> None:
        self.is_done = done
        self.outcome = outcome
        self.callbacks: list[Callable[[Any], Any]] = []
        self.waits: list[Any] = []

    def add_both(self, callback: Callable[[Any], Any]) -> KafkaFuture:
        self.callbacks.append(callback)
        if self.is_done:
            callback(self.outcome)
        return self

    def complete(self) -> None:
        self.is_done = True
        for callback in self.callbacks:
            callback(self.outcome)

    def get(self, timeout: float) -> Any:
        self.waits.append(timeout)
        if not self.is_done:
            raise kafka_errors.KafkaTimeoutError("slow")
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


class KafkaClient:
    """A ``KafkaProducer`` that keeps what it is given."""

    def __init__(self, **config: Any) -> None:
        self.config = {
            "enable_idempotence": True, "acks": -1, "key_serializer": None, "value_serializer": None,
            "max_block_ms": 60_000, "max_request_size": 1_048_576, "batch_size": 262_144, "linger_ms": 0,
        } | config  # fmt: skip
        self.sent: list[dict[str, Any]] = []
        self.futures: list[Any] = []
        self.calls: list[Any] = []

    def send(self, topic: str, **record: Any) -> Any:
        future = self.futures.pop(0) if self.futures else KafkaFuture()
        if isinstance(future, Exception):
            raise future
        self.sent.append({"topic": topic, **record})
        return future

    def partitions_for(self, _topic: str) -> set[int]:
        return {0}

    def flush(self, timeout: Any) -> None:
        self.calls.append(("flush", timeout))

    def close(self, timeout: Any = None) -> None:
        self.calls.append(("close", timeout))


class ConfluentClient(confluent_kafka.Producer):
    """A ``confluent_kafka.Producer`` that keeps what it is given, and reports it when it is polled."""

    def __init__(self) -> None:
        super().__init__(QUIET)
        self.sent: list[dict[str, Any]] = []
        self.waiting: list[Callable[[], None]] = []
        self.outcomes: list[Any] = []
        self.calls: list[Any] = []
        self.deaf = False

    def __len__(self) -> int:
        return len(self.waiting)

    def produce(self, topic: str, value: Any = None, **record: Any) -> None:  # type: ignore[override]
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        self.sent.append({"topic": topic, "value": value, **record})
        told = record.get("on_delivery") or (lambda *_: None)
        self.waiting.append(
            lambda: told(outcome, confluent_kafka.Message(topic=topic, value=value))
        )

    def poll(self, timeout: float = -1) -> int:
        waiting, self.waiting = ([], self.waiting) if self.deaf else (self.waiting, [])
        for report in waiting:
            report()
        return len(waiting)

    def flush(self, timeout: float = -1) -> int:
        self.calls.append(("flush", timeout))
        self.poll()
        return len(self)

    def close(self) -> bool:
        self.calls.append("close")
        return True

    def init_transactions(self, timeout: float = -1) -> None:
        self.calls.append("start")

    def begin_transaction(self) -> None:
        self.calls.append("begin")

    def send_offsets_to_transaction(
        self, positions: Any, group_metadata: Any, timeout: float = -1
    ) -> None:
        self.calls.append(
            [(each.topic, each.offset, each.metadata) for each in positions]
        )

    def commit_transaction(self, timeout: float = -1) -> None:
        self.calls.append("commit")

    def abort_transaction(self, timeout: float = -1) -> None:
        self.calls.append("abort")

    def purge(
        self, in_queue: bool = True, in_flight: bool = True, blocking: bool = True
    ) -> None:
        self.calls.append("purge")
        raise SystemError("fenced")


class AioClient(AIOKafkaProducer):
    """An ``AIOKafkaProducer`` that keeps what it is given; its outcomes are the test's."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**({"enable_idempotence": True} | settings))
        self._closed = True  # nobody warns that it was not stopped
        self.sent: list[dict[str, Any]] = []
        self.outcomes: list[Any] = []
        self.calls: list[Any] = []
        self.open: list[asyncio.Future[Any]] = []
        self.deaf = False

    async def send(
        self, topic: Any, value: Any = None, key: Any = None, **record: Any
    ) -> Any:
        """Keep a record; an outcome that is raised at once stands in a list."""
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, list):
            raise outcome[0]
        self.sent.append({"topic": topic, "value": value, "key": key, **record})
        future = asyncio.get_running_loop().create_future()
        if self.deaf:
            self.open.append(future)
        elif outcome is None:
            future.set_result("metadata")
        else:
            future.set_exception(outcome)
        return future

    async def partitions_for(self, topic: Any) -> Any:
        """Know every topic but one."""
        if topic == "unknown":
            raise aio_errors.UnknownTopicOrPartitionError
        return {0}

    async def flush(self) -> None:
        self.calls.append("flush")

    async def start(self) -> None:
        self.calls.append("start")

    async def stop(self) -> None:
        self.calls.append("stop")

    async def begin_transaction(self) -> None:
        self.calls.append("begin")

    async def send_offsets_to_transaction(self, offsets: Any, group_id: Any) -> None:
        self.calls.append([(each.topic, offset) for each, offset in offsets.items()])

    async def commit_transaction(self) -> None:
        self.calls.append("commit")

    async def abort_transaction(self) -> None:
        self.calls.append("abort")


class Sink:
    """A sink that is never reached, or keeps the audit records it is given."""

    name = "dead"

    def __init__(self) -> None:
        self.records: list[Any] = []

    def write(self, record: Any, /) -> None:
        """Take an audit record."""
        self.records.append(record)

    def publish(self, letter: Any, /) -> None:
        """Take a letter."""


@pytest.fixture
def forge() -> Forge:
    """An issuer on the machine's clock, as what polls by itself judges by."""
    return Forge()


@pytest.fixture
def guard(forge: Forge) -> Pipeline:
    """A pipeline a consumer takes."""
    return Pipeline(
        verifier=forge.verifier(),
        policy=forge.policy(KAFKA),
        replay=MemoryReplayStore(),
        audit=Sink(),
    )


def letter(body: bytes | None = b"x") -> DeadLetter:
    """Return a letter."""
    source = Message(
        destination=KAFKA,
        body=body,
        key=b"k",
        origin=Origin(topic="orders", partition=0, offset=3),
    )
    rejection = Rejection(Reason.TOKEN_MISSING, "token missing")
    return DeadLetter(
        message=source, rejection=rejection, scope="billing", time=1.9e9, audit="record-1"
    )


def confluent_record(**parts: Any) -> Any:
    """Return a record as confluent-kafka reads it."""
    kind, time = parts.pop("timestamp_type", 0) + 1, parts.pop("timestamp", 99)
    wanted = {"topic": "orders", "partition": 0, "offset": 7, "key": b"k", "value": b"x"}
    return confluent_kafka.Message(
        **(wanted | parts), timestamp=(kind if time >= 0 else 0, time)
    )


def aiokafka_record(**parts: Any) -> Any:
    """Return a record as aiokafka reads it."""
    wanted: dict[str, Any] = {
        "topic": "orders", "partition": 0, "offset": 7, "timestamp": 99, "timestamp_type": 0, "key": b"k",
        "value": b"x", "checksum": None, "serialized_key_size": 1, "serialized_value_size": 1, "headers": (),
    }  # fmt: skip
    return ConsumerRecord(**(wanted | parts))


async def done(value: Any) -> Any:
    """Return a value, awaited where the client is asynchronous."""
    return await value if inspect.isawaitable(value) else value


def kafka_error(code: int) -> KafkaException:
    """Return what confluent-kafka raises."""
    return KafkaException(KafkaError(code))


@dataclass(frozen=True, kw_only=True)
class LogLeaf:
    """A leaf of a log with its client, as the facts of all of them need it.

    Args:
        module: the package of the leaf.
        client: makes a client that may send records.
        confirming: makes a client that may send letters.
        config: the setting ``config`` of confluent-kafka, for a client as it is and for one with transactions.
        send: calls the producer's ``send`` or ``produce`` with topic, body, key, partition, time and headers.
        errors: what the client raises, by the name that a fact has for it.
        at_once: makes of an error an outcome that the client raises at once.
        later: makes of an error an outcome that the client tells later.
        replies: makes signed answers of a producer.
    """

    module: Any
    client: Callable[..., Any]
    confirming: Callable[[], Any]
    config: dict[str, Any]
    send: Callable[..., Any]
    errors: dict[str, Any]
    at_once: Callable[[Any], Any]
    later: Callable[[Any], Any]
    replies: Any

    def producer(self, client: Any, forge: Forge, **settings: Any) -> Any:
        """Return a producer on a client."""
        return self.module.Producer(client, forge.signer(), **(self.config | settings))

    def letters(self, client: Any, *arguments: Any, **settings: Any) -> Any:
        """Return dead letters on a client."""
        return self.module.DeadLetters(
            client, "dead", *arguments, **(self._plain() | settings)
        )

    def audit(self, client: Any, **settings: Any) -> Any:
        """Return an audit topic on a client."""
        return self.module.AuditTopic(client, "audit", **(self._plain() | settings))

    def expects(self, client: Any, *outcomes: Any) -> None:
        """Say what comes of the next records."""
        (client.futures if isinstance(client, KafkaClient) else client.outcomes).extend(
            outcomes
        )

    def raises(self, name: str) -> Any:
        """Return a context in which the client's error of that name must be raised."""
        error = self.errors[name]
        if isinstance(error, KafkaError):
            return pytest.raises((KafkaException, TooLargeError), match=error.name())
        return pytest.raises(type(error))

    def _plain(self) -> dict[str, Any]:
        return {"config": {}} if self.config else {}


def _by_confluent(
    producer: Any, topic: str, value: Any, key: Any = None, *rest: Any
) -> Any:
    partition, time, headers = rest or (-1, 0, None)
    told: list[Any] = []

    def tell(error: Any, _message: Any) -> None:
        told.append(error)

    producer.produce(
        topic, value, key, partition, timestamp=time, headers=headers, on_delivery=tell
    )

    def outcome() -> None:
        producer.flush()
        if told[0] is not None:
            raise KafkaException(told[0])

    return SimpleNamespace(result=outcome)


async def _by_aiokafka(producer: Any, topic: str, value: Any, *rest: Any) -> Any:
    future = await producer.send(topic, value, *rest)

    async def outcome() -> None:
        await producer.flush()
        await future

    return SimpleNamespace(result=outcome)


def _by_kafka(producer: Any, topic: str, value: Any, key: Any = None, *rest: Any) -> Any:
    partition, time, headers = rest or (None, None, None)
    future = producer.send(topic, value, key, headers, partition, time)
    return SimpleNamespace(result=partial(future.get, 1))


KAFKA_PYTHON = LogLeaf(
    module=kafka,
    client=KafkaClient,
    confirming=lambda: KafkaClient(enable_idempotence=False),
    config={},
    send=_by_kafka,
    errors={
        "too large": kafka_errors.MessageSizeTooLargeError(),
        "refused": kafka_errors.TopicAuthorizationFailedError("dead"),
        "late": kafka_errors.KafkaTimeoutError("late"),
    },
    at_once=lambda error: error,
    later=KafkaFuture,
    replies=None,
)
CONFLUENT = LogLeaf(
    module=confluent,
    client=ConfluentClient,
    confirming=ConfluentClient,
    config={"config": IDEMPOTENT},
    send=_by_confluent,
    errors={
        "too large": KafkaError(KafkaError.MSG_SIZE_TOO_LARGE),
        "refused": KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED),
        "late": KafkaError(KafkaError._MSG_TIMED_OUT),
        "unknown topic": KafkaError(KafkaError._UNKNOWN_TOPIC),
    },
    at_once=KafkaException,
    later=lambda error: error,
    replies=ConfluentReplies,
)
AIOKAFKA = LogLeaf(
    module=aiokafka,
    client=AioClient,
    confirming=lambda: AioClient(acks="all", enable_idempotence=False),
    config={},
    send=_by_aiokafka,
    errors={
        "too large": aio_errors.MessageSizeTooLargeError(),
        "refused": aio_errors.TopicAuthorizationFailedError("dead"),
        "late": aio_errors.KafkaTimeoutError(),
        "unknown topic": aio_errors.UnknownTopicOrPartitionError(),
    },
    at_once=lambda error: [error],
    later=lambda error: error,
    replies=AioReplies,
)
LEAVES = {"kafka-python": KAFKA_PYTHON, "confluent": CONFLUENT, "aiokafka": AIOKAFKA}
