"""``python -m integration.benchmarks.client``: what signing and verifying cost on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from integration.benchmarks.client import report, run
from mqauth.cli.app import Json, answer, print_error
from mqauth.cli.broker import reached


def bench(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="At most two minutes; coarser figures.")
    ] = False,
    as_json: Json = False,
    rabbitmq: Annotated[
        str | None,
        typer.Option(
            "--rabbitmq", help="amqp://...: measure end to end on this broker too."
        ),
    ] = None,
    kafka: Annotated[
        str | None,
        typer.Option("--kafka", help="host:port: measure end to end on this broker too."),
    ] = None,
    confluent: Annotated[
        str | None,
        typer.Option(
            "--confluent", help="host:port: the same on this Kafka, by confluent-kafka."
        ),
    ] = None,
    confluent_aio: Annotated[
        str | None,
        typer.Option(
            "--confluent-aio",
            help="host:port: the same, by confluent-kafka's AIOConsumer.",
        ),
    ] = None,
    aiokafka: Annotated[
        str | None,
        typer.Option(
            "--aiokafka", help="host:port: the same on this Kafka, by aiokafka."
        ),
    ] = None,
    pika: Annotated[
        str | None,
        typer.Option("--pika", help="amqp://...: the same on this RabbitMQ, by pika."),
    ] = None,
    identity: Annotated[
        bool,
        typer.Option(
            "--identity",
            help="With the identity form beside the direct form on each broker.",
        ),
    ] = False,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", help="Write every figure with its spread to this JSON file."
        ),
    ] = None,
) -> int:
    """Measure what signing and verifying cost on this machine, beside the bare clients."""
    given = {
        "rabbitmq": rabbitmq, "kafka": kafka, "confluent": confluent, "confluent_aio": confluent_aio,
        "aiokafka": aiokafka, "pika": pika,
    }  # fmt: skip
    urls = {name: run.url_of(name, url) for name, url in given.items() if url}
    console = Console(stderr=True, quiet=as_json)
    with reached(*urls.values()), console.status("making keys") as status:
        found = run.measure(
            run.amount_of(quick=quick), urls, identity=identity, progress=status.update
        )
    if output is not None:
        output.write_text(json.dumps(found.whole(), indent=1) + "\n", "utf-8")
    answer(as_json, found.short(), *report.lines(found))
    failed = found.failed()
    for what, why in failed.items():
        print_error(f"{what}: {why}")
    return 1 if failed else 0


if __name__ == "__main__":
    typer.run(bench)
