"""What a message costs in processor instructions: a change that costs more, or less, is seen and written down."""

from __future__ import annotations

import json

import pytest

from integration.benchmarks import instructions

WRITE = "look why, then: python -m integration.benchmarks.instructions --write"


@pytest.mark.slow
def test_instructions() -> None:
    """Signing and judging cost within 2 % of what the file says, with the versions that it names."""
    wanted = json.loads(instructions.FILE.read_text("utf-8"))
    assert instructions.versions() == wanted["versions"], WRITE
    assert instructions.differing(instructions.counted(), wanted["instructions"]) == [], (
        WRITE
    )


def test_a_difference_is_told() -> None:
    """More than 2 % either way is told, and so is what one of the two does not have."""
    told = instructions.differing(
        {"a": 1021, "b": 979, "c": 1020, "new": 1},
        {"a": 1000, "b": 1000, "c": 1000, "old": 9},
    )
    assert [line.partition(":")[0] for line in told] == ["a", "b", "new", "old"]
