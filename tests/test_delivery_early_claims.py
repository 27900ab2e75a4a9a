"""``mqauth.delivery.log_work``: the claims of a batch in one round trip, the verdicts in their turns."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pytest

from mqauth.audit.record import AuditRecord
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LONG_ROW, MAX_VERDICT_AGE, ROW, EarlyClaims, LogWork
from mqauth.delivery.partition import Partition
from mqauth.delivery.start import Committed, Start
from mqauth.errors import Cause, ConfigurationError, Reason, Unavailable
from mqauth.flow import arun, run
from mqauth.judging.pipeline import Delivery, Outcome, Pipeline, Step, Verdict
from mqauth.judging.verified import Verified
from mqauth.judging.verifier import Issuer
from mqauth.letters.dead_letter import DeadLetter
from mqauth.replay.memory import MemoryReplayStore
from mqauth.replay.rules import ClaimRequest, ClaimStatus
from mqauth.testing import FakeClock, Forge
from mqauth.testing.forge import ISSUER
from mqauth.wire.keys import KeySet, Revocation
from mqauth.wire.message import Message, Origin


class Store(MemoryReplayStore):
    """Counts its round trips, and fails while told to."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.batches: list[int] = []
        self.confirms: list[int] = []
        self.claims: list[ClaimRequest] = []
        self.single = 0
        self.fails = False

    def claim(self, request: ClaimRequest, /) -> ClaimStatus:
        """Claim one."""
        self.single += 1
        return super().claim(request)

    def claim_many(self, requests: Sequence[ClaimRequest], /) -> list[ClaimStatus]:
        """Claim each."""
        self.batches.append(len(requests))
        self.claims += requests
        if self.fails:
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "told to")
        return super().claim_many(requests)

    def confirm_many(self, requests: Sequence[ClaimRequest], /) -> None:
        """Confirm each."""
        self.confirms.append(len(requests))
        if self.fails:
            raise Unavailable(Cause.REPLAY_STORE_UNAVAILABLE, "told to")
        for request in requests:
            super().confirm(request)


class Single:
    """A store of one round trip a message."""

    def __init__(self, store: Store) -> None:
        self.claim, self.confirm, self.release = store.claim, store.confirm, store.release


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
        self.assignment = Assignment(self.clock)

    def work_of(self, handler: Any, **settings: Any) -> LogWork:
        """Return what works on the assigned partitions."""
        return LogWork(
            self.pipeline(**settings), self.assignment, handler, lambda _: self
        )

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
            if (judging := ahead.judge_ahead(waiting)) is not None:
                run(judging)
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
    return replace(
        message,
        origin=Origin(scope="billing", topic="orders", partition=0, offset=offset),
    )


@pytest.fixture
def bench() -> Bench:
    """A bench."""
    return Bench()


def test_one_round_trip(bench: Bench) -> None:
    """A batch costs one claim; each is handled in order, and its claim is done at the end."""
    messages = [bench.sealed(offset) for offset in range(5)]
    outcomes = bench.work(bench.batch(messages), EarlyClaims(bench.guard))
    assert [outcome.verdict for outcome in outcomes] == [Verdict.ACCEPTED] * 5
    assert bench.handled == [b"0", b"1", b"2", b"3", b"4"]
    assert (bench.store.batches, bench.store.single) == ([5], 0)
    again = bench.batch([at(message, 9) for message in messages])
    assert {
        outcome.reason for outcome in bench.work(again, EarlyClaims(bench.guard))
    } == {Reason.REPLAYED}


@pytest.mark.parametrize(
    ("store", "seconds", "trips"),
    [
        ("near", 0.0, [ROW] * 5 + [6]),
        ("near", 0.002, [ROW, LONG_ROW, 6]),
        ("near a loop", 0.002, [ROW] * 5 + [6]),
        ("far from a loop", 0.002, [5 * ROW + 6]),
    ],
)
def test_a_store_in_this_process_is_asked_for_some_of_a_poll_at_a_time(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    store: str,
    seconds: float,
    trips: list[int],
) -> None:
    """A far store is asked once for all that waits; a near one for a row; slow handlers make it long."""
    monkeypatch.setattr(Store, "in_process", store.startswith("near"))
    messages = [bench.sealed(offset) for offset in range(5 * ROW + 6)]
    bench.seconds = seconds
    outcomes = bench.work(
        bench.batch(messages), EarlyClaims(bench.guard, on_loop=store.endswith("loop"))
    )
    assert {outcome.verdict for outcome in outcomes} == {Verdict.ACCEPTED}
    assert bench.handled == [b"%d" % offset for offset in range(5 * ROW + 6)]
    assert (bench.store.batches, bench.store.single) == (trips, 0)


