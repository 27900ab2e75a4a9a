"""The client and the workers of the log engine's simulation: polls, commits, and handlers that end late."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Set
from typing import Any, Final

from mqauth.audit.record import AuditRecord
from mqauth.brokers.log import offsets
from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.partition import ClientCalls, Partition
from mqauth.delivery.start import Committed
from mqauth.errors import RejectNow, RetryLater
from mqauth.flow import run
from tests.simulation.log_facilities import PLACES, Abort, At, Entry, LogInvariants

TRIES: Final = 2


class Worker:
    """A visit of a partition that is under way.

    Args:
        assignment: the engine that chose the partition.
        part: the partition.
        flow: the steps of the visit.
    """

    __slots__ = ("assignment", "entry", "flow", "last", "part", "seen")

    def __init__(self, assignment: Assignment, part: Partition, flow: Any) -> None:
        self.assignment = assignment
        self.part = part
        self.flow = flow
        self.entry: Entry | None = None
        self.seen: float | None = None
        self.last: Entry | None = None


class LogWorkers(LogInvariants):
    """Workers, and handlers that do what their record's kind says.

    Attributes:
        width: how many partitions are visited at a time.
        zombies: workers of a consumer that has stopped, whose handlers still run.
    """

    width: int
    work: LogWork
    zombies: list[Worker]

    def handler(self, _verified: Any) -> None:
        """Stand for the handler; workers recognise the call and run it in their own time."""

    def stop(self, number: int) -> None:
        """Ask the consumer to stop."""
        raise NotImplementedError

    def begin(self, _number: int) -> None:
        """Let a worker begin with the partition that the engine chooses."""
        if len(self.workers) >= self.width:
            return
        part = self.assignment.choose()
        if part is None:
            return
        if self.tell:
            self.note(f"partition {part.topic_partition.partition} is chosen")
        worker = Worker(self.assignment, part, self.work.visiting(part))
        self.workers.append(worker)
        self.go_on(worker, None, None)

    def step(self, number: int) -> None:
        """Let one handler end."""
        everyone = self.workers + self.zombies
        if everyone:
            self.end_handler(everyone[number % len(everyone)])

    def drain(self) -> None:
        """Let all running handlers end."""
        for _ in range(200):
            everyone = self.workers + self.zombies
            if not everyone:
                return
            self.end_handler(everyone[0])
        self.fail("a visit ends", "200 steps were not enough")

    def end_handler(self, worker: Worker) -> None:
        """End a handler as its record's kind says."""
        entry = worker.entry
        assert entry is not None
        error = (
            None
            if self.healed and entry.kind not in ("fails", "rejects")
            else self.misbehaviour(entry)
        )
        if error is None:
            self.completed(worker, entry)
        elif not isinstance(error, Exception):
            return self.abort(worker)
        self.go_on(worker, None, error)

    def misbehaviour(self, entry: Entry) -> BaseException | None:
        """Return the exception that a handler raises, or ``None``."""
        kind = (
            self.contents[entry.content][0].kind if entry.kind == "copy" else entry.kind
        )
        if kind == "fails":
            return ValueError("always")
        if kind == "rejects":
            return RejectNow("never")
        if entry.misbehaves <= 0 or kind not in ("later", "flaky", "aborts"):
            return None
        entry.misbehaves -= 1
        return (
            RetryLater("later")
            if kind == "later"
            else ValueError("once")
            if kind == "flaky"
            else Abort()
        )

    def go_on(self, worker: Worker, result: Any, error: Exception | None) -> None:
        """Take the steps of a visit until its next handler begins or it ends."""
        worker.entry = None
        try:
            while True:
                wish = (
                    worker.flow.send(result)
                    if error is None
                    else worker.flow.throw(error)
                )
                result, error = None, None
                if wish.function == self.handler:
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
        # A further attempt is the same handler to the leases.
        worker.seen = worker.seen if worker.last is entry else None
        worker.entry = worker.last = entry
        part, place = worker.part, entry.place
        if self.tell:
            self.note(f"handles {entry}")
        self.require(entry.kind != "forged", "nothing forged is handled", entry)
        self.require(
            worker.assignment is not self.assignment or self.is_ours(part),
            "nothing begins after a loss",
            entry,
        )
        others = [
            each
            for each in self.workers
            if each is not worker and each.entry and each.assignment is self.assignment
        ]
        for other in others:
            if other.part.topic_partition == place and self.is_ours(other.part):
                self.fail("one handler of a partition", f"{entry} beside {other.entry}")

    def completed(self, worker: Worker, entry: Entry) -> None:
        """Note that a handler ended well."""
        if self.tell:
            self.note(f"handled {entry}")
        if worker.assignment is not self.assignment or not self.is_ours(worker.part):
            self.loose.add(
                entry.content
            )  # it ran beside its successor, and their ends may differ
        self.handled(entry)
        self.require(
            self.settled.get(worker.part, -1) < entry.offset,
            "handled once in an assignment",
            entry,
        )
        self.settled[worker.part] = entry.offset

    def abort(self, worker: Worker) -> None:
        """End a worker by a ``BaseException``, and with it the consumer."""
        self.note("aborts")
        worker.flow.close()
        self.left(worker)
        if worker.assignment is self.assignment:
            self.stop(0)

    def left(self, worker: Worker) -> None:
        """Note that a visit has ended."""
        if worker in self.zombies:
            self.zombies.remove(worker)
            return
        self.workers.remove(worker)
        self.require(
            self.assignment.running == len(self.workers),
            "every place comes back",
            self.assignment.running,
        )


