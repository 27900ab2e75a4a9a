"""A call after so many seconds, on the running event loop or on a test's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

Timer = Callable[[float, Callable[[], None]], Any]


def call_later(seconds: float, function: Callable[[], None]) -> asyncio.TimerHandle:
    """Have the running event loop call a function after so many seconds."""
    return asyncio.get_running_loop().call_later(seconds, function)
