"""Where a partition of a log begins that was just assigned, so that no record is lost whatever a client does.

A group that has no committed offset of a partition begins where its clients' ``auto_offset_reset`` says: by
default at the end, each time anew. A partition of which nothing was settled yet would lose what came meanwhile. So
the start of such a partition is committed before anything of it is handled.

Each commit also says, in its metadata, how many partitions the topic had when the group began with it. A partition
without a committed offset, whose number is not below that, was added since: it begins at its beginning. The number
never rises. If it did, a member that has seen two new partitions could make them old by its next commit, before
their owners have begun with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from typing import Any, Final, NamedTuple

# confluent-kafka writes a NUL behind it.
_METADATA: Final = re.compile(r"mqauth partitions=([1-9][0-9]{0,8})\0?")


class Committed(NamedTuple):
    """A committed offset with its metadata."""

    offset: int
    metadata: str


class Start(NamedTuple):
    """Where a partition begins.

    Args:
        offset: of the first record to read.
        committed: what the group has committed.
        seek: whether the client has to be told where to read.
    """

    offset: int
    committed: Committed
    seek: bool


def partitions_at_first(commits: Iterable[Committed]) -> int | None:
    """Return how many partitions a topic had when a group began with it; ``None`` where no commit says it.

    Members that were first at the same moment may have seen different numbers: the least loses nothing.

    Args:
        commits: the group's commits of the topic.
    """
    matches = [_METADATA.fullmatch(commit.metadata or "") for commit in commits]
    return min((int(each[1]) for each in matches if each is not None), default=None)


class TopicStart(NamedTuple):
    """What a group's commits of a topic say of its partitions without one.

    Args:
        metadata: of all further commits.
        added: partitions that are new to the group: they begin at their beginning.
        unmarked: partitions of a group whose commits do not say whether they are new: of one from before, or of
            another program. They begin where any other would: an upgrade must not replay a history.
    """

    metadata: str
    added: Set[Any]
    unmarked: Set[Any]


def topic_start(partitions: Set[Any], commits: Mapping[Any, Committed]) -> TopicStart:
    """Return what a group's commits say of a topic.

    Args:
        partitions: all that the topic has.
        commits: the group's, by partition.
    """
    known = partitions & commits.keys()
    missing = partitions - known
    count, added, unmarked = (
        partitions_at_first(commits[place] for place in known),
        set[Any](),
        set[Any](),
    )
    if count is not None:
        added = {place for place in missing if place.partition >= count}
    elif known:
        unmarked = set(missing)
    count = count or 1 + max(place.partition for place in partitions)
    return TopicStart(f"mqauth partitions={count}", added, unmarked)
