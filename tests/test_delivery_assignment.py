"""``mqauth.delivery.assignment``: the rules for partitions of a log, told facts and asked for wishes."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from integration.scale import nightly
from mqauth import Cause, ConfigurationError, Message, Origin
from mqauth.clock import Backoff
from mqauth.delivery.assignment import COMMIT_PACE, COMMIT_RETRY, RENEWAL, Assignment
from mqauth.delivery.partition import ClientCalls, Partition, offset_of
from mqauth.delivery.start import Committed, Start
from mqauth.judging.pipeline import Outcome, Step, Verdict
from mqauth.replay.rules import ClaimRequest
from mqauth.testing import FakeClock

SESSION = 45.0
DONE = Outcome(Verdict.ACCEPTED)
LATER = Outcome(Verdict.DEFERRED, cause=Cause.HANDLER_DEFERRED)


class At(NamedTuple):
    """A partition, as a client might name it."""

    topic: str
    partition: int


ZERO, ONE, TWO = (At("orders", number) for number in range(3))
HELD = frozenset((ZERO, ONE, TWO))


def records(*offsets: int, place: At = ZERO) -> list[Message]:
    """Return the records at these offsets."""
    origins = [
        Origin(topic=place.topic, partition=place.partition, offset=offset)
        for offset in offsets
    ]
    return [
        Message(destination="kafka:orders", body=b"", origin=origin) for origin in origins
    ]


def committed(assignment: Assignment) -> dict[Any, int]:
    """Commit what is due, and return it."""
    due = assignment.due_commits()
    assignment.committed(due, assignment.commit_began())
    return {partition.topic_partition: offset for partition, offset in due.items()}


def chosen(assignment: Assignment) -> Partition:
    """Return what is chosen, which must be something."""
    partition = assignment.choose()
    assert partition is not None
    return partition


def carry(assignment: Assignment, count: int = 1, outcome: Outcome = DONE) -> Partition:
    """Carry so many records of what is chosen to an end, and leave it."""
    partition = chosen(assignment)
    for _ in range(count):
        assignment.attempted(partition, outcome)
    assignment.visit_ended(partition)
    return partition


def start(offset: int = 0, *, seek: bool = False) -> Start:
    """Return the start of a partition at an offset."""
    return Start(offset, Committed(offset, "mqauth partitions=3"), seek)


@pytest.fixture
def fresh(clock: FakeClock) -> Assignment:
    """Two at once, of which nothing was begun."""
    return Assignment(
        clock, backoff=Backoff(first=1, longest=1), session=SESSION, width=2
    )


@pytest.fixture
def assignment(fresh: Assignment) -> Assignment:
    """Two at once, all begun at offset 0."""
    fresh.begin({place: start() for place in (ZERO, ONE, TWO)}, HELD)
    return fresh


def part(assignment: Assignment, place: At) -> Partition:
    """Return a partition, which must have been begun."""
    partition = assignment.partition(place)
    assert partition is not None
    return partition


def test_nothing_comes_of_what_was_not_begun(fresh: Assignment) -> None:
    """What is received of a partition before it was begun is read again then, and not fetched in between."""
    fresh.receive(ZERO, records(7, 8))
    fresh.receive(ZERO, records(9))
    wanted = fresh.client_calls(HELD, frozenset())
    assert (wanted.pause, wanted.seek, fresh.choose()) == (HELD, {ZERO: 7}, None)
    assert fresh.final_calls(HELD, HELD) == ClientCalls(
        pause=frozenset(), resume=HELD, seek={ZERO: 7}
    )
    fresh.begin({ZERO: start(5), ONE: start(3, seek=True)}, HELD)
    fresh.receive(ZERO, records(10))
    wanted = fresh.client_calls(HELD, HELD)
    assert (wanted.resume, wanted.seek, fresh.choose()) == (
        {ZERO, ONE},
        {ZERO: 7, ONE: 3},
        None,
    )
    fresh.receive(ZERO, records(7))
    assert chosen(fresh).settled == 5


def test_what_could_not_be_begun_rests(fresh: Assignment, clock: FakeClock) -> None:
    """Partitions whose start could not be committed are to be begun again after a second."""
    assert fresh.unbegun(HELD) == HELD
    fresh.begin({ZERO: start()}, HELD)
    assert fresh.unbegun(HELD) == frozenset()
    clock.advance(COMMIT_RETRY)
    assert fresh.unbegun(HELD) == {ONE, TWO}


def test_nothing_begins_while_it_is_revoked(fresh: Assignment) -> None:
    """Between the two calls of an eager rebalance no partition is begun: it may not come back."""
    fresh.revoked({ZERO, ONE}, held={ZERO, ONE})
    assert fresh.unbegun({ZERO, ONE}) == frozenset()
    fresh.assigned(held={ZERO})
    assert fresh.unbegun({ZERO}) == {ZERO}
    fresh.revoked({TWO}, held={ZERO})
    assert fresh.unbegun({ZERO}) == {ZERO}


@pytest.mark.parametrize(
    ("end", "seek"), [("back", {ZERO: 7}), ("revoked", {}), ("lost", {})]
)
def test_what_came_too_early_goes_with_its_partition(
    fresh: Assignment, end: str, seek: dict[At, int]
) -> None:
    """A partition that others may have had is read from where they have left it; one that came back is not."""
    fresh.receive(ZERO, records(7))
    if end == "lost":
        fresh.lost({ZERO})
    else:
        fresh.revoked({ZERO}, held=HELD)
    fresh.assigned(HELD if end == "back" else {ONE})
    fresh.assigned(HELD)
    fresh.begin({ZERO: start(6)}, {ZERO})
    assert fresh.client_calls(HELD, frozenset()).seek == seek


def test_rebalances_are_counted(fresh: Assignment) -> None:
    """Whoever waited for an answer can tell whether partitions may be of others by now."""
    epochs = [fresh.epoch]
    for tell in (
        lambda: fresh.revoked({ZERO}, held=HELD),
        lambda: fresh.assigned(HELD),
        lambda: fresh.lost({ONE}),
    ):
        tell()
        epochs.append(fresh.epoch)
    assert len(set(epochs)) == len(epochs)


def test_idle_partitions_are_committed_again(
    assignment: Assignment, clock: FakeClock
) -> None:
    """Offsets expire at the broker: all are committed twice a day, also where nothing comes."""
    clock.advance(RENEWAL - 1)
    assert committed(assignment) == {}
    clock.advance(1)
    assert committed(assignment) == {ZERO: 0, ONE: 0, TWO: 0}
    assert committed(assignment) == {}
    clock.advance(RENEWAL)
    assert committed(assignment) == {ZERO: 0, ONE: 0, TWO: 0}


def test_records_that_are_gone_are_left_behind(
    assignment: Assignment, clock: FakeClock
) -> None:
    """Where the next records are gone, what waits is tried when it is due, and what is left is read after it."""
    assignment.receive(ZERO, records(0, 1))
    partition = carry(assignment, outcome=LATER)
    assignment.skipped(partition, 6)
    assert assignment.choose() is None
    assert assignment.client_calls(HELD, frozenset()).seek == {ZERO: 6}
    clock.advance(1)
    carry(assignment)
    assert committed(assignment) == {ZERO: 6}


def test_commits_after_a_batch_and_at_intervals(
    assignment: Assignment, clock: FakeClock
) -> None:
    """A batch that is long is committed at intervals, one that ended a tenth of a second after the last."""
    assignment.receive(ZERO, records(0, 1))
    assignment.receive(ONE, records(0, place=ONE))
    partition = chosen(assignment)
    assignment.attempted(partition, DONE)
    assert committed(assignment) == {}
    clock.advance(5)
    assert committed(assignment) == {ZERO: 1}
    assignment.attempted(partition, DONE)
    other = chosen(assignment)
    assignment.visit_ended(partition)
    assert assignment.due_commits() == {}
    clock.advance(2 * COMMIT_PACE)
    assert committed(assignment) == {ZERO: 2}
    assert other.running


def test_a_refused_commit_rests(assignment: Assignment, clock: FakeClock) -> None:
    """A commit that failed is made again after a second, and at once where there is no later time."""
    assignment.receive(ZERO, records(0))
    carry(assignment)
    assignment.commit_failed()
    assert committed(assignment) == {}
    assert {
        partition.topic_partition for partition in assignment.due_commits(last=True)
    } == {ZERO}
    clock.advance(COMMIT_RETRY)
    assert committed(assignment) == {ZERO: 1}


def test_what_is_put_off_stands_still(assignment: Assignment, clock: FakeClock) -> None:
    """A deferred record keeps its place and its partition waits; those behind it are read again, others go on."""
    assignment.receive(ZERO, records(0, 1, 2))
    assignment.receive(ONE, records(0, place=ONE))
    partition = chosen(assignment)
    assert not assignment.attempted(partition, LATER)
    assignment.visit_ended(partition)
    assert chosen(assignment).topic_partition == ONE
    wanted = assignment.client_calls(HELD, frozenset())
    assert (wanted.pause, wanted.seek) == ({ZERO, ONE}, {ZERO: 1})
    assert assignment.client_calls(HELD, frozenset((ZERO, ONE))).seek == {}
    assert assignment.choose() is None
    clock.advance(1)
    assert chosen(assignment) is partition
    assert len(partition.waiting) == 1


def test_waits_grow_until_something_is_settled(clock: FakeClock) -> None:
    """Each deferral in a row waits longer and keeps the time of the first; what is settled ends the row."""
    assignment = Assignment(clock, backoff=Backoff(first=1, longest=8))
    assignment.begin({ZERO: start()}, {ZERO})
    assignment.receive(ZERO, records(0, 1))
    since, waits = clock.now(), []
    for _ in range(4):
        partition = carry(assignment, outcome=LATER)
        waits.append(partition.retry_at - clock.monotonic())
        assert partition.stall.since == since
        clock.advance(8)
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits))
    assert carry(assignment).stall is None
    assert assignment.health(True).stalls == ()


@pytest.mark.parametrize("end", ["revoked", "lost"])
def test_what_was_taken_away_is_dropped(assignment: Assignment, end: str) -> None:
    """Of a partition that was taken away nothing more is begun or committed, also what runs."""
    assignment.receive(ZERO, records(0, 1))
    partition = chosen(assignment)
    assignment.attempted(partition, DONE)
    if end == "lost":
        assignment.lost({ZERO})
    else:
        assignment.revoked({ZERO}, held={ONE})
    assert assignment.next_delivery(partition) is None
    assignment.visit_ended(partition)
    assert (assignment.choose(), committed(assignment), partition.alive) == (
        None,
        {},
        False,
    )


def test_what_may_come_back_is_suspended(
    assignment: Assignment, clock: FakeClock
) -> None:
    """Between the two calls of an eager rebalance nothing is begun or committed; what came back goes on then."""
    assignment.receive(ZERO, records(0, 1))
    assignment.receive(ONE, records(0, place=ONE))
    partition = chosen(assignment)
    assignment.attempted(partition, DONE)
    assignment.revoked({ZERO, ONE}, held={ZERO, ONE})
    assert assignment.next_delivery(partition) is None
    assignment.visit_ended(partition)
    clock.advance(2 * COMMIT_PACE)
    assert (assignment.choose(), assignment.due_commits()) == (None, {})
    assignment.assigned(held={ZERO})
    assert committed(assignment) == {ZERO: 1}
    assert chosen(assignment) is partition
    assert assignment.choose() is None


def test_nothing_is_begun_before_a_rebalance(assignment: Assignment) -> None:
    """While a rebalance is due what runs may end and is committed, and nothing is begun."""
    assignment.receive(ZERO, records(0, 1))
    assignment.receive(ONE, records(0, place=ONE))
    partition = chosen(assignment)
    assignment.hold_back(True)
    assignment.attempted(partition, DONE)
    assert (assignment.next_delivery(partition), assignment.choose()) == (None, None)
    assignment.visit_ended(partition)
    assert committed(assignment) == {ZERO: 1}
    assignment.hold_back(False)
    assert chosen(assignment) is partition


def test_a_log_that_went_back_is_another(
    assignment: Assignment, clock: FakeClock
) -> None:
    """A record that was received before is one of a topic made anew: what ran of the old one is not committed."""
    assignment.receive(ZERO, records(5, 6))
    old = chosen(assignment)
    assignment.receive(ZERO, records(0))
    assignment.attempted(old, DONE)
    assignment.visit_ended(old)
    new = carry(assignment)
    clock.advance(2 * COMMIT_PACE)
    assert (old.alive, new is old, committed(assignment)) == (False, False, {ZERO: 1})


def test_all_is_paused_while_all_hands_are_full(assignment: Assignment) -> None:
    """While nothing more can be worked on nothing is fetched; what others paused stays so."""
    assignment.receive(ZERO, records(0))
    assignment.receive(ONE, records(0, place=ONE))
    first = chosen(assignment)
    assert assignment.client_calls(HELD, frozenset((TWO,))).pause == {ZERO, ONE}
    chosen(assignment)
    assert assignment.client_calls(HELD, frozenset((ZERO, ONE))).pause == {TWO}
    assignment.attempted(first, DONE)
    assignment.visit_ended(first)
    assert assignment.client_calls(HELD, HELD).resume == {ZERO, TWO}
    assert assignment.final_calls(HELD, frozenset((ONE,))).resume == {ONE}


def test_a_poll_waits_no_longer_than_a_back_off(
    assignment: Assignment, clock: FakeClock
) -> None:
    """A poll may wait for its time, but not past a record's next attempt, nor for a handler that cannot end it."""
    assert assignment.poll_timeout(0.2) == 0.2
    assignment.receive(ZERO, records(0))
    partition = carry(assignment, outcome=LATER)
    partition.retry_at = clock.monotonic() + 0.1
    assert assignment.poll_timeout(0.2) == pytest.approx(0.1)
    clock.advance(5)
    assert assignment.poll_timeout(0.2) == 0.0
    chosen(assignment)
    assert assignment.poll_timeout(0.2) == 0.0
    assert assignment.poll_timeout(0.2, beside_handlers=True) == 0.2


