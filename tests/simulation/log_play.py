"""Plays a schedule of facts on the log engine: ``Assignment``, ``LogWork``, ``EarlyClaims``, the pipeline.

Around them stand a log with one other member of the group, a client that polls and commits as kafka-python does,
and workers whose handlers may end at any later fact. Each fact is followed by what must hold at once.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from mqauth.audit.record import AuditRecord
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.partition import Backoff, ClientCalls, Partition
from mqauth.errors import RejectNow, RetryLater
from mqauth.flow import Attempts
from mqauth.judging.pipeline import Delivery, Outcome, Pipeline, Step, Verdict
from mqauth.testing.clock import FakeClock
from tests.simulation.broken import Broken
from tests.simulation.log_facilities import (
    PLACES,
    Abort,
    At,
    BatchStore,
    Entry,
    Facilities,
    Letters,
    NearStore,
    Store,
)  # fmt: skip

FIRST: Final = 0.5
LONGEST: Final = 8.0
SESSION: Final = 30.0
LEASE: Final = 60.0
TRIES: Final = 2
KINDS: Final = (
    "honest", "honest", "honest", "forged", "later", "later", "later", "fails", "flaky", "rejects", "aborts",
    "copy", "poison",
)  # fmt: skip
FACILITIES: Final = ("store", "audit", "letters", "keys", "policy")
FAILING: Final = ("forged", "fails", "rejects", "poison")
MODES: Final = ("refuses", "breaks", "loses", "loses once", "aborts")
WAITS: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 9.0, 25.0)
_DRAW: Final = random.Random(0)


class SeededBackoff(Backoff):
    """A back-off whose jitter is the seed's."""

    def wait(self, attempt: int, _randomness: Any = None) -> float:
        """Return the seconds to wait."""
        return super().wait(attempt, _DRAW.randbytes)


class Worker:
    """A visit of a partition under way.

    Args:
        book: which chose it.
        part: the partition.
        flow: its steps.
    """

    __slots__ = ("book", "entry", "error", "flow", "part", "seen", "tries", "verified")

    def __init__(self, book: Assignment, part: Partition, flow: Any) -> None:
        self.book = book
        self.part = part
        self.flow = flow
        self.entry: Entry | None = None
        self.tries = 0
        self.seen: float | None = None


class WatchedBook(Assignment):
    """The book, with someone who looks at what it hands out and is told."""

    play: LogPlay

    def next_delivery(self, part: Partition) -> Delivery | None:
        """Return the delivery whose turn it is."""
        found = super().next_delivery(part)
        if found is not None:
            self.play.picked(self, part, found)
        return found

    def attempted(self, part: Partition, outcome: Outcome) -> bool:
        """Note what became of it."""
        head = part.waiting[0]
        goes_on = super().attempted(part, outcome)
        self.play.attempted(part, head, outcome)
        return goes_on


