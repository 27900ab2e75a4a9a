"""The rollout: what is not enforced yet, and the report that says whether it may go up.

The report is read from the audit files of all consumers, and says who does not sign yet.
To go up is safe only if nothing speaks against it: each message that would be refused
counts as honest until somebody says otherwise, and silence is no proof.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from datetime import time as time_of_day
from itertools import pairwise
from typing import Any, Final

from mqauth.audit.query import Record, member, objects, seconds_of, time_of
from mqauth.audit.record import HOUR, Group, group_of, iso_time
from mqauth.check.rule import Finding, Target, finding, on
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
        first = facts.get("first")
        last = facts.get("last")
        partition = facts.get("partition")

        self.count += _whole(facts.get("count"))
        if isinstance(first, str):
            self.first = min(self.first or first, first)
        if isinstance(last, str):
            self.last = max(self.last, last)
        if type(partition) is int:
            self.partitions.add(partition)

    @property
    def who(self) -> str:
        """Who it says it is; what the broker has validated has a star."""
        group = self.group
        parts = []
        if group.user:
            parts.append(f"*{group.user}")

        claims = ", ".join(filter(None, (group.subject, group.kid)))
        if claims:
            parts.append(claims)
        elif group.app:
            parts.append(f"app-id {group.app}")

        return " ".join(parts) or "-"

    def as_dict(self) -> dict[str, Any]:
        """Return the group as JSON values."""
        members = self.group._asdict()
        del members["partition"]
        return {
            "id": self.group.id,
            **{name: value for name, value in members.items() if value is not None},
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
        oldest: when the oldest delivery of each process's last report was appended, UTC
            seconds, where RabbitMQ proves that; ``None`` where nothing proves it.
        moved: how often its end was moved.
        never_signed: producers that a rule lets publish there, and that signed nothing in
            the window.
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
        refused = sum(seen.count for seen in self.groups) + self.other
        oldest = None if self.oldest is None else iso_time(self.oldest)

        return {
            "destinations": list(self.entry.destinations),
            "rung": self.entry.rung,
            "owner": self.entry.owner,
            "since": self.entry.since.isoformat(),
            "days_left": self.days_left,
            "accepted": self.accepted,
            "would_reject": refused,
            "other": self.other,
            "processes": len(self.reported),
            "mixed": len(self.rungs) > 1,
            "moved": self.moved,
            "oldest": oldest,
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
        file: its ``[[rollout]]``; its consumer's rules and aliases say which producers
            there are, and ``[check]`` how many processes have to report.
        records: of the audit files of all consumers, in any order.
        now: UTC seconds.
        broken: what is wrong with the audit files, ``None`` where nothing is.
    """
    history = [
        record for record in records if record.get("verdict") in ("observed", "rollout")
    ]
    history.sort(key=time_of)
    reports = [record for record in history if record.get("verdict") == "observed"]
    rollout = Rollout([entry.build() for entry in file.rollout])

    result = []
    for entry in file.rollout:
        if entry.at >= Rung.ENFORCE:
            continue
        standing = Standing(entry, days_left(entry.until, now) if entry.until else 0)
        result.append(standing)

        recent = [report for report in reports if time_of(report) >= now - entry.window]
        _read_window(standing, recent, rollout)
        _read_last_hour(standing, recent, now)
        if file.consumer is not None:
            standing.never_signed = _never_signed(entry, file.consumer, recent)

        # Each start of a consumer says when its entries end: each further end was a move.
        ends = set()
        for record in history:
            for rung in objects(member(record, "rollout").get("rungs")):
                if set(rung.get("destinations") or ()) & set(entry.destinations):
                    ends.add(str(rung.get("until")))
        standing.moved = max(0, len(ends) - 1)

        changed = _last_change(reports, now - entry.window)
        standing.against = [
            *_against(standing, file, changed=changed, broken=broken, now=now)
        ]
    return result


