"""Where a partition of a log begins that was just assigned, so that no record is lost whatever a client does.

A group that has no committed offset of a partition begins where its clients' ``auto_offset_reset`` says: by default
at the end, each time anew. A partition of which nothing was settled yet would lose what came meanwhile. So the
start of such a partition is committed before anything of it is handled.

Each commit also says, in its metadata, how many partitions the topic had when the group began with it. A partition
without a committed offset, whose number is not below that, was added since: it begins at its beginning. The number
never rises. If it did, a member that has seen two new partitions could make them old by its next commit, before
their owners have begun with them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

_METADATA: Final = re.compile(r"mqauth partitions=([1-9][0-9]{0,8})")


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


def metadata_of(partitions: int) -> str:
    """Return the metadata of a commit of a topic that had so many partitions when the group began with it."""
    return f"mqauth partitions={partitions}"


def partitions_at_first(commits: Iterable[Committed]) -> int | None:
    """Return how many partitions a topic had when a group began with it; ``None`` where no commit says it.

    Members that were first at the same moment may have seen different numbers: the least loses nothing.

    Args:
        commits: the group's commits of the topic.
    """
    found = [_METADATA.fullmatch(commit.metadata or "") for commit in commits]
    return min((int(each[1]) for each in found if each is not None), default=None)
