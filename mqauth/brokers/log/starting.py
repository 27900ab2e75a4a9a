"""Begins partitions that were just assigned, by the rules of ``mqauth.delivery.start``, for every client.

A partition whose group has an offset of it with our metadata begins at once: that is one question for all that a
rebalance brings. For the others the group's commits of the whole topic are read, and what they lack is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Set
from itertools import islice
from typing import Any, Final, Protocol

from mqauth.brokers.dead_letters import Errors
from mqauth.brokers.log.records import OffsetsRefusedError
from mqauth.delivery.start import Committed, Start, TopicStart, partitions_at_first, topic_start
from mqauth.errors import require
from mqauth.flow import Flow, call
from mqauth.logs import emit

NAMED: Final = 20
"""Most partitions that one line of the log names."""


class OffsetCalls(Protocol):
    """The calls of a client, made by ``here``; each may be a coroutine, but ``passes``.

    Attributes:
        scope: the consumer group.
        reset: where the client is to begin without an offset: ``latest``, ``earliest`` or ``none``.
        unsure: partitions whose position in the client may be an older one than the committed offset.
        failed: what the calls raise where the broker does not answer, or refuses.
    """

    scope: str = ""
    reset: str = "none"
    unsure: Set[Any] = frozenset()
    failed: Errors = ()

    def here(self, work: Callable[..., Any], /, *args: Any) -> Any:
        """Make one of these calls: on the client's own thread, where it has one."""
        return work(*args)

    def committed(self, places: Collection[Any], /) -> Any:
        """Return the group's commits by partition, of those that have one."""

    def places(self, topic: str, /) -> Any:
        """Return all partitions of a topic that the client knows of."""

    def position(self, place: Any, /) -> Any:
        """Return the offset that the client will read next; ``None`` where it has none yet, or does not tell."""

    def bounds(self, places: Collection[Any], end: bool, /) -> Any:
        """Return the first offset of each partition, or the one behind its last record that may be read."""

    def send_commit(self, offsets: Mapping[Any, Committed], /) -> Any:
        """Commit; return ``None``, or the name of an error after which the same commit may succeed."""

    def passes(self, error: BaseException, /) -> bool:
        """Return whether the same call may succeed later."""


def beginning(
    calls: OffsetCalls, places: Set[Any], early: MutableMapping[Any, int], unchanged: Callable[[], bool]
) -> Flow[dict[Any, Start]]:
    """Commit where partitions begin, and return it; those are missing that have to be tried again.

    Args:
        calls: of the client.
        places: partitions that were just assigned.
        early: the first offset of some of them, as far as it is known by now; what is found out is noted in it.
        unchanged: returns whether there was no rebalance meanwhile.

    Raises:
        OffsetsRefusedError: the broker refuses for good.
        ConfigurationError: a partition has no offset, and the client's ``auto_offset_reset`` is ``none``.
    """
    starts: dict[Any, Start] = {}
    try:
        own: Mapping[Any, Committed] = yield from call(calls.here, calls.committed, places)
        for place in places & own.keys():
            if partitions_at_first([own[place]]) is not None:
                starts[place] = yield from _as_committed(calls, place, own[place], early)
        if rest := places - starts.keys():
            starts |= yield from _committing(calls, rest, own, early, unchanged)
    except calls.failed as error:
        if not calls.passes(error):
            topics = ", ".join(sorted({place.topic for place in places}))
            raise OffsetsRefusedError(
                f"the broker does not let group {calls.scope} read and commit its offsets of {topics} "
                f"({type(error).__name__}): it needs the right READ on the group and on the topic"
            ) from error
        emit("client.offsets_unknown", "where partitions begin is not known yet (%s)", type(error).__name__)
    return starts


def _as_committed(calls: OffsetCalls, place: Any, commit: Committed, early: Mapping[Any, int]) -> Flow[Start]:
    if place in early or place in calls.unsure:
        return Start(early.get(place, commit.offset), commit, seek=True)
    position: int | None = yield from call(calls.here, calls.position, place)
    if position is not None and position > commit.offset:
        # The user sought there; or the client went to the end before it was ours: its offset was out of range.
        first: int = (yield from call(calls.here, calls.bounds, {place}, False))[place]
        if first > commit.offset:
            tell_out_of_range(calls.scope, place, commit.offset, first)
            return Start(first, commit, seek=True)
    return Start(commit.offset if position is None else position, commit, seek=False)


