"""A small world for the core's tests: recording plug-ins that can fail on demand, in both colours."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from mqauth import (
    Attempts,
    Cause,
    KeySet,
    MemoryReplayStore,
    Message,
    Origin,
    Reason,
    Rejection,
    Unavailable,
    flow,
)
from mqauth.audit.record import AuditRecord
from mqauth.judging.pipeline import Delivery, Outcome, Pipeline
from mqauth.letters import dead_letter as deadletter
from mqauth.testing import FakeClock, Forge

# No unit test asks a server whose certificate is signed by somebody known. Reading the system's authorities takes
# some 20 ms of CPU for each TLS context, in each process.
os.environ["SSL_CERT_FILE"] = os.devnull

RABBITMQ = "rabbitmq:shop/orders.created"
KAFKA = "kafka:orders"


class Plug:
    """A function that counts its calls, fails while told to, and is a coroutine where its world is."""

    def __init__(self, function: Callable[..., Any], asynchronous: bool) -> None:
        self.function = function
        self.failure: BaseException | None = None
        self.calls = 0
        self.done: list[Any] = []
        self._asynchronous = asynchronous

    def __call__(self, *arguments: Any) -> Any:
        if self._asynchronous:
            return self._later(*arguments)
        return self._now(*arguments)

    async def _later(self, *arguments: Any) -> Any:
        await asyncio.sleep(0)
        return self._now(*arguments)

    def _now(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.failure is not None:
            raise self.failure
        result = self.function(*arguments)
        self.done.append(arguments[0])
        return result


class Plugs:
    """A plug-in made of named functions."""

    def __init__(self, asynchronous: bool, **functions: Callable[..., Any]) -> None:
        self.name = "orders.dead"
        self.version = "test"
        for name, function in functions.items():
            setattr(self, name, Plug(function, asynchronous))


class World:
    """One pipeline with everything around it; ``asynchronous`` plug-ins are run by ``arun``."""

    def __init__(
        self, clock: FakeClock, forge: Forge, asynchronous: bool = False, **settings: Any
    ) -> None:
        self.clock = clock
        self.forge = forge
        self._asynchronous = asynchronous
        self.memory = MemoryReplayStore(clock=clock)
        memory, rules = self.memory, forge.policy(RABBITMQ, KAFKA)
        self.store: Any = Plugs(
            asynchronous,
            claim=memory.claim,
            confirm=memory.confirm,
            release=memory.release,
        )
        self.audit: Any = Plugs(asynchronous, write=lambda record: record.as_dict())
        self.letters: Any = Plugs(asynchronous, publish=self._publish)
        self.policy: Any = Plugs(asynchronous, decide=rules.decide)
        self.handler = Plug(lambda verified: None, asynchronous)
        self.published: list[Message] = []
        wanted: dict[str, Any] = {
            "verifier": forge.verifier(), "policy": self.policy, "replay": self.store, "audit": self.audit,
            "clock": clock, "attempts": Attempts(limit=3, wait=0), "instance": "test",
        }  # fmt: skip
        self.pipeline = Pipeline(**(wanted | settings))

    def run(self, wish: flow.Flow[Any]) -> Any:
        """Run a flow in this world's colour."""
        return asyncio.run(flow.arun(wish)) if self._asynchronous else flow.run(wish)

    def receive(self, message: Message) -> Delivery:
        """Receive a message now."""
        return self.pipeline.receive(message)

    def process(self, delivery: Delivery | Message) -> Outcome:
        """Process a delivery, or a message received now."""
        if isinstance(delivery, Message):
            delivery = self.receive(delivery)
        return self.run(self.pipeline.process(delivery, self.handler, self.letters))

    @property
    def records(self) -> list[dict[str, Any]]:
        """The audit records that were made durable."""
        return [record.as_dict() for record in self.audit.write.done]

    def sealed(self, message: Message | None = None, **bends: Any) -> Message:
        """Return an honest message with its token."""
        return self.forge.seal(message or rabbitmq_message(), **bends)

    def _publish(self, letter: deadletter.DeadLetter) -> None:
        self.published.append(letter.whole(lambda name, value: True))


def rabbitmq_message(**changes: Any) -> Message:
    """Return an honest, unsigned message on RabbitMQ."""
    message = Message(
        destination=RABBITMQ,
        body=b"hello",
        properties={"content-type": "text/plain", "message-id": "m-1"},
        headers=(("tenant", "acme"), ("count", 3)),
        origin=Origin(queue="orders", exchange="shop", routing_key="orders.created"),
    )
    return replace(message, **changes)