def _read_window(standing: Standing, reports: Iterable[Record], rollout: Rollout) -> None:
    """Count the messages of the window: what was accepted, and what would be refused."""
    destinations = standing.entry.destinations
    groups: dict[str, Seen] = {}
    for report in reports:
        facts = member(report, "observed")
        standing.other += _whole(facts.get("other"))
        for destination, count in member(facts, "accepted").items():
            if destination in destinations:
                standing.accepted[destination] += _whole(count)

        # A group is counted by the one entry that decides on its destination.
        for counts in objects(facts.get("groups")):
            group = group_of(counts)
            decisive = rollout.entry(group.destination)
            if decisive is not None and decisive.destinations == destinations:
                groups.setdefault(group.id, Seen(group)).add(counts)

    standing.groups = sorted(groups.values(), key=lambda seen: -seen.count)


def _read_last_hour(standing: Standing, reports: Iterable[Record], now: float) -> None:
    """Note which processes are there, on which rungs, and how old their messages were."""
    destinations = standing.entry.destinations
    oldest: dict[Any, float] = {}
    for report in reports:
        if time_of(report) < now - HOUR:
            continue

        process = report.get("instance")
        standing.reported[process] = time_of(report)

        facts = member(report, "observed")
        rungs = member(facts, "rungs")
        standing.rungs.update(str(rungs[name]) for name in destinations if name in rungs)

        appended = member(facts, "oldest")
        times = [seconds_of(appended[name]) for name in destinations if name in appended]
        if times:
            oldest[process] = min(times)

    standing.oldest = min(oldest.values(), default=None)


def _signers(entry: RolloutSettings, reports: Iterable[Record]) -> set[tuple[str, str]]:
    """Return who signed messages for an entry's destinations: issuers and subjects."""
    signers: set[tuple[str, str]] = set()
    for report in reports:
        signed = member(member(report, "observed"), "signed")
        for destination in entry.destinations:
            issuers = member(signed, destination)
            for issuer in issuers:
                signers.update((issuer, subject) for subject in member(issuers, issuer))
    return signers


def _never_signed(
    entry: RolloutSettings, consumer: ConsumerSettings, reports: Iterable[Record]
) -> list[str]:
    """Return the producers of rules for an entry's destinations that signed nothing."""
    signers = _signers(entry, reports)

    # What arrives by an alias has the rules of where it was published.
    destinations = set(entry.destinations)
    for alias in consumer.accept_as:
        if entry.build().holds(alias.at):
            destinations.update(alias.signed_for)

    silent = []
    for rule in consumer.allow:
        has_signed = any(
            rule.subject == subject and rule.issuer in (None, issuer)
            for issuer, subject in signers
        )
        may_publish = any(
            _overlap(destination, pattern)
            for destination in destinations
            for pattern in rule.destinations
        )
        if may_publish and not has_signed and rule.subject not in silent:
            silent.append(rule.subject)
    return silent


def _overlap(first: str, second: str) -> bool:
    """Return whether two patterns may have a destination in common.

    The words of each stand for themselves: of two wildcards, one has to match the other.
    """
    if EVERYWHERE in (first, second):
        return True
    return first == second or matches(first, second) or matches(second, first)


def _last_change(reports: Sequence[Record], start: float) -> float | None:
    """Return when rules, issuers or settings changed last; ``None``: not since ``start``.

    A change counts although the report before it is older.
    """
    changed = None
    for before, after in pairwise(reports):
        old = member(before, "observed").get("rules")
        new = member(after, "observed").get("rules")
        if old is not None and old != new and time_of(after) >= start:
            changed = time_of(after)
    return changed


