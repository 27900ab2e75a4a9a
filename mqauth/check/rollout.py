"""Rules on the rollout: what is not enforced, and until when."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mqauth.check.findings import Finding, finding, on
from mqauth.check.target import Target, few
from mqauth.config.consumer_settings import ConsumerSettings
from mqauth.config.rollout_settings import RolloutSettings
from mqauth.judging.observing import SOON, days_left
from mqauth.judging.rollout import EVERYWHERE, Rung

_YEAR: Final = 366


@on("rollout")
def rungs(target: Target, entries: tuple[RolloutSettings, ...]) -> Iterator[Finding]:
    """Find destinations that are not enforced, and terms that end or are over."""
    for number, entry in enumerate(entries):
        path, places = ("rollout", number), few(entry.destinations)
        if entry.at in (Rung.OFF, Rung.OBSERVE):
            code = "rollout_off" if entry.at is Rung.OFF else "rollout_observe"
            yield finding(code, (*path, "rung"), f"{places}: {entry.rung}, ask {entry.owner}")
        if EVERYWHERE in entry.destinations:
            yield finding("rollout_catch_all", (*path, "destinations"), "every destination that no entry names")
        if entry.at < Rung.ENFORCE and entry.until is not None:
            yield from _term((*path, "until"), places, days_left(entry.until, target.now))


@on("rollout")
def weakest(target: Target, entries: tuple[RolloutSettings, ...]) -> Iterator[Finding]:
    """Say by which destinations a queue may be reached unsigned."""
    consumer = target.settings.consumer
    places = [place for entry in entries if entry.at < Rung.ENFORCE for place in entry.destinations]
    places += [] if consumer is None else [found.destination for found in consumer.unsigned]
    rabbit = [place for place in places if place.startswith("rabbitmq:")]
    if rabbit:
        yield finding("rollout_weakest", ("rollout",), f"unsigned messages may come by {few(rabbit)}")


@on("consumer")
def exemptions(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find what may lack a token."""
    for number, found in enumerate(consumer.unsigned):
        path = ("consumer", "unsigned", number)
        yield finding("unsigned_exempt", (*path, "destination"), f"{found.destination}: {found.why}")
        if not found.kinds and set("*#") & set(found.destination):
            yield finding("exempt_broad", (*path, "destination"), f"{found.destination}, and no kinds")
        left = days_left(found.until, target.now)
        yield from _term((*path, "until"), found.destination, left)
        if left > _YEAR:
            yield finding("exempt_long", (*path, "until"), f"{found.destination}: in {left} days")


@on("consumer")
def direct_issuers(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find issuers of the direct form that are to be taken out."""
    for issuer in consumer.issuers:
        if issuer.until is not None:
            left = days_left(issuer.until, target.now)
            path = (*issuer.table.path, "until")
            if left < 0:
                yield finding("issuer_overdue", path, f"{issuer.issuer}: over for {-left} days")
            elif left <= SOON:
                yield finding("issuer_ending", path, f"{issuer.issuer}: {left} days left")


def _term(path: tuple[str | int, ...], places: str, left: int) -> Iterator[Finding]:
    if left < 0:
        yield finding("rollout_overdue", path, f"{places}: over for {-left} days")
    elif left <= SOON:
        yield finding("rollout_ending", path, f"{places}: {left} days left")


RULES: Final = (rungs, weakest, exemptions, direct_issuers)
