"""``mqauth check``: prints what is wrong with a configuration file, as a table or as JSON."""

from __future__ import annotations

import logging
import os
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import typer

from mqauth.check import Finding, Report, Severity
from mqauth.check import check as check_file
from mqauth.cli.app import Json, answer, one_line, print_json
from mqauth.cli.online import ask
from mqauth.cli.settings import file_of, settings_of
from mqauth.cli.tables import middle, terminal_width

_COLOURS: Final = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
_INDENT: Final = 4


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
    """Find mistakes and risky settings in a configuration file.

    Exits with 1 where one of them is an error.
    """
    # The library logs some pitfalls when it loads a file. Here each of them is a finding already.
    logging.getLogger("mqauth").addHandler(logging.NullHandler())
    file = file_of(file)
    report = check_file(file)
    report = report.strict() if strict else report
    asked = list(ask(settings_of(file))) if online else []
    if as_json:
        print_json(report.as_dict() | ({"online": [each._asdict() for each in asked]} if online else {}))
    else:
        lines = [*_lines(report), *_summary(file, report)]
        answer(False, None, *lines, *(one_line(f"{each.what}: {each.said}") for each in asked))
    codes = {each.code for each in asked} | ({1} if report.count(Severity.ERROR) else set())
    return 1 if 1 in codes else max(codes, default=0)


def _lines(report: Report) -> Iterator[str]:
    """Yield the findings: in blocks for a terminal, tab-separated for a program. The file may hold anything."""
    width = terminal_width()
    if width is None and report.findings:
        yield "line\tseverity\tcode\tkey\tmessage\twhy\tinstead"
    for finding in report.findings:
        line, code = "" if finding.line is None else str(finding.line), finding.code
        cells = (line, finding.severity.value, code.name, finding.key, finding.message, code.why, code.instead)
        yield from ["\t".join(map(one_line, cells))] if width is None else _block(finding, width)


def _block(finding: Finding, width: int) -> Iterator[str]:
    """Yield a finding as a heading and paragraphs; words that are too long are cut in their middle."""
    place = "" if finding.line is None else f"  line {finding.line}"
    severity = typer.style(finding.severity.value, fg=_COLOURS[finding.severity], bold=True)
    coloured = "NO_COLOR" not in os.environ
    yield f"{severity if coloured else finding.severity.value}  {finding.code.name}{place}"
    said = f"{finding.key}: {finding.message}" if finding.key else finding.message
    for text in (said, f"why: {finding.code.why}", f"instead: {finding.code.instead}"):
        words = " ".join(middle(word, width - _INDENT) for word in one_line(text).split(" "))
        yield from textwrap.wrap(
            words, width, initial_indent=" " * 2, subsequent_indent=" " * _INDENT, break_on_hyphens=False
        )
    yield ""


def _summary(file: Path, report: Report) -> Iterator[str]:
    counted = [(report.count(severity), severity.value) for severity in Severity]
    counts = [f"{count} {noun}" + ("" if count == 1 else "s") for count, noun in counted]
    accepted = f"; {report.accepted} accepted" if report.accepted else ""
    yield f"{one_line(str(file))}: {', '.join(counts)}{accepted}."
    if report.unseen:
        yield f"Not looked at: {', '.join(report.unseen)}."
