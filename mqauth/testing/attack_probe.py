"""What a consumer under attack is given, what it did with each message, and the count of it all.

A consumer is made with a probe's keys, handler and observer in place of its own. The probe publishes messages past
mqauth and tells what each of them came to.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from mqauth.errors import Cause, Unavailable, Verdict
from mqauth.judging.delivery import Outcome
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Issuer
from mqauth.testing.attack_classes import classes_of
from mqauth.testing.forge import Forge
from mqauth.testing.loop_thread import LoopThread
from mqauth.testing.stage import PATIENCE
from mqauth.wire.keys import KeySet
from mqauth.wire.message import TOKEN_HEADER, Message, fold

_TICK: Final = 0.01
ConsumerFactory = Callable[["Probe"], Any]
"""Makes a consumer with a probe's parts: something to enter by ``with`` or ``async with``, or with ``run`` and
``stop``; or a coroutine that returns one."""


class Target(Protocol):
    """Where attacks are published; every ``Stage`` is one.

    One that has ``letters``, ``remove_dead_letters`` and ``restore_dead_letters`` too, as a stage, has them tried.
    """

    destination: str
    """The canonical destination that the consumer reads from."""

    def inject(self, message: Message) -> None:
        """Publish a message there unchanged, past mqauth, confirmed."""
        ...


@dataclass(slots=True)
class Tally:
    """What was counted in all tests of a session.

    Args:
        attempts: hostile messages published, with the name of each attack.
        accepted: hostile messages that were accepted, or let through without a proof.
        other: hostile messages with another verdict or reason than expected.
        honest: honest messages published.
        condemned: honest messages that were rejected, or never accepted.
        calls: handler calls that no honest message explains.
        left_out: names of attacks that a suite leaves out.
    """

    attempts: Counter[str] = field(default_factory=Counter)
    accepted: int = 0
    other: int = 0
    honest: int = 0
    condemned: int = 0
    calls: int = 0
    left_out: set[str] = field(default_factory=set)

    def line(self) -> str:
        """Return the count in one line."""
        out = f"; left out: {', '.join(sorted(self.left_out))}" if self.left_out else ""
        return (
            f"mqauth attacks: {self.attempts.total()} attempts by {len(self.attempts)} attacks of "
            f"{len(classes_of(self.attempts))} classes, accepted {self.accepted}, other verdict or reason "
            f"{self.other}; {self.honest} honest messages, condemned {self.condemned}; handler calls for attacks "
            f"{self.calls}{out}"
        )


class KeyGate:
    """A key source that can be put out of reach.

    Args:
        keys: the keys while it is in reach.
    """

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys
        self._callbacks: list[Callable[[KeySet], object]] = []
        self.open = True

    def key_set(self) -> KeySet:
        """Return the keys.

        Raises:
            Unavailable: ``keys_unavailable``, it was put out of reach.
        """
        if not self.open:
            raise Unavailable(Cause.KEYS_UNAVAILABLE, "put out of reach by the test")
        return self._keys

    def refresh(self, kid: str, received: float, /) -> KeySet:
        """Return the keys, as ``key_set`` does."""
        return self.key_set()

    def subscribe(self, callback: Callable[[KeySet], object]) -> Callable[[], None]:
        """Have a function called once the keys are in reach again; return what ends this."""
        self._callbacks.append(callback)
        return lambda: self._callbacks.remove(callback)

    def reopen(self) -> None:
        """Put the keys in reach again, and tell whoever subscribed."""
        self.open = True
        for callback in tuple(self._callbacks):
            callback(self._keys)


class _Print(NamedTuple):
    """What a message is recognised by when it comes back from the broker."""

    body: bytes | None
    tokens: tuple[str, ...]


def _print_of(message: Message) -> _Print:
    tokens = (value for name, value in message.headers if fold(name) == TOKEN_HEADER)
    return _Print(message.body, tuple(sorted(_as_text(value) for value in tokens)))


def _as_text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class Probe:
    """The parts that a consumer under attack is made with, and what they saw.

    Args:
        target: where messages are published.
        forge: the honest producer, and the keys of attackers.
        tally: counts.

    Attributes:
        gate: the key source behind ``keys``.
        deferrals: outcomes of deliveries that could not be decided yet.
    """

    def __init__(self, target: Target, forge: Forge, tally: Tally) -> None:
        self.target, self.forge, self.tally = target, forge, tally
        self.gate = KeyGate(forge.keys)
        self.deferrals: Counter[Cause | None] = Counter()
        self._outcomes: dict[_Print, list[Outcome]] = defaultdict(list)
        self._calls: Counter[bytes | None] = Counter()
        self._honest: Counter[bytes | None] = Counter()
        self._lock = threading.Lock()

    @property
    def keys(self) -> Mapping[str, Issuer]:
        """The forge's keys under its issuer's name: the consumer's ``Verifier(keys=...)``."""
        return {self.forge.issuer: Issuer(keys=self.gate)}

    def handler(self, verified: Verified) -> None:
        """Count a call: the consumer's handler, or the first line of it."""
        with self._lock:
            self._calls[verified.body] += 1

    def observer(self, outcome: Outcome, message: Message, _seconds: float) -> None:
        """Note what a message came to: one of the pipeline's ``observers``."""
        with self._lock:
            if outcome.verdict is Verdict.DEFERRED:
                self.deferrals[outcome.cause] += 1
            else:
                self._outcomes[_print_of(message)].append(outcome)

    def attack(self, name: str, message: Message) -> None:
        """Publish a hostile message under the name of its attack."""
        self.tally.attempts[name] += 1
        self.target.inject(message)

    def honest(self, message: Message) -> None:
        """Publish a signed, honest message."""
        self.tally.honest += 1
        self._honest[message.body] += 1
        self.target.inject(message)

    def outcomes(self, message: Message) -> list[Outcome]:
        """Return what the deliveries of a message came to, but deferrals."""
        with self._lock:
            return list(self._outcomes[_print_of(message)])

    def wait(self, condition: Callable[[], bool]) -> bool:
        """Wait until a condition holds, for at most a minute; return whether it does."""
        waiting = threading.Event()
        for _ in range(int(PATIENCE / _TICK)):
            if condition():
                return True
            waiting.wait(_TICK)
        return condition()

    def unexplained_calls(self) -> int:
        """Return how many calls of the handler no honest message explains."""
        with self._lock:
            return (self._calls - self._honest).total()

    @contextmanager
    def running(self, make: ConsumerFactory) -> Iterator[None]:
        """Run a consumer that ``make`` makes, on threads of its own, for as long as the block runs."""
        thread = LoopThread()
        try:
            made = make(self)
            if inspect.isawaitable(made):
                made = thread.call(_awaited(made))
            with _entered(made, thread):
                yield
        finally:
            thread.close()


async def _awaited(work: Any) -> Any:
    return await work


@contextmanager
def _entered(consumer: Any, thread: LoopThread) -> Iterator[None]:
    """Enter a consumer, whichever of the three ways it has."""
    if hasattr(consumer, "__aenter__"):
        thread.call(consumer.__aenter__())
        try:
            yield
        finally:
            thread.call(consumer.__aexit__(None, None, None))
    else:
        with (
            consumer
            if isinstance(consumer, AbstractContextManager)
            else _on_a_thread(consumer)
        ):
            yield


@contextmanager
def _on_a_thread(consumer: Any) -> Iterator[None]:
    """Run a consumer that has ``run`` and ``stop`` alone."""
    run = consumer.run
    work = (lambda: asyncio.run(run())) if inspect.iscoroutinefunction(run) else run
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        consumer.stop()
        thread.join(PATIENCE)
