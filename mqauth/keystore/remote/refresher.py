"""The background thread of a remote key cache, and how callers wait for it, with or without an event loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable
from typing import Final

_LONGEST: Final = 60.0
"""Seconds; a machine that was suspended, or a clock that stepped, delays the work by no more than this."""
Ended = concurrent.futures.Future[None]
"""Done when an attempt has ended. Threads and event loops wait for the same one."""


class ThreadRefresher:
    """One daemon thread, which starts when it is first needed, and again in a child after a fork.

    Args:
        condition: guards the cache.
        work: does what is due, and returns the seconds until there is more to do.
    """

    def __init__(self, condition: threading.Condition, work: Callable[[], float]) -> None:
        self._condition = condition
        self._work = work
        self._thread: threading.Thread | None = None
        self._closed = False
        self._woken = False

    def ensure(self) -> None:
        """Start the thread, unless it runs; takes no lock if it does."""
        if self._idle():
            with self._condition:
                if self._idle():
                    self._thread = threading.Thread(target=self._run, name="mqauth-jwks", daemon=True)
                    self._thread.start()

    def wake(self) -> None:
        """Let the thread look for work at once."""
        self.ensure()
        with self._condition:
            self._woken = True
            self._condition.notify_all()

    def wait(self, ended: Ended, seconds: float, /) -> None:
        """Block until an attempt has ended, for a number of seconds at most."""
        concurrent.futures.wait((ended,), timeout=seconds)

    async def pause(self, ended: Ended, seconds: float, /) -> None:
        """Wait until an attempt has ended, for a number of seconds at most, without blocking the event loop."""
        # Unlike wait_for, wait does not cancel the future: others wait for it, too.
        await asyncio.wait((asyncio.wrap_future(ended),), timeout=seconds)

    def close(self) -> None:
        """Stop the thread and wait for it; an attempt in flight ends by its own timeout."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        thread = self._thread
        # A subscriber may close the cache from this very thread.
        if thread is not None and thread is not threading.current_thread():
            # Longer than any attempt of ours takes.
            thread.join(6.0)

    def _idle(self) -> bool:
        return not self._closed and (self._thread is None or not self._thread.is_alive())

    def _run(self) -> None:
        while not self._closed:
            seconds = self._work()
            with self._condition:
                # A call of wake during the work must not be lost.
                if not self._closed and not self._woken:
                    self._condition.wait(min(max(seconds, 0), _LONGEST))
                self._woken = False
