"""The calls of the delivery contracts on a broker: they start, stop and kill consumers, and cause faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from mqauth import Cause, Message, Verified
from mqauth.clock import Clock
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.testing.stage import Stage

CommitObserver = Callable[[int, int], None]
"""Called with partition and offset before a commit of it is sent."""
AckObserver = Callable[[bytes], None]
"""Called with a message's body before the broker takes an ack that covers it."""
Steps = Callable[[Verified], Iterator[float]]
"""A handler for any client: a generator that yields the seconds for which it waits.

A stage turns it into what its client calls: a coroutine, or a function that sleeps. A cancellation is thrown into
the generator, which may yield once more to clean up.
"""


class Health(Protocol):
    """The state of a consumer."""

    @property
    def cause(self) -> Cause | None:
        """Why it waits, ``None`` if it does not."""
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
        """Return its state."""
        ...

    def close(self) -> None:
        """Stop it in order and leave the group; raises the error that ended it."""
        ...


class LogStage(Stage, Protocol):
    """A stage of a log broker: a source of at least two partitions, and one group of consumers."""

    patience: float
    """Seconds within which an expected change must happen."""
    clock: Clock
    """The clock of tokens, stores and pipelines."""

    def sleep(self, seconds: float) -> None:
        """Let time pass for the test, or for the handler that calls this."""
        ...

    def advance(self, seconds: float) -> None:
        """Move the clock forward."""
        ...

    def second(self, guard: Pipeline, handler: Handler, *, workers: int = 1) -> Member:
        """Start one more consumer of the group in the background; also used for the first.

        Args:
            guard: the pipeline.
            handler: the handler.
            workers: how many handlers may run at once, each for a partition of its own.
        """
        ...

    def rebalance(self) -> None:
        """Have the group distribute its partitions again."""
        ...

    def kill(self, member: Member) -> None:
        """End a consumer like a killed process: nothing of it reaches the broker any more."""
        ...

    def cut(self, member: Member) -> None:
        """Cut a consumer's connection until ``heal``; meanwhile the broker gives its partitions to others.

        Records that the broker sends before it gives the partitions away reach the consumer after ``heal``.
        """
        ...

    def heal(self, member: Member) -> None:
        """Let a consumer that was cut off continue."""
        ...

    def refuse_commits(self, refusing: bool) -> None:
        """Refuse every commit of the group, or accept them again."""
        ...

    def refuse_letters(self, refusing: bool) -> None:
        """Lose every dead letter on its way, without a confirm, or deliver them again."""
        ...

    def attempts(self) -> int:
        """Return how many dead letters were sent, including those that were lost."""
        ...

    def committed(self) -> Mapping[int, int]:
        """Return the group's committed offsets, by partition."""
        ...

    def ends(self) -> Mapping[int, int]:
        """Return the end offsets of the source's partitions that hold records."""
        ...

    def watch(self, observer: CommitObserver) -> None:
        """Call an observer with every commit before it is sent."""
        ...


class QueueStage(Protocol):
    """A stage of a queue broker: a source queue with a delivery limit of 20, and consumers that share it.

    Each message has a body of its own, by which it is identified.
    """

    destination: str
    """Canonical destination of the source queue."""
    patience: float
    """Seconds within which an expected change must happen."""
    clock: Clock
    """The clock of tokens, stores and pipelines."""

    def inject(self, message: Message) -> None:
        """Publish a message to the source unchanged."""
        ...

    def second(self, guard: Pipeline, handler: Steps, *, prefetch: int = 10, grace: float = 10) -> Member:
        """Start one more consumer in the background, with connections of its own; also used for the first.

        A cause that concerns all messages suspends it after a second.

        Args:
            guard: the pipeline.
            handler: the handler.
            prefetch: deliveries at once.
            grace: seconds that running handlers may take at its end.
        """
        ...

    def wait(self, condition: Callable[[], bool], seconds: float) -> bool:
        """Let everything run until a condition holds; return false if it does not within ``seconds``."""
        ...

    def advance(self, seconds: float) -> None:
        """Move the clock of tokens and leases forward."""
        ...

    def kill(self, member: Member) -> None:
        """End a consumer like a killed process: nothing of it runs any more, and its connections close."""
        ...

    def cut(self, member: Member) -> None:
        """Freeze a consumer's process until ``heal``; what the broker sends meanwhile waits in its buffers."""
        ...

    def give_up(self, member: Member) -> None:
        """Have the broker end a consumer's connections, as it does if one is silent for too long."""
        ...

    def heal(self, member: Member) -> None:
        """Let a consumer that was frozen continue."""
        ...

    def close_channel(self, member: Member) -> None:
        """Have the broker close the channel on which a consumer consumes."""
        ...

    def cancel(self, member: Member) -> None:
        """Have the broker cancel a consumer, whose channel stays open."""
        ...

    def remove_source(self) -> None:
        """Remove the source queue; its messages may be lost."""
        ...

    def restore_source(self) -> None:
        """Create the source queue again."""
        ...

    def refuse_letters(self, refusing: bool) -> None:
        """Lose every dead letter on its way, without a confirm, or deliver them again."""
        ...

    def attempts(self) -> int:
        """Return how many dead letters were sent, including those that were lost."""
        ...

    def letters(self) -> list[Message]:
        """Return every dead letter so far, without removing it."""
        ...

    def deliveries(self, body: bytes) -> int:
        """Return how often the broker has delivered a message."""
        ...

    def watch(self, observer: AckObserver) -> None:
        """Call an observer with every message before the broker gets its ack."""
        ...

    def left(self) -> int:
        """Return how many messages wait in the source; those that consumers hold are not counted."""
        ...

    def put_away(self) -> int:
        """Return how many messages the broker itself has put away because they came back too often."""
        ...

    def close(self) -> None:
        """End every consumer, and delete everything that the stage made."""
        ...
