"""Waiting for what has to come about."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

PATIENCE = 120.0


def until(
    condition: Callable[[], object], consumer: Any = None, *, seconds: float = PATIENCE, moment: float = 0.02
) -> None:  # fmt: skip
    """Wait until a condition holds; fail in time, or as soon as a consumer has stopped.

    Args:
        condition: is asked again and again.
        consumer: one that is needed for it, if any.
        seconds: that it may take.
        moment: seconds between two questions.

    Raises:
        TimeoutError: it did not come to hold.
    """
    waiting, ends = threading.Event(), time.monotonic() + seconds
    while not condition():
        if time.monotonic() > ends or getattr(consumer, "failed", False):
            raise TimeoutError("the condition did not come to hold")
        waiting.wait(moment)
