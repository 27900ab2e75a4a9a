"""Messages with random kids among honest ones, on one Kafka partition.

Each forged message names another kid, so that a cache without bounds would ask the issuer for each. Run with
the issuer up and with the issuer down, with the cache's real bounds, and print what it cost.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration.keys.scene import KafkaLane
from integration.keyserver import KeyServer
from integration.waiting import until
from mqauth import (
    JWKS,
    AuditFile,
    MemoryReplayStore,
    Message,
    Outcome,
    Pipeline,
    Signer,
    Verdict,
    Verified,
)
from mqauth.clock import Backoff
from mqauth.errors import Cause
from mqauth.keystore.remote import rules as jwks_rules
from mqauth.testing.forge import ISSUER, SUBJECT, Forge

HONEST_EVERY = 10
BATCH = 2000
PAGE = 4096
PATIENCE = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a flood may cost; the cache's own bounds, seconds.

    Args:
        publish_delay: an unknown kid of a set younger than this is refused without a question.
        backoff: how a deferred partition waits.
    """

    publish_delay: float = 30
    backoff: Backoff = field(default_factory=Backoff)

    @property
    def stall(self) -> float:
        """The longest a partition may stand still while the issuer answers: an attempt, and one wait more."""
        return self.backoff.longest + 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a flood did cost.

    Args:
        issuer: ``up`` or ``down``.
        messages, honest: how many, and how many of them were honest and handled.
        reasons: of the rejected ones.
        seconds: from the first outcome, a deferral too, to the last verdict.
        attempts: how often the issuer was asked.
        alive: seconds for which the cache could ask.
        stall: longest time without a verdict, seconds.
        growth: resident memory at the end less that after a third, MiB.
    """

    issuer: str
    messages: int
    honest: int
    reasons: Counter[str]
    seconds: float
    attempts: int
    alive: float
    stall: float
    growth: float

    @property
    def allowed(self) -> float:
        """How many attempts the bounds allow in that time."""
        return 1 + self.alive / jwks_rules.COOLDOWN

    def __str__(self) -> str:
        return (
            f"issuer {self.issuer}: {self.messages} messages in {self.seconds:.1f} s"
            f" ({self.messages / self.seconds:.0f}/s), of them {self.honest} honest, all handled"
            f" ({self.honest / self.seconds:.0f}/s); rejected {dict(self.reasons)};"
            f" {self.attempts} requests in {self.alive:.0f} s (allowed {self.allowed:.0f});"
            f" longest stall {self.stall:.1f} s; memory {self.growth:+.1f} MiB"
        )


class Watch:
    """Observes verdicts: their number, the gaps between them, and the memory of this process."""

    def __init__(self, expected: int) -> None:
        self._expected = expected
        self.settled = 0
        self.reasons: Counter[str] = Counter()
        self.longest = 0.0
        self._started: float | None = None
        self._last = 0.0
        self.early = self.late = 0.0

    def __call__(self, outcome: Outcome, message: Message, seconds: float) -> None:
        """Note one outcome."""
        now = time.monotonic()
        if self._started is None:  # deferred or not
            self._started = self._last = now
        if outcome.verdict is Verdict.DEFERRED:
            return
        self.longest = max(self.longest, now - self._last)
        self._last = now
        self.settled += 1
        if outcome.reason is not None:
            self.reasons[outcome.reason.value] += 1
        if self.settled in (self._expected // 3, self._expected):
            self.early, self.late = self.early or resident(), resident()

    @property
    def seconds(self) -> float:
        """Seconds from the first outcome to the last verdict."""
        return self._last - (self._started or self._last)


def resident() -> float:
    """Return this process's resident memory, MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 2**20


class RandomKid:
    """A signing key whose kid is another each time; its signatures are noise."""

    algorithm = "EdDSA"

    @property
    def kid(self) -> str:
        """A kid nobody has."""
        return secrets.token_urlsafe(32)

    def sign(self, data: bytes, /) -> bytes:
        """Return 64 bytes of noise."""
        return secrets.token_bytes(64)


