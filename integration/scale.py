"""How much a test does: what the pages promise in the nightly form, less of the same in between."""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "MQAUTH_NIGHTLY"
"""Set in the nightly form; ``python -m integration test --nightly`` sets it."""


def is_nightly() -> bool:
    """Tell whether this run is the nightly form."""
    return bool(os.environ.get(VARIABLE))


def nightly(full: int, *, otherwise: int) -> int:
    """Return the number that the nightly form takes, or the smaller one of every other run."""
    return full if is_nightly() else otherwise
