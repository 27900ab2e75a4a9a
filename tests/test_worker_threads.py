"""``mqauth.brokers.log.consumer``: one thread at a time is at the client, and short work waits for none."""

from __future__ import annotations

import threading
from unittest import mock

import pytest

from mqauth.brokers.log.consumer import WorkerThreads
from mqauth.testing import FakeClock

PATIENCE = 30


class Bench:
    """Turns over a list of things to do; each poll lets one come."""

    def __init__(self, threads: int, *, things: int = 3) -> None:
        self.coming = list(range(things))
        self.ready: list[int] = []
        self.done: list[tuple[int, int]] = []
        self.polls: list[int] = []
        self.turns: WorkerThreads[int] = WorkerThreads(
            threads, self.poll, self.choose, self.visit
        )

    def poll(self) -> None:
        """Let the next come; after the last, stop."""
        assert self.turns.poll_lock.locked()
        self.polls.append(threading.get_ident())
        if self.coming:
            self.ready.append(self.coming.pop(0))
        elif len(self.done) == 3:
            self.turns.stop()

    def choose(self) -> int | None:
        """Take what is ready."""
        return self.ready.pop(0) if self.ready else None

    def visit(self, thing: int) -> None:
        """Do it."""
        self.done.append((thing, threading.get_ident()))


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_all_is_done(threads: int) -> None:
    """Everything that comes is done, in order where one thread works."""
    bench = Bench(threads)
    bench.turns.run()
    assert sorted(thing for thing, _ in bench.done) == [0, 1, 2]


@pytest.mark.parametrize("threads", [0, 1])
def test_who_polls_works(threads: int) -> None:
    """While work is short the thread that polls works; the thread of ``run`` works alone, and never polls."""
    bench = Bench(threads)
    bench.turns.run()
    workers, own = {worker for _, worker in bench.done}, {threading.get_ident()}
    assert len(workers) == 1
    assert (set(bench.polls[:3]) == workers, workers == own) == (
        (True, False) if threads else (False, True)
    )
    assert not own & set(bench.polls)


def test_another_polls_while_work_is_long() -> None:
    """Work that takes long costs no poll, and its thread takes the client back afterwards."""
    bench = Bench(1, things=1)
    polled = threading.Event()

    def poll() -> None:
        bench.polls.append(threading.get_ident())
        if len(bench.polls) == 1:
            bench.ready.append(0)
        elif len(bench.polls) == 3:
            polled.set()
        elif polled.is_set() and bench.done:
            bench.turns.stop()

    def visit(thing: int) -> None:
        assert polled.wait(PATIENCE)
        bench.done.append((thing, threading.get_ident()))

    bench.turns = WorkerThreads(1, poll, bench.choose, visit)
    bench.turns.run()
    ((_, worker),) = bench.done
    first, *others = bench.polls[:3]
    assert first == worker
    assert len(set(others) - {worker, threading.get_ident()}) == 1


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_what_is_raised_ends_all(threads: int, error: type[BaseException]) -> None:
    """What work raises, of whatever kind, ends every thread and is raised where it runs."""

    def visit(_: int) -> None:
        raise error

    bench = Bench(threads)
    bench.turns = WorkerThreads(threads, bench.poll, bench.choose, visit)
    with pytest.raises(error):
        bench.turns.run()
    assert bench.turns.wait_until_idle(FakeClock(), PATIENCE)


def test_rest() -> None:
    """Who has the turn may wait until nobody works; the wait ends with the work, not with a stop meanwhile."""
    bench, began, end, clock = Bench(1), threading.Event(), threading.Event(), FakeClock()

    def visit(thing: int) -> None:
        began.set()
        assert end.wait(PATIENCE)
        bench.done.append((thing, 0))

    def poll() -> None:
        if began.is_set():
            bench.turns.stop()
            # The work ends once the wait has begun, and looks at the clock.
            with mock.patch.object(
                clock, "monotonic", side_effect=lambda: float(end.set() or 0)
            ):
                assert bench.turns.wait_until_idle(clock, PATIENCE)
        else:
            bench.ready.append(0)

    bench.turns = WorkerThreads(1, poll, bench.choose, visit)
    bench.turns.run()
    assert bench.done == [(0, 0)]
    assert bench.turns.wait_until_idle(clock, PATIENCE)


def test_a_call_that_never_returns_is_left() -> None:
    """Whoever stops is not held by a call of the client that never returns, with worker threads and without."""
    for threads in (0, 1):
        asked, never = threading.Event(), threading.Event()

        def poll(asked: threading.Event = asked, never: threading.Event = never) -> None:
            asked.set()
            never.wait()

        bench = Bench(threads)
        bench.turns = WorkerThreads(threads, poll, bench.choose, bench.visit)
        running = threading.Thread(target=bench.turns.run)
        running.start()
        assert asked.wait(PATIENCE)
        bench.turns.stop()
        running.join(PATIENCE)
        assert not running.is_alive()
        assert not bench.turns.aside(never.wait, 0.01)
        never.set()