def flood(url: str, folder: Path, *, up: bool, messages: int, bounds: Bounds) -> Figures:
    """Send a flood, consume it, and return what it cost."""
    forge = Forge(lifetime=3600)
    lane, watch = KafkaLane(url), Watch(messages)
    handled: set[bytes] = set()

    def handler(verified: Verified) -> None:
        handled.add(verified.body or b"")

    try:
        honest = _send(lane, forge, messages)
        began = time.monotonic()
        with (
            KeyServer() as server,
            _keys(server, forge, bounds, up=up) as keys,
            AuditFile(folder / f"audit-{up}.jsonl", fsync=False) as audit,
        ):
            guard = Pipeline(
                verifier=forge.verifier(keys={ISSUER: keys}), policy=forge.policy(lane.destination),
                replay=MemoryReplayStore(), audit=audit, observers=[watch],
            )  # fmt: skip
            with lane.consuming(guard, handler, backoff=bounds.backoff) as consumer:
                if not up:
                    _outage(server, keys, watch, consumer)
                _wait(watch, messages, consumer)
            attempts, alive = keys.health().counters["attempts"], time.monotonic() - began
    finally:
        lane.close()
    assert handled == honest
    return Figures(
        issuer="up" if up else "down", messages=messages, honest=len(handled), reasons=watch.reasons,
        seconds=watch.seconds, attempts=attempts, alive=alive, stall=watch.longest,
        growth=watch.late - watch.early,
    )  # fmt: skip


def _send(lane: KafkaLane, forge: Forge, messages: int) -> set[bytes]:
    """Send the flood with honest messages spread over it; return their bodies."""
    signer = forge.signer()
    forger = Signer(
        key=RandomKid(),
        issuer=ISSUER,
        subject=SUBJECT,
        audience="billing",
        lifetime=3600,
        clock=forge.clock,
    )
    honest: set[bytes] = set()
    for first in range(0, messages, HONEST_EVERY * BATCH):
        numbers = range(first, min(first + HONEST_EVERY * BATCH, messages))
        good = [b"honest %d" % number for number in numbers if number % HONEST_EVERY == 0]
        lane.send_mixed(
            [
                (signer, good),
                (forger, [b"forged %d" % n for n in numbers if n % HONEST_EVERY]),
            ]
        )
        honest |= set(good)
    return honest


@contextmanager
def _keys(server: KeyServer, forge: Forge, bounds: Bounds, *, up: bool) -> Iterator[JWKS]:
    """Give a warm cache whose issuer is up, or went down a moment ago."""
    server.serve(forge.keys)
    with JWKS(
        server.url, publish_delay=bounds.publish_delay, unsafe_http_loopback=True
    ) as keys:
        until(lambda: keys.health().state == "fresh")
        if not up:
            server.down()
        # From then on an unknown kid is worth a question.
        old = time.monotonic() + bounds.publish_delay
        until(lambda: time.monotonic() > old)
        yield keys
        asked = server.requests
        assert asked <= keys.health().counters["attempts"]


def _outage(server: KeyServer, keys: JWKS, watch: Watch, consumer: Any) -> None:
    """Let an outage last for some attempts more, in which nobody is condemned; then end it."""
    until(lambda: consumer.health().cause is Cause.KEY_PENDING, consumer)
    # What came before the first attempt that failed was judged by a set of a moment ago.
    settled, last = watch.settled, keys.health().counters["attempts"] + 3
    until(lambda: keys.health().counters["attempts"] >= last, consumer)
    assert watch.settled == settled
    server.up()


def _wait(watch: Watch, messages: int, consumer: Any) -> None:
    """Wait until there is a verdict on each."""
    until(lambda: watch.settled >= messages, consumer, seconds=PATIENCE)
