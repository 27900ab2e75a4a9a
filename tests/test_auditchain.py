"""The audit chain: what was done to a log is found and named, and signed heads find the rest."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mqauth import ConfigurationError, Key, KeySet
from mqauth.audit.chain import GENESIS, ChainReport, Head, chain_hash, verify_chain
from mqauth.audit.file import HeadFile, read_heads
from tests.conftest import audit_record

RECORDS = 40


def lines(count: int = RECORDS, previous: str = GENESIS) -> list[bytes]:
    """Return the lines of an honest log."""
    found = []
    for number in range(count):
        members = audit_record(number, time=1_900_000_000.0 + number).as_dict() | {
            "prev": previous
        }
        previous = chain_hash(previous, members)
        found.append(_line(members, previous))
    return found


def _line(members: dict[str, object], own: str) -> bytes:
    return (
        json.dumps(
            {**members, "hash": own}, separators=(",", ":"), ensure_ascii=False
        ).encode()
        + b"\n"
    )


def recomputed(log: list[bytes]) -> list[bytes]:
    """Return a log whose whole chain an editor computed anew."""
    previous, found = GENESIS, []
    for raw in log:
        members = json.loads(raw)
        del members["hash"]
        members["prev"] = previous
        previous = chain_hash(previous, members)
        found.append(_line(members, previous))
    return found


def read(path: Path, log: list[bytes], heads: list[Head] | None = None) -> ChainReport:
    """Write a log and read it."""
    path.write_bytes(b"".join(log))
    return verify_chain(path, heads)


def heads_of(log: list[bytes], *places: int) -> list[Head]:
    """Return the heads an honest writer would have signed after so many records."""
    hashes = [str(json.loads(raw)["hash"]) for raw in log]
    return [
        Head(chain=hashes[0], records=place, hash=hashes[place - 1]) for place in places
    ]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file to write logs to."""
    return tmp_path / "audit.jsonl"


TORN = b'{"v":1,"id'


@pytest.mark.parametrize(
    ("log", "heads", "told"),
    [
        pytest.param(lines(), None, {"intact": True, "anchored": False, "records": RECORDS},
                     id="an honest log is unbroken; without heads it is not anchored"),
        pytest.param(lines()[1:], None, {"what": "removed", "first_bad": 1},
                     id="a log that does not begin at the beginning has lost records"),
        pytest.param([*lines(3), TORN], None, {"intact": True, "records": 3, "what": "the last line is torn"},
                     id="a last line that a crash tore is noted and is no tampering"),
        pytest.param(lines(), heads_of(lines(), 10, RECORDS), {"intact": True, "anchored": True},
                     id="heads that agree anchor the log"),
        pytest.param(lines()[:30], heads_of(lines(), 20, RECORDS),
                     {"intact": False, "what": "truncated", "first_bad": 31},
                     id="a log cut before its last head is truncated"),
        pytest.param([], heads_of(lines(), RECORDS), {"intact": False},
                     id="a log of which everything is gone does not satisfy its heads"),
        pytest.param([], [], {"anchored": False}, id="an empty log is not anchored"),
        pytest.param(lines(), [], {"intact": True, "anchored": False, "unsigned": RECORDS},
                     id="heads that say nothing of a log leave it unanchored"),
        pytest.param(lines(), heads_of(lines(), 10, 30),
                     {"intact": True, "anchored": True, "unsigned": RECORDS - 30},
                     id="an anchored log says how many of its records no head covers yet"),
        pytest.param(recomputed([line.replace(b'"why"', b'"b"') for line in lines()]), heads_of(lines(), 10),
                     {"what": "recomputed"},
                     id="a log replaced by another whole chain is found by the heads of the one that was there"),
    ],
)  # fmt: skip
def test_what_is_said_of_a_log(
    path: Path, log: list[bytes], heads: Any, told: dict[str, Any]
) -> None:
    """What became of a log is called by its name, at its line."""
    report = read(path, log, heads)
    assert {name: getattr(report, name) for name in told} == told


