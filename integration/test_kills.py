"""SIGKILL of a consumer process of each client: what was sent is handled or dead-lettered, nothing lost."""

from __future__ import annotations

import json
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kafka import TopicPartition

from integration.scale import is_nightly
from integration.victim import RABBIT, Orders
from mqauth.audit.chain import verify_chain
from mqauth.delivery.assignment import COMMIT_PACE
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_pika import connect
from mqauth.testing.stage_rabbitmq import RabbitMQStage
from mqauth.wire import destination
from mqauth.wire.jwk import dump_key_set
from mqauth.wire.message import Message

pytestmark = pytest.mark.slow

HONEST = 40
FORGED = 20
HEARTBEAT = 1
"""Seconds between two heartbeats of RabbitMQ, which ends a connection that is silent for longer than two."""
CONFLUENT = ("confluent", "confluent-aio")
LOGS = ("kafka-python", *CONFLUENT, "aiokafka")
FASTSTREAM = (RABBIT, "faststream.kafka", "faststream.confluent")
MOMENTS = ("confirm", "audit", "handler", "letter")
# Those that are killed at each of the moments, with one message in hand.
ONE_IN_HAND = ("kafka-python", "aio-pika")
QUEUES = ("aio-pika", "pika", RABBIT)


class Scene:
    """Honest and forged messages on one broker, and victims of one client that consume them."""

    def __init__(self, stage: Any, url: str, client: str, folder: Path) -> None:
        self.stage, self.client, self.folder, self._url = stage, client, folder, url
        self.undo = ExitStack()
        self._asking: Any = None
        self.forge = Forge(lifetime=600)
        self.handled = folder / "handled"
        self.handled.touch()
        self._keys = folder / "jwks.json"
        self._keys.write_text(json.dumps(dump_key_set(self.forge.keys)))
        plain = Message(
            destination=stage.destination, body=b"", key=None if self.is_queue else b"k"
        )
        self.first = self.forge.signer().sign(replace(plain, body=b"0"))
        if client not in FASTSTREAM:  # a copy of it is sent in some tests
            stage.inject(self.first)
        for number in range(HONEST):
            if number or client in FASTSTREAM:
                stage.produce(self.forge.signer(), replace(plain, body=b"%d" % number))
            if number % 2 == 0:
                stage.inject(replace(plain, body=b"forged %d" % number))

    @property
    def is_queue(self) -> bool:
        """Whether the broker is RabbitMQ."""
        return self.client in QUEUES

    def victim(
        self, *, audit: str = "audit.jsonl", own: bool = False, **settings: Any
    ) -> subprocess.Popen[bytes]:
        """Start a consumer, in a process of its own or as a fork; its settings are those of ``Orders``."""
        stage, more = (
            self.stage,
            f"?heartbeat={HEARTBEAT}" if self.client in QUEUES[:2] else "",
        )
        orders = Orders(
            client=self.client, url=self._url + more, destination=stage.destination, dead=stage.dead,
            source=stage.queue if self.is_queue else stage.topic, group="" if self.is_queue else stage.group,
            keys=str(self._keys), handled=str(self.handled), audit=str(self.folder / audit), **settings,
        )  # fmt: skip
        begin = orders.process if own else orders.fork
        process = begin(stderr=subprocess.DEVNULL if self.client in FASTSTREAM else None)
        self.undo.callback(process.wait)
        self.undo.callback(process.kill)
        return process

    def killed(self, moment: str, *after: int, **settings: Any) -> None:
        """Have victims die, one after the other, when the moment comes for so manieth time."""
        for times in after:
            assert (
                self.victim(moment=moment, after=times, **settings).wait(90)
                == -signal.SIGKILL
            )

    def seen(self) -> Counter[bytes]:
        """Return what handlers wrote down, with how often."""
        return Counter(self.handled.read_bytes().split(b"\n")[:-1])

    def is_done(self, forged: int = FORGED) -> bool:
        """Return whether everything is handled or dead-lettered."""
        return (
            len(self.seen()) == HONEST
            and len({letter.body for letter in self.stage.letters()}) == forged
        )

    def settled(self) -> bool:
        """Return whether the broker keeps nothing of the source for its consumers."""
        if self.is_queue:
            return bool(self._declared().message_count == 0)
        if self._asking is None:
            self._asking = self.stage.consumer()
            self.undo.callback(self._asking.close)
        return bool(
            self._asking.committed(TopicPartition(self.stage.topic, 0)) == HONEST + FORGED
        )

    def consumers(self) -> int:
        """Return how many consumers the queue has."""
        return int(self._declared().consumer_count)

    def _declared(self) -> Any:
        with connect(self._url) as connection:
            return (
                connection.channel().queue_declare(self.stage.queue, passive=True).method
            )

    def sum_up(self, what: str) -> tuple[str, int, int]:
        """Check that nothing is lost or condemned; return a line that says so, and what came again."""
        handled, letters = self.seen(), self.stage.letters()
        ids = Counter(letter.occurrences("mqauth-dead-id") for letter in letters)
        assert set(handled) == {b"%d" % number for number in range(HONEST)}
        assert {letter.body for letter in letters} == {
            b"forged %d" % number for number in range(0, HONEST, 2)
        }
        assert len(ids) == FORGED
        assert all(verify_chain(audit).intact for audit in self.folder.glob("*.jsonl"))
        again, twice = handled.total() - HONEST, ids.total() - FORGED
        line = (
            f"\n{self.client}, {what}: sent {HONEST + FORGED}, handled {HONEST} (+{again}), dead-lettered {FORGED}"
            f" (+{twice}), lost 0, honest condemned 0"
        )
        return line, again, twice


