"""``mqauth.brokers.kafka.client``: records to messages, total, and what ``send`` is given."""

from __future__ import annotations

import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import aiokafka
import confluent_kafka
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth import ConfigurationError, MalformedMessage, Pipeline
from mqauth.brokers.log import records as log_records
from mqauth.brokers.log.records import Log, carries
from mqauth.testing import Forge
from mqauth.wire.json_form import to_form
from tests.log_leaves import Sink, guard

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from mqauth.brokers import kafka
    from mqauth.brokers.kafka import client as translate
    from mqauth.brokers.kafka.client import Logs
    from mqauth.review.kafka import KafkaLetterBox, KafkaRecords

__all__ = ["guard"]


@dataclass
class Record:
    """What the translation reads of a kafka-python ``ConsumerRecord``."""

    topic: Any = "orders"
    partition: Any = 3
    offset: Any = 12
    timestamp: Any = 1_700_000_000_000
    timestamp_type: Any = 1
    key: Any = b"42"
    value: Any = b"body"
    headers: Any = ()


ODD = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.binary(max_size=20),
    st.text(st.characters(), max_size=20), st.lists(st.binary(max_size=5), max_size=3),
)  # fmt: skip
PAIRS = st.lists(st.one_of(st.tuples(ODD, ODD), ODD), max_size=4)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@given(
    st.fixed_dictionaries(
        {field.name: ODD for field in fields(Record)} | {"headers": st.one_of(PAIRS, ODD)}
    )
)
def test_total(found: dict[str, Any]) -> None:
    """Whatever stands in a record, reading it raises nothing, and the message can be written to a dead letter."""
    message = translate.from_native(Record(**found), scope="billing")
    assert message.destination.startswith("kafka:")
    assert message.body is None or isinstance(message.body, bytes)
    assert to_form(message)


@given(ODD)
def test_total_without_attributes(record: Any) -> None:
    """Something that is no record at all becomes a malformed message."""
    assert translate.from_native(record, scope="billing").malformed is not None


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=50)), max_size=5),
    st.none() | st.binary(),
    st.binary(min_size=1),
)
def test_round_trip(
    headers: list[tuple[str, bytes]], body: bytes | None, key: bytes
) -> None:
    """What is sent comes back as the same message: key, tombstone or body, and every header in order."""
    sent = log_records.to_message("orders", body, key, headers)
    record = Record(
        key=sent.key,
        value=sent.body,
        headers=log_records.dead_letter_headers(sent.headers),
    )
    seen = translate.from_native(record, scope="billing")
    assert (seen.destination, seen.key, seen.body, seen.headers) == (
        sent.destination,
        key,
        body,
        tuple(headers),
    )
    assert seen.malformed is None


def test_origin_has_the_log() -> None:
    """Cluster and topic id are those the caller gives, and without them none."""
    log = Log(cluster="c", topic_id="i" * 22)
    origin = translate.from_native(Record(), scope="billing", log=log).origin
    assert (origin.cluster, origin.topic_id) == log
    assert translate.from_native(Record(), scope="billing").origin.cluster is None


class Metadata:
    """What is asked of kafka-python's ``ClusterMetadata``."""

    cluster_id: Any = "c"
    topic: Any = UUID(int=1)

    def topic_id(self, _name: str) -> Any:
        """Return the topic's id."""
        return self.topic


def test_log_of_a_topic() -> None:
    """Both ids are the metadata's, the topic's in Kafka's own spelling."""
    assert Logs(SimpleNamespace(_cluster=Metadata())).of("t") == (
        "c",
        "AAAAAAAAAAAAAAAAAAAAAQ",
    )


@pytest.mark.parametrize("unknown", [None, UUID(int=0), "x"])
def test_log_stays_while_the_metadata_say_nothing(unknown: Any) -> None:
    """A response without ids, of a topic that is being deleted for example, changes no place; a new id does."""
    metadata = Metadata()
    logs = Logs(SimpleNamespace(_cluster=metadata))
    before = logs.of("t")
    metadata.cluster_id, metadata.topic = None, unknown
    assert logs.of("t") == before
    metadata.topic = UUID(int=2)
    assert logs.of("t") == ("c", "AAAAAAAAAAAAAAAAAAAAAg")


@pytest.mark.parametrize(
    "client",
    [object(), SimpleNamespace(_cluster=None), SimpleNamespace(_cluster=object())],
)
def test_log_of_a_client_without_metadata(client: Any) -> None:
    """Where a client knows nothing, nothing is made up."""
    assert Logs(client).of("t") == (None, None)


class Number(IntEnum):
    """Numbers of a client that has a class of its own for them."""

    LOG_APPEND_TIME = 1
    OFFSET = 12
    TIMESTAMP = 1_700_000_000_000


def test_numbers_of_a_class_below_int() -> None:
    """They are read as plain as any: without them a record has no place, and no append time."""
    found = Record(
        offset=Number.OFFSET,
        timestamp=Number.TIMESTAMP,
        timestamp_type=Number.LOG_APPEND_TIME,
    )
    origin = translate.from_native(found, scope="g").origin
    assert (origin.offset, origin.timestamp_ms, origin.timestamp_type) == (
        12,
        1_700_000_000_000,
        "append",
    )
    assert {type(origin.offset), type(origin.timestamp_ms)} == {int}


def test_null_header() -> None:
    """A null header is kept in its place, and is what kafka-python cannot send again."""
    message = translate.from_native(Record(headers=[("a", None), ("a", b"")]), scope="g")
    assert message.headers == (("a", None), ("a", b""))
    assert [carries(*pair) for pair in message.headers] == [False, True]


