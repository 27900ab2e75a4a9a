"""The contenders on Kafka: ``send`` and ``flush``, ``poll`` and a commit for each batch, on one partition.

``bare`` is kafka-python as its users write it: ``send`` and one ``flush``, ``poll`` and one ``commit`` a batch.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Final, Self

import kafka as kafka_python
import kafka.admin as kafka_admin
from kafka.record.default_records import DefaultRecordBatchBuilder

from integration.benchmarks.client.blocking import BlockingContender
from integration.benchmarks.client.contenders import (
    HEADER,
    WORK,
    Wrapper,
    benchmark_of,
)
from integration.benchmarks.client.workload import (
    BATCH,
    PATIENCE,
    Refusals,
    RoundEnd,
    Tally,
    Workload,
    guard,
)
from mqauth.brokers import kafka
from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.brokers.log.records import native_headers, to_message
from mqauth.errors import ConfigurationError
from mqauth.judging.pipeline import Handler
from mqauth.judging.verified import Verified
from mqauth.testing.forge import Forge
from mqauth.wire import destination

_LONGEST: Final = 900_000
"""Milliseconds that a consumer may go without a poll; it rests while the other contenders have their rounds."""
LINGER: Final = 5
BUFFER: Final = 262_144
"""Bytes of a client's own buffer, the same for every contender; the default holds eight signed records."""
_PYTHON: Any = kafka_python  # its classes have no types
_ADMIN: Any = kafka_admin
_SIZE_OF: Any = DefaultRecordBatchBuilder.size_of
Headers = list[tuple[str, bytes]]


