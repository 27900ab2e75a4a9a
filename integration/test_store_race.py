"""Eight processes race on the same messages through a real Redis: each is handled exactly once."""

from __future__ import annotations

import multiprocessing
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from typing import Any, Literal, get_args

import pytest

from integration.scale import nightly
from integration.services import Redis
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.stores.redis import RedisReplayStore
from mqauth.testing.store_contract import sibling, wish

PROCESSES = 8
MESSAGES = nightly(10_000, otherwise=1_000)
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
    changes: dict[str, Any] = {"place": place, "redelivered": "redeliveries" in kind, "expires": FOREVER}
    if kind.endswith("batches"):
        token, index = divmod(number, BATCH)
        return sibling(index, f"process-{process}", token=token.to_bytes(16, "big"), **changes)
    return wish(f"process-{process}", id=number.to_bytes(16, "big"), **changes)


def _messages(kind: Kind) -> int:
    """Return how many messages a race has."""
    return min(FEWER, MESSAGES) if kind == "rabbitmq redeliveries of batches" else MESSAGES


def _number(request: ClaimRequest) -> int:
    """Return which message a claim is on."""
    if request.index is None:
        return int.from_bytes(request.id, "big")
    return int.from_bytes(request.id[:-2], "big") * BATCH + request.index


@dataclass(frozen=True, slots=True, kw_only=True)
class Racer:
    """One consumer's part in a race."""

    url: str
    namespace: str
    kind: Kind
    process: int


def _race(racer: Racer, start: Barrier, answers: Any) -> None:
    """Claim every message as one consumer, confirm what is fresh, and report what came of each."""
    kind = racer.kind
    store = RedisReplayStore.from_url(racer.url, namespace=racer.namespace, timeout=30)
    store.claim_many([])
    start.wait(180)
    waiting = [_request(kind, racer.process, number) for number in range(_messages(kind))]
    seen: Counter[str] = Counter()
    handled: list[int] = []
    size = POLL if "polls" in kind else 1
    while waiting:  # what another holds is deferred: tried again until it is done
        held: list[ClaimRequest] = []
        for at in range(0, len(waiting), size):
            poll = waiting[at : at + size]
            statuses = store.claim_many(poll) if size > 1 else [store.claim(poll[0])]
            fresh = [one for one, status in zip(poll, statuses, strict=True) if status is ClaimStatus.FRESH]
            held += [one for one, status in zip(poll, statuses, strict=True) if status is ClaimStatus.HELD]
            handled += [_number(one) for one in fresh]
            seen.update(status.value for status in statuses)
            for request in fresh:
                store.confirm(request)
        waiting = held
    store.close()
    answers.put((handled, seen))


@pytest.fixture
def race(redis: Redis) -> Iterator[Any]:
    """Run a race and return how often each message was handled, and all statuses seen."""
    context = multiprocessing.get_context("spawn")
    started: list[Any] = []

    def run(kind: Kind) -> tuple[Counter[int], Counter[str]]:
        start, answers = context.Barrier(PROCESSES), context.Queue()
        namespace = f"mqauth-race-{secrets.token_hex(4)}"
        for process in range(PROCESSES):
            racer = Racer(url=redis.url, namespace=namespace, kind=kind, process=process)
            started.append(context.Process(target=_race, args=(racer, start, answers), daemon=True))
            started[-1].start()
        handled: Counter[int] = Counter()
        seen: Counter[str] = Counter()
        for _ in range(PROCESSES):
            numbers, statuses = answers.get(timeout=600)
            handled.update(numbers)
            seen.update(statuses)
        return handled, seen

    yield run
    for process in started:
        process.join(10)
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("kind", get_args(Kind))
def test_race(race: Any, kind: Kind, capsys: pytest.CaptureFixture[str]) -> None:
    """Each message that eight consumers get at once is handled by one of them, and by one only."""
    handled, seen = race(kind)
    messages = _messages(kind)
    with capsys.disabled():
        twice = sum(count > 1 for count in handled.values())
        print(f"\n{kind}: {PROCESSES} processes, {messages} messages each, handled {handled.total()},")
        print(f"handled more than once {twice}, statuses {dict(seen)}")
    assert len(handled) == messages
    assert set(handled.values()) == {1}
    refusal = "duplicate" if "redeliveries" in kind else "replayed"
    assert seen["fresh"] == messages
    assert seen[refusal] == messages * (PROCESSES - 1)