@pytest.mark.parametrize(
    ("files", "told"),
    [
        pytest.param([b"".join(lines(4)[:2])[:-1], b"".join(lines(4)[2:])],
                     {"intact": False, "what": "edited", "first_bad": 2},
                     id="only the very last line can be torn: a log that goes on behind one was edited"),
        pytest.param([b"".join(lines(4)[:2]) + TORN, b"".join(lines(4)[2:])],
                     {"intact": False, "what": "edited", "first_bad": 3},
                     id="a torn line whose chain goes on in the next file was edited"),
        pytest.param([b"".join(lines(3)) + TORN, b'{"v":1', b"".join(lines(4))],
                     {"intact": True, "records": 7, "what": "the last line is torn"},
                     id="a torn line is no tampering where another writer's file follows"),
        pytest.param([b"".join(lines()[:10]), b"".join(lines()[10:])], {"records": RECORDS},
                     id="files of a rotated log are read as one chain"),
        pytest.param([b"".join(lines()[10:]), b"".join(lines()[:10])], {"what": "reordered"},
                     id="the wrong order of rotated files is found"),
        pytest.param([b"".join(lines(5))] * 2, {"intact": True},
                     id="another writer's chain begins anew at the start of its own file"),
        pytest.param([b"".join(lines(5)) * 2], {"intact": False}, id="and nowhere else"),
    ],
)  # fmt: skip
def test_what_is_said_of_several_files(
    tmp_path: Path, files: list[bytes], told: dict[str, Any]
) -> None:
    """Files are one log, or those of several writers."""
    paths = [tmp_path / str(number) for number in range(len(files))]
    for path, content in zip(paths, files, strict=True):
        path.write_bytes(content)
    report = verify_chain(paths)
    assert {name: getattr(report, name) for name in told} == told


@pytest.mark.parametrize("seed", range(50))
@pytest.mark.parametrize("deed", ["edited", "removed", "inserted", "reordered"])
def test_each_deed_is_named(path: Path, deed: str, seed: int) -> None:
    """What was done to a random line is found there and called by its name."""
    pick = random.Random(seed)
    log = lines()
    at = pick.randrange(1, RECORDS - 2)
    if deed == "edited":
        line = bytearray(log[at])
        line[pick.randrange(len(line) - 1)] ^= pick.randrange(1, 256)
        log[at] = bytes(line) if seed % 2 else log[at].replace(b'"v":1', b'"v": 1')
    elif deed == "removed":
        del log[at]
    elif deed == "inserted":
        log.insert(
            at, log[pick.randrange(RECORDS)] if seed % 2 else b'{"reason":"none"}\n'
        )
    else:
        other = pick.randrange(at + 1, RECORDS - 1)
        log[at], log[other] = log[other], log[at]
    report = read(path, log)
    assert (report.intact, report.what) == (False, deed)
    assert report.first_bad == at + 1 or (
        deed == "inserted" and report.first_bad == at + 2
    )


def test_inserted_with_its_own_hash(path: Path) -> None:
    """A forged record that continues the chain correctly is named at its own line."""
    log = lines()
    before = json.loads(log[9])["hash"]
    members = {**json.loads(log[3]), "prev": before}
    del members["hash"]
    log.insert(10, _line(members, chain_hash(before, members)))
    report = read(path, log)
    assert (report.what, report.first_bad) == ("inserted", 11)


def test_progress(path: Path) -> None:
    """Progress adds up to the bytes of the file."""
    path.write_bytes(b"".join(lines()))
    sizes: list[int] = []
    verify_chain(path, progress=sizes.append)
    assert sum(sizes) == path.stat().st_size


def test_missing_file(path: Path) -> None:
    """A file that is not there is a configuration error, not an intact log."""
    with pytest.raises(ConfigurationError, match="No such file"):
        verify_chain(path)


def test_heads_of_another_key_are_refused(tmp_path: Path) -> None:
    """Heads signed by another key than the first line's, or the pinned one, are refused."""
    path = tmp_path / "heads"
    HeadFile(path, Key.generate()).append(heads_of(lines(), 10)[0])
    with pytest.raises(ConfigurationError, match="line 1"):
        read_heads(path, KeySet([Key.generate()]))
    HeadFile(path, Key.generate()).append(heads_of(lines(), 20)[0])
    with pytest.raises(ConfigurationError, match="line 2"):
        read_heads(path)


