"""A Redis that is emptied under a consumer: every client waits until that is on record, and goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis as client_library

from integration.client_bench import ClientBench
from integration.every_client import CLIENTS
from integration.services import Redis
from mqauth.errors import Cause, Verdict
from mqauth.stores.redis import RedisReplayStore
from mqauth.testing.stage_kafka import wait_until


@pytest.fixture
def bench(
    client: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[ClientBench]:
    """A bench of a client's broker."""
    bench = ClientBench(
        request.getfixturevalue(f"own_{client.partition(' ')[0]}"), tmp_path
    )
    with bench.ending:
        yield bench


@pytest.mark.parametrize("client", CLIENTS)
def test_a_store_that_is_emptied(
    client: str, bench: ClientBench, own_redis: Redis
) -> None:
    """The next message waits until one record tells of the loss; then it is handled, and a copy can be."""
    outcomes: list[tuple[Verdict, Cause | None]] = []
    # Of a plain client, which is closed here, in no loop.
    admin = client_library.Redis.from_url(own_redis.url, socket_timeout=5)
    store = RedisReplayStore(admin)

    def observe(outcome: Any, *_: object) -> None:
        outcomes.append((outcome.verdict, outcome.cause))

    guard = bench.guard(replay=store, observers=[observe])
    first = bench.signed(b"first")
    with CLIENTS[client](bench.wiring(guard=guard)):
        bench.stage.inject(first)
        wait_until(lambda: len(outcomes) == 1)
        admin.flushall()
        bench.stage.inject(first)
        bench.send(b"second")
        wait_until(lambda: b"second" in bench.handled)
    store.close()
    assert outcomes[:2] == [
        (Verdict.ACCEPTED, None),
        (Verdict.DEFERRED, Cause.REPLAY_STORE_UNAVAILABLE),
    ]
    records = [json.loads(line) for line in bench.audit.path.read_text().splitlines()]
    assert [record["verdict"] for record in records] == ["replay_memory_lost"]
    assert records[0]["scope"] == bench.wiring().scope
    assert store.losses == 1
    assert bench.letters() == []
