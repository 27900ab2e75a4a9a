"""How much a test does: what the pages promise in the nightly form, less of the same in between."""

from __future__ import annotations

import os
from typing import Final

VARIABLE: Final = "MQAUTH_NIGHTLY"
"""Set in the nightly form; ``python -m integration test --nightly`` sets it."""


def nightly(full: int, *, otherwise: int) -> int:
    """Return the number that the nightly form takes, or the smaller one of every other run."""
    return full if os.environ.get(VARIABLE) else otherwise
