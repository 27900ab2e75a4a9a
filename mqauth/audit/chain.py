"""Verifying audit files: whether every record is there, unchanged and in order, and whether signed heads agree.

Files are read as bytes, in constant memory. That is possible because a writer's line has one form: ``prev`` and
``hash`` stand last, and ``hash`` is SHA-256 over the previous hash and the line without its own hash.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from mqauth.errors import file_errors
from mqauth.wire import strict_json

GENESIS: Final = "0" * 64
"""The hash that the first record of a chain follows."""
MAX_LINE: Final = 1024 * 1024
_FORM: Final = re.compile(
    rb'(.*,"prev":"([0-9a-f]{64})"),"hash":"([0-9a-f]{64})"\}\n', re.DOTALL
)
Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """A statement that the chain with this first hash had this last hash after so many records."""

    chain: str
    records: int
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChainReport:
    """The result of reading one or more files.

    Args:
        intact: every record follows the one before it, and no head contradicts.
        anchored: every chain that was read has a signed head.
        records: records before the first bad one.
        unsigned: records behind the last signed head; if some of these were cut off, nobody would notice.
        first_bad: line of the first bad record, counted from 1 over the files in order.
        file: the file it stands in.
        what: what was done to it: ``edited``, ``removed``, ``inserted``, ``reordered``, ``recomputed`` or
            ``truncated``; in an intact chain, that a crash tore its last line.
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
    """One line; ``good`` says that it has the writer's form and that its own hash is right."""

    number: int
    file: str
    good: bool = False
    prev: str = ""
    hash: str = ""
    torn: bool = False


@dataclass(slots=True)
class _Reading:
    """How far the chains were read.

    Args:
        heads: the heads that were not met yet, by chain and number of records.
        previous: hash of the last good line.
        before: hash of the line before it.
        chain: first hash of the chain that is being read.
        records: its records so far.
        seen: good lines by file.
        met: by chain, the records that its last head covers.
        unsigned: records behind the last heads of the chains that were read to their end.
    """

    heads: dict[str, dict[int, set[str]]]
    previous: str = GENESIS
    before: str = GENESIS
    chain: str = ""
    records: int = 0
    seen: dict[str, int] = field(default_factory=dict)
    met: dict[str, int] = field(default_factory=dict)
    unsigned: int = 0

    def resume(self, previous: str) -> None:
        """Start behind the signed head that has this hash, and do not ask for the heads before it."""
        for chain, places in self.heads.items():
            position = next(
                (position for position, hashes in places.items() if hashes == {previous}),
                None,
            )
            if position is not None:
                self.previous = self.before = previous
                self.chain, self.records = chain, position
                self.met[chain] = position
                self.heads[chain] = {
                    later: hashes for later, hashes in places.items() if later > position
                }
                return

    def starts(self, line: Line) -> bool:
        """Tell whether a line begins another writer's chain, which it may only at the start of a file."""
        if line.prev != GENESIS or self.seen.get(line.file, 0):
            return False
        self.leave()
        self.chain, self.records = "", 0
        return True

    def leave(self) -> None:
        """Count the records of the current chain that no head covers."""
        self.unsigned += self.records - self.met.get(self.chain, 0)

    def advance(self, line: Line) -> bool:
        """Count a good line, and tell whether the heads at its place agree with it."""
        self.chain = self.chain or line.hash
        self.met.setdefault(self.chain, 0)
        self.records += 1
        self.seen[line.file] = self.seen.get(line.file, 0) + 1
        self.before, self.previous = self.previous, line.hash
        hashes = self.heads.get(self.chain, {}).pop(self.records, None)
        if hashes is not None:
            self.met[self.chain] = self.records
        return hashes in (None, {line.hash})

    def end(self, what: str | None) -> ChainReport:
        """Report chains that were read to their end; a head that was not met names records that are gone."""
        total = sum(self.seen.values())
        unmet = {chain for chain, places in self.heads.items() if places}
        if unmet:
            return ChainReport(
                intact=False,
                records=total,
                first_bad=total + 1,
                what="truncated"
                if not self.met or unmet & self.met.keys()
                else "recomputed",
            )
        self.leave()
        return ChainReport(
            intact=True,
            anchored=bool(self.met) and all(self.met.values()),
            unsigned=self.unsigned,
            records=total,
            what=what,
        )


