"""The audit file: durable, one writer, rotation and heads that carry the chain on, and what a crash leaves."""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mqauth import Cause, ConfigurationError, Key, Unavailable
from mqauth.audit.chain import verify_chain
from mqauth.audit.file import (
    MIN_BYTES,
    AuditFile,
    HeadFile,
    parts,
    read_heads,
    rotated,
    with_parts,
)
from mqauth.audit.record import AuditRecord
from mqauth.testing.clock import FakeClock
from tests.conftest import audit_record, together


def record(number: int = 0, detail: str = "why") -> AuditRecord:
    """Return a record of a rejection."""
    return audit_record(number, time=1_900_000_000.0 + number, detail=detail)


def fill(file: AuditFile, count: int) -> None:
    """Write so many records."""
    for number in range(count):
        file.write(record(number))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the audit file goes."""
    return tmp_path / "audit.jsonl"


def test_written_before_return(path: Path) -> None:
    """A record is in the file when ``write`` returns, in a file only its owner reads."""
    with AuditFile(path) as file:
        file.write(record())
        assert b'"id-0"' in path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600


def test_synced_unless_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each record is fsynced, and none where that was turned off."""
    synced: list[int] = []
    with (
        AuditFile(path) as file,
        AuditFile(path.with_name("loose"), fsync=False) as loose,
    ):
        monkeypatch.setattr(os, "fsync", synced.append)
        fill(file, 3)
        fill(loose, 3)
    assert len(synced) == 3


def test_closed_file_defers(path: Path) -> None:
    """A closed audit file accepts nothing and raises what the pipeline defers for."""
    file = AuditFile(path)
    file.close()
    file.close()
    with pytest.raises(Unavailable):
        file.write(record())


@pytest.mark.parametrize(
    "raw",
    [
        b"text\n",
        b"[]\n",
        b"{}\n",
        b"x" * (65 * 1024),
        b"no newline",
        b"\x7fELF\0\0",
        b"# notes",
    ],
)
def test_foreign_file_is_refused_and_left_alone(path: Path, raw: bytes) -> None:
    """A file that is no audit log is not appended to, and without a newline not taken for a torn one and cut."""
    path.write_bytes(raw)
    with pytest.raises(
        ConfigurationError,
        match="audit" if b"\n" in raw or len(raw) > 65_000 else "no audit file",
    ):
        AuditFile(path)
    assert path.read_bytes() == raw


def test_unreachable_folder(tmp_path: Path) -> None:
    """A folder that is not there is a configuration error."""
    with pytest.raises(ConfigurationError, match="No such file"):
        AuditFile(tmp_path / "missing" / "audit.jsonl")


def big(number: int) -> AuditRecord:
    """Return a record of about half a kilobyte."""
    return record(number, "x" * 250)


@pytest.mark.parametrize(
    "name", ["audit.jsonl", "audit[1].jsonl", "audit*.jsonl", "audit?.jsonl"]
)
def test_rotation_carries_the_chain(tmp_path: Path, name: str) -> None:
    """A full file, also one whose name has wildcards, is renamed; all parts in order are one unbroken chain."""
    path = tmp_path / name
    with AuditFile(path, fsync=False, max_bytes=MIN_BYTES) as file:
        for number in range(400):
            file.write(big(number))
    assert parts(path) == [*rotated(path), path]
    assert len(parts(path)) == 4
    assert verify_chain(parts(path)).records == 400
    assert max(part.stat().st_size for part in parts(path)) < MIN_BYTES + 1024


def test_crash_between_rename_and_new_file(path: Path) -> None:
    """A writer killed while it rotated goes on from the last rotated file."""
    with AuditFile(path, fsync=False) as file:
        fill(file, 3)
    path.rename(path.with_name(path.name + ".000001"))
    with AuditFile(path, fsync=False) as file:
        fill(file, 1)
    assert verify_chain([*rotated(path), path]).records == 4


def test_size_is_bounded_below(path: Path) -> None:
    """A size so small that every record would rotate is refused."""
    with pytest.raises(ConfigurationError, match="max_bytes"):
        AuditFile(path, max_bytes=1)


def test_heads_at_intervals_and_at_close(path: Path) -> None:
    """The head is signed every so many records and at the end, also over restarts and rotation."""
    key = Key.generate()
    for _ in range(2):
        heads = HeadFile(path.with_name("heads"), key, every=10)
        with AuditFile(path, fsync=False, heads=heads, max_bytes=MIN_BYTES) as file:
            for number in range(95):
                file.write(big(number))
    found = read_heads(path.with_name("heads"))
    places = [head.records for head in found]
    assert {*range(10, 91, 10), 95, 190} < {*places}
    assert max(later - sooner for sooner, later in itertools.pairwise([0, *places])) <= 10
    report = verify_chain([*rotated(path), path], found)
    assert (report.intact, report.anchored) == (True, True)


