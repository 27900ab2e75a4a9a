"""The work that every contender does: bodies, headers, keys, and a pipeline with every check on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from integration.benchmarks.client.rounds import Measured
from mqauth.audit.record import AuditRecord
from mqauth.errors import MqauthError
from mqauth.judging.pipeline import Pipeline
from mqauth.letters.dead_letter import DeadLetter
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing.forge import Forge
from mqauth.wire.destination import is_kafka
from mqauth.wire.message import HeaderPair, Message

BODY_SIZE: Final = 1024
HEADER_COUNT: Final = 5
PADDING: Final = "x-padding"
LIFETIME: Final = 3600
BATCH: Final = 64
PATIENCE: Final = 40.0
"""Seconds a round may take; it is tried once more."""
_CAPACITY: Final = 20_000_000


class RefusedError(MqauthError):
    """An honest message was refused, so the figures would be those of a rejection."""

    code = "benchmark_refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What one message carries.

    Args:
        size: bytes of the body.
        headers: number of application headers.
        padding: bytes of one header more, which no token covers; 0 for none.
    """

    size: int = BODY_SIZE
    headers: int = HEADER_COUNT
    padding: int = 0

    def body(self, number: int) -> bytes:
        """Return a body of ASCII text that begins with a number of 8 digits."""
        return f"{number:08d}".encode().ljust(self.size, b"x")[: self.size]

    def header_texts(self) -> dict[str, str]:
        """Return the headers."""
        found = {f"header-{number}": f"value {number}" for number in range(self.headers)}
        return found | ({PADDING: self.padding * "x"} if self.padding else {})

    @property
    def padding_bytes(self) -> int:
        """What the padding takes, with its name."""
        return self.padding and self.padding + len(PADDING)

    def message(self, destination: str, number: int = 0) -> Message:
        """Return one message for a destination, with header values as its broker has them."""
        on_kafka = is_kafka(destination)
        pairs: tuple[HeaderPair, ...] = tuple(
            (name, text.encode() if on_kafka else text)
            for name, text in self.header_texts().items()
        )
        return Message(destination=destination, body=self.body(number), headers=pairs)


def number_of(body: bytes | None) -> int:
    """Return the number that a body begins with."""
    return int((body or b"")[:8])


def guard(forge: Forge, *destinations: str, **settings: Any) -> Pipeline:
    """Return a pipeline with every check on and an empty replay memory."""
    wanted: dict[str, Any] = {
        "verifier": forge.verifier(),
        "policy": forge.policy(*destinations),
        "replay": MemoryReplayStore(_CAPACITY),
        "audit": Refusals(),
    }
    return Pipeline(**(wanted | settings))


class Refusals:
    """The audit sink and dead-letter sink of a benchmark, in which every message is honest.

    Args:
        on_refusal: called with the reason of the first message that is refused.
    """

    name = "refused"

    def __init__(self, on_refusal: Callable[[str], None] = lambda _: None) -> None:
        self.reason: str | None = None
        self._tell = on_refusal

    def write(self, record: AuditRecord, /) -> None:
        """Ignore an audit record."""

    def publish(self, letter: DeadLetter, /) -> None:
        """Keep the reason why a message was refused."""
        if self.reason is None:
            self.reason = str(letter.rejection.reason)
            self._tell(self.reason)

    def check(self) -> None:
        """Raise if a message was refused.

        Raises:
            RefusedError: one was.
        """
        if self.reason is not None:
            raise RefusedError(f"an honest message was refused as {self.reason}")


WAITS: Final = 0.001
"""Seconds from which a handler is taken to wait for something, a database for example."""


@dataclass(slots=True)
class Tally:
    """A handler that counts messages, works on each, and reports when it has seen all of them.

    Args:
        wanted: messages to see.
        done: called with the last one.
        work: seconds of CPU work on each message; from ``WAITS`` on it is waited for, not worked.
        arrivals: filled with the time at which each message arrived, if given.
    """

    wanted: int
    done: Callable[[], None]
    work: float = 0.0
    seen: int = 0
    arrivals: dict[int, float] | None = field(default=None)

    def __call__(self, body: bytes | None) -> None:
        """Handle one message."""
        if self.arrivals is not None:
            self.arrivals[number_of(body)] = time.perf_counter()
        if self.work:
            (time.sleep if self.work >= WAITS else spin)(self.work)
        self.seen += 1
        if self.seen == self.wanted:
            self.done()


def spin(seconds: float) -> None:
    """Keep the CPU busy for some seconds."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class RoundEnd:
    """The end of a round, with a measurement or an error; may be set from any thread."""

    def __init__(self, measure: Callable[[], Measured]) -> None:
        self._measure = measure
        self._event = threading.Event()
        self._found: Measured | None = None
        self._why = f"not done after {PATIENCE:.0f} s"

    def set(self) -> None:
        """End the round with a measurement."""
        self._found = self._measure()
        self._event.set()

    def fail(self, why: str) -> None:
        """End the round with an error."""
        self._why = why
        self._event.set()

    def is_set(self) -> bool:
        """Tell whether the round has ended."""
        return self._event.is_set()

    def wait(self) -> None:
        """Wait for the end, at most ``PATIENCE`` seconds."""
        self._event.wait(PATIENCE)

    def measured(self) -> Measured:
        """Return the measurement.

        Raises:
            RefusedError: the round did not finish.
        """
        if self._found is None:
            raise RefusedError(self._why)
        return self._found
