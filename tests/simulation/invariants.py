"""What must hold once everything is healed and at rest; each invariant yields a line for whatever breaks it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Final

from tests.simulation.facilities import TIMEOUT
from tests.simulation.ledger import Handling, Label
from tests.simulation.scenario import Scenario
from tests.simulation.services import order_of

ASKS_WITHIN: Final = 5.0
"""Seconds after which what is held asks its store again, at the latest: the back-off's longest wait."""

Problem = tuple[str, str]
"""The invariant's name, and what breaks it."""
_SHORT: Final = 600
"""Seconds below which a token's life may end before its message is handled."""


def problems(scenario: Scenario, *, strict: bool = False) -> list[Problem]:
    """Return everything that breaks an invariant.

    Args:
        scenario: played to its end.
        strict: with the invariants that the pages do not promise, too.
    """
    found = list(scenario.world.ledger.problems)
    for name, invariant in (INVARIANTS | (STRICT if strict else {})).items():
        found.extend((name, text) for text in invariant(scenario))
    return found


def _honest_handled(scenario: Scenario) -> Iterator[str]:
    """Every honest message that the broker confirmed is handled, or was buried for its handler's failure."""
    letters = _letters(scenario)
    for sent in scenario.world.ledger.sent.values():
        if not sent.confirmed or scenario.world.ledger.handled(sent.label):
            continue
        if not _rightly_buried(scenario, sent.label, letters.get(sent.label, [])):
            yield f"{sent.label!r} was not handled; letters {letters.get(sent.label, [])}"


def _honest_not_condemned(scenario: Scenario) -> Iterator[str]:
    """No honest message is dead-lettered, but for the copies that someone made of it."""
    letters = _letters(scenario)
    for label in scenario.world.ledger.sent:
        reasons = letters.get(label, [])
        handled = scenario.world.ledger.handled(label)
        if not reasons or scenario.world.ledger.copies.get(label):
            continue
        rightly = _rightly_buried(scenario, label, reasons)
        if (handled and not _acked_in_vain(scenario, label, reasons)) or not rightly:
            yield f"{label!r} was condemned as {', '.join(reasons)}; handled {len(handled)} times"


def _forged_not_handled(scenario: Scenario) -> Iterator[str]:
    """No forgery comes to a handler, and each has its dead letter."""
    letters = _letters(scenario)
    wanted = Counter(body for _, body in scenario.world.ledger.forged)
    for body, count in wanted.items():
        if scenario.world.ledger.handlings.get(body):
            yield f"forged {body!r} came to a handler"
        if len(letters.get(body, [])) < count:
            yield f"forged {body!r} has {len(letters.get(body, []))} letters, not {count}"


def _handled_once(scenario: Scenario) -> Iterator[str]:
    """A message is handled again only where the pages say so."""
    for first, second in _handled_again(scenario):
        allowed = _stopped_without_store(scenario, first, second) or _outlasts_its_lease(
            scenario, first, second
        )
        if not allowed and not _excused(scenario, first, second):
            yield _again(first, second)


def _stop_keeps(scenario: Scenario) -> Iterator[str]:
    """No message is handled again because of a stop while the store is out of reach."""
    for first, second in _handled_again(scenario):
        if not _excused(scenario, first, second) and _stopped_without_store(
            scenario, first, second
        ):
            yield _again(first, second)


def _all_at_rest(scenario: Scenario) -> Iterator[str]:
    """Nothing waits or is unacked, and every consumer consumes and has nothing in flight."""
    if not scenario.at_rest:
        yield from scenario.left


def _stops_end(scenario: Scenario) -> Iterator[str]:
    """Every consumer that was asked to stop has ended."""
    for name in scenario.deployment.consumers:
        if scenario.process(name) is not None:
            yield f"{name} still runs"


def _limit_recorded(scenario: Scenario) -> Iterator[str]:
    """Every message that the broker removed for its delivery limit has a record and a letter."""
    letters = _letters(scenario)
    for label in scenario.world.ledger.over_limit:
        if label not in letters:
            yield f"{label!r} is over the delivery limit"


def _letters_recorded(scenario: Scenario) -> Iterator[str]:
    """Every dead letter has its audit record."""
    known = {record["id"] for record in scenario.world.records}
    for queue in scenario.queues("orders.dead"):
        for message in queue.ready:
            if (message.properties.headers or {}).get("mqauth-dead-audit") not in known:
                yield f"the letter of {message.body!r} has no record"


def _cleaned_up(scenario: Scenario) -> Iterator[str]:
    """The clean-up of a cancelled handler is not cut short, unless its process was killed."""
    for label, handlings in scenario.world.ledger.handlings.items():
        for handling in handlings:
            if handling.cleaning and handling.process not in scenario.world.ledger.deaths:
                yield f"the clean-up of {label!r} in {handling.process} was cut short"


