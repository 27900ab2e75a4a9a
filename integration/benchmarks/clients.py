"""All clients in one alternating run: ``python -m integration.benchmarks.clients --kafka ADDRESS --rabbitmq URL``.

Prints the table by client of ``docs/performance.md``: messages a second, and microseconds of CPU for each.
A second one has the clients of Kafka on threads, with handlers that wait.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any, Final

from integration.benchmarks.client.contenders import Contender, Effort, share
from integration.benchmarks.client.rounds import Rounds, Spread, Variant, alternate
from integration.benchmarks.client.run import TOLD

CLIENTS: Final[Mapping[str, Mapping[str, str]]] = {
    "kafka": {
        "kafka-python": "kafka",
        "confluent-kafka": "confluent",
        "its `AIOConsumer`": "confluent_aio",
        "aiokafka": "aiokafka",
    },
    "rabbitmq": {"aio-pika": "rabbitmq", "pika": "pika"},
}
"""Names of the clients of each broker, with the modules that have their contenders."""
EFFORTS: Final[Mapping[str, Effort]] = {
    "kafka": Effort(rounds=5, publish=4096, consume=8192, paced=0),
    "rabbitmq": Effort(rounds=5, publish=512, consume=2048, paced=0),
}

WAITS: Final[Mapping[float, int]] = {0.001: 2048, 0.005: 512}
"""Seconds for which a handler waits, with the messages of a round."""
ON_THREADS: Final = ("kafka-python", "confluent-kafka")


def contenders(
    clients: Mapping[str, str], url: str, undo: ExitStack
) -> Iterator[tuple[str, Contender]]:
    """Yield the contenders of all clients of one broker, each with the name of its client."""
    for client, name in clients.items():
        module: Any = import_module(f"integration.benchmarks.client.{name}")
        connections = undo.enter_context(module.Connections(url))
        for one in module.contenders(connections):
            undo.callback(one.close)
            if one.name in TOLD:
                yield client, one


def measured(
    found: Sequence[tuple[str, Contender]],
    effort: Effort,
    *,
    consume: bool,
    wait: float = 0.0,
) -> Rounds:
    """Publish or consume in alternating rounds of all contenders, with handlers that wait so many seconds."""
    variants = []
    for client, one in found:
        count = share(one, effort.consume if consume else effort.publish)
        work = (
            partial(one.consume, count, wait) if consume else partial(one.publish, count)
        )
        variants.append(Variant(f"{client} {one.name}", work))
    return alternate(variants, effort.rounds)


def cell(rounds: Rounds, name: str) -> str:
    """Return the median rate and the median CPU of a variant, or that it failed."""
    if name in rounds.failed:
        return rounds.failed[name]
    taken = rounds.measured[name]
    rate, cpu = (
        Spread.of(figures).median
        for figures in zip(*((x.rate, x.cpu_per_1000) for x in taken), strict=True)
    )
    return f"{rate:,.0f} ({cpu * 1000:.0f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    for broker in CLIENTS:
        parser.add_argument(f"--{broker}")
    parser.add_argument("--rounds", type=int, default=5)
    given = vars(parser.parse_args())
    tables: list[str] = []
    heads = [f"{what} {who}" for what in ("publish", "consume") for who in TOLD]
    print("| client | " + " | ".join(heads) + " |\n|---" + "|---:" * len(heads) + "|")
    for broker, clients in CLIENTS.items():
        if given[broker] is None:
            continue
        with ExitStack() as undo:
            found = list(contenders(clients, given[broker], undo))
            effort = replace(EFFORTS[broker], rounds=given["rounds"])
            both = [measured(found, effort, consume=consume) for consume in (False, True)]
            for client in clients:
                cells = [
                    cell(rounds, f"{client} {who}") for rounds in both for who in TOLD
                ]
                print(f"| {client} | " + " | ".join(cells) + " |", flush=True)
        # In clients of their own: those on an event loop would lose their connections meanwhile.
        if broker == "kafka":
            with ExitStack() as undo:
                found = list(
                    contenders(
                        {each: clients[each] for each in ON_THREADS}, given[broker], undo
                    )
                )
                tables.append(waiting(found, effort))
    print("\n" + "\n".join(tables))


def waiting(found: Sequence[tuple[str, Contender]], effort: Effort) -> str:
    """Return the table of handlers that wait."""
    heads = [f"{client} {who}" for client in ON_THREADS for who in TOLD]
    lines = [
        "| a handler waits | " + " | ".join(heads) + " |",
        "|---" + "|---:" * len(heads) + "|",
    ]
    for wait, count in WAITS.items():
        rounds = measured(found, replace(effort, consume=count), consume=True, wait=wait)
        lines.append(
            f"| {wait * 1000:g} ms | "
            + " | ".join(cell(rounds, name) for name in heads)
            + " |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
