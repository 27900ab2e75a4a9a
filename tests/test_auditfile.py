"""The audit file: durable, one writer, rotation and heads that carry the chain on, and what a crash leaves."""

from __future__ import annotations

import itertools
import logging
import os
from pathlib import Path

import pytest

from mqauth import Cause, ConfigurationError, Key, Unavailable
from mqauth.audit.chain import verify_chain
from mqauth.audit.file import MIN_BYTES, AuditFile, HeadFile, parts, read_heads, rotated, with_parts
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
    with AuditFile(path) as file, AuditFile(path.with_name("loose"), fsync=False) as loose:
        monkeypatch.setattr(os, "fsync", synced.append)
        fill(file, 3)
        fill(loose, 3)
    assert len(synced) == 3


def test_one_writer(path: Path) -> None:
    """A second writer of the same file is refused."""
    with AuditFile(path), pytest.raises(ConfigurationError, match="another process writes"):
        AuditFile(path)


def test_disk_full_defers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that refuses is ``audit_unavailable``; the next record leaves no torn line behind."""
    with AuditFile(path) as file:
        fill(file, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _refuse)
            with pytest.raises(Unavailable) as raised:
                file.write(record(1))
        assert raised.value.cause is Cause.AUDIT_UNAVAILABLE
        file.write(record(2))
    assert verify_chain(path).records == 2
    assert b"id-1" not in path.read_bytes()


def test_closed_file_defers(path: Path) -> None:
    """A closed audit file accepts nothing and raises what the pipeline defers for."""
    file = AuditFile(path)
    file.close()
    file.close()
    with pytest.raises(Unavailable):
        file.write(record())


@pytest.mark.parametrize(
    "raw", [b"text\n", b"[]\n", b"{}\n", b"x" * (65 * 1024), b"no newline", b"\x7fELF\0\0", b"# notes"]
)
def test_foreign_file_is_refused_and_left_alone(path: Path, raw: bytes) -> None:
    """A file that is no audit log is not appended to, and without a newline not taken for a torn one and cut."""
    path.write_bytes(raw)
    with pytest.raises(
        ConfigurationError, match="audit" if b"\n" in raw or len(raw) > 65_000 else "no audit file"
    ):
        AuditFile(path)
    assert path.read_bytes() == raw


def test_unreachable_folder(tmp_path: Path) -> None:
    """A folder that is not there is a configuration error."""
    with pytest.raises(ConfigurationError, match="No such file"):
        AuditFile(tmp_path / "missing" / "audit.jsonl")


def test_process_id_in_the_name(tmp_path: Path) -> None:
    """One pattern serves several processes: each writes a file of its own."""
    with AuditFile(tmp_path / "audit-{pid}.jsonl") as file:
        assert file.path.name == f"audit-{os.getpid()}.jsonl"


def big(number: int) -> AuditRecord:
    """Return a record of about half a kilobyte."""
    return record(number, "x" * 250)


@pytest.mark.parametrize("name", ["audit.jsonl", "audit[1].jsonl", "audit*.jsonl", "audit?.jsonl"])
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


def test_rotation_that_fails_defers(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file cannot be renamed the message is deferred, and nothing is lost."""
    with AuditFile(path, fsync=False, max_bytes=MIN_BYTES) as file:
        for number in range(200):
            if file.path.stat().st_size >= MIN_BYTES:
                break
            file.write(big(number))
        with monkeypatch.context() as patch:
            patch.setattr(os, "rename", _refuse)
            with pytest.raises(Unavailable, match="was not written"):
                file.write(record())
        file.write(record())
    assert verify_chain([*rotated(path), path]).intact


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


def test_partial_write_leaves_no_torn_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fills up in the middle of a record: nothing of it stays, and the next one follows the last."""
    with AuditFile(path, fsync=False) as file:
        fill(file, 1)
        before = path.read_bytes()
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", Disk(room=100).write)
            with pytest.raises(Unavailable):
                file.write(record(1))
        assert path.read_bytes() == before
        file.write(record(2))
    assert (verify_chain(path).intact, verify_chain(path).records) == (True, 2)


def test_torn_line_that_could_not_be_cut_is_cut_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_forked_process_does_not_write(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A child that inherited the file defers: two writers of one chain would overwrite each other's records."""
    with AuditFile(path) as file:
        fill(file, 1)
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(Unavailable, match="fork"):
                file.write(record(1))
    assert verify_chain(path).records == 1


