"""What the replay stores cost: ``python -m integration.benchmarks_replay [--ids N] [--redis URL] [--only-file]``.

Memory is what Python allocated (``tracemalloc``), or what Redis says it uses for its values and keys; on disk it
is the size of the file once it is closed. Times are this thread's CPU, the median of all polls; ``process_us`` is
the whole process's for an id that is claimed and confirmed, the store's thread included. The longest claim is the
longest of all, with expiry going on. What Python had loaded before is kept from its collector of cycles, whose
pauses are then the store's own.
"""

from __future__ import annotations

import argparse
import gc
import json
import secrets
import sqlite3
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import redis

from mqauth.replay.memory import MemoryReplayStore
from mqauth.replay.rules import ClaimRequest, batch_id
from mqauth.stores.file import FileReplayStore
from mqauth.stores.redis import RedisReplayStore
from mqauth.testing.clock import START, FakeClock, RunningClock
from mqauth.wire.message import Place

POLL: Final = 500
BATCH: Final = 64
LIFE: Final = 600.0
RATE: Final = 2000  # ids a second, where time passes
Naming = Callable[[int], tuple[bytes, int | None, Place | None]]


def _token(number: int) -> bytes:
    return sha256(number.to_bytes(8, "big")).digest()[:16]


def single(number: int) -> tuple[bytes, int | None, Place | None]:
    """A token a message, in one partition."""
    return _token(number), None, ("cluster", "orders", 0, number)


def batch(number: int) -> tuple[bytes, int | None, Place | None]:
    """A token for 64 messages, one after another in one partition."""
    token, index = divmod(number, BATCH)
    return batch_id(_token(token), index), index, ("cluster", "orders", 0, number)


def scattered(number: int) -> tuple[bytes, int | None, Place | None]:
    """A token for 64 messages over 12 partitions, read one partition after another, their order mixed."""
    token, index = divmod(number, BATCH)
    index = index * 37 % BATCH
    return (
        batch_id(_token(token), index),
        index,
        ("cluster", "orders", index % 12, 2**40 + number * 7919),
    )


def unplaced(number: int) -> tuple[bytes, int | None, Place | None]:
    """A token for 64 messages on RabbitMQ."""
    return (*batch(number)[:2], None)


def alone(number: int) -> tuple[bytes, int | None, Place | None]:
    """A token for 1,024 messages, of which the last one alone comes: the most one claim can cost."""
    return batch_id(_token(number), 1023), 1023, ("cluster", "orders", 0, number)


NAMINGS: Final[list[Naming]] = [single, batch, scattered, unplaced, alone]


def polls(naming: Naming, ids: int, expires: float) -> Iterator[list[ClaimRequest]]:
    """Yield claims in polls, each by an owner of its own."""
    for start in range(0, ids, POLL):
        yield [
            _request(naming, number, expires)
            for number in range(start, min(start + POLL, ids))
        ]


def _request(naming: Naming, number: int, expires: float) -> ClaimRequest:
    name, index, place = naming(number)
    return ClaimRequest(
        scope="billing", id=name, index=index, owner=f"owner-{number:016d}", place=place, redelivered=False,
        lease=60.0, expires=expires,
    )  # fmt: skip


def bytes_an_id(naming: Naming, ids: int) -> float:
    """Return what a done id takes in the memory store."""
    tracemalloc.start()
    try:
        store = MemoryReplayStore(ids, clock=FakeClock())
        before, _ = tracemalloc.get_traced_memory()
        for poll in polls(naming, ids, START + LIFE):
            store.claim_many(poll)
            for request in poll:
                store.confirm(request)
        poll.clear()
        gc.collect()
        return (tracemalloc.get_traced_memory()[0] - before) / len(store)
    finally:
        tracemalloc.stop()


