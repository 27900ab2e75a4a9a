"""``mqauth.delivery.book``: the rules for partitions of a log, told facts and asked for wishes."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from integration.scale import nightly
from mqauth.delivery.backoff import Backoff
from mqauth.delivery.book import COMMIT_RETRY, Book
from mqauth.delivery.part import Part, offset_of
from mqauth.errors import Cause
from mqauth.judging.pipeline import Outcome, Step, Verdict
from mqauth.replay.rules import ClaimRequest
from mqauth.testing import FakeClock
from mqauth.wire.message import Message, Origin

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
    origins = [Origin(topic=place.topic, partition=place.partition, offset=offset) for offset in offsets]
    return [Message(destination="kafka:orders", body=b"", origin=origin) for origin in origins]


def committed(book: Book) -> dict[Any, int]:
    """Commit what is due, and return it."""
    due = book.due()
    book.committed(due, book.committing())
    return {part.place: offset for part, offset in due.items()}


def chosen(book: Book) -> Part:
    """Return what is chosen, which must be something."""
    part = book.choose()
    assert part is not None
    return part


def carry(book: Book, count: int = 1, outcome: Outcome = DONE) -> Part:
    """Carry so many records of what is chosen to an end, and leave it."""
    part = chosen(book)
    for _ in range(count):
        book.attempted(part, outcome)
    book.left(part)
    return part


@pytest.fixture
def clock() -> FakeClock:
    """A clock."""
    return FakeClock()


@pytest.fixture
def book(clock: FakeClock) -> Book:
    """A book of two at once."""
    return Book(clock, backoff=Backoff(first=1, longest=1), session=SESSION, width=2)


def test_marked_running_when_chosen(book: Book) -> None:
    """A partition that was chosen is not chosen again before it was left, whenever its work begins."""
    book.receive(ZERO, records(0, 1))
    part = chosen(book)
    assert (part.place, book.choose(), book.running) == (ZERO, None, 1)
    book.left(part)
    assert chosen(book) is part


def test_prefixes_alone_are_committed(book: Book) -> None:
    """What is settled is committed once, and nothing behind the first record that is not."""
    book.receive(ZERO, records(3, 9, 12))
    carry(book, 2)
    assert committed(book) == {ZERO: 10}
    assert committed(book) == {}
    assert chosen(book).first_open == 12


def test_commits_after_a_batch_and_at_intervals(book: Book, clock: FakeClock) -> None:
    """A batch that is long is committed at intervals, one that ended at once."""
    book.receive(ZERO, records(0, 1))
    book.receive(ONE, records(0, place=ONE))
    part = chosen(book)
    book.attempted(part, DONE)
    assert committed(book) == {}
    clock.advance(5)
    assert committed(book) == {ZERO: 1}
    book.attempted(part, DONE)
    other = chosen(book)
    book.left(part)
    assert committed(book) == {ZERO: 2}
    assert other.running


def test_a_refused_commit_rests(book: Book, clock: FakeClock) -> None:
    """A commit that failed is made again after a second, and at once where there is no later time."""
    book.receive(ZERO, records(0))
    carry(book)
    book.refused()
    assert committed(book) == {}
    assert {part.place for part in book.due(last=True)} == {ZERO}
    clock.advance(COMMIT_RETRY)
    assert committed(book) == {ZERO: 1}


def test_what_is_put_off_stands_still(book: Book, clock: FakeClock) -> None:
    """A deferred record keeps its place and its partition waits; those behind it are read again, others go on."""
    book.receive(ZERO, records(0, 1, 2))
    book.receive(ONE, records(0, place=ONE))
    part = chosen(book)
    assert not book.attempted(part, LATER)
    book.left(part)
    assert chosen(book).place == ONE
    wanted = book.wanted(HELD, frozenset())
    assert (wanted.pause, wanted.seek) == ({ZERO, ONE}, {ZERO: 1})
    assert book.wanted(HELD, frozenset((ZERO, ONE))).seek == {}
    assert book.choose() is None
    clock.advance(1)
    assert chosen(book) is part
    assert len(part.waiting) == 1


def test_keys_that_changed_are_not_waited_for(book: Book) -> None:
    """What waits is tried at once when it is told that it may."""
    book.receive(ZERO, records(0))
    carry(book, outcome=LATER)
    assert book.choose() is None
    book.keys_changed()
    assert chosen(book).place == ZERO


def test_waits_grow_until_something_is_settled(clock: FakeClock) -> None:
    """Each deferral in a row waits longer and keeps the time of the first; what is settled ends the row."""
    book = Book(clock, backoff=Backoff(first=1, longest=8))
    book.receive(ZERO, records(0, 1))
    since, waits = clock.now(), []
    for _ in range(4):
        part = carry(book, outcome=LATER)
        waits.append(part.due - clock.monotonic())
        assert part.stall is not None
        assert part.stall.since == since
        clock.advance(8)
    assert all(0.5 * 2**n <= wait <= 2**n for n, wait in enumerate(waits))
    assert carry(book).stall is None
    assert book.health(True).stalls == ()


@pytest.mark.parametrize("end", ["revoked", "lost"])
def test_what_was_taken_away_is_dropped(book: Book, end: str) -> None:
    """Of a partition that was taken away nothing more is begun or committed, also what runs."""
    book.receive(ZERO, records(0, 1))
    part = chosen(book)
    book.attempted(part, DONE)
    if end == "lost":
        book.lost({ZERO})
    else:
        book.revoking({ZERO}, held={ONE})
    assert book.first(part) is None
    book.left(part)
    assert (book.choose(), committed(book), part.alive) == (None, {}, False)


def test_what_may_come_back_is_suspended(book: Book) -> None:
    """Between the two calls of an eager rebalance nothing is begun or committed; what came back goes on then."""
    book.receive(ZERO, records(0, 1))
    book.receive(ONE, records(0, place=ONE))
    part = chosen(book)
    book.attempted(part, DONE)
    book.revoking({ZERO, ONE}, held={ZERO, ONE})
    assert book.first(part) is None
    book.left(part)
    assert (book.choose(), committed(book)) == (None, {})
    book.assigned(held={ZERO})
    assert committed(book) == {ZERO: 1}
    assert chosen(book) is part
    assert book.choose() is None


def test_nothing_is_begun_before_a_rebalance(book: Book) -> None:
    """While a rebalance is due what runs may end and is committed, and nothing is begun."""
    book.receive(ZERO, records(0, 1))
    book.receive(ONE, records(0, place=ONE))
    part = chosen(book)
    book.hold_back(True)
    book.attempted(part, DONE)
    assert (book.first(part), book.choose()) == (None, None)
    book.left(part)
    assert committed(book) == {ZERO: 1}
    book.hold_back(False)
    assert chosen(book) is part


def test_a_log_that_went_back_is_another(book: Book) -> None:
    """A record that was received before is one of a topic made anew: what ran of the old one is not committed."""
    book.receive(ZERO, records(5, 6))
    old = chosen(book)
    book.receive(ZERO, records(0))
    book.attempted(old, DONE)
    book.left(old)
    new = carry(book)
    assert (old.alive, new is old, committed(book)) == (False, False, {ZERO: 1})


def test_all_is_paused_while_all_hands_are_full(book: Book) -> None:
    """While nothing more can be worked on nothing is fetched; what others paused stays so."""
    book.receive(ZERO, records(0))
    book.receive(ONE, records(0, place=ONE))
    first = chosen(book)
    assert book.wanted(HELD, frozenset((TWO,))).pause == {ZERO, ONE}
    chosen(book)
    assert book.wanted(HELD, frozenset((ZERO, ONE))).pause == {TWO}
    book.attempted(first, DONE)
    book.left(first)
    assert book.wanted(HELD, HELD).resume == {ZERO, TWO}
    assert book.hand_back(HELD, frozenset((ONE,))).resume == {ONE}


def test_a_poll_waits_no_longer_than_a_back_off(book: Book, clock: FakeClock) -> None:
    """A poll may wait for its time, but neither past a record's next attempt nor while something runs."""
    assert book.patience(0.2) == 0.2
    book.receive(ZERO, records(0))
    part = carry(book, outcome=LATER)
    part.due = clock.monotonic() + 0.1
    assert book.patience(0.2) == pytest.approx(0.1)
    clock.advance(5)
    assert book.patience(0.2) == 0.0
    chosen(book)
    assert book.patience(0.2) == 0.0


