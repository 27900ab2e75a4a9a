"""Half an hour at half the maximum rate while things break at random: nothing lost, memory flat.

``python -m integration.soak --minutes 30 --broker rabbitmq|kafka|both --seed N``. Not part of the tests. A
broker's driver (``soak_brokers``) has the servers, the consumer processes and the ways to break them; this module
has the time, the counting and the table. With ``both`` one broker follows the other.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from integration.chaos.row import Count
from integration.soak_brokers import DRIVERS, Driver

FORGED = 10  # one message in so many
BATCH = 0.1  # seconds
SAMPLE = 10.0
CALM = (8.0, 25.0)  # seconds between faults
OUTAGE = (2.0, 15.0)
AT_LAST = 300.0  # seconds for the rest to be worked off
SHOWN = 20
_PAGE = 4096
_MIB = 1 << 20


@dataclass(slots=True)
class Ledger:
    """What was sent and what became of it; bodies are ``h`` or ``f``, for forged, and a number."""

    honest: int = 0
    forged: int = 0
    runs: Counter[bytes] = field(default_factory=Counter)
    buried: Counter[bytes] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def next_bodies(self, number: int) -> tuple[list[bytes], list[bytes]]:
        """Return bodies for so many more messages, honest and forged."""
        forged = sum(n % FORGED == 0 for n in range(self.sent, self.sent + number))
        honest = number - forged
        bodies = [b"h%d" % n for n in range(self.honest, self.honest + honest)]
        others = [b"f%d" % n for n in range(self.forged, self.forged + forged)]
        self.honest, self.forged = self.honest + honest, self.forged + forged
        return bodies, others

    @property
    def sent(self) -> int:
        """How many messages were sent."""
        return self.honest + self.forged

    def take(self, driver: Driver) -> None:
        """Book what was handled and buried since the last time."""
        self.runs.update(driver.handled())
        for letter in driver.letters():
            self.buried[letter.body] += 1
            self.reasons[letter.reason] += 1

    @property
    def complete(self) -> bool:
        """Whether everything sent was handled or buried."""
        return len(self.runs) + len(self.buried) >= self.sent

    def missing(self) -> list[bytes]:
        """Return what was sent and is nowhere."""
        sent = [
            *(b"h%d" % n for n in range(self.honest)),
            *(b"f%d" % n for n in range(self.forged)),
        ]
        return [
            body for body in sent if body not in self.runs and body not in self.buried
        ]

    def count(self, broker: str, row: str) -> Count:
        """Return the sums."""
        handled = sum(body.startswith(b"h") for body in self.runs)
        buried = sum(body.startswith(b"f") for body in self.buried)
        return Count(
            row=row, broker=broker, sent=self.sent, handled=handled, dead_lettered=buried,
            handled_again=self.runs.total() - len(self.runs), letters_again=self.buried.total() - len(self.buried),
            lost=self.sent - handled - buried, condemned=len(self.buried) - buried,
            admitted=len(self.runs) - handled,
        )  # fmt: skip


@dataclass(slots=True)
class Memory:
    """Resident memory of each consumer process, sampled; a restarted process starts anew."""

    lives: dict[tuple[str, int], list[int]] = field(default_factory=dict)

    def sample(self, driver: Driver) -> None:
        """Note how much each process has now."""
        for name, pid in driver.processes().items():
            with suppress(OSError, ValueError, IndexError):  # it was just killed
                pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                self.lives.setdefault((name, pid), []).append(pages * _PAGE)

    def lines(self) -> list[str]:
        """Return a line for the longest life of each name: after its first minute, at its end, at most."""
        longest: dict[str, list[int]] = {}
        for (name, _), samples in self.lives.items():
            if len(samples) > len(longest.get(name, [])):
                longest[name] = samples
        return [
            f"{name:<10} {_mib(samples[min(6, len(samples) - 1)])} {_mib(samples[-1])} {_mib(max(samples))}"
            f" {len(samples) * SAMPLE:>8.0f} s"
            for name, samples in longest.items()
        ]


class Soak:
    """One soak of one broker.

    Args:
        driver: of the broker, open.
        minutes: how long to publish.
        seed: of the faults.
    """

    def __init__(self, driver: Driver, *, minutes: float, seed: int) -> None:
        self._driver = driver
        self._seconds = minutes * 60
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._failed: list[BaseException] = []
        self.ledger = Ledger()
        self.memory = Memory()
        self.done: Counter[str] = Counter()
        self.rate = 0.0

    def measure(self, number: int = 5000) -> float:
        """Return how many messages a second go through with nothing broken; they count as sent."""
        began = time.monotonic()
        for _ in range(number // 500):
            self._driver.publish(*self.ledger.next_bodies(500))
        self._work_off()
        self.rate = number / (time.monotonic() - began)
        return self.rate

    def run(self) -> Count:
        """Publish at half the rate while things break, let the rest be worked off, and return the sums."""
        threads = [
            threading.Thread(target=self._guarded, args=(work,), daemon=True)
            for work in (self._publish, self._break)
        ]
        for thread in threads:
            thread.start()
        try:
            self._watch(time.monotonic() + self._seconds)
        finally:
            self._over.set()
        for thread in threads:
            thread.join()
        if self._failed:
            raise self._failed[0]
        self._work_off()
        self.memory.sample(self._driver)
        return self.ledger.count(self._driver.name, "soak")

    def _watch(self, ends: float) -> None:
        """Book and sample until the time is up, or something failed."""
        sampled = 0.0
        while time.monotonic() < ends and not self._failed:
            self.ledger.take(self._driver)
            if time.monotonic() >= sampled + SAMPLE:
                sampled = time.monotonic()
                self.memory.sample(self._driver)
            self._over.wait(1)

    def _guarded(self, work: Callable[[], None]) -> None:
        """Work in a thread, and have its error raised by ``run``."""
        try:
            work()
        except BaseException as error:
            self._failed.append(error)

    def _publish(self) -> None:
        """Publish at half the rate, without making up for what an outage cost."""
        due = time.monotonic()
        while not self._over.is_set():
            self._driver.publish(
                *self.ledger.next_bodies(max(1, round(self.rate / 2 * BATCH)))
            )
            due = max(due + BATCH, time.monotonic() - BATCH)
            self._over.wait(max(0.0, due - time.monotonic()))

    def _break(self) -> None:
        """Break one thing after the other."""
        began, faults = time.monotonic(), self._driver.faults()
        while not self._over.wait(self._random.uniform(*CALM)):
            name, seconds = (
                self._random.choice(sorted(faults)),
                self._random.uniform(*OUTAGE),
            )
            _say(
                f"{time.monotonic() - began:6.0f} s  {name} ({seconds:.0f} s), sent {self.ledger.sent}"
            )
            faults[name](seconds)
            self.done[name] += 1

    def _work_off(self) -> None:
        """Book until everything is there, or nothing more comes for too long."""
        ends = time.monotonic() + AT_LAST
        while not self.ledger.complete and time.monotonic() < ends:
            self.ledger.take(self._driver)
            time.sleep(BATCH)
        self.ledger.take(self._driver)


def table(soak: Soak, count: Count, minutes: float) -> str:
    """Return the summary."""
    rows = [
        ("broker", count.broker), ("minutes", f"{minutes:g}"), ("maximum rate, messages/s", f"{soak.rate:.0f}"),
        ("sent", count.sent), ("handled", count.handled), ("dead-lettered", count.dead_lettered),
        ("duplicates handled", count.handled_again), ("duplicate letters", count.letters_again),
        ("lost", count.lost), ("honest condemned", count.condemned), ("forged handled", count.admitted),
        ("faults", sum(soak.done.values())),
        *((f"  {name}", times) for name, times in sorted(soak.done.items())),
        *((f"  letters {reason}", times) for reason, times in sorted(soak.ledger.reasons.items())),
    ]  # fmt: skip
    lines = [f"{name:<28} {value:>12}" for name, value in rows]
    head = f"{'memory':<10} {'start':>11} {'end':>11} {'most':>11} {'lived':>10}"
    missing = [f"missing {body.decode()}" for body in soak.ledger.missing()[:SHOWN]]
    return "\n".join([*lines, head, *soak.memory.lines(), *missing])


def soak(broker: str, *, minutes: float, seed: int) -> bool:
    """Soak one broker, print its table, and tell whether nothing was lost, condemned or let in."""
    driver = DRIVERS[broker]()
    try:
        run = Soak(driver, minutes=minutes, seed=seed)
        _say(
            f"{broker}: {run.measure():.0f} messages/s at most; {minutes:g} minutes at half of it, seed {seed}"
        )
        found = run.run()
    finally:
        driver.close()
    print(table(run, found, minutes), flush=True)
    return (found.lost, found.condemned, found.admitted) == (0, 0, 0)


def main() -> int:
    """Soak the brokers asked for, one after the other."""
    parser = argparse.ArgumentParser(
        prog="python -m integration.soak", description=main.__doc__
    )
    parser.add_argument(
        "--minutes", type=float, default=30.0, help="of publishing, each broker"
    )
    parser.add_argument("--broker", choices=[*DRIVERS, "both"], default="both")
    parser.add_argument("--seed", type=int, default=1, help="of the faults")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)  # clients tell of every connection refused
    wanted = [*DRIVERS] if arguments.broker == "both" else [arguments.broker]
    fine = [
        soak(broker, minutes=arguments.minutes, seed=arguments.seed) for broker in wanted
    ]
    return 0 if all(fine) else 1


def _mib(size: int) -> str:
    """Return bytes as MiB."""
    return f"{size / _MIB:>7.1f} MiB"


def _say(line: str) -> None:
    """Print a line of progress."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
