"""A contender without an event loop: what it does in each kind of round."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from integration.benchmarks.client.rounds import Measured, Stopwatch
from integration.benchmarks.client.workload import RoundEnd, Tally


class BlockingContender:
    """A contender whose client blocks.

    Subclasses say how a message is sent, which messages wait, and how they are consumed.

    Attributes:
        topic: where the messages wait that it consumes.
        scratch: where it sends to when only sending is measured.
        fill: has so many messages wait.
    """

    fill: Callable[[int], object]
    topic: str
    scratch: str

    def publish(self, count: int, /) -> Measured:
        """Send messages until all are confirmed."""
        self.fill(0)
        send, flush = self.sender(self.scratch)
        watch = Stopwatch()
        watch.start()
        for number in range(count):
            send(number)
        flush()
        return watch.stop(count)

    def consume(self, count: int, work: float, /) -> Measured:
        """Consume messages that wait already."""
        self.fill(count)
        client = self.at_start()
        watch = Stopwatch()
        ended = RoundEnd(lambda: watch.stop(count))
        watch.start()
        self.reading(client, Tally(count, ended.set, work), ended)
        self.rest(client)
        return ended.measured()

    def paced(self, count: int, pace: float, /) -> Measured:
        """Send messages at a pace while consuming."""
        client = self.at_end()
        watch = Stopwatch()
        ended = RoundEnd(lambda: watch.stop(count))
        tally = Tally(count, ended.set, arrivals={})
        thread = threading.Thread(target=self.reading, args=(client, tally, ended))
        watch.start()
        thread.start()
        sent = self._at_pace(count, pace)
        thread.join()
        self.rest(client)
        measured, arrivals = ended.measured(), tally.arrivals or {}
        latencies = tuple(
            arrivals[number] - began
            for number, began in sent.items()
            if number in arrivals
        )
        return Measured(
            messages=count, wall=measured.wall, cpu=measured.cpu, latencies=latencies
        )

    def sender(self, topic: str) -> tuple[Callable[[int], object], Callable[[], object]]:
        """Return a function that sends the message of a number, and one that waits for all of them."""
        raise NotImplementedError

    def at_start(self) -> Any:
        """Return this contender's consumer, which takes the first message that waits next."""
        raise NotImplementedError

    def at_end(self) -> Any:
        """Return this contender's consumer, which takes what is sent from now on."""
        raise NotImplementedError

    def reading(self, client: Any, tally: Tally, ended: RoundEnd) -> None:
        """Consume until the tally has seen all messages, or until an error ends the round."""
        raise NotImplementedError

    def rest(self, client: Any) -> None:
        """Leave the consumer until the next round."""
        raise NotImplementedError

    def _at_pace(self, count: int, pace: float) -> dict[int, float]:
        """Send ``pace`` messages a second, and return the time at which each was sent."""
        send, flush = self.sender(self.topic)
        sent: dict[int, float] = {}
        began = time.perf_counter()
        for number in range(count):
            time.sleep(max(0.0, began + number / pace - time.perf_counter()))
            sent[number] = time.perf_counter()
            send(number)
        flush()
        return sent
