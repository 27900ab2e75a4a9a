"""Plays a schedule of facts on the log engine: ``Assignment``, ``LogWork``, ``EarlyClaims`` and the pipeline.

Around the engine stand a log with one other member of the group (here), a client that polls and commits as
kafka-python does (``log_workers``), and workers whose handlers may end at any later fact (``log_workers``).
``log_invariants`` checks after each fact what must hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Final

from mqauth.clock import Backoff
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.partition import Partition
from mqauth.flow import Attempts, run
from mqauth.judging.pipeline import Delivery, Outcome, Pipeline
from tests.simulation.log_facilities import (
    FIRST,
    LEASE,
    LONGEST,
    PLACES,
    At,
    BatchStore,
    Entry,
    Facilities,
    Letters,
    NearStore,
    Store,
)
from tests.simulation.log_workers import SESSION, TRIES, LogClient, Worker

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


class WatchedAssignment(Assignment):
    """The engine's assignment, which shows the invariants each delivery that it hands out or is told of."""

    play: LogPlay

    def heartbeat(self) -> None:
        """Note that the process runs."""
        self.play.beaten()
        super().heartbeat()

    def next_delivery(self, part: Partition) -> Delivery | None:
        """Return the delivery whose turn it is."""
        found = super().next_delivery(part)
        if found is not None:
            self.play.picked(self, part, found)
        return found

    def attempted(self, part: Partition, outcome: Outcome) -> bool:
        """Note what became of a delivery."""
        head = part.waiting[0]
        goes_on = super().attempted(part, outcome)
        self.play.attempted(part, head, outcome)
        return goes_on


