"""``auto_offset_reset="latest"``, the default of every client of Kafka, loses no record of mqauth's consumers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import kafka as kafka_python
import pytest

from integration.latest_world import (
    EVERYONE,
    FASTSTREAM,
    PROTOCOLS,
    STABLE,
    WRAPPERS,
    LatestPlay,
    by_hand,
    held,
    in_transactions,
)
from integration.services import Kafka
from mqauth.audit.file import AuditFile
from mqauth.delivery.assignment import RENEWAL
from mqauth.errors import RetryLater
from tests.kit.delivery_contract import _end

_PYTHON: Any = kafka_python
MANY = 20
METADATA = "mqauth partitions=4"


@pytest.fixture
def play(request: pytest.FixtureRequest, kafka: Kafka, tmp_path: Path) -> Iterator[LatestPlay]:
    """Yield a play of one kind of client, on a topic of four partitions."""
    stage = (EVERYONE | STABLE)[request.param](kafka.url)
    with closing(stage), AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        play = LatestPlay(stage, audit)
        yield play
        _end(play)


def kinds(*tables: Any) -> Any:
    """Return the decorator that plays each kind of these tables."""
    return pytest.mark.parametrize("play", [kind for table in tables for kind in table], indirect=True)


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the events of the lines that were logged."""
    return [record.event for record in caplog.records if hasattr(record, "event")]


@kinds(EVERYONE)
def test_an_idle_consumer_restarts(play: LatestPlay) -> None:
    """What comes while an idle consumer restarts is handled."""
    play.stop(play.join())
    bodies = play.send(MANY)
    play.start()
    play.all_handled(bodies)


@kinds(WRAPPERS, FASTSTREAM)
def test_a_stop_while_the_store_is_away(play: LatestPlay) -> None:
    """What could not be judged, since the replay store was away, is handled after an orderly restart."""
    member = play.join()
    play.store.away = True
    bodies = play.send(MANY)
    play.wait(lambda: play.store.asked > 0)
    play.stop(member)
    play.store.away = False
    play.start()
    play.all_handled(bodies)


@kinds(WRAPPERS, PROTOCOLS)
def test_a_second_member_joins(play: LatestPlay) -> None:
    """Of what waits on ``RetryLater`` the second member of a group handles all that it is given."""
    ready, called = threading.Event(), set[int]()

    def later(verified: Any) -> None:
        called.add(verified.origin.partition)
        if not ready.is_set():
            raise RetryLater("not now")
        play.handle(verified)

    play.join(later, workers=4)
    bodies = play.send(2 * MANY)
    play.wait(lambda: len(called) == 4)
    play.start(later)
    play.wait(lambda: all(map(held, play.members)) and len(play.held()) == 4)
    ready.set()
    play.all_handled(bodies)