def test_forked_process_signs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
        together(lambda start: [file.write(big(start + n)) for n in range(100)], range(0, 800, 100))
    report = verify_chain([*rotated(path), path])
    assert (report.intact, report.records) == (True, 800)


def test_deleted_file_is_begun_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Records do not go into a file that nobody can find any more; the gap is found by the chain."""
    with AuditFile(path, fsync=False) as file:
        fill(file, 2)
        path.unlink()
        fill(file, 2)
    assert "moved or deleted" in caplog.text
    report = verify_chain(path)
    assert (report.intact, report.what, report.first_bad) == (False, "removed", 1)


def test_moved_file_goes_on_in_a_new_one(path: Path) -> None:
    """A file moved away by another program, as logrotate does, is the first part of an unbroken chain."""
    with AuditFile(path, fsync=False) as file:
        fill(file, 2)
        path.rename(path.with_name("moved"))
        fill(file, 2)
    report = verify_chain([path.with_name("moved"), path])
    assert (report.intact, report.records) == (True, 4)


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


def test_truncated_file_gets_no_hole(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file somebody emptied while it was written goes on without a hole, loudly; the chain shows the gap."""
    with AuditFile(path, fsync=False) as file:
        fill(file, 3)
        os.truncate(path, 0)
        fill(file, 1)
    assert "somebody else changed this file" in caplog.text
    assert b"\0" not in path.read_bytes()
    assert verify_chain(path).what == "removed"


def test_foreign_lines_are_kept_as_evidence(path: Path) -> None:
    """A line somebody appended while the file was open is not cut off with a torn one: verify names it."""
    with AuditFile(path, fsync=False) as file:
        fill(file, 1)
        with path.open("ab") as other:
            other.write(b'{"reason":"none"}\n')
        fill(file, 1)
    report = verify_chain(path)
    assert (report.what, report.first_bad) == ("inserted", 2)


def test_interrupted_rotation_is_finished(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file renamed whose successor could not be opened is followed by one at the next record."""
    with AuditFile(path, fsync=False, max_bytes=MIN_BYTES) as file:
        while path.stat().st_size < MIN_BYTES:
            file.write(big(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "open", _refuse)
            with pytest.raises(Unavailable, match="cannot be begun"):
                file.write(record())
        assert not path.exists()
        fill(file, 2)
    assert verify_chain(parts(path)).intact
    assert len(rotated(path)) == 1


@pytest.mark.parametrize("tail", [b"{", b'{"v":1', b'{"v":1,"id":"torn', b"\0" * 100])
def test_every_torn_tail_is_recovered(path: Path, tail: bytes, caplog: pytest.LogCaptureFixture) -> None:
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
    heads = HeadFile(path.with_name("heads"), Key.generate(), every=1000, seconds=60, clock=clock)
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
    with AuditFile(path, fsync=False, heads=HeadFile(path.with_name("heads"), key)) as file:
        fill(file, 10)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    with AuditFile(path, fsync=False, heads=HeadFile(path.with_name("heads"), key)) as file:
        fill(file, 5)
    assert "some are gone" in caplog.text
    report = verify_chain(path, read_heads(path.with_name("heads")))
    assert (report.intact, report.what) == (False, "recomputed")


def test_failing_head_file_is_tried_once_an_interval(path: Path, caplog: pytest.LogCaptureFixture) -> None:
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
    with AuditFile(path, fsync=False, max_bytes=MIN_BYTES, heads=HeadFile(places, key)) as file:
        for number in range(400):
            file.write(big(number))
    archived = rotated(path)[0]
    archived.rename(path.with_name("archive"))
    with AuditFile(path, fsync=False, max_bytes=MIN_BYTES, heads=HeadFile(places, key)) as file:
        fill(file, 10)
    heads = read_heads(places)
    kept = verify_chain(parts(path), heads, continued=True)
    assert (kept.intact, kept.anchored, kept.unsigned) == (True, True, 0)
    assert verify_chain(parts(path), heads).what == "removed"
    whole = verify_chain([path.with_name("archive"), *parts(path)], heads)
    assert (whole.intact, whole.anchored, whole.records) == (True, True, 410)


def test_parts_are_added_once(path: Path) -> None:
    """Rotated parts are put before their file, unless they were given."""
    first, second = path.with_name(f"{path.name}.000001"), path.with_name(f"{path.name}.000002")
    for part in (path, first, second, path.with_name(f"{path.name}.gz"), path.with_name(f"{path.name}.heads")):
        part.touch()
    assert with_parts([path]) == [first, second, path]
    assert with_parts([first, second, path]) == [first, second, path]
    assert with_parts([second]) == [second]