def paused(assignment: Assignment, clock: FakeClock, seconds: float) -> None:
    """Receive a record by a poll in which the process stood still for so long."""
    assignment.receive(ONE, records(0, place=ONE))
    carry(assignment)
    committed(assignment)
    assignment.heartbeat()
    clock.advance(seconds)
    assignment.heartbeat()
    assignment.receive(ZERO, records(7))


def test_after_a_pause_membership_is_confirmed_first(
    assignment: Assignment, clock: FakeClock
) -> None:
    """What a poll returns after a pause beyond the session is not begun before a commit succeeded."""
    paused(assignment, clock, SESSION + 1)
    assert assignment.choose() is None
    assert assignment.poll_timeout(0.2) == 0.0
    assert committed(assignment) == {ZERO: 0, ONE: 1, TWO: 0}
    assert chosen(assignment).topic_partition == ZERO


@pytest.mark.parametrize("held", [0, 3])
def test_a_clock_that_is_put_forward_costs_no_turns(
    fresh: Assignment, clock: FakeClock, held: int
) -> None:
    """After a step of the time of day an idle member polls as before, also one without partitions."""
    fresh.begin({place: start() for place in sorted(HELD)[:held]}, ())
    fresh.heartbeat()
    clock.step(3600)
    began, turns = clock.monotonic(), 0
    while clock.monotonic() - began < 10:
        turns += 1
        if fresh.due_commits():
            committed(fresh)
        fresh.heartbeat()
        clock.advance(fresh.poll_timeout(0.2) + 0.001)
        fresh.heartbeat()
    assert turns < 60


