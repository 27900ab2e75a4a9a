"""SIGKILL of a consumer process on a real Kafka: what was sent is handled or dead-lettered, nothing lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kafka import TopicPartition

from integration.services import Kafka
from mqauth.audit.chain import verify_chain
from mqauth.testing.forge import Forge
from mqauth.testing.stage_kafka import KafkaStage, wait_until
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import KeySet
from mqauth.wire.message import Message

HONEST = 40
FORGED = 20


class Scene:
    """A topic full of honest and forged messages, and victims that consume it."""

    module = "integration.kafka_victim"

    def __init__(self, url: str, folder: Path) -> None:
        self.stage = KafkaStage(url)
        self.handled = folder / "handled"
        self.handled.touch()
        self.audit = folder / "audit.jsonl"
        self._keys = folder / "jwks.json"
        self._url = url
        forge = Forge(lifetime=600)
        self._keys.write_text(json.dumps(dump_key_set(KeySet([forge.key.public_only]))))
        plain = Message(destination=self.stage.destination, body=b"", key=b"k")
        self.first = forge.signer().sign(replace(plain, body=b"honest 0"))
        self.stage.inject(self.first)
        for number in range(HONEST):
            if number:
                self.stage.produce(forge.signer(), replace(plain, body=b"honest %d" % number))
            if number % 2 == 0:
                self.stage.inject(replace(plain, body=b"forged %d" % number))

    def victim(self, moment: str, after: int, transactional: str = "") -> subprocess.Popen[bytes]:
        """Start a consumer process, with transactional dead letters where their id is given."""
        places = (
            self._url,
            self.stage.topic,
            self.stage.dead,
            self.stage.group,
            self._keys,
            self.handled,
            self.audit,
        )
        arguments = [
            sys.executable,
            "-m",
            self.module,
            *map(str, (*places, moment, after, transactional)),
        ]
        return subprocess.Popen(arguments)

    def committed(self) -> int | None:
        """Return the group's committed offset."""
        client = self.stage.consumer()
        try:
            offset: int | None = client.committed(TopicPartition(self.stage.topic, 0))
            return offset
        finally:
            client.close()

    def seen(self) -> Counter[bytes]:
        """Return what handlers wrote down, with how often."""
        return Counter(self.handled.read_bytes().split(b"\n")[:-1])


@pytest.fixture
def scene(kafka: Kafka, tmp_path: Path) -> Iterator[Scene]:
    """A set scene."""
    scene = Scene(kafka.url, tmp_path)
    yield scene
    scene.stage.close()


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["handler", "letter"])
def test_killed_and_started_again(scene: Scene, moment: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed twice between handler and commit, or dead letter and commit: sent = handled + dead-lettered."""
    killed_and_started_again(scene, moment, capsys)


@pytest.mark.slow
def test_a_copy_after_a_kill(scene: Scene) -> None:
    """What was handled is known to the next process: a copy that came between the two is `replayed`."""
    copy_after_a_kill(scene)


def copy_after_a_kill(scene: Scene) -> None:
    """Kill a consumer, send a copy of what it handled, and let the next one, with its file, handle the rest."""
    assert scene.victim("handler", 7).wait(60) == -signal.SIGKILL
    scene.stage.inject(scene.first)
    last = scene.victim("never", 0)
    wait_until(
        lambda: len(scene.seen()) == HONEST and len({letter.body for letter in scene.stage.letters()}) > FORGED
    )
    last.send_signal(signal.SIGTERM)
    assert last.wait(60) == 0
    (copy,) = (letter for letter in scene.stage.letters() if letter.body == b"honest 0")
    assert copy.occurrences("mqauth-dead-reason") == (b"replayed",)
    # once before the kill, and again where the offset was not committed
    assert scene.seen()[b"honest 0"] <= 2


def killed_and_started_again(scene: Scene, moment: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Kill a consumer twice, and let a third one handle the rest."""
    for after in (3, 7):
        assert scene.victim(moment, after).wait(60) == -signal.SIGKILL
    last = scene.victim("never", 0)
    wait_until(
        lambda: len(scene.seen()) == HONEST and len({letter.body for letter in scene.stage.letters()}) == FORGED
    )
    last.send_signal(signal.SIGTERM)
    assert last.wait(60) == 0
    letters = scene.stage.letters()
    handled = scene.seen()
    assert set(handled) == {b"honest %d" % number for number in range(HONEST)}
    assert {letter.body for letter in letters} == {b"forged %d" % number for number in range(0, HONEST, 2)}
    ids = Counter(letter.occurrences("mqauth-dead-id") for letter in letters)
    assert len(ids) == FORGED
    repeated = handled.total() - HONEST if moment == "handler" else ids.total() - FORGED
    assert repeated > 0
    assert scene.committed() == HONEST + FORGED
    assert verify_chain(scene.audit).intact
    with capsys.disabled():
        print(
            f"\nkilled at {moment}: sent {HONEST + FORGED}, handled {len(handled)} (+{handled.total() - HONEST}),"
            f" dead-lettered {len(ids)} (+{ids.total() - FORGED}), lost 0, honest condemned 0"
        )