def paused(book: Book, clock: FakeClock, seconds: float) -> None:
    """Receive a record by a poll in which the process stood still for so long."""
    book.receive(ONE, records(0, place=ONE))
    carry(book)
    committed(book)
    book.beat()
    clock.advance(seconds)
    book.beat()
    book.receive(ZERO, records(7))


def test_after_a_pause_membership_is_confirmed_first(book: Book, clock: FakeClock) -> None:
    """What a poll returns after a pause beyond the session is not begun before a commit succeeded."""
    paused(book, clock, SESSION + 1)
    assert book.choose() is None
    assert book.patience(0.2) == 0.0
    assert committed(book) == {ZERO: 7, ONE: 1}
    assert chosen(book).place == ZERO


def test_a_commit_that_fails_confirms_nothing(book: Book, clock: FakeClock) -> None:
    """Where the commit is refused the records wait, and go with their partition when it turns out to be lost."""
    paused(book, clock, SESSION + 1)
    book.committing()
    book.refused()
    assert (book.choose(), committed(book)) == (None, {})
    assert book.patience(0.2) == 0.2
    book.lost({ZERO, ONE})
    clock.advance(COMMIT_RETRY)
    assert (book.choose(), committed(book)) == (None, {})
    book.assigned({ZERO})
    book.receive(ZERO, records(7))
    assert chosen(book).place == ZERO


