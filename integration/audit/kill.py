"""SIGKILL in the middle of writing, a hundred times: the log verifies after recovery, no settled message missing.

`python -m integration.audit.kill` forks one consumer after another on the same audit file, with rotation and
signed heads. Each judges forged messages by a real pipeline and tells its parent the record of every message it
may settle; the parent kills it at a random moment. Half of them write as on a slow disk, a few bytes at a time,
so that the kill finds lines torn.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from mqauth.audit.chain import ChainReport, verify_chain
from mqauth.audit.file import MIN_BYTES, AuditFile, HeadFile, parts, read_heads
from mqauth.flow import run
from mqauth.judging.pipeline import Pipeline, Verdict
from mqauth.letters.dead_letter import DeadLetter
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing.forge import Forge
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.keys import Key

PLACE = "kafka:orders"
_PIECE = 40
_SLOW = 0.0002
_ID = 36
_PATIENCE = 30.0


@dataclass(frozen=True, kw_only=True)
class Account:
    """What a hundred kills left."""

    kills: int
    torn: int
    settled: int
    records: int
    missing: int
    twice: int
    parts: int
    report: ChainReport

    def line(self) -> str:
        """Return the account in one line."""
        return (
            f"{self.kills} kills, {self.torn} of them tore a line; {self.settled} messages settled, "
            f"{self.records} records in {self.parts} files, {self.missing} missing, {self.twice} twice; "
            f"{'intact' if self.report.anchored else self.report.what or 'unanchored'}"
        )


class Scene:
    """An audit file, and consumers that are killed while they write it."""

    def __init__(self, folder: Path) -> None:
        self.path, self.heads = folder / "audit.jsonl", folder / "heads.jsonl"
        self._key = Key.generate()
        self._forge = Forge()

    def open(self) -> AuditFile:
        """Open the audit file as a consumer that starts does."""
        heads = HeadFile(self.heads, self._key, every=20)
        return AuditFile(self.path, max_bytes=MIN_BYTES, heads=heads)

    def victim(self, settled: int, *, in_pieces: bool) -> NoReturn:
        """Judge forged messages for ever, and write the record's id of each settled one to a pipe."""
        if in_pieces:
            os.write = _slow_disk(os.write, settled)  # type: ignore[assignment]
        with self.open() as audit:
            guard = Pipeline(
                verifier=self._forge.verifier(), policy=self._forge.policy(PLACE), replay=MemoryReplayStore(),
                audit=audit,
            )  # fmt: skip
            number = 0
            while True:
                number += 1
                letters = _Letters()
                delivery = guard.receive(honest_message(PLACE, number))
                outcome = run(guard.process(delivery, lambda _: None, letters))
                if outcome.verdict is Verdict.REJECTED:
                    os.write(settled, letters.audit.encode())

    def kill_one(self, pick: random.Random) -> list[str]:
        """Start a consumer, kill it at a random moment, and return the records of what it settled."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                self.victim(writing, in_pieces=pick.random() < 0.5)
            finally:
                os._exit(1)
        os.close(writing)
        told = _read(reading, pick.randint(1, 20) * _ID)
        _linger(pick.uniform(0, 0.004))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        told += _rest(reading)
        os.close(reading)
        whole = len(told) - len(told) % _ID
        return [told[at : at + _ID].decode() for at in range(0, whole, _ID)]

    def torn(self) -> bool:
        """Tell whether the file ends in the middle of a line."""
        return (
            self.path.exists()
            and not self.path.read_bytes().endswith(b"\n")
            and self.path.stat().st_size > 0
        )

    def account(self, kills: int, torn: int, settled: list[str]) -> Account:
        """Recover the log once more and hold it against what was settled."""
        self.open().close()
        files = [part for part in parts(self.path) if part.exists()]
        # What the last kill tore is cut off by the next record, not by opening: it is no line yet.
        lines = [line for part in files for line in part.read_bytes().split(b"\n")[:-1]]
        ids = [json.loads(line)["id"] for line in lines]
        return Account(
            kills=kills, torn=torn, settled=len(settled), records=len(ids), missing=len({*settled} - {*ids}),
            twice=len(ids) - len({*ids}), parts=len(files), report=verify_chain(files, read_heads(self.heads)),
        )  # fmt: skip


def _slow_disk(
    write: Callable[[int, bytes], int], pipe: int
) -> Callable[[int, bytes], int]:
    """Return a write that takes a few bytes and some time, but for the pipe."""

    def piecewise(file: int, data: bytes) -> int:
        if file == pipe:
            return write(file, data)
        _linger(_SLOW)
        return write(file, data[:_PIECE])

    return piecewise


class _Letters:
    """A dead-letter queue that takes everything and keeps the audit id."""

    name = "orders.dead"
    audit = ""

    def publish(self, letter: DeadLetter, /) -> None:
        """Take a letter."""
        self.audit = letter.audit


def _read(pipe: int, size: int) -> bytes:
    """Read so many bytes, or what comes before the end."""
    found = b""
    while (
        len(found) < size
        and select.select([pipe], [], [], _PATIENCE)[0]
        and (part := os.read(pipe, 65_536))
    ):
        found += part
    return found


def _linger(seconds: float) -> None:
    """Wait for a moment that has nothing to do with what the child does."""
    select.select([], [], [], seconds)


def _rest(pipe: int) -> bytes:
    """Read to the end."""
    found = b""
    while part := os.read(pipe, 65_536):
        found += part
    return found


def kill(folder: Path, times: int, seed: int) -> Account:
    """Kill so many consumers, one after another, and return what is left."""
    scene, pick = Scene(folder), random.Random(seed)
    settled: list[str] = []
    torn = 0
    for _ in range(times):
        settled += scene.kill_one(pick)
        torn += scene.torn()
    return scene.account(times, torn, settled)


def main() -> int:
    """Kill, print the account, and return 0 only if nothing is missing and the log is intact."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.audit.kill", description=__doc__
    )
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--seed", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        account = kill(Path(folder), options.times, options.seed)
    print(account.line())
    good = (
        account.report.intact
        and account.report.anchored
        and not account.missing
        and not account.twice
    )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
