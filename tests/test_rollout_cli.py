"""``mqauth rollout``: the report, each thing that speaks against going up, and changes of the file."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mqauth.audit.file import AuditFile
from mqauth.audit.record import AuditRecord, iso_time
from mqauth.cli import rollout as cli
from mqauth.cli.app import run
from tests.conftest import audit_record

NOW = datetime(2026, 12, 10, 12, tzinfo=UTC).timestamp()
FILE = """\
# who may do what
[consumer]
audience = "billing"
issuers = [{ issuer = "https://auth.example", file = "jwks.json" }]
allow = [{ subject = "orders-api", destinations = ["kafka:orders"] }]

[audit]
file = "audit.jsonl"

[[rollout]]  # the orders
destinations = ["PLACE"]
rung = "observe"        # for now
since = 2026-11-26
until = 2027-01-31
owner = "orders-team"   # ask them

# the end
[check]
consumers = 1
"""


def observed(time: float, **changes: Any) -> AuditRecord:
    """Return the record of a minute."""
    place = changes.pop("place", "kafka:orders")
    facts = {"seconds": 60.0, "rules": "r1", "rungs": {place: "observe"}, "accepted": {place: 100},
             "unsigned": {}, "lost": {}, "signed": {}, "oldest": {}, "groups": [],
             "other": 0} | changes  # fmt: skip
    return audit_record(
        id="01936b7e-0000-7000-8000-000000000000", time=time, verdict="observed", reason=None, detail=None,
        instance="one", extra={"observed": facts},
    )  # fmt: skip


GROUP = {"id": "x", "code": "token_missing", "destination": "kafka:orders", "app": "crm-export", "partition": 2,
         "count": 790, "first": "2026-12-09T02:00:00.000Z", "last": "2026-12-09T02:04:00.000Z"}  # fmt: skip


class Place:
    """A folder with a configuration and an audit file."""

    def __init__(
        self,
        path: Path,
        capsys: pytest.CaptureFixture[str],
        destination: str = "kafka:orders",
    ) -> None:
        self.path = path
        self.file = path / "mqauth.toml"
        self.file.write_text(FILE.replace("PLACE", destination), "utf-8")
        self._capsys = capsys

    def records(self, *records: AuditRecord) -> None:
        """Write the audit file."""
        with AuditFile(self.path / "audit.jsonl", fsync=False) as audit:
            for record in records:
                audit.write(record)

    def run(self, *arguments: str) -> tuple[int, str]:
        """Run the command; return its exit code and what it printed."""
        self._capsys.readouterr()
        code = run(["rollout", *arguments, "--config", str(self.file)])
        printed = self._capsys.readouterr()
        return code, printed.out + printed.err

    def against(self) -> list[str]:
        """Return what speaks against going up."""
        code, printed = self.run("status", "--json")
        (found,) = json.loads(printed)
        assert (code == 0) == found["safe"] == (not found["against"])
        against: list[str] = found["against"]
        return against


@pytest.fixture
def place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Place:
    """A place at a time that stands still."""
    monkeypatch.setattr(cli, "_now", lambda: NOW)
    return Place(tmp_path, capsys)


def test_how_often_an_end_was_moved_is_told(place: Place) -> None:
    """Each end that a start named for the entry's destinations counts; those of others do not."""

    def start(until: str, destination: str = "kafka:orders") -> AuditRecord:
        rungs = [{"destinations": [destination], "rung": "observe", "until": until}]
        return replace(
            observed(NOW - 60), verdict="rollout", extra={"rollout": {"rungs": rungs}}
        )

    ends = ["2026-12-31", "2026-12-31", "2027-01-31"]
    place.records(
        observed(NOW - 60), *map(start, ends), start("2027-03-31", "kafka:stock")
    )
    (found,) = json.loads(place.run("status", "--json")[1])
    assert found["moved"] == 1