def tell_out_of_range(scope: str, place: Any, offset: int | None, first: int) -> None:
    """Log that records of a group are gone, and where it goes on."""
    emit(
        "client.offset_out_of_range",
        "group %s: offset %s of %s-%d is out of range, its records are lost; it goes on at %d",
        scope,
        offset,
        place.topic,
        place.partition,
        first,
        scope=scope,
        partition=place.partition,
        offset=first,
    )


def _committing(
    calls: OffsetCalls,
    rest: Set[Any],
    own: Mapping[Any, Committed],
    early: MutableMapping[Any, int],
    unchanged: Callable[[], bool],
) -> Flow[dict[Any, Start]]:
    # What the group has committed of the topics as a whole says which partitions are new to it.
    missing = rest - own.keys()
    topics: dict[str, TopicStart] = {}
    for topic in {place.topic for place in rest}:
        known = yield from call(calls.here, calls.places, topic)
        partitions = known | {place for place in rest if place.topic == topic}
        others = partitions - rest - own.keys()
        commits = (yield from call(calls.here, calls.committed, others)) if others else {}
        topics[topic] = topic_start(partitions, {**own, **commits})
    added = {place for place in missing if place in topics[place.topic].added}
    unmarked = {place for place in missing if place in topics[place.topic].unmarked}

    # Where they begin: an added partition at its beginning, every other one where the client would.
    offsets = {place: own[place].offset for place in rest - missing}
    first: dict[Any, int] = (
        (yield from call(calls.here, calls.bounds, added | unmarked, False)) if added | unmarked else {}
    )
    early.update({place: first[place] for place in added})
    for place in missing - early.keys():
        position: int | None = yield from call(calls.here, calls.position, place)
        if position is not None:
            offsets[place] = position
    unknown = missing - early.keys() - offsets.keys()
    require(
        calls.reset != "none" or not (unknown | added),
        f"group {calls.scope} has no offset of {_named(unknown | added)}, and auto_offset_reset is none: "
        "commit one, or choose latest or earliest",
    )
    if unknown:
        # Where it cannot be committed now, the end will be another one next time.
        early.update((yield from call(calls.here, calls.bounds, unknown, calls.reset == "latest")))
    offsets |= {place: early[place] for place in missing & early.keys()}

    # Committed before anything of them is handled.
    wanted = {place: Committed(offset, topics[place.topic].metadata) for place, offset in offsets.items()}
    failure: str | None = (
        (yield from call(calls.here, calls.send_commit, wanted)) if unchanged() else "a rebalance"
    )
    if failure is not None:
        emit("client.commit_failed", "where partitions begin could not be committed (%s): they wait", failure)
        return {}

    # Which partitions begin without an offset of the group, and where.
    if added:
        emit(
            "client.partitions_added",
            "new to group %s, read from their beginning: %s",
            calls.scope,
            _named(added, offsets),
            scope=calls.scope,
        )
    skipping = {place for place in unmarked if offsets[place] > first[place]}
    if skipping:
        emit(
            "client.partitions_unmarked",
            "group %s has no offset of these partitions, and no commit of it says "
            "whether they are new: they begin at the end, and what is before is not read: %s",
            calls.scope,
            _named(skipping, offsets),
            scope=calls.scope,
        )
    latest = {place for place in missing - added - skipping if offsets[place] > 0}
    if latest and calls.reset == "latest":
        emit(
            "client.offsets_latest",
            "auto_offset_reset is latest, and group %s begins with these partitions at "
            "the end, without what was sent before: %s",
            calls.scope,
            _named(latest, offsets),
            scope=calls.scope,
        )
    starts = {}
    for place in rest:
        starts[place] = yield from _as_committed(calls, place, wanted[place], early)
    return starts


def _named(places: Iterable[Any], offsets: Mapping[Any, int] | None = None) -> str:
    ordered = sorted(places, key=lambda place: (place.topic, place.partition))
    at = {} if offsets is None else {place: f" at {offsets[place]}" for place in ordered}
    named = [f"{place.topic}-{place.partition}{at.get(place, '')}" for place in islice(ordered, NAMED)]
    return ", ".join([*named, *([f"and {len(ordered) - NAMED} more"] if len(ordered) > NAMED else [])])
