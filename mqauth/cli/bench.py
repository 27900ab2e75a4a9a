"""``mqauth bench``: its options, its progress, and where its figures go."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mqauth.cli.broker import check_url, reached
from mqauth.cli.output import print_error, print_json

if TYPE_CHECKING:
    from mqauth.bench.run import Report


def bench(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="Two minutes at most; coarser figures.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print medians and ratios as JSON.")] = False,
    rabbitmq: Annotated[
        str | None, typer.Option("--rabbitmq", help="amqp://...: measure end to end on it too.")
    ] = None,
    kafka: Annotated[str | None, typer.Option("--kafka", help="host:port: measure end to end on it too.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write every figure with its spread to this JSON file.")
    ] = None,
) -> int:
    """Measure what signing and judging cost here, beside the bare clients."""
    from mqauth.bench import report, run  # they make the command slow to start

    address = None if kafka is None else run.address_of(kafka)
    if rabbitmq is not None:
        check_url("--rabbitmq", rabbitmq)
    if address is not None:
        check_url("--kafka", f"kafka://{address}")
    with reached("--rabbitmq or --kafka"), _progress(as_json) as progress:
        found = run.measure(run.amount_of(quick=quick), rabbitmq=rabbitmq, kafka=address, progress=progress)
    if output is not None:
        output.write_text(json.dumps(found.whole(), indent=1) + "\n", "utf-8")
    if as_json:
        print_json(found.short())
    else:
        print("\n".join(report.lines(found)))
    return 0 if not _failed(found) else 1


def _failed(found: Report) -> bool:
    """Tell whether a contender failed, and say which on standard error."""
    failed = found.failed()
    for what, why in failed.items():
        print_error(f"{what}: {why}")
    return bool(failed)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Show what is measured now, on a terminal only."""
    from rich.console import Console

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda _: None
        return
    with console.status("making keys") as status:
        yield status.update
