"""Begins partitions that were just assigned, by the rules of ``mqauth.delivery.start``, for every client.

A partition whose group has an offset of it with our metadata begins at once: that is one question for all that a
rebalance brings. For the others the group's commits of the whole topic are read, and what they lack is committed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Set
from itertools import islice
from typing import Any, Final, Protocol

from mqauth.brokers.dead_letters import Errors
from mqauth.brokers.log.errors import OffsetsRefusedError
from mqauth.delivery.start import Committed, Start, metadata_of, partitions_at_first
from mqauth.errors import require
from mqauth.flow import Flow, call
from mqauth.logs import emit

NAMED: Final = 20
"""Most partitions that one line of the log names."""


class OffsetCalls(Protocol):
    """The calls of a client; each may be a coroutine, but ``passes``.

    Attributes:
        scope: the consumer group.
        reset: where the client is to begin without an offset: ``latest``, ``earliest`` or ``none``.
        unsure: partitions whose position in the client may be an older one than the committed offset.
        failed: what the calls raise where the broker does not answer, or refuses.
    """

    scope: str
    reset: str
    unsure: Set[Any]
    failed: Errors

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
    calls: OffsetCalls, places: Set[Any], early: Mapping[Any, int], unchanged: Callable[[], bool]
) -> Flow[dict[Any, Start]]:
    """Commit where partitions begin, and return it; those are missing that have to be tried again.

    Args:
        calls: of the client.
        places: partitions that were just assigned.
        early: the first offset that was received of some of them.
        unchanged: returns whether there was no rebalance meanwhile.

    Raises:
        OffsetsRefusedError: the broker refuses for good.
        ConfigurationError: a partition has no offset, and the client's ``auto_offset_reset`` is ``none``.
    """
    starts: dict[Any, Start] = {}
    try:
        own: Mapping[Any, Committed] = yield from call(calls.committed, places)
        for place in places & own.keys():
            if partitions_at_first([own[place]]) is not None:
                starts[place] = yield from _as_committed(calls, place, own[place])
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


def _as_committed(calls: OffsetCalls, place: Any, commit: Committed) -> Flow[Start]:
    if place in calls.unsure:
        return Start(commit.offset, commit, seek=True)
    position: int | None = yield from call(calls.position, place)
    return Start(commit.offset if position is None else position, commit, seek=False)


def _committing(
    calls: OffsetCalls,
    rest: Set[Any],
    own: Mapping[Any, Committed],
    early: Mapping[Any, int],
    unchanged: Callable[[], bool],
) -> Flow[dict[Any, Start]]:
    # What the group has committed of the topics as a whole says which partitions are new to it.
    topics: dict[str, Set[Any]] = {place.topic: set() for place in rest}
    for topic in topics:
        known = yield from call(calls.places, topic)
        topics[topic] = known | {place for place in rest if place.topic == topic}
    others = set().union(*topics.values()) - rest - own.keys()
    commits = dict(own)
    if others:
        commits |= yield from call(calls.committed, others)
    missing, added, unmarked = rest - own.keys(), set[Any](), set[Any]()
    metadata = {}
    for topic, known in topics.items():
        of_topic = [commits[place] for place in known & commits.keys()]
        count = partitions_at_first(of_topic)
        here = {place for place in missing if place.topic == topic}
        if count is not None:
            added |= {place for place in here if place.partition >= count}
        elif of_topic:
            unmarked |= here
        metadata[topic] = metadata_of(1 + max(place.partition for place in known) if count is None else count)

    # Where they begin: an added partition at its beginning, every other one where the client would.
    offsets = {place: commit.offset for place, commit in own.items() if place in rest}
    first: dict[Any, int] = (yield from call(calls.bounds, added | unmarked, False)) if added | unmarked else {}
    for place in missing:
        if place in added:
            offsets[place] = first[place]
        elif place in early:
            offsets[place] = early[place]
        elif (position := (yield from call(calls.position, place))) is not None:
            offsets[place] = position
    unknown = missing - offsets.keys()
    require(
        calls.reset != "none" or not (unknown | added),
        f"group {calls.scope} has no offset of {_named(unknown | added)}, and auto_offset_reset is none: "
        "commit one, or choose latest or earliest",
    )
    if unknown:
        offsets |= yield from call(calls.bounds, unknown, calls.reset == "latest")

    # Before anything is handled.
    if not unchanged():
        return {}
    wanted = {place: Committed(offset, metadata[place.topic]) for place, offset in offsets.items()}
    failure: str | None = yield from call(calls.send_commit, wanted)
    if failure is not None:
        emit("client.commit_failed", "the start of partitions could not be committed (%s): they wait", failure)
        return {}
    _tell(calls, offsets, missing, added, {place for place in unmarked if offsets[place] > first[place]})
    starts = {}
    for place, commit in wanted.items():
        starts[place] = (
            Start(commit.offset, commit, seek=True)
            if place in missing
            else (yield from _as_committed(calls, place, commit))
        )
    return starts


def _tell(
    calls: OffsetCalls, offsets: Mapping[Any, int], missing: Set[Any], added: Set[Any], skipping: Set[Any]
) -> None:
    """Log which partitions begin without an offset of the group, and where."""
    if added:
        emit(
            "client.partitions_added", "new to group %s, read from their beginning: %s", calls.scope,
            _named(added, offsets), scope=calls.scope,
        )  # fmt: skip
    if skipping:
        emit(
            "client.partitions_unmarked", "group %s has no offset of these partitions, and no commit of it says "
            "whether they are new: they begin at the end, and what is before is not read: %s", calls.scope,
            _named(skipping, offsets), scope=calls.scope,
        )  # fmt: skip
    latest = {place for place in missing - added - skipping if offsets[place] > 0}
    if latest and calls.reset == "latest":
        emit(
            "client.offsets_latest", "auto_offset_reset is latest, and group %s begins with these partitions at "
            "the end, without what was sent before: %s", calls.scope, _named(latest, offsets), scope=calls.scope,
        )  # fmt: skip


def _named(places: Iterable[Any], offsets: Mapping[Any, int] | None = None) -> str:
    found = sorted(places, key=lambda place: (place.topic, place.partition))
    at = {} if offsets is None else {place: f" at {offsets[place]}" for place in found}
    named = [f"{place.topic}-{place.partition}{at.get(place, '')}" for place in islice(found, NAMED)]
    return ", ".join([*named, *([f"and {len(found) - NAMED} more"] if len(found) > NAMED else [])])
