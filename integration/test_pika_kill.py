"""Kills and pauses of a process that consumes by pika, on a real RabbitMQ."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from integration.pika_world import HEARTBEAT, World
from integration.services import RabbitMQ
from mqauth.audit.chain import verify_chain
from mqauth.testing.stage_kafka import wait_until
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.keys import KeySet
from mqauth.wire.message import Message

HONEST = 40
FORGED = 20


class Scene(World):
    """A queue full of honest and forged messages, and victims that consume it."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, folder)
        self.folder = folder
        self.file = folder / "handled"
        self.file.touch()
        keys = dump_key_set(KeySet([self.forge.key.public_only]))
        (folder / "jwks.json").write_text(json.dumps(keys))
        plain = Message(destination=self.stage.destination, body=b"")
        self.first = self.forge.signer().sign(replace(plain, body=b"honest 0"))
        self.stage.inject(self.first)
        for number in range(HONEST):
            if number:
                self.stage.produce(self.forge.signer(), replace(plain, body=b"honest %d" % number))
            if number % 2 == 0:
                self.stage.inject(replace(plain, body=b"forged %d" % number))

    def victim(
        self, moment: str, after: int, audit: str = "victims.jsonl", more: str = ""
    ) -> subprocess.Popen[bytes]:
        """Start a consumer process."""
        places = (
            self.url + more, self.stage.destination, self.stage.queue, self.stage.dead, self.folder / "jwks.json",
            self.file, self.folder / audit,
        )  # fmt: skip
        command = [sys.executable, "-m", "integration.pika_victim", *map(str, (*places, moment, after))]
        process = subprocess.Popen(command)
        self.undo.callback(process.kill)
        return process

    def seen(self) -> Counter[bytes]:
        """Return what handlers wrote down, with how often."""
        return Counter(self.file.read_bytes().split(b"\n")[:-1])

    def is_done(self) -> bool:
        """Return whether everything is handled or dead-lettered, and acked."""
        buried = {letter.body for letter in self.stage.letters()}
        return len(self.seen()) == HONEST and len(buried) == FORGED and self.left() == 0

    def sums(self, what: str) -> tuple[str, int, int]:
        """Check that nothing is lost or condemned; return a line that says so, and what came twice."""
        handled, letters = self.seen(), self.stage.letters()
        assert set(handled) == {b"honest %d" % number for number in range(HONEST)}
        assert {letter.body for letter in letters} == {b"forged %d" % number for number in range(0, HONEST, 2)}
        again, twice = handled.total() - HONEST, len(letters) - FORGED
        line = f"{what}: sent {HONEST + FORGED}, handled {HONEST} (+{again}), dead-lettered {FORGED} (+{twice})"
        return f"\n{line}, lost 0, honest condemned 0", again, twice


@pytest.fixture
def scene(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Scene]:
    """A set scene."""
    scene = Scene(rabbitmq.url, tmp_path)
    yield scene
    scene.close()


def ends(process: subprocess.Popen[bytes]) -> None:
    """Have a victim end in order."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["handler", "letter"])
def test_killed_and_started_again(scene: Scene, moment: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed twice between handler and ack, or dead letter and ack: sent = handled + dead-lettered."""
    for after in (3, 7):
        assert scene.victim(moment, after).wait(60) == -signal.SIGKILL
    last = scene.victim("never", 0)
    wait_until(scene.is_done)
    ends(last)
    line, again, twice = scene.sums(f"killed at {moment}")
    assert (again if moment == "handler" else twice) > 0
    assert verify_chain(scene.folder / "victims.jsonl").intact
    with capsys.disabled():
        print(line)


@pytest.mark.slow
def test_a_copy_after_a_kill(scene: Scene) -> None:
    """What was handled is known to the next process: a copy that came between the two is `replayed`."""
    assert scene.victim("handler", 12).wait(60) == -signal.SIGKILL
    scene.stage.inject(scene.first)
    last = scene.victim("never", 0)
    wait_until(
        lambda: len(scene.seen()) == HONEST and len({letter.body for letter in scene.stage.letters()}) > FORGED
    )
    ends(last)
    (copy,) = (letter for letter in scene.stage.letters() if letter.body == b"honest 0")
    assert copy.occurrences("mqauth-dead-reason") == ("replayed",)
    assert scene.seen()[b"honest 0"] == 1


@pytest.mark.slow
def test_paused_beyond_heartbeats(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    """A process that stands still beyond its heartbeats, while another goes on, loses and condemns nothing."""
    first = scene.victim("slow", 0, more=f"?heartbeat={HEARTBEAT}")
    wait_until(lambda: scene.seen().total() > 2)
    first.send_signal(signal.SIGSTOP)
    second = scene.victim("slow", 0, "second.jsonl")
    threading.Event().wait(4 * HEARTBEAT)
    wait_until(scene.is_done)
    first.send_signal(signal.SIGCONT)
    scene.stage.produce(scene.forge.signer(), Message(destination=scene.stage.destination, body=b"honest 0"))
    wait_until(lambda: scene.left() == 0 and scene.consumers() == 2)
    for process in (first, second):
        ends(process)
    line, _, _ = scene.sums("paused")
    with capsys.disabled():
        print(line)
