"""``mqauth audit``: checks the chain of audit files, searches them, and looks for misuse in them."""

from __future__ import annotations

import math
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer

from mqauth import Detector, Thresholds, load
from mqauth.audit.chain import MAX_LINE, verify_chain
from mqauth.audit.disk import last_lines, read_bounded
from mqauth.audit.file import read_heads, with_parts
from mqauth.audit.query import (
    DIMENSIONS,
    TIMES,
    Record,
    Selection,
    claims_of,
    count,
    is_verified,
    member,
    parse_record,
    read_records,
    value_of,
)
from mqauth.cli import forms
from mqauth.cli.app import (
    From,
    Json,
    To,
    answer,
    group,
    print_json,
    progress_bar,
    standard_input,
)
from mqauth.cli.forms import Column, one_line, pick, table_lines
from mqauth.errors import refusing, require
from mqauth.wire.jwk import MAX_DOCUMENT, load_key_set

app: Final = group("Check, read and search audit files.", "mqauth audit verify FILE")
Files = Annotated[
    list[Path],
    typer.Argument(help="Audit files, oldest first; their rotated parts are found."),
]


@app.command("verify")
def verify(
    files: Files,
    heads: Annotated[
        Path | None, typer.Option("--heads", help="File of signed heads to compare with.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option("--keys", help="JWK Set of those who may sign heads.")
    ] = None,
    continued: Annotated[
        bool,
        typer.Option(
            "--continued", help="Older files are archived: begin at a signed head."
        ),
    ] = False,
    json: Json = False,
) -> int:
    """Find records that were edited, removed, inserted or moved.

    Exits with 1 where one was. With --heads it also finds a log that was cut at its end, or computed again as
    a whole.
    """
    require(
        heads is not None or (keys is None and not continued),
        "--keys and --continued need --heads",
    )
    pinned = (
        None
        if keys is None
        else load_key_set(read_bounded(keys, MAX_DOCUMENT), name=str(keys))
    )
    known = None if heads is None else read_heads(heads, pinned)
    paths, seen = with_parts(files), 0
    with progress_bar(
        "reading", sum(path.stat().st_size for path in paths if path.exists())
    ) as show_bytes:

        def advance(size: int) -> None:
            nonlocal seen
            before, seen = seen, seen + size
            # Drawing the bar for every line would take longer than the hashing.
            if before >> 20 != seen >> 20:
                show_bytes(seen)

        report = verify_chain(paths, known, continued=continued, progress=advance)
    note = "" if report.what is None else f"; {report.what}"
    if not report.intact:
        where = "" if report.file is None else f" of {report.file}"
        verdict = f"BROKEN: line {report.first_bad}{where}: {report.what}; {report.records} records before it hold"
    elif report.anchored:
        behind = (
            f", the last {report.unsigned} of them after the last signed head"
            if report.unsigned
            else ""
        )
        trust = "; the key in the heads is trusted: give --keys" if pinned is None else ""
        verdict = f"intact; {report.records} records{behind}{note}{trust}"
    else:
        why = (
            "no signed heads to compare it with"
            if heads is None
            else "the heads do not cover all of it"
        )
        verdict = f"unanchored: unbroken, but {why}; {report.records} records{note}"
    answer(
        json,
        {
            name: getattr(report, name)
            for name in ("intact", "anchored", "records", "first_bad", "what")
        },
        one_line(verdict),
    )
    return 0 if report.intact else 1


@app.command("tail")
def tail(
    file: Annotated[
        Path, typer.Argument(help="An audit file; - for records on standard input.")
    ],
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=1, max=100_000, help="How many records.")
    ] = 20,
    json: Json = False,
) -> None:
    """Show the last records of a file. To see those that come: tail -F FILE | mqauth audit tail -."""
    piped = file == Path("-")
    source = (
        iter(partial(standard_input().readline, MAX_LINE), b"")
        if piped
        else last_lines(file, lines)
    )
    for raw in source:
        # A line that somebody damaged is for `audit verify` to name.
        with (
            suppress(ValueError)
            if piped
            else refusing(ValueError, f"{file}: its end is no audit record")
        ):
            record = parse_record(raw)
            answer(json, dict(record), one_line(_sentence(record)))


@app.command("show")
def show(
    record_id: Annotated[str, typer.Argument(help="Id of a record or a dead letter.")],
    files: Files,
) -> None:
    """Print one record whole, as JSON. Exits with 1 where no record has this id."""
    paths = with_parts(files)
    ids = (
        each
        for record in read_records(paths)
        for each in (record.get("id"), record.get("dead_letter"))
    )
    whole = pick(record_id, (id for id in ids if isinstance(id, str)), option="id")
    print_json(
        next(
            dict(each)
            for each in read_records(paths)
            if whole in (each.get("id"), each.get("dead_letter"))
        )
    )


