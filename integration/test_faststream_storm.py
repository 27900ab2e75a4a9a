"""FastStream under a storm of rebalances, on a real Kafka."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from integration.victim import broker_of, letters_of, subscriber_of
from mqauth import AuditFile, MemoryReplayStore, Message, Pipeline
from mqauth.integrations.faststream import VerifiedMessage, protect
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_kafka import KafkaStage

PACKAGES = ("faststream.kafka", "faststream.confluent")
HONEST = 40
STORM = 60
"""Seconds for which members join and leave."""
MEMBERS = 4


class Storm:
    """Protected brokers of one group, which join and leave."""

    def __init__(self, package: str, stage: KafkaStage, audit: AuditFile) -> None:
        self._package = package
        self._stage = stage
        self._url = "kafka://" + ",".join(stage.servers)
        self.forge = Forge(lifetime=600)
        self._guard = Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy(stage.destination),
            replay=MemoryReplayStore(), audit=audit,
        )  # fmt: skip
        self.handled: list[tuple[int, int, int]] = []
        self.members: list[Any] = []
        self.joined = 0

    async def join(self) -> None:
        """Have one more member join."""
        broker = broker_of(self._package, self._url)
        letters = letters_of(self._package, broker, self._url, self._stage.dead)
        protect(broker, guard=self._guard, dead_letters=letters)

        @subscriber_of(broker, self._package, self._stage.topic)
        async def handle(order: int, verified: VerifiedMessage) -> None:
            await asyncio.sleep(0.002)
            origin = verified.origin
            self.handled.append((order, origin.partition or 0, origin.offset or 0))

        await broker.start()
        self.members.append(broker)
        self.joined += 1

    def send(self, numbers: range) -> None:
        """Publish signed orders."""
        signer = self.forge.signer()
        for number in numbers:
            message = Message(
                destination=self._stage.destination, body=str(number).encode(), key=b"key %d" % (number % 16)
            )
            self._stage.produce(signer, message)


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
async def test_storm(kafka: Any, package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While four members join and leave nothing is lost or condemned, and each partition keeps its order."""
    stage = KafkaStage(kafka.url, partitions=4)
    loop, sent = asyncio.get_running_loop(), 0
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        storm = Storm(package, stage, audit)
        over = loop.time() + STORM
        while loop.time() < over:
            await asyncio.to_thread(storm.send, range(sent, sent + 20))
            sent += 20
            if len(storm.members) < MEMBERS:
                await storm.join()
            else:
                await storm.members.pop(0).stop()
            await asyncio.sleep(0.5)
        await asyncio.to_thread(wait_until, lambda: len({order for order, *_ in storm.handled}) == sent)
        for member in storm.members:
            await member.stop()
    assert stage.letters() == []
    first: dict[tuple[int, int], int] = {}
    for order, partition, offset in storm.handled:
        first.setdefault((partition, offset), order)
    for partition in range(4):
        offsets = [offset for found, offset in first if found == partition]
        assert offsets == sorted(offsets)
    stage.close()
    with capsys.disabled():
        print(
            f"\nstorm of {package}: {storm.joined} joined, sent {sent}, handled {len(first)}"
            f" (+{len(storm.handled) - len(first)}), lost 0, condemned 0"
        )
