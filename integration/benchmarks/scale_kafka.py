"""Scale on Kafka: more partitions, and a second consumer of the group in a process of its own."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer
from kafka.admin import NewTopic

from integration.benchmarks.client.rounds import Measured, Spread, Stopwatch
from integration.benchmarks.client.workload import (
    LIFETIME,
    Refusals,
    RoundEnd,
    Tally,
    Workload,
    guard,
)
from integration.benchmarks.scale_world import (
    PATIENCE,
    Say,
    cpu_us,
    each_process,
    verifier_of,
)
from mqauth import Allow, Key, KeySet
from mqauth.brokers import kafka
from mqauth.brokers.kafka import repair as kafka_repair
from mqauth.testing.forge import SUBJECT, Forge
from mqauth.wire.destination import kafka as destination

_ROUNDS: Final = 3
_RECORDS: Final = 8192
_SPLIT: Final = 4


def by_partitions(address: str, counts: Iterable[int], say: Say) -> list[dict[str, Any]]:
    """Return how many records, in batches, one consumer handles a second from so many partitions."""
    rows = []
    for count in counts:
        with Topic(address, count) as topic:
            found = [consume(topic.told, 1, lambda: None) for _ in range(_ROUNDS)]
        rate = Spread.of(one.rate for one in found).median
        rows.append(
            {
                "partitions": count,
                "messages_a_second": round(rate),
                "cpu_us": cpu_us(found),
            }
        )
        say(f"scale: {rows[-1]}")
    return rows


def by_group(address: str, counts: Iterable[int], say: Say) -> list[dict[str, Any]]:
    """Return how many records, in batches, so many consumers of one group handle a second together."""
    with Topic(address, _SPLIT) as topic:
        return each_process(counts, _consuming, (topic.told,), say, "consumers")


class Topic:
    """A topic that kafka-python's producer has filled as it comes, to be consumed again and again.

    Args:
        address: ``host:port``.
        partitions: of the topic.
        records: how many.
        keyed: whether they have keys, of which there are 997.
    """

    def __init__(
        self,
        address: str,
        partitions: int,
        records: int = _RECORDS,
        *,
        keyed: bool = False,
    ) -> None:
        self._admin = KafkaAdminClient(bootstrap_servers=address)
        self._forge = Forge(lifetime=LIFETIME)
        name = f"mqauth.scale.{uuid.uuid4().hex[:12]}"
        self.told = (address, name, partitions, self._forge.key.to_pem(), records)
        self._admin.create_topics([NewTopic(name, partitions, 1)])
        self._fill(address, name, keyed=keyed)

    def __enter__(self) -> Topic:
        return self

    def __exit__(self, *_: object) -> None:
        self._admin.delete_topics([self.told[1]])
        self._admin.close()

    def _fill(self, address: str, name: str, *, keyed: bool) -> None:
        producer = kafka.Producer(
            KafkaProducer(bootstrap_servers=address), self._forge.signer()
        )
        headers = [
            (header, text.encode()) for header, text in Workload().header_texts().items()
        ]
        for number in range(self.told[-1]):
            key = b"%d" % (number % 997) if keyed else None
            producer.send(name, value=Workload().body(number), key=key, headers=headers)
        producer.flush()
        producer.close()


def consume(
    told: tuple[str, str, int, bytes, int], members: int, together: Callable[[], object]
) -> Measured:
    """Consume one member's share of a topic through the wrapper.

    Args:
        told: address, topic, partitions, the producer's key as PEM, records in all.
        members: consumers of the group, which get equally many partitions.
        together: waits for the other members; called when this one has its share, before it begins,
            and before it leaves.
    """
    address, name, partitions, pem, _ = told
    group = f"{name}.{members}" if members > 1 else f"{name}.{uuid.uuid4().hex[:8]}"
    client = KafkaConsumer(name, bootstrap_servers=address, group_id=group, enable_auto_commit=False,
                           auto_offset_reset="earliest")  # fmt: skip
    _shared_out(client, partitions // members, together)
    for partition in client.assignment():
        client.seek(partition, 0)
    watch, share = (
        Stopwatch(),
        sum(client.end_offsets(list(client.assignment())).values()),
    )
    ended = RoundEnd(lambda: watch.stop(share))
    tally = Tally(share, ended.set)
    refusals = Refusals(lambda reason: ended.fail(f"refused as {reason}"))
    pipeline = _pipeline(Key.from_pem(pem), Allow({SUBJECT: [destination(name)]}))
    consumer = kafka.Consumer(
        client, pipeline, lambda verified: tally(verified.body), dead_letters=refusals
    )
    together()
    watch.start()
    with consumer:
        ended.wait()
        together()  # who leaves early makes the others share out its partitions
    client.close()
    return ended.measured()


def _shared_out(client: Any, share: int, together: Callable[[], object]) -> None:
    """Poll until each member has its share: one that stops polling holds up a rebalance others still need."""
    waiting = threading.Thread(target=together, daemon=True)
    deadline = time.monotonic() + PATIENCE
    while waiting.ident is None or waiting.is_alive():
        kafka_repair.before_poll(client)
        client.poll(timeout_ms=50, max_records=1)
        if waiting.ident is None and len(client.assignment()) == share:
            waiting.start()
        if time.monotonic() > deadline:
            raise TimeoutError("the partitions were not shared out")


def _consuming(
    barrier: Any, results: Any, members: int, told: tuple[str, str, int, bytes, int]
) -> None:
    """Be one consumer of a group, in a process of its own."""
    results.put(consume(told, members, lambda: barrier.wait(PATIENCE)))


def _pipeline(key: Key, policy: Allow) -> Any:
    """Return a pipeline that trusts one key."""
    keys = KeySet([replace(key, subjects=frozenset([SUBJECT]))])
    return guard(Forge(), verifier=verifier_of(keys), policy=policy)
