"""``mqauth check``: what is wrong with a configuration file, for people and for programs."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mqauth.check import Finding, Report, Severity, check
from mqauth.cli.output import one_line, print_json
from mqauth.errors import ConfigurationError

FOUND: Final = 1
_STYLES: Final = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_WIDTH: Final = 120


def check_file(file: Path, *, as_json: bool, strict: bool, online: bool) -> int:
    """Check a file, print what was found, and return 1 where an error is.

    Args:
        file: the configuration file.
        as_json: print one JSON object.
        strict: count warnings as errors.
        online: refused: this version looks at files only.

    Raises:
        ConfigurationError: the file cannot be read or is no TOML, or ``online``.
    """
    if online:
        raise ConfigurationError(
            "--online: not in this version; without it files are checked, and no network used"
        )
    logging.getLogger("mqauth").addHandler(logging.NullHandler())  # what would be logged is a finding here
    report = check(file)
    report = report.strict() if strict else report
    if as_json:
        print_json(report.as_dict())
    else:
        _show(file, report)
    return FOUND if report.count(Severity.ERROR) else 0


def _show(file: Path, report: Report) -> None:
    """Print the findings as a table, and a last line that sums up."""
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=False)
    console.width = console.width if console.is_terminal else max(console.width, _WIDTH)
    if report.findings:
        table = Table("line", "code", "finding", show_lines=True)
        for finding in report.findings:
            table.add_row(*_row(finding))
        console.print(table)
    for line in _summary(file, report):
        console.print(line, soft_wrap=True)


def _row(finding: Finding) -> tuple[Text, Text, Text]:
    """Return the cells of a finding; nothing from the file reaches the terminal as it is."""
    code = Text(f"{finding.severity.value}\n", style=_STYLES[finding.severity]).append(
        finding.code.name, "default"
    )
    said = Text(one_line(f"{finding.key}: {finding.message}" if finding.key else finding.message))
    said.append(f"\nwhy: {finding.code.why}\ninstead: {finding.code.instead}", "dim")
    return Text("" if finding.line is None else str(finding.line)), code, said


def _summary(file: Path, report: Report) -> Iterator[str]:
    """Yield what people read last."""
    counts = [_counted(report.count(severity), severity.value) for severity in Severity]
    accepted = f"; {report.accepted} accepted" if report.accepted else ""
    yield f"{one_line(str(file))}: {', '.join(counts)}{accepted}."
    if report.unseen:
        yield f"Not looked at: {', '.join(report.unseen)}."


def _counted(count: int, what: str) -> str:
    """Return a number of things in words."""
    return f"{count} {what}" + ("" if count == 1 else "s")
