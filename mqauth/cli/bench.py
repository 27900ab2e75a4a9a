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
    confluent: Annotated[
        str | None, typer.Option("--confluent", help="host:port: the same on this Kafka, by confluent-kafka.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Write every figure with its spread to this JSON file.")
    ] = None,
) -> int:
    """Measure what signing and verifying cost on this machine, beside the bare clients."""
    if rabbitmq is not None:
        check_url("--rabbitmq", rabbitmq)
    kafka, confluent = _address("--kafka", kafka), _address("--confluent", confluent)
    console = Console(stderr=True, quiet=as_json)
    with reached("--rabbitmq, --kafka or --confluent"), console.status("making keys") as status:
        amount = run.amount_of(quick=quick)
        found = run.measure(amount, rabbitmq=rabbitmq, kafka=kafka, confluent=confluent, progress=status.update)
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


def _address(option: str, url: str | None) -> str | None:
    if url is None:
        return None
    address = run.address_of(url)
    check_url(option, f"kafka://{address}")
    return address