@pytest.mark.parametrize(
    ("records", "said"),
    [
        ([observed(NOW - 4000)], "0 of 1 consumers"),
        ([observed(NOW - 60, groups=[GROUP])], "1 groups"),
        ([observed(NOW - 60, other=3)], "3 messages in no group"),
        ([observed(NOW - 60, accepted={})], "no accepted message of kafka:orders"),
        (
            [observed(NOW - 600, rules="r0"), observed(NOW - 60)],
            "rules, issuers or settings changed",
        ),
        (
            [observed(NOW - 600, rungs={"kafka:orders": "off"}), observed(NOW - 60)],
            "mixed: observe and off",
        ),
    ],
)
def test_each_thing_that_speaks_against_it(
    records: list[AuditRecord], said: str, place: Place
) -> None:
    """One alone makes it no."""
    place.records(*records)
    (found,) = place.against()
    assert found.startswith(said)


def test_up_is_refused_where_it_is_not_safe(place: Place) -> None:
    """Exit code 1, with the groups; ``--force`` with a reason does it all the same, and keeps the reason."""
    place.records(observed(NOW - 60, groups=[GROUP]))
    before = place.file.read_text("utf-8")
    arguments = ("up", "kafka:orders", "--yes")
    code, printed = place.run(*arguments)
    assert (code, place.file.read_text("utf-8")) == (1, before)
    assert "crm-export" in printed
    assert place.run(*arguments, "--force")[0] == 2
    assert place.run(*arguments, "--force", "--why", "kept dirty on purpose")[0] == 0
    assert "kept dirty on purpose" in place.file.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("up", "kafka:stock"), "kafka:stock is in no entry below enforce"),
        (
            ("down", "kafka:stock", "--why", "x", "--until", "2026-12-20"),
            "kafka:stock is in no [[rollout]]",
        ),
        (
            ("down", "kafka:orders", "--why", "x", "--until", "soon"),
            "--until is a date like 2027-01-31",
        ),
        (
            ("down", "kafka:orders", "--why", "x", "--until", "2027-12-20", "--yes"),
            "until: must be 1 to 90 days",
        ),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: tuple[str, ...], said: str, place: Place
) -> None:
    """Exit code 2, and the file stays as it was."""
    place.records(observed(NOW - 60))
    before = place.file.read_text("utf-8")
    code, printed = place.run(*arguments)
    assert (code, place.file.read_text("utf-8")) == (2, before)
    assert said in printed


def test_producers_that_signed_nothing_are_listed(place: Place) -> None:
    """A rule lets them publish there; it is not held against going up. Who signed elsewhere only is listed."""
    rules = [("orders-api", "kafka:orders"), ("web-shop", "kafka:#"), ("till-7", "kafka:orders"),
             ("stock-api", "kafka:stock")]  # fmt: skip
    allow = ", ".join(
        f'{{ subject = "{who}", destinations = ["{where}"] }}' for who, where in rules
    )
    text = place.file.read_text("utf-8")
    head, _, tail = text.partition("allow = [")
    place.file.write_text(
        f"{head}allow = [{allow}]{tail.partition(']')[2].partition(']')[2]}", "utf-8"
    )
    signed = {"kafka:orders": {"https://auth.example": {"orders-api": 100}},
              "kafka:stock": {"https://auth.example": {"till-7": 3}}}  # fmt: skip
    place.records(observed(NOW - 60, signed=signed))
    code, printed = place.run("status")
    assert code == 0, printed
    assert "signed nothing: web-shop, till-7\n" in printed
    (found,) = json.loads(place.run("status", "--json")[1])
    assert found["never_signed"] == ["web-shop", "till-7"]


def test_a_group_without_times_spoils_no_other(place: Place) -> None:
    """A record that lacks a group's times leaves those that other records say."""
    untimed = {name: GROUP[name] for name in GROUP if name not in ("first", "last")}
    place.records(
        observed(NOW - 120, groups=[untimed]), observed(NOW - 60, groups=[GROUP])
    )
    (standing,) = json.loads(place.run("status", "--json")[1])
    (group,) = standing["groups"]
    assert (group["first"], group["last"]) == (GROUP["first"], GROUP["last"])


