"""From a dead letter to what the audit files say of it, and whether their chain is unbroken up to there."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Final

from mqauth.audit.chain import find
from mqauth.audit.file import parts
from mqauth.audit.record import Record, parse_record
from mqauth.errors import file_errors, require

MOST: Final = 20
"""Records of a dead letter that are shown; the rejection and one act are the rule."""
LARGEST_FILES: Final = 1024**3
"""Bytes of audit files that are read for one dead letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An audit record of a dead letter.

    Args:
        record: as the file has it.
        file: its path.
        line: counted from 1.
        unbroken: whether each record of the chain up to this one follows the one before it. Signed heads were not
            compared.
    """

    record: Record
    file: str
    line: int
    unbroken: bool


def trail(files: Iterable[Path], letter: str) -> list[Step]:
    """Return the first records of a dead letter, by its id, from audit files and their rotated parts.

    Raises:
        ConfigurationError: a file cannot be read, or they have more than 1 GiB: too much while somebody waits.
    """
    logs = [parts(path) for path in files]
    size = 0
    for part in chain.from_iterable(logs):
        with file_errors(part):
            size += part.stat().st_size
    require(size <= LARGEST_FILES, f"the audit files have {size:,} bytes: ask mqauth audit show {letter} FILES")
    steps: list[Step] = []
    name = letter.encode("utf-8", "backslashreplace")
    for line, raw, unbroken in chain.from_iterable(find(log, lambda raw: name in raw) for log in logs):
        # A line that somebody damaged breaks the chain, and is no record.
        with suppress(ValueError):
            record = parse_record(raw)
            if record.get("dead_letter") == letter:
                steps.append(Step(record=record, file=line.file, line=line.number, unbroken=unbroken))
        if len(steps) == MOST:
            break
    return steps
