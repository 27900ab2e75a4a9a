"""What the delivery contract needs of a broker beside a ``Stage``: its consumers' lives, and its faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from mqauth.clock import Clock
from mqauth.errors import Cause
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.judging.verified import Verified
from mqauth.testing.stage import Stage
from mqauth.wire.message import Message

CommitObserver = Callable[[int, int], None]
"""Called with partition and offset before a commit of it is sent."""
AckObserver = Callable[[bytes], None]
"""Called with a message's body before the broker takes an ack that covers it."""
Steps = Callable[[Verified], Iterator[float]]
"""A handler in no client's colour: a generator that yields the seconds it waits for.

A stage makes of it what its client calls: a coroutine, or a function that sleeps. What cancels the handler is
thrown into it, and it may yield once more to clean up.
"""


class Health(Protocol):
    """How a consumer is."""

    @property
    def cause(self) -> Cause | None:
        """Why it waits."""
        ...

    @property
    def consuming(self) -> bool:
        """Whether the broker sends it messages now."""
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


class QueueStage(Protocol):
    """A stage of a queue broker: a source queue with a delivery limit of 20, and consumers that share it.

    A message is known by its body, which is unlike any other's.
    """

    destination: str
    """Canonical destination of the source queue."""
    patience: float
    """Seconds that something may take to come about."""
    clock: Clock
    """What tokens, stores and pipelines go by."""

    def inject(self, message: Message) -> None:
        """Publish a message to the source as it is."""
        ...

    def second(self, guard: Pipeline, handler: Steps, *, prefetch: int = 10, grace: float = 10) -> Member:
        """Start one more consumer in the background, with connections of its own; also the first.

        A cause of all suspends it after a second.

        Args:
            guard: the pipeline.
            handler: the handler.
            prefetch: deliveries at once.
            grace: seconds that running handlers may take at its end.
        """
        ...

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Let everything go on until a condition holds; ``False`` where it does not within so many seconds."""
        ...

    def advance(self, seconds: float) -> None:
        """Let the clock go on by so many seconds, for tokens and leases."""
        ...

    def kill(self, member: Member) -> None:
        """End a consumer as a killed process ends: nothing of it runs any more, and its connections close."""
        ...

    def cut(self, member: Member) -> None:
        """Have a consumer's process stand still until ``heal``; what the broker sends waits in its buffers."""
        ...

    def give_up(self, member: Member) -> None:
        """Have the broker end the connections of a consumer, as it does with one that is silent for too long."""
        ...

    def heal(self, member: Member) -> None:
        """Let a consumer go on that stood still."""
        ...

    def close_channel(self, member: Member) -> None:
        """Have the broker close the channel on which a consumer consumes."""
        ...

    def cancel(self, member: Member) -> None:
        """Have the broker cancel a consumer; its channel lives."""
        ...

    def remove_source(self) -> None:
        """Have the source queue be missing; what is in it may be lost."""
        ...

    def restore_source(self) -> None:
        """Have it there again."""
        ...

    def refuse_letters(self, refusing: bool) -> None:
        """Lose every dead letter on its way, without a confirm, or take them again."""
        ...

    def attempts(self) -> int:
        """Return how many dead letters were sent, those that were lost included."""
        ...

    def letters(self) -> list[Message]:
        """Return every dead letter so far, without removing it."""
        ...

    def deliveries(self, body: bytes) -> int:
        """Return how often the broker has delivered a message."""
        ...

    def watch(self, observer: AckObserver) -> None:
        """Have every message told before the broker takes its ack."""
        ...

    def left(self) -> int:
        """Return how many messages wait in the source; all that is in it while nobody consumes."""
        ...

    def put_away(self) -> int:
        """Return how many messages the broker itself has put away, for they came back too often."""
        ...

    def close(self) -> None:
        """Delete what the stage made, and end every consumer."""
        ...
