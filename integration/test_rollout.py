"""Onto a live system: a queue and a topic with 10,000 unsigned messages go up the ladder under traffic.

Four producers go on publishing all the while. One signs from the start, the others begin one after the other. On
each rung somebody takes the token off some messages of the producer that signs.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from integration.rollout_world import SIGNS, SILENT, STRIPPED, Ladder, LiveQueue, LiveTopic, Run
from integration.services import Kafka, RabbitMQ
from mqauth import Verified
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until

INTERCEPTOR = "message_interceptors.incoming.set_header_timestamp.overwrite = true"
BACKLOG = 10_000
EACH = 100
"""Messages that each of the four producers publishes on each rung."""
AT_OFF = 2000
Say = Callable[[str], None]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forge() -> Forge:
    """The honest producer's keys."""
    return Forge(lifetime=3600)


@pytest.fixture(scope="module")
def interceptor() -> Iterator[RabbitMQ]:
    """A RabbitMQ that stamps what it receives."""
    with RabbitMQ.launch(extra_config=[INTERCEPTOR]) as broker:
        yield broker


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Print a line, whatever pytest captures."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}", end="")

    return say


def test_a_live_queue_goes_up_the_ladder(
    interceptor: RabbitMQ, forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Say
) -> None:
    """On RabbitMQ nothing is lost, nothing condemned before its time, and the report names who is missing."""
    with contextlib.closing(LiveQueue(interceptor.url, forge)) as queue:
        ladder = Ladder(queue, tmp_path, monkeypatch, forge)
        stand_at_off(ladder, say)
        observe(ladder, say)
        condemned = enforce(ladder, say)
        sum_up(ladder, condemned, say)


def test_a_live_topic_goes_up_the_ladder(
    kafka: Kafka, forge: Forge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, say: Say
) -> None:
    """On Kafka, too, with a rebalance."""
    with contextlib.closing(LiveTopic(kafka.url, forge)) as topic:
        ladder = Ladder(topic, tmp_path, monkeypatch, forge)
        stand_at_off(ladder, say)
        observe(ladder, say)
        share_with_another(ladder, topic, say)
        condemned = enforce(ladder, say)
        sum_up(ladder, condemned, say)


# The rungs, on either broker


def stand_at_off(ladder: Ladder, say: Say) -> None:
    """Nothing is judged: the old handler gets all, signed messages too, and no stripped token is noticed."""
    ladder.clock.hours = -72
    for app in ladder.signing:
        ladder.publish(app, BACKLOG // len(ladder.signing), SILENT)
    with ladder.consumer(), ladder.traffic(EACH):
        wait_until(lambda: len(ladder.runs) >= AT_OFF)
    assert {(found.verified, found.would) for found in ladder.runs} == {(False, None)}
    assert ladder.status()["against"][-1] == "nothing is judged at off"
    assert ladder.live.letters() == Counter()
    say(f"{ladder.place}: {BACKLOG:,} unsigned messages; {len(ladder.runs):,} handled at off")
    ladder.up()
    assert ladder.rung == "observe"


def observe(ladder: Ladder, say: Say) -> None:
    """The report has who is silent, to the message; it is safe only once all have signed for a window."""
    ladder.clock.hours = -36
    _observed(ladder, say)
    ladder.signing["web-shop"] = SIGNS
    ladder.clock.hours = -34
    ladder.publish("orders-api", 3, STRIPPED)
    _observed(ladder, say)
    assert set(ladder.missing()) == {"crm-export", "till-7", "orders-api"}
    ladder.signing |= dict.fromkeys(ladder.signing, SIGNS)
    ladder.clock.hours = -30
    notice_a_stripped_token(ladder, say)
    assert ladder.missing() == {"orders-api": 3}
    ladder.clock.hours = 0
    ladder.consume_all(EACH)
    report = ladder.status()
    assert report["safe"], report
    assert report["accepted"] == {ladder.place: EACH * len(ladder.signing)}
    assert ladder.live.letters() == Counter()


def _observed(ladder: Ladder, say: Say) -> list[Run]:
    """Consume all there is, and compare the report with the handlers' runs."""
    runs = ladder.consume_all(EACH)
    report, missing = ladder.status(), ladder.missing()
    accepted = sum(found.verified for found in runs)
    assert not report["safe"]
    assert (missing, report["accepted"]) == (ladder.unsigned(runs), {ladder.place: accepted})
    assert report["other"] == 0
    assert not any(found.verified for found in runs if ladder.sent[found.body][1] != SIGNS)
    say(f"  observe: {accepted:,} verified, not signed {dict(sorted(missing.items()))}")
    return runs


def notice_a_stripped_token(ladder: Ladder, say: Say) -> None:
    """After a day in which each message was signed, one without is an alert."""
    with ladder.consumer(), ladder.traffic(EACH):
        ladder.wait_for()
        # A minute later the counts are written.
        ladder.clock.hours += 0.02
        ladder.wait_for(ladder.publish("orders-api", 1, SIGNS))
        ladder.clock.hours += 26
        ladder.wait_for(ladder.publish("orders-api", 1, SIGNS) + ladder.publish("orders-api", 3, STRIPPED))
    again = [alert for alert in ladder.alerts if alert.kind == "unsigned_again"]
    assert [(dict(alert.about), alert.count) for alert in again] == [({"destination": ladder.place}, 3)]
    say("  observe: 3 stripped tokens after a day without: the alert unsigned_again")


def enforce(ladder: Ladder, say: Say) -> set[bytes]:
    """Everything is enforced; old code is no longer wired in."""
    ladder.up()
    assert ladder.rung == "enforce"
    wrong = set(ladder.publish("orders-api", 3, STRIPPED) + ladder.publish("till-7", 2, SILENT))
    runs = ladder.consume_all(EACH, old_code=False)
    assert all(found.verified for found in runs)
    assert {body for body, _ in ladder.live.letters()} >= wrong
    say(f"  enforce: {len(runs)} verified, {len(wrong)} unsigned dead-lettered")
    return wrong


def sum_up(ladder: Ladder, condemned: set[bytes], say: Say) -> None:
    """Assert that nothing was lost, and that nothing was dead-lettered but what had to be."""
    letters = ladder.live.letters()
    assert {reason for _, reason in letters} == {"token_missing"}
    assert {body for body, _ in letters} == condemned
    assert not condemned & {found.body for found in ladder.runs if found.verified}
    lost = set(ladder.sent) - ladder.ended
    assert lost == set()
    signed = sum(how == SIGNS for _, how in ladder.sent.values())
    say(
        f"  sum: {len(ladder.sent):,} published, {signed:,} of them signed; {len(ladder.handled):,} handled in"
        f" {len(ladder.runs):,} runs, {len(condemned):,} dead-lettered, 0 lost\n"
    )


# Kafka alone


def share_with_another(ladder: Ladder, topic: LiveTopic, say: Say) -> None:
    """A second member joins and leaves while the producers go on: a rebalance changes no verdict."""
    before, others = len(ladder.runs), list[Verified]()

    def take(message: Verified) -> None:
        others.append(message)
        ladder.take_verified(message)

    with ladder.consumer() as guard, ladder.traffic(EACH), topic.consuming(guard, take, ladder.take_unverified):
        for _ in range(100):
            ladder.wait_for(ladder.publish("orders-api", 3, SIGNS))
            if others:
                break
    ladder.consume_all(EACH)
    runs = ladder.runs[before:]
    assert others
    assert all(found.verified for found in runs)
    say(f"  observe: {len(runs)} runs across two rebalances, {len(others)} by a second member, all verified")
