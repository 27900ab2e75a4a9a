"""A consumer of a queue stops in its time, whichever of its client's calls never returns."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mqauth import AuditFile, Cause, MemoryReplayStore, Message, Pipeline
from mqauth.brokers import event_loop
from mqauth.brokers.event_loop import on_thread
from mqauth.brokers.queue.client import OpenChannel
from mqauth.brokers.queue.consumer import QueueConsumer
from mqauth.brokers.queue.subscription import AFTER_CANCEL, Subscription
from mqauth.judging.token import Times
from mqauth.testing import FakeClock, Forge
from tests.delivery_parts import held

PLACE = "rabbitmq:shop/orders.created"
SOON = 5.0
"""Seconds: far more than a stop takes here, and far less than for ever."""


class Client:
    """The calls of a client that delivers one message; the calls of some names never return.

    Args:
        message: what it delivers.
        hangs: names of calls.
    """

    queue = "orders"
    reopens = True

    def __init__(self, message: Message, *hangs: str) -> None:
        self._message = message
        self._hangs = hangs
        self.made: list[str] = []
        self.asked, self.answers = asyncio.Event(), asyncio.Event()

    async def _call(self, name: str) -> bool:
        self.made.append(name)
        self.asked.set()
        if name in self._hangs:
            await self.answers.wait()
        return True

    async def ready(self) -> None:
        """Be ready."""
        await self._call("ready")

    async def open(self, _prefetch: int) -> OpenChannel:
        """Open a channel."""
        return OpenChannel(self, self.send, self, None)  # type: ignore[arg-type]

    async def consume(
        self, _channel: object, take: Callable[[Any], Awaitable[None]]
    ) -> str:
        """Deliver the message."""
        asyncio.get_running_loop().call_soon(
            lambda: asyncio.ensure_future(take(SimpleNamespace()))
        )
        return "tag"

    async def cancel(self, _consumer: str) -> None:
        """Cancel the consumer."""
        await self._call("cancel")

    async def send(self, _tag: int, _multiple: bool) -> bool:
        """Send an ack."""
        return await self._call("send")

    async def requeue(self, _native: object) -> bool:
        """Give it back."""
        return await self._call("requeue")

    def message(self, _native: object) -> Message:
        """Return the message."""
        return self._message

    def watch(self, *_: object) -> None:
        """Tell nobody."""

    def unwatch(self) -> None:
        """Tell nobody."""
        self.made.append("unwatch")

    def _no(self, *_: object) -> bool:
        return False

    ended = is_settled = is_blocked = may_be_refused = is_temporary = _no

    def tag(self, _native: object) -> int:
        """Return its number."""
        return 1

    def consumer(self, _native: object) -> str:
        """Return its consumer's tag."""
        return "tag"

    def size(self, _native: object) -> int:
        """Return its size."""
        return 1

    def returns(self, _native: object) -> int:
        """Return how often it was given back."""
        return 0


def consumer(handler: Any, audit: AuditFile, *hangs: str) -> tuple[QueueConsumer, Client]:
    """Return a consumer without a grace, and its client, some of whose calls never return."""
    forge = Forge(lifetime=600)
    client = Client(
        forge.signer().sign(Message(destination=PLACE, body=b"order")), *hangs
    )
    guard = Pipeline(
        verifier=forge.verifier(),
        policy=forge.policy(PLACE),
        replay=MemoryReplayStore(),
        audit=audit,
    )
    settings: dict[str, Any] = {
        "prefetch": 1, "coalesce_acks": True, "grace": 0, "hold": 60, "consumer_timeout": 1800,
        "delivery_limit": -1, "max_held": None, "decode": None, "responder": None, "sleep": asyncio.sleep,
        "unverified": None,
    }  # fmt: skip
    letters: Any = SimpleNamespace(name="dead", publish=lambda _: None)
    return QueueConsumer(client, guard, handler, dead_letters=letters, **settings), client


