"""Plays a seed of the Kafka simulation: what is sent and goes wrong, the end, and what must hold there."""

from __future__ import annotations

import functools
import gc
import hashlib
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Final
from unittest import mock

from mqauth.brokers.log.records import dead_letter_headers
from mqauth.clock import Backoff
from mqauth.testing.token_attacks import ATTACKS, honest_message
from mqauth.wire.message import Message
from tests.simulation import determinism
from tests.simulation.faults import Fault
from tests.simulation.kafka_broker import PLACES, SESSION
from tests.simulation.kafka_facilities import Handling, Settings
from tests.simulation.kafka_leaves import LEAVES
from tests.simulation.kafka_services import DESTINATION, GRACE, Play
from tests.simulation.runner import Result
from tests.simulation.services import Behaviour
from tests.simulation.threads import Stuck

KINDS: Final = (
    "pause", "kill", "stop", "rebalance", "store", "audit", "policy", "keys", "letters", "commits", "handler",
    "retention",
)  # fmt: skip
ALL: Final = "all"
REST_LIMIT: Final = 400.0
"""Virtual seconds after the last fault within which everything must be at rest."""
FORMS: Final[dict[str, tuple[str, ...]]] = {
    "store": ("refused", "silent", "answer lost"), "audit": ("refused",), "policy": ("refused", "silent"),
    "keys": ("refused",), "letters": ("refused", "lost", "late", "confirm lost"),
    "commits": ("fails", "fails", "answer lost", "refused"),
    "handler": ("later", "later", "fail", "flaky", "reject", "slow", "abort"),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class KafkaPlay:
    """One play: a seed with its whole plan, or with part of it."""

    seed: int
    settings: Settings
    faults: Sequence[Fault]
    client: str = "kafka-python"

    @classmethod
    def of(cls, seed: int, client: str = "kafka-python") -> KafkaPlay:
        """Return all of a seed, the same for every client."""
        draw = random.Random(f"kafka {seed}")
        settings = Settings(
            consumers=draw.choice((1, 2, 2, 3)), workers=draw.choice((0, 1, 1, 2, 3)),
            interval=draw.choice((0.5, 5.0)), most=draw.choice((1, 4, 20)), many=draw.random() < 0.7,
            work=draw.choice((0.0, 0.05, 0.5)), lease=draw.choice((6.0, 60.0)), session=SESSION,
            orders=draw.choice((8, 20, 40)), spread=20.0, hostile=draw.choice((0, 2, 6)),
            reset=draw.choice(("latest", "earliest")),
        )  # fmt: skip
        kinds = [
            kind
            for kind in KINDS
            if draw.random() < (0.7 if kind == "handler" else 1 / 3)
        ]
        kinds = [
            kind
            for kind in kinds
            for _ in range(draw.choice((3, 6) if kind == "handler" else (1, 2, 3)))
        ]
        faults = [_fault(kind, draw, settings) for kind in kinds]
        faults.sort(key=lambda fault: (fault.at, fault.kind))
        return cls(seed=seed, settings=settings, faults=faults, client=client)

    def as_dict(self) -> dict[str, Any]:
        """Return it for a plan's file."""
        faults = [fault.as_dict() for fault in self.faults]
        return {
            "seed": self.seed,
            "client": self.client,
            "settings": asdict(self.settings),
            "faults": faults,
        }


def _fault(kind: str, draw: random.Random, settings: Settings) -> Fault:
    how = draw.choice(FORMS.get(kind, ("",)))
    seconds = round(draw.choice((0.5, 4.0, 9.0, 14.0, 30.0)) * draw.uniform(0.8, 1.2), 3)
    at = round(draw.uniform(1.0, settings.spread + 5), 3)
    target: str | int = f"consumer{draw.randrange(settings.consumers)}"
    if kind == "handler":
        target = draw.randrange(settings.orders)
    return Fault(kind=kind, at=at, seconds=seconds, target=target, how=how)


def run(played: KafkaPlay, tell: Callable[[str], None] | None = None) -> Result:
    """Play it to its end and judge it."""
    started, trace = time.perf_counter(), hashlib.sha256()

    def note(line: str) -> None:
        trace.update(line.encode())
        if tell is not None:
            tell(line)

    gc.collect()
    determinism.begin(played.seed)
    entropy = random.Random(played.seed)
    leaf = LEAVES[played.client]
    play = Play(played.seed, played.settings, leaf, note)
    wait = Backoff.wait
    jitter = mock.patch.object(
        Backoff, "wait", lambda self, failures: wait(self, failures, entropy.randbytes)
    )
    with leaf.in_virtual_time(play.threads), jitter:
        try:
            found = Scenario(play, played.faults).problems()
        except Stuck as error:
            found = [*play.ledger.problems, ("all comes to rest", str(error))]
        play.over, play.threads.failure = True, None
        play.threads.end()
        gc.collect()
    real = time.perf_counter() - started
    return Result(
        play=played,
        problems=found,
        digest=trace.hexdigest(),
        virtual=play.threads.agenda.now,
        real=real,
    )


class Scenario:
    """One play, from the first order to the last stop.

    Args:
        play: its world.
        faults: what goes wrong.
    """

    def __init__(self, play: Play, faults: Sequence[Fault]) -> None:
        self._play = play
        self._draw = random.Random(play.threads.draw.random())
        self._attacks = [attack for attack in ATTACKS if attack.fits(DESTINATION)]
        settings, agenda = play.settings, play.threads.agenda
        for number in range(settings.orders):
            agenda.at(
                settings.spread * number / settings.orders,
                functools.partial(self._send, number),
            )
        for number in range(settings.hostile):
            agenda.at(
                settings.spread * (number + 1) / settings.hostile,
                functools.partial(self._strike, number),
            )
        for fault in faults:
            self._plan(fault)
        self._healed = (
            max([settings.spread + 5, *(fault.at + fault.seconds for fault in faults)])
            + 1
        )

    def problems(self) -> list[tuple[str, str]]:
        """Play it, and return what broke."""
        play = self._play
        threads = play.threads
        for service in play.services:
            threads.start(threads.world, service.name, service.serve)
        threads.sleep(self._healed)
        play.reach.out.clear()
        play.broker.out.clear()
        play.note("world", "healed")
        until = threads.agenda.now + REST_LIMIT
        while not self._at_rest() and threads.agenda.now < until:
            threads.sleep(2.0)
        if not self._at_rest():
            play.problem(
                "all comes to rest",
                f"committed {play.broker.committed}, {self._healths()}",
            )
        self._stop()
        return play.ledger.problems + [
            (name, text) for name, texts in END.items() for text in texts(play)
        ]

    def _stop(self) -> None:
        """Stop everything in order."""
        play = self._play
        play.over = True
        for service in play.services:
            service.stop()
        ended = lambda: all(  # noqa: E731
            each.process is None or not each.process.alive for each in play.services
        )
        if not play.threads.wait(ended, play.threads.agenda.now + 60.0):
            play.problem("a stop ends", self._healths())

    def _healths(self) -> str:
        return "; ".join(
            str(each.consumer.health())
            for each in self._play.services
            if each.consumer is not None
        )

    def _at_rest(self) -> bool:
        """Tell whether everything is committed, and every consumer consumes and has nothing in flight."""
        broker = self._play.broker
        done = all(
            broker.committed.get(place) == len(broker.logs[place]) for place in PLACES
        )
        return done and not broker.rebalancing and all(
            each.consumer is not None and each.process is not None and each.process.alive
            and each.consumer.health().consuming and not each.consumer.health().in_flight
            for each in self._play.services
        )  # fmt: skip

    def _send(self, number: int) -> None:
        """Send an order."""
        message = honest_message(DESTINATION, number)
        signed = self._play.forge.signer().sign(message)
        self._play.ledger.sent[signed.body or b""] = number
        self._append(signed)

    def _append(self, message: Message) -> None:
        place = self._draw.choice(PLACES)
        self._play.broker.append(
            place, message.body, message.key, dead_letter_headers(message.headers)
        )

    def _strike(self, number: int) -> None:
        """Append a forgery, or a copy of a record."""
        play = self._play
        known = [
            record
            for log in play.broker.logs.values()
            for record in log
            if record.value in play.ledger.sent
        ]
        if known and self._draw.random() < 0.4:
            record = self._draw.choice(known)
            play.ledger.copied.add(record.value)
            play.broker.append(
                self._draw.choice(PLACES), record.value, record.key, record.headers
            )
            return
        attack = self._draw.choice(self._attacks)
        message = attack.mount(
            play.forge, honest_message(DESTINATION, 1_000_000 + number)
        )
        play.ledger.forged.append((attack.name, message.body or b""))
        self._append(message)

    def _plan(self, fault: Fault) -> None:
        """Schedule a fault."""
        play = self._play
        agenda = play.threads.agenda
        if fault.kind == "handler":
            play.behaviours[int(fault.target or 0)] = Behaviour(
                fault.how, fault.at + fault.seconds, fault.seconds
            )
        elif fault.kind == "rebalance":
            agenda.at(fault.at, play.broker.rebalance)
        elif fault.kind == "retention":
            agenda.at(
                fault.at,
                functools.partial(
                    play.broker.remove, PLACES[int(fault.seconds) % len(PLACES)]
                ),
            )
        elif fault.kind in ("pause", "kill", "stop"):
            agenda.at(fault.at, functools.partial(self._to_service, fault))
        else:
            out = (
                play.broker.out
                if fault.kind in ("letters", "commits")
                else play.reach.out
            )
            agenda.at(fault.at, functools.partial(self._begin_outage, out, fault))
            agenda.at(
                fault.at + fault.seconds, functools.partial(self._end_outage, out, fault)
            )

    def _to_service(self, fault: Fault) -> None:
        service = next(
            (each for each in self._play.services if each.name == fault.target), None
        )
        if service is None:
            return
        if fault.kind == "pause":
            service.pause(fault.seconds)
        elif fault.kind == "kill":
            service.kill()
        else:
            service.stop()

    def _begin_outage(self, out: dict[str, str], fault: Fault) -> None:
        out[fault.kind] = fault.how
        self._play.note(fault.kind, fault.how)
        if fault.kind in ("store", "commits"):
            self._play.rough(ALL, fault.seconds + 60.0)

    def _end_outage(self, out: dict[str, str], fault: Fault) -> None:
        out.pop(fault.kind, None)
        self._play.note(fault.kind, "is back")


def _honest_handled(play: Play) -> Iterator[str]:
    """Every honest message is handled, or was buried for its handler's failure, or its group has missed it."""
    reasons = _reasons(play)
    for label, number in play.ledger.sent.items():
        handled = any(each.ended is not None for each in play.ledger.handlings[label])
        # A copy that was read while the handler ran is ``replayed``: the store's rule for another place.
        theirs = {"replayed"} if label in play.ledger.copied else set()
        found = [reason for reason in reasons.get(label, []) if reason not in theirs]
        if not handled and not play.missed(label) and not _may_fail(play, number, found):
            yield f"{label!r} was not handled; letters {reasons.get(label, [])}"


def _honest_not_condemned(play: Play) -> Iterator[str]:
    """No honest message is dead-lettered, but for the copies that someone made of it."""
    reasons = _reasons(play)
    for label, number in play.ledger.sent.items():
        found = reasons.get(label, [])
        if (
            found
            and label not in play.ledger.copied
            and not _may_fail(play, number, found)
        ):
            yield f"{label!r} was condemned as {', '.join(found)}"


def _forged_not_handled(play: Play) -> Iterator[str]:
    """No forgery comes to a handler, and each that the group has read has its letter."""
    reasons = _reasons(play)
    for label, count in Counter(body for _, body in play.ledger.forged).items():
        if play.ledger.handlings.get(label):
            yield f"forged {label!r} came to a handler"
        wanted = count - play.missed(label)
        if len(reasons.get(label, [])) < wanted:
            yield f"forged {label!r} has {len(reasons.get(label, []))} letters, not {wanted}"


def _handled_once(play: Play) -> Iterator[str]:
    """A message is handled again only after a death, a pause, an outage, or a handler longer than its grace."""
    for label, found in play.ledger.handlings.items():
        ended = [each for each in found if each.ended is not None]
        for first, second in pairwise(ended):
            if not _excused(play, first, second):
                yield f"{label!r} by {first.process.name} and again by {second.process.name} at {second.begun:.2f}"


def _letters_recorded(play: Play) -> Iterator[str]:
    """Every dead letter has its audit record."""
    known = {record["id"] for record in play.ledger.records}
    for letter in play.broker.dead:
        if _header(letter, "mqauth-dead-audit") not in known:
            yield f"the letter of {letter.value!r} has no record"


END: Final[dict[str, Callable[[Play], Iterator[str]]]] = {
    "every honest message is handled": _honest_handled,
    "no honest message is condemned": _honest_not_condemned,
    "no forgery is handled": _forged_not_handled,
    "handled once": _handled_once,
    "a letter has a record": _letters_recorded,
}


def _reasons(play: Play) -> dict[bytes, list[str]]:
    """Return the reasons of each message's letters."""
    found: dict[bytes, list[str]] = {}
    for letter in play.broker.dead:
        found.setdefault(letter.value, []).append(_header(letter, "mqauth-dead-reason"))
    return found


def _header(record: Any, name: str) -> str:
    return next((value.decode() for found, value in record.headers if found == name), "")


def _may_fail(play: Play, number: int, reasons: list[str]) -> bool:
    """Tell whether an honest message may have ended as a dead letter."""
    behaviour = play.behaviours.get(number)
    fails = behaviour is not None and behaviour.how in ("fail", "reject")
    return fails and bool(reasons) and set(reasons) <= {"handler_failed"}


def _excused(play: Play, first: Handling, second: Handling) -> bool:
    """Tell whether the pages allow that a message was handled again."""
    if (first.ended or 0.0) - first.begun > GRACE:
        return True  # longer than a rebalance waits for it
    names = {first.process.name, second.process.name, ALL}
    return any(
        name in names and since <= second.begun <= until
        for name, since, until in play.ledger.rough
    )
