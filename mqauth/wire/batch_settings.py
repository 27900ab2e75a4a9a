"""The settings of batches that producers on every broker have, and their limits."""

from __future__ import annotations

from typing import Final, TypedDict

from mqauth.errors import require
from mqauth.wire.claims import MAX_BATCH

DEFAULT_LINGER: Final = 0.002
"""Seconds a message may wait for others to share a signature with."""
MAX_LINGER: Final = 10.0


class Batching(TypedDict):
    """The arguments of a broker wrapper's ``Producer`` that make messages share signatures.

    Args:
        batch: messages under one signature, 1 to 1,024; 1 for a token each.
        linger: seconds a message may wait for others, 0 to 10.
    """

    batch: int
    linger: float


def check_batching(batch: int, linger: float) -> None:
    """Refuse settings that are out of their limits.

    Args:
        batch: messages under one signature.
        linger: seconds a message may wait for others.

    Raises:
        ConfigurationError: one is.
    """
    require(
        type(batch) is int and 1 <= batch <= MAX_BATCH and 0 <= linger <= MAX_LINGER,
        f"batch is 1 to {MAX_BATCH}, linger 0 to {MAX_LINGER:.0f} seconds",
    )
