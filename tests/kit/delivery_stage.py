"""What the delivery contracts share with their stages, which start, stop and kill consumers, and cause faults.

What a stage can do stands in ``tests.simulation.kafka_stage`` (of a log) and ``tests.simulation.contract_stage``
(of a queue); those of real brokers have the same calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from mqauth import Verified

CommitObserver = Callable[[int, int], None]
"""Called with partition and offset before a commit of it is sent."""
AckObserver = Callable[[bytes], None]
"""Called with a message's body before the broker takes an ack that covers it."""
Steps = Callable[[Verified], Iterator[float]]
"""A handler for any client: a generator that yields the seconds for which it waits.

A stage turns it into what its client calls: a coroutine, or a function that sleeps. A cancellation is thrown into
the generator, which may yield once more to clean up.
"""


class Member(Protocol):
    """One running consumer of the stage's group."""

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        ...

    def health(self) -> Any:
        """Return its state: ``cause`` is why it waits, ``consuming`` whether the broker sends it messages now."""
        ...

    def close(self) -> None:
        """Stop it in order and leave the group; raises the error that ended it."""
        ...