def audit_record(number: int = 0, **members: Any) -> AuditRecord:
    """Return the audit record of a rejection, with members of one's own."""
    usual: dict[str, Any] = {
        "id": f"id-{number}", "time": 1_900_000_000.0, "verdict": "rejected", "reason": "replayed",
        "detail": "why", "scope": "billing", "broker": {}, "token": {}, "body_sha256": None, "body_size": None,
        "key_set": None, "policy": None, "dead_letter": None, "instance": "me",
    }  # fmt: skip
    return AuditRecord(**(usual | members))


def kafka_message(offset: int = 0, **changes: Any) -> Message:
    """Return an honest, unsigned message on Kafka."""
    message = Message(
        destination=KAFKA,
        body=b"hello",
        key=b"42",
        headers=(
            ("content-type", b"text/plain"),
            ("tenant", b"acme"),
            ("tag", b"1"),
            ("tag", b"2"),
        ),
        origin=Origin(topic="orders", partition=0, offset=offset),
    )
    return replace(message, **changes)


class Sink:
    """An audit sink that keeps records, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.records: list[AuditRecord] = []
        self.error = error

    def write(self, record: AuditRecord, /) -> None:
        """Keep one record."""
        if self.error is not None:
            raise self.error
        self.records.append(record)


class Source:
    """A source of keys: its set, and what it finds when it looks again; either may be an error.

    Args:
        found: by a second look.
        held: before that; no keys unless told.
    """

    def __init__(self, found: Any, held: Any = None) -> None:
        self.found = found
        self.held = KeySet([]) if held is None else held
        self.asked = 0
        self.looked: list[tuple[str, float]] = []

    def key_set(self) -> Any:
        """Return the set, or fail."""
        self.asked += 1
        return said(self.held)

    def refresh(self, kid: str, received: float, /) -> Any:
        """Look again."""
        self.asked += 1
        self.looked.append((kid, received))
        return said(self.found)


def said(answer: Any) -> Any:
    """Return an answer, or raise it where it is an error."""
    if isinstance(answer, Exception):
        raise answer
    return answer


def away(error: Exception | None = None) -> Source:
    """Return a key source that is out of reach; to be asked to look raises an error."""
    lost = Unavailable(Cause.KEYS_UNAVAILABLE)
    return Source(error or lost, lost)


def together(work: Callable[..., object], arguments: Iterable[Any]) -> None:
    """Do a piece of work in a thread for each argument, all at once, and wait for the last to end."""
    threads = [threading.Thread(target=work, args=(each,)) for each in arguments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


class Alarm:
    """A timer that rings when told."""

    def __init__(self) -> None:
        self.set: list[tuple[float, Callable[[], None]]] = []

    def __call__(self, seconds: float, function: Callable[[], None]) -> None:
        self.set.append((seconds, function))

    async def ring(self) -> None:
        """Let the time pass, and what follows run."""
        _, function = self.set.pop(0)
        function()
        await turns()


async def turns(count: int = 20) -> None:
    """Let what is ready in the event loop run."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def clock() -> FakeClock:
    """A clock that moves only when told."""
    return FakeClock()


@pytest.fixture
def forge(clock: FakeClock) -> Forge:
    """Honest and hostile keys."""
    return Forge(clock)


@pytest.fixture(params=[False, True], ids=["run", "arun"])
def make_world(
    request: pytest.FixtureRequest, clock: FakeClock, forge: Forge
) -> Callable[..., World]:
    """A maker of worlds, in both colours."""
    return lambda **settings: World(clock, forge, request.param, **settings)


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A world with default settings, in both colours."""
    return make_world()


@pytest.fixture
def rabbit() -> Callable[..., Message]:
    """A maker of RabbitMQ messages."""
    return rabbitmq_message


@pytest.fixture
def kafka() -> Callable[..., Message]:
    """A maker of Kafka messages."""
    return kafka_message


@pytest.fixture
def reason_of() -> Callable[[Callable[[], object]], Reason]:
    """Run something that must be rejected, and return why."""

    def run(action: Callable[[], object]) -> Reason:
        with pytest.raises(Rejection) as caught:
            action()
        return caught.value.reason

    return run


@pytest.fixture
def other_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose local time is far from UTC."""
    import time

    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
