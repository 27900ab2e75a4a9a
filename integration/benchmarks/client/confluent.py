"""The contenders on Kafka by confluent-kafka: ``produce`` and ``flush``, ``consume`` and a commit for each batch.

``bare`` is confluent-kafka as its users write it. Topics, and the records that wait in them, are made by
kafka-python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition

from integration.benchmarks.client import kafka
from integration.benchmarks.client.contenders import WORK, benchmark_of
from integration.benchmarks.client.workload import Refusals, guard
from mqauth.brokers import confluent
from mqauth.judging.pipeline import Handler
from mqauth.wire import destination

MOST: Final = 500
"""Most records of one ``consume``, as kafka-python's ``max_poll_records``."""


class Connections(kafka.Connections):
    """The clients that all contenders share.

    Args:
        address: ``host:port``, or several with commas.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.settings = {"bootstrap.servers": address, "log_level": 2}
        self.producing = self.settings | {"enable.idempotence": True, "linger.ms": 5}
        self.native = Producer(self.producing)

    def __exit__(self, *_: object) -> None:
        """Close the clients."""
        self.native.close()
        super().__exit__()


class Assigned(kafka.TopicContender):
    """A contender whose consumer has its partition assigned by hand, since only a wrapper can subscribe."""

    connections: Connections

    def at_start(self) -> Any:
        """Return this contender's consumer, which reads its topic from the first record next."""
        return self._at(0)

    def at_end(self) -> Any:
        """Return this contender's consumer, which reads what is sent from now on."""
        return self._at(OFFSET_END)

    def rest(self, client: Any) -> None:
        """Leave the consumer until the next round."""
        client.unassign()

    def settings(self) -> dict[str, Any]:
        """Return the settings of this contender's consumer."""
        wanted = {"group.id": f"{self.topic}.group", "enable.auto.offset.store": False}
        return self.connections.settings | wanted

    def _at(self, offset: int) -> Any:
        if self._client is None:
            self._client = Consumer(self.settings())
        self._client.assign([TopicPartition(self.topic, 0, offset)])
        if offset < 0:
            # The end is looked up while it is polled.
            self._client.consume(1, 1.0)
        return self._client


class Wrapped(Assigned, kafka.Wrapped):
    """confluent-kafka as its users write it, with what a wrapper adds to each record."""

    def sender(self, topic: str) -> tuple[Callable[[int], object], Callable[[], object]]:
        """Return ``produce`` of a sealed record, and ``flush``."""
        native: Any = self.connections.native
        place = destination.kafka(topic)

        def send(number: int) -> None:
            body, headers = self._seal(place, number)
            native.produce(topic, body, headers=headers)
            native.poll(0)

        return send, native.flush

    def poll(self, client: Any, take: Callable[[Any, Any], None]) -> None:
        """Poll, pass on what came, and commit it."""
        records = client.consume(MOST, 0) or client.consume(1, 0.2)
        for record in records:
            take(record.value(), record.headers())
        if records:
            client.commit(message=records[-1], asynchronous=False)


class Signed(Assigned, kafka.Signed):
    """mqauth with a token for each record."""

    def producer(self) -> Any:
        """Return mqauth's producer."""
        config = self.connections.producing
        return confluent.Producer(
            Producer(config), self._forge.signer(), config=config, batch=self.batch
        )

    def send(self) -> Callable[..., object]:
        """Return the call that sends."""
        produce, poll = self._producer.produce, self._producer.poll

        def send(topic: str, **record: Any) -> None:
            produce(topic, **record)
            poll(0)

        return send

    def wrapped(self, client: Any, handler: Handler, refusals: Refusals) -> Any:
        """Return mqauth's consumer around the client."""
        pipeline = guard(self._forge, self.place)
        return confluent.Consumer(
            client,
            pipeline,
            handler,
            config=self.settings(),
            topics=[],
            dead_letters=refusals,
        )


class Batched(Signed, kafka.Batched):
    """mqauth with one token for up to 64 records."""


contenders, measure = benchmark_of(Wrapped, Signed, Batched, works=(0.0, WORK))
