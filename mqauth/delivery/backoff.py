"""How long what waits for the world waits before it is tried again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from mqauth.clock import SYSTEM_RANDOMNESS, Randomness
from mqauth.errors import ConfigurationError

_MOST_DOUBLINGS: Final = 64
_BYTES: Final = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """How long a deferred partition waits: exponential with equal jitter, for ever.

    Args:
        first: longest first wait, seconds; later ones double.
        longest: no wait is longer, seconds.

    Raises:
        ConfigurationError: a wait is not above 0, or the first is above the longest.
    """

    first: float = 0.5
    longest: float = 30.0

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.longest:
            raise ConfigurationError("waits grow from first, above 0, to longest")

    def wait(self, attempt: int, randomness: Randomness = SYSTEM_RANDOMNESS) -> float:
        """Return the seconds to wait before a retry: between half of its step and the whole.

        Args:
            attempt: which retry it is, counted from 1.
            randomness: gives the jitter.
        """
        step = min(self.first * 2.0 ** min(attempt - 1, _MOST_DOUBLINGS), self.longest)
        jitter = int.from_bytes(randomness(_BYTES), "big") / (1 << 8 * _BYTES)
        return step / 2 * (1 + jitter)