class LogPlay(LogClient):
    """One schedule.

    Args:
        seed: decides the settings and the jitter.
        tell: receives each line of the trace; ``None`` for no trace.
    """

    def __init__(self, seed: int, tell: Callable[[str], None] | None = None) -> None:
        _DRAW.seed(seed)
        drawn = _DRAW.getrandbits(16)
        super().__init__(tell)
        self.width = 1 + drawn % 3
        self.eager = bool(drawn & 4)
        self.reread = "duplicate" if drawn & 8 else "handle"
        self.most = (1, 3, 5, 100)[drawn >> 4 & 3]
        self.spread = (1, 1, 2, 3)[drawn >> 8 & 3]
        self.facilities = Facilities(self.clock, self.between)
        self.store = (Store, BatchStore, NearStore, NearStore)[drawn >> 6 & 3](
            self.facilities, self.clock
        )
        self.letters = Letters(self.facilities, self.lettered)
        self.count = (1, 1, 2, 3)[drawn >> 10 & 3]
        self.pending: set[At] | None = None
        self.joining = self.evicted = self.polling = False
        self.commits = "succeed"
        self.armed: tuple[int, int] | None = None
        self.paused: set[At] = set()
        self.users: set[At] = set()
        self.position: dict[At, int] = {}
        self.zombies: list[Worker] = []
        self.guard = Pipeline(
            verifier=self.facilities, policy=self.facilities, replay=self.store, audit=self.facilities,  # type: ignore[arg-type]
            clock=self.clock, attempts=Attempts(limit=TRIES, wait=0), lease=LEASE, reread=self.reread,  # type: ignore[arg-type]
            instance="i", randomness=_DRAW.randbytes,
        )  # fmt: skip
        self.start_anew(fresh=True)

    def start_anew(self, *, fresh: bool) -> None:
        """Begin a consumer, on a new client or on the one there is."""
        self.forget_consumer()
        if fresh:
            self.users, self.paused, self.evicted, self.joining = (
                set(),
                set(),
                False,
                False,
            )
            self.owned = self.partitions() if self.pending is None else self.pending
            self.pending = None
            self.held = set(self.owned)
            self.position = {place: self.latest(place) for place in self.held}
        self.assignment = WatchedAssignment(
            self.clock,
            backoff=SeededBackoff(first=FIRST, longest=LONGEST),
            session=SESSION,
            width=self.width,
        )
        self.assignment.play = self
        self.work = LogWork(
            self.guard, self.assignment, self.handler, lambda _: self.letters
        )

    # Facts of the log

    def append(self, number: int) -> None:
        """Let records come into a log; some offsets are left out."""
        place = PLACES[number % min(self.spread, self.count)]
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
        for at, place in enumerate(PLACES[: self.count]):
            if place in self.owned:
                continue
            if place not in self.metadata:
                added = self.at_first and place.partition >= self.at_first
                self.begun(
                    place,
                    0 if added else self.ends[place],
                    f"mqauth partitions={self.at_first or self.count}",
                )
            log = self.log[place]
            for entry in log[self.index_of(place, self.committed[place]) :][
                : number >> 2 * at & 3
            ]:
                if not self.store.take_over(entry, fails=entry.kind in FAILING):
                    entry.done, entry.letters = True, entry.letters + 1
                else:
                    self.handled(entry)
                self.committed[place] = entry.offset + 1
        if self.tell:
            self.note(f"others have committed {list(self.committed.values())}")

    def grow(self, number: int) -> None:
        """Let partitions be added to the topic, with records before anybody knows of them; a rebalance is due."""
        before = self.count
        self.count = min(len(PLACES), self.count + 1 + number % 2)
        if self.tell:
            self.note(f"the topic has {self.count} partitions")
        for place in PLACES[before : self.count]:
            self.append_one(place, "honest", number)
        if self.count > before:
            self.pending = (
                (self.held | self.partitions())
                if number & 4
                else self.held | {PLACES[self.count - 1]}
            )

    def keys_changed(self, _number: int) -> None:
        """Let keys change."""
        self.assignment.keys_changed()
        self.waits = {part: (0.0, count) for part, (_, count) in self.waits.items()}

    # Facts of the consumer

    def arm(self, number: int) -> None:
        """Schedule an event inside a later call."""
        self.armed = (number % 5, number >> 3)

    def between(self) -> None:
        """Make the scheduled event happen, as if on another thread."""
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

    def round(self, number: int) -> None:
        """Work for a while, let time pass, and poll."""
        self.begin(0)
        for step in range(number & 3):
            self.step(number >> 2 + step)
        self.clock.advance(WAITS[number % len(WAITS)])
        self.turn(number)

    def stop(self, _number: int) -> None:
        """Ask the consumer to stop."""
        self.assignment.stop()
        self.stopping = True
        self.note("stop")

    def stop_late(self, number: int) -> None:
        """Let waiting records go on, and stop before the next poll."""
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

    def wind_up(self, number: int) -> None:
        """Stop: wait for handlers or not, commit, give back, hand the client back; then begin a new consumer."""
        self.armed = None
        if number & 1 or self.healed:
            self.drain()
        self.begin_partitions()
        committed = self.commit(last=True)
        parts = [part for part in self.known if part.alive]
        claimed = [part for part in parts if not part.running]
        reached = "store" not in self.facilities.out
        if self.guarded(lambda: run(self.work.giving_back())) and reached:
            for part in claimed:
                for delivery in part.waiting:
                    self.look_at_claim(delivery)
        self.ask(
            self.assignment.final_calls(frozenset(self.held), frozenset(self.paused))
        )
        self.require(
            self.paused == self.users & self.held, "nothing is left paused", self.paused
        )
        for place in self.held:
            log, at = self.log[place], self.first_open(place)
            if place in self.owned and place in self.metadata and at < len(log):
                self.require(
                    self.position[place] <= log[at].offset,
                    "a stop stands at what is open",
                    log[at],
                )
        if self.evicted:
            self.excuse()
        self.zombies += self.workers
        self.workers = []
        self.note("stopped")
        self.start_anew(
            fresh=bool(number & 2) or self.joining or self.evicted or not committed
        )

    def finish(self) -> None:
        """Heal everything, wait for rest, stop, and check what is left."""
        self.note("healed")
        self.facilities.out.clear()
        self.healed, self.commits, self.armed = True, "succeed", None
        self.users, before = set(), self.users
        self.paused -= before
        self.silent = False
        self.pending = self.partitions()
        for _ in range(60):
            self.turn(0xFF50)
            for _ in range(4):
                self.begin(0)
                self.drain()
            if self.at_rest():
                break
            self.clock.advance(LONGEST)
        else:
            self.fail(
                "all comes to rest",
                f"{self.committed} of {self.ends}, held {self.held}, {self.log}",
            )
        self.stop(0)
        self.wind_up(1)
        self.look_at_the_end()
