"""A thread for calls that may never return, whether this one has an event loop, and what a forked child lacks.

Also what a ``with`` block closes.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, Protocol, Self
from weakref import WeakSet


def in_event_loop() -> bool:
    """Tell whether an event loop runs in this thread; a process that has not imported ``asyncio`` has none."""
    try:
        sys.modules["asyncio"].get_running_loop()
    except (KeyError, RuntimeError):
        return False
    return True


class DaemonThread(Executor):
    """One thread for blocking calls, which no call keeps alive beyond the interpreter's end.

    The interpreter waits at its end for every thread of a ``ThreadPoolExecutor``: one call that never returns,
    such as a commit on a connection that is half open, would hold the process for ever.

    Args:
        name: of the thread, which begins with the first call.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = (
            SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        self._ended = False

    def submit(
        self, work: Callable[..., Any], /, *args: Any, **settings: Any
    ) -> Future[Any]:
        """Make a call after those before it; for one caller at a time, such as an event loop's thread.

        Raises:
            RuntimeError: the thread was told to end, or cannot be started.
        """
        if self._ended:
            raise RuntimeError("no call can be made any more")
        if self._thread is None:
            thread = threading.Thread(target=self._serve, name=self._name, daemon=True)
            thread.start()
            self._thread = thread
        future: Future[Any] = Future()
        self._calls.put((future, partial(work, *args, **settings)))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the thread end after the calls before; nobody waits for it."""
        self._ended = True
        self._calls.put(None)

    def _serve(self) -> None:
        while (submitted := self._calls.get()) is not None:
            future, work = submitted
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)


class Closing:
    """What holds a thread, a file or a connection until it is closed: the end of a ``with`` block closes it."""

    close: Callable[..., None]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()


class Forked(Protocol):
    """What has threads or locks, which a child after a fork lacks, or finds held by nobody."""

    def forked(self) -> None:
        """Make them anew."""


def after_fork(owner: Forked) -> None:
    """Call ``forked`` in each child after a fork, for as long as the owner lives."""
    _OWNERS.add(owner)


def _forked() -> None:
    for owner in list(_OWNERS):
        owner.forked()


_OWNERS: Final[WeakSet[Forked]] = WeakSet()
os.register_at_fork(after_in_child=_forked)