def test_a_commit_that_fails_confirms_nothing(
    assignment: Assignment, clock: FakeClock
) -> None:
    """Where the commit is refused the records wait, and go with their partition when it turns out to be lost."""
    paused(assignment, clock, SESSION + 1)
    assignment.commit_began()
    assignment.commit_failed()
    assert (assignment.choose(), committed(assignment)) == (None, {})
    assert assignment.poll_timeout(0.2) == 0.2
    assignment.lost(HELD)
    clock.advance(COMMIT_RETRY)
    assert (assignment.choose(), committed(assignment)) == (None, {})
    assignment.assigned({ZERO})
    assignment.begin({ZERO: start(7)}, {ZERO})
    assignment.receive(ZERO, records(7))
    assert chosen(assignment).topic_partition == ZERO


def test_a_commit_begun_before_the_pause_confirms_nothing(
    assignment: Assignment, clock: FakeClock
) -> None:
    """A transaction that the broker has ended before we fell asleep does not say who we are after it."""
    began = assignment.commit_began()
    paused(assignment, clock, SESSION + 1)
    assignment.committed({}, began)
    assert assignment.choose() is None


def test_a_pause_within_the_session_needs_no_confirmation(
    assignment: Assignment, clock: FakeClock
) -> None:
    """The broker keeps our partitions for as long as the session lasts."""
    paused(assignment, clock, SESSION)
    assert chosen(assignment).topic_partition == ZERO


