"""What the consumers of all Kafka clients have in common beside the delivery contract, in virtual time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from mqauth import Cause, ConfigurationError
from mqauth.brokers.log.records import OffsetsRefusedError
from tests.kit.delivery_contract import LogPlay
from tests.log_leaves import Sink
from tests.simulation.kafka_broker import PLACES, TOPIC
from tests.simulation.kafka_leaves import LEAVES
from tests.simulation.kafka_stage import simulated_log


@pytest.fixture(params=LEAVES)
def play(request: pytest.FixtureRequest) -> Iterator[LogPlay]:
    """Yield a play on the leaf of each client."""
    with simulated_log(request.param) as stage:
        yield LogPlay(stage, Sink())  # type: ignore[arg-type]


def events(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the events of the client that were logged."""
    return [each.event for each in caplog.records if each.name == "mqauth.kafka"]


def test_letters_to_the_topic_that_is_consumed(play: LogPlay) -> None:
    """The consumer ends before it writes a letter that it would read, reject and write again, without end."""
    play.send(1, sealed=False)
    member: Any = play.start()
    member.consumer._dead_letters.name = TOPIC
    play.stage.sleep(5)
    with pytest.raises(ConfigurationError, match="dead letters must go to another topic"):
        play.stop(member)
    assert (play.stage.attempts(), play.stage.committed()) == (0, {})


def test_no_right_to_the_offsets(play: LogPlay) -> None:
    """A group that may read records but not its offsets handles nothing, and ends with an error that says why."""
    play.stage.broker.out["commits"] = "refused"
    play.send(1)
    member = play.start()
    play.stage.sleep(5)
    with pytest.raises(
        OffsetsRefusedError, match="group billing read and commit its offsets of orders"
    ):
        play.stop(member)
    assert play.bodies == []


def test_a_commit_that_is_refused_for_good(play: LogPlay) -> None:
    """It ends the consumer with the client's own error."""
    member: Any = play.start()
    play.send(1)
    play.wait(play.all_committed)
    play.stage.broker.out["commits"] = "refused"
    play.send(1)
    play.stage.sleep(10)
    assert member.failed
    assert play.stage.leaf.is_final(member.failure)


def test_a_group_that_begins_at_the_end(
    play: LogPlay, caplog: pytest.LogCaptureFixture
) -> None:
    """A new group begins at the end, says so, and commits that before it handles anything."""
    commits: list[Any] = []
    play.stage.broker.reset = "latest"
    play.send(2, key=b"k")
    play.stage.watch(lambda *commit: commits.append((*commit, play.bodies)))
    play.start()
    play.wait(lambda: len(commits) == len(PLACES))
    (body,) = play.send(1, key=b"k")
    play.wait(play.all_committed)
    assert (sorted(commits), play.bodies) == (
        [(0, 0, []), (1, 0, []), (2, 2, []), (2, 3, [body])],
        [body],
    )
    assert events(caplog) == ["client.offsets_latest"]


def test_a_start_that_cannot_be_committed(play: LogPlay) -> None:
    """While the start cannot be committed nothing is handled; then all that came is."""
    play.stage.refuse_commits(True)
    play.start()
    bodies = play.send(3)
    play.stage.sleep(10)
    assert play.bodies == []
    play.stage.refuse_commits(False)
    play.wait(play.all_committed)
    assert sorted(play.bodies) == bodies


def test_out_of_range(play: LogPlay, caplog: pytest.LogCaptureFixture) -> None:
    """Where the client's next offset is out of range, what it reads then is read from what is left, loudly."""
    play.start()
    play.send(1, key=b"k")
    play.wait(play.all_committed)
    play.send(7, key=b"k")
    play.stage.broker.remove(PLACES[2])
    play.wait(play.all_committed)
    assert [seen.origin.offset for seen in play.handled] == [0, 4, 5, 6, 7]
    assert events(caplog) == ["client.offset_out_of_range"]
    assert (
        "offset 1 of orders-2 is out of range, its records are lost; it goes on at 4"
        in caplog.text
    )


@pytest.mark.parametrize("lease", [0.6, 60.0])
def test_a_long_handler_keeps_its_claim(
    play: LogPlay, lease: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a handler runs its claim is renewed before its lease is over, however short that is."""
    claim, times = play.store.claim, list[float]()

    def noted(request: Any) -> Any:
        times.append(play.stage.now())
        return claim(request)

    monkeypatch.setattr(play.store, "claim", noted)
    monkeypatch.setattr(
        play.store,
        "claim_many",
        lambda requests: [noted(request) for request in requests],
    )
    play.start(lambda _: play.stage.sleep(4 * lease), lease=lease)
    play.send(1)
    play.wait(play.all_committed, 5 * lease + 10)
    assert len(times) > 8
    assert max(later - earlier for earlier, later in pairwise(times)) < lease


def test_health(play: LogPlay) -> None:
    """Health says which record stalls, since when and why, and nothing of it once it went on."""
    play.stage.refuse_letters(True)
    play.send(1, key=b"k", sealed=False)
    member: Any = play.start()
    play.wait(lambda: member.health().deferred == 1)
    start = play.clock.now()
    play.stage.sleep(20)
    health = member.health()
    assert (health.consuming, health.cause) == (True, Cause.DEAD_LETTER_UNAVAILABLE)
    assert (
        "(orders.dead); its verdict is token_missing: no token header: headers 2"
        in health.detail
    )
    assert start - 10 < health.stalled_since <= start
    (stall,) = health.stalls
    assert (stall.topic, stall.partition, stall.offset) == ("orders", 2, 0)
    play.stage.refuse_letters(False)
    play.wait(play.all_committed)
    play.stop(member)
    after = member.health()
    assert (after.consuming, after.deferred, after.stalled_since, after.cause, after.detail) == (
        False, 0, None, None, None)  # fmt: skip
