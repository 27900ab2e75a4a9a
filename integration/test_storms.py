"""Members of a group join and leave for a while, by each client that has a protocol of its own for that."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import pytest

from integration.kafka_stages import (
    AIOConfluentLogStage,
    AiokafkaLogStage,
    ConfluentLogStage,
)
from integration.scale import nightly
from integration.services import Kafka
from integration.victim import broker_of, letters_of, subscriber_of
from mqauth import AuditFile, MemoryReplayStore, Message, Pipeline
from mqauth.integrations.faststream import VerifiedMessage, protect
from mqauth.testing.forge import Forge
from mqauth.testing.stage import PATIENCE, wait_until
from mqauth.testing.stage_kafka import KafkaStage
from tests.kit.delivery_contract import LogPlay

pytestmark = pytest.mark.slow

ROUNDS: Final = nightly(100, otherwise=12)
"""How often a member joins or leaves."""
PAUSE: Final = 0.5
"""Seconds between two rounds, in which the group may come to rest, or not."""
MEMBERS: Final = 4
ASSIGNORS: Final = ("range", "cooperative-sticky")


def confluent(kind: Any, assignor: str) -> Callable[[str], Any]:
    """Return what makes a stage of confluent-kafka with a protocol of rebalances."""
    return lambda url: kind(url, partition_assignment_strategy=assignor)


STAGES: Final[dict[str, Callable[[str], Any]]] = {
    "aiokafka": AiokafkaLogStage,
    **{
        f"confluent, {assignor}": confluent(ConfluentLogStage, assignor)
        for assignor in ASSIGNORS
    },
    **{
        f"confluent-aio, {assignor}": confluent(AIOConfluentLogStage, assignor)
        for assignor in ASSIGNORS
    },
}


def in_order(places: Iterable[tuple[int, int]]) -> bool:
    """Tell whether the first handling of each offset came in the order of its partition."""
    last: dict[int, int] = {}
    for partition, offset in dict.fromkeys(places):
        if offset < last.get(partition, -1):
            return False
        last[partition] = offset
    return True


def _close(members: list[Any]) -> None:
    """Close what a storm that failed has left, so that no later test pays for it."""
    for member in members:
        with suppress(Exception):
            member.close()


@pytest.mark.parametrize("name", STAGES)
def test_storm(
    kafka: Kafka, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While four members join and leave nothing is lost or condemned, and each partition is handled in order."""
    stage = STAGES[name](kafka.url)
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit, ExitStack() as left:
        play = LogPlay(stage, audit)
        left.callback(_close, play.members)
        play.watch_commits()
        bodies: list[bytes] = []
        play.start()
        joined = 1
        for _ in range(ROUNDS):
            bodies += play.send(20)
            if len(play.members) < MEMBERS:
                play.start()
                joined += 1
            else:
                play.members.pop(0).close()
            time.sleep(PAUSE)
        play.wait(
            lambda: len(play.handled) >= len(bodies) and play.all_committed(),
            3 * PATIENCE,
        )
        left.pop_all()
        for member in play.members:
            member.close()
    first = list(dict.fromkeys(play.bodies))
    assert sorted(first) == sorted(bodies)
    assert (stage.letters(), play.faults) == ([], [])
    assert in_order(
        (seen.origin.partition or 0, seen.origin.offset or 0) for seen in play.handled
    )
    stage.close()
    with capsys.disabled():
        print(f"\nstorm, {name}: {joined} joined, sent {len(bodies)}, handled {len(first)}"
              f" (+{len(play.handled) - len(first)}), lost 0, condemned 0")  # fmt: skip


class Storm:
    """Protected brokers of FastStream, of one group, which join and leave."""

    def __init__(self, package: str, stage: KafkaStage, audit: AuditFile) -> None:
        self._package, self._stage = package, stage
        self._url = "kafka://" + ",".join(stage.servers)
        self._forge = Forge(lifetime=600)
        self._guard = Pipeline(
            verifier=self._forge.verifier(), policy=self._forge.policy(stage.destination),
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

        @subscriber_of(broker, self._package, self._stage.topic)  # type: ignore[untyped-decorator]
        async def handle(order: int, verified: VerifiedMessage) -> None:
            await asyncio.sleep(0.002)
            origin = verified.origin
            self.handled.append((order, origin.partition or 0, origin.offset or 0))

        await broker.start()
        self.members.append(broker)
        self.joined += 1

    def send(self, numbers: range) -> None:
        """Publish signed orders."""
        signer = self._forge.signer()
        for number in numbers:
            key = b"key %d" % (number % 16)
            message = Message(
                destination=self._stage.destination, body=str(number).encode(), key=key
            )
            self._stage.produce(signer, message)


@pytest.mark.parametrize("package", ["faststream.kafka", "faststream.confluent"])
async def test_storm_of_faststream(
    kafka: Kafka, package: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """While four members join and leave nothing is lost or condemned, and each partition keeps its order."""
    stage = KafkaStage(kafka.url, partitions=4)
    sent = 0
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        storm = Storm(package, stage, audit)
        for _ in range(ROUNDS):
            await asyncio.to_thread(storm.send, range(sent, sent + 20))
            sent += 20
            if len(storm.members) < MEMBERS:
                await storm.join()
            else:
                await storm.members.pop(0).stop()
            await asyncio.sleep(PAUSE)
        await asyncio.to_thread(
            wait_until, lambda: len({order for order, *_ in storm.handled}) == sent
        )
        for member in storm.members:
            await member.stop()
    assert stage.letters() == []
    assert in_order(handling[1:] for handling in storm.handled)
    stage.close()
    with capsys.disabled():
        print(
            f"\nstorm of {package}: {storm.joined} joined, sent {sent}, lost 0, condemned 0"
        )