def test_a_commit_begun_before_the_pause_confirms_nothing(book: Book, clock: FakeClock) -> None:
    """A transaction that the broker has ended before we fell asleep does not say who we are after it."""
    began = book.committing()
    paused(book, clock, SESSION + 1)
    book.committed({}, began)
    assert book.choose() is None


def test_a_pause_within_the_session_needs_no_confirmation(book: Book, clock: FakeClock) -> None:
    """The broker keeps our partitions for as long as the session lasts."""
    paused(book, clock, SESSION)
    assert chosen(book).place == ZERO


def test_claims_to_be_given_back(book: Book) -> None:
    """What was judged ahead of its turn is given back too; what runs keeps its claim."""
    book.receive(ZERO, records(0))
    running = chosen(book)
    book.receive(ONE, records(0, 1, 2, place=ONE))
    ahead = book.part(ONE).waiting
    running.waiting[0].step = ahead[0].step = ahead[1].step = Step.HANDLE
    assert book.release() == [ahead[0], ahead[1]]
    assert book.in_hand() == [running.waiting[0]]


def test_a_claim_without_an_answer_is_given_back(book: Book) -> None:
    """What the store may hold although its answer was lost is given back; what was never claimed is not."""
    book.receive(ZERO, records(0, 1))
    asked, _ = book.part(ZERO).waiting
    asked.claim = ClaimRequest("billing", b"id", "owner", None, False, 60.0, 0.0)
    assert book.release() == [asked]


@pytest.mark.parametrize("end", ["revoked", "lost", "not back"])
def test_a_pause_goes_with_its_partition(book: Book, end: str) -> None:
    """What the owner pauses after a partition came back is not resumed by us, who had paused it before."""
    book.receive(ZERO, records(0))
    assert book.wanted(HELD, frozenset()).pause == {ZERO}
    if end == "revoked":
        book.revoking({ZERO}, held={ONE})
    elif end == "lost":
        book.lost({ZERO})
    else:
        book.revoking({ZERO}, held={ZERO})
        book.assigned(held={ONE})
    book.assigned(held=HELD)
    assert book.wanted(HELD, frozenset((ZERO,))).resume == set()


def test_a_stop_stands_at_what_is_read_again(book: Book, clock: FakeClock) -> None:
    """What was put back, and was not read again before the stop, is read by whoever goes on with the client."""
    book.receive(ZERO, records(0, 1, 2))
    carry(book, outcome=LATER)
    clock.advance(1)
    carry(book)
    assert book.hand_back(HELD, frozenset()).seek == {ZERO: 1}