@pytest.mark.parametrize("given", [io.StringIO(""), None])
def test_nobody_can_be_asked(
    given: io.StringIO | None, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without ``--yes`` and an answer on standard input nothing is written, and one line says what to give."""
    monkeypatch.setattr("sys.stdin", given)
    code, printed = place.run(
        "down", "kafka:orders", "--why", "x", "--until", "2026-12-20"
    )
    assert code == 2
    assert printed.endswith(
        "mqauth: --yes: required where nobody can be asked (or look with --print)\n"
    )
    assert 'rung = "observe"' in place.file.read_text("utf-8")


def test_the_file_is_replaced_as_a_whole_where_its_link_leads(place: Place) -> None:
    """A write that the disk refuses leaves the old file; a good one keeps the link and the mode."""
    real = place.path / "etc" / "real.toml"
    real.parent.mkdir()
    place.file.rename(real)
    place.file.symlink_to(real)
    real.chmod(0o640)
    before = real.read_bytes(), real.stat().st_ino
    down = ["down", "kafka:orders", "--why", "x", "--until", "2026-12-20", "--yes"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", full_disk)
        code, printed = place.run(*down)
    assert (code, "No space left" in printed) == (2, True)
    assert (real.read_bytes(), real.stat().st_ino) == before

    code, printed = place.run(*down)
    assert code == 0, printed
    assert place.file.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert real.stat().st_ino != before[1]
    assert sorted(path.name for path in real.parent.iterdir()) == ["real.toml"]


def full_disk(_descriptor: int) -> None:
    """Refuse to write, as a full disk does."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_terminal_of_another_alphabet(place: Place) -> None:
    """The file is UTF-8 whatever the locale says."""
    with place.file.open("a", encoding="utf-8") as file:
        file.write("# für Bestellungen")
    down = [
        "rollout",
        "down",
        "kafka:orders",
        "--why",
        "x",
        "--until",
        "2026-12-20",
        "--yes",
    ]
    ended = subprocess.run(
        [sys.executable, "-m", "mqauth", *down, "--config", str(place.file)],
        env={"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert "# für Bestellungen" in place.file.read_text("utf-8")


class TestJson:
    """Every subcommand prints one JSON document with ``--json``."""

    def of(self, place: Place, *arguments: str) -> tuple[int, Any]:
        """Run a command; return its exit code and what it printed on standard output."""
        place._capsys.readouterr()
        code = run(["rollout", *arguments, "--json", "--config", str(place.file)])
        return code, json.loads(place._capsys.readouterr().out)

    def test_what_changes_the_file(self, place: Place) -> None:
        """The rung after it, whether it was written, and the lines of the difference."""
        place.records(observed(NOW - 60, groups=[GROUP]))
        code, found = self.of(
            place,
            "accept",
            "kafka:orders",
            "token_missing kafka:orders",
            "--why",
            "x",
            "--yes",
        )
        assert (code, found["rung"], found["written"]) == (0, "observe", True)
        code, found = self.of(place, "up", "kafka:orders", "--settled", "--yes")
        assert (code, found["rung"], found["written"]) == (0, "enforce", True)
        code, found = self.of(
            place, "down", "kafka:orders", "--why", "x", "--until", "2026-12-20", "--yes"
        )
        assert (code, found["rung"]) == (0, "observe")

    def test_the_new_file(self, place: Place) -> None:
        """With ``--print`` its text."""
        place.records(observed(NOW - 60))
        code, found = self.of(place, "up", "kafka:orders", "--settled", "--print")
        assert code == 0
        assert 'rung = "enforce"' in found["text"]


BOTH = '["kafka:orders", "rabbitmq:shop/orders.#"]  # two of them'


class TestSplitting:
    """A destination that goes up alone gets an entry of its own, before the one it stood in."""

    def two(self, place: Place, listed: str = BOTH) -> None:
        """Have the entry list more than one destination."""
        text = place.file.read_text("utf-8")
        place.file.write_text(
            text.replace('["kafka:orders"]\nrung', f"{listed}\nrung"), "utf-8"
        )

    def entries(self, place: Place) -> list[tuple[list[str], str]]:
        """Return destinations and rung of each entry."""
        found = tomllib.loads(place.file.read_text("utf-8"))["rollout"]
        return [(entry["destinations"], entry["rung"]) for entry in found]

    def test_one_of_two(self, place: Place) -> None:
        """The other one stays, with its comments, and what speaks against it does not count."""
        self.two(place)
        other = {**GROUP, "destination": "rabbitmq:shop/orders.new"}
        both = {"kafka:orders": 100, "rabbitmq:shop/orders.#": 1}
        rungs = dict.fromkeys(both, "observe")
        place.records(observed(NOW - 60, accepted=both, rungs=rungs, groups=[other]))
        code, printed = place.run("up", "kafka:orders", "--settled", "--yes")
        assert code == 0, printed
        assert self.entries(place) == [
            (["kafka:orders"], "enforce"),
            (["rabbitmq:shop/orders.#"], "observe"),
        ]
        text = place.file.read_text("utf-8")
        assert text.count("# two of them") == text.count("# ask them") == 2
        assert "[[rollout]]  # the orders" in text
        assert place.run("up", "rabbitmq:shop/orders.#", "--yes")[0] == 1

    def test_one_that_a_pattern_holds(self, place: Place) -> None:
        """The pattern stays, and the new entry decides, since it comes first."""
        self.two(place, '["kafka:#"]')
        place.records(
            observed(NOW - 60, accepted={"kafka:#": 4}, rungs={"kafka:#": "observe"})
        )
        assert place.run("up", "kafka:orders", "--settled", "--yes")[0] == 0
        assert self.entries(place) == [
            (["kafka:orders"], "enforce"),
            (["kafka:#"], "observe"),
        ]


def test_without_an_audit_file_it_is_not_safe(place: Place) -> None:
    """Exit code 1, with a sentence; by force it goes up all the same."""
    code, printed = place.run("status")
    assert code == 1
    assert (
        f"no audit file is there: {place.path / 'audit.jsonl'}: start the consumers"
        in printed
    )
    assert place.run("up", "kafka:orders", "--yes")[0] == 1
    assert place.run("up", "kafka:orders", "--force", "--why", "a test", "--yes")[0] == 0


class TestWaiting:
    """What waits in a queue, where the interceptor says how old the oldest delivery is."""

    PLACE = "rabbitmq:shop/orders"

    def at(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], oldest: float
    ) -> Place:
        """Return a place whose oldest delivery is so many seconds old."""
        place = Place(tmp_path, capsys, self.PLACE)
        stamps = {self.PLACE: iso_time(NOW - oldest)}
        place.records(
            observed(NOW - 120, place=self.PLACE),
            observed(NOW - 60, place=self.PLACE, oldest=stamps),
        )
        return place

    @pytest.fixture(autouse=True)
    def _now(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cli, "_now", lambda: NOW)

    def test_an_old_one_does_not(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Unsigned messages may wait behind it; somebody who knows better says so."""
        place = self.at(tmp_path, capsys, 4000)
        code, printed = place.run("up", self.PLACE, "--yes")
        assert (code, "let the consumers catch up" in printed) == (1, True)
        assert place.run("up", self.PLACE, "--settled", "--yes")[0] == 0

    @pytest.mark.parametrize("where", ["kafka:orders", PLACE])
    def test_without_a_stamp_the_broker_is_asked(
        self, where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Or somebody says that nothing waits."""
        place = Place(tmp_path, capsys, where)
        place.records(observed(NOW - 60, place=where))
        code, printed = place.run("up", where, "--yes")
        assert (code, "give --broker, or say --settled once you know" in printed) == (
            2,
            True,
        )
        assert (
            "safe to go up; rollout up asks the broker what still waits"
            in place.run("status")[1]
        )
