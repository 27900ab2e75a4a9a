"""``mqauth.delivery.log_work``: the claims of a batch in one round trip, the verdicts in their turns."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from mqauth.audit.record import AuditRecord
from mqauth.delivery.log_work import EarlyClaims
from mqauth.errors import Cause, ConfigurationError, Unavailable
from mqauth.flow import arun, run
from mqauth.judging.pipeline import Delivery, Outcome, Pipeline, Verdict
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Issuer
from mqauth.letters.dead_letter import DeadLetter
from mqauth.replay.memory import MemoryReplayStore
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.testing import FakeClock, Forge
from mqauth.testing.forge import ISSUER
from mqauth.wire.keys import KeySet
from mqauth.wire.message import Message, Origin


class Store(MemoryReplayStore):
    """Counts its round trips, and fails while told to."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.batches: list[int] = []
        self.single = 0
        self.fails = False

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Claim one."""
        self.single += 1
        return super().claim(request)

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each."""
        self.batches.append(len(requests))
        if self.fails:
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "told to")
        return super().claim_many(requests)


@dataclass
class Keys:
    """A key source that does not know a key until it is told."""

    keys: KeySet

    def key_set(self) -> KeySet:
        """Return the keys there are."""
        return self.keys

    def refresh(self, _kid: str, _received: float) -> KeySet:
        """Find nothing out."""
        raise Unavailable(Cause.KEYS_UNAVAILABLE, "told to")


@dataclass
class LookedFor(Keys):
    """The same, counting the looks."""

    looks: int = 0

    def refresh(self, kid: str, received: float) -> KeySet:
        """Count a look."""
        self.looks += 1
        return super().refresh(kid, received)


@dataclass
class Bench:
    """A pipeline, and what came out of it."""

    clock: FakeClock = field(default_factory=FakeClock)
    handled: list[bytes | None] = field(default_factory=list)
    letters: list[DeadLetter] = field(default_factory=list)
    records: list[AuditRecord] = field(default_factory=list)
    name: str = "dead"
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.forge = Forge(self.clock, lifetime=3600)
        self.store = Store(clock=self.clock)
        self.guard = self.pipeline()

    def pipeline(self, **settings: Any) -> Pipeline:
        """Return a pipeline of the forge's."""
        wanted: dict[str, Any] = {
            "verifier": self.forge.verifier(), "policy": self.forge.policy("kafka:orders"), "replay": self.store,
            "audit": self, "clock": self.clock,
        }  # fmt: skip
        return Pipeline(**(wanted | settings))

    def write(self, record: AuditRecord, /) -> None:
        """Keep an audit record."""
        self.records.append(record)

    def publish(self, letter: DeadLetter, /) -> None:
        """Keep a dead letter."""
        self.letters.append(letter)

    def sealed(self, offset: int, **bends: Any) -> Message:
        """Return an honest message, or a bent one, at an offset."""
        message = Message(destination="kafka:orders", body=b"%d" % offset, key=b"k")
        return at(self.forge.seal(message, **bends), offset)

    def batch(self, messages: Sequence[Message]) -> list[Delivery]:
        """Return deliveries received now."""
        return [self.guard.receive(message) for message in messages]

    def work(self, waiting: list[Delivery], ahead: EarlyClaims) -> list[Outcome]:
        """Do what a worker does: each in its turn, up to the first deferred one."""
        outcomes: list[Outcome] = []
        while waiting:
            ahead.judge_ahead(waiting)
            outcomes.append(run(self.guard.process(waiting[0], self.handle, self)))
            if outcomes[-1].verdict is Verdict.DEFERRED:
                break
            waiting.pop(0)
        return outcomes

    def handle(self, verified: Verified) -> None:
        """Remember what was handled; it takes its time."""
        self.clock.advance(self.seconds)
        self.handled.append(verified.body)


def at(message: Message, offset: int | None) -> Message:
    """Return a message as read at an offset, or from where there are none."""
    return replace(message, origin=Origin(scope="billing", topic="orders", partition=0, offset=offset))


@pytest.fixture
def bench() -> Bench:
    """A bench."""
    return Bench()


def test_an_answer_that_would_have_to_be_awaited_is_not(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that answers an event loop by an awaitable is asked again for each delivery, in its turn."""

    class Either(Store):
        """Plain where no event loop runs, like the Redis store of a file; it gives its answers to be awaited."""

        def claim_many(self, requests: Sequence[ClaimRequest], /) -> Any:
            """Claim nothing before it is awaited."""

            async def answer() -> list[ClaimStatus]:
                return super(Either, self).claim_many(requests)

            return answer()

    monkeypatch.setattr(bench, "store", Either(clock=bench.clock))
    bench.guard = bench.pipeline()
    messages = [bench.sealed(offset) for offset in range(5)]
    outcomes = bench.work(bench.batch(messages), EarlyClaims(bench.guard, on_loop=True))
    assert [outcome.verdict for outcome in outcomes] == [Verdict.ACCEPTED] * 5
    assert (bench.store.batches, bench.store.single) == ([], 5)


def on_loop(guard: Pipeline, deliveries: list[Delivery], bench: Bench) -> list[Verdict]:
    """Judge ahead in an event loop, and carry each to its end."""

    async def work() -> list[Verdict]:
        EarlyClaims(guard, on_loop=True).judge_ahead(deliveries)
        return [(await arun(guard.process(each, bench.handle, bench))).verdict for each in deliveries]

    return asyncio.run(work())


def test_key_not_looked_for_ahead(bench: Bench) -> None:
    """In an event loop nobody looks for a key ahead: the look may block, and its turn has one that does not."""
    keys = LookedFor(KeySet([]))
    guard = bench.pipeline(verifier=bench.forge.verifier(keys={ISSUER: Issuer(keys=keys)}))
    EarlyClaims(guard, on_loop=True).judge_ahead(bench.batch([bench.sealed(0), bench.sealed(1)]))
    assert (keys.looks, bench.store.batches) == (0, [])
    EarlyClaims(guard).judge_ahead(bench.batch([bench.sealed(0), bench.sealed(1)]))
    assert keys.looks == 1


def test_store_down(bench: Bench) -> None:
    """Where the batch's claim fails each is judged in its turn, and may be claimed by the same owners."""
    bench.store.fails = True
    outcomes = bench.work(bench.batch([bench.sealed(0), bench.sealed(1)]), EarlyClaims(bench.guard))
    assert [outcome.verdict for outcome in outcomes] == [Verdict.ACCEPTED] * 2
    assert bench.store.single == 2


def test_asynchronous_policy(bench: Bench) -> None:
    """An asynchronous plug-in stops the consumer, ahead as in turn."""

    class Later:
        version = "1"

        async def decide(self, _verified: Verified) -> None:
            """Decide nothing."""

    bench.guard = bench.pipeline(policy=Later())
    with pytest.raises(ConfigurationError, match="asynchronous"):
        EarlyClaims(bench.guard).judge_ahead(bench.batch([bench.sealed(0), bench.sealed(1)]))
