"""The audit file: durable, one writer, rotation and heads that carry the chain on, and what a crash leaves."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mqauth.audit import AuditRecord
from mqauth.auditchain import verify_chain
from mqauth.auditfile import MIN_BYTES, AuditFile, rotated
from mqauth.audithead import HeadFile, read_heads
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.keys import Key


def record(number: int = 0, detail: str = "why") -> AuditRecord:
    """Return a record of a rejection."""
    return AuditRecord(
        id=f"id-{number}", time=1_900_000_000.0 + number, verdict="rejected", reason="replayed", detail=detail,
        scope="billing", broker={}, token={}, body_sha256=None, body_size=None, key_set=None, policy=None,
        dead_letter=None, instance="me",
    )  # fmt: skip


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


def test_reopened_chain_goes_on(path: Path) -> None:
    """A writer that starts again continues the chain."""
    for _ in range(3):
        with AuditFile(path) as file:
            fill(file, 2)
    assert verify_chain(path).records == 6


def test_one_writer(path: Path) -> None:
    """A second writer of the same file is refused."""
    with AuditFile(path), pytest.raises(ConfigurationError, match="another process writes"):
        AuditFile(path)


def test_torn_line_is_cut(path: Path) -> None:
    """A line a crash tore is cut off at the next start, and the chain holds."""
    with AuditFile(path) as file:
        fill(file, 2)
    with path.open("ab") as raw:
        raw.write(b'{"v":1,"id":"to')
    with AuditFile(path) as file:
        fill(file, 1)
    assert (verify_chain(path).intact, verify_chain(path).records) == (True, 3)


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


@pytest.mark.parametrize("raw", [b"text\n", b"[]\n", b"{}\n", b"x" * (65 * 1024)])
def test_foreign_file_is_refused(path: Path, raw: bytes) -> None:
    """A file that is no audit log is not appended to."""
    path.write_bytes(raw)
    with pytest.raises(ConfigurationError, match="audit"):
        AuditFile(path)


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


def test_rotation_carries_the_chain(path: Path) -> None:
    """A file that is full is renamed, and all parts in order are one unbroken chain."""
    with AuditFile(path, fsync=False, max_bytes=MIN_BYTES) as file:
        for number in range(400):
            file.write(big(number))
    parts = [*rotated(path), path]
    assert len(parts) == 4
    assert verify_chain(parts).records == 400
    assert max(part.stat().st_size for part in parts) < MIN_BYTES + 1024


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
            with pytest.raises(Unavailable, match="cannot be rotated"):
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
    assert places == [*range(10, 91, 10), 95, *range(105, 186, 10), 190]
    report = verify_chain([*rotated(path), path], found)
    assert (report.intact, report.anchored) == (True, True)


def test_head_that_cannot_be_signed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A head file out of reach is loud and stops no message."""
    heads = HeadFile(path.with_name("missing") / "heads", Key.generate(), every=1)
    with AuditFile(path, heads=heads) as file:
        fill(file, 1)
    assert "head was not signed: FileNotFoundError" in caplog.text
    assert verify_chain(path).records == 1


def test_nothing_new_is_not_signed_again(path: Path) -> None:
    """A writer that wrote nothing signs nothing."""
    heads = HeadFile(path.with_name("heads"), Key.generate())
    with AuditFile(path, heads=heads):
        pass
    assert not path.with_name("heads").exists()


def _refuse(*_arguments: object) -> None:
    raise OSError(28, "No space left on device")
