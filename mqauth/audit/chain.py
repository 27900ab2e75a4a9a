"""Reading audit files: is every record there, as it was written, and in order; and do signed heads agree.

Lines are checked as bytes, in constant memory, since a writer's line is canonical: ``prev`` and ``hash``
stand last, and ``hash`` is SHA-256 over the previous hash and the line without its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from mqauth.audit.record import GENESIS
from mqauth.errors import ConfigurationError

MAX_LINE: Final = 1024 * 1024
_HASH: Final = 64
_TAIL: Final = len(',"hash":""}\n') + _HASH
_PREV: Final = len(',"prev":""') + _HASH
_HEX: Final = frozenset(b"0123456789abcdef")
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What a signed head says: after so many records, the chain that began so had this hash."""

    chain: str
    records: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """What reading one or more files found.

    Args:
        intact: every record follows the one before, and no head contradicts.
        anchored: signed heads were held against every chain read, and each reaches as far as they do.
        records: records up to the first bad one.
        unsigned: records behind the last signed head; what is cut of them goes unnoticed.
        first_bad: its line, counted from 1 over the files in order.
        file: the file it stands in.
        what: what was done to it: ``edited``, ``removed``, ``inserted``, ``reordered``, ``recomputed`` or
            ``truncated``; of an intact chain, that a crash tore its last line.
    """

    intact: bool
    records: int
    anchored: bool = False
    unsigned: int = 0
    first_bad: int | None = None
    file: str | None = None
    what: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One line as bytes, taken apart; ``good`` says that its own hash holds."""

    number: int
    file: str
    good: bool
    prev: str
    hash: str
    torn: bool = False


@dataclass(slots=True)
class Reading:
    """How far a chain was read."""

    previous: str = GENESIS
    before: str = GENESIS
    chain: str = ""
    records: int = 0
    heads: dict[str, dict[int, set[str]]] = field(default_factory=dict)
    seen: dict[str, int] = field(default_factory=dict)
    met: dict[str, int] = field(default_factory=dict)
    unsigned: int = 0


def verify_chain(
    files: str | Path | Sequence[str | Path],
    heads: Iterable[Head] | None = None,
    *,
    continued: bool = False,
    progress: Progress | None = None,
) -> ChainReport:
    """Read audit files, a rotated chain in its order, and report the first thing that is wrong.

    Args:
        files: one file, or several in the order they were written; each writer's chain may follow another's.
        heads: signed heads, already verified, to hold the chain against.
        continued: the first file goes on from a signed head, those before it being archived; without this
            their records are missed.
        progress: called with the bytes of each line read.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(name) for name in files]
    reading = Reading(heads=_by_chain(heads or ()))
    if continued and (begun := first_line(paths)) is not None:
        _resume(reading, begun.prev)
    torn: Line | None = None
    what: str | None = None
    for line in read_lines(paths, progress):
        if torn is not None and not _next_writer(torn, line):
            return _bad(torn, "edited")
        torn = line if line.torn else None
        if torn is not None:
            what = "the last line is torn"
            continue
        if not line.good or (line.prev != reading.previous and not _starts(reading, line)):
            return _diagnosed(reading, line, paths)
        if (deed := _advance(reading, line)) is not None:
            return _bad(line, deed)
    return _close(reading, what)


def first_line(paths: Iterable[Path]) -> Line | None:
    """Return the first line of files, ``None`` where there is none.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    return next(read_lines(paths), None)


def hashes(paths: Iterable[Path]) -> Iterator[str]:
    """Yield the hash that each whole line of files names, unchecked.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    for path in paths:
        for raw in raw_lines(path):
            if raw.endswith(b"\n"):
                yield raw[-3 - _HASH : -3].decode("ascii", "replace")


def read_lines(paths: Iterable[Path], progress: Progress | None = None) -> Iterator[Line]:
    """Yield the lines of files in order, each checked against its own hash.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    number = 0
    for path in paths:
        for raw in raw_lines(path):
            number += 1
            if progress is not None:
                progress(len(raw))
            yield _line(raw, number, str(path))


def raw_lines(path: Path) -> Iterator[bytes]:
    """Yield the raw lines of one file, none longer than 1 MiB.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            while raw := file.readline(MAX_LINE):
                yield raw
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or 'cannot be read'}") from error