def test_of_a_row_that_grew_too_old_few_are_judged_again(bench: Bench) -> None:
    """After a row that was too old before its end, the next one is as long as is handled in half of that time."""
    waiting = bench.batch([bench.sealed(offset) for offset in range(20)])
    bench.seconds = MAX_VERDICT_AGE * 0.16
    outcomes = bench.work(waiting, EarlyClaims(bench.guard))
    assert {outcome.verdict for outcome in outcomes} == {Verdict.ACCEPTED}
    assert (bench.store.batches, bench.store.single) == ([20, 3, 3, 3, 3], 1)


def test_an_answer_is_awaited_in_an_event_loop(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an event loop a store may answer by an awaitable: it is asked once for all there, too."""

    class Awaited(Store):
        """Plain where no event loop runs, like the Redis store of a file; it gives its answers to be awaited."""

        def claim_many(self, requests: Sequence[ClaimRequest], /) -> Any:
            """Claim nothing before it is awaited."""

            async def answer() -> list[ClaimStatus]:
                return super(Awaited, self).claim_many(requests)

            return answer()

    monkeypatch.setattr(bench, "store", Awaited(clock=bench.clock))
    messages = [bench.sealed(offset) for offset in range(5)]
    assert (
        on_loop(bench.pipeline(), bench.batch(messages), bench) == [Verdict.ACCEPTED] * 5
    )
    assert (bench.store.batches, bench.store.single) == ([5], 0)


def test_claims_without_an_answer_are_remembered(bench: Bench) -> None:
    """Where the answer to a batch's claims is lost each delivery knows what the store may hold for it."""
    waiting = bench.batch([bench.sealed(offset) for offset in range(3)])
    bench.store.fails = True
    run(EarlyClaims(bench.guard).judge_ahead(waiting))
    assert [each.step for each in waiting] == [Step.JUDGE] * 3
    assert [None if each.claim is None else each.claim.place for each in waiting] == [
        each.message.origin.coordinates for each in waiting
    ]


def test_copies_in_a_batch(bench: Bench) -> None:
    """Of a message and its copy in one batch the first is handled, and the copy is dead-lettered in its turn."""
    message = bench.sealed(0)
    waiting = bench.batch([message, bench.sealed(1), at(message, 2)])
    ahead = EarlyClaims(bench.guard)
    run(ahead.judge_ahead(waiting))
    assert (bench.records, bench.letters, bench.handled) == ([], [], [])
    outcomes = bench.work(waiting, EarlyClaims(bench.guard))
    assert [outcome.reason for outcome in outcomes] == [None, None, Reason.REPLAYED]
    assert (len(bench.records), len(bench.letters), bench.handled) == (1, 1, [b"0", b"1"])


def test_forged_cost_no_claim(bench: Bench) -> None:
    """What is rejected before its claim is not claimed, and is recorded and dead-lettered in its turn alone."""
    forged = bench.sealed(1, key=bench.forge.stranger)
    waiting = bench.batch([bench.sealed(0), forged, bench.sealed(2)])
    run(EarlyClaims(bench.guard).judge_ahead(waiting))
    assert (bench.store.batches, bench.records) == ([2], [])
    outcomes = bench.work(waiting, EarlyClaims(bench.guard))
    assert [outcome.verdict for outcome in outcomes] == [
        Verdict.ACCEPTED,
        Verdict.REJECTED,
        Verdict.ACCEPTED,
    ]


class AsyncPolicy:
    """A policy that has to be awaited."""

    version = "1"

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    async def decide(self, verified: Verified) -> Any:
        """Decide."""
        return self._policy.decide(verified)


def on_loop(guard: Pipeline, deliveries: list[Delivery], bench: Bench) -> list[Verdict]:
    """Judge ahead in an event loop, and carry each to its end."""

    async def work() -> list[Verdict]:
        if (
            judging := EarlyClaims(guard, on_loop=True).judge_ahead(deliveries)
        ) is not None:
            await arun(judging)
        return [
            (await arun(guard.process(each, bench.handle, bench))).verdict
            for each in deliveries
        ]

    return asyncio.run(work())


def test_awaited_policy(bench: Bench) -> None:
    """In an event loop a policy may be asynchronous: then each is judged and claimed when it is processed."""
    guard = bench.pipeline(policy=AsyncPolicy(bench.forge.policy("kafka:orders")))
    assert (
        on_loop(guard, bench.batch([bench.sealed(0), bench.sealed(1)]), bench)
        == [Verdict.ACCEPTED] * 2
    )
    assert (bench.store.batches, bench.store.single) == ([], 2)


def test_key_not_looked_for_ahead(bench: Bench) -> None:
    """In an event loop nobody looks for a key ahead: the look may block, and its turn has one that does not."""
    keys = LookedFor(KeySet([]))
    guard = bench.pipeline(
        verifier=bench.forge.verifier(keys={ISSUER: Issuer(keys=keys)})
    )
    run(
        EarlyClaims(guard, on_loop=True).judge_ahead(
            bench.batch([bench.sealed(0), bench.sealed(1)])
        )
    )
    assert (keys.looks, bench.store.batches) == (0, [])
    run(EarlyClaims(guard).judge_ahead(bench.batch([bench.sealed(0), bench.sealed(1)])))
    assert keys.looks == 1


@pytest.mark.parametrize(
    "way", ["out of reach", "one claim at a time", "fewer answers than asked"]
)
def test_a_batch_that_is_not_claimed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Each is judged in its turn then, and may be claimed by the same owners."""
    bench.store.fails = way == "out of reach"
    if way == "one claim at a time":
        bench.guard = bench.pipeline(replay=Single(bench.store))
    if way == "fewer answers than asked":
        monkeypatch.setattr(
            bench.store, "claim_many", lambda _requests: [ClaimStatus.FRESH]
        )
    outcomes = bench.work(
        bench.batch([bench.sealed(0), bench.sealed(1)]), EarlyClaims(bench.guard)
    )
    assert [outcome.verdict for outcome in outcomes] == [Verdict.ACCEPTED] * 2
    assert bench.store.single == 2


def test_waits_for_the_world(bench: Bench) -> None:
    """A record whose key cannot be fetched ends the look: those behind it are neither judged nor claimed."""
    source = Keys(KeySet([bench.forge.key]))
    bench.guard = bench.pipeline(
        verifier=bench.forge.verifier(keys={ISSUER: Issuer(keys=source)})
    )
    unknown = bench.sealed(1, key=bench.forge.stranger)
    waiting = bench.batch([bench.sealed(0), unknown, bench.sealed(2)])
    outcomes = bench.work(waiting, EarlyClaims(bench.guard))
    assert [outcome.verdict for outcome in outcomes] == [
        Verdict.ACCEPTED,
        Verdict.DEFERRED,
    ]
    assert bench.store.batches == [1]
    assert waiting[1].step is Step.JUDGE


def test_old_verdicts(bench: Bench) -> None:
    """A verdict that waited too long for its turn is reached anew: a key revoked meanwhile counts."""
    source = Keys(bench.forge.keys)
    bench.guard = bench.pipeline(
        verifier=bench.forge.verifier(keys={ISSUER: Issuer(keys=source)})
    )
    waiting = bench.batch([bench.sealed(0), bench.sealed(1), bench.sealed(2)])
    ahead = EarlyClaims(bench.guard)
    run(ahead.judge_ahead(waiting))
    source.keys = KeySet(
        [replace(bench.forge.key, revocation=Revocation(reason="stolen"))]
    )
    assert (
        run(bench.guard.process(waiting.pop(0), bench.handle, bench)).verdict
        is Verdict.ACCEPTED
    )
    bench.clock.advance(MAX_VERDICT_AGE)
    outcomes = bench.work(waiting, ahead)
    assert [outcome.reason for outcome in outcomes] == [Reason.KEY_REVOKED] * 2
    assert bench.handled == [b"0"]


def test_no_place(bench: Bench) -> None:
    """A delivery without an exact place is claimed in its turn: it could not be claimed again from there."""
    waiting = bench.batch([at(bench.sealed(0), None), bench.sealed(1), bench.sealed(2)])
    outcomes = bench.work(waiting, EarlyClaims(bench.guard))
    assert [outcome.verdict for outcome in outcomes] == [Verdict.ACCEPTED] * 3
    assert (bench.store.batches, bench.store.single) == ([2], 1)


def test_asynchronous_policy(bench: Bench) -> None:
    """An asynchronous plug-in stops the consumer, ahead as in turn."""

    class Later:
        version = "1"

        async def decide(self, _verified: Verified) -> None:
            """Decide nothing."""

    bench.guard = bench.pipeline(policy=Later())
    with pytest.raises(ConfigurationError, match="asynchronous"):
        run(
            EarlyClaims(bench.guard).judge_ahead(
                bench.batch([bench.sealed(0), bench.sealed(1)])
            )
        )


def test_time_of_a_verdict(bench: Bench) -> None:
    """Observers are told each verdict's share of the time."""
    seen: list[float | None] = []
    bench.guard = bench.pipeline(
        observers=[lambda outcome, _message, _seconds: seen.append(outcome.judge_seconds)]
    )
    bench.work(bench.batch([bench.sealed(0), bench.sealed(1)]), EarlyClaims(bench.guard))
    assert seen == [0.0, 0.0]  # by a clock that stands


# --- confirms -----------------------------------------------------------------------------------------------


class TopicPartition(NamedTuple):
    """The name of a partition."""

    topic: str
    partition: int


PLACE = TopicPartition("orders", 0)


def visited(
    bench: Bench, messages: Sequence[Message], handler: Any = None, **settings: Any
) -> Partition:
    """Return a partition whose records a worker has taken to their end."""
    bench.assignment.begin({PLACE: Start(0, Committed(0, ""), seek=False)}, (PLACE,))
    bench.assignment.receive(PLACE, messages)
    partition = bench.assignment.choose()
    assert partition is not None
    bench.work_of(handler or bench.handle, **settings).visit(partition)
    return partition


def test_what_was_handled_is_confirmed_in_one_round_trip(bench: Bench) -> None:
    """One call confirms each row before the next is judged, and one the last row; then copies are replays."""
    bench.store.in_process = True  # type: ignore[misc]
    messages = [bench.sealed(offset) for offset in range(ROW + 2)]
    seen: list[list[int]] = []
    visited(bench, messages, lambda _: seen.append([*bench.store.confirms]))
    assert (bench.store.confirms, seen) == ([ROW, 2], [[]] * ROW + [[ROW]] * 2)
    again = [
        bench.store.claim(replace(claim, owner="again")) for claim in bench.store.claims
    ]
    assert again == [ClaimStatus.REREAD] * len(messages)


def test_a_record_that_is_not_handled_again_is_confirmed_at_once(bench: Bench) -> None:
    """Where a record read again is settled without its handler, each confirm comes before the next handler."""
    visited(bench, [bench.sealed(offset) for offset in range(3)], reread="duplicate")
    assert (bench.handled, bench.store.confirms) == ([b"0", b"1", b"2"], [])
    again = [
        bench.store.claim(replace(claim, owner="again")) for claim in bench.store.claims
    ]
    assert again == [ClaimStatus.REREAD] * 3


def test_accepted_records_are_recorded_before_their_row_is_confirmed(
    bench: Bench,
) -> None:
    """With ``record="all"`` each has its audit record, and its claim is confirmed with the others."""
    visited(bench, [bench.sealed(0), bench.sealed(1)], record="all")
    assert ([each.verdict for each in bench.records], bench.store.confirms) == (
        ["accepted"] * 2,
        [2],
    )


def test_a_store_out_of_reach_is_told_again(bench: Bench) -> None:
    """What could not be confirmed is settled; its partition waits, and confirms it once the store is back."""

    def handler(verified: Verified) -> None:
        bench.store.fails = True
        bench.handle(verified)

    partition = visited(bench, [bench.sealed(0), bench.sealed(1)], handler)
    assert (partition.next, len(partition.done)) == (2, 2)
    assert partition.stall is not None
    assert partition.stall.cause is Cause.REPLAY_STORE_UNAVAILABLE
    assert bench.assignment.choose() is None
    bench.store.fails = False
    bench.clock.advance(60)
    assert bench.assignment.choose() is partition
    bench.work_of(bench.handle).visit(partition)
    again = [
        bench.store.claim(replace(claim, owner="again")) for claim in bench.store.claims
    ]
    assert again == [ClaimStatus.REREAD] * 2
    assert len(bench.handled) == 2
    assert bench.assignment.choose() is None
    assert partition.stall is None


def test_what_was_handled_before_a_partition_was_lost_is_confirmed(bench: Bench) -> None:
    """The next owner of a partition that is taken away during a handler finds what was handled to be done."""
    visited(
        bench,
        [bench.sealed(0), bench.sealed(1)],
        lambda _: bench.assignment.lost([PLACE]),
    )
    assert bench.store.confirms == [1]