@pytest.fixture
def audit(tmp_path: Path) -> Iterator[AuditFile]:
    """An audit file."""
    with AuditFile(tmp_path / "audit.jsonl", fsync=False) as found:
        yield found


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a stop wait for the broker for a moment only."""
    monkeypatch.setattr(event_loop, "LEAVE", 0.05)
    monkeypatch.setattr(event_loop, "_MOMENT", 0.01)


@pytest.mark.parametrize(
    ("hangs", "then"),
    [
        (("ready",), ["unwatch"]),
        (("cancel",), ["send", "cancel", "unwatch"]),
        (("send",), ["send", "cancel", "unwatch"]),
        (("cancel", "send"), ["send", "cancel", "unwatch"]),
        (("requeue",), ["cancel", "requeue", "unwatch"]),
        (("cancel", "requeue"), ["cancel", "requeue", "unwatch"]),
    ],
    ids=" ".join,
)
async def test_a_call_that_never_returns(
    hangs: tuple[str, ...],
    then: list[str],
    audit: AuditFile,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A stop ends, and says so where nothing was answered; what needs no answer was sent all the same."""
    begun = asyncio.Event()

    async def handler(_message: Any) -> None:
        begun.set()
        if "requeue" in hangs:
            await client.answers.wait()

    made, client = consumer(handler, audit, *hangs)
    running = asyncio.create_task(made.run())
    await (client.asked if hangs == ("ready",) else begun).wait()
    try:
        async with asyncio.timeout(SOON):
            await made.stop()
    finally:
        client.answers.set()
        await running
    assert client.made == ["ready", *then]
    assert caplog.text.count("does not answer a consumer that stops") == (
        hangs != ("requeue",)
    )


async def test_a_thread_is_waited_for(audit: AuditFile) -> None:
    """A plain handler that outlives its grace and the broker's time is not cut off, and its message is acked."""
    begun, ends = threading.Event(), threading.Event()

    def handler(_message: Any) -> None:
        begun.set()
        ends.wait(SOON)

    made, client = consumer(on_thread(handler), audit)
    async with made:
        await asyncio.to_thread(begun.wait, SOON)
        stopping = asyncio.create_task(made.stop())
        await asyncio.wait((stopping,), timeout=0.2)
        assert not stopping.done()
        ends.set()
        await stopping
    assert client.made[-2:] == ["send", "unwatch"]


