"""``auto_offset_reset="latest"``, the default of every client of Kafka, loses no record of mqauth's consumers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import kafka as kafka_python
import pytest

from integration.latest_world import EVERYONE, FASTSTREAM, PROTOCOLS, WRAPPERS, LatestPlay, held
from integration.services import Kafka
from mqauth.audit.file import AuditFile
from mqauth.errors import RetryLater
from mqauth.testing.delivery_contract import _end

_PYTHON: Any = kafka_python
BOTH = 20


@pytest.fixture
def play(request: pytest.FixtureRequest, kafka: Kafka, tmp_path: Path) -> Iterator[LatestPlay]:
    """Yield a play of one kind of client, on a topic of four partitions."""
    stage = EVERYONE[request.param](kafka.url)
    with closing(stage), AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit:
        play = LatestPlay(stage, audit)
        yield play
        _end(play)


def kinds(*tables: Any) -> Any:
    """Return the decorator that plays each kind of these tables."""
    return pytest.mark.parametrize("play", [kind for table in tables for kind in table], indirect=True)


@kinds(EVERYONE)
def test_an_idle_consumer_restarts(play: LatestPlay) -> None:
    """What comes while an idle consumer restarts is handled, all of it, once."""
    play.stop(play.join())
    bodies = play.send(BOTH)
    play.start()
    play.wait(lambda: len(play.handled) >= len(bodies))
    assert (sorted(play.bodies), play.reasons()) == (sorted(bodies), [])


@kinds(WRAPPERS, FASTSTREAM)
def test_a_stop_while_the_store_is_away(play: LatestPlay) -> None:
    """What could not be judged, since the replay store was away, is handled after an orderly restart."""
    member = play.join()
    play.store.away = True
    bodies = play.send(BOTH)
    play.wait(lambda: play.store.asked > 0)
    play.stop(member)
    play.store.away = False
    play.start()
    play.wait(lambda: len(play.handled) >= len(bodies))
    assert (sorted(play.bodies), play.reasons()) == (sorted(bodies), [])


@kinds(WRAPPERS, PROTOCOLS)
def test_a_second_member_joins(play: LatestPlay) -> None:
    """Of what waits on ``RetryLater`` the second member of a group handles all that it is given."""
    away, called = threading.Event(), set[int]()

    def later(verified: Any) -> None:
        called.add(verified.origin.partition)
        if not away.is_set():
            raise RetryLater("not now")
        play.handle(verified)

    play.join(later, workers=4)
    bodies = play.send(2 * BOTH)
    play.wait(lambda: len(called) == 4)
    play.start(later)
    play.wait(lambda: all(map(held, play.members)) and len(play.held()) == 4)
    away.set()
    play.wait(lambda: len(play.handled) >= len(bodies))
    assert (sorted(play.bodies), play.reasons()) == (sorted(bodies), [])


@kinds(WRAPPERS, FASTSTREAM)
def test_partitions_are_added(play: LatestPlay) -> None:
    """What is sent to new partitions before the consumer has seen them is handled, too."""
    play.join()
    bodies = play.send(BOTH // 4)
    play.wait(lambda: len(play.handled) >= len(bodies))
    play.stage.admin.create_partitions({play.stage.topic: 7})
    bodies += play.send_to(*range(7), *range(4, 7))
    play.wait(lambda: len(play.handled) >= len(bodies))
    assert (sorted(play.bodies), play.reasons()) == (sorted(bodies), [])