@kinds(WRAPPERS, FASTSTREAM)
def test_partitions_are_added(play: LatestPlay) -> None:
    """What is sent to new partitions before the consumer has seen them is handled, too."""
    play.join()
    bodies = play.send(MANY // 4)
    play.all_handled(bodies)
    play.stage.admin.create_partitions({play.stage.topic: 7})
    play.all_handled(bodies + play.send_to(*range(7), *range(4, 7)))
    assert play.metadata() == {METADATA}


@kinds(WRAPPERS, FASTSTREAM)
def test_an_old_group(play: LatestPlay, caplog: pytest.LogCaptureFixture) -> None:
    """The first start of a group from before replays no history, and says so; from then on nothing is lost."""
    play.send_to(0, 1, 1, 2, 3, 3)
    play.commit({0: 0, 2: 1})
    with caplog.at_level(logging.CRITICAL, "mqauth"):
        member = play.join()
        play.wait(lambda: play.bodies == play.sent[:1])
        play.stop(member)
    assert events(caplog) == ["client.partitions_unmarked"]
    assert {number: found.offset for number, found in play.commits().items()} == {0: 1, 1: 2, 2: 1, 3: 2}
    assert play.metadata() == {METADATA}
    bodies = play.send(MANY)
    play.stage.admin.create_partitions({play.stage.topic: 5})
    bodies += play.send_to(4)
    caplog.clear()
    play.start()
    play.all_handled([*play.sent[:1], *bodies])
    assert "client.partitions_unmarked" not in events(caplog)


@kinds(WRAPPERS)
def test_two_first_members(play: LatestPlay) -> None:
    """A group whose first members start at once begins at the end; what comes after that is handled, once."""
    play.send_to(0, 1, 2, 3)
    play.start()
    play.start()
    play.wait(lambda: len(play.commits()) == 4 and play.held() == [0, 1, 2, 3])
    bodies = play.send(MANY)
    play.all_handled(bodies)
    while play.members:
        play.stop(play.members[0])
    assert play.metadata() == {METADATA}


@kinds(WRAPPERS)
def test_a_start_that_is_not_committed(play: LatestPlay, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is handled while the start of a partition cannot be committed; what came since then is kept."""
    play.stage.refuse_commits(True)
    play.start()
    play.wait(lambda: play.held() == [0, 1, 2, 3])
    play.wait(lambda: events(caplog).count("client.commit_failed") >= 1)
    bodies = play.send(MANY)
    play.wait(lambda: events(caplog).count("client.commit_failed") >= 3)
    assert (play.bodies, play.commits()) == ([], {})
    play.stage.refuse_commits(False)
    play.all_handled(bodies)


@kinds(STABLE)
def test_a_transaction_is_open(play: LatestPlay) -> None:
    """A consumer that reads what is committed begins before a transaction that is open, and handles it."""
    with _PYTHON.KafkaProducer(bootstrap_servers=play.stage.servers, transactional_id=play.stage.topic) as writer:
        writer.init_transactions()
        writer.begin_transaction()
        bodies = play.send_by(writer, 0, 1, 2, 3)
        play.stop(play.join())
        writer.commit_transaction()
    play.start()
    play.all_handled(bodies)


@pytest.mark.parametrize("kind", ["kafka-python", "confluent"])
def test_assigned_by_hand(kind: str, kafka: Kafka, tmp_path: Path) -> None:
    """Partitions that were assigned by hand lose nothing either; while idle they are committed twice a day."""
    with closing(by_hand(kind, kafka.url)) as stage, AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        play = LatestPlay(stage, audit)
        member = play.join()
        renewed = list[int]()
        stage.watch(lambda number, _offset: renewed.append(number))
        play.clock.advance(RENEWAL)
        play.wait(lambda: sorted(renewed) == [0, 1, 2, 3])
        play.stop(member)
        bodies = play.send(MANY)
        play.start()
        play.all_handled(bodies)
        _end(play)


@kinds(WRAPPERS, FASTSTREAM)
def test_out_of_range(play: LatestPlay, caplog: pytest.LogCaptureFixture) -> None:
    """Where the next records are gone, a consumer goes on at the first one that is left, and says so."""
    play.stop(play.join())
    bodies = play.send_to(*[0] * 10, 1)
    play.remove_records(0, before=6)
    play.start()
    play.all_handled(bodies[6:])
    assert events(caplog).count("client.offset_out_of_range") == 1
    assert set(play.bodies) == set(bodies[6:])


@kinds(WRAPPERS)
def test_out_of_range_while_it_waits(play: LatestPlay, caplog: pytest.LogCaptureFixture) -> None:
    """The same where the records go while their partition waits for something."""
    ready, called = threading.Event(), threading.Event()

    def later(verified: Any) -> None:
        called.set()
        if not ready.is_set():
            raise RetryLater("not now")
        play.handle(verified)

    play.join(later)
    bodies = play.send_to(0)
    play.wait(called.is_set)
    bodies += play.send_to(*[0] * 9)
    play.remove_records(0, before=6)
    ready.set()
    play.all_handled([bodies[0], *bodies[6:]])
    play.wait(lambda: play.commits()[0].offset == 10)
    assert len(play.handled) <= 10


@pytest.mark.parametrize("kind", WRAPPERS)
def test_metadata_in_transactions(kind: str, kafka: Kafka, tmp_path: Path) -> None:
    """Dead letters that are committed with their offsets keep the metadata of the group's commits."""
    with closing(in_transactions(kind, kafka.url)) as stage:
        with AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
            play = LatestPlay(stage, audit)
            play.join()
            play.send(8, sealed=False)
            play.wait(lambda: len(stage.letters()) == 8)
            play.wait(lambda: sum(found.offset for found in play.commits().values()) == 8)
            _end(play)
        assert play.metadata() == {METADATA}
