"""FastStream on real brokers when its process is killed in a handler, and under a storm of rebalances."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from integration.faststream_victim import RABBIT, broker_of, letters_of, subscriber_of
from mqauth import AuditFile, MemoryReplayStore, Message, Pipeline
from mqauth.audit.chain import verify_chain
from mqauth.integrations.faststream import VerifiedMessage, protect
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire import destination
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import KeySet

PACKAGES = ("faststream.kafka", "faststream.confluent")
HONEST = 40
STORM = 60
"""Seconds for which members join and leave."""
MEMBERS = 4


class Scene:
    """Honest and forged messages on one broker, and FastStream processes that consume them."""

    def __init__(self, stage: Any, url: str, package: str, folder: Path) -> None:
        self.stage = stage
        self.undo = ExitStack()
        self.forge = Forge(lifetime=600)
        self.file = folder / "handled"
        self.file.touch()
        self.audit = folder / "audit.jsonl"
        keys = folder / "jwks.json"
        keys.write_text(json.dumps(dump_key_set(KeySet([self.forge.key.public_only]))))
        source = stage.queue if package == RABBIT else stage.topic
        self._command = [package, url, source, stage.dead, str(keys), str(self.file), str(self.audit)]
        for number in range(HONEST):
            message = Message(destination=stage.destination, body=str(number).encode())
            stage.produce(self.forge.signer(), message)
            if number % 2 == 0:
                stage.inject(replace(message, body=b"forged %d" % number))

    def victim(self, after: int) -> subprocess.Popen[bytes]:
        """Start a process that dies in so manieth handler, 0 for none."""
        command = [sys.executable, "-m", "integration.faststream_victim", *self._command, str(after)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.undo.callback(process.kill)
        return process

    def seen(self) -> Counter[bytes]:
        """Return what handlers wrote down, with how often."""
        return Counter(self.file.read_bytes().split(b"\n")[:-1])

    def is_done(self) -> bool:
        """Return whether everything is handled or dead-lettered."""
        buried = {letter.body for letter in self.stage.letters()}
        return len(self.seen()) >= HONEST and len(buried) >= HONEST / 2


@pytest.fixture(params=[RABBIT, *PACKAGES])
def scene(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """Yield a scene on each broker."""
    on_rabbit = request.param == RABBIT
    service = request.getfixturevalue("rabbitmq" if on_rabbit else "kafka")
    stage: Any = RabbitMQStage(service.url) if on_rabbit else KafkaStage(service.url)
    if on_rabbit:
        # FastStream publishes to the default exchange, whose routing keys are names of queues.
        stage.destination = destination.rabbitmq("", stage.queue)
    scene = Scene(stage, service.url if on_rabbit else ",".join(stage.servers), request.param, tmp_path)
    yield scene
    scene.undo.close()
    stage.close()


@pytest.mark.slow
def test_killed_in_the_handler(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """A process killed twice in its handler and started again loses nothing, and condemns nothing honest."""
    for after in (3, 7):
        assert scene.victim(after).wait(60) == -signal.SIGKILL
    last = scene.victim(0)
    wait_until(scene.is_done, lambda: last.poll() is None)
    last.send_signal(signal.SIGTERM)
    assert last.wait(60) == 0
    handled, letters = scene.seen(), Counter(letter.body for letter in scene.stage.letters())
    assert set(handled) == {b"%d" % number for number in range(HONEST)}
    assert set(letters) == {b"forged %d" % number for number in range(0, HONEST, 2)}
    assert handled.total() > HONEST
    assert verify_chain(scene.audit).intact
    with capsys.disabled():
        print(
            f"\nkilled in a handler of FastStream: sent {HONEST + HONEST // 2}, handled {HONEST}"
            f" (+{handled.total() - HONEST}), dead-lettered {len(letters)} (+{letters.total() - len(letters)}),"
            " lost 0, honest condemned 0"
        )


class Storm:
    """Protected brokers of one group, which join and leave."""

    def __init__(self, package: str, stage: KafkaStage, audit: AuditFile) -> None:
        self._package = package
        self._stage = stage
        self._url = ",".join(stage.servers)
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
