"""A flood of forgeries through a real broker: audit and alerts stay small, honest traffic goes on.

One forgery in three has a bad signature under one kid, one a kid drawn at random, one no token; every fiftieth
message is honest.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from integration.keys.scene import Lane
from mqauth.audit.chain import verify_chain
from mqauth.audit.file import AuditFile
from mqauth.audit.sinks import DEFAULT_FLOOD_AFTER, FloodGate, MisuseWatch
from mqauth.clock import SYSTEM_RANDOMNESS
from mqauth.judging.pipeline import Pipeline, Verdict
from mqauth.replay.memory import MemoryReplayStore
from mqauth.testing.forge import Forge, with_token
from mqauth.testing.token_attacks import honest_message
from mqauth.wire.message import Message

HONEST_EVERY = 50
WHOLE_BYTES = 2048
FLOODED_BYTES = 640
ALERTS = 16
_BATCH = 500
_STANDSTILL = 60.0
_TICK = 0.05


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What became of a flood."""

    broker: str
    forged: int
    honest: int
    handled: int
    dead: int
    lost: int
    whole: int
    flooded: int
    alerts: int
    audit_bytes: int
    seconds: float
    intact: bool

    @property
    def bounds(self) -> dict[str, tuple[int, int]]:
        """What is bounded: how much there is, and how much there may be."""
        minutes = math.ceil(self.seconds / 60) + 1
        whole = (2 * DEFAULT_FLOOD_AFTER + 10 * DEFAULT_FLOOD_AFTER) * minutes
        return {
            "whole records": (self.whole, whole),
            "audit bytes": (
                self.audit_bytes,
                whole * WHOLE_BYTES + self.flooded * FLOODED_BYTES,
            ),
            "alerts": (self.alerts, ALERTS * math.ceil(self.seconds / 600)),
        }

    @property
    def good(self) -> bool:
        """Tell whether everything is as designed."""
        counted = (
            self.handled == self.honest
            and self.dead == self.forged == self.whole + self.flooded
        )
        return (
            counted
            and not self.lost
            and self.intact
            and all(has <= may for has, may in self.bounds.values())
        )

    def lines(self) -> list[str]:
        """Return the counts for people."""
        return [
            f"{self.broker}: {self.forged} forged, {self.dead} dead-lettered, {self.lost} lost; "
            f"{self.honest} honest, {self.handled} handled; {self.seconds:.0f} s, "
            f"{(self.forged + self.honest) / self.seconds:.0f} messages/s",
            f"audit: {self.whole} records whole, {self.flooded} without detail, {self.alerts} alerts, "
            f"{self.audit_bytes} bytes ({self.audit_bytes / self.forged:.0f} a forgery); "
            f"chain {'intact' if self.intact else 'BROKEN'}",
            *(
                f"{name}: {has} of at most {may}"
                for name, (has, may) in self.bounds.items()
            ),
        ]


def flood(lane: Lane, forged: int, folder: Path) -> Counts:
    """Publish forgeries with honest messages among them while a consumer runs, and count what became of them."""
    forge, handled, settled = Forge(lifetime=3600), Counter[bytes](), Counter[Verdict]()
    honest = forged // HONEST_EVERY
    path = folder / "audit.jsonl"
    started = time.monotonic()
    with AuditFile(path) as file:
        watch = MisuseWatch(FloodGate(file))
        guard = Pipeline(
            verifier=forge.verifier(), policy=forge.policy(lane.destination), replay=MemoryReplayStore(),
            audit=watch, observers=[lambda outcome, *_: settled.update([outcome.verdict])],
        )  # fmt: skip
        with lane.consuming(
            guard, lambda verified: handled.update([verified.body or b""])
        ):
            traffic = _traffic(forge, lane.destination, forged)
            while batch := list(islice(traffic, _BATCH)):
                lane.inject(batch)
            _until(
                lambda: (settled[Verdict.ACCEPTED], settled[Verdict.REJECTED]),
                (honest, forged),
            )
        seconds = time.monotonic() - started
    records = [json.loads(line) for line in path.read_bytes().splitlines()]
    bodies = [letter.body or b"" for letter in lane.letters()]
    return Counts(
        broker=lane.name, forged=forged, honest=honest, handled=len(handled), dead=len(bodies),
        lost=len({b"forged %d" % number for number in range(forged)} - {*bodies}),
        whole=sum(record["verdict"] == "rejected" and "flood" not in record for record in records),
        flooded=sum("flood" in record for record in records),
        alerts=sum(record["verdict"] == "alert" for record in records),
        audit_bytes=path.stat().st_size, seconds=seconds, intact=verify_chain(path).intact,
    )  # fmt: skip


def _traffic(forge: Forge, place: str, forged: int) -> Iterator[Message]:
    """Yield the flood, and every fiftieth an honest message."""
    for number in range(forged):
        yield _forgery(
            forge,
            replace(honest_message(place, number), body=b"forged %d" % number),
            number,
        )
        if number % HONEST_EVERY == HONEST_EVERY - 1:
            yield forge.signer().sign(
                replace(honest_message(place, number), body=b"honest %d" % number)
            )


def _forgery(forge: Forge, message: Message, number: int) -> Message:
    """Return one of three kinds of forgery."""
    if number % 3 == 0:
        return with_token(message, forge.token(message, signature=SYSTEM_RANDOMNESS(64)))
    if number % 3 == 1:
        kid = SYSTEM_RANDOMNESS(16).hex()
        return with_token(
            message,
            forge.token(message, header={"kid": kid}, signature=SYSTEM_RANDOMNESS(64)),
        )
    return message


def _until(count: Callable[[], tuple[int, int]], wanted: tuple[int, int]) -> None:
    """Wait until counts are reached; give up where nothing moves for a minute."""
    last, deadline = count(), time.monotonic() + _STANDSTILL
    while last != wanted:
        if time.monotonic() > deadline:
            raise TimeoutError(f"standstill at {last} of {wanted}")
        time.sleep(_TICK)
        now = count()
        if now != last:
            last, deadline = now, time.monotonic() + _STANDSTILL