def microseconds(
    store: Any, naming: Naming, ids: int, expires: float
) -> dict[str, float]:
    """Return the median cost of an id in polls, claimed and confirmed."""
    claims, confirms = [], []
    for poll in polls(naming, ids, expires):
        claims.append(_spent(store.claim_many, poll) / len(poll))
        confirms.append(
            sum(_spent(store.confirm, request) for request in poll) / len(poll)
        )
    return {
        "claim_us": statistics.median(claims) * 1e6,
        "confirm_us": statistics.median(confirms) * 1e6,
    }


def one_by_one(store: Any, naming: Naming, ids: int) -> dict[str, float]:
    """Return the median cost of an id claimed and confirmed by itself."""
    claims, confirms = [], []
    for poll in polls(naming, ids, 9e9):
        for request in poll:
            claims.append(_spent(store.claim, request))
            confirms.append(_spent(store.confirm, request))
    return {
        "claim_us": statistics.median(claims) * 1e6,
        "confirm_us": statistics.median(confirms) * 1e6,
    }


def longest_ms(naming: Naming, ids: int, *, confirm: bool) -> dict[str, float]:
    """Return the longest claim, and the longest poll, while as many ids expire as come."""
    gc.collect()  # what was measured before is none of its pauses
    clock = FakeClock()
    store = MemoryReplayStore(ids, clock=clock)
    claim = poll_ = 0.0
    most = 0
    for number, poll in enumerate(polls(naming, ids, 0.0)):
        clock.advance(POLL / RATE)
        for request in poll:
            request.expires = clock.now() + LIFE
        if number % 2:
            poll_ = max(poll_, _spent(store.claim_many, poll))
        else:
            claim = max(claim, *(_spent(store.claim, request) for request in poll))
        if confirm:
            for request in poll:
                store.confirm(request)
        most = max(most, len(store))
    return {"claim_ms": claim * 1e3, "poll_ms": poll_ * 1e3, "most_ids": most}


