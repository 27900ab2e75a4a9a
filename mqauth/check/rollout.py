"""The rollout: rules on what is not enforced, and until when; who does not sign yet, and whether it may go up.

The report is read from the audit files of all consumers. To go up is safe only if nothing speaks against it: each
message that would be refused counts as honest until somebody says otherwise, and silence is no proof.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from datetime import time as time_of_day
from typing import Any, Final

from mqauth.audit.query import Record, member, objects, seconds_of, time_of
from mqauth.audit.record import HOUR, Group, group_of, iso_time
from mqauth.check.rule import Finding, Target, finding, on, those
from mqauth.config.consumer_settings import ConsumerSettings, RolloutSettings
from mqauth.config.settings import FileSettings
from mqauth.errors import Verdict
from mqauth.judging.journal import few
from mqauth.judging.observing import SOON, days_left
from mqauth.judging.policy import matches
from mqauth.judging.rollout import EVERYWHERE, Rollout, Rung


@dataclass(slots=True)
class Seen:
    """One group of messages that would be refused, over all partitions and processes."""

    group: Group
    count: int = 0
    first: str = ""
    last: str = ""
    partitions: set[int] = field(default_factory=set)

    def add(self, facts: Record) -> None:
        """Add what one record says of it."""
        first, last, partition = (
            str(facts.get("first")),
            str(facts.get("last")),
            facts.get("partition"),
        )
        self.count += _whole(facts.get("count"))
        self.first, self.last = min(self.first or first, first), max(self.last, last)
        if type(partition) is int:
            self.partitions.add(partition)

    @property
    def who(self) -> str:
        """Who it says it is; what the broker has validated has a star."""
        group = self.group
        named = ", ".join(part for part in (group.subject, group.kid) if part)
        app = f"app-id {group.app}" if group.app else ""
        return (
            " ".join(
                part
                for part in (f"*{group.user}" if group.user else "", named or app)
                if part
            )
            or "-"
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the group as JSON values."""
        named = {
            name: value
            for name, value in self.group._asdict().items()
            if value is not None and name != "partition"
        }
        return {
            "id": self.group.id,
            **named,
            "count": self.count,
            "first": self.first,
            "last": self.last,
            "partitions": sorted(self.partitions),
        }


@dataclass(slots=True)
class Standing:
    """How one entry of the rollout stands.

    Args:
        entry: its settings.
        days_left: until its end; negative once it is overdue.
        accepted: verified messages in the window, by pattern.
        groups: what would be refused, the most frequent first.
        other: messages that would be refused and belong to no group.
        reported: when each process of the last hour reported last, UTC seconds.
        rungs: on which its destinations were within the last hour.
        oldest: when the oldest delivery of each process's last report was appended, UTC seconds, where RabbitMQ
            proves that; ``None`` where nothing proves it.
        moved: how often its end was moved.
        never_signed: producers that a rule lets publish there, and that signed nothing in the window.
        against: why it may not go up; empty where it is safe.
    """

    entry: RolloutSettings
    days_left: int
    accepted: Counter[str] = field(default_factory=Counter)
    groups: list[Seen] = field(default_factory=list)
    other: int = 0
    reported: dict[Any, float] = field(default_factory=dict)
    rungs: set[str] = field(default_factory=set)
    oldest: float | None = None
    moved: int = 0
    never_signed: list[str] = field(default_factory=list)
    against: list[str] = field(default_factory=list)

    @property
    def is_safe(self) -> bool:
        """Whether it may go up."""
        return not self.against

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "destinations": list(self.entry.destinations),
            "rung": self.entry.rung,
            "owner": self.entry.owner,
            "since": self.entry.since.isoformat(),
            "days_left": self.days_left,
            "accepted": self.accepted,
            "would_reject": sum(seen.count for seen in self.groups) + self.other,
            "other": self.other,
            "processes": len(self.reported),
            "mixed": len(self.rungs) > 1,
            "moved": self.moved,
            "oldest": None if self.oldest is None else iso_time(self.oldest),
            "groups": [seen.as_dict() for seen in self.groups],
            "never_signed": self.never_signed,
            "safe": self.is_safe,
            "against": self.against,
        }