async def test_a_clean_up_is_not_cut_short(audit: AuditFile) -> None:
    """A handler that is cancelled cleans up, however long after the broker's time, and its message goes back."""
    begun, ends = asyncio.Event(), asyncio.Event()
    cleaned: list[bool] = []

    async def handler(_message: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await ends.wait()
            cleaned.append(True)

    made, client = consumer(handler, audit)
    async with made:
        await begun.wait()
        stopping = asyncio.create_task(made.stop())
        await asyncio.wait((stopping,), timeout=0.2)
        assert (stopping.done(), cleaned) == (False, [])
        ends.set()
        await stopping
    assert (cleaned, client.made[-2:]) == ([True], ["requeue", "unwatch"])


# A queue is kept consumed, and is not while it is suspended, also where a consumer is being started.


class Early:
    """A client whose broker cancels the first consumer before the call that starts it has returned its tag."""

    queue, reopens, ended = "q", False, None

    def __init__(self) -> None:
        self.started: list[str] = []
        self.cancelled: list[str] = []

    def watch(self, _closed: object, cancelled: Callable[[str], None]) -> None:
        """Remember who is told of a cancel."""
        self.tell = cancelled

    async def ready(self) -> None:
        """Be ready."""

    async def open(self, _prefetch: int) -> OpenChannel:
        """Open a channel."""
        return OpenChannel(object(), None, None, None)  # type: ignore[arg-type]

    async def consume(self, _channel: object, _take: object) -> str:
        """Start a consumer; the first is cancelled at once."""
        tag = f"consumer {len(self.started)}"
        self.started.append(tag)
        if len(self.started) == 1:
            self.tell(tag)
        return tag

    async def cancel(self, consumer: str) -> None:
        """Cancel a consumer."""
        self.cancelled.append(consumer)


def made(calls: Any, clock: FakeClock, sleep: Any) -> Subscription:
    """Return a subscription that takes no delivery."""
    guard: Any = SimpleNamespace(
        clock=clock,
        lease=60,
        handlers=lambda *_: None,
        verifier=SimpleNamespace(times=Times(), issuers=()),
    )
    return Subscription(
        calls,
        guard,
        print,
        fail=print,
        dead_letters=None,
        coalesce_acks=False,
        sleep=sleep,
    )


async def test_cancelled_before_its_tag_is_known() -> None:
    """A cancel that comes in one read with the answer to ``basic.consume`` has the queue consumed anew, later."""
    calls, clock, slept = Early(), FakeClock(), list[float]()

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    subscription = made(calls, clock, sleep)
    window = subscription.window
    running = asyncio.create_task(subscription.run())
    for _ in range(100):
        await asyncio.sleep(0)
    assert (window.consumer, calls.started, slept) == (
        "consumer 1",
        ["consumer 0", "consumer 1"],
        [AFTER_CANCEL],
    )
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


class Slow(Early):
    """A client whose broker starts a consumer, and whose calls return when they are told to."""

    def __init__(self) -> None:
        super().__init__()
        self.is_ready, self.answers = asyncio.Event(), asyncio.Event()

    async def ready(self) -> None:
        """Be ready later."""
        await self.is_ready.wait()

    async def consume(self, _channel: object, _take: object) -> str:
        """Start a consumer; its tag comes later."""
        self.started.append(tag := f"consumer {len(self.started)}")
        await self.answers.wait()
        return tag


class Suspending:
    """A subscription whose queue is suspended for one delivery."""

    def __init__(self) -> None:
        self.calls, clock = Slow(), FakeClock()
        self.probed = 0
        self.subscription = made(self.calls, clock, asyncio.sleep)
        self.subscription.probe = self.probe  # type: ignore[method-assign]
        self.window = self.subscription.window
        self.held = held(Cause.REPLAY_STORE_UNAVAILABLE)
        self.running = asyncio.create_task(self.subscription.run())
        self.suspending: Any = None

    async def probe(self, _delivery: object) -> bool:
        """Find that the cause is over."""
        self.probed += 1
        return True

    async def suspend(self) -> bool:
        """Begin to suspend; tell whether that has ended."""
        self.suspending = asyncio.create_task(self.subscription.suspend(self.held))
        return await self.ended()

    async def ended(self) -> bool:
        """Let everything go on, and tell whether suspending has ended."""
        for _ in range(20):
            await asyncio.sleep(0)
        return bool(self.suspending.done())

    async def give_back(self) -> None:
        """End the waiting of the delivery, as whoever gives it back does."""
        self.held.end()
        self.subscription.look()
        await self.ended()

    async def stop(self) -> None:
        """End the task."""
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)


async def test_a_consumer_being_started_is_cancelled_before_the_queue_is_suspended() -> (
    None
):
    """It runs at the broker before its tag is known here; what goes back would come to it."""
    at = Suspending()
    at.calls.is_ready.set()
    await asyncio.sleep(0)
    assert not await at.suspend()
    assert (at.calls.started, at.calls.cancelled) == (["consumer 0"], [])
    at.calls.answers.set()
    assert await at.ended()
    assert at.calls.cancelled == ["consumer 0"]
    await at.stop()


async def test_no_consumer_is_started_in_a_suspended_queue() -> None:
    """Where the channel becomes ready after the queue was suspended, it is consumed once the cause is over."""
    at = Suspending()
    await asyncio.sleep(0)
    assert await at.suspend()
    at.calls.is_ready.set()
    at.calls.answers.set()
    await at.ended()
    assert (at.calls.started, at.window.is_out) == ([], False)
    await at.give_back()
    assert (at.probed, at.calls.started, at.window.stalled) == (1, ["consumer 0"], None)
    await at.stop()


async def test_a_delivery_is_probed_with_once_it_goes_back() -> None:
    """A probe that settled it before would have it neither given back nor acked."""
    at = Suspending()
    at.calls.is_ready.set()
    at.calls.answers.set()
    await asyncio.sleep(0)
    assert await at.suspend()
    assert at.probed == 0
    await at.give_back()
    assert at.probed == 1
    await at.stop()