@app.command("trace")
def trace(
    *,
    files: Files,
    kid: Annotated[
        str | None, typer.Option("--kid", help="What this key signed.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", help="What this producer sent.")
    ] = None,
    jti: Annotated[
        str | None, typer.Option("--jti", help="Where this token was seen.")
    ] = None,
    jkt: Annotated[
        str | None,
        typer.Option(
            "--jkt", help="What this workload's key signed, and who asked for it."
        ),
    ] = None,
    verified: Annotated[
        bool, typer.Option("--verified", help="Leave out what was only claimed.")
    ] = False,
    since: From = None,
    until: To = None,
    json: Json = False,
) -> int:
    """Print every record of a key, a producer or a token. Exits with 1 where there is none."""
    require(
        {kid, subject, jti, jkt} != {None}, "trace needs --kid, --subject, --jti or --jkt"
    )
    paths = with_parts(files)
    # Of a key or a token the beginning of its id may be given.
    ids = {
        name: given
        and pick(
            given,
            (str(value_of(record, name) or "") for record in read_records(paths)),
            option=f"--{name}",
        )
        for name, given in {"kid": kid, "jti": jti, "jkt": jkt}.items()
    }
    any_found = False
    for record in filter(
        Selection(
            subject=subject, verified=verified, since=since, until=until, **ids
        ).holds,
        read_records(paths),
    ):
        any_found = True
        answer(json, dict(record), one_line(_sentence(record)))
    return 0 if any_found else 1


@app.command("stats")
def stats(
    files: Files,
    by: Annotated[str, typer.Option("--by", help=", ".join(DIMENSIONS))] = "reason",
    since: From = None,
    until: To = None,
    json: Json = False,
) -> None:
    """Count records by what --by names, and draw bars."""
    require(by in DIMENSIONS, f"--by: must be {', '.join(DIMENSIONS)}")
    counts = count(
        filter(
            Selection(since=since, until=until).holds, read_records(with_parts(files))
        ),
        by,
    )
    rows = sorted(counts.items()) if by in TIMES else counts.most_common()
    most = max((number for _, number in rows), default=1)
    # Bars are for people.
    drawn = forms.terminal_width() is not None
    columns = [
        Column(by),
        Column("records", cut=False),
        *([Column("", cut=False)] if drawn else []),
    ]
    cells = [
        (name, str(number), *(["#" * math.ceil(number / most * 30)] if drawn else []))
        for name, number in rows
    ]
    answer(
        json,
        {"by": by, "records": counts.total(), "counts": dict(rows)},
        *table_lines(f"{counts.total()} records by {by}", columns, cells),
    )


@app.command("detect")
def detect(
    files: Files,
    config: Annotated[
        Path | None, typer.Option("--config", help="Use the thresholds of its [misuse].")
    ] = None,
    json: Json = False,
) -> int:
    """Look for misuse in old records. Exits with 1 where the detectors find some."""
    detector = Detector(Thresholds() if config is None else load(config).thresholds)
    any_found = False
    for record in read_records(with_parts(files)):
        for alert in detector.observe(record):
            any_found, time = True, str(record.get("time"))
            about = ", ".join(f"{name} {value}" for name, value in alert.about.items())
            claimed = "" if alert.verified else "claimed "
            answer(
                json,
                {"time": time, **alert.as_dict()},
                one_line(f"{time}  {alert.kind}  {alert.count} times  {claimed}{about}"),
            )
    return 1 if any_found else 0


def _sentence(record: Record) -> str:
    """Return a record in one line for people. What an attacker may have written is marked as claimed."""
    verdict = record.get("reason") or record.get("verdict")
    if "review" in record:
        verdict = f"{record.get('verdict')}  {verdict}"
    alert = member(record, "alert")
    if alert:
        named = ", ".join(
            f"{name} {value}" for name, value in member(alert, "about").items()
        )
        claimed = "" if alert.get("verified") is True else "claimed "
        return f"{record.get('time')}  ALERT  {record.get('detail') or ''}  {claimed}{named}".rstrip()
    if "flood" in record:
        return f"{record.get('time')}  {verdict}  no. {record.get('flood')} of a flood"
    claims = claims_of(record)
    signer = f"{claims.get('sub', '?')} ({claims.get('iss', '?')}, kid {claims.get('kid', '?')})"
    proof = "" if is_verified(record) else "claimed "
    # Who asked an authority, where a record has it.
    asked = member(record, "asked")
    shown = member(asked, "credential")
    claimed = "" if shown.get("verified") is True else "claimed "
    by = f"  by {claimed}{shown.get('name')}: {shown.get('sub')}" if shown else ""
    where = member(record, "broker").get("destination") or (
        f"from {asked['address']}{by}" if "address" in asked else ""
    )
    who = f"{proof}{signer}" if claims else "no token"
    return f"{record.get('time')}  {verdict}  {where}  {who}  {record.get('detail') or ''}".rstrip()