def test_claims_to_be_given_back(assignment: Assignment) -> None:
    """What was judged ahead of its turn is given back, and what the store may hold although its answer was lost.

    What runs keeps its claim, and what was never claimed has none.
    """
    assignment.receive(ZERO, records(0))
    running = chosen(assignment)
    assignment.receive(ONE, records(0, 1, 2, 3, place=ONE))
    ahead = part(assignment, ONE).waiting
    running.waiting[0].step = ahead[0].step = ahead[1].step = Step.HANDLE
    ahead[2].claim = ClaimRequest("billing", b"id", "owner", None, False, 60.0, 0.0)
    assert assignment.unhandled_claims() == [ahead[0], ahead[1], ahead[2]]
    assert assignment.running_deliveries() == [running.waiting[0]]


@pytest.mark.parametrize("end", ["revoked", "lost", "not back"])
def test_a_pause_goes_with_its_partition(assignment: Assignment, end: str) -> None:
    """What the owner pauses after a partition came back is not resumed by us, who had paused it before."""
    assignment.receive(ZERO, records(0))
    assert assignment.client_calls(HELD, frozenset()).pause == {ZERO}
    if end == "revoked":
        assignment.revoked({ZERO}, held={ONE})
    elif end == "lost":
        assignment.lost({ZERO})
    else:
        assignment.revoked({ZERO}, held={ZERO})
        assignment.assigned(held={ONE})
    assignment.assigned(held=HELD)
    assert assignment.client_calls(HELD, frozenset((ZERO,))).resume == set()