class Connections:
    """The clients that all contenders share.

    Args:
        address: ``host:port``, or several with commas.

    Raises:
        ConfigurationError: crc32c is not installed; without it, kafka-python is slower than what users run.
    """

    def __init__(self, address: str) -> None:
        if crc_source() != "crc32c":
            raise ConfigurationError("--kafka: install mqauth[kafka], which has crc32c")
        self.address = address
        self.workload = Workload()
        self.headers: Headers = [
            (name, text.encode()) for name, text in self.workload.header_texts().items()
        ]
        self.admin = _ADMIN.KafkaAdminClient(bootstrap_servers=address)
        self.producer = self.client()

    def client(self) -> Any:
        """Return a producer with the settings of every contender."""
        return _PYTHON.KafkaProducer(
            bootstrap_servers=self.address, linger_ms=LINGER, batch_size=BUFFER
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Close the clients."""
        self.producer.close()
        self.admin.close()


class TopicContender(BlockingContender):
    """A contender with two topics: one it publishes to, and one that it consumes again and again.

    Subclasses say how a record is sent, which records wait in the topic, and how they are consumed.
    """

    name = ""
    heavy = False

    def __init__(self, connections: Connections) -> None:
        self.connections = connections
        self.topic = f"integration.benchmarks.client.{uuid.uuid4().hex[:12]}"
        self.place = destination.kafka(self.topic)
        self.scratch = f"{self.topic}.scratch"
        self.connections.admin.create_topics(
            [_ADMIN.NewTopic(name, 1, 1) for name in (self.topic, self.scratch)]
        )
        self._filled = 0
        self._client: Any = None

    def at_start(self) -> Any:
        """Return this contender's consumer, which reads its topic from the first record next."""
        client = self._consumer()
        for partition in client.assignment():
            client.seek(partition, 0)
        return client

    def at_end(self) -> Any:
        """Return this contender's consumer, which reads what is sent from now on."""
        client = self._consumer()
        for partition, end in client.end_offsets(list(client.assignment())).items():
            client.seek(partition, end)
        return client

    def rest(self, client: Any) -> None:
        """Leave the consumer until the next round."""
        client.resume(*client.assignment())

    def added(self) -> float:
        """Return by how many bytes a record is larger than a bare one."""
        plain = _SIZE_OF(
            None, self.connections.workload.body(0), self.connections.headers
        )
        sizes = [
            _SIZE_OF(None, *record) - plain for record in self.sealed(self.topic, BATCH)
        ]
        return float(sum(sizes) / BATCH) + self.connections.workload.padding_bytes

    def close(self) -> None:
        """Delete the topics."""
        if self._client is not None:
            self._client.close()
        self.connections.admin.delete_topics([self.topic, self.scratch])

    def sealed(self, topic: str, count: int) -> list[tuple[bytes, Headers]]:
        """Return bodies and headers of the records that wait in the topic."""
        raise NotImplementedError

    def fill(self, count: int) -> None:
        """Put records into the topic until at least ``count`` wait there."""
        missing = count - self._filled
        if missing > 0:
            for body, headers in self.sealed(self.topic, missing):
                self.connections.producer.send(self.topic, value=body, headers=headers)
            self.connections.producer.flush()
            self._filled = count

    def _consumer(self) -> Any:
        """Return this contender's consumer, once it has its partition."""
        if self._client is None:
            self._client = _PYTHON.KafkaConsumer(
                self.topic, bootstrap_servers=self.connections.address, group_id=f"{self.topic}.group",
                enable_auto_commit=False, auto_offset_reset="earliest", max_poll_interval_ms=_LONGEST,
            )  # fmt: skip
        deadline = time.monotonic() + PATIENCE
        while not self._client.assignment():
            kafka_repair.before_poll(self._client)
            self._client.poll(timeout_ms=50, max_records=1)
            if time.monotonic() > deadline:
                raise TimeoutError("the consumer was given no partition")
        # A bare client keeps its own faults, because its users have them too.
        kafka_repair.hand_back(self._client)
        return self._client


class Wrapped(TopicContender):
    """kafka-python as its users write it, with what a wrapper adds to each record."""

    def __init__(self, connections: Connections, wrapper: Wrapper) -> None:
        super().__init__(connections)
        self._wrapper = wrapper
        self.name = wrapper.name
        self.heavy = wrapper.heavy

    def sender(self, topic: str) -> tuple[Callable[[int], object], Callable[[], object]]:
        """Return ``send`` of a sealed record, and ``flush``."""
        producer, place = self.connections.producer, destination.kafka(topic)

        def send(number: int) -> None:
            body, headers = self._seal(place, number)
            producer.send(topic, value=body, headers=headers)

        return send, producer.flush

    def sealed(self, topic: str, count: int) -> list[tuple[bytes, Headers]]:
        """Return sealed records."""
        place = destination.kafka(topic)
        return [self._seal(place, number) for number in range(count)]

    def reading(self, client: Any, tally: Tally, ended: RoundEnd) -> None:
        """Poll, open each record, handle it, and commit each batch."""
        try:
            self._loop(client, tally, ended)
        except Exception as error:
            ended.fail(f"{type(error).__name__}: {error}")

    def _loop(self, client: Any, tally: Tally, ended: RoundEnd) -> None:
        open_, headed = self._wrapper.opener(self.place), self._wrapper.headed
        deadline = time.monotonic() + PATIENCE
        while not ended.is_set():
            self.poll(
                client,
                lambda value, headers: tally(
                    open_(value, token_of(headers) if headed else None)
                ),
            )
            if time.monotonic() > deadline:
                ended.fail(f"{tally.seen} of {tally.wanted} after {PATIENCE:.0f} s")

    def poll(self, client: Any, take: Callable[[Any, Any], None]) -> None:
        """Poll, pass on what came, and commit it."""
        for records in client.poll(timeout_ms=200).values():
            for record in records:
                take(record.value, record.headers)
        client.commit()

    def _seal(self, place: str, number: int) -> tuple[bytes, Headers]:
        body, token = self._wrapper.seal(place, self.connections.workload.body(number))
        headers = list(self.connections.headers)
        if token is not None:
            headers.append((HEADER, token.encode("ascii")))
        return body, headers


class Signed(TopicContender):
    """mqauth with a token for each record."""

    name = "message"
    heavy = True
    batch = 1

    def __init__(self, connections: Connections, forge: Forge) -> None:
        super().__init__(connections)
        self._forge = forge
        self._producer = self.producer()

    def producer(self) -> Any:
        """Return mqauth's producer."""
        return kafka.Producer(
            self.connections.client(), self._forge.signer(), batch=self.batch
        )

    def sender(self, topic: str) -> tuple[Callable[[int], object], Callable[[], object]]:
        """Return ``send`` and ``flush`` of mqauth's producer."""
        send, workload, headers = (
            self.send(),
            self.connections.workload,
            self.connections.headers,
        )
        return lambda number: send(
            topic, value=workload.body(number), headers=headers
        ), self._producer.flush

    def send(self) -> Callable[..., object]:
        """Return the call that sends."""
        return self._producer.send  # type: ignore[no-any-return]

    def close(self) -> None:
        """Delete the topics and close the clients."""
        self._producer.close()
        super().close()

    def sealed(self, topic: str, count: int) -> list[tuple[bytes, Headers]]:
        """Return sealed records."""
        signer = self._forge.signer()
        return [
            _native(signer.sign(self._plain(topic, number))) for number in range(count)
        ]

    def reading(self, client: Any, tally: Tally, ended: RoundEnd) -> None:
        """Consume through mqauth's consumer."""
        refusals = Refusals(
            lambda reason: ended.fail(f"an honest message was refused as {reason}")
        )

        def handler(verified: Verified) -> None:
            tally(verified.body)

        with self.wrapped(client, handler, refusals):
            ended.wait()

    def wrapped(self, client: Any, handler: Handler, refusals: Refusals) -> Any:
        """Return mqauth's consumer around the client."""
        return kafka.Consumer(
            client, guard(self._forge, self.place), handler, dead_letters=refusals
        )

    def _plain(self, topic: str, number: int) -> Any:
        return to_message(
            topic, self.connections.workload.body(number), None, self.connections.headers
        )


class Batched(Signed):
    """mqauth with one token for up to 64 records."""

    name = "batch"
    heavy = False
    batch = BATCH

    def sealed(self, topic: str, count: int) -> list[tuple[bytes, Headers]]:
        """Return records sealed 64 at a time."""
        plain = [self._plain(topic, number) for number in range(count)]
        return [
            one
            for start in range(0, count, BATCH)
            for one in self._together(plain[start : start + BATCH])
        ]

    def token(self) -> str:
        """Return a token with its proof, as a record carries it."""
        _, headers = self.sealed(self.topic, BATCH)[0]
        return headers[-1][1].decode("ascii")

    def _together(self, messages: list[Any]) -> list[tuple[bytes, Headers]]:
        return [_native(signed) for signed in self._forge.signer().sign_many(messages)]


contenders, measure = benchmark_of(Wrapped, Signed, Batched, works=(0.0, WORK))


def crc_source() -> str:
    """Return what computes kafka-python's checksums: ``crc32c`` (C) or ``python``."""
    try:
        import crc32c  # noqa: F401
    except ImportError:
        return "python"
    return "crc32c"


def token_of(headers: Sequence[tuple[str, bytes | None]]) -> str | None:
    """Return the token of a wrapper from a record's headers."""
    for name, value in headers:
        if name == HEADER and value is not None:
            return value.decode("ascii")
    return None


def _native(signed: Any) -> tuple[bytes, Headers]:
    return signed.body, list(native_headers(signed.headers))
