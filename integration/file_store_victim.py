"""What ``test_file_store`` runs under a library that kills or delays it at chosen calls; prints a line of JSON.

The library (``SHIM``) stands before libc. ``arm(n, torn)`` lets the n-th of the calls that change a file
(``pwrite``, ``ftruncate``, ``fsync``, ``fdatasync``) kill the process, in the middle of it where ``torn``.
``delay(ms)`` makes each sync take so long.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from mqauth.replay.rules import ClaimRequest
from mqauth.stores import sqlite_file
from mqauth.stores.file import FileReplayStore
from mqauth.testing.store_contract import FRESH, REPLAYED, REREAD, sibling, wish

SHIM: Final = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <sys/types.h>
#include <unistd.h>
static volatile int left = -1, torn = 0, wait_ms = 0;
void arm(int calls, int in_the_middle) { left = calls; torn = in_the_middle; }
void delay(int ms) { wait_ms = ms; }
static int last(void) { return left > 0 && __sync_sub_and_fetch(&left, 1) == 0; }
static void die(void) { kill(getpid(), SIGKILL); for (;;) pause(); }
typedef ssize_t (*write_at)(int, const void *, size_t, off64_t);
#define REAL(name, type) ((type) dlsym(RTLD_NEXT, name))
ssize_t pwrite64(int fd, const void *from, size_t size, off64_t at) {
  write_at real = REAL("pwrite64", write_at);
  if (last()) { if (torn) real(fd, from, size / 2, at); die(); }
  return real(fd, from, size, at);
}
ssize_t pwrite(int fd, const void *from, size_t size, off_t at) { return pwrite64(fd, from, size, at); }
int ftruncate64(int fd, off64_t size) {
  if (last()) die();
  return REAL("ftruncate64", int (*)(int, off64_t))(fd, size);
}
int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }
static int synced(int fd, const char *name) {
  if (last()) die();
  if (wait_ms) usleep(wait_ms * 1000);
  return REAL(name, int (*)(int))(fd);
}
int fsync(int fd) { return synced(fd, "fsync"); }
int fdatasync(int fd) { return synced(fd, "fdatasync"); }
"""
_IDS: Final = 40


def _requests(life: int) -> list[ClaimRequest]:
    """Return what a process claims: single tokens, and messages of a batch among them."""
    single = [wish(f"{life}", id=b"%4d%4d" % (life, n) + bytes(8)) for n in range(_IDS)]
    batch = [sibling(n, f"{life}", token=b"%4d" % life + bytes(12)) for n in range(_IDS)]
    every = [each for pair in zip(single, batch, strict=True) for each in pair]
    for number, request in enumerate(every):
        request.place, request.expires = ("c", "orders", life % 3, number), 9e9
    return every


def _work(path: Path, life: int, pipe: int) -> None:
    """Claim some one by one and others together, confirm most, and say so each time."""

    def said(kind: str, number: int) -> None:
        os.write(pipe, f"{kind}{number}\n".encode())

    store: Any = FileReplayStore(path)
    requests = _requests(life)
    for number, request in enumerate(requests[:20]):
        assert store.claim(request) is FRESH
        said("c", number)
        store.confirm(request)
        said("d", number)
    for start in range(20, len(requests), 20):
        assert store.claim_many(requests[start : start + 20]) == [FRESH] * 20
        for number in range(start, start + 20):
            said("c", number)
        store._tend()
        for number in range(start, start + 15):
            store.confirm(requests[number])
            said("d", number)
    store.close()


def kills(shim: Any, path: Path, count: int) -> dict[str, int]:
    """Kill a process at each of so many calls, and look at what the next one finds; return what was found wrong.

    The store is the same all the time: what one process left behind is what the next one begins with.
    """
    found = {
        "killed": 0,
        "claimed": 0,
        "confirmed": 0,
        "confirms_lost": 0,
        "copies_let_through": 0,
        "condemned": 0,
    }
    sqlite_file._FRAMES = 50
    for life in range(count):
        reads, writes = os.pipe()
        child = os.fork()
        if not child:
            try:
                shim.arm(life + 1, life % 2)
                _work(path, life, writes)
            finally:
                os._exit(0)
        os.close(writes)
        with os.fdopen(reads) as lines:
            said = lines.read().split()
        _, status = os.waitpid(child, 0)
        found["killed"] += os.WIFSIGNALED(status)
        _look(path, life, set(said), found)
    return found


def _look(path: Path, life: int, said: set[str], found: dict[str, int]) -> None:
    store: Any = FileReplayStore(path)
    for number, request in enumerate(_requests(life)):
        claimed, done = f"c{number}" in said, f"d{number}" in said
        found["claimed"] += claimed
        found["confirmed"] += done
        copy = wish(
            "copy",
            id=request.id,
            index=request.index,
            place=("c", "orders", 9, number),
            expires=9e9,
        )
        if claimed:
            found["copies_let_through"] += store.claim(copy) is not REPLAYED
            again = store.claim(
                wish(
                    "again",
                    id=request.id,
                    index=request.index,
                    place=request.place,
                    expires=9e9,
                )
            )
            found["confirms_lost"] += done and again is not REREAD
            found["condemned"] += again is REPLAYED
    store.close()


def slow(shim: Any, path: Path, milliseconds: int) -> dict[str, float]:
    """Claim and confirm in an event loop while each sync takes long.

    Returns:
        The longest time for which a call kept the loop, and for which a message waited for its answer.
    """
    sqlite_file._FRAMES = 200
    store: Any = FileReplayStore(path)
    shim.delay(milliseconds)
    longest = {"call_ms": 0.0, "answer_ms": 0.0, "awaited": 0.0, "messages": 0.0}

    async def called(action: Callable[[Any], Any], request: ClaimRequest) -> Any:
        began = time.perf_counter()
        answer = action(request)
        longest["call_ms"] = max(longest["call_ms"], (time.perf_counter() - began) * 1e3)
        if asyncio.iscoroutine(answer):
            longest["awaited"] += 1
            answer = await answer
        longest["answer_ms"] = max(
            longest["answer_ms"], (time.perf_counter() - began) * 1e3
        )
        return answer

    async def messages() -> None:
        end = time.monotonic() + 12 * milliseconds / 1e3
        while time.monotonic() < end:
            request = wish(id=os.urandom(16), expires=9e9)
            assert await called(store.claim, request) is FRESH
            await called(store.confirm, request)
            longest["messages"] += 1
            await asyncio.sleep(0.001)

    asyncio.run(messages())
    shim.delay(0)
    store.close()
    return longest


def children(_: Any, path: Path) -> dict[str, Any]:
    """Let children end in their order while the parent goes on; return what the next process finds."""
    store: Any = FileReplayStore(path)
    requests = _requests(0)
    store.claim_many(requests)
    for _ in range(3):
        child = os.fork()
        if not child:
            del store
            sys.exit(0)
        os.waitpid(child, 0)
    for request in requests:
        store.confirm(request)
    store.close()
    store = FileReplayStore(path)
    again = store.claim_many(
        [wish("b", id=each.id, index=each.index, place=each.place) for each in requests]
    )
    store.close()
    return {"reread": sum(each is REREAD for each in again), "of": len(requests)}


if __name__ == "__main__":
    command, where, *rest = sys.argv[1:]
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])
    print(
        json.dumps(
            {"kills": kills, "slow": slow, "children": children}[command](
                library, Path(where), *map(int, rest)
            )
        )
    )