def test_a_range_of_a_lost_partition_is_not_committed(book: Book) -> None:
    """A range that was put on record while its partition was lost says nothing of it when it is back."""
    part = book.part(ZERO)
    book.lost({ZERO})
    book.skipped(part, 5)
    assert (committed(book), book.wanted(HELD, frozenset()).seek) == ({}, {})


def test_a_stopped_book_begins_nothing(book: Book) -> None:
    """After the stop what runs ends with its delivery, and nothing else begins."""
    book.receive(ZERO, records(0, 1))
    part = chosen(book)
    book.stop()
    book.attempted(part, DONE)
    assert book.first(part) is None
    book.left(part)
    assert book.choose() is None
    assert book.hand_back(HELD, frozenset()).seek == {ZERO: 1}


class Facts(RuleBasedStateMachine):
    """Facts in any order: only what is settled and ours is committed, and of one partition one handler runs."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.book = Book(self.clock, backoff=Backoff(first=1, longest=1), session=SESSION, width=2)
        self.held: set[At] = set(HELD)
        self.position = dict.fromkeys(HELD, 0)
        self.settled: dict[At, int] = dict.fromkeys(HELD, 0)
        self.running: list[Part] = []
        self.revoked: set[At] = set()
        self.waking = False

    @rule(place=st.sampled_from(sorted(HELD)), count=st.integers(1, 3))
    def poll(self, place: At, count: int) -> None:
        """Let records come, where they may."""
        self.book.beat()
        wanted = self.book.wanted(frozenset(self.held), frozenset())
        self.position |= wanted.seek
        if place in self.held - self.revoked and place not in wanted.pause:
            start = self.position[place]
            self.book.receive(place, records(*range(start, start + count), place=place))
            self.position[place] = start + count

    @rule()
    def choose(self) -> None:
        """Begin what may be begun."""
        part = self.book.choose()
        if part is None:
            return
        assert not self.waking
        assert part.place in self.held - self.revoked
        assert part.place not in [other.place for other in self.running if other.alive]
        self.running.append(part)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), outcome=st.sampled_from([DONE, DONE, LATER]))
    def attempt(self, data: st.DataObject, outcome: Outcome) -> None:
        """End an attempt, and the visit with it where it is to end."""
        part = data.draw(st.sampled_from(self.running))
        first = self.book.first(part)
        if first is not None:
            offset = offset_of(first.message)
            assert offset == self.settled[part.place]
            if self.book.attempted(part, outcome):
                self.settled[part.place] = offset + 1
                return
        self.book.left(part)
        self.running.remove(part)

    @rule(fails=st.booleans())
    def commit(self, fails: bool) -> None:
        """Commit what is due."""
        due = self.book.due()
        began = self.book.committing()
        for part, offset in due.items():
            assert part.place in self.held - self.revoked
            assert offset <= self.settled[part.place]
        if fails:
            return self.book.refused()
        self.book.committed(due, began)
        self.waking = False

    @rule(places=st.sets(st.sampled_from(sorted(HELD))), eager=st.booleans())
    def revoke(self, places: set[At], eager: bool) -> None:
        """Take partitions away, or all of them until the rebalance ends."""
        if eager:
            self.revoked = set(self.held)
            return self.book.revoking(self.revoked, held=self.held)
        self.held -= places
        self.book.lost(places)

    @rule(places=st.sets(st.sampled_from(sorted(HELD))))
    def assign(self, places: set[At]) -> None:
        """End a rebalance: what is new is read from where the group is."""
        self.book.revoking(self.held - self.revoked - places, held=places)
        for place in places - self.held:
            self.position[place] = self.settled[place]
        self.held, self.revoked, self.waking = set(places), set(), False
        self.book.assigned(places)

    @rule(seconds=st.sampled_from([0.1, 2.0, 6.0, SESSION + 1]))
    def time(self, seconds: float) -> None:
        """Let time pass; beyond the session it is a pause."""
        self.book.beat()
        self.clock.advance(seconds)
        self.book.beat()
        self.waking = self.waking or seconds > SESSION

    @invariant()
    def counted(self) -> None:
        """The book knows what runs."""
        assert self.book.running == len(self.running)


TestFacts = Facts.TestCase
TestFacts.settings = settings(max_examples=nightly(300, otherwise=100), stateful_step_count=30, deadline=None)