def ends(process: subprocess.Popen[bytes]) -> None:
    """Have a victim end in order."""
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0


@pytest.fixture
def scene(client: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Scene]:
    """A scene of a client on its broker."""
    service = request.getfixturevalue("rabbitmq" if client in QUEUES else "kafka")
    stage: Any = (
        RabbitMQStage(service.url) if client in QUEUES else KafkaStage(service.url)
    )
    if client == RABBIT:
        # FastStream publishes to the default exchange, whose routing keys are names of queues.
        stage.destination = destination.rabbitmq("", stage.queue)
    elif client in FASTSTREAM:
        stage.group = stage.topic
    scene = Scene(stage, service.url, client, tmp_path)
    yield scene
    scene.undo.close()
    stage.close()


@pytest.mark.parametrize(
    ("client", "moment"),
    [
        *(
            (client, moment)
            for client in (*LOGS[1:], "pika")
            for moment in ("handler", "letter")
        ),
        *((client, "handler") for client in FASTSTREAM),
        *((client, moment) for client in ONE_IN_HAND for moment in MOMENTS),
    ],
)
def test_killed_and_started_again(
    scene: Scene, moment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed between handler and commit, or dead letter and commit, at night twice: nothing is lost.

    aio-pika acks each message by itself, so that only the one in flight comes again. On Kafka what was settled
    since the last commit does: little, where handlers take longer than the pace of commits.
    """
    kills = (3, 7) if is_nightly() else (3,)
    one = {"at_once": 1, "work": 1.5 * COMMIT_PACE} if scene.client in ONE_IN_HAND else {}
    scene.killed(moment, *kills, **one)
    last = scene.victim()
    wait_until(lambda: scene.is_done() and scene.settled(), lambda: last.poll() is None)
    ends(last)
    line, again, twice = scene.sum_up(f"killed at {moment}")
    with capsys.disabled():
        print(line)
    if scene.client == "aio-pika":
        assert (again, twice) == (
            len(kills) * (moment == "handler"),
            len(kills) * (moment == "letter"),
        )
    elif moment in ("handler", "letter"):
        assert (again if moment == "handler" else twice) > 0
    if one:
        # The record in hand, and the one before it, whose commit may have been on its way.
        assert max(again, twice) <= 2 * len(kills)


@pytest.mark.parametrize("client", ["kafka-python", "pika"])
def test_a_copy_after_a_kill(scene: Scene) -> None:
    """What was handled is known to the next process: a copy that came between the two is `replayed`."""
    scene.killed("handler", 12)
    scene.stage.inject(scene.first)
    last = scene.victim()
    wait_until(lambda: scene.is_done(FORGED + 1))
    ends(last)
    (copy,) = (letter for letter in scene.stage.letters() if letter.body == b"0")
    (reason,) = copy.occurrences("mqauth-dead-reason")
    assert reason in ("replayed", b"replayed")
    # once before the kill, and again where the offset was not committed
    assert scene.seen()[b"0"] <= (1 if scene.is_queue else 2)


@pytest.mark.parametrize(
    ("client", "moment"),
    [
        *((client, "committing") for client in LOGS),
        # The engine writes for all of them: by day one client is killed on either side of it.
        *(
            (client, moment)
            for client in (LOGS if is_nightly() else LOGS[:1])
            for moment in ("written", "committed")
        ),
        ("kafka-python", "handler"),
    ],
)
def test_killed_in_a_transaction(
    scene: Scene, client: str, moment: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed around the commit of a transaction, letters are neither lost nor doubled."""
    name = f"{scene.stage.group}.letters"
    # one call of confluent's consume reads all records, so that there is one transaction with letters
    kills = (
        (1, 2, 2)
        if client not in CONFLUENT
        else (1, 1, 1)
        if moment == "written"
        else (1,)
    )
    if not is_nightly():
        kills = kills[-1:]
    scene.killed(moment, *kills, transactional=name)
    last = scene.victim(transactional=name)
    wait_until(scene.settled)
    last.send_signal(signal.SIGTERM)
    # where nothing was left to it, it may be told to end before it has begun
    assert last.wait(60) in (0, -signal.SIGTERM)
    line, _, twice = scene.sum_up(f"killed at {moment} of a transaction")
    assert twice == 0
    with capsys.disabled():
        print(line)


@pytest.mark.parametrize(
    "client",
    [
        "confluent",
        "aiokafka",
        "aio-pika",
        *(["confluent-aio", "pika"] if is_nightly() else []),
    ],
)
def test_stands_still_beyond_its_session(
    scene: Scene, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that stands still beyond its session, while another goes on, loses and condemns nothing."""
    # So slow that it has not handled everything when it is stopped, however busy this machine is.
    first = scene.victim(own=True, work=0.5)
    wait_until(lambda: scene.seen().total() > 2)
    first.send_signal(signal.SIGSTOP)
    before = scene.seen().total()
    second = scene.victim(work=0.1, audit="second.jsonl")
    wait_until(lambda: scene.seen().total() > before + 2)
    if scene.is_queue:
        wait_until(lambda: scene.is_done() and scene.settled() and scene.consumers() == 1)
    first.send_signal(signal.SIGCONT)
    if scene.is_queue:
        scene.stage.produce(
            scene.forge.signer(), Message(destination=scene.stage.destination, body=b"0")
        )
        wait_until(lambda: scene.settled() and scene.consumers() == 2)
    else:
        wait_until(lambda: len(scene.seen()) == HONEST and scene.settled())
    for process in (first, second):
        ends(process)
    assert before < HONEST
    line, _, _ = scene.sum_up("stood still")
    with capsys.disabled():
        print(line)
