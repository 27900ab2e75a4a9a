"""``mqauth check``: prints what is wrong with a configuration file, as a table or as JSON."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mqauth.check import Finding, Report, Severity
from mqauth.check import check as check_file
from mqauth.cli.app import Json, answer, one_line, print_json
from mqauth.cli.online import ask
from mqauth.cli.settings import file_of, settings_of

_STYLES: Final = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_WIDTH: Final = 120


def check(
    file: Annotated[
        Path | None,
        typer.Argument(
            metavar="[FILE]", envvar="MQAUTH_CONFIG", show_default=False, help="By default mqauth.toml."
        ),
    ] = None,
    as_json: Json = False,
    strict: Annotated[bool, typer.Option("--strict", help="Count warnings as errors.")] = False,
    online: Annotated[
        bool, typer.Option("--online", help="Ask issuers and brokers too; changes nothing.")
    ] = False,
) -> int:
    """Find the pitfalls of a configuration file; exits with 1 where one of them is an error."""
    # The library logs some pitfalls when it loads a file. Here each of them is a finding already.
    logging.getLogger("mqauth").addHandler(logging.NullHandler())
    file = file_of(file)
    report = check_file(file)
    report = report.strict() if strict else report
    asked = list(ask(settings_of(file))) if online else []
    if as_json:
        print_json(report.as_dict() | ({"online": [one._asdict() for one in asked]} if online else {}))
    else:
        _print_table(file, report)
        answer(False, None, *(one_line(f"{one.what}: {one.said}") for one in asked))
    codes = {one.code for one in asked} | ({1} if report.count(Severity.ERROR) else set())
    return 1 if 1 in codes else max(codes, default=0)


def _print_table(file: Path, report: Report) -> None:
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
    """Return the cells of a finding, as text without markup: the file may hold anything."""
    code = Text(f"{finding.severity.value}\n", style=_STYLES[finding.severity])
    code.append(finding.code.name, "default")
    message = Text(one_line(f"{finding.key}: {finding.message}" if finding.key else finding.message))
    message.append(f"\nwhy: {finding.code.why}\ninstead: {finding.code.instead}", "dim")
    return Text("" if finding.line is None else str(finding.line)), code, message


def _summary(file: Path, report: Report) -> Iterator[str]:
    counts = [_counted(report.count(severity), severity.value) for severity in Severity]
    accepted = f"; {report.accepted} accepted" if report.accepted else ""
    yield f"{one_line(str(file))}: {', '.join(counts)}{accepted}."
    if report.unseen:
        yield f"Not looked at: {', '.join(report.unseen)}."


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")
