"""The services of the Kafka simulation: consumers as users write them, what keeps them up, and their handler."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from mqauth import MemoryReplayStore, Pipeline, RejectNow, RetryLater, Verified
from mqauth.clock import Backoff
from mqauth.flow import Attempts
from mqauth.judging.verifier import Issuer
from mqauth.testing.forge import ISSUER
from tests.simulation.kafka_broker import PLACES, TOPIC, Broker, Client, source_of
from tests.simulation.kafka_facilities import (
    Audit,
    Handling,
    Keys,
    Ledger,
    Reach,
    Rules,
    Settings,
    SingleStore,
    Steps,
    Store,
    awaited,
    carried_out,
)  # fmt: skip
from tests.simulation.kafka_leaves import Leaf
from tests.simulation.services import Abort, Behaviour, forge_of, order_of
from tests.simulation.threads import Killed, Loop, Process, Threads

DESTINATION: Final = f"kafka:{TOPIC}"
AGAIN_AFTER: Final = 1.0
GRACE: Final = 4.0
LIFETIME: Final = 3600
TRIES: Final = 2
METADATA: Final = f"mqauth partitions={len(PLACES)}"
"""Of every commit, since the topic never grows."""


class Service:
    """One consumer, started again whenever it ends, until all is over.

    Args:
        name: for people.
        play: the simulation.
    """

    def __init__(self, name: str, play: Play) -> None:
        self.name = name
        self.play = play
        self.process: Process | None = None
        self.client: Client | None = None
        self.consumer: Any = None
        self._stop: Callable[[], Any] = _nothing
        self.stopping = False
        self.count = 0
        self.begun: set[tuple[int, int]] = set()

    def serve(self) -> None:
        """Keep a process running."""
        threads = self.play.threads
        while not self.play.over:
            self.count += 1
            process = self.process = Process(f"{self.name}#{self.count}", threads)
            self.stopping = False
            task = threads.start(
                process, process.name, lambda process=process: self._main(process)
            )  # type: ignore[misc]
            threads.wait(lambda task=task: task.done)  # type: ignore[misc]
            process.alive = False
            threads.sleep(AGAIN_AFTER)

    def _main(self, process: Process) -> None:
        """The main function of the process."""
        if self.play.leaf.on_loop:
            loop = Loop(process, self.play.threads)
            loop.play(self._serving(process, loop))
            return
        self._start(process)
        try:
            self.consumer.run()
        except Killed:
            raise
        except BaseException as error:
            self._ended_by(process, error)
        self._look_back(process).close()

    async def _serving(self, process: Process, loop: Loop) -> None:
        """The main function of a process that has an event loop."""
        self._start(process)
        consumer = self.consumer
        self._stop = lambda: loop.call_soon_threadsafe(
            lambda: loop.create_task(consumer.stop())
        )
        try:
            await consumer.run()
        except BaseException as error:
            if not process.alive:
                raise
            self._ended_by(process, error)
        client = self._look_back(process)
        await (
            client.stop() if hasattr(client, "stop") else asyncio.to_thread(client.close)
        )

    def _start(self, process: Process) -> None:
        play = self.play
        self.client = play.leaf.client(play.broker, process, play.settings.most)
        self.consumer = play.leaf.consumer(
            self.client, play.broker, process, play.pipeline(process), self._handler(process),
            workers=play.leaf.workers(play.settings.workers), grace=GRACE, commit_interval=play.settings.interval,
            backoff=Backoff(first=0.5, longest=4),
        )  # fmt: skip
        self._stop = self.consumer.stop

    def _handler(self, process: Process) -> Callable[[Verified], Any]:
        play = self.play
        steps = partial(play.handling, self, process)
        if play.leaf.on_loop:
            return lambda verified: awaited(steps(verified))
        return lambda verified: carried_out(play.threads, steps(verified))

    def _ended_by(self, process: Process, error: BaseException) -> None:
        self.play.note(process.name, f"ends with {type(error).__name__}")
        self.play.ended_by(process, error)

    def _look_back(self, process: Process) -> Any:
        """See what an ended consumer has left; return its client."""
        client: Any = self.client
        if self.stopping and "store" not in self.play.reach.out:
            self.play.look_at_claims(process, client.held_since)
        return client

    def stop(self) -> None:
        """Stop in order."""
        process = self.process
        if process is None or not process.alive or self.consumer is None or self.stopping:
            return
        self.stopping, self.begun = True, set()
        self.play.note(process.name, "asked to stop")
        if "store" in self.play.reach.out or "commits" in self.play.broker.out:
            self.play.rough(process.name, 60.0)
        self._stop()

    def kill(self) -> None:
        """End at once."""
        process, client = self.process, self.client
        if process is None or not process.alive or client is None:
            return
        self.play.note(process.name, "killed")
        process.alive = False
        self.play.rough(process.name, 60.0)
        self.play.ledger.deaths.append(process.name)
        self.play.threads.agenda.after(
            self.play.settings.session, lambda: self.play.broker.evict(client)
        )

    def pause(self, seconds: float) -> None:
        """Pause the process."""
        process, client, play = self.process, self.client, self.play
        if process is None or not process.alive or client is None:
            return
        play.note(process.name, f"stands still for {seconds:.1f} s")
        process.paused_until = play.threads.agenda.now + seconds
        if seconds > play.settings.session:
            play.rough(process.name, seconds + 60.0)
            play.threads.agenda.after(
                play.settings.session, lambda: play.broker.evict(client)
            )


class Play:
    """The world of one seed.

    Args:
        seed: decides what the settings leave open.
        settings: how it is set up.
        leaf: the leaf that is played.
        tell: takes each line of the trace.
    """

    def __init__(
        self, seed: int, settings: Settings, leaf: Leaf, tell: Callable[[str], None]
    ):  # fmt: skip
        self.settings = settings
        self.leaf = leaf
        self.threads = Threads(seed)
        self.tell = tell
        self.over = False
        self.ledger = Ledger()
        self.reach = Reach(self.threads, on_loop=leaf.on_loop)
        self.broker = Broker(self.threads, self.committed, self.note, settings.reset)
        self.core = MemoryReplayStore(clock=self.threads.world)
        self.forge = forge_of(self.threads.world, LIFETIME)
        self.behaviours: dict[int, Behaviour] = {}
        self.services = [
            Service(f"consumer{number}", self) for number in range(settings.consumers)
        ]
        self._live: list[Handling] = []

    def note(self, who: str, what: str) -> None:
        """Note what happens."""
        self.tell(f"{self.threads.agenda.now:9.3f}  {who:13} {what}")

    def problem(self, invariant: str, text: str) -> None:
        """Note that an invariant does not hold."""
        self.note("PROBLEM", f"{invariant}: {text}")
        self.ledger.problems.append((invariant, text))

    def rough(self, process: str, seconds: float) -> None:
        """Note that a process's messages may be handled again."""
        now = self.threads.agenda.now
        self.ledger.rough.append((process, now - 60.0, now + seconds))

    def ended_by(self, process: Process, error: BaseException) -> None:
        """Check the error that ended a consumer: only a ``BaseException``, or a final refusal, may."""
        self.rough(process.name, 60.0)
        if isinstance(error, Exception) and not self.leaf.is_final(error):
            self.problem(
                "no consumer dies", f"{process.name}: {type(error).__name__}: {error}"
            )

    def pipeline(self, process: Process) -> Pipeline:
        """Return the pipeline of a process."""
        store: Any = Store(process, self.reach, self.core, self.ledger.claims)
        return Pipeline(
            verifier=self.forge.verifier(keys={ISSUER: Issuer(keys=Keys(self.reach, self.forge.keys))}),
            policy=Rules(process, self.reach, self.forge.policy(DESTINATION)),
            replay=store if self.settings.many else SingleStore(store),
            audit=Audit(process, self.reach, self.ledger.records), lease=self.settings.lease, clock=process,
            instance=process.name, attempts=Attempts(limit=TRIES, wait=0),
        )  # fmt: skip

    def handling(
        self, service: Service, process: Process, verified: Verified
    ) -> Steps[None]:
        """Handle a message."""
        label, origin = verified.body or b"", verified.origin
        place = (origin.partition or 0, origin.offset or 0)
        handling = Handling(label, process, place, self.threads.agenda.now)
        self._look_at_begun(service, handling)
        self.ledger.handlings[label].append(handling)
        self._live.append(handling)
        self.note(process.name, f"handles {place} {label!r}")
        try:
            yield from self._work(label)
        finally:
            handling.over = True
            self._live.remove(handling)
        handling.ended = self.threads.agenda.now
        self.ledger.handled.add(place)
        self.note(process.name, f"handled {place}")

    def _work(self, label: bytes) -> Steps[None]:
        behaviour = self.behaviours.get(order_of(label))
        yield self.threads.draw.uniform(0, self.settings.work)
        if behaviour is None:
            return
        if behaviour.how == "fail":
            raise ValueError("this order cannot be handled")
        if behaviour.how == "reject":
            raise RejectNow("never")
        if behaviour.how == "later" and self.threads.agenda.now < behaviour.until:
            raise RetryLater("the database is away")
        if behaviour.left <= 0 or behaviour.how == "later":
            return
        behaviour.left -= 1
        if behaviour.how == "slow":
            yield behaviour.seconds
        elif behaviour.how == "flaky":
            raise ValueError("once more, please")
        elif behaviour.how == "abort":
            raise Abort

    # What is seen at once

    def _look_at_begun(self, service: Service, handling: Handling) -> None:
        """Check a handler that begins."""
        client, (partition, offset) = service.client, handling.place
        assert client is not None
        held = {place.partition for place in client.held}
        if partition not in held:
            self.problem(
                "nothing begins after a loss", f"{handling.process.name} {handling.place}"
            )
        # One that fails is called again, until its attempts are over.
        service.begun.add(handling.place)
        if service.stopping and len(service.begun) > max(1, self.settings.workers):
            self.problem(
                "nothing begins after a stop", f"{handling.process.name} {handling.place}"
            )
        for other in self._live:
            if other.process is handling.process and other.place[0] == partition:
                self.problem(
                    "one handler of a partition", f"{handling.place} beside {other.place}"
                )
        place = PLACES[partition]
        if place not in self.broker.committed:
            self.problem(
                "nothing begins before its start is committed", f"{handling.place}"
            )
        if any(
            each.place == handling.place
            and each.process is handling.process
            and each.ended is not None
            for each in self.ledger.handlings[handling.label]
        ):
            self.problem(
                "what was handled is settled unrun",
                f"{handling.process.name} {handling.place}",
            )
        begun = range(self.broker.committed.get(place, 0), offset)
        first = next(
            (found for found in begun if not self._is_over(partition, found)), offset
        )
        if first < offset:
            self.problem("order within a partition", f"{handling.place} before {first}")

    def _is_over(self, partition: int, offset: int) -> bool:
        """Tell whether a record was handled, has its letter, is being handled now, or is gone."""
        done = self._handled(partition, offset) or (partition, offset) in self.buried()
        return done or offset < self.broker.first[PLACES[partition]]

    def missed(self, label: bytes) -> int:
        """Return how many records with a body the group never had to handle.

        They were there before the group began with their partition, or were removed before they were handled.
        """
        return sum(
            record.value == label and self._is_missed(place, record.offset)
            for place, log in self.broker.logs.items() for record in log
        )  # fmt: skip

    def _is_missed(self, place: Any, offset: int) -> bool:
        at = (place.partition, offset)
        gone = (
            offset < self.broker.first[place]
            and at not in self.ledger.handled
            and at not in self.buried()
        )
        return gone or offset < self.ledger.starts.get(place, 0)

    def _handled(self, partition: int, offset: int) -> bool:
        """Tell whether a record was handled, or is being handled now."""
        live = any(found.place == (partition, offset) for found in self._live)
        return live or (partition, offset) in self.ledger.handled

    def buried(self) -> set[tuple[int, int]]:
        """Return the places of all letters."""
        return {source_of(letter) for letter in self.broker.dead}

    def committed(self, client: Client, place: Any, offset: int, metadata: str) -> None:
        """Check a commit; the first of a partition says where the group begins with it."""
        self.note(client.process.name, f"commits {place.partition}/{offset}")
        if place not in client.share:
            self.problem(
                "only what is ours is committed",
                f"{client.process.name} {place.partition}/{offset}",
            )
        if metadata.rstrip("\0") != METADATA:
            self.problem(
                "each commit is marked",
                f"{client.process.name} {place.partition}/{offset} {metadata!r}",
            )
        if place not in self.broker.committed:
            self._begun(client, place, offset)
            return
        buried = self.buried()
        for found in range(self.broker.committed[place], offset):
            here = (place.partition, found)
            gone = found < self.broker.first[place]
            if not gone and here not in self.ledger.handled and here not in buried:
                self.problem(
                    "only what is settled is committed", f"{client.process.name} {here}"
                )
        # kafka-python 3.0 keeps the position of a partition that it lost in the middle of a join and gets back
        if offset < self.broker.committed.get(place, 0) and not self._is_rough(
            client.process
        ):
            self.problem(
                "a commit goes not back",
                f"{client.process.name} {place.partition}/{offset}",
            )

    def _begun(self, client: Client, place: Any, offset: int) -> None:
        """Check the first commit of a partition, before anything of it was handled."""
        self.ledger.starts[place] = offset
        begins_late = (
            self.settings.reset == "earliest" and offset > self.broker.first[place]
        )
        handled = any(
            partition == place.partition for partition, _ in self.ledger.handled
        )
        if begins_late or handled or offset > len(self.broker.logs[place]):
            self.problem(
                "a partition begins where it should",
                f"{client.process.name} {place.partition}/{offset}",
            )

    def _is_rough(self, process: Process) -> bool:
        """Tell whether a process went through something after which messages may be handled again."""
        now = self.threads.agenda.now
        return any(
            name == process.name and since <= now <= until
            for name, since, until in self.ledger.rough
        )

    def look_at_claims(self, process: Process, held: Mapping[Any, float]) -> None:
        """See that a process which stopped in order holds no claim of what stood first in its partition.

        Claims made ahead of a deferred record stay with their places, and their places may claim again. So do
        those of a partition that was taken away and came back.

        Args:
            process: who stopped.
            held: its partitions, each with the time since when.
        """
        if any(found.process is process for found in self._live) or self._is_rough(
            process
        ):
            return
        first = {
            (place.partition, self._first_open(place)): since
            for place, since in held.items()
        }
        for claim in self.ledger.claims.values():
            if claim.process == process.name and claim.since >= first.get(
                claim.place, math.inf
            ):
                self.problem("a stop leaves no claim", f"{process.name}: {claim.place}")

    def _first_open(self, place: Any) -> int:
        """Return the offset of the first record that is neither handled nor settled.

        A letter settles its record when the record is committed: where its confirm was lost, nobody knows of it.
        """
        begun = max(self.broker.committed.get(place, 0), self.broker.first[place])
        log = range(begun, len(self.broker.logs[place]))
        return next(
            (found for found in log if not self._handled(place.partition, found)), -1
        )


def _nothing() -> None:
    """Stop nothing."""