def after_an_outage_ms(naming: Naming, ids: int) -> dict[str, float]:
    """Return the longest claim where half of all ids expire in one moment and others come, and a collection."""
    gc.collect()
    clock = FakeClock()
    store = MemoryReplayStore(ids, clock=clock)
    for poll in polls(naming, ids // 2, START + LIFE):
        store.claim_many(poll)
        for request in poll:
            store.confirm(request)
    collection = _spent(gc.collect, 2)
    clock.advance(2 * LIFE)
    longest = 0.0
    for number in range(ids // 2, ids):
        request = _request(naming, number, clock.now() + LIFE)
        longest = max(longest, _spent(store.claim, request))
        store.confirm(request)
    return {"claim_ms": longest * 1e3, "full_collection_ms": collection * 1e3}


def in_a_file(naming: Naming, ids: int) -> dict[str, Any]:
    """Return what a done id takes on the disk, what it costs in polls and by itself, and what forgetting costs."""
    with TemporaryDirectory(dir=".") as folder:
        clock = RunningClock()
        store = FileReplayStore(Path(folder, "replay.sqlite"), clock=clock)
        began = time.process_time()
        found: dict[str, Any] = {
            "in_polls": microseconds(store, naming, ids, clock.now() + LIFE)
        }
        found["process_us_in_polls"] = (time.process_time() - began) / ids * 1e6
        store.close()
        found["bytes_an_id"] = Path(folder, "replay.sqlite").stat().st_size / ids
        with sqlite3.connect(Path(folder, "replay.sqlite")) as connection:
            ((found["rows"],),) = connection.execute("SELECT count(*) FROM ids")
        opening = time.process_time()
        store = FileReplayStore(Path(folder, "replay.sqlite"), clock=clock)
        found["opening_ms"] = (time.process_time() - opening) * 1e3
        clock.advance(2 * LIFE)
        began, steps = time.thread_time(), list[float]()
        while len(steps) <= found["rows"] // 1000 + 1:
            steps.append(_spent(lambda _: store._forget(), None))
        found["forgetting"] = {
            "all_s": time.thread_time() - began,
            "longest_ms": max(steps) * 1e3,
        }
        store.close()
    with TemporaryDirectory(dir=".") as folder:
        store = FileReplayStore(Path(folder, "replay.sqlite"))
        began = time.process_time()
        found["one_by_one"] = one_by_one(store, naming, ids // 4)
        found["process_us_one_by_one"] = (time.process_time() - began) / (ids // 4) * 1e6
        store.close()
    return found


def redis_bytes_an_id(client: Any, naming: Naming, ids: int) -> float:
    """Return what a done id takes in Redis."""
    name = f"mqauth-bench-{secrets.token_hex(4)}"
    store = RedisReplayStore(client, namespace=name)
    before = int(client.info("memory")["used_memory_dataset"])
    for poll in polls(naming, ids, time.time() + LIFE):
        store.claim_many(poll)
        for request in poll:
            store.confirm(request)
    after = int(client.info("memory")["used_memory_dataset"])
    for key in client.scan_iter(f"{name}*", count=1000):
        client.unlink(key)
    return (after - before) / ids


def redis_poll(client: Any, naming: Naming, ids: int) -> dict[str, float]:
    """Return an id's cost in polls: elapsed, and of that this thread's CPU."""
    store = RedisReplayStore(client, namespace=f"mqauth-bench-{secrets.token_hex(4)}")
    store.claim_many([])
    elapsed = []
    for poll in polls(naming, ids, time.time() + 60):
        began = time.perf_counter()
        store.claim_many(poll)
        elapsed.append((time.perf_counter() - began) / len(poll))
        for request in poll:
            store.confirm(request)
    store = RedisReplayStore(client, namespace=f"mqauth-bench-{secrets.token_hex(4)}")
    found = microseconds(store, naming, ids, time.time() + 60)
    return {"claim_elapsed_us": statistics.median(elapsed) * 1e6} | found


def _spent(action: Callable[[Any], object], given: Any) -> float:
    """Return the CPU seconds of this thread that an action took."""
    began = time.thread_time()
    action(given)
    return time.thread_time() - began


def measure(ids: int, url: str | None, *, only_file: bool) -> dict[str, Any]:
    """Return all figures, or those of the store on disk."""
    found: dict[str, Any] = {"ids": ids}
    for naming in NAMINGS:
        if only_file:
            found[naming.__name__] = {
                "file": in_a_file(naming, ids // 10 if naming is alone else ids)
            }
            continue
        figures: dict[str, Any] = {
            "bytes_an_id": bytes_an_id(naming, ids // 10 if naming is alone else ids)
        }
        figures["in_polls"] = microseconds(MemoryReplayStore(ids), naming, ids // 5, 9e9)
        figures["one_by_one"] = one_by_one(MemoryReplayStore(), naming, ids // 20)
        figures["file"] = in_a_file(naming, ids // 10)
        if naming in (single, batch):
            figures["longest"] = longest_ms(naming, 2 * ids, confirm=True)
            figures["longest_unconfirmed"] = longest_ms(naming, ids, confirm=False)
            figures["after_an_outage"] = after_an_outage_ms(naming, 2 * ids)
        if url is not None:
            with redis.Redis.from_url(url, socket_timeout=30) as client:
                figures["redis_bytes_an_id"] = redis_bytes_an_id(
                    client, naming, ids // 10
                )
                figures["redis_polls"] = redis_poll(client, naming, ids // 20)
        found[naming.__name__] = figures
    return found


def main() -> int:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ids", type=int, default=1_000_000)
    parser.add_argument("--redis", help="URL of a Redis that may be filled and emptied")
    parser.add_argument(
        "--only-file", action="store_true", help="the store on disk alone, in this folder"
    )
    chosen = parser.parse_args()
    gc.collect()
    gc.freeze()
    found = json.dumps(measure(chosen.ids, chosen.redis, only_file=chosen.only_file))
    print(
        json.dumps(
            json.loads(found, parse_float=lambda text: round(float(text), 2)), indent=2
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