def standings(
    file: FileSettings,
    records: Iterable[Record],
    *,
    now: float,
    broken: str | None = None,
) -> list[Standing]:
    """Return how each entry below ``enforce`` stands.

    Args:
        file: its ``[[rollout]]``; its consumer's rules and aliases say which producers there are, and ``[check]``
            how many processes have to report.
        records: of the audit files of all consumers, in any order.
        now: UTC seconds.
        broken: what is wrong with the audit files, ``None`` where nothing is.
    """
    told = sorted(
        (
            record
            for record in records
            if record.get("verdict") in ("observed", "rollout")
        ),
        key=time_of,
    )
    rollout = Rollout([entry.build() for entry in file.rollout])
    return [
        _standing(entry, rollout=rollout, told=told, file=file, now=now, broken=broken)
        for entry in file.rollout
        if entry.at < Rung.ENFORCE
    ]


def _standing(
    entry: RolloutSettings,
    *,
    rollout: Rollout,
    told: Sequence[Record],
    file: FileSettings,
    now: float,
    broken: str | None,
) -> Standing:
    standing = Standing(entry, days_left(entry.until, now) if entry.until else 0)
    groups, signed, oldest = dict[str, Seen](), set[tuple[str, str]](), dict[Any, float]()
    rules: Any = None
    changed: float | None = None
    reports = [
        (time_of(record), record, member(record, "observed"))
        for record in told
        if record.get("verdict") == "observed"
    ]
    for time, record, facts in reports:
        # a change counts although the record before it is older than the window
        if rules not in (None, facts.get("rules")) and time >= now - entry.window:
            changed = time
        rules = facts.get("rules")
        if time < now - entry.window:
            continue
        # what came in the window
        accepted = member(facts, "accepted").items()
        standing.accepted.update(
            {
                destination: _whole(number)
                for destination, number in accepted
                if destination in entry.destinations
            }
        )
        standing.other += _whole(facts.get("other"))
        for told_of in objects(facts.get("groups")):
            group = group_of(told_of)
            held = rollout.entry(group.destination)
            if held is not None and held.destinations == entry.destinations:
                groups.setdefault(group.id, Seen(group)).add(told_of)
        signed |= {
            (issuer, subject)
            for destination, issuers in member(facts, "signed").items()
            if destination in entry.destinations and isinstance(issuers, dict)
            for issuer, subjects in issuers.items()
            for subject in (subjects if isinstance(subjects, dict) else ())
        }
        if time < now - HOUR:
            continue
        # who is there, on which rung, and how old the last deliveries were
        process, rungs, appended = (
            record.get("instance"),
            member(facts, "rungs"),
            member(facts, "oldest"),
        )
        standing.reported[process] = time
        standing.rungs |= {
            str(rungs[destination])
            for destination in entry.destinations
            if destination in rungs
        }
        times = [
            seconds_of(appended[destination])
            for destination in entry.destinations
            if destination in appended
        ]
        if times:
            oldest[process] = min(times)
    standing.groups = sorted(groups.values(), key=lambda seen: -seen.count)
    standing.oldest = min(oldest.values(), default=None)
    if file.consumer is not None:
        standing.never_signed = list(
            dict.fromkeys(_never_signed(entry, file.consumer, signed))
        )
    # The ends that starts have named for its destinations.
    named = {
        str(each.get("until"))
        for record in told
        for each in objects(member(record, "rollout").get("rungs"))
        if set(each.get("destinations") or ()) & set(entry.destinations)
    }
    standing.moved = max(0, len(named) - 1)
    consumers = 1 if file.check is None else file.check.consumers
    # What speaks against going up. What was delivered again and would be settled condemns nothing.
    ends = datetime.combine(entry.since, time_of_day(), UTC).timestamp() + entry.window
    open_groups = [
        seen
        for seen in standing.groups
        if seen.group.code != Verdict.DUPLICATE.value
        and not is_accepted(entry, seen.group)
    ]
    silent = [
        destination
        for destination in entry.destinations
        if not standing.accepted.get(destination)
    ]
    reported = (
        f"{len(standing.reported)} of {consumers} consumers reported within the hour"
    )
    reasons = (
        (now < ends, f"the window is over at {iso_time(ends)}"),
        (broken is not None, broken or ""),
        (len(standing.reported) < consumers, reported),
        (open_groups, f"{len(open_groups)} groups"),
        (standing.other, f"{standing.other} messages in no group"),
        (silent, f"no accepted message of {', '.join(silent)}"),
        (
            changed is not None,
            f"rules, issuers or settings changed at {iso_time(changed or 0)}",
        ),
        (
            len(standing.rungs) > 1,
            f"mixed: {' and '.join(sorted(standing.rungs))} within the hour",
        ),
        (entry.at is Rung.OFF, "nothing is judged at off"),
    )
    standing.against = [reason for holds, reason in reasons if holds]
    return standing


