"""What is promised without naming a client, on every client and its real broker.

A consumer was stopped for days by its clock. Then it meets a backlog with one message of each kind, and goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from integration.capabilities.bench import APPEND, HEARTBEAT, SCHEMA, Bench
from integration.every_client import CLIENTS
from mqauth.errors import Cause
from mqauth.testing.stage import wait_until
from mqauth.wire.message import Message

BATCH = (b"first of a batch", b"second of a batch")
HONEST = {b"plain", b"with a schema", b"twice", b"moved", b"of a workload", *BATCH}
SETTLED = len(HONEST) + 3
"""Honest messages, and three that are dead-lettered."""


class Day:
    """A consumer's day: its backlog, what waits, its end, and all that it made of it."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        sealed = bench.signed(b"twice")
        schema: Any = b"order-2" if not bench.on_rabbitmq else "order-2"
        batch = [bench.message(body) for body in BATCH]
        bench.send(
            bench.signed(b"plain"),
            bench.signed(b"with a schema", headers=((SCHEMA, schema),)),
            sealed,
            sealed,
            bench.message(b"unsigned"),
            bench.forge.seal(bench.message(b"forged"), key=bench.forge.stranger),
            bench.moved(b"moved"),
            self.heartbeat(),
            bench.workload.signer().sign(bench.message(b"of a workload")),
            *bench.forge.signer().sign_many(batch),
        )
        bench.clock.hours = 24 * 3
        with bench.consuming(SETTLED) as running:
            # A message that waits for its handler, while the consumer runs.
            bench.send(bench.signed(b"put off"))
            wait_until(lambda: "deferred" in bench.outcomes)
            self.health = None if running.health is None else running.health()
            bench.puts_off = False
            wait_until(lambda: b"put off" in bench.bodies())
        self.reasons = bench.reasons()
        self.values = {verified.body: verified.value for verified in bench.handled}

    def heartbeat(self) -> Message:
        """Return an unsigned message that is exempt."""
        if self.bench.on_rabbitmq:
            return self.bench.message(b"exempt", properties={"type": HEARTBEAT})
        return self.bench.message(b"exempt", headers=(("type", HEARTBEAT.encode()),))


@pytest.fixture(scope="module", params=CLIENTS)
def day(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Day]:
    """The day of a consumer on each client."""
    service = request.getfixturevalue(request.param.partition(" ")[0])
    bench = Bench(request.param, service.url, tmp_path_factory.mktemp("day"), **APPEND)
    try:
        yield Day(bench)
    finally:
        bench.close()


def test_a_backlog_is_handled(day: Day) -> None:
    """What waited for days is judged by the time at which the broker took it: each honest message is handled."""
    assert set(day.bench.bodies()) == HONEST | {b"put off"}


def test_a_copy_is_not_handled(day: Day) -> None:
    """Of one message at two places the first is handled, and the other dead-lettered."""
    assert day.bench.bodies().count(b"twice") == 1
    assert day.reasons[b"twice"] == "replayed"


def test_dead_letters_and_records(day: Day) -> None:
    """What is rejected has one dead letter with its reason, and one audit record."""
    wanted = {
        b"unsigned": "token_missing",
        b"forged": "key_unknown",
        b"twice": "replayed",
    }
    assert day.reasons == wanted
    assert sorted(day.bench.recorded()) == sorted(wanted.values())


def test_a_moved_message(day: Day) -> None:
    """A message that was signed for another place, and moved, is accepted where the configuration says so."""
    assert b"moved" in day.bench.bodies()


def test_an_exempt_message(day: Day) -> None:
    """An unsigned message of an exempt kind reaches the handler for what nothing proved, and no other."""
    assert [unverified.body for unverified in day.bench.unverified] == [b"exempt"]


def test_identities(day: Day) -> None:
    """A message of a workload that an authority vouches for is handled, with its identity."""
    (verified,) = (each for each in day.bench.handled if each.body == b"of a workload")
    assert verified.identity is not None


def test_batches(day: Day) -> None:
    """Messages under one signature are handled one by one."""
    assert set(BATCH) <= set(day.bench.bodies())


def test_what_waits_comes_again(day: Day) -> None:
    """A handler may ask for another time: its message is handled later, once, and is no dead letter."""
    assert day.bench.bodies().count(b"put off") == 1


def test_observers(day: Day) -> None:
    """Metrics are told of each outcome."""
    settled = [outcome for outcome in day.bench.outcomes if outcome != "deferred"]
    expected = ["accepted"] * (len(HONEST) + 1) + ["rejected"] * 3 + ["unverified"]
    assert sorted(settled) == sorted(expected)


def test_decode(day: Day) -> None:
    """``decode`` gets the body and the message, with the header that names its schema."""
    if "faststream" in day.bench.client:
        # FastStream decodes itself, after the verdict.
        assert set(day.values.values()) == {None}
        return
    body, schema = day.values[b"with a schema"]
    assert (body, schema) in (
        (b"with a schema", b"order-2"),
        (b"with a schema", "order-2"),
    )


def test_health(day: Day) -> None:
    """``health()`` names how many messages wait, and why."""
    if "faststream" in day.bench.client:
        # FastStream owns the consumer: what waits is in metrics and in the log.
        assert day.health is None
        return
    assert day.health is not None
    assert (day.health.deferred, day.health.cause) == (1, Cause.HANDLER_DEFERRED)
