"""``mqauth audit``: what it prints and exits with, for people and for programs."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mqauth import AuditFile, HeadFile, Key, KeySet, cli
from mqauth.audit.record import AuditRecord
from mqauth.cli import forms
from mqauth.wire.jwk import dump_key_set
from tests.conftest import audit_record

START = 1_795_600_800  # 2026-11-25T10:00:00Z
Run = Callable[..., tuple[int, str, str]]


def record(
    number: int,
    *,
    reason: str | None = "signature_invalid",
    kid: str = "k1",
    **changes: Any,
) -> AuditRecord:
    """Return the record of a verdict, a minute after the one before."""
    said = {
        "kid": kid,
        "alg": "EdDSA",
        "iss": "https://auth.example",
        "sub": "orders-api",
        "jti": f"jti-{number}",
    }
    wanted: dict[str, Any] = {
        "time": START + 60.0 * number, "reason": reason, "verdict": "accepted" if reason is None else "rejected",
        "broker": {"destination": "kafka:orders"}, "dead_letter": f"dead-{number}",
        "token": {"verified" if reason is None else "claimed": said, "thumbprint": None},
    }  # fmt: skip
    return audit_record(number, **(wanted | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A log of ten rejections, then ten accepted messages under another key, with signed heads beside it."""
    path, key = tmp_path / "audit.jsonl", Key.generate()
    (tmp_path / "jwks.json").write_text(json.dumps(dump_key_set(KeySet([key]))))
    with AuditFile(path, fsync=False, heads=HeadFile(tmp_path / "heads", key)) as file:
        for number in range(20):
            file.write(
                record(number) if number < 10 else record(number, reason=None, kid="k2")
            )
    return path


@pytest.fixture
def run(capfdbinary: Any) -> Run:
    """Run the command; return its exit code, output and errors."""

    def ran(*arguments: object) -> tuple[int, str, str]:
        code = cli.main(["audit", *map(str, arguments)])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return ran


def test_verify_without_heads_is_never_intact(path: Path, run: Run) -> None:
    """An unbroken log that nothing is held against is ``unanchored``: exit 0, and no word of intact for people."""
    code, out, _ = run("verify", path)
    assert (code, out) == (
        0,
        "unanchored: unbroken, but no signed heads to compare it with; 20 records\n",
    )


def test_verify_names_line_and_deed(path: Path, run: Run) -> None:
    """A broken log: exit 1, the first bad line and what was done to it."""
    path.write_bytes(path.read_bytes().replace(b'"id-7"', b'"id-9"'))
    code, out, _ = run("verify", path)
    assert (code, out) == (
        1,
        f"BROKEN: line 8 of {path}: edited; 7 records before it hold\n",
    )
    code, out, _ = run("verify", path, "--json")
    assert (code, json.loads(out)) == (
        1, {"intact": False, "anchored": False, "records": 7, "first_bad": 8, "what": "edited"}
    )  # fmt: skip


def test_tail_says_what_a_reviewer_did(tmp_path: Path, run: Run) -> None:
    """A dead letter that was discarded is told from the rejection that made it."""
    path = tmp_path / "reviewer.jsonl"
    told = record(1).as_dict() | {
        "verdict": "discarded",
        "reason": "expired",
        "review": {"reviewer": "ada"},
    }
    path.write_text(json.dumps(told) + "\n")
    assert run("tail", path)[1].split()[1:3] == ["discarded", "expired"]


