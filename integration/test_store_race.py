"""Processes race on the same messages through a real Redis, eight at night: each is handled exactly once."""

from __future__ import annotations

import multiprocessing
import secrets
from collections import Counter
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from typing import Any, Literal, get_args

import pytest

from integration.scale import nightly
from integration.services import Redis
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.stores.redis import RedisReplayStore
from mqauth.testing.store_contract import sibling, wish

PROCESSES = nightly(8, otherwise=3)
MESSAGES = nightly(10_000, otherwise=640)
POLL = 500
Kind = Literal[
    "kafka copies",
    "kafka polls of copies",
    "kafka polls of copies of batches",
    "rabbitmq copies",
    "rabbitmq redeliveries",
    "rabbitmq redeliveries of batches",
]
BATCH = 64
FEWER = 2_000  # where messages come one by one, their batches change nothing but the key
FOREVER = 4e9


def _request(kind: Kind, process: int, number: int) -> ClaimRequest:
    """Return the claim of one process on its copy of a message."""
    place = ("cluster", "orders", process, number) if kind.startswith("kafka") else None
    changes: dict[str, Any] = {
        "place": place,
        "redelivered": "redeliveries" in kind,
        "expires": FOREVER,
    }
    if kind.endswith("batches"):
        token, index = divmod(number, BATCH)
        return sibling(
            index, f"process-{process}", token=token.to_bytes(16, "big"), **changes
        )
    return wish(f"process-{process}", id=number.to_bytes(16, "big"), **changes)


def _messages(kind: Kind) -> int:
    """Return how many messages a race has."""
    return (
        min(FEWER, MESSAGES) if kind == "rabbitmq redeliveries of batches" else MESSAGES
    )


def _number(request: ClaimRequest) -> int:
    """Return which message a claim is on."""
    if request.index is None:
        return int.from_bytes(request.id, "big")
    return int.from_bytes(request.id[:-2], "big") * BATCH + request.index


def _race(url: str, namespace: str, process: int, start: Barrier, answers: Any) -> None:
    """Claim every message of each race as one consumer, confirm what is fresh, and report what came of each."""
    for number, kind in enumerate(get_args(Kind)):
        store = RedisReplayStore.from_url(
            url, namespace=f"{namespace}-{number}", timeout=30
        )
        store.claim_many([])
        start.wait(180)
        answers.put((kind, *_raced(store, kind, process)))
        store.close()


def _raced(
    store: RedisReplayStore, kind: Kind, process: int
) -> tuple[list[int], Counter[str]]:
    """Return what one consumer handled of a race, and all statuses that it saw."""
    waiting = [_request(kind, process, number) for number in range(_messages(kind))]
    seen: Counter[str] = Counter()
    handled: list[int] = []
    size = POLL if "polls" in kind else 1
    while waiting:  # what another holds is deferred: tried again until it is done
        held: list[ClaimRequest] = []
        for at in range(0, len(waiting), size):
            poll = waiting[at : at + size]
            statuses = store.claim_many(poll) if size > 1 else [store.claim(poll[0])]
            fresh = [
                one
                for one, status in zip(poll, statuses, strict=True)
                if status is ClaimStatus.FRESH
            ]
            held += [
                one
                for one, status in zip(poll, statuses, strict=True)
                if status is ClaimStatus.HELD
            ]
            handled += [_number(one) for one in fresh]
            seen.update(status.value for status in statuses)
            for request in fresh:
                store.confirm(request)
        waiting = held
    return handled, seen


Races = dict[str, tuple[Counter[int], Counter[str]]]


@pytest.fixture(scope="module")
def races(redis: Redis) -> Iterator[Races]:
    """Run all races by the same processes; how often each message was handled, and all statuses seen."""
    context = multiprocessing.get_context("spawn")
    start, answers = context.Barrier(PROCESSES), context.Queue()
    namespace = f"mqauth-race-{secrets.token_hex(4)}"
    racers = [
        context.Process(
            target=_race,
            args=(redis.url, namespace, process, start, answers),
            daemon=True,
        )
        for process in range(PROCESSES)
    ]
    for racer in racers:
        racer.start()
    found: Races = {kind: (Counter(), Counter()) for kind in get_args(Kind)}
    for _ in range(PROCESSES * len(found)):
        kind, handled, statuses = answers.get(timeout=600)
        found[kind][0].update(handled)
        found[kind][1].update(statuses)
    yield found
    for racer in racers:
        racer.join(10)
        racer.kill()


@pytest.mark.slow
@pytest.mark.parametrize("kind", get_args(Kind))
def test_race(races: Races, kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    """Each message that several consumers get at once is handled by one of them, and by one only."""
    handled, seen = races[kind]
    messages = _messages(kind)
    with capsys.disabled():
        twice = sum(count > 1 for count in handled.values())
        print(
            f"\n{kind}: {PROCESSES} processes, {messages} messages each, handled {handled.total()},"
        )
        print(f"handled more than once {twice}, statuses {dict(seen)}")
    assert len(handled) == messages
    assert set(handled.values()) == {1}
    refusal = "duplicate" if "redeliveries" in kind else "replayed"
    assert seen["fresh"] == messages
    assert seen[refusal] == messages * (PROCESSES - 1)
