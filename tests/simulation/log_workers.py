"""The workers of the log engine's simulation: each visits a partition, and its handler ends at any later fact."""

from __future__ import annotations

from typing import Any, Final

from mqauth.delivery.assignment import Assignment
from mqauth.delivery.log_work import LogWork
from mqauth.delivery.partition import Partition
from mqauth.errors import RejectNow, RetryLater
from tests.simulation.log_facilities import Abort, Entry
from tests.simulation.log_invariants import LogInvariants

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
        error = None if self.healed and entry.kind not in ("fails", "rejects") else self.misbehaviour(entry)
        if error is None:
            self.completed(worker, entry)
        elif not isinstance(error, Exception):
            return self.abort(worker)
        self.go_on(worker, None, error)

    def misbehaviour(self, entry: Entry) -> BaseException | None:
        """Return the exception that a handler raises, or ``None``."""
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
            worker.assignment is not self.assignment or self.is_ours(part), "nothing begins after a loss", entry
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
            self.loose.add(entry.content)  # it ran beside its successor, and their ends may differ
        self.handled(entry)
        self.require(self.settled.get(worker.part, -1) < entry.offset, "handled once in an assignment", entry)
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
            self.assignment.running == len(self.workers), "every place comes back", self.assignment.running
        )