INVARIANTS: Final[dict[str, Callable[[Scenario], Iterator[str]]]] = {
    "every honest message is handled": _honest_handled,
    "no honest message is condemned": _honest_not_condemned,
    "no forgery is handled": _forged_not_handled,
    "handled once": _handled_once,
    "all comes to rest": _all_at_rest,
    "a stop ends": _stops_end,
    "no message over the limit without a letter": _limit_recorded,
    "a letter has a record": _letters_recorded,
    "a clean-up is not cut short": _cleaned_up,
}
STRICT: Final[dict[str, Callable[[Scenario], Iterator[str]]]] = {
    "a stop without the store has nothing handled again": _stop_keeps,
}
"""What the pages do not promise, and the code may well keep."""


def _handled_again(scenario: Scenario) -> Iterator[tuple[Handling, Handling]]:
    """Return each pair of successive handlings of one message."""
    for label in scenario.world.ledger.handlings:
        handled = sorted(
            scenario.world.ledger.handled(label), key=lambda found: found.begun
        )
        yield from pairwise(handled)


def _again(first: Handling, second: Handling) -> str:
    """Return the description of a message that was handled again."""
    return f"{first.label!r} was handled by {first.process} and again by {second.process} at {second.begun:.3f}"


def _letters(scenario: Scenario) -> dict[Label, list[str]]:
    """Return the reasons of each message's letters."""
    found: dict[Label, list[str]] = {}
    for body, reason in scenario.letters():
        found.setdefault(body, []).append(reason)
    return found


def _rightly_buried(scenario: Scenario, label: Label, reasons: list[str]) -> bool:
    """Tell whether an honest message may have ended as a dead letter."""
    behaviour = scenario.handlers.behaviours.get(order_of(label))
    may_fail = behaviour is not None and behaviour.how == "fail"
    may_expire = scenario.settings.lifetime < _SHORT
    allowed = {"handler_failed"} if may_fail else set()
    allowed |= {"expired"} if may_expire else set()
    return bool(reasons) and set(reasons) <= allowed


def _acked_in_vain(scenario: Scenario, label: Label, reasons: list[str]) -> bool:
    """Tell whether an expired message was handled by a process that stood still or died, and was never acked.

    The connection of the one had ended meanwhile, and the process had not heard of it: what is delivered again is
    new to it. The other died or failed, as of a handler's abort, and the next one came after the token's life.
    """
    world = scenario.world
    died = any(
        found.process in world.ledger.deaths for found in world.ledger.handled(label)
    )
    stood_still = any(
        begun <= ended and over >= found.begun
        for found in world.ledger.handled(label)
        if (ended := found.ended) is not None
        for begun, over in world.everyone[found.process].pauses
    )
    return (
        (stood_still or died)
        and set(reasons) == {"expired"}
        and len(world.ledger.acks[label]) <= len(reasons)
    )


def _excused(scenario: Scenario, first: Handling, second: Handling) -> bool:
    """Tell whether the pages allow that a message was handled again."""
    world, settings = scenario.world, scenario.settings
    if not settings.shared and first.process != second.process:
        return True
    # The ack of a copy that came after it was handled is none of its own.
    own = {number for when, process, number in world.ledger.deliveries[first.label]
           if process == first.process and when <= first.begun}  # fmt: skip
    acked = [when for when, process, number in world.ledger.acks[first.label]
             if process == first.process and number in own]  # fmt: skip
    died = world.ledger.deaths.get(first.process)
    if (
        died is not None
        and died <= second.begun
        and not any(when <= died for when in acked)
    ):
        return True
    pauses = world.everyone[first.process].pauses + world.everyone[second.process].pauses
    for begun, ended in pauses:
        if (
            ended - begun >= settings.lease / 3
            and begun <= second.begun
            and ended >= first.begun
        ):
            return True
    return False


def _outlasts_its_lease(scenario: Scenario, first: Handling, second: Handling) -> bool:
    """Tell whether the first process could not confirm until its lease was over, and another has the message.

    The outage of the store began before the confirm could arrive. It lasts until the back-off has let the process
    ask again: one that follows before that is the same outage. The lease counts from the handler's beginning,
    when the message was claimed already. The other has it since the first lost its channel: what it gave back by
    itself is not excused.
    """
    if first.ended is None or first.process == second.process:
        return False
    world, over = scenario.world, first.begun + scenario.settings.lease
    back = world.outages.lasting(
        "store", first.process, first.ended, first.ended + TIMEOUT, ASKS_WITHIN
    )
    lost = any(
        process == first.process and first.begun <= when <= second.begun
        for when, process in world.ledger.losses[first.label]
    )
    return lost and back > first.ended and back + ASKS_WITHIN >= over


def _stopped_without_store(scenario: Scenario, first: Handling, second: Handling) -> bool:
    """Tell whether the first process was stopped while its store did not answer it."""
    return any(
        name == first.process
        and since <= second.begun
        and scenario.world.outages.between(
            "store", name, since - TIMEOUT, until or second.begun
        )
        for name, since, until in scenario.world.ledger.stops
    )
