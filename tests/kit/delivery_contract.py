"""The delivery contract for log brokers: what happens to deliveries, commits and claims when things go wrong.

Inherit ``LogDeliveryContract`` in a test class and provide a ``stage`` fixture that returns a fresh stage. It has
the calls of ``tests.simulation.kafka_stage``: a source of at least two partitions, and one group of consumers.
``BrokerContract`` tests the verdict. Nearly every mistake in *delivery* passes it: a commit of records that are
not settled, a letter that nobody confirmed, two workers on one partition.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import pytest

from mqauth import AuditFile, Cause, Message, RetryLater, Verified
from mqauth.brokers.log.records import CommitUnansweredError
from tests.kit.delivery_play import LATER, Play, text
from tests.kit.delivery_stage import Member

MOMENT: Final = 0.02
HOT: Final = 8
"""Attempts of one message in a second that are too many; a back-off of half a second makes two to four."""
_KEYS: Final = tuple(b"key %d" % number for number in range(16))
Where = tuple[int, int]


@dataclass
class LogPlay(Play):
    """One run on a log stage."""

    clock: Any = None

    def __post_init__(self) -> None:
        self.clock = self.stage.clock
        super().__post_init__()
        self._running: Counter[int] = Counter()
        self._lock = threading.Lock()

    def send(
        self, count: int, *, key: bytes | None = None, sealed: bool = True
    ) -> list[bytes]:
        """Send ``count`` messages, over several partitions or with one key, and return their bodies."""
        keys = [
            key or _KEYS[(len(self.sent) + number) % len(_KEYS)]
            for number in range(count)
        ]
        return [self.inject(key=each, sealed=sealed) for each in keys]

    def handle(self, verified: Verified) -> None:
        """Handle a message for a moment, and note a fault if another one of its partition is being handled."""
        with self.occupied(verified):
            self.stage.sleep(MOMENT)
            self.handled.append(verified)

    @contextmanager
    def occupied(self, verified: Verified) -> Iterator[None]:
        """Count a running handler of a partition."""
        number = verified.origin.partition or 0
        with self._lock:
            self._running[number] += 1
            if self._running[number] > 1:
                self.faults.append(f"two handlers of partition {number} at once")
        try:
            yield
        finally:
            with self._lock:
                self._running[number] -= 1

    def start(
        self, handler: Callable[[Verified], Any] | None = None, **settings: Any
    ) -> Member:
        """Start a consumer."""
        workers = settings.pop("workers", 1)
        self.members.append(
            self.stage.second(
                self.guard(**settings), handler or self.handle, workers=workers
            )
        )
        return self.members[-1]

    def wait(self, condition: Callable[[], bool], seconds: float | None = None) -> None:
        """Wait until a condition holds, as long as every consumer runs.

        Raises:
            TimeoutError: the condition did not hold in time, or a consumer ended.
        """
        for _ in range(int((seconds or self.stage.patience) / MOMENT)):
            if condition():
                return
            if any(member.failed for member in self.members):
                raise TimeoutError("a consumer ended")
            self.stage.sleep(MOMENT)
        raise TimeoutError("the condition did not come to hold")

    def watch_commits(self) -> None:
        """Note a fault for each commit that covers a record neither handled nor dead-lettered."""

        def observe(partition: int, offset: int) -> None:
            done = self.places()
            missing = [at for at in range(offset) if (partition, at) not in done]
            if missing:
                self.faults.append(
                    f"{offset} of partition {partition} was committed without {missing}"
                )

        self.stage.watch(observe)

    def places(self) -> set[Where]:
        """Return the places of the messages that were handled or whose dead letter is confirmed."""
        origins = [seen.origin for seen in list(self.handled)]
        buried = [_source(letter) for letter in self.stage.letters()]
        return {(origin.partition or 0, origin.offset or 0) for origin in origins} | set(
            buried
        )

    def all_committed(self) -> bool:
        """Tell whether the group has committed everything."""
        return dict(self.stage.committed()) == dict(self.stage.ends())


class LogDeliveryContract:
    """What every wrapper of a log broker must do with its deliveries; each docstring is the promise."""

    @pytest.fixture
    def play(self, stage: Any, tmp_path: Any) -> Any:
        """Yield a play on a fresh stage, and stop its consumers afterwards."""
        with (
            AuditFile(tmp_path / "audit.jsonl", fsync=False) as audit,
            ExitStack() as ending,
        ):
            play = LogPlay(stage, audit)
            ending.callback(_end, play)
            yield play

    def test_a_commit_covers_what_is_settled(self, play: LogPlay) -> None:
        """At every commit each record before it was handled, or its dead letter is confirmed."""
        play.watch_commits()

        def handler(verified: Verified) -> None:
            play.stage.sleep(MOMENT if play.handled else 0.5)
            play.handle(verified)

        honest = play.send(10) + play.send(10)
        play.send(4, sealed=False)
        honest += play.send(10)
        # More than there are partitions, so that one polls and commits beside the handlers.
        member = play.start(handler, workers=5)
        play.wait(
            lambda: len(play.handled) == len(honest) and len(play.stage.letters()) == 4
        )
        play.wait(play.all_committed)
        play.stop(member)
        assert play.faults == []
        assert sorted(play.bodies) == sorted(honest)

    def test_everything_is_committed_in_the_end(self, play: LogPlay) -> None:
        """Once all is settled all is committed, at the latest by the stop; the next consumer gets nothing."""
        play.send(20)
        play.send(2, sealed=False)
        member = play.start()
        play.wait(lambda: len(play.places()) == 22)
        play.stop(member)
        assert play.all_committed()

    def test_a_letter_is_confirmed(self, play: LogPlay) -> None:
        """A rejected record waits, and says so, while its letter is lost on the way; then it has one letter."""
        play.watch_commits()
        play.stage.refuse_letters(True)
        play.send(3, key=b"one", sealed=False)
        behind = play.send(1, key=b"one")
        member = play.start()
        play.wait(lambda: play.stage.attempts() >= 2)
        assert member.health().cause is Cause.DEAD_LETTER_UNAVAILABLE
        assert [outcome.cause for _, outcome in play.outcomes[:1]] == [
            Cause.DEAD_LETTER_UNAVAILABLE
        ]
        assert play.bodies == []
        play.stage.refuse_letters(False)
        play.wait(lambda: play.bodies == behind)
        play.wait(play.all_committed)
        assert (play.reasons(), play.faults) == (["token_missing"] * 3, [])

    def test_what_is_put_off_is_not_settled(self, play: LogPlay) -> None:
        """A message that a handler puts off is not committed; after the stop the next consumer handles it."""
        calls: list[bytes] = []

        def later(verified: Verified) -> None:
            calls.append(verified.body or b"")
            raise RetryLater("not now")

        bodies = play.send(3, key=b"one")
        member = play.start(later)
        play.wait(lambda: len(calls) >= 2)
        play.stop(member)
        assert not play.stage.committed()
        play.start()
        play.wait(lambda: play.bodies == bodies)
        assert play.reasons() == []

    def test_no_claim_outlives_the_stop(self, play: LogPlay) -> None:
        """A consumer that stopped in order holds no claim, of messages put off or of those judged ahead."""

        def later(_verified: Verified) -> None:
            raise RetryLater("not now")

        play.send(1, key=b"one")
        member = play.start(later)
        play.wait(lambda: bool(play.outcomes))
        play.stop(member)
        assert len(play.store) == 0

    def test_nothing_overtakes(self, play: LogPlay) -> None:
        """Messages of one key are handled in order, also if one of them is put off."""
        calls: Counter[bytes] = Counter()

        def handler(verified: Verified) -> None:
            body = verified.body or b""
            calls[body] += 1
            if body == bodies[2] and calls[body] <= 2:
                raise RetryLater("not now")
            play.handle(verified)

        bodies = play.send(6, key=b"one")
        play.start(handler)
        play.wait(lambda: len(play.handled) >= len(bodies))
        assert play.bodies == bodies

    def test_what_is_put_off_is_not_tried_hotly(self, play: LogPlay) -> None:
        """A message that waits is tried less and less often, and others are handled meanwhile."""
        calls: list[float] = []

        def handler(verified: Verified) -> None:
            if verified.key == b"one":
                calls.append(play.clock.monotonic())
                raise RetryLater("not now")
            play.handle(verified)

        play.send(1, key=b"one")
        others = play.send(32)
        play.start(handler)
        play.wait(lambda: len(calls) >= 3)
        play.stage.sleep(1)
        spent = calls[-1] - calls[0]
        assert len(calls) <= HOT * max(1.0, spent)
        play.wait(lambda: len(play.handled) >= len(others) // 4)

    def test_one_handler_of_a_partition(self, play: LogPlay) -> None:
        """With several workers, each partition has one handler at a time, and each message is handled once."""
        bodies = play.send(40)
        play.start(workers=4)
        play.wait(lambda: len(play.handled) >= len(bodies))
        play.wait(play.all_committed)
        assert play.faults == []
        assert sorted(play.bodies) == sorted(bodies)

    def test_the_time_of_receipt_survives(self, play: LogPlay) -> None:
        """A message put off with its partition is judged by its first receipt, however long the outage was."""
        play.stage.refuse_letters(True)
        play.send(1, key=b"one", sealed=False)
        honest = play.send(3, key=b"one")
        play.start()
        play.wait(lambda: play.stage.attempts() >= 1)
        play.stage.advance(LATER)
        play.stage.refuse_letters(False)
        play.wait(lambda: len(play.places()) == 4)
        assert (play.bodies, play.reasons()) == (honest, ["token_missing"])

    def test_a_revoke_waits_for_what_runs(self, play: LogPlay) -> None:
        """When a consumer joins, no old handler runs beside the new owner's, and nothing is handled twice."""
        play.watch_commits()
        bodies = play.send(60)
        # Four workers, so that a handler runs for each partition.
        play.start(workers=4)
        play.wait(lambda: len(play.handled) >= 3)
        play.start(workers=4)
        play.wait(lambda: len(set(play.bodies)) == len(bodies))
        play.wait(play.all_committed)
        assert play.faults == []
        assert sorted(play.bodies) == sorted(bodies)

    def test_a_rebalance_in_the_middle(self, play: LogPlay) -> None:
        """A rebalance loses nothing, condemns nothing, and has nothing handled twice."""
        bodies = play.send(40)
        play.start()
        play.start()
        play.wait(lambda: len(play.handled) >= 3)
        play.stage.rebalance()
        play.wait(lambda: len(play.handled) >= len(bodies))
        play.wait(play.all_committed)
        assert (sorted(play.bodies), play.reasons(), play.faults) == (
            sorted(bodies),
            [],
            [],
        )

    def test_a_consumer_that_is_killed(self, play: LogPlay) -> None:
        """The messages of a killed consumer are handled by the next one, and nothing is condemned or lost."""
        begun = threading.Event()

        def hanging(verified: Verified) -> None:
            begun.set()
            play.wait(over.is_set)
            raise Death

        over = threading.Event()
        bodies = play.send(4)
        member = play.start(hanging)
        play.wait(begun.is_set)
        play.members.remove(member)
        play.stage.kill(member)
        over.set()
        play.start()
        play.wait(lambda: set(play.bodies) >= set(bodies))
        play.wait(play.all_committed)
        assert play.reasons() == []

    def test_commits_that_are_refused(self, play: LogPlay) -> None:
        """While commits fail messages are handled, none of them twice, and all are committed afterwards."""
        play.start()
        bodies = play.send(16)
        play.wait(lambda: len(play.handled) >= len(bodies))
        play.wait(play.all_committed)
        play.stage.refuse_commits(True)
        before = dict(play.stage.committed())
        bodies += play.send(10)
        play.wait(lambda: len(play.handled) >= len(bodies))
        assert play.stage.committed() == before
        play.stage.refuse_commits(False)
        play.wait(play.all_committed)
        assert sorted(play.bodies) == sorted(bodies)

    def test_a_start_is_committed_first(self, play: LogPlay) -> None:
        """Before anything of a partition is handled, it is committed where the partition begins."""
        first: dict[int, tuple[int, int]] = {}

        def observe(partition: int, offset: int) -> None:
            handled = sum(seen.origin.partition == partition for seen in play.handled)
            first.setdefault(partition, (offset, handled))

        play.stage.watch(observe)
        bodies = play.send(16)
        play.start(workers=4)
        play.wait(lambda: len(play.handled) >= len(bodies))
        assert set(first.values()) == {(0, 0)}
        assert first.keys() >= play.stage.ends().keys()

    def test_what_is_stale_is_not_condemned(self, play: LogPlay) -> None:
        """A consumer that was cut off for longer than tokens live condemns nothing that another has handled."""
        first = play.start()
        warm = play.send(8)
        play.wait(lambda: len(play.handled) >= len(warm))
        play.wait(play.all_committed)
        play.stage.cut(first)
        bodies = play.send(8)
        play.start()
        play.wait(lambda: set(play.bodies) >= set(bodies))
        # a commit that is under way while the clock jumps would be late, too
        play.wait(play.all_committed)
        play.stage.advance(LATER)
        play.stage.heal(first)
        # A commit that the cut left without an answer is late by now: that alone ends one of confluent-kafka.
        loses_commits = getattr(play.stage, "loses_commits", False)
        if loses_commits:
            play.members.remove(first)
        after = play.send(8)
        play.wait(lambda: set(play.bodies) >= set(after))
        play.wait(play.all_committed)
        if loses_commits:
            with suppress(CommitUnansweredError):
                first.close()
        assert (sorted(play.bodies), play.reasons()) == (
            sorted(warm + bodies + after),
            [],
        )


class Death(BaseException):
    """Ends the handler of a process that was killed."""


def _end(play: LogPlay) -> None:
    """Stop every consumer that still runs; an error here must not hide an error of the test."""
    play.stage.refuse_letters(False)
    play.stage.refuse_commits(False)
    while play.members:
        play.stage.kill(play.members.pop())


def _source(letter: Message) -> Where:
    """Return the partition and offset at which the message of a dead letter stood."""
    place = text(letter, "mqauth-dead-source").partition("@")[0].split("/")
    return int(place[-2]), int(place[-1])
