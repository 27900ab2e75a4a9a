"""``mqauth.delivery.start``: which partitions are new to a group, by the metadata of its commits."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mqauth.delivery.start import Committed, TopicStart, partitions_at_first, topic_start


class At(NamedTuple):
    """A partition, as a client might name it."""

    topic: str
    partition: int


def places(*numbers: int) -> set[At]:
    """Return partitions of one topic."""
    return {At("orders", number) for number in numbers}


def commits(*metadata: str | None) -> dict[At, Committed]:
    """Return commits of the first partitions, with such metadata; ``None`` where a partition has no commit."""
    found = enumerate(metadata)
    return {At("orders", number): Committed(7, text) for number, text in found if text is not None}


def test_a_group_that_begins() -> None:
    """Of a group without any commit of a topic no partition is new: all begin where its clients say."""
    assert topic_start(places(0, 1, 2), {}) == TopicStart("mqauth partitions=3", set(), set())


def test_a_partition_that_was_added() -> None:
    """A partition with a number that the topic did not have when the group began is new; the number stays."""
    found = topic_start(places(0, 1, 2, 3), commits("mqauth partitions=2", "mqauth partitions=2"))
    assert found == TopicStart("mqauth partitions=2", places(2, 3), set())


def test_a_partition_that_was_there() -> None:
    """One that the topic had when the group began is none of those, although it has no commit yet."""
    found = topic_start(places(0, 1, 2), commits("mqauth partitions=3"))
    assert found == TopicStart("mqauth partitions=3", set(), set())


def test_a_group_from_before() -> None:
    """Commits of another program, or from before, do not say what is new: nothing is taken for new."""
    found = topic_start(places(0, 1, 2), commits("", None, "theirs"))
    assert found == TopicStart("mqauth partitions=3", set(), places(1))


def test_first_members_that_saw_different_numbers() -> None:
    """Where members that were first at once have seen different numbers, the least counts: that loses nothing."""
    found = topic_start(places(0, 1, 2, 3), commits("mqauth partitions=4", "mqauth partitions=2", ""))
    assert found == TopicStart("mqauth partitions=2", places(3), set())


@pytest.mark.parametrize(
    ("metadata", "count"),
    [
        ("mqauth partitions=12", 12), ("mqauth partitions=12\0", 12), ("mqauth partitions=0", None),
        ("mqauth partitions=012", None), ("mqauth partitions=-1", None), ("mqauth partitions=1234567890", None),
        ("mqauth partitions=3 ", None), ("mqauth partitions=3\n", None), ("mqauth partitions=\u0663", None),
        ("partitions=3", None), ("", None),
    ],
)  # fmt: skip
def test_metadata(metadata: str, count: int | None) -> None:
    """Metadata is read strictly, but for the NUL that confluent-kafka writes behind it."""
    assert partitions_at_first([Committed(0, metadata)]) == count


@given(st.integers(1, 50), st.sets(st.integers(0, 60)))
def test_what_is_written_is_read(first: int, added: set[int]) -> None:
    """Whatever the metadata of a commit says, it says the same to the next member."""
    began = topic_start(places(*range(first)), {})
    later = topic_start(places(*range(first), *added), dict.fromkeys(places(0), Committed(1, began.metadata)))
    assert later == TopicStart(began.metadata, places(*(number for number in added if number >= first)), set())
