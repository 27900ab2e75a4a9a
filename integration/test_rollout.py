"""Onto a live system, by every client: a backlog of unsigned messages goes up the ladder, and none is condemned.

Four producers publish all the while. One signs from the start, the others begin one after the other. On each rung
somebody takes the token off some messages of the producer that signs.
"""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.every_client import CLIENTS
from integration.rollout_world import SIGNS, SILENT, STRIPPED, Ladder, Live, Run, Shifted
from integration.scale import nightly
from mqauth import Unverified
from mqauth.errors import RetryLater
from mqauth.testing.forge import Forge
from mqauth.testing.stage import wait_until

BACKLOG = nightly(400, otherwise=80)
EACH = nightly(20, otherwise=8)
"""Messages that each of the four producers publishes on each rung."""
AT_OFF = nightly(80, otherwise=32)
MINUTES = ("judging.observing", "brokers.event_loop")
"""Where it is said how often a rollout tells what it has seen."""
Climb = Callable[..., Ladder]
pytestmark = pytest.mark.slow


@pytest.fixture
def climb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Climb]:
    """Return what makes a ladder, whose queue or topic is deleted in the end."""
    ending = contextlib.ExitStack()

    def made(name: str, *, managed: bool = False) -> Ladder:
        clock = Shifted()
        # where the consumer's clock counts, the producers have the same
        forge = Forge(clock, lifetime=3600) if managed else Forge(lifetime=3600)
        broker: Any = (
            "kafka"
            if name.startswith("kafka")
            else "believing"
            if managed
            else "rabbitmq"
        )
        live = Live(name, request.getfixturevalue(broker).url, forge, managed=managed)
        ending.callback(live.close)
        return Ladder(live, tmp_path, monkeypatch, forge, clock)

    with ending:
        yield made


@pytest.mark.parametrize("client", CLIENTS)
def test_up_the_ladder(client: str, climb: Climb) -> None:
    """Nothing is lost, nothing condemned before it is enforced, and the report names who does not sign."""
    ladder = climb(client)
    stand_at_off(ladder)
    observe(ladder)
    condemned = enforce(ladder)
    sum_up(ladder, condemned)


