"""``mqauth audit``: is the log whole, what does it say, what did a key sign, what looks like misuse."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mqauth.auditchain import Progress, as_json, verify_chain
from mqauth.audithead import read_heads
from mqauth.auditlog import Record, Selection, claims_of, count, is_verified, read_records
from mqauth.cli.output import one_line, print_json
from mqauth.errors import ConfigurationError
from mqauth.jwk import load_key_set
from mqauth.misuse import Alert, Detector, Thresholds

_BAR: Final = 40


def verify(files: Sequence[Path], *, heads: Path | None, keys: Path | None, json: bool) -> int:
    """Check the chain of audit files and print what was found.

    Args:
        files: in the order they were written.
        heads: signed heads to hold the chain against.
        keys: JWK Set of those who may sign heads.
        json: print one JSON object.

    Returns:
        0 where it is unbroken, else 1.
    """
    pinned = None if keys is None else load_key_set(_read(keys), name=str(keys))
    known = None if heads is None else read_heads(heads, pinned)
    with _progress(files) as progress:
        report = verify_chain(files, known, progress=progress)
    if json:
        print_json(as_json(report))
    elif not report.intact:
        place = "" if report.file is None else f" of {report.file}"
        print(f"BROKEN: line {report.first_bad}{place}: {report.what}; {report.records} records before it hold")
    else:
        note = "" if report.what is None else f"; {report.what}"
        state = "intact" if report.anchored else "unanchored: unbroken, but no signed heads to hold it against"
        print(f"{state}; {report.records} records{note}")
    return 0 if report.intact else 1


def tail(file: Path, *, lines: int, json: bool) -> int:
    """Print the last records of a file."""
    _print(deque(read_records([file]), maxlen=lines), json)
    return 0


def show(files: Sequence[Path], record_id: str) -> int:
    """Print one record whole.

    Returns:
        0, or 1 where no record has this id.
    """
    for record in read_records(files):
        if record_id in (record.get("id"), record.get("dead_letter")):
            print_json(dict(record))
            return 0
    return 1


def trace(files: Sequence[Path], selection: Selection, *, json: bool) -> int:
    """Print every record a key, a producer or a token left.

    Returns:
        0, or 1 where there is none.
    """
    found = False
    for record in read_records(files):
        if selection.holds(record):
            found = True
            _print([record], json)
    return 0 if found else 1


def stats(files: Sequence[Path], selection: Selection, *, by: str, json: bool) -> int:
    """Print how many records have each value, as bars for people."""
    found = count((record for record in read_records(files) if selection.holds(record)), by)
    rows = sorted(found.items()) if by == "hour" else found.most_common()
    if json:
        print_json({"by": by, "records": found.total(), "counts": dict(rows)})
        return 0
    most = max(found.values(), default=1)
    width = max((len(name) for name in found), default=0)
    for name, number in rows:
        print(f"{one_line(name):<{width}}  {number:>8}  {'█' * max(1, round(number / most * _BAR))}")
    return 0


def detect(files: Sequence[Path], *, json: bool, thresholds: Thresholds | None = None) -> int:
    """Run the misuse detectors over an old log and print what they find.

    Returns:
        0 where nothing was found, else 1.
    """
    detector = Detector(thresholds or Thresholds())
    found = False
    for record in read_records(files):
        for alert in detector.observe(record):
            found = True
            _print_alert(alert, json, str(record.get("time")))
    return 1 if found else 0


def _print(records: Iterable[Record], json: bool) -> None:
    """Print records, one a line."""
    for record in records:
        if json:
            print_json(dict(record))
        else:
            print(one_line(_sentence(record)))


def _sentence(record: Record) -> str:
    """Return a record in one line for people; what was only claimed is marked."""
    said = claims_of(record)
    who = f"{said.get('sub', '?')} ({said.get('iss', '?')}, kid {said.get('kid', '?')})"
    mark = "" if is_verified(record) else "claimed "
    broker = record.get("broker")
    place = broker.get("destination", "") if isinstance(broker, dict) else ""
    verdict = record.get("reason") or record.get("verdict")
    return f"{record.get('time')}  {verdict}  {place}  {mark}{who}  {record.get('detail') or ''}".rstrip()


def _print_alert(alert: Alert, json: bool, time: str) -> None:
    """Print one alert."""
    if json:
        print_json({"time": time, **alert.as_dict()})
        return
    about = ", ".join(f"{name} {value}" for name, value in alert.about.items())
    print(one_line(f"{time}  {alert.kind}  {alert.count} times  {about}"))


@contextmanager
def _progress(files: Sequence[Path]) -> Iterator[Progress | None]:
    """Show a progress bar on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    total = sum(file.stat().st_size for file in files if file.exists())
    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=total)
        pending = 0

        def advance(size: int) -> None:
            nonlocal pending
            pending += size
            if pending >= 1 << 20:
                bar.advance(task, pending)
                pending = 0

        yield advance


def _read(path: Path) -> bytes:
    """Return the bytes of a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or 'cannot be read'}") from error
