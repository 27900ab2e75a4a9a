"""What the delivery contract needs of a broker beside a ``Stage``: its consumers' lives, and its faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from mqauth.errors import Cause
from mqauth.pipeline import Handler, Pipeline
from mqauth.testing.stage import Stage

CommitObserver = Callable[[int, int], None]
"""Called with partition and offset before a commit of it is sent."""


class Health(Protocol):
    """How a consumer is."""

    @property
    def cause(self) -> Cause | None:
        """Why it waits."""
        ...


class Member(Protocol):
    """One running consumer of the stage's group."""

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        ...

    def health(self) -> Health:
        """Return how it is."""
        ...

    def close(self) -> None:
        """Stop it in order, and leave the group; raises what ended it."""
        ...


class LogStage(Stage, Protocol):
    """A stage of a log broker: a source of at least two partitions, and one group of consumers."""

    patience: float
    """Seconds that something may take to come about."""

    def second(self, guard: Pipeline, handler: Handler, *, workers: int = 1) -> Member:
        """Start one more consumer of the group in the background; also the first.

        Args:
            guard: the pipeline.
            handler: the handler.
            workers: how many handlers it may run at once, each on a partition of its own.
        """
        ...

    def rebalance(self) -> None:
        """Have the group share out its partitions again."""
        ...

    def kill(self, member: Member) -> None:
        """End a consumer as a killed process ends: nothing of it reaches the broker any more."""
        ...

    def cut(self, member: Member) -> None:
        """Cut a consumer's connection until ``heal``; the broker gives its partitions to others meanwhile.

        What the broker sends before it gives them away reaches the consumer after ``heal``.
        """
        ...

    def heal(self, member: Member) -> None:
        """Let a consumer that was cut off go on."""
        ...

    def refuse_commits(self, refusing: bool) -> None:
        """Refuse every commit of the group, or take them again."""
        ...

    def refuse_letters(self, refusing: bool) -> None:
        """Lose every dead letter on its way, without a confirm, or take them again."""
        ...

    def attempts(self) -> int:
        """Return how many dead letters were sent, those that were lost included."""
        ...

    def committed(self) -> Mapping[int, int]:
        """Return the group's committed offsets, by partition."""
        ...

    def ends(self) -> Mapping[int, int]:
        """Return the ends of the source's partitions that hold something."""
        ...

    def watch(self, observer: CommitObserver) -> None:
        """Have every commit told before it is sent."""
        ...