def test_a_stop_stands_at_what_is_read_again(
    assignment: Assignment, clock: FakeClock
) -> None:
    """What was put back, and was not read again before the stop, is read by whoever goes on with the client."""
    assignment.receive(ZERO, records(0, 1, 2))
    carry(assignment, outcome=LATER)
    clock.advance(1)
    carry(assignment)
    assert assignment.final_calls(HELD, frozenset()).seek == {ZERO: 1}


def test_what_is_suspended_keeps_its_seek(assignment: Assignment) -> None:
    """A client that holds nothing during a rebalance is sent to the next open record once it holds it again."""
    assignment.receive(ZERO, records(0, 1, 2))
    assignment.revoked(HELD, HELD)
    part(assignment, ZERO).put_back()
    assert assignment.client_calls(frozenset(), frozenset()).seek == {}
    assignment.assigned(HELD)
    assert assignment.client_calls(HELD, frozenset()).seek == {ZERO: 1}


@pytest.mark.parametrize(
    ("before", "after", "goes_on"),
    [(3, 4, True), (3, 5, False), (3, 3, False), (-1, 0, False), (None, 9, True)],
)
def test_what_another_may_have_had_is_begun_anew(
    assignment: Assignment, before: int | None, after: int, goes_on: bool
) -> None:
    """Only what comes back in the very next generation is gone on with; the rest is told of and dropped."""
    assignment.receive(ZERO, records(0, 1))
    assignment.early[TWO] = 5
    assignment.revoked({ZERO, TWO}, HELD, before)
    assert assignment.assigned(HELD, after) == (frozenset() if goes_on else {ZERO, TWO})
    assert (assignment.partition(ZERO) is not None, TWO in assignment.early) == (
        goes_on,
        goes_on,
    )
    assert assignment.partition(ONE) is not None
    assert assignment.assigned(HELD, after + 7) == frozenset()


