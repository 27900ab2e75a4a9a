"""The stage of the log delivery contract on the simulated Kafka, in virtual time, for the leaf of each client.

A consumer is a process of the simulation. A test runs outside of all of them, and lets time go on as it waits.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from mqauth.brokers.event_loop import on_thread
from mqauth.brokers.log.records import dead_letter_headers
from mqauth.clock import Backoff
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.wire.message import Message
from tests.kit.delivery_stage import CommitObserver
from tests.simulation.kafka_broker import LATENCY, PLACES, SESSION, Broker, Fate
from tests.simulation.kafka_leaves import LEAVES, Leaf, kafka
from tests.simulation.kafka_services import DESTINATION, Service
from tests.simulation.threads import Process, Threads

MOST: Final = 50
"""Records of a partition in one poll."""


class LogMember(Service):
    """A consumer in a process of its own, from its start; it is not started again.

    Args:
        stage: where it runs.
        make: makes its wrapper of its client and its process.
    """

    process: Process

    def __init__(
        self, stage: SimulatedLogStage, make: Callable[[Any, Process], Any]
    ) -> None:
        super().__init__(f"consumer{len(stage.members) + 1}", stage)  # type: ignore[arg-type]
        self.stage = stage
        self._make = make
        self.failure: BaseException | None = None
        self.process = process = Process(self.name, stage.threads)
        self._task = stage.threads.start(process, self.name, lambda: self._main(process))
        stage.threads.wait(lambda: self.consumer is not None or self._task.done)

    @property
    def failed(self) -> bool:
        """Whether it ended with an error."""
        return self.failure is not None

    def health(self) -> Any:
        """Return its state."""
        return self.consumer.health()

    def close(self) -> None:
        """Stop it in order, and leave the group; raises the error that ended it."""
        if not self._task.done:
            self._stop()
        if not self.stage.threads.wait(
            lambda: self._task.done, self.stage.now() + self.stage.patience
        ):
            raise TimeoutError("the stop did not end")
        if self.failure is not None:
            raise self.failure

    def _start(self, process: Process) -> None:
        self.client = self.stage.leaf.client(self.stage.broker, process, MOST)
        self.consumer = self._make(self.client, process)
        self._stop = self.consumer.stop

    def _ended_by(self, process: Process, error: BaseException) -> None:
        self.failure = error

    def _look_back(self, process: Process) -> Any:
        return self.client


class SimulatedLogStage:
    """A source of three partitions, its group and its dead letters.

    Args:
        leaf: whose consumers they are.
        seed: decides latencies, and who runs next.
    """

    destination = DESTINATION
    patience = 60.0

    def __init__(self, leaf: Leaf, seed: int = 0) -> None:
        self.leaf = leaf
        self.threads = Threads(seed)
        self.clock = self.threads.world
        self.broker = Broker(self.threads, self._committed, lambda _who, _what: None)
        self.members: list[LogMember] = []
        self._observers: list[CommitObserver] = []
        self._sent = 0
        self._bury = self.broker.bury
        setattr(self.broker, "bury", self._buried)  # noqa: B010 - a method, replaced

    def now(self) -> float:
        """Return the virtual seconds."""
        return self.threads.agenda.now

    def sleep(self, seconds: float) -> None:
        """Let time pass for whoever calls."""
        self.threads.sleep(seconds)

    advance = sleep

    def inject(self, message: Message) -> None:
        """Append a record."""
        place = PLACES[sum(message.key or b"") % len(PLACES)]
        self.broker.append(
            place, message.body, message.key, dead_letter_headers(message.headers)
        )

    def second(self, guard: Pipeline, handler: Handler, **settings: Any) -> LogMember:
        """Start a process that consumes; on an event loop a plain handler runs on threads."""
        handle = on_thread(handler) if self.leaf.on_loop else handler
        wanted = {"backoff": Backoff(first=0.3, longest=1)} | settings

        def make(client: Any, process: Process) -> Any:
            return self.leaf.consumer(
                client, self.broker, process, guard, handle, **wanted
            )

        member = LogMember(self, make)
        self.members.append(member)
        return member

    def rebalance(self) -> None:
        """Begin a rebalance."""
        self.broker.rebalance()

    def kill(self, member: Any) -> None:
        """Kill a process; the group misses it after a session."""
        member.process.alive = False
        self._missed(member)

    def cut(self, member: Any) -> None:
        """Pause a process, once the answers that are on their way have come."""
        self.sleep(max(LATENCY))
        member.process.paused_until = float("inf")
        self._missed(member)

    def heal(self, member: Any) -> None:
        """Let a paused process go on."""
        member.process.paused_until = 0.0

    def _missed(self, member: LogMember) -> None:
        self.threads.agenda.after(SESSION, lambda: self.broker.evict(member.client))

    def refuse_commits(self, refusing: bool) -> None:
        """Fail commits, or take them again."""
        self._be_out("commits", "fails" if refusing else None)

    def refuse_letters(self, refusing: bool) -> None:
        """Lose letters, or take them again."""
        self._be_out("letters", "lost" if refusing else None)

    def _be_out(self, what: str, how: str | None) -> None:
        self.broker.out.pop(what, None)
        if how is not None:
            self.broker.out[what] = how

    def attempts(self) -> int:
        """Return how many letters were sent."""
        return self._sent

    def _buried(self, *letter: Any) -> Fate | None:
        """Count a letter."""
        self._sent += 1
        return self._bury(*letter)

    def letters(self) -> list[Message]:
        """Return every dead letter so far."""
        return [kafka.from_native(record, scope="billing") for record in self.broker.dead]

    def committed(self) -> dict[int, int]:
        """Return the group's committed offsets."""
        return {
            place.partition: offset
            for place, offset in self.broker.committed.items()
            if offset
        }

    def ends(self) -> dict[int, int]:
        """Return the ends of the partitions that hold records."""
        return {
            place.partition: len(log) for place, log in self.broker.logs.items() if log
        }

    def watch(self, observer: CommitObserver) -> None:
        """Call an observer with every commit."""
        self._observers.append(observer)

    def _committed(self, _member: Any, place: Any, offset: int, _metadata: str) -> None:
        for observer in self._observers:
            observer(place.partition, offset)

    def close(self) -> None:
        """Kill every process."""
        self.threads.failure = None
        self.threads.end()


@contextmanager
def simulated_log(client: str, seed: int = 0) -> Iterator[SimulatedLogStage]:
    """Yield a stage of the leaf of a client, with virtual time in its modules."""
    stage = SimulatedLogStage(LEAVES[client], seed)
    with stage.leaf.in_virtual_time(stage.threads):
        yield stage
        stage.close()
        gc.collect()
