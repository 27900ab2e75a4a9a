"""``mqauth bench``: measures what signing and verifying cost, shows progress, and writes the figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mqauth.bench import report, run
from mqauth.cli.broker import check_url, reached
from mqauth.cli.options import Json
from mqauth.cli.streams import print_error, print_json


def bench(
    *,
    quick: Annotated[bool, typer.Option("--quick", help="At most two minutes; coarser figures.")] = False,
    as_json: Json = False,
    rabbitmq: Annotated[
        str | None, typer.Option("--rabbitmq", help="amqp://...: measure end to end on this broker too.")
    ] = None,
    kafka: Annotated[
        str | None, typer.Option("--kafka", help="host:port: measure end to end on this broker too.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write every figure with its spread to this JSON file.")
    ] = None,
) -> int:
    """Measure what signing and verifying cost on this machine, beside the bare clients."""
    address = None if kafka is None else run.address_of(kafka)
    if rabbitmq is not None:
        check_url("--rabbitmq", rabbitmq)
    if address is not None:
        check_url("--kafka", f"kafka://{address}")
    console = Console(stderr=True, quiet=as_json)
    with reached("--rabbitmq or --kafka"), console.status("making keys") as status:
        amount = run.amount_of(quick=quick)
        found = run.measure(amount, rabbitmq=rabbitmq, kafka=address, progress=status.update)
    if output is not None:
        output.write_text(json.dumps(found.whole(), indent=1) + "\n", "utf-8")
    if as_json:
        print_json(found.short())
    else:
        print("\n".join(report.lines(found)))
    failed = found.failed()
    for what, why in failed.items():
        print_error(f"{what}: {why}")
    return 1 if failed else 0