def test_a_client_that_reads_from_its_commits_is_sent_on(assignment: Assignment) -> None:
    """Records of the committed offset on are dropped until the client was told to read where it stood."""
    assignment.receive(ZERO, records(0, 1))
    assignment.revoked(HELD, HELD, 3)
    assignment.assigned(HELD, 4, at_commits=True)
    assignment.receive(ZERO, records(0, 1, 2))
    assert len(part(assignment, ZERO).waiting) == 2
    assert assignment.client_calls(HELD, frozenset()).seek[ZERO] == 2
    assignment.receive(ZERO, records(2))
    assert [offset_of(each.message) for each in part(assignment, ZERO).waiting] == [
        0,
        1,
        2,
    ]


def test_a_range_of_a_lost_partition_is_not_committed(assignment: Assignment) -> None:
    """A range that was put on record while its partition was lost says nothing of it when it is back."""
    partition = part(assignment, ZERO)
    assignment.lost({ZERO})
    assignment.skipped(partition, 5)
    assert (committed(assignment), assignment.client_calls(HELD, frozenset()).seek) == (
        {},
        {},
    )


def test_a_stopped_book_begins_nothing(assignment: Assignment) -> None:
    """After the stop what runs ends with its delivery, and nothing else begins."""
    assignment.receive(ZERO, records(0, 1))
    partition = chosen(assignment)
    assignment.stop()
    assignment.attempted(partition, DONE)
    assert assignment.next_delivery(partition) is None
    assignment.visit_ended(partition)
    assert assignment.choose() is None
    assert assignment.final_calls(HELD, frozenset()).seek == {ZERO: 1}