def _never_signed(
    entry: RolloutSettings, consumer: ConsumerSettings, signed: set[tuple[str, str]]
) -> Iterator[str]:
    """Yield the producers of rules for an entry's destinations that signed nothing there."""
    places = set(entry.destinations)
    for alias in consumer.accept_as:
        # What arrives there has the rules of where it was published.
        places |= set(alias.signed_for) if entry.build().holds(alias.at) else set()
    for rule in consumer.allow:
        # Two patterns may have a destination in common; the words of each stand for themselves.
        allowed = any(
            EVERYWHERE in (destination, pattern)
            or destination == pattern
            or matches(destination, pattern)
            or matches(pattern, destination)
            for destination in places
            for pattern in rule.destinations
        )
        silent = not any(
            rule.issuer in (None, issuer) and rule.subject == who
            for issuer, who in signed
        )
        if allowed and silent:
            yield rule.subject


def is_accepted(entry: RolloutSettings, group: Group) -> bool:
    """Return whether somebody has accepted that a group's messages are refused."""
    accepted = entry.accepted or {}
    return group.id in accepted or f"{group.code} {group.destination}" in accepted


def _whole(value: object) -> int:
    return value if type(value) is int else 0


_ROLLOUT: Final = ("rollout_overdue", "rollout_ending")


@on("rollout")
def rungs(target: Target, entries: tuple[RolloutSettings, ...]) -> Iterator[Finding]:
    """Find destinations that are not enforced, and terms that end or are over."""
    for number, entry in enumerate(entries):
        path, places = ("rollout", number), few(entry.destinations)
        asks = f"{places}: {entry.rung}, ask {entry.owner}"
        yield from those(
            (entry.at is Rung.OFF, "rollout_off", (*path, "rung"), asks),
            (entry.at is Rung.OBSERVE, "rollout_observe", (*path, "rung"), asks),
            (
                EVERYWHERE in entry.destinations,
                "rollout_catch_all",
                (*path, "destinations"),
                "every destination that no entry names",
            ),
        )
        if entry.at < Rung.ENFORCE and entry.until is not None:
            yield from _term(
                _ROLLOUT, (*path, "until"), places, days_left(entry.until, target.now)
            )


@on("rollout")
def weakest(target: Target, entries: tuple[RolloutSettings, ...]) -> Iterator[Finding]:
    """Say by which destinations a queue may be reached unsigned."""
    consumer = target.settings.consumer
    destinations = [
        destination
        for entry in entries
        if entry.at < Rung.ENFORCE
        for destination in entry.destinations
    ]
    destinations += (
        []
        if consumer is None
        else [exemption.destination for exemption in consumer.unsigned]
    )
    rabbit = [
        destination for destination in destinations if destination.startswith("rabbitmq:")
    ]
    if rabbit:
        yield finding(
            "rollout_weakest",
            ("rollout",),
            f"unsigned messages may come by {few(rabbit)}",
        )


@on("consumer")
def exemptions(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find what may lack a token."""
    for number, exempt in enumerate(consumer.unsigned):
        at, destination = (
            ("consumer", "unsigned", number, "destination"),
            exempt.destination,
        )
        until, left = (*at[:-1], "until"), days_left(exempt.until, target.now)
        yield from those(
            (True, "unsigned_exempt", at, f"{destination}: {exempt.why}"),
            (
                not exempt.kinds and set("*#") & set(destination),
                "exempt_broad",
                at,
                f"{destination}, and no kinds",
            ),
            (left > 366, "exempt_long", until, f"{destination}: in {left} days"),
        )
        yield from _term(_ROLLOUT, until, destination, left)


@on("consumer")
def direct_issuers(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find issuers of the direct form that are to be taken out."""
    for issuer in consumer.issuers:
        if issuer.until is not None:
            yield from _term(
                ("issuer_overdue", "issuer_ending"),
                (*issuer.table.path, "until"),
                issuer.issuer,
                days_left(issuer.until, target.now),
            )


def _term(
    codes: tuple[str, str], path: tuple[str | int, ...], what: str, left: int
) -> Iterator[Finding]:
    overdue, ending = codes
    return those(
        (left < 0, overdue, path, f"{what}: over for {-left} days"),
        (0 <= left <= SOON, ending, path, f"{what}: {left} days left"),
    )


RULES: Final = (rungs, weakest, exemptions, direct_issuers)
