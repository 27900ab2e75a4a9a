"""What producers on every broker say of batches: the settings, and their limits."""

from __future__ import annotations

from typing import Final, TypedDict

DEFAULT_LINGER: Final = 0.002
"""Seconds a message may wait for others to share a signature with."""
MAX_LINGER: Final = 10.0


class Batching(TypedDict):
    """The arguments of the broker wrappers' ``Producer`` that have messages share signatures.

    Args:
        batch: messages under one signature, 1 to 1,024; 1 for a token each.
        linger: seconds a message may wait for others, 0 to 10.
    """

    batch: int
    linger: float