def _against(
    standing: Standing,
    file: FileSettings,
    *,
    changed: float | None,
    broken: str | None,
    now: float,
) -> Iterator[str]:
    """Yield what speaks against going up."""
    entry = standing.entry
    end = datetime.combine(entry.since, time_of_day(), UTC).timestamp() + entry.window
    if now < end:
        yield f"the window is over at {iso_time(end)}"
    if broken is not None:
        yield broken

    reporting = len(standing.reported)
    consumers = 1 if file.check is None else file.check.consumers
    if reporting < consumers:
        yield f"{reporting} of {consumers} consumers reported within the hour"

    # What was delivered again and would be settled condemns nothing.
    open_groups = [
        seen
        for seen in standing.groups
        if seen.group.code != Verdict.DUPLICATE.value
        and not is_accepted(entry, seen.group)
    ]
    if open_groups:
        yield f"{len(open_groups)} groups"
    if standing.other:
        yield f"{standing.other} messages in no group"

    # Silence is no proof that everybody signs.
    silent = [name for name in entry.destinations if not standing.accepted.get(name)]
    if silent:
        yield f"no accepted message of {', '.join(silent)}"

    # What was counted must stand for what would be judged.
    if changed is not None:
        yield f"rules, issuers or settings changed at {iso_time(changed)}"
    if len(standing.rungs) > 1:
        yield f"mixed: {' and '.join(sorted(standing.rungs))} within the hour"
    if entry.at is Rung.OFF:
        yield "nothing is judged at off"


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
        path = ("rollout", number)
        destinations = few(entry.destinations)

        advice = f"{destinations}: {entry.rung}, ask {entry.owner}"
        if entry.at is Rung.OFF:
            yield finding("rollout_off", (*path, "rung"), advice)
        if entry.at is Rung.OBSERVE:
            yield finding("rollout_observe", (*path, "rung"), advice)

        if EVERYWHERE in entry.destinations:
            yield finding(
                "rollout_catch_all",
                (*path, "destinations"),
                "every destination that no entry names",
            )

        if entry.at < Rung.ENFORCE and entry.until is not None:
            left = days_left(entry.until, target.now)
            yield from _term(_ROLLOUT, (*path, "until"), destinations, left)


@on("rollout")
def weakest(target: Target, entries: tuple[RolloutSettings, ...]) -> Iterator[Finding]:
    """Say by which destinations a queue may be reached unsigned."""
    destinations: list[str] = []
    for entry in entries:
        if entry.at < Rung.ENFORCE:
            destinations += entry.destinations
    consumer = target.settings.consumer
    if consumer is not None:
        destinations += [exemption.destination for exemption in consumer.unsigned]

    rabbit = [name for name in destinations if name.startswith("rabbitmq:")]
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
        path = ("consumer", "unsigned", number)
        destination = exempt.destination
        yield finding(
            "unsigned_exempt", (*path, "destination"), f"{destination}: {exempt.why}"
        )

        has_wildcard = "*" in destination or "#" in destination
        if has_wildcard and not exempt.kinds:
            yield finding(
                "exempt_broad", (*path, "destination"), f"{destination}, and no kinds"
            )

        left = days_left(exempt.until, target.now)
        if left > 366:
            yield finding(
                "exempt_long", (*path, "until"), f"{destination}: in {left} days"
            )
        yield from _term(_ROLLOUT, (*path, "until"), destination, left)


@on("consumer")
def direct_issuers(target: Target, consumer: ConsumerSettings) -> Iterator[Finding]:
    """Find issuers of the direct form that are to be taken out."""
    codes = ("issuer_overdue", "issuer_ending")
    for issuer in consumer.issuers:
        if issuer.until is not None:
            left = days_left(issuer.until, target.now)
            yield from _term(codes, (*issuer.table.path, "until"), issuer.issuer, left)


def _term(
    codes: tuple[str, str], path: tuple[str | int, ...], what: str, left: int
) -> Iterator[Finding]:
    overdue, ending = codes
    if left < 0:
        yield finding(overdue, path, f"{what}: over for {-left} days")
    elif left <= SOON:
        yield finding(ending, path, f"{what}: {left} days left")


RULES: Final = (rungs, weakest, exemptions, direct_issuers)
