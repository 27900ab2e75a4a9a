"""Every header Kafka can carry survives a real broker without breaking the digest."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kafka as kafka_python
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from kafka import TopicPartition

from integration.scale import nightly
from integration.services import Kafka
from mqauth.brokers import kafka as wrapper
from mqauth.judging.verified import Verified
from mqauth.testing.forge import Forge
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.wire.envelope import is_transport
from mqauth.wire.message import PROTECTED_PROPERTIES, Message

_PYTHON: Any = kafka_python
APPLICATION = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(
    lambda name: name.lower() not in PROTECTED_PROPERTIES and not is_transport(name)
)
UNIQUE = st.lists(APPLICATION, unique_by=str.lower, max_size=4)
HEADERS = UNIQUE.flatmap(
    lambda names: st.lists(st.tuples(st.sampled_from(names), st.binary(max_size=40)), max_size=6)
    if names else st.just([])
)  # fmt: skip
PROPERTIES = st.dictionaries(st.sampled_from(PROTECTED_PROPERTIES), st.binary(max_size=20))
EVERY = [
    ("a", b""), ("a", b"second"), ("b", b"\xff\x00"), ("a", b""), ("", b"no name"), ("ü€😀", "ü€😀".encode()),
    ("x" * 2000, b"long name"), ("long", b"y" * 100_000),
]  # fmt: skip


class Loopback:
    """One topic on a real broker: what is sent signed is read and verified."""

    def __init__(self, url: str) -> None:
        self.stage = KafkaStage(url)
        self.forge = Forge(lifetime=3600)
        self.verifier = self.forge.verifier()
        self.place = TopicPartition(self.stage.topic, 0)
        self.client = _PYTHON.KafkaProducer(bootstrap_servers=self.stage.servers)
        self.reader = _PYTHON.KafkaConsumer(bootstrap_servers=self.stage.servers)
        self.reader.assign([self.place])

    def close(self) -> None:
        """Delete the topic and disconnect."""
        self.client.close()
        self.reader.close()
        self.stage.close()

    def send(self, value: bytes | None, key: bytes | None, headers: Any) -> Message:
        """Send signed, and return the message as the broker has it."""
        producer = wrapper.Producer(self.client, self.forge.signer())
        future: Any = producer.send(self.stage.topic, value, key, headers)
        return self.read(future.get(timeout=30).offset)

    def read(self, offset: int) -> Message:
        """Return the message at an offset."""
        self.reader.seek(self.place, offset)
        found: list[Any] = []
        while not found:
            found = self.reader.poll(timeout_ms=1000, max_records=1).get(self.place, [])
        return wrapper.from_native(found[0], scope="g")

    def verify(self, message: Message) -> Verified:
        """Verify a message."""
        candidate = self.verifier.open(message)
        return self.verifier.verify(message, candidate, self.forge.keys, self.forge.clock.now())


@pytest.fixture(scope="module")
def loopback(kafka: Kafka) -> Iterator[Loopback]:
    """A loopback for all examples."""
    loopback = Loopback(kafka.url)
    yield loopback
    loopback.close()


@settings(max_examples=nightly(100, otherwise=40), deadline=None, suppress_health_check=list(HealthCheck))
@example(headers=EVERY, properties={"content-type": b"", "type": b"\xff"}, value=b"", key=b"")
@example(headers=[], properties={}, value=None, key=b"k")
@example(headers=[], properties={}, value=b"v", key=None)
@given(
    headers=HEADERS, properties=PROPERTIES, value=st.binary(max_size=50), key=st.none() | st.binary(max_size=20)
)
def test_every_header_survives(
    loopback: Loopback, headers: Any, properties: dict[str, bytes], value: bytes | None, key: bytes | None
) -> None:
    """Empty, binary, repeated and odd headers, tombstones and keys verify after a real round trip, as bound."""
    sent = [*properties.items(), *headers]
    message = loopback.send(value, key, sent)
    assert [pair for pair in message.headers if pair[0] != "mqauth-token"] == sent
    verified = loopback.verify(message)
    assert (verified.body, verified.key) == (value, key)
    assert list(verified.headers) == headers


def test_null_header(loopback: Loopback) -> None:
    """A null header, which other clients send, is read as null, told from empty, and bound as such."""
    plain = Message(destination=loopback.stage.destination, body=b"b", key=b"k", headers=(("n", None), ("n", b"")))
    sealed = loopback.forge.seal(plain)
    offset = send_raw(loopback, sealed)
    message = loopback.read(offset)
    assert message.headers[:2] == (("n", None), ("n", b""))
    assert loopback.verify(message).headers == (("n", None), ("n", b""))


class WithNull(list[Any]):
    """Headers whose sizes kafka-python does not add up, which fails on a null; it encodes them well."""

    def __bool__(self) -> bool:
        return False


def send_raw(loopback: Loopback, message: Message) -> int:
    """Append a record with null headers, past ``send``, which refuses them."""
    headers = WithNull(message.headers)
    result = loopback.client._accumulator.append(loopback.place, None, message.key, message.body, headers)
    loopback.client._sender.wakeup()
    return int(result[0].get(timeout=30).offset)