def _line(raw: bytes, number: int, file: str) -> Line:
    """Take a line apart; what has not the writer's form is not good."""
    if not raw.endswith(b"\n"):
        return Line(number, file, False, "", "", torn=True)
    body, tail = raw[:-_TAIL], raw[-_TAIL:]
    prev, own = body[-_PREV:], tail[9 : 9 + _HASH]
    shaped = (
        tail.startswith(b',"hash":"')
        and tail.endswith(b'"}\n')
        and prev.startswith(b',"prev":"')
        and prev.endswith(b'"')
        and _HEX.issuperset(own)
        and _HEX.issuperset(prev[9:-1])
    )
    if not shaped:
        return Line(number, file, False, "", "")
    digest = hashlib.sha256(prev[9:-1] + body + b"}").hexdigest()
    return Line(number, file, digest == own.decode("ascii"), prev[9:-1].decode("ascii"), own.decode("ascii"))


def _resume(reading: Reading, previous: str) -> None:
    """Go on from the signed head that stands before the first line; the heads before it are not asked for."""
    for chain, places in reading.heads.items():
        place = next((place for place, said in places.items() if said == {previous}), None)
        if place is not None:
            reading.previous = reading.before = previous
            reading.chain, reading.records = chain, place
            reading.met[chain] = place
            reading.heads[chain] = {later: said for later, said in places.items() if later > place}
            return


def _next_writer(torn: Line, line: Line) -> bool:
    """Tell whether a torn line was the last of its writer: what follows begins another's file."""
    return line.file != torn.file and (line.prev == GENESIS or line.torn)


def _starts(reading: Reading, line: Line) -> bool:
    """Tell whether a line begins another writer's chain, at the start of its file."""
    if line.prev != GENESIS or reading.seen.get(line.file, 0):
        return False
    _leave(reading)
    reading.chain, reading.records = "", 0
    return True


def _leave(reading: Reading) -> None:
    """Count what the chain just read has behind its last head."""
    reading.unsigned += reading.records - reading.met.get(reading.chain, 0)


def _advance(reading: Reading, line: Line) -> str | None:
    """Count a good line, and hold it against the heads of its place."""
    reading.chain = reading.chain or line.hash
    reading.met.setdefault(reading.chain, 0)
    reading.records += 1
    reading.seen[line.file] = reading.seen.get(line.file, 0) + 1
    reading.before, reading.previous = reading.previous, line.hash
    said = reading.heads.get(reading.chain, {}).pop(reading.records, None)
    if said is None:
        return None
    reading.met[reading.chain] = reading.records
    return None if said == {line.hash} else "recomputed"


def _by_chain(heads: Iterable[Head]) -> dict[str, dict[int, set[str]]]:
    """Return the heads by chain and place; two that disagree are both kept, for one of them was told otherwise."""
    found: dict[str, dict[int, set[str]]] = {}
    for head in heads:
        found.setdefault(head.chain, {}).setdefault(head.records, set()).add(head.hash)
    return found


def _close(reading: Reading, what: str | None) -> ChainReport:
    """Report a chain that was read to its end: a head that was not met names records that are gone."""
    total = sum(reading.seen.values())
    unmet = {chain for chain, places in reading.heads.items() if places}
    if unmet:
        known = not reading.met or bool(unmet & reading.met.keys())
        return ChainReport(
            intact=False, records=total, first_bad=total + 1, what="truncated" if known else "recomputed"
        )
    _leave(reading)
    anchored = bool(reading.met) and all(reading.met.values())
    return ChainReport(intact=True, anchored=anchored, unsigned=reading.unsigned, records=total, what=what)


def _bad(line: Line, what: str, number: int | None = None) -> ChainReport:
    """Report a bad line."""
    number = line.number if number is None else number
    return ChainReport(intact=False, records=number - 1, first_bad=number, file=line.file, what=what)


def _diagnosed(reading: Reading, line: Line, paths: Sequence[Path]) -> ChainReport:
    """Say what was done where a line does not hold, or does not follow the one before it."""
    earlier = later = resumes = copied = False
    for other in read_lines(paths):
        if other.number == line.number or not other.good:
            continue
        earlier = earlier or (other.number < line.number and other.hash == line.prev)
        later = later or (other.number > line.number and other.hash == line.prev)
        resumes = resumes or (other.number > line.number and other.prev == reading.previous)
        copied = copied or other.hash == line.hash
    if not line.good:
        return _bad(line, "inserted" if resumes else "edited")
    if line.prev == reading.before and not resumes:
        return _bad(line, "inserted", line.number - 1)
    if not copied and (later or (earlier and not resumes)):
        return _bad(line, "reordered")
    return _bad(line, "inserted" if resumes else "removed")


def as_json(report: ChainReport) -> Mapping[str, object]:
    """Return the report as ``mqauth audit verify --json`` prints it."""
    return {
        "intact": report.intact,
        "anchored": report.anchored,
        "records": report.records,
        "first_bad": report.first_bad,
        "what": report.what,
    }