class Facts(RuleBasedStateMachine):
    """Facts in any order: only what is settled and ours is committed, and of one partition one handler runs."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.assignment = Assignment(
            self.clock, backoff=Backoff(first=1, longest=1), session=SESSION, width=2
        )
        self.held: set[At] = set(HELD)
        self.position = dict.fromkeys(HELD, 0)
        self.settled: dict[At, int] = dict.fromkeys(HELD, 0)
        self.running: list[Partition] = []
        self.begun: set[At] = set()
        self.revoked: set[At] = set()
        self.waking = False

    @rule(place=st.sampled_from(sorted(HELD)), count=st.integers(1, 3))
    def poll(self, place: At, count: int) -> None:
        """Let records come, where they may."""
        self.assignment.heartbeat()
        wanted = self.assignment.client_calls(frozenset(self.held), frozenset())
        self.position |= wanted.seek
        if place in self.held - self.revoked and place not in wanted.pause:
            start = self.position[place]
            self.assignment.receive(
                place, records(*range(start, start + count), place=place)
            )
            self.position[place] = start + count

    @rule(fails=st.booleans())
    def begin(self, fails: bool) -> None:
        """Begin what is to be begun, or fail."""
        places = self.assignment.unbegun(frozenset(self.held - self.revoked))
        assert not places & self.begun
        starts = {} if fails else {place: start(self.settled[place]) for place in places}
        self.assignment.begin(starts, places)
        self.begun |= starts.keys()

    @rule()
    def choose(self) -> None:
        """Begin what may be begun."""
        partition = self.assignment.choose()
        if partition is None:
            return
        assert not self.waking
        assert partition.topic_partition in (self.held - self.revoked) & self.begun
        assert partition.topic_partition not in [
            other.topic_partition for other in self.running if other.alive
        ]
        self.running.append(partition)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from([DONE, DONE, LATER]))
    def attempt(self, data: st.DataObject, outcome: Outcome) -> None:
        """End an attempt, and the visit with it where it is to end."""
        partition = data.draw(st.sampled_from(self.running))
        first = self.assignment.next_delivery(partition)
        if first is not None:
            offset = offset_of(first.message)
            assert offset == self.settled[partition.topic_partition]
            if self.assignment.attempted(partition, outcome):
                self.settled[partition.topic_partition] = offset + 1
                return
        self.assignment.visit_ended(partition)
        self.running.remove(partition)

    @rule(fails=st.booleans())
    def commit(self, fails: bool) -> None:
        """Commit what is due."""
        due = self.assignment.due_commits()
        began = self.assignment.commit_began()
        for partition, offset in due.items():
            assert partition.topic_partition in self.held - self.revoked
            assert offset <= self.settled[partition.topic_partition]
        if fails:
            return self.assignment.commit_failed()
        self.assignment.committed(due, began)
        self.waking = False

    @rule(places=st.sets(st.sampled_from(sorted(HELD))), eager=st.booleans())
    def revoke(self, places: set[At], eager: bool) -> None:
        """Take partitions away, or all of them until the rebalance ends."""
        if eager:
            self.revoked = set(self.held)
            return self.assignment.revoked(self.revoked, held=self.held)
        self.held -= places
        self.begun -= places
        self.assignment.lost(places)

    @rule(places=st.sets(st.sampled_from(sorted(HELD))))
    def assign(self, places: set[At]) -> None:
        """End a rebalance: what is new is read from where the group is."""
        self.assignment.revoked(self.held - self.revoked - places, held=places)
        for place in places - self.held:
            self.position[place] = self.settled[place]
        self.held, self.revoked, self.waking = set(places), set(), False
        self.begun &= places
        self.assignment.assigned(places)

    @rule(seconds=st.sampled_from([0.1, 2.0, 6.0, SESSION + 1]))
    def time(self, seconds: float) -> None:
        """Let time pass; beyond the session it is a pause."""
        self.assignment.heartbeat()
        self.clock.advance(seconds)
        self.assignment.heartbeat()
        self.waking = self.waking or seconds > SESSION

    @invariant()
    def counted(self) -> None:
        """The book knows what runs."""
        assert self.assignment.running == len(self.running)


TestFacts = Facts.TestCase
TestFacts.settings = settings(
    max_examples=nightly(300, otherwise=100), stateful_step_count=30, deadline=None
)


@pytest.mark.parametrize(("first", "longest"), [(0.0, 1.0), (2.0, 1.0)])
def test_a_wait_of_nothing_is_refused(
    clock: FakeClock, first: float, longest: float
) -> None:
    """A first wait that is not above 0, or above the longest, would have a broker asked without end."""
    with pytest.raises(ConfigurationError, match="backoff"):
        Assignment(clock, backoff=Backoff(first=first, longest=longest))
