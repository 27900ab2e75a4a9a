"""What the benchmarks of a log's leaves share: a topic of honest records, alternating rounds, and the command."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, Final, Generic, TypeVar

from integration.benchmarks.client.workload import Refusals
from mqauth import MemoryReplayStore, Pipeline
from mqauth.judging.verified import Verified
from mqauth.testing.forge import Forge
from mqauth.testing.stage_kafka import KafkaStage

BODY: Final = b"x" * 1024
B = TypeVar("B", bound="LeafBench")


class LeafBench:
    """A topic of honest records.

    Args:
        url: of the broker.
        records: how many.
    """

    def __init__(self, url: str, records: int) -> None:
        self.stage = KafkaStage(url)
        self.records = records
        self.forge = Forge(lifetime=3600)

    def guard(self) -> Pipeline:
        """Return a pipeline with a store of its own."""
        return Pipeline(
            verifier=self.forge.verifier(), policy=self.forge.policy(self.stage.destination),
            replay=MemoryReplayStore(), audit=Refusals(),
        )  # fmt: skip

    def handler(self, stop: Callable[[], Any]) -> Callable[[Verified], None]:
        """Return a handler that stops its consumer at the last record."""
        left = self.records

        def handle(_verified: Verified) -> None:
            nonlocal left
            left -= 1
            if not left:
                stop()

        return handle

    def least(self, works: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
        """Return the least CPU of a record by kind of work, and what is left for engine and leaf; microseconds.

        Args:
            works: among them ``consume, bare``, ``consume, wrapped`` and ``verdict``.
            rounds: how often each is done, in turn.
        """
        costs: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(rounds):
            for name, work in works.items():
                began = time.process_time()
                work()
                costs[name].append((time.process_time() - began) / self.records * 1e6)
        best = {name: min(found) for name, found in costs.items()}
        return best | {"engine and leaf": best["consume, wrapped"] - best["consume, bare"] - best["verdict"]}


class Given(argparse.Namespace, Generic[B]):
    """What the command was given: two topics, the second for producers, and how often to measure."""

    bench: B
    fresh: B
    rounds: int
    count: bool = False


@contextmanager
def command(doc: str | None, make: Callable[[str, int], B], *, counts: bool = False) -> Iterator[Given[B]]:
    """Read the words of a benchmark's command, and make its topics for the time of the block.

    Args:
        doc: what it measures.
        make: makes a topic.
        counts: whether it can count in place of measuring.
    """
    parser = argparse.ArgumentParser(description=doc)
    parser.add_argument("url")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=7)
    if counts:
        parser.add_argument("--count", action="store_true", help="count instructions of Python in place of time")
    given = parser.parse_args(namespace=Given[B]())
    with ExitStack() as undo:
        given.bench, given.fresh = (make(given.url, given.records) for _ in range(2))
        for each in (given.bench, given.fresh):
            undo.callback(each.stage.close)
        yield given


def tell(costs: Mapping[str, float]) -> None:
    """Print costs, a line each."""
    for name, cost in costs.items():
        print(f"{name:34}{cost:8.2f} us")