def verify_chain(
    files: str | Path | Sequence[str | Path],
    heads: Iterable[Head] | None = None,
    *,
    continued: bool = False,
    progress: Progress | None = None,
) -> ChainReport:
    """Read audit files and report the first thing that is wrong with them.

    Args:
        files: one file, or several in the order in which they were written; a rotated chain may be followed by
            another writer's.
        heads: signed heads, verified already, to compare the chains with.
        continued: the first file continues at a signed head, because the files before it were archived; without
            this their records are reported as missing.
        progress: called with the number of bytes of each line.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    paths = (
        [Path(files)] if isinstance(files, str | Path) else [Path(name) for name in files]
    )
    # Two heads that disagree are both kept. After somebody cut and rewrote the tail, the honest writer itself
    # signs the second one.
    read = _Reading({})
    for head in heads or ():
        read.heads.setdefault(head.chain, {}).setdefault(head.records, set()).add(
            head.hash
        )
    if continued and (begun := next(read_lines(paths), None)) is not None:
        read.resume(begun.prev)
    torn: Line | None = None
    what: str | None = None
    for line in read_lines(paths, progress):
        # A crash tears the last line of a file. Only another writer's file may follow.
        if torn is not None and not (
            line.file != torn.file and (line.prev == GENESIS or line.torn)
        ):
            return _bad(torn, "edited")
        torn = line if line.torn else None
        if torn is not None:
            what = "the last line is torn"
        elif not line.good or (line.prev != read.previous and not read.starts(line)):
            return _diagnosed(read, line, paths)
        elif not read.advance(line):
            return _bad(line, "recomputed")
    return read.end(what)


def find(
    files: Iterable[Path], wanted: Callable[[bytes], bool]
) -> Iterator[tuple[Line, bytes, bool]]:
    """Yield lines of the files of one log, each with whether the chain is unbroken from its beginning up to it.

    Signed heads are not asked: who can write the file could have computed the whole chain again.

    Args:
        files: of one log, in the order in which they were written.
        wanted: tells whether a line is one of those to be yielded.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    read, unbroken = _Reading({}), True
    for path in files:
        for number, raw in enumerate(raw_lines(path), 1):
            line = _line(raw, number, str(path))
            unbroken = line.good and (
                read.starts(line) or (unbroken and line.prev == read.previous)
            )
            if line.good:
                read.advance(line)
            if wanted(raw):
                yield line, raw, unbroken


def read_lines(paths: Iterable[Path], progress: Progress | None = None) -> Iterator[Line]:
    """Yield the lines of files in order, each checked against its own hash.

    Raises:
        ConfigurationError: a file cannot be read.
    """
    lines = ((path, raw) for path in paths for raw in raw_lines(path))
    for number, (path, raw) in enumerate(lines, 1):
        if progress is not None:
            progress(len(raw))
        yield _line(raw, number, str(path))


def raw_lines(path: Path) -> Iterator[bytes]:
    """Yield the raw lines of one file, in pieces of at most 1 MiB.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    with file_errors(path), path.open("rb") as file:
        yield from iter(partial(file.readline, MAX_LINE), b"")


def chain_hash(previous: str, members: Mapping[str, Any]) -> str:
    """Return the hash of the record that follows ``previous`` in a chain: SHA-256 over both."""
    return hashlib.sha256(
        previous.encode("ascii") + strict_json.dumps(members)
    ).hexdigest()


def _line(raw: bytes, number: int, file: str) -> Line:
    if not raw.endswith(b"\n"):
        return Line(number, file, torn=True)
    match = _FORM.fullmatch(raw)
    if match is None:
        return Line(number, file)
    body, prev, own = match.groups()
    digest = hashlib.sha256(prev + body + b"}").hexdigest()
    return Line(
        number,
        file,
        digest == own.decode("ascii"),
        prev.decode("ascii"),
        own.decode("ascii"),
    )


def _bad(line: Line, what: str) -> ChainReport:
    return ChainReport(
        intact=False,
        records=line.number - 1,
        first_bad=line.number,
        file=line.file,
        what=what,
    )


def _diagnosed(read: _Reading, line: Line, paths: Sequence[Path]) -> ChainReport:
    """Report what was done where a line is not good, or does not follow the one before it.

    All lines are read once more, to see where the hash that this line follows, the line that should stand here,
    and this line itself stand elsewhere.
    """
    earlier = later = resumes = copied = False
    for other in read_lines(paths):
        if other.number != line.number and other.good:
            earlier = earlier or (other.number < line.number and other.hash == line.prev)
            later = later or (other.number > line.number and other.hash == line.prev)
            resumes = resumes or (
                other.number > line.number and other.prev == read.previous
            )
            copied = copied or other.hash == line.hash
    if not line.good:
        return _bad(line, "inserted" if resumes else "edited")
    if line.prev == read.before and not resumes:
        return _bad(replace(line, number=line.number - 1), "inserted")
    moved = not copied and (later or (earlier and not resumes))
    return _bad(line, "reordered" if moved else "inserted" if resumes else "removed")