@pytest.mark.parametrize("client", CLIENTS)
def test_on_a_broker_whose_configuration_is_not_ours(
    client: str, climb: Climb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without append times the same path leads to enforce, while the consumer runs; it is what the page tells."""
    for module in MINUTES:
        monkeypatch.setattr(f"mqauth.{module}.MINUTE", 0.5)
    ladder = climb(client, managed=True)
    ladder.clock.hours = -30
    ladder.publish("crm-export", BACKLOG, SILENT)
    ladder.up()
    with ladder.consumer():
        # while an unsigned message waits or came in the window, no word leads up
        code, printed = ladder.command("up", ladder.place, "--yes")
        assert (code, ladder.rung) == (1, "observe"), printed
        ladder.wait_for()
    ladder.signing |= dict.fromkeys(ladder.signing, SIGNS)
    ladder.clock.hours = 0
    with ladder.consumer():
        ladder.wait_for(ladder.publish("orders-api", EACH, SIGNS))
        wait_until(lambda: ladder.status()["safe"])
        ladder.up()
    assert ladder.rung == "enforce"
    runs = ladder.consume_all(EACH, old_code=False)
    assert all(run.verified for run in runs)
    assert ladder.live.letters() == Counter()


@pytest.mark.parametrize("client", ["kafka kafka-python", "kafka confluent"])
def test_a_record_that_waits_without_a_token(client: str, climb: Climb) -> None:
    """On Kafka the backlog is read: what lies there unsigned is found although nobody has seen it yet."""
    ladder = climb(client)
    ladder.clock.hours = -3
    ladder.up()
    ladder.signing |= dict.fromkeys(ladder.signing, SIGNS)
    ladder.consume_all(EACH)
    ladder.clock.hours = 0
    ladder.consume_all(EACH)
    assert ladder.status()["safe"]
    late = ladder.publish("nightly-job", 4, SILENT)
    code, printed = ladder.command("up", ladder.place, "--yes")
    assert (code, ladder.rung) == (1, "observe")
    assert (
        f"group {ladder.live.scope} has 4 records without a token to settle, in partitions 0, 1"
        in printed
    )
    with ladder.consumer():
        ladder.wait_for(late)
    # settled, they are in the report of the window; once somebody has accepted them they stand in nobody's way
    (group,) = ladder.status()["groups"]
    assert (
        ladder.command("accept", ladder.place, group["id"], "--why", "a test", "--yes")[0]
        == 0
    )
    ladder.publish("nightly-job", 1, SILENT)
    ladder.up()
    assert ladder.rung == "enforce"


def test_a_record_that_was_put_off(climb: Climb) -> None:
    """A handler that puts an unsigned record off for longer than the window keeps its topic from going up."""
    ladder = climb("kafka kafka-python")
    ladder.clock.hours = -3
    ladder.up()
    ladder.signing |= dict.fromkeys(ladder.signing, SIGNS)
    ladder.publish("nightly-job", 1, SILENT)
    tried = threading.Event()

    def put_off(message: Unverified) -> None:
        tried.set()
        raise RetryLater("the ledger is closed")

    ladder.take_unverified = put_off  # type: ignore[method-assign]
    with ladder.consumer():
        wait_until(tried.is_set)
        # it is reported once; behind it its partition stands still, and the others go on
        for hours in (-2.9, 0, 0.05):
            ladder.clock.hours = hours
            ladder.wait_for(ladder.publish("orders-api", 3, SIGNS)[1:])
        wait_until(lambda: ladder.status()["safe"])
        code, printed = ladder.command("up", ladder.place, "--yes")
    assert (code, ladder.rung) == (1, "observe")
    assert "has 1 records without a token to settle, in partitions 0" in printed


def test_a_queue_that_does_not_run_empty(
    climb: Climb, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the interceptor nobody knows what waits there: it stays at observe, or somebody says so."""
    monkeypatch.setattr("mqauth.cli.rollout_steps.PATIENCE", 3.0)
    ladder = climb("rabbitmq aio-pika", managed=True)
    ladder.clock.hours = -3
    ladder.up()
    ladder.signing |= dict.fromkeys(ladder.signing, SIGNS)
    ladder.consume_all(EACH)
    ladder.clock.hours = 0
    ladder.consume_all(EACH)
    ladder.publish("orders-api", 5, SIGNS)
    code, printed = ladder.command("up", ladder.place, "--yes")
    assert (code, ladder.rung) == (1, "observe")
    assert (
        f"queue {ladder.live.scope} has 5 messages: let it run empty, or say --settled"
        in printed
    )
    ladder.up("--settled")
    assert ladder.rung == "enforce"


# The rungs


def stand_at_off(ladder: Ladder) -> None:
    """Nothing is judged: the old handler gets all, signed messages too, and no stripped token is noticed."""
    ladder.clock.hours = -72
    for app in ladder.signing:
        ladder.publish(app, BACKLOG // len(ladder.signing), SILENT)
    with ladder.consumer(), ladder.traffic(EACH):
        wait_until(lambda: len(ladder.runs) >= AT_OFF)
    assert {(found.verified, found.would) for found in ladder.runs} == {(False, None)}
    assert ladder.status()["against"][-1] == "nothing is judged at off"
    assert ladder.live.letters() == Counter()
    ladder.up()
    assert ladder.rung == "observe"


def observe(ladder: Ladder) -> None:
    """The report has who is silent, to the message; it is safe only once all have signed for a window."""
    ladder.clock.hours = -36
    _observed(ladder)
    ladder.signing["web-shop"] = SIGNS
    ladder.clock.hours = -34
    ladder.publish("orders-api", 3, STRIPPED)
    _observed(ladder)
    assert set(ladder.missing()) == {"crm-export", "till-7", "orders-api"}
    ladder.signing |= dict.fromkeys(ladder.signing, SIGNS)
    ladder.clock.hours = -30
    notice_a_stripped_token(ladder)
    assert ladder.missing() == {"orders-api": 3}
    ladder.clock.hours = 0
    ladder.consume_all(EACH)
    report = ladder.status()
    assert report["safe"], report
    assert report["accepted"] == {ladder.place: EACH * len(ladder.signing)}
    assert ladder.live.letters() == Counter()


def _observed(ladder: Ladder) -> list[Run]:
    """Consume all there is, and compare the report with the handlers' runs."""
    runs = ladder.consume_all(EACH)
    report, missing = ladder.status(), ladder.missing()
    accepted = sum(found.verified for found in runs)
    assert not report["safe"]
    assert (missing, report["accepted"]) == (
        ladder.unsigned(runs),
        {ladder.place: accepted},
    )
    assert report["other"] == 0
    assert not any(
        found.verified for found in runs if ladder.sent[found.body][1] != SIGNS
    )
    code, printed = ladder.command("up", ladder.place, "--yes")
    assert (code, ladder.rung) == (1, "observe"), printed
    return runs


def notice_a_stripped_token(ladder: Ladder) -> None:
    """After a day in which each message was signed, one without is an alert."""
    with ladder.consumer():
        with ladder.traffic(EACH):
            pass
        # The consumer's first minute begins with its first delivery.
        ladder.wait_for()
        # A minute later the counts are written, after a handler's end; or in the next, where audit was slow.
        wait_until(lambda: is_counted(ladder))
        ladder.clock.hours += 26
        # The record of the day before is written with the first delivery after it.
        wait_until(lambda: is_counted(ladder))
        ladder.wait_for(ladder.publish("orders-api", 3, STRIPPED))
    again = [alert for alert in ladder.alerts if alert.kind == "unsigned_again"]
    assert [(dict(alert.about), alert.count) for alert in again] == [
        ({"destination": ladder.place}, 3)
    ]


def is_counted(ladder: Ladder) -> bool:
    """Publish a signed message a minute later; return whether the report has signed messages by then."""
    ladder.clock.hours += 0.02
    ladder.wait_for(ladder.publish("orders-api", 1, SIGNS))
    return bool(ladder.status()["accepted"])


def enforce(ladder: Ladder) -> set[bytes]:
    """What is signed is handled; old code is no longer wired in, and what is not signed is dead-lettered."""
    printed = ladder.up()
    assert ladder.rung == "enforce"
    assert ("note: the history stays unsigned" in printed) == ladder.live.on_kafka
    wrong = set(
        ladder.publish("orders-api", 3, STRIPPED) + ladder.publish("till-7", 2, SILENT)
    )
    runs = ladder.consume_all(EACH, old_code=False)
    assert all(found.verified for found in runs)
    return wrong


def sum_up(ladder: Ladder, condemned: set[bytes]) -> None:
    """Assert that nothing was lost, and that nothing was dead-lettered but what had to be."""
    letters = ladder.live.letters()
    assert letters == Counter(
        dict.fromkeys(((body, "token_missing") for body in condemned), 1)
    )
    assert not condemned & ladder.handled
    assert set(ladder.sent) - ladder.ended == set()
