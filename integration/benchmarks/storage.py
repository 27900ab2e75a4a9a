"""``python -m integration.benchmarks.storage --kafka ADDRESS``: what a token costs on Kafka's disk.

Prints the tables of ``docs/sizing.md``: bytes of log segments for each message, without compression and with lz4
and zstd, for messages without a token, with one each, and in batches. The broker itself says the size
(DescribeLogDirs, KIP-113). Without ``--kafka`` a broker is started and stopped.
"""

from __future__ import annotations

import argparse
import json
import random
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final

from confluent_kafka import Producer
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from integration.benchmarks.client.run import address_of
from integration.services import Kafka
from mqauth.brokers.log.records import native_headers
from mqauth.testing.forge import Forge
from mqauth.wire.destination import kafka as destination
from mqauth.wire.message import Message

COMPRESSIONS: Final = ("none", "lz4", "zstd")
FORMS: Final = {
    "no token": 0,
    "a token each": 1,
    "batches of 64": 64,
    "batches of 256": 256,
}
"""The forms that are measured, with how many messages share a signature; 0 for none."""
_PATIENCE: Final = 60.0
_SEED: Final = 20261129
_HOUR: Final = 3600


def orders(count: int, filler: int) -> Iterator[bytes]:
    """Yield so many orders as JSON, the same in each run; ``filler`` bytes of random text make them longer."""
    drawn = random.Random(_SEED)
    for number in range(count):
        order = {
            "order": number, "customer": str(uuid.UUID(int=drawn.getrandbits(128))), "currency": "EUR",
            "lines": [
                {
                    "sku": f"SKU-{drawn.randrange(5000):05}", "count": drawn.randint(1, 9),
                    "cents": drawn.randint(99, 99_999),
                }
                for _ in range(3)
            ],
            "placed": f"2026-11-29T{drawn.randrange(24):02}:{drawn.randrange(60):02}:00Z",
            "note": drawn.randbytes(filler // 2).hex(),
        }  # fmt: skip
        yield json.dumps(order).encode()


def sealed(topic: str, share: int, bodies: Sequence[bytes]) -> Iterator[Message]:
    """Yield a message for each body, of which ``share`` have one signature; 0 for messages without a token."""
    signer = Forge(lifetime=_HOUR).signer()
    pairs = (("tenant", b"acme"), ("content-type", b"application/json"))
    plain = [
        Message(destination=destination(topic), body=body, headers=pairs)
        for body in bodies
    ]
    for at in range(0, len(plain), max(share, 1)):
        some = plain[at : at + max(share, 1)]
        yield from (
            some
            if share == 0
            else [signer.sign(some[0])]
            if share == 1
            else signer.sign_many(some)
        )


class Disk:
    """A broker whose log segments are measured.

    Args:
        address: ``host:port``.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._admin = KafkaAdminClient(bootstrap_servers=address)

    def bytes_a_message(
        self, compression: str, share: int, bodies: Sequence[bytes], records: int
    ) -> float:
        """Return how many bytes each message takes in a topic of its own.

        Args:
            compression: of the producer.
            share: how many messages share a signature; 0 for none.
            bodies: of the messages.
            records: in a record batch, which is what is compressed.
        """
        topic = f"mqauth.storage.{uuid.uuid4().hex[:12]}"
        self._admin.create_topics([NewTopic(topic, 1, 1)])
        try:
            self._fill(topic, compression, records, sealed(topic, share, bodies))
            return self._size(topic) / len(bodies)
        finally:
            self._admin.delete_topics([topic])

    def close(self) -> None:
        """Close the connection."""
        self._admin.close()

    def _fill(
        self, topic: str, compression: str, records: int, messages: Iterator[Message]
    ) -> None:
        """Send in record batches of exactly so many; what is left over stands in one of fewer."""
        client = Producer({
            "bootstrap.servers": self._address, "compression.type": compression, "linger.ms": 60_000,
            "batch.num.messages": records, "batch.size": 16_000_000, "message.max.bytes": 16_000_000,
        })  # fmt: skip
        failed: list[Any] = []
        for message in messages:
            client.produce(
                topic, message.body, headers=native_headers(message.headers), timestamp=1_795_000_000_000,
                on_delivery=lambda error, _: failed.append(error) if error else None,
            )  # fmt: skip
            client.poll(0)
        if client.flush(_PATIENCE) or failed:
            raise RuntimeError(f"not everything was sent: {failed[:1]}")

    def _size(self, topic: str) -> int:
        """Return the bytes of a topic's segments, as the broker tells them."""
        told: Any = self._admin.describe_log_dirs()
        sizes = [
            partition["partition_size"]
            for broker in told
            for folder in broker["log_dirs"]
            for found in folder["topics"]
            if found["name"] == topic
            for partition in found["partitions"]
        ]
        if len(sizes) != 1:
            raise RuntimeError(f"one partition was expected, and {len(sizes)} found")
        return int(sizes[0])


def measure(
    address: str, count: int, filler: int, records: int
) -> dict[str, dict[str, float]]:
    """Return bytes a message for each form and each compression."""
    disk, bodies = Disk(address), list(orders(count, filler))
    try:
        return {
            form: {
                each: disk.bytes_a_message(each, share, bodies, records)
                for each in COMPRESSIONS
            }
            for form, share in FORMS.items()
        }
    finally:
        disk.close()


def table(found: dict[str, dict[str, float]]) -> str:
    """Return the table of the page: bytes a message, and what the token adds."""
    bare = found["no token"]
    lines = [
        "| | " + " | ".join(COMPRESSIONS) + " |",
        "|---|" + "---:|" * len(COMPRESSIONS),
    ]
    for form, sizes in found.items():
        cells = [
            f"{size:.0f}" + ("" if form == "no token" else f" (+{size - bare[name]:.0f})")
            for name, size in sizes.items()
        ]
        lines.append(f"| {form} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m integration.benchmarks.storage")
    parser.add_argument("--kafka", help="host:port")
    parser.add_argument("--messages", type=int, default=10_240)
    arguments = parser.parse_args()
    if arguments.kafka:
        _print(arguments.kafka, arguments.messages)
        return
    with Kafka.launch() as broker:
        _print(address_of(broker.url), arguments.messages)


def _print(address: str, count: int) -> None:
    for filler, records in ((0, 512), (0, 16), (800, 512)):
        body = sum(map(len, orders(count, filler))) / count
        print(f"bodies of {body:.0f} bytes, {records} records in a record batch:\n")
        print(table(measure(address, count, filler, records)), end="\n\n")


if __name__ == "__main__":
    main()