SESSION: Final = 30.0
"""Seconds of silence after which the group takes a member's partitions away."""


class AwayError(Exception):
    """No answer."""


class Offsets(offsets.OffsetCalls):
    """The calls of a client by which its partitions begin (``OffsetCalls``).

    Args:
        client: the client.
    """

    scope, reset, failed = "g", "latest", AwayError
    unsure: Set[At] = frozenset()

    def __init__(self, client: LogClient) -> None:
        self._client = client

    def committed(self, places: Collection[At], /) -> dict[At, Committed]:
        """Return the group's commits, or no answer."""
        client = self._client
        if client.silent:
            raise AwayError
        found = [place for place in places if place in client.metadata]
        return {
            place: Committed(client.committed[place], client.metadata[place])
            for place in found
        }

    def places(self, _topic: str, /) -> set[At]:
        """Return the topic's partitions."""
        return self._client.partitions()

    def position(self, place: At, /) -> int:
        """Return where the client stands."""
        return self._client.position[place]

    def bounds(self, places: Collection[At], end: bool, /) -> dict[At, int]:
        """Return where partitions begin or end."""
        return {place: self._client.ends[place] if end else 0 for place in places}

    def send_commit(self, offsets: Mapping[At, Committed], /) -> str | None:
        """Commit the start of partitions, as a member."""
        client = self._client
        if client.commits == "fail" or not offsets.keys() <= client.owned:
            return "CommitFailed"
        for place, commit in offsets.items():
            client.begun(place, *commit)
        return "TimedOut" if client.commits == "lose" else None

    def passes(self, _error: BaseException, /) -> bool:
        """Return whether the same call may succeed later."""
        return True


