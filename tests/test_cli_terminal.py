"""What people see in a terminal of 80 columns: no line is wider, no word is broken, and ids can be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.cells import cell_len

from mqauth.cli import dlq
from mqauth.cli.app import run
from tests.test_cli_forms import in_terminal

WIDTH = 80
BAD = f"""
[consumer]
scope = "billing"
audience = "billing"
leeway = 90
[[consumer.issuers]]
issuer = "https://auth.example"
uri = "https://auth.example/jwks.json"
[[consumer.allow]]
subject = "orders-api"
destinations = ["kafka:{"o" * 200}?"]
"""


def fits(shown: str) -> list[str]:
    """Return the lines of a terminal, of which none is wider than 80 cells."""
    lines = shown.splitlines()
    assert max(map(cell_len, lines)) <= WIDTH
    return lines


def test_findings_in_a_terminal_are_paragraphs(tmp_path: Path) -> None:
    """``check`` shows a heading and paragraphs for each finding; no word that fits a line is broken."""
    (tmp_path / "mqauth.toml").write_text(BAD)
    lines = fits(in_terminal(["check"], tmp_path))
    assert "error  configuration  line 5" in lines
    assert "  consumer.leeway: must be 0 to 60, not 90" in map(str.rstrip, lines)
    words = " ".join(" ".join(lines).split())
    assert (
        "mqauth refuses the setting, and the producer or consumer that needs it does not start."
        in words
    )


def test_findings_are_tab_separated_for_a_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Piped, a finding is one line of seven cells, whole, under a line of names."""
    (tmp_path / "mqauth.toml").write_text(BAD)
    assert run(["check", str(tmp_path / "mqauth.toml")]) == 1
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    head, first, *_ = (line.split("\t") for line in printed.splitlines())
    assert head == ["line", "severity", "code", "key", "message", "why", "instead"]
    assert first[:5] == [
        "5",
        "error",
        "configuration",
        "consumer.leeway",
        "must be 0 to 60, not 90",
    ]


def test_the_demo_in_a_terminal(tmp_path: Path) -> None:
    """Each attack has one line, its name and its reason whole; what did not go as expected is named."""
    lines = fits(in_terminal(["demo", "--messages", "1"], tmp_path))
    assert not [line for line in lines if line.startswith("NOT as expected")]
    assert sum(line.startswith("replay ") and "replayed" in line for line in lines) == 1
    assert sum(" algorithm_forbidden " in line for line in lines) == 3


def test_the_demo_piped(capsys: pytest.CaptureFixture[str]) -> None:
    """For a program each case is a line of four cells, and the story is whole."""
    assert run(["demo", "--messages", "1"]) == 0
    rows = [
        line.split("\t") for line in capsys.readouterr().out.splitlines() if "\t" in line
    ]
    assert rows[0] == ["case", "verdict", "reason", "what it is"]
    assert ["own-key-url", "rejected", "header_forbidden"] in [row[:3] for row in rows]


@pytest.mark.parametrize(("most", "code"), [(None, 0), (2, 0), (1, 1), (0, 1)])
def test_depth_is_a_probe(
    most: int | None,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``dlq depth`` counts without reading; above ``--max`` it exits with 1."""

    class Box:
        name = "orders.dead"

    class Opened:
        box = Box()

        def __enter__(self) -> Opened:
            return self

        def __exit__(self, *_: object) -> None:
            return None

        def depth(self) -> int:
            return 2

    monkeypatch.setattr(dlq, "opened", lambda place: Opened())
    limit = [] if most is None else ["--max", str(most)]
    where = ["--broker", "amqp://127.0.0.1:1/", "--queue", "orders.dead"]
    assert run(["dlq", "depth", *limit, *where, "--json"]) == code
    assert json.loads(capsys.readouterr().out) == {"open": 2, "max": most}