def test_nothing_new_is_not_signed_again(path: Path) -> None:
    """A writer that wrote nothing signs nothing."""
    heads = HeadFile(path.with_name("heads"), Key.generate())
    with AuditFile(path, heads=heads):
        pass
    assert not path.with_name("heads").exists()


def _refuse(*_arguments: object) -> None:
    raise OSError(28, "No space left on device")


class Disk:
    """A disk that takes so many bytes and no more."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._write = os.write

    def write(self, descriptor: int, data: bytes) -> int:
        if self.room <= 0:
            raise OSError(28, "No space left on device")
        taken = self._write(descriptor, data[: self.room])
        self.room -= taken
        return taken


def test_torn_line_that_could_not_be_cut_is_cut_later(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where even the cut failed, the next record does it."""
    with AuditFile(path, fsync=False) as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", Disk(room=100).write)
            patch.setattr(os, "ftruncate", _refuse)
            with pytest.raises(Unavailable):
                file.write(record(0))
        assert path.stat().st_size == 100
        file.write(record(1))
    assert (verify_chain(path).intact, verify_chain(path).records) == (True, 1)


@pytest.mark.parametrize(
    ("name", "by", "said"),
    [
        ("fsync", _refuse, "was not written"),
        ("write", Disk(room=100).write, "was not written"),
        ("getpid", lambda: -1, "fork"),
    ],
    ids=["not synced", "full in the middle of a record", "forked"],
)
def test_what_cannot_be_written_defers(
    name: str,
    by: Callable[..., Any],
    said: str,
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A record that is not durable is ``audit_unavailable``: nothing of it stays, and the next follows the last.

    A child that inherited the file is refused too: two writers of one chain would overwrite each other's records.
    """
    with AuditFile(path, fsync=name == "fsync") as file:
        fill(file, 1)
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, name, by)
            with pytest.raises(Unavailable, match=said) as raised:
                file.write(record(1))
        assert raised.value.cause is Cause.AUDIT_UNAVAILABLE
        assert path.read_bytes() == before
        file.write(record(2))
    assert (verify_chain(path).intact, verify_chain(path).records) == (True, 2)


def test_forked_process_signs_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child that closes the inherited file signs no head for its parent."""
    heads = HeadFile(path.with_name("heads"), Key.generate())
    file = AuditFile(path, heads=heads)
    fill(file, 1)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    file.close()
    assert not heads.path.exists()


def test_threads_share_one_file(path: Path) -> None:
    """Records of eight threads are one unbroken chain with every record once."""
    with AuditFile(path, fsync=False, max_bytes=MIN_BYTES) as file:
        together(
            lambda start: [file.write(big(start + n)) for n in range(100)],
            range(0, 800, 100),
        )
    report = verify_chain([*rotated(path), path])
    assert (report.intact, report.records) == (True, 800)


def append(path: Path) -> None:
    """Write a line of another's."""
    with path.open("ab") as other:
        other.write(b'{"reason":"none"}\n')


@pytest.mark.parametrize(
    ("deed", "said", "told"),
    [
        (
            Path.unlink,
            "moved or deleted",
            {"intact": False, "what": "removed", "first_bad": 1},
        ),
        (
            lambda path: path.rename(path.with_name("moved")),
            "moved or deleted",
            {"intact": True, "records": 4},
        ),
        (
            lambda path: os.truncate(path, 0),
            "somebody else changed this file",
            {"what": "removed"},
        ),
        (append, "", {"what": "inserted", "first_bad": 3}),
    ],
    ids=["deleted", "moved, as logrotate does", "emptied", "a line appended"],
)
def test_what_somebody_did_to_an_open_file_is_told(
    deed: Callable[[Path], object],
    said: str,
    told: dict[str, Any],
    path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Records go on where they can be found, without a hole; the log says so, and the chain shows what is gone."""
    with AuditFile(path, fsync=False) as file:
        fill(file, 2)
        deed(path)
        fill(file, 2)
    assert said in caplog.text
    assert b"\0" not in path.read_bytes()
    moved = path.with_name("moved")
    report = verify_chain([moved, path] if moved.exists() else path)
    assert {name: getattr(report, name) for name in told} == told


def test_replaced_file_is_not_appended_to(path: Path) -> None:
    """Where another file was put in its place, messages are deferred until it is gone."""
    with AuditFile(path, fsync=False) as file:
        fill(file, 1)
        path.unlink()
        path.write_bytes(b"something else\n")
        with pytest.raises(Unavailable, match="another file stands in its place"):
            fill(file, 1)
        path.unlink()
        fill(file, 1)
    assert len(path.read_bytes().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "said", "there"),
    [("rename", "was not written", True), ("open", "cannot be begun", False)],
)
def test_a_rotation_that_failed_is_finished(
    name: str, said: str, there: bool, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a full file cannot be renamed, or no new one begun, messages are deferred, and the next ends it."""
    with AuditFile(path, fsync=False, max_bytes=MIN_BYTES) as file:
        while path.stat().st_size < MIN_BYTES:
            file.write(big(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, name, _refuse)
            with pytest.raises(Unavailable, match=said):
                file.write(record())
        assert path.exists() is there
        fill(file, 2)
    assert verify_chain(parts(path)).intact
    assert len(rotated(path)) == 1


@pytest.mark.parametrize("tail", [b"{", b'{"v":1', b'{"v":1,"id":"torn', b"\0" * 100])
def test_every_torn_tail_is_recovered(
    path: Path, tail: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever part of a record a crash left, and zeros a power cut left, is cut off and said."""
    with AuditFile(path, fsync=False) as file:
        fill(file, 2)
    with path.open("ab") as raw:
        raw.write(tail)
    with caplog.at_level(logging.WARNING), AuditFile(path, fsync=False) as file:
        fill(file, 1)
    assert "torn last line" in caplog.text
    assert (verify_chain(path).intact, verify_chain(path).records) == (True, 3)


def test_heads_by_time(path: Path) -> None:
    """A record that comes a minute after the last head is signed at once, however few there are."""
    clock = FakeClock()
    heads = HeadFile(
        path.with_name("heads"), Key.generate(), every=1000, seconds=60, clock=clock
    )
    with AuditFile(path, fsync=False, heads=heads) as file:
        fill(file, 3)
        assert not heads.path.exists()
        clock.advance(60)
        fill(file, 1)
        assert [head.records for head in read_heads(heads.path)] == [4]
        fill(file, 1)
        assert len(read_heads(heads.path)) == 1


def test_crashed_writers_records_are_signed_at_its_next_start(path: Path) -> None:
    """What was written since the last head, before a crash, is covered once the writer starts again."""
    key = Key.generate()
    crashed = AuditFile(path, fsync=False, heads=HeadFile(path.with_name("heads"), key))
    fill(crashed, 3)
    crashed._lines.close()  # as a kill does: no head
    with AuditFile(path, fsync=False, heads=HeadFile(path.with_name("heads"), key)):
        assert [head.records for head in read_heads(path.with_name("heads"))] == [3]


def test_cut_log_is_loud_at_start(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A writer that finds fewer records than its last signed head covers says so, and verify still finds it."""
    key = Key.generate()
    with AuditFile(
        path, fsync=False, heads=HeadFile(path.with_name("heads"), key)
    ) as file:
        fill(file, 10)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    with AuditFile(
        path, fsync=False, heads=HeadFile(path.with_name("heads"), key)
    ) as file:
        fill(file, 5)
    assert "some are gone" in caplog.text
    report = verify_chain(path, read_heads(path.with_name("heads")))
    assert (report.intact, report.what) == (False, "recomputed")


def test_failing_head_file_is_tried_once_an_interval(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A head file out of reach is loud, costs one attempt an interval, not one a record, and stops no message."""
    heads = HeadFile(path.with_name("missing") / "heads", Key.generate(), every=10)
    with AuditFile(path, fsync=False, heads=heads) as file:
        fill(file, 35)
        assert caplog.text.count("head was not signed: FileNotFoundError") == 3
    assert verify_chain(path).records == 35


def test_archived_parts(path: Path) -> None:
    """With its first parts archived a chain goes on under its own name, and verify takes it from a signed head."""
    key = Key.generate()
    places = path.with_name("heads")
    with AuditFile(
        path, fsync=False, max_bytes=MIN_BYTES, heads=HeadFile(places, key)
    ) as file:
        for number in range(400):
            file.write(big(number))
    archived = rotated(path)[0]
    archived.rename(path.with_name("archive"))
    with AuditFile(
        path, fsync=False, max_bytes=MIN_BYTES, heads=HeadFile(places, key)
    ) as file:
        fill(file, 10)
    heads = read_heads(places)
    kept = verify_chain(parts(path), heads, continued=True)
    assert (kept.intact, kept.anchored, kept.unsigned) == (True, True, 0)
    assert verify_chain(parts(path), heads).what == "removed"
    whole = verify_chain([path.with_name("archive"), *parts(path)], heads)
    assert (whole.intact, whole.anchored, whole.records) == (True, True, 410)


def test_parts_are_added_once(path: Path) -> None:
    """Rotated parts are put before their file, unless they were given."""
    first, second = (
        path.with_name(f"{path.name}.000001"),
        path.with_name(f"{path.name}.000002"),
    )
    for part in (
        path,
        first,
        second,
        path.with_name(f"{path.name}.gz"),
        path.with_name(f"{path.name}.heads"),
    ):
        part.touch()
    assert with_parts([path]) == [first, second, path]
    assert with_parts([first, second, path]) == [first, second, path]
    assert with_parts([second]) == [second]