def test_tail_of_standard_input(
    path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What ``tail -F`` gives is shown as it comes; a broken line is passed over."""
    raw = path.read_bytes().splitlines(keepends=True)
    piped = io.TextIOWrapper(
        io.BytesIO(b"".join([raw[0], b"nonsense\n", raw[1], b'{"id":']))
    )
    monkeypatch.setattr(sys, "stdin", piped)
    code, out, err = run("tail", "-", "--json")
    assert [json.loads(line)["id"] for line in out.splitlines()] == ["id-0", "id-1"]
    assert (code, err) == (0, "")


def test_show(path: Path, run: Run) -> None:
    """One record whole, by its own id or its dead letter's; exit 1 where there is none."""
    assert json.loads(run("show", "id-3", path)[1])["id"] == "id-3"
    assert json.loads(run("show", "dead-3", path)[1])["id"] == "id-3"
    assert run("show", "id-99", path) == (
        1,
        "",
        "mqauth: id id-99: there is none that begins so\n",
    )


@pytest.mark.parametrize(
    ("options", "count"),
    [
        (["--kid", "k1"], 10), (["--kid", "k1", "--verified"], 0), (["--kid", "k2", "--verified"], 10),
        (["--subject", "orders-api"], 20), (["--jti", "jti-4"], 1),
        (["--kid", "k2", "--from", "2026-11-25T10:15:00Z"], 5),
        (["--kid", "k2", "--from", "2026-11-25T10:15:00Z", "--to", "2026-11-25T10:17:00Z"], 2),
    ],
)  # fmt: skip
def test_trace(path: Path, run: Run, options: list[str], count: int) -> None:
    """What a key signed or a producer sent, within times; claimed and verified are told apart."""
    code, out, _ = run("trace", path, *options)
    assert (code, len(out.splitlines())) == (0 if count else 1, count)
    assert ("claimed orders-api" in out) is ("k1" in out)


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output as a terminal of 80 columns."""
    monkeypatch.setattr(forms, "terminal_width", lambda: 80)


def test_stats_are_drawn(path: Path, run: Run, terminal: None) -> None:
    """For people each value has a bar in proportion."""
    with AuditFile(path, fsync=False) as file:
        for number in range(20, 30):
            file.write(record(number, kid="k1"))
    lines = run("stats", path, "--by", "kid")[1].splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["k1", "20", "#" * 30],
        ["k2", "10", "#" * 15],
    ]


def test_stats_by_time_are_in_their_order(path: Path, run: Run) -> None:
    """Hours stand in the order of time, each with its records."""
    with AuditFile(path, fsync=False) as file:
        file.write(record(20, time=START + 3 * 3600.0))
    _, *lines = run("stats", path, "--by", "time")[1].splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["2026-11-25T10", "20"],
        ["2026-11-25T13", "1"],
    ]


def test_stats_of_hostile_times_and_names(
    tmp_path: Path, run: Run, terminal: None
) -> None:
    """Records an editor gave odd times and names are counted, in lines that do nothing to a terminal."""
    path = tmp_path / "audit.jsonl"
    rows: list[dict[str, Any]] = [
        {
            "time": "soon",
            "alert": "text",
            "token": {"verified": {"kid": "\x1b[2J" + "k" * 500}},
        },
        {"time": None, "broker": 5, "token": {"claimed": {"kid": "\u202e"}}},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for by in ("time", "kid", "alert", "destination"):
        code, out, _ = run("stats", path, "--by", by)
        assert (code, "\x1b" in out, "\u202e" in out) == (0, False, False)
        assert max((len(line) for line in out.splitlines()), default=0) <= 80
    code, out, _ = run("tail", path)
    assert (code, out.count("\n"), "\x1b" in out, "\u202e" in out) == (0, 2, False, False)


def test_detect(path: Path, run: Run) -> None:
    """Detectors run over an old log: 1 and the alerts where there are any, 0 where not."""
    assert run("detect", path) == (0, "", "")
    with AuditFile(path, fsync=False) as file:
        file.write(record(20, reason="key_revoked"))
    code, out, _ = run("detect", path)
    assert (code, "resurrected_key 1 times claimed iss" in out) == (1, True)
    found = json.loads(run("detect", path, "--json")[1])
    assert (found["kind"], found["verified"], found["about"]["kid"]) == (
        "resurrected_key",
        False,
        "k1",
    )


def test_alerts_and_floods_in_a_tail(path: Path, run: Run) -> None:
    """Alerts say what they are about, records of a flood their number, in one line each."""
    alert = {"kind": "burst", "about": {"kid": "k1"}, "count": 100, "verified": False}
    with AuditFile(path, fsync=False) as file:
        file.write(
            record(
                20,
                reason=None,
                verdict="alert",
                detail="burst, 100 times",
                token={},
                extra={"alert": alert},
            )
        )
        file.write(record(21, detail=None, token={}, broker={}, extra={"flood": 101}))
        file.write(record(22, token={"claimed": {}, "thumbprint": None}))
    first, second, third = run("tail", path, "-n", 3)[1].splitlines()
    assert first.endswith("ALERT burst, 100 times claimed kid k1")
    assert second.endswith("signature_invalid no. 101 of a flood")
    assert "no token" in third


def test_demo_leaves_a_log_to_try_it_on(tmp_path: Path, run: Run) -> None:
    """``demo --audit-file`` leaves log and heads that verify, also where it is run again."""
    path = tmp_path / "demo.jsonl"
    for _ in range(2):
        assert cli.main(["demo", "--audit-file", str(path), "--messages", "2"]) == 0
    code, out, _ = run("verify", path, "--heads", f"{path}.heads")
    assert (code, "intact;" in out.splitlines()[-1]) == (0, True)
    assert Path(f"{path}.pem").stat().st_mode & 0o777 == 0o600
