"""Kafka: ``send`` until flushed, and ``poll`` with a commit a batch, bare against wrapped."""

from __future__ import annotations

import tempfile
import threading
import uuid
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic

from integration.benchmarks.guard import BODY, HEADERS, audit_file, guard
from integration.benchmarks.rounds import Comparison, Measured, Stopwatch, alternate
from mqauth.brokers import kafka
from mqauth.destination import kafka as destination
from mqauth.testing import Forge
from mqauth.verified import Verified

_HEADERS = [(name, value.encode()) for name, value in HEADERS.items()]


class Bench:
    """Two topics, one of bare and one of signed records, for rounds of ``messages`` each."""

    def __init__(self, url: str, messages: int) -> None:
        self._servers = url.removeprefix("kafka://").rstrip("/")
        self._messages = messages
        self._name = f"bench.orders.{uuid.uuid4().hex[:8]}"
        self._forge = Forge(lifetime=3600)
        self._folder = tempfile.TemporaryDirectory()
        self._audit = audit_file(self._folder.name)
        self._admin = KafkaAdminClient(bootstrap_servers=self._servers)
        self._topics = [f"{self._name}.{kind}" for kind in ("bare", "signed")]
        self._admin.create_topics([NewTopic(topic, 1, 1) for topic in self._topics])
        self._producer = KafkaProducer(bootstrap_servers=self._servers, linger_ms=5)
        self._dead = KafkaProducer(bootstrap_servers=self._servers, enable_idempotence=False, acks="all")
        self._wrapped = kafka.Producer(self._producer, self._forge.signer())

    def publish_bare(self) -> Measured:
        """Send a round with the client as it is."""
        return self._publish(self._producer, self._topics[0])

    def publish_wrapped(self) -> Measured:
        """Send a round through the producer wrapper."""
        return self._publish(self._wrapped, self._topics[1])

    def consume_bare(self) -> Measured:
        """Consume a round with the client as it is."""
        self._publish(self._producer, self._topics[0])
        consumer = self._consumer(self._topics[0])
        seen = 0
        watch = Stopwatch()
        watch.start()
        while seen < self._messages:
            for records in consumer.poll(timeout_ms=500).values():
                seen += len(records)
            consumer.commit()
        measured = watch.stop(seen)
        consumer.close()
        return measured

    def consume_wrapped(self) -> Measured:
        """Consume a round through the consumer wrapper."""
        self._publish(self._wrapped, self._topics[1])
        seen = 0
        watch = Stopwatch()
        done: list[Measured] = []

        def handler(_verified: Verified) -> None:
            nonlocal seen
            seen += 1
            if seen == self._messages:
                done.append(watch.stop(seen))
                consumer.stop()

        client = self._consumer(self._topics[1])
        pipeline = guard(self._forge, destination(self._topics[1]), self._audit)
        letters = kafka.DeadLetters(self._dead, f"{self._name}.dead")
        consumer = kafka.Consumer(client, pipeline, handler, dead_letters=letters)
        watch.start()
        thread = threading.Thread(target=consumer.run)
        thread.start()
        thread.join()
        client.close()
        return done[0]

    def close(self) -> None:
        """Delete the topics and close every client."""
        self._producer.close()
        self._dead.close()
        self._admin.delete_topics(self._topics)
        self._admin.close()
        self._audit.close()
        self._folder.cleanup()

    def _publish(self, producer: Any, topic: str) -> Measured:
        watch = Stopwatch()
        watch.start()
        for _ in range(self._messages):
            producer.send(topic, value=BODY, headers=list(_HEADERS))
        producer.flush()
        return watch.stop(self._messages)

    def _consumer(self, topic: str) -> Any:
        """Return a consumer that has its partition and stands at the records of this round."""
        group = f"{topic}.group"
        client = KafkaConsumer(
            topic, bootstrap_servers=self._servers, group_id=group, enable_auto_commit=False,
            auto_offset_reset="earliest",
        )  # fmt: skip
        while not client.assignment():
            client.poll(timeout_ms=100, max_records=1)
        for partition, end in client.end_offsets(list(client.assignment())).items():
            client.seek(partition, end - self._messages)
        return client


def compare(url: str, *, messages: int, rounds: int) -> list[Comparison]:
    """Return publish and consume, bare against wrapped."""
    bench = Bench(url, messages)
    try:
        return [
            alternate("kafka publish", rounds, bench.publish_bare, bench.publish_wrapped),
            alternate("kafka consume", rounds, bench.consume_bare, bench.consume_wrapped),
        ]
    finally:
        bench.close()