@pytest.mark.parametrize(
    ("field", "value"),
    [("value", "text"), ("key", 7), ("headers", [("a", "text")]), ("headers", [("a",)]), ("topic", "\ud800"),
     ("topic", 9)],
)  # fmt: skip
def test_malformed(field: str, value: Any) -> None:
    """What only a deserializer, or no broker, can have made is named malformed."""
    assert (
        translate.from_native(Record(**{field: value}), scope="g").malformed is not None
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"topic": 7, "value": b""}, {"topic": "", "value": b""}, {"topic": "t"}, {"topic": "t", "value": "text"},
        {"topic": "t", "value": b"", "key": "text"}, {"topic": "t", "value": b"", "headers": {"a": b""}},
        {"topic": "t", "value": b"", "headers": [("a", "text")]},
        {"topic": "t", "value": b"", "headers": [("a", None)]},
        {"topic": "t", "value": b"", "headers": [["a", b""]]},
        {"topic": "t", "value": b"", "headers": [(b"a", b"")]},
        {"topic": "t", "value": b"", "headers": ["ab"]},
    ],
)  # fmt: skip
def test_refused(arguments: dict[str, Any]) -> None:
    """What kafka-python refuses to send is refused before it is signed."""
    with pytest.raises(MalformedMessage):
        log_records.to_message(**arguments)


def test_own_bytes() -> None:
    """A mutable value is copied, so that what is signed cannot change before it is sent."""
    value = bytearray(b"before")
    message = log_records.to_message("orders", value, memoryview(b"key"))
    value[:] = b"after!"
    assert (message.body, message.key) == (b"before", b"key")


# Objects of other Kafka clients, real ones, in the hands of the kafka-python wrapper: refused by name.


class Settings:
    """What is read of a client of kafka-python before anything else."""

    def __init__(self, **config: Any) -> None:
        self.config = {"key_serializer": None, "value_serializer": None} | config


PRODUCER = Settings(
    enable_idempotence=False,
    acks="all",
    transactional_id=None,
    max_block_ms=1,
    batch_size=262_144,
    linger_ms=0,
)
CONSUMERS: dict[str, Callable[[Any, Pipeline], Any]] = {
    "Consumer": lambda client, guard: kafka.Consumer(
        client, guard, print, dead_letters=Sink()
    ),
    "KafkaLetterBox": lambda client, _guard: KafkaLetterBox(client, PRODUCER, "t"),
    "KafkaRecords": lambda client, _guard: KafkaRecords(client),
}
PRODUCERS: dict[str, Callable[[Any, Pipeline], Any]] = {
    "Producer": lambda client, _guard: kafka.Producer(client, Forge().signer()),
    "Producer of batches": lambda client, _guard: kafka.Producer(
        client, Forge().signer(), batch=8
    ),
    "DeadLetters": lambda client, _guard: kafka.DeadLetters(client, "t"),
    "TransactionalDeadLetters": lambda client, _guard: kafka.TransactionalDeadLetters(
        lambda: client, "t"
    ),
    "AuditTopic": lambda client, _guard: kafka.AuditTopic(client, "t"),
    "KafkaLetterBox": lambda client, _guard: KafkaLetterBox(
        Settings(group_id=None), client, "t"
    ),
}
RECORDS = {
    "confluent_kafka.Message": confluent_kafka.Message(topic="orders", value=b"x"),
    "aiokafka.ConsumerRecord": aiokafka.ConsumerRecord(
        topic="orders", partition=0, offset=0, timestamp=0, timestamp_type=0, key=None, value=b"x", checksum=None,
        serialized_key_size=0, serialized_value_size=1, headers=(),
    ),
}  # fmt: skip


@pytest.fixture
def confluent() -> Iterator[tuple[Any, Any]]:
    """A consumer and a producer of confluent-kafka, which know no broker."""
    consumer = confluent_kafka.Consumer({"group.id": "g"})
    yield consumer, confluent_kafka.Producer({})
    consumer.close()


@pytest.fixture
async def aio() -> AsyncIterator[tuple[Any, Any]]:
    """A consumer and a producer of aiokafka, never started."""
    consumer, producer = (
        aiokafka.AIOKafkaConsumer("orders", group_id="g"),
        aiokafka.AIOKafkaProducer(),
    )
    yield consumer, producer
    await consumer.stop()
    await producer.stop()


@pytest.mark.parametrize(
    ("kind", "wrap"),
    [
        *(("Consumer", wrap) for wrap in CONSUMERS.values()),
        *(("Producer", wrap) for wrap in PRODUCERS.values()),
    ],
    ids=[*CONSUMERS, *PRODUCERS],
)
async def test_another_client(
    kind: str,
    wrap: Callable[[Any, Pipeline], Any],
    guard: Pipeline,
    confluent: tuple[Any, Any],
    aio: tuple[Any, Any],
) -> None:
    """Whatever wants a client of kafka-python refuses another library's, and its own other kind, by name."""
    at, other = (0, PRODUCER) if kind == "Consumer" else (1, Settings(group_id="g"))
    for client, name in (
        (confluent[at], f"confluent_kafka.{kind}"), (aio[at], f"aiokafka.AIOKafka{kind}"),
        (other, "tests.Settings"),
    ):  # fmt: skip
        with pytest.raises(
            ConfigurationError,
            match=rf"Kafka{kind} of kafka-python is needed, not {name}",
        ):
            wrap(client, guard)


@pytest.mark.parametrize("name", RECORDS)
def test_record_of_another_client(name: str, guard: Pipeline) -> None:
    """A record of another library is refused by name: it is no fault of its sender."""
    for read in (
        lambda record: kafka.judge(guard, record, scope="g"),
        lambda record: kafka.from_native(record, scope="g"),
    ):
        with pytest.raises(
            ConfigurationError,
            match=f"ConsumerRecord of kafka-python is needed, not {name}$",
        ):
            read(RECORDS[name])
