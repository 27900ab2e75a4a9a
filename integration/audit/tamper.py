"""Tampering, a thousand times: what `mqauth audit verify` finds of edits, deletions, swaps, insertions, cuts.

Two things nobody can find in the log itself are not among the deeds: its last record deleted, and one appended to
it in order. The first is a cut tail; both are what signed heads are for.
"""

from __future__ import annotations

import io
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration.audit.records import record
from mqauth.audit.chain import GENESIS, chain_hash
from mqauth.audit.file import AuditFile, HeadFile
from mqauth.cli import audit
from mqauth.wire.keys import Key
from mqauth.wire.strict_json import dumps

RECORDS = 120
HEADS_EVERY = 50
Lines = list[bytes]


@dataclass
class Findings:
    """What was done, what was found, and what was called by its name."""

    done: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)
    named: Counter[str] = field(default_factory=Counter)

    def note(self, deed: str, verdict: dict[str, Any]) -> None:
        """Count one deed."""
        self.done[deed] += 1
        self.found[deed] += verdict["intact"] is False
        self.named[deed] += verdict["what"] == deed

    def lines(self) -> list[str]:
        """Return a line for each kind of deed, and their sum."""
        rows = [*sorted(self.done), ""]
        return [
            f"{deed or 'all':<11} {_of(self.done, deed):>5} done {_of(self.found, deed):>5} found "
            f"{_of(self.named, deed):>5} named"
            for deed in rows
        ]


class Log:
    """An honest log with signed heads, to be tampered with again and again."""

    def __init__(self, folder: Path, records: int = RECORDS) -> None:
        self.path, self.heads = folder / "audit.jsonl", folder / "heads.jsonl"
        heads = HeadFile(self.heads, Key.generate(), every=HEADS_EVERY)
        with AuditFile(self.path, fsync=False, heads=heads) as file:
            for number in range(records):
                file.write(record(number))
        self.lines = self.path.read_bytes().splitlines(keepends=True)

    def verify(
        self, lines: Lines, *, heads: Path | None = None, as_json: bool = False
    ) -> tuple[int, str]:
        """Write a log; return what `mqauth audit verify` exits with and prints."""
        self.path.write_bytes(b"".join(lines))
        out, kept = io.TextIOWrapper(io.BytesIO(), encoding="utf-8"), sys.stdout
        sys.stdout = out
        try:
            code = audit.verify([self.path], heads=heads, json=as_json)
            out.seek(0)
            return code, out.read()
        finally:
            sys.stdout = kept

    def verdict(self, lines: Lines, *, heads: Path | None = None) -> dict[str, Any]:
        """Write a log and return what the command says of it as JSON, its exit code held against it."""
        code, out = self.verify(lines, heads=heads, as_json=True)
        found: dict[str, Any] = json.loads(out)
        assert code == (0 if found["intact"] else 1)
        return found


def edited(lines: Lines, pick: random.Random) -> None:
    """Change one byte of a record, or a word of it, or its hash."""
    at = pick.randrange(len(lines))
    line = bytearray(lines[at])
    way = pick.randrange(3)
    if way == 0:
        place = pick.randrange(len(line) - 1)
        line[place] = pick.choice(
            [other for other in range(32, 127) if other != line[place]]
        )
    elif way == 1:
        line = line.replace(b'"rejected"', b'"accepted"')
    else:
        line[-10] = ord("0") if line[-10] != ord("0") else ord("1")
    lines[at] = bytes(line)


def removed(lines: Lines, pick: random.Random) -> None:
    """Delete one record that is not the last."""
    del lines[pick.randrange(len(lines) - 1)]


def reordered(lines: Lines, pick: random.Random) -> None:
    """Swap two records."""
    one, other = pick.sample(range(len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]


def inserted(lines: Lines, pick: random.Random) -> None:
    """Insert a copy of a record, a forged one that continues the chain, or something else, before a record."""
    at, way = pick.randrange(len(lines)), pick.randrange(3)
    if way == 0:
        lines.insert(at, pick.choice(lines))
    elif way == 1:
        lines.insert(at, _forged(lines, at, pick))
    else:
        lines.insert(at, b'{"verdict":"accepted"}\n')


def _forged(lines: Lines, at: int, pick: random.Random) -> bytes:
    """Return a record whose hash is right and which follows the one before its place."""
    previous = json.loads(lines[at - 1])["hash"] if at else GENESIS
    return _chained(
        [pick.choice(lines).replace(b"the signature", b"no signature")], previous
    )[0]


def _chained(lines: Lines, previous: str = GENESIS) -> Lines:
    """Return records with their whole chain computed anew."""
    found = []
    for line in lines:
        members = {**json.loads(line), "prev": previous}
        del members["hash"]
        previous = chain_hash(previous, members)
        found.append(dumps(members | {"hash": previous}) + b"\n")
    return found


DEEDS: dict[str, Callable[[Lines, random.Random], None]] = {
    "edited": edited, "removed": removed, "reordered": reordered, "inserted": inserted,
}  # fmt: skip


def deeds(log: Log, times: int, pick: random.Random) -> Findings:
    """Do one random deed after another to the honest log, and look at what is found without heads."""
    findings = Findings()
    for _ in range(times):
        name = pick.choice([*DEEDS])
        lines = [*log.lines]
        DEEDS[name](lines, pick)
        findings.note(name, log.verdict(lines))
    return findings


def cuts(log: Log, times: int, pick: random.Random) -> Findings:
    """Cut the tail, or edit and compute the chain anew; without heads the answer must be unanchored."""
    findings = Findings()
    for number in range(times):
        lines = [*log.lines]
        if number % 2:
            lines = lines[: pick.randrange(len(lines))]
        else:
            at = pick.randrange(len(lines))
            lines[at] = lines[at].replace(b"the signature", b"no signature")
        lines = _chained(lines)
        bare, (_, said) = log.verdict(lines), log.verify(lines)
        assert bare["anchored"] is False
        assert said.startswith("unanchored:")
        assert "intact" not in said
        findings.note(
            "truncated" if number % 2 else "recomputed",
            log.verdict(lines, heads=log.heads),
        )
    return findings


def _of(counter: Counter[str], deed: str) -> int:
    return counter[deed] if deed else counter.total()
