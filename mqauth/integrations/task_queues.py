"""What the adapters of task queues have in common: what a worker's pipeline must have."""

from __future__ import annotations

from collections.abc import Callable

from mqauth.errors import require
from mqauth.judging.pipeline import Pipeline
from mqauth.replay.memory import MemoryReplayStore
from mqauth.replay.rules import NoReplayStore


def worker_guard(make: Callable[[], Pipeline] | None, dead_letters: object) -> Pipeline:
    """Return the pipeline of one process of a worker.

    Args:
        make: makes it, after the fork: no thread and no connection of it is inherited.
        dead_letters: where rejected tasks go.

    Raises:
        ConfigurationError: there is no pipeline or no ``dead_letters``, or the pipeline has no audit or no replay
            store that outlives it.
    """
    make = require(make, "a worker needs guard=: protect(broker, guard=..., ...)")
    require(dead_letters is not None, "a worker needs dead_letters=")
    guard = make()
    require(guard.audit is not None, "a worker's pipeline needs audit=")
    require(
        not isinstance(guard.replay, NoReplayStore | MemoryReplayStore),
        "copies of a task come to several processes: replay= is a store on Redis, or the file of one process",
    )
    return guard