class LogClient(LogWorkers):
    """A client of one group, with one other member.

    Attributes:
        eager: whether a rebalance takes all partitions away first; otherwise it is cooperative.
        most: records of a partition in one poll, at most.
        spread: how many partitions get records.
        pending: partitions that will be ours after the rebalance that is due; ``None`` where none is due.
        joining: a rebalance has begun in an earlier poll.
        evicted: the group has put this member out, and its client does not know.
        commits: what becomes of a commit: ``succeed``, ``fail``, or ``lose`` its answer.
        silent: whether no question is answered.
        polling: the polling thread is inside the client.
        paused: partitions that the client does not fetch.
        users: those of them that the client's owner paused.
    """

    eager: bool
    most: int
    spread: int
    silent = False
    position: dict[At, int]

    def pause(self, number: int) -> None:
        """Let the process stand still."""
        raise NotImplementedError

    def wind_up(self, number: int) -> None:
        """End the consumer that was asked to stop."""
        raise NotImplementedError

    def partitions(self) -> set[At]:
        """Return the partitions that the topic has by now."""
        return set(PLACES[: self.count])

    def latest(self, place: At) -> int:
        """Return where a client with ``auto_offset_reset="latest"`` begins."""
        return self.committed[place] if place in self.metadata else self.ends[place]

    def commits_go(self, number: int) -> None:
        """Let commits succeed, fail, or lose their answers; and questions be answered, or not."""
        self.commits = ("succeed", "succeed", "fail", "lose")[number & 3]
        self.silent = not number & 12

    def rebalance(self, number: int) -> None:
        """Let a rebalance be due, after which some of the partitions are ours."""
        self.pending = {
            place for at, place in enumerate(PLACES[: self.count]) if number >> at & 1
        }
        if self.tell:
            self.note(
                f"a rebalance is due: {sorted(place.partition for place in self.pending)}"
            )

    def user_pauses(self, number: int) -> None:
        """Let the client's owner pause a partition, or resume it."""
        place = PLACES[number % min(self.spread, self.count)]
        if place in self.users:
            self.users.discard(place)
            self.paused.discard(place)
        elif place in self.held and place not in self.paused:
            self.users.add(place)
            self.paused.add(place)

    def turn(self, number: int) -> None:
        """Take a turn at the client as ``LogConsumer`` does; after a stop, the last one."""
        if self.stopping:
            return self.wind_up(number)
        self.polling = True
        self.have_turn(number)
        self.polling = False

    def have_turn(self, number: int) -> None:
        """Commit and poll."""
        self.commit()
        self.guarded(lambda: run(self.work.renewing()))
        self.look_at_leases()
        due = self.pending is not None or self.evicted or self.joining
        if due:
            self.assignment.hold_back(True)
            self.holding = True
            self.polling = False
            for step in range(number & 3):
                self.step(number >> 2 + step)
            self.polling = True
            if not self.stopping:
                self.commit()
        if not self.stopping:
            self.poll(number, joins=due or self.assignment.running == 0)
        self.assignment.hold_back(False)
        self.holding = False

    def poll(self, number: int, *, joins: bool) -> None:
        """Make the client calls that the engine wants, poll, and pass on the records."""
        if not self.joining:
            self.begin_partitions()
        self.ask(
            self.assignment.client_calls(frozenset(self.held), frozenset(self.paused))
        )
        self.assignment.heartbeat()
        buffered = self.evicted and number & 8
        if (
            joins
            and not buffered
            and (self.pending is not None or self.evicted or self.joining)
        ):
            self.join(number)
        if number % 32 == 17:
            self.pause(number >> 5)
        found = {} if self.joining else self.fetched(number)
        self.assignment.heartbeat()
        for place, entries in found.items():
            if entries and entries[0].kind == "poison":
                self.skip(place, entries[0])
            elif entries:
                self.receive(place, entries)

    def begin_partitions(self) -> None:
        """Begin the partitions that were just assigned, as ``LogPoller`` does."""
        places = self.assignment.unbegun(frozenset(self.held))
        if places:
            starts = run(
                offsets.beginning(
                    Offsets(self), places, self.assignment.early, lambda: True
                )
            )
            self.assignment.begin(starts, places)
            for place in starts:
                part = self.assignment.partition(place)
                assert part is not None
                self.known[part] = self.serial[place]
                # Put out of the group unawares, it begins where the end was, and another where it is now.
                if place not in self.owned:
                    self.astray.add(part)
            if self.tell:
                self.note(f"begun {starts}")

    def beaten(self) -> None:
        """Note that the engine knows that the process runs."""
        now = self.clock.monotonic()
        if self.beat is not None and now - self.beat > SESSION:
            self.doubted = now
        self.beat = now

    def ask(self, wanted: ClientCalls) -> None:
        """Pause, resume and seek as wished."""
        self.require(
            not wanted.resume & self.users, "what others paused stays so", wanted.resume
        )
        self.paused |= wanted.pause
        for place, offset in wanted.seek.items():
            self.require(place in self.held, "only what is held is sought", place)
            self.position[place] = offset
        self.paused -= wanted.resume

    def guarded(self, act: Callable[[], None]) -> bool:
        """Call a function that may end the consumer; return whether it did not."""
        try:
            act()
        except Abort:
            self.stop(0)
            return False
        return True

    # Records

    def fetched(self, number: int) -> dict[At, list[Entry]]:
        """Return the records of a poll."""
        found = {}
        for place in PLACES:
            if place not in self.held or place in self.paused:
                continue
            log, start = self.log[place], self.position[place]
            here: list[Entry] = []
            for entry in log[self.index_of(place, start) :][
                : min(self.most, 1 + (number >> 5) % 7)
            ]:
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
        """Return the index of the first record at or after an offset."""
        log = self.log[place]
        at = min(offset, len(log))
        while at and log[at - 1].offset >= offset:
            at -= 1
        return at

    def receive(self, place: At, entries: list[Entry]) -> None:
        """Pass records to the engine."""
        self.assignment.receive(place, [entry.message for entry in entries])
        part = self.assignment.partition(place)
        # It comes again once it has begun.
        if part is None or part.seek is not None:
            return
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
        part = self.assignment.partition(place)
        if part is not None:
            self.known.setdefault(part, self.serial[place])

        def act() -> None:
            if run(self.work.skipping(place, entry.offset, entry.offset + 1, record)):
                entry.done = True
                if part is not None:
                    self.waits.pop(part, None)
                self.note(f"skipped {entry}")
            elif part is not None and part.alive:
                self.deferred(part)

        self.guarded(act)

    def commit(self, *, last: bool = False) -> bool:
        """Commit the offsets that the engine says are due; return whether nothing is left to commit."""
        due = self.assignment.due_commits(last=last)
        if not due:
            return True
        began = self.assignment.commit_began()
        for part, offset in due.items():
            place = part.topic_partition
            log, at = self.log[place], self.first_open(place)
            self.require(self.is_ours(part), "only what is ours is committed", place)
            self.require(
                place not in self.suspended,
                "nothing is committed while it is revoked",
                place,
            )
            settled = part in self.astray or at >= len(log) or log[at].offset >= offset
            self.require(settled, "only what is settled is committed",
                         f"{place.partition}/{offset}, open {log[at:at + 1]}")  # fmt: skip
        fenced = any(part.topic_partition not in self.owned for part in due)
        taken = not fenced and self.commits != "fail"
        if taken:
            for part, offset in due.items():
                self.require(
                    offset >= self.committed[part.topic_partition],
                    "a commit goes not back",
                    part.topic_partition,
                )
                self.committed[part.topic_partition] = offset
        if self.tell:
            self.note(
                f"commit {[(part.topic_partition.partition, offset) for part, offset in due.items()]}: {taken}"
            )
        if not taken or self.commits == "lose":
            self.assignment.commit_failed()
            return False
        self.assignment.committed(due, began)
        if self.doubted is not None and began >= self.doubted:
            self.doubted, self.doubtful = None, set()
        return True

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
        """Lose all partitions."""
        self.note("everything is lost")
        self.evicted = False
        self.pending = self.pending if self.pending is not None else self.partitions()
        self.forget(self.held)
        self.assignment.lost(set(self.held))
        self.owned = set()
        self.held, self.paused, self.users = set(), set(), set()

    def begin_join(self) -> None:
        """Revoke everything until the rebalance ends."""
        self.note("everything is revoked")
        self.joining = True
        self.suspended = set(self.held)
        self.assignment.revoked(set(self.held), set(self.held))

    def end_join(self, number: int) -> None:
        """Receive the new assignment; the owner's own listener may pause a partition."""
        target = self.partitions() if self.pending is None else self.pending
        self.pending, self.joining = None, False
        gone = self.held - target
        self.forget(gone)
        if not self.eager and gone:
            self.held -= gone
            self.assignment.revoked(gone, set(self.held))
        for place in target - self.held:
            self.position[place] = self.latest(place)
        self.held, self.owned, self.suspended, self.doubted = (
            set(target),
            set(target),
            set(),
            None,
        )
        self.doubtful = set()
        self.paused &= target
        self.users &= target
        self.assignment.assigned(set(target))
        place = PLACES[(number >> 7) % min(self.spread, self.count)]
        if number & 64 and not self.healed and place not in self.users:
            self.user_pauses(number >> 7)
        if self.tell:
            self.note(f"assigned {sorted(place.partition for place in target)}")