@pytest.mark.parametrize(
    "raw", [b"{}\n", b"[]\n", b"\xff\n", b'{"head":"a.b.c","jwk":{}}\n']
)
def test_head_file_of_garbage(tmp_path: Path, raw: bytes) -> None:
    """A line that is no head is one clear error."""
    (tmp_path / "heads").write_bytes(raw)
    with pytest.raises(ConfigurationError, match="line 1 is no head"):
        read_heads(tmp_path / "heads")


def test_head_interval_is_positive(tmp_path: Path) -> None:
    """An interval of nothing is refused."""
    with pytest.raises(ConfigurationError):
        HeadFile(tmp_path / "heads", Key.generate(), every=0)


def test_two_heads_of_one_place_that_disagree(path: Path) -> None:
    """A tail cut and written anew, and signed anew by the honest writer, is found: the older head still stands."""
    log = lines()
    forged = recomputed(
        [*log[:10], *(line.replace(b'"why"', b'"not"') for line in log[10:])]
    )
    for heads in (
        [*heads_of(log, 20), *heads_of(forged, 20)],
        [*heads_of(forged, 20), *heads_of(log, 20)],
    ):
        report = read(path, forged, heads)
        assert (report.intact, report.what, report.first_bad) == (False, "recomputed", 20)


def test_chain_without_a_head_is_not_anchored_by_anothers(tmp_path: Path) -> None:
    """Of two writers, heads of one do not anchor the other."""
    first, second = tmp_path / "a", tmp_path / "b"
    log = lines(5)
    first.write_bytes(b"".join(log))
    second.write_bytes(
        b"".join(recomputed([line.replace(b'"why"', b'"b"') for line in lines(6)]))
    )
    report = verify_chain([first, second], heads_of(log, 5))
    assert (report.intact, report.anchored, report.unsigned) == (True, False, 6)


def test_resumed_at_a_head(path: Path) -> None:
    """Where older files are archived, a log begins behind a signed head; elsewhere its records are missed."""
    log = lines()
    heads = heads_of(log, 10, 20, RECORDS)
    path.write_bytes(b"".join(log[20:]))
    assert verify_chain(path, heads, continued=True).anchored
    assert verify_chain(path, heads).what == "removed"
    path.write_bytes(b"".join(log[21:]))
    assert verify_chain(path, heads, continued=True).what == "removed"
    path.write_bytes(b"".join(log[20:30]))
    assert verify_chain(path, heads, continued=True).what == "truncated"


def test_no_key_is_not_any_key(tmp_path: Path) -> None:
    """An empty set of pinned keys lets no head pass; it is not the same as none pinned."""
    HeadFile(tmp_path / "heads", Key.generate()).append(heads_of(lines(), 10)[0])
    with pytest.raises(ConfigurationError, match="line 1"):
        read_heads(tmp_path / "heads", KeySet([]))


def test_head_torn_by_a_crash(tmp_path: Path) -> None:
    """A head that a crash tore is passed over, and taken off by the next one."""
    path, heads = tmp_path / "heads", heads_of(lines(), 10, 20)
    file = HeadFile(path, Key.generate())
    file.append(heads[0])
    with path.open("ab") as raw:
        raw.write(b'{"head":"eyJ')
    assert read_heads(path) == heads[:1]
    file.append(heads[1])
    assert read_heads(path) == heads


def test_endless_line_among_heads(tmp_path: Path) -> None:
    """A line of a megabyte among heads is refused, not taken for the torn end: it would hide those behind it."""
    path = tmp_path / "heads"
    path.write_bytes(b"x" * (1024 * 1024) + b"\n")
    HeadFile(path, Key.generate()).append(heads_of(lines(), 10)[0])
    with pytest.raises(ConfigurationError, match="line 1"):
        read_heads(path)


def test_recent_heads_are_this_keys_own(tmp_path: Path) -> None:
    """A writer looks at the last hundred heads and believes those that its own key signed."""
    path, heads = tmp_path / "heads", heads_of(lines(), 10, 20)
    HeadFile(path, Key.generate()).append(heads[0])
    own = HeadFile(path, Key.generate())
    own.append(heads[1])
    with path.open("ab") as raw:
        raw.write(b"nonsense\n")
    assert own.recent() == heads[1:]
    for _ in range(150):
        own.append(heads[1])
    assert len(own.recent()) == 100
