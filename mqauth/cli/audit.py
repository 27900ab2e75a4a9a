"""``mqauth audit``: is the log whole, what does it say, what did a key sign, what looks like misuse."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from mqauth.audit.chain import ChainReport, Progress, as_json, verify_chain
from mqauth.audit.disk import last_lines
from mqauth.audit.file import read_heads, with_parts
from mqauth.audit.log import TIMES, Selection, count, parse_record, read_records
from mqauth.audit.misuse import Alert, Detector, Thresholds
from mqauth.audit.record import Record, claims_of, is_verified
from mqauth.cli.follow import follow
from mqauth.cli.output import one_line, print_json
from mqauth.errors import ConfigurationError
from mqauth.wire.jwk import load_key_set

_BAR: Final = 40
_NAME: Final = 60
_GAPS: Final = 24 * 31
_POLL: Final = 0.25


def verify(files: Sequence[Path], *, heads: Path | None, keys: Path | None, continued: bool, json: bool) -> int:
    """Check the chain of audit files and print what was found.

    Args:
        files: in the order they were written; rotated parts of each are read before it.
        heads: signed heads to hold the chain against.
        keys: JWK Set of those who may sign heads.
        continued: the first file goes on from a signed head.
        json: print one JSON object.

    Returns:
        0 where it is unbroken, else 1.
    """
    if heads is None and (keys is not None or continued):
        raise ConfigurationError("--keys and --continued need --heads")
    pinned = None if keys is None else load_key_set(_read(keys), name=str(keys))
    known = None if heads is None else read_heads(heads, pinned)
    paths = with_parts(files)
    with _progress(paths) as progress:
        report = verify_chain(paths, known, continued=continued, progress=progress)
    if json:
        print_json(as_json(report))
    else:
        print(one_line(_judgement(report, heads is not None, pinned is not None)))
    return 0 if report.intact else 1


def tail(file: Path, *, lines: int, on: bool, json: bool, wait: Callable[[], None] | None = None) -> int:
    """Print the last records of a file and, where asked, those that come until interrupted.

    Args:
        file: the file.
        lines: how many.
        on: go on as the file grows.
        json: print JSON lines.
        wait: called where there is nothing new; by default a quarter of a second.
    """
    for raw in last_lines(file, lines):
        try:
            _print([parse_record(raw)], json)
        except ValueError as error:
            raise ConfigurationError(f"{file}: its end is no audit record") from error
    if on:
        for record in follow(file, wait or (lambda: time.sleep(_POLL))):
            _print([record], json)
    return 0


def show(files: Sequence[Path], record_id: str) -> int:
    """Print one record whole.

    Returns:
        0, or 1 where no record has this id.
    """
    for record in read_records(with_parts(files)):
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
    for record in read_records(with_parts(files)):
        if selection.holds(record):
            found = True
            _print([record], json)
    return 0 if found else 1


def stats(files: Sequence[Path], selection: Selection, *, by: str, json: bool) -> int:
    """Print how many records have each value, as bars for people."""
    found = count((record for record in read_records(with_parts(files)) if selection.holds(record)), by)
    rows = _in_time(found, by) if by in TIMES else found.most_common()
    if json:
        print_json({"by": by, "records": found.total(), "counts": dict(rows)})
        return 0
    most = max(found.values(), default=1)
    names = [one_line(name)[:_NAME] for name, _ in rows]
    width = max(map(len, names), default=0)
    block = "█" if _encodes("█") else "#"
    for name, (_, number) in zip(names, rows, strict=True):
        print(f"{name:<{width}}  {number:>8}  {block * (max(1, round(number / most * _BAR)) if number else 0)}")
    return 0


def detect(files: Sequence[Path], *, json: bool, thresholds: Thresholds | None = None) -> int:
    """Run the misuse detectors over an old log and print what they find.

    Returns:
        0 where nothing was found, else 1.
    """
    detector = Detector(thresholds or Thresholds())
    found = False
    for record in read_records(with_parts(files)):
        for alert in detector.observe(record):
            found = True
            _print_alert(alert, json, str(record.get("time")))
    return 1 if found else 0


def _judgement(report: ChainReport, heads: bool, pinned: bool) -> str:
    """Return what was found in one line for people."""
    if not report.intact:
        place = "" if report.file is None else f" of {report.file}"
        return f"BROKEN: line {report.first_bad}{place}: {report.what}; {report.records} records before it hold"
    note = "" if report.what is None else f"; {report.what}"
    if report.anchored:
        behind = f", the last {report.unsigned} of them behind the last signed head" if report.unsigned else ""
        trust = "" if pinned else "; the heads' own key is believed: give --keys"
        return f"intact; {report.records} records{behind}{note}{trust}"
    why = "the heads do not speak of all of it" if heads else "no signed heads to hold it against"
    return f"unanchored: unbroken, but {why}; {report.records} records{note}"


def _in_time(found: Counter[str], by: str) -> list[tuple[str, int]]:
    """Return counts in the order of time, with the spans between them in which there was nothing."""
    step = {"day": timedelta(days=1), "minute": timedelta(minutes=1)}.get(by, timedelta(hours=1))
    try:
        times = sorted(datetime.fromisoformat(name) for name in found)
    except ValueError:
        return sorted(found.items())
    if not times or (times[-1] - times[0]) / step > _GAPS:
        return sorted(found.items())
    spans = (times[0] + number * step for number in range(round((times[-1] - times[0]) / step) + 1))
    names = [span.isoformat(timespec="minutes")[: TIMES[by]] for span in spans]
    return [(name, found.get(name, 0)) for name in names]


def _encodes(text: str) -> bool:
    """Tell whether standard output can hold a character."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def _print(records: Iterable[Record], json: bool) -> None:
    """Print records, one a line, at once."""
    for record in records:
        if json:
            print_json(dict(record))
        else:
            print(one_line(_sentence(record)), flush=True)


def _sentence(record: Record) -> str:
    """Return a record in one line for people; what was only claimed is marked."""
    verdict = record.get("reason") or record.get("verdict")
    alert = record.get("alert")
    if isinstance(alert, dict):
        about = alert.get("about")
        named = ", ".join(f"{name} {value}" for name, value in about.items()) if isinstance(about, dict) else ""
        claimed = "" if alert.get("verified") is True else "claimed "
        return f"{record.get('time')}  ALERT  {record.get('detail') or ''}  {claimed}{named}".rstrip()
    if "flood" in record:
        return f"{record.get('time')}  {verdict}  no. {record.get('flood')} of a flood"
    said = claims_of(record)
    who = f"{said.get('sub', '?')} ({said.get('iss', '?')}, kid {said.get('kid', '?')})" if said else "no token"
    mark = "" if is_verified(record) or not said else "claimed "
    broker = record.get("broker")
    place = broker.get("destination", "") if isinstance(broker, dict) else ""
    return f"{record.get('time')}  {verdict}  {place}  {mark}{who}  {record.get('detail') or ''}".rstrip()


def _print_alert(alert: Alert, json: bool, time: str) -> None:
    """Print one alert."""
    if json:
        print_json({"time": time, **alert.as_dict()})
        return
    about = ", ".join(f"{name} {value}" for name, value in alert.about.items())
    claimed = "" if alert.verified else "claimed "
    print(one_line(f"{time}  {alert.kind}  {alert.count} times  {claimed}{about}"))


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