class LogPlay:
    """One schedule in the making.

    Args:
        seed: decides the settings and the jitter.
        tell: told what happens; ``None`` for nobody.
    """

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        _DRAW.seed(seed)
        drawn = _DRAW.getrandbits(16)
        self.tell = tell
        self.clock = FakeClock()
        self.width = 1 + drawn % 3
        self.eager = bool(drawn & 4)
        self.reread = "duplicate" if drawn & 8 else "handle"
        self.most = (1, 3, 5, 100)[drawn >> 4 & 3]
        self.spread = (1, 1, 2, 3)[drawn >> 8 & 3]
        self.facilities = Facilities(self.clock, self.between)
        self.store = (Store, BatchStore, NearStore, NearStore)[drawn >> 6 & 3](self.facilities, self.clock)
        self.letters = Letters(self.facilities, self.lettered)
        self.log: dict[At, list[Entry]] = {place: [] for place in PLACES}
        self.ends = dict.fromkeys(PLACES, 0)
        self.prefix = dict.fromkeys(PLACES, 0)
        self.contents: list[list[Entry]] = []
        self.handled_at: dict[int, At] = {}
        self.committed: dict[At, int] = dict.fromkeys(PLACES, 0)
        self.owned: set[At] = set(PLACES)
        self.pending: set[At] | None = None
        self.joining = False
        self.evicted = False
        self.commits = "succeed"
        self.polling = False
        self.excused: set[bytes] = set()
        self.loose: set[int] = set()
        self.armed: tuple[int, int] | None = None
        self.healed = False
        self.held: set[At] = set()
        self.paused: set[At] = set()
        self.users: set[At] = set()
        self.position: dict[At, int] = {}
        self.workers: list[Worker] = []
        self.zombies: list[Worker] = []
        self.guard = Pipeline(
            verifier=self.facilities, policy=self.facilities, replay=self.store, audit=self.facilities,  # type: ignore[arg-type]
            clock=self.clock, attempts=Attempts(limit=TRIES, wait=0), lease=LEASE, reread=self.reread,  # type: ignore[arg-type]
            instance="i", randomness=_DRAW.randbytes,
        )  # fmt: skip
        self.start_anew(fresh=True)

    def note(self, text: str) -> None:
        """Tell what happens; call it where someone listens."""
        if self.tell is not None:
            self.tell(f"{self.clock.monotonic():8.2f}  {text}")

    def start_anew(self, *, fresh: bool) -> None:
        """Begin a consumer, on a new client or on the one there is."""
        self.stopping = self.holding = False
        self.suspended: set[At] = set()
        self.doubted: float | None = None
        self.beat: float | None = None
        self.serial = dict.fromkeys(PLACES, 0)
        self.known: dict[Partition, int] = {}
        self.receipts: dict[Partition, dict[int, float]] = {}
        self.settled: dict[Partition, int] = {}
        self.waits: dict[Partition, tuple[float, int]] = {}
        self.doubtful: set[Delivery] | set[int] = set()
        if fresh:
            self.users, self.paused, self.evicted, self.joining = set(), set(), False, False
            self.owned = set(PLACES) if self.pending is None else self.pending
            self.pending = None
            self.held = set(self.owned)
            self.position = {place: self.committed[place] for place in self.held}
        self.book = WatchedBook(
            self.clock, backoff=SeededBackoff(first=FIRST, longest=LONGEST), session=SESSION, width=self.width
        )
        self.book.play = self
        self.work = LogWork(self.guard, self.book, self.handler, lambda _: self.letters)

    def handler(self, _verified: Any) -> None:
        """Stand for the handler, which workers run by themselves."""

    # Facts of the world

    def append(self, number: int) -> None:
        """Let records come into a log; some offsets are left out."""
        place = PLACES[number % self.spread]
        for _ in range(1 + (number >> 2) % 5):
            kind = KINDS[(number >> 4) % len(KINDS)]
            self.append_one(place, kind, number)
            number = number * 5 + 1 & 0xFFFF

    def append_one(self, place: At, kind: str, number: int) -> None:
        """Append one record."""
        offset = self.ends[place] + (number % 11 == 0)
        if kind == "copy" and not self.contents:
            kind = "honest"
        content = number % len(self.contents) if kind == "copy" else len(self.contents)
        entry = Entry(place, offset, content, kind, 1 + number % 3)
        if kind == "copy":
            if self.contents[content][0].kind in ("poison", "forged"):
                entry.kind = self.contents[content][0].kind
            self.contents[content].append(entry)
        else:
            self.contents.append([entry])
        self.log[place].append(entry)
        self.ends[place] = offset + 1
        if self.tell:
            self.note(f"appended {entry}, content {content}")

    def wait(self, number: int) -> None:
        """Let time pass."""
        self.clock.advance(WAITS[number % len(WAITS)])
        if number % 64 == 7:
            self.clock.step(-3.0)

    def outage(self, number: int) -> None:
        """Let a facility be out of reach."""
        name, how = FACILITIES[number % 5], MODES[(number >> 4) % 5]
        self.facilities.out[name] = how
        if self.tell:
            self.note(f"{name} {how}")

    def heal(self, number: int) -> None:
        """Let a facility be in reach, or all of them."""
        if number & 1:
            self.facilities.out.clear()
        else:
            self.facilities.out.pop(FACILITIES[(number >> 1) % 5], None)
        if self.tell:
            self.note(f"out of reach: {self.facilities.out}")

    def commits_go(self, number: int) -> None:
        """Let commits succeed, fail, or lose their answers."""
        self.commits = ("succeed", "succeed", "fail", "lose")[number & 3]

    def rebalance(self, number: int) -> None:
        """Let a rebalance be due, after which some of the partitions are ours."""
        self.pending = {place for at, place in enumerate(PLACES) if number >> at & 1}
        if self.tell:
            self.note(f"a rebalance is due: {sorted(place.partition for place in self.pending)}")

    def pause(self, number: int) -> None:
        """Let the process stand still; beyond the session others get what was ours."""
        seconds = SESSION * (0.5 if number & 1 else 1.5)
        self.clock.advance(seconds)
        if seconds > SESSION:
            self.evicted = True
            self.owned = set()
            self.others(number >> 1)
        if self.tell:
            self.note(f"stood still for {seconds} s")

    def others(self, number: int) -> None:
        """Let another member handle some of what is not ours at the broker."""
        for at, place in enumerate(PLACES):
            if place in self.owned:
                continue
            log = self.log[place]
            for entry in log[self.index_of(place, self.committed[place]) :][: number >> 2 * at & 3]:
                if not self.store.take_over(entry, fails=entry.kind in FAILING):
                    entry.done, entry.letters = True, entry.letters + 1
                else:
                    self.handled(entry)
                self.committed[place] = entry.offset + 1
        if self.tell:
            self.note(f"others have committed {list(self.committed.values())}")

    def user_pauses(self, number: int) -> None:
        """Let the client's owner pause a partition, or resume it."""
        place = PLACES[number % self.spread]
        if place in self.users:
            self.users.discard(place)
            self.paused.discard(place)
        elif place in self.held and place not in self.paused:
            self.users.add(place)
            self.paused.add(place)

    def keys_changed(self, _number: int) -> None:
        """Let keys change."""
        self.book.keys_changed()
        self.waits = {part: (0.0, count) for part, (_, count) in self.waits.items()}

    def arm(self, number: int) -> None:
        """Let something happen inside a later call."""
        self.armed = (number % 5, number >> 3)

    def between(self) -> None:
        """Let what was armed happen now, on another thread than the one that asks."""
        if self.armed is None:
            return
        left, number = self.armed
        self.armed = (left - 1, number) if left else None
        if left:
            return
        if number % 4 == 0:
            self.stop(0)
        elif self.holding or self.polling:
            return  # rebalances are the polling thread's, and it is that which asks
        elif number % 4 == 1 and not self.joining:
            self.lose()
        elif number % 4 == 2:
            self.keys_changed(0)
        elif self.eager and not self.joining:
            self.begin_join()

    def stop(self, _number: int) -> None:
        """Ask the consumer to stop."""
        self.book.stop()
        self.stopping = True
        self.note("stop")

    def stop_late(self, number: int) -> None:
        """Let what waits go on, and stop before the next poll."""
        self.begin(0)
        self.clock.advance(WAITS[number % len(WAITS)])
        for step in range(1 + (number >> 4) % 4):
            self.step(number >> 8 + step)
            self.begin(0)
        self.stop(0)

    def kill(self, _number: int) -> None:
        """Kill the process, and start another."""
        self.note("killed")
        self.workers.clear()
        self.zombies.clear()
        self.armed = None
        self.excuse()
        self.start_anew(fresh=True)

    # The client

    def turn(self, number: int) -> None:
        """Have a turn at the client, as ``LogConsumer`` has it; once stopped, the last one."""
        if self.stopping:
            return self.wind_up(number)
        self.polling = True
        self.have_turn(number)
        self.polling = False

    def have_turn(self, number: int) -> None:
        """Commit and poll."""
        self.commit()
        self.guarded(self.work.renew)
        self.look_at_leases()
        due = self.pending is not None or self.evicted or self.joining
        if due:
            self.book.hold_back(True)
            self.holding = True
            self.polling = False
            for step in range(number & 3):
                self.step(number >> 2 + step)
            self.polling = True
            if not self.stopping:
                self.commit()
        if not self.stopping:
            self.poll(number, joins=due or self.book.running == 0)
        self.book.hold_back(False)
        self.holding = False

    def round(self, number: int) -> None:
        """Work on what there is, and poll again some time later."""
        self.begin(0)
        for step in range(number & 3):
            self.step(number >> 2 + step)
        self.clock.advance(WAITS[number % len(WAITS)])
        self.turn(number)

    def guarded(self, act: Callable[[], None]) -> bool:
        """Do what may end the consumer; tell whether it did not."""
        try:
            act()
        except Abort:
            self.stop(0)
            return False
        return True

    def poll(self, number: int, *, joins: bool) -> None:
        """Ask for what the book wishes, and tell it what came."""
        self.ask(self.book.client_calls(frozenset(self.held), frozenset(self.paused)))
        self.tell_beat()
        buffered = self.evicted and number & 8
        if joins and not buffered and (self.pending is not None or self.evicted or self.joining):
            self.join(number)
        if number % 32 == 17:
            self.pause(number >> 5)
        found = {} if self.joining else self.fetched(number)
        self.tell_beat()
        for place, entries in found.items():
            if entries and entries[0].kind == "poison":
                self.skip(place, entries[0])
            elif entries:
                self.receive(place, entries)

    def tell_beat(self) -> None:
        """Tell the book that the process runs."""
        now = self.clock.monotonic()
        if self.beat is not None and now - self.beat > SESSION:
            self.doubted = now
        self.beat = now
        self.book.heartbeat()

    def ask(self, wanted: ClientCalls) -> None:
        """Pause, resume and seek as wished."""
        self.require(not wanted.resume & self.users, "what others paused stays so", wanted.resume)
        self.paused |= wanted.pause
        for place, offset in wanted.seek.items():
            self.require(place in self.held, "only what is held is sought", place)
            self.position[place] = offset
        self.paused -= wanted.resume

    def fetched(self, number: int) -> dict[At, list[Entry]]:
        """Return what a poll brings."""
        found = {}
        for place in PLACES:
            if place not in self.held or place in self.paused:
                continue
            log, start = self.log[place], self.position[place]
            here: list[Entry] = []
            for entry in log[self.index_of(place, start) :][: min(self.most, 1 + (number >> 5) % 7)]:
                if entry.kind == "poison":
                    here = here or [entry]
                    break
                here.append(entry)
            if here:
                found[place] = here
                if here[0].kind != "poison":
                    self.position[place] = here[-1].offset + 1
        return found

    def index_of(self, place: At, offset: int) -> int:
        """Return where the first record from an offset on stands in a log."""
        log = self.log[place]
        at = min(offset, len(log))
        while at and log[at - 1].offset >= offset:
            at -= 1
        return at

    def receive(self, place: At, entries: list[Entry]) -> None:
        """Tell the book what came."""
        self.book.receive(place, [entry.message for entry in entries])
        part = self.book.partition(place)
        self.known.setdefault(part, self.serial[place])
        self.require(not part.running, "what is worked on is not fetched", place)
        receipts, now = self.receipts.setdefault(part, {}), self.clock.now()
        for entry in entries:
            receipts.setdefault(entry.offset, now)
        if self.doubted is not None:
            self.doubtful = {id(each) for each in part.waiting} | self.doubtful
        if self.tell:
            self.note(f"received {entries}")

    def skip(self, place: At, entry: Entry) -> None:
        """Step over a record that cannot be parsed."""
        record: AuditRecord = None  # type: ignore[assignment]
        part = self.book.partition(place)
        self.known.setdefault(part, self.serial[place])

        def act() -> None:
            if self.work.skip(place, entry.offset, entry.offset + 1, record):
                entry.done = True
                self.waits.pop(part, None)
                self.note(f"skipped {entry}")
            elif part.alive:
                self.deferred(part)

        self.guarded(act)

    # Rebalances

    def join(self, number: int) -> None:
        """Take part in a rebalance, or begin to."""
        if self.evicted:
            self.lose()
        if not self.eager:
            return self.end_join(number)
        if not self.joining:
            self.begin_join()
        if number & 16 or self.healed:
            self.end_join(number)

    def lose(self) -> None:
        """Learn that everything is another's."""
        self.note("everything is lost")
        self.evicted = False
        self.pending = self.pending if self.pending is not None else set(PLACES)
        self.forget(self.held)
        self.book.lost(set(self.held))
        self.owned = set()
        self.held, self.paused, self.users = set(), set(), set()

    def begin_join(self) -> None:
        """Revoke everything until the rebalance ends."""
        self.note("everything is revoked")
        self.joining = True
        self.suspended = set(self.held)
        self.book.revoked(set(self.held), set(self.held))

    def end_join(self, number: int) -> None:
        """Get what is ours from now on; the owner's own listener may pause something."""
        target = set(PLACES) if self.pending is None else self.pending
        self.pending, self.joining = None, False
        gone = self.held - target
        self.forget(gone)
        if not self.eager and gone:
            self.held -= gone
            self.book.revoked(gone, set(self.held))
        for place in target - self.held:
            self.position[place] = self.committed[place]
        self.held, self.owned, self.suspended, self.doubted = set(target), set(target), set(), None
        self.doubtful = set()
        self.paused &= target
        self.users &= target
        self.book.assigned(set(target))
        if number & 64 and not self.healed and PLACES[(number >> 7) % self.spread] not in self.users:
            self.user_pauses(number >> 7)
        if self.tell:
            self.note(f"assigned {sorted(place.partition for place in target)}")

    def forget(self, places: set[At]) -> None:
        """Note that what is known of partitions is of the past."""
        for place in places:
            self.serial[place] += 1
        self.excuse()

    def excuse(self) -> None:
        """Note the claims that were left behind by what had no time to give them back."""
        self.excused.update(name for name, claim in self.store.entries.items() if claim.owner is not None)

    # Workers

    def begin(self, _number: int) -> None:
        """Let a worker begin what the book chooses."""
        if len(self.workers) >= self.width:
            return
        part = self.book.choose()
        if part is None:
            return
        if self.tell:
            self.note(f"partition {part.topic_partition.partition} is chosen")
        worker = Worker(self.book, part, self.work.visiting(part))
        self.workers.append(worker)
        self.go_on(worker, None, None)

    def step(self, number: int) -> None:
        """Let one handler end."""
        everyone = self.workers + self.zombies
        if everyone:
            self.end_handler(everyone[number % len(everyone)])

    def end_handler(self, worker: Worker) -> None:
        """Let a handler end as its record wants it."""
        entry = worker.entry
        assert entry is not None
        error = None if self.healed and entry.kind not in ("fails", "rejects") else self.misbehaviour(entry)
        worker.tries += 1
        if error is None:
            self.completed(worker, entry)
        elif not isinstance(error, Exception):
            return self.abort(worker)
        elif worker.tries < TRIES and not isinstance(error, (RetryLater, RejectNow)):
            return self.begin_handler(worker, entry)
        self.go_on(worker, None, error)

    def misbehaviour(self, entry: Entry) -> BaseException | None:
        """Return what a handler raises."""
        kind = self.contents[entry.content][0].kind if entry.kind == "copy" else entry.kind
        if kind == "fails":
            return ValueError("always")
        if kind == "rejects":
            return RejectNow("never")
        if entry.misbehaves <= 0 or kind not in ("later", "flaky", "aborts"):
            return None
        entry.misbehaves -= 1
        return RetryLater("later") if kind == "later" else ValueError("once") if kind == "flaky" else Abort()

    def go_on(self, worker: Worker, result: Any, error: Exception | None) -> None:
        """Take the steps of a visit until its next handler begins or it ends."""
        worker.entry = None
        try:
            while True:
                wish = worker.flow.send(result) if error is None else worker.flow.throw(error)
                result, error = None, None
                if wish.function == self.handler:
                    worker.tries = 0
                    return self.begin_handler(worker, wish.arguments[0])
                try:
                    result = wish.function(*wish.arguments)
                except Exception as raised:
                    error = raised
        except StopIteration:
            self.left(worker)
        except Abort:
            self.abort(worker)

    def begin_handler(self, worker: Worker, entry: Entry) -> None:
        """Begin a handler."""
        worker.entry = entry
        worker.seen = worker.seen if worker.tries else None
        part, place = worker.part, entry.place
        if self.tell:
            self.note(f"handles {entry}")
        self.require(entry.kind != "forged", "nothing forged is handled", entry)
        if worker.tries:
            return
        self.require(worker.book is not self.book or self.is_ours(part), "nothing begins after a loss", entry)
        others = [each for each in self.workers if each is not worker and each.entry and each.book is self.book]
        for other in others:
            if other.part.topic_partition == place and self.is_ours(other.part):
                self.fail("one handler of a partition", f"{entry} beside {other.entry}")

    def completed(self, worker: Worker, entry: Entry) -> None:
        """Note that a handler ended well."""
        if self.tell:
            self.note(f"handled {entry}")
        if worker.book is not self.book or not self.is_ours(worker.part):
            self.loose.add(entry.content)  # it ran beside its successor, and their ends may differ
        self.handled(entry)
        self.require(self.settled.get(worker.part, -1) < entry.offset, "handled once in an assignment", entry)
        self.settled[worker.part] = entry.offset

    def handled(self, entry: Entry) -> None:
        """Note that a record was handled, by whomever."""
        entry.done = True
        at = self.handled_at.setdefault(entry.content, (entry.place, entry.offset))  # type: ignore[arg-type]
        once = at == (entry.place, entry.offset) or entry.content in self.loose
        self.require(once, "a copy is not handled", entry)

    def lettered(self, entry: Entry) -> None:
        """Note that a letter was confirmed."""
        if self.tell:
            self.note(f"buried {entry}")
        entry.done = True
        entry.letters += 1
        if entry.kind in ("honest", "later", "flaky", "aborts") and len(self.contents[entry.content]) == 1:
            self.require(entry.kind == "flaky" and entry.misbehaves > -1 and TRIES <= 3, "condemned", entry)

    def abort(self, worker: Worker) -> None:
        """Let what is no ``Exception`` end a worker, and with it the consumer."""
        self.note("aborts")
        worker.flow.close()
        self.left(worker)
        if worker.book is self.book:
            self.stop(0)

    def left(self, worker: Worker) -> None:
        """Note that a visit has ended."""
        if worker in self.zombies:
            self.zombies.remove(worker)
            return
        self.workers.remove(worker)
        self.require(self.book.running == len(self.workers), "every place comes back", self.book.running)

    def drain(self) -> None:
        """Let everything that runs end."""
        for _ in range(200):
            everyone = self.workers + self.zombies
            if not everyone:
                return
            self.end_handler(everyone[0])
        self.fail("a visit ends", "200 steps were not enough")

    # What is seen

    def picked(self, book: Assignment, part: Partition, delivery: Delivery) -> None:
        """Look at a delivery that is begun, or begun again."""
        entry: Entry = delivery.message.native  # type: ignore[assignment]
        if book is not self.book:
            return self.fail("nothing begins after a stop", str(entry))
        place = entry.place
        self.require(not self.stopping, "nothing begins after a stop", entry)
        self.require(not self.holding, "nothing begins before a rebalance", entry)
        self.require(self.is_ours(part), "nothing begins after a loss", entry)
        self.require(place not in self.suspended, "nothing begins while it is revoked", entry)
        log, at = self.log[place], self.first_open(place)
        self.require(at >= len(log) or log[at].offset >= entry.offset, "order within a partition", entry)
        if place in self.owned:
            self.require(entry.offset >= self.committed[place], "what is committed is not begun", entry)
        first = self.receipts[part][entry.offset]
        self.require(delivery.received == first, "the time of receipt is kept", f"{entry} {delivery.received}")
        self.require(id(delivery) not in self.doubtful, "in doubt nothing begins", entry)
        due, _ = self.waits.get(part, (0.0, 0))
        self.require(self.clock.monotonic() >= due, "the back-off is kept", f"{entry} {due}")

    def attempted(self, part: Partition, delivery: Delivery, outcome: Outcome) -> None:
        """Look at what became of a delivery."""
        entry: Entry = delivery.message.native  # type: ignore[assignment]
        if self.tell:
            self.note(f"{entry}: {outcome.verdict.value} {outcome.cause or outcome.reason or ''}")
        if outcome.verdict is Verdict.DEFERRED:
            self.deferred(part)
            return
        self.require(entry.done, "settled is handled or buried", entry)
        self.settled[part] = entry.offset
        self.waits.pop(part, None)

    def deferred(self, part: Partition) -> None:
        """Note that a partition waits."""
        count = self.waits.get(part, (0.0, 0))[1] + 1
        least = min(FIRST * 2.0 ** (count - 1), LONGEST) / 2
        self.waits[part] = (self.clock.monotonic() + least, count)

    def is_ours(self, part: Partition) -> bool:
        """Tell whether a partition was not taken away, as the book was told."""
        return part.topic_partition in self.held and self.known.get(part) == self.serial[part.topic_partition]

    def commit(self, *, last: bool = False) -> bool:
        """Commit what the book says is due, as the broker takes it; tell whether nothing is left."""
        due = self.book.due_commits(last=last)
        if not due:
            return True
        began = self.book.commit_began()
        for part, offset in due.items():
            place = part.topic_partition
            log, at = self.log[place], self.first_open(place)
            self.require(self.is_ours(part), "only what is ours is committed", place)
            self.require(place not in self.suspended, "nothing is committed while it is revoked", place)
            self.require(at >= len(log) or log[at].offset >= offset, "only what is settled is committed",
                         f"{place.partition}/{offset}, open {log[at:at + 1]}")  # fmt: skip
        fenced = any(part.topic_partition not in self.owned for part in due)
        taken = not fenced and self.commits != "fail"
        if taken:
            for part, offset in due.items():
                self.require(
                    offset >= self.committed[part.topic_partition], "a commit goes not back", part.topic_partition
                )
                self.committed[part.topic_partition] = offset
        if self.tell:
            self.note(
                f"commit {[(part.topic_partition.partition, offset) for part, offset in due.items()]}: {taken}"
            )
        if not taken or self.commits == "lose":
            self.book.commit_failed()
            return False
        self.book.committed(due, began)
        if self.doubted is not None and began >= self.doubted:
            self.doubted, self.doubtful = None, set()
        return True

    def first_open(self, place: At) -> int:
        """Return where the first record stands that is neither handled nor buried."""
        log, at = self.log[place], self.prefix[place]
        while at < len(log) and log[at].done:
            at += 1
        self.prefix[place] = at
        return at

    def look_at_leases(self) -> None:
        """See that the claims of handlers that run long are renewed."""
        now = self.clock.monotonic()
        reached = "store" not in self.facilities.out
        if self.stopping:
            return
        for worker in self.workers:
            if worker.entry is None or worker.book is not self.book:
                continue
            if worker.seen is None:
                worker.seen = now
            elif now - worker.seen >= LEASE / 3:
                asked = self.store.renewed.get(worker.entry.id)
                self.require(asked == now or not reached, "a claim is renewed", worker.entry)
                worker.seen = now

    def wind_up(self, number: int) -> None:
        """Let what runs end or outlast its grace, commit, give back, leave the client as it was; begin anew."""
        self.armed = None
        if number & 1 or self.healed:
            self.drain()
        committed = self.commit(last=True)
        parts = [part for part in self.known if part.alive]
        claimed = [part for part in parts if not part.running]
        reached = "store" not in self.facilities.out
        if self.guarded(self.work.give_back) and reached:
            for part in claimed:
                for delivery in part.waiting:
                    self.look_at_claim(delivery)
        self.ask(self.book.final_calls(frozenset(self.held), frozenset(self.paused)))
        self.require(self.paused == self.users & self.held, "nothing is left paused", self.paused)
        for place in self.held:
            log, at = self.log[place], self.first_open(place)
            if place in self.owned and at < len(log):
                self.require(self.position[place] <= log[at].offset, "a stop stands at what is open", log[at])
        if self.evicted:
            self.excuse()
        self.zombies += self.workers
        self.workers = []
        self.note("stopped")
        self.start_anew(fresh=bool(number & 2) or self.joining or self.evicted or not committed)

    def look_at_claim(self, delivery: Delivery) -> None:
        """See that a claim of what will not be handled here was given back."""
        entry: Entry = delivery.message.native  # type: ignore[assignment]
        claim = self.store.entries.get(entry.id)
        if claim is None or claim.owner is None or claim.owner != delivery.owner or entry.done:
            return
        if delivery.step in (Step.JUDGE, Step.HANDLE):
            self.fail("no claim outlives a stop", str(entry))

    # The end

    def finish(self) -> None:
        """Heal everything, let it come to rest, stop, and look at what is left."""
        self.note("healed")
        self.facilities.out.clear()
        self.healed, self.commits, self.armed = True, "succeed", None
        self.users, before = set(), self.users
        self.paused -= before
        self.pending = set(PLACES)
        for _ in range(60):
            self.turn(0xFF50)
            for _ in range(4):
                self.begin(0)
                self.drain()
            if self.at_rest():
                break
            self.clock.advance(LONGEST)
        else:
            self.fail("all comes to rest", f"{self.committed} of {self.ends}, held {self.held}, {self.log}")
        self.stop(0)
        self.wind_up(1)
        self.look_at_the_end()

    def at_rest(self) -> bool:
        """Tell whether everything is settled and committed."""
        done = all(self.first_open(place) == len(self.log[place]) for place in PLACES)
        return done and not self.stopping and all(
            self.committed[place] >= (self.log[place][-1].offset + 1 if self.log[place] else 0) for place in PLACES
        )  # fmt: skip

    def look_at_the_end(self) -> None:
        """See that no claim is left, and that each content came to its one end."""
        for entries in self.contents:
            first = entries[0]
            claim = self.store.entries.get(first.id)
            left = claim is not None and claim.owner is not None and first.id not in self.excused
            self.require(not left, "no claim is left", first)
            if first.kind in ("honest", "later", "aborts"):
                self.require(first.content in self.handled_at, "every honest record is handled", first)
            if first.kind == "forged":
                for entry in entries:
                    self.require(entry.letters > 0 or entry.place not in self.held, "the forged are buried", entry)

    def require(self, holds: bool, invariant: str, text: Any) -> None:
        """Fail where an invariant does not hold."""
        if not holds:
            self.fail(invariant, str(text))

    def fail(self, invariant: str, text: str) -> None:
        """Fail: an invariant does not hold."""
        raise Broken(invariant, text)
