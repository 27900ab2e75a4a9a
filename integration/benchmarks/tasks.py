"""``python -m integration.benchmarks.tasks``: what a task costs, bare and protected, sent and run.

CPU microseconds a task of the sending program, and of a worker that takes its tasks from RabbitMQ and does nothing
in them; the replay store is a Redis. All variants take turns, each round in a process of its own, so that other
work on the machine meets all of them. Together means 64 tasks sent at once, which share a signature: taskiq alone
can do that, for dramatiq and Celery wait for each.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from integration.documentation import ROOT
from integration.services import RabbitMQ, Redis
from mqauth import AuditFile, Pipeline
from mqauth.brokers import rabbitmq as wrapper
from mqauth.judging.policy import Decision
from mqauth.stores.redis import RedisReplayStore
from mqauth.testing.forge import Forge

BARE, PROTECTED = "bare", "protected"
WAYS: Final = (("taskiq", 64), ("taskiq", 1), ("dramatiq", 1), ("celery", 1))
LETTERS: Final = "bench.dead"
_PATIENCE: Final = 300


class Count:
    """Counts tasks that have run, and notes the CPU seconds of this process at two of them.

    Args:
        warm: how many are run before the first note.
        tasks: how many are run between the notes.
    """

    def __init__(self, warm: int, tasks: int) -> None:
        self._notes = {warm: 0.0, warm + tasks: 0.0}
        self._last, self._tasks = warm + tasks, tasks
        self._ran = 0
        self._lock = threading.Lock()
        self.over = threading.Event()

    def __call__(self) -> None:
        """Count one."""
        with self._lock:
            self._ran += 1
            if self._ran in self._notes:
                self._notes[self._ran] = time.process_time()
            if self._ran == self._last:
                self.over.set()

    @property
    def microseconds(self) -> float:
        """CPU microseconds a task, between the notes."""
        first, last = self._notes.values()
        return (last - first) / self._tasks * 1e6


class Bench:
    """One round of one framework.

    Args:
        url: of RabbitMQ.
        store: URL of Redis.
        protects: whether its application is protected.
        warm: tasks that are not measured.
        tasks: those that are.
    """

    def __init__(
        self, url: str, store: str, *, protects: bool, warm: int, tasks: int
    ) -> None:
        self.url = url
        self.protects = protects
        self.warm, self.tasks = warm, tasks
        self.count = Count(warm, tasks)
        self.forge = Forge()
        self._store = store

    def guard(self, store: Any = RedisReplayStore) -> Callable[[], Pipeline]:
        """Return what makes the pipeline."""
        folder = Path(tempfile.mkdtemp())
        return lambda: Pipeline(
            verifier=self.forge.verifier(),
            policy=SimpleNamespace(
                version="all", decide=lambda _verified: Decision.ALLOW
            ),
            replay=store.from_url(self._store),
            audit=AuditFile(folder / "audit.jsonl"),
        )

    def sent(self, send: Callable[[int], object]) -> float:
        """Send all tasks, and return the CPU microseconds of one."""
        for number in range(self.warm):
            send(number)
        began = time.process_time()
        for number in range(self.tasks):
            send(number)
        return (time.process_time() - began) / self.tasks * 1e6

    def wait(self) -> None:
        """Wait until all have run.

        Raises:
            TimeoutError: they have not.
        """
        if not self.count.over.wait(_PATIENCE):
            raise TimeoutError

    def dramatiq(self, _at_once: int) -> float:
        """Send and run tasks of dramatiq; return the microseconds of sending."""
        import dramatiq
        from dramatiq.brokers.rabbitmq import RabbitmqBroker

        from mqauth.integrations.dramatiq import protect

        broker: Any = RabbitmqBroker(url=self.url, confirm_delivery=True)
        if self.protects:
            protect(
                broker,
                guard=self.guard(),
                dead_letters=LETTERS,
                signer=self.forge.signer(),
            )

        def pack(_number: int) -> None:
            self.count()

        took = self.sent(dramatiq.actor(broker=broker)(pack).send)
        worker = dramatiq.Worker(broker, worker_threads=4)
        worker.start()
        self.wait()
        worker.stop()
        broker.close()
        return took

    def celery(self, _at_once: int) -> float:
        """Send and run tasks of Celery; return the microseconds of sending."""
        import celery
        from celery.worker import state
        from celery.worker.worker import WorkController

        from mqauth.integrations.celery import protect

        app: Any = celery.Celery("bench", broker=self.url)
        app.conf.update(
            task_acks_late=True,
            worker_enable_remote_control=False,
            task_ignore_result=True,
        )
        if self.protects:
            protect(
                app, guard=self.guard(), dead_letters=LETTERS, signer=self.forge.signer()
            )

        def pack(_number: int) -> None:
            self.count()

        took = self.sent(app.task(pack).delay)
        app.set_default()
        worker = WorkController(
            app=app, pool="threads", concurrency=4, without_heartbeat=True, without_mingle=True,
            without_gossip=True,
        )  # fmt: skip
        thread = threading.Thread(target=worker.start)
        thread.start()
        self.wait()
        state.should_stop = 0
        thread.join()
        return took

    def taskiq(self, at_once: int) -> float:
        """Send and run tasks of taskiq, so many at once; return the microseconds of sending."""
        from taskiq.api import run_receiver_task
        from taskiq_aio_pika import AioPikaBroker

        from mqauth.integrations.taskiq import protect

        async def letters() -> wrapper.DeadLetters:
            letters = wrapper.DeadLetters(await broker.write_conn.channel(), LETTERS)
            await letters.declare()
            return letters

        async def run() -> float:
            await broker.startup()
            took = 0.0
            for first in range(0, self.warm + self.tasks, at_once):
                began = time.process_time()
                await asyncio.gather(
                    *(pack.kiq(number) for number in range(first, first + at_once))
                )
                took += (time.process_time() - began) * (first >= self.warm)
            await broker.shutdown()
            broker.is_worker_process = True
            receiver = asyncio.create_task(run_receiver_task(broker, run_startup=True))
            await asyncio.to_thread(self.wait)
            receiver.cancel()
            await asyncio.wait([receiver])
            await broker.shutdown()
            return took / self.tasks * 1e6

        broker: Any = AioPikaBroker(self.url)
        if self.protects:
            guard = self.guard(RedisReplayStore)
            protect(broker, guard=guard, dead_letters=letters, signer=self.forge.signer())

        async def counted(_number: int) -> None:
            self.count()

        pack = broker.task(counted)
        return asyncio.run(run())


def main() -> None:
    """Measure in alternating rounds, and print a table of medians."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.benchmarks.tasks", description=main.__doc__
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=2048, help="of a round")
    parser.add_argument("--child", nargs=5, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.child:
        framework, at_once, variant, url, store = chosen.child
        bench = Bench(
            url, store, protects=variant == PROTECTED, warm=512, tasks=chosen.tasks
        )
        sent = getattr(bench, framework)(int(at_once))
        print(sent, bench.count.microseconds)
        return
    found: dict[Any, list[list[float]]] = {
        (way, variant): [] for way in WAYS for variant in (BARE, PROTECTED)
    }
    for _ in range(chosen.rounds):
        # A broker of its own, for each framework has names of its own for queues, in which nothing may be left.
        with RabbitMQ.launch() as rabbitmq, Redis.launch() as redis:
            for ((framework, at_once), variant), rounds in found.items():
                child = [framework, str(at_once), variant, rabbitmq.url, redis.url]
                argv = [
                    sys.executable,
                    "-m",
                    __spec__.name,
                    "--tasks",
                    str(chosen.tasks),
                    "--child",
                    *child,
                ]
                ran = subprocess.run(
                    argv, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
                )
                rounds.append([float(part) for part in ran.stdout.split()[-2:]])
    print(
        "| | send: bare | protected | run: bare | protected |\n|---|---:|---:|---:|---:|"
    )
    for framework, at_once in WAYS:
        bare, protected = (
            [
                statistics.median(part)
                for part in zip(*found[(framework, at_once), variant], strict=True)
            ]
            for variant in (BARE, PROTECTED)
        )
        cells = [
            f"{part:,.0f}" for pair in zip(bare, protected, strict=True) for part in pair
        ]
        print(
            f"| {framework}{', together' if at_once > 1 else ''} | {' | '.join(cells)} |"
        )


if __name__ == "__main__":
    main()
