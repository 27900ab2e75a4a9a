"""Messages that can never have the broker's time, on every client: they wait, until an operator ends that.

A topic was set to CreateTime by mistake, or RabbitMQ took a message before it had its interceptor. The stamp of
such a message never changes, and by the consumer's own clock it would be condemned as expired.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.capabilities.bench import APPEND, Bench
from integration.every_client import CLIENTS
from mqauth.judging.rollout import WithoutEvidence
from mqauth.testing.stage import wait_until

BODIES = [b"%d" % number for number in range(10)]
HOUR = 3600
# Where RabbitMQ before 4.2 keeps what `message_interceptors` in its configuration says, and from then on.
KEYS = "[incoming_message_interceptors, message_interceptors]"
WITHOUT = f"""[
    begin persistent_term:put({{mqauth, Key}}, Kept), persistent_term:put(Key, []) end
    || Key <- {KEYS}, Kept <- [persistent_term:get(Key, [])], Kept =/= []
]."""
WITH = f"[persistent_term:put(Key, Kept) || Key <- {KEYS}, Kept <- [persistent_term:get({{mqauth, Key}}, [])]]."


@pytest.fixture(params=CLIENTS)
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    """A bench with ten honest messages of the last hour, which the broker did not stamp."""
    on_rabbitmq = request.param.startswith("rabbitmq")
    service: Any = request.getfixturevalue("own_rabbitmq" if on_rabbitmq else "kafka")
    by_sender = {"message.timestamp.type": "CreateTime"}
    bench = Bench(request.param, service.url, tmp_path, config=by_sender, **APPEND)
    if on_rabbitmq:
        service.ctl("eval", WITHOUT)
    try:
        bench.send(*map(bench.signed, BODIES))
    finally:
        if on_rabbitmq:
            service.ctl("eval", WITH)
    bench.clock.hours = 1
    yield bench
    bench.close()


def test_they_wait_until_an_operator_ends_that(bench: Bench) -> None:
    """None is condemned as expired; those that the configuration names are dead-lettered."""
    with bench.consuming(0):
        wait_until(lambda: "deferred" in bench.outcomes)
    assert set(bench.outcomes) == {"deferred"}
    assert bench.reasons() == {}
    named = WithoutEvidence(
        destination=bench.destination,
        through=time.time() + HOUR,
        why="CreateTime until now",
    )
    bench.guard = bench.pipeline(**APPEND, without_evidence=[named])
    with bench.consuming(len(BODIES)):
        pass
    assert bench.reasons() == dict.fromkeys(BODIES, "append_time_missing")
    assert bench.handled == []
