"""What can be done to a running server, and the promise that none outlives the process that started it."""

from __future__ import annotations

import atexit
import signal
import threading
from contextlib import suppress
from typing import Protocol


class NotOursError(RuntimeError):
    """The server is someone else's: its URL came from the environment, so it is not stopped or started."""


class Control(Protocol):
    """The ways a server is started, stopped, paused and looked into."""

    @property
    def origin(self) -> str:
        """Where the server comes from, for people."""

    def start(self) -> None:
        """Start it, or let it go on where it is paused; no matter if it runs already."""

    def stop(self) -> None:
        """Shut it down in order and keep its data."""

    def kill(self) -> None:
        """End it without warning and keep its data."""

    def pause(self) -> None:
        """Freeze it with its connections open."""

    def resume(self) -> None:
        """Let it go on after a pause."""

    def close(self) -> None:
        """End it for good and remove its data."""

    def ended(self) -> bool:
        """Tell whether it ended by itself or was stopped."""

    def tail(self) -> str:
        """Return the last lines of its log."""

    def execute(self, *argv: str) -> str:
        """Run a command beside the server, as its administrator, and return what it printed."""


class ForeignServer:
    """A server named by a URL in the environment: used, never controlled."""

    def __init__(self, variable: str) -> None:
        self._variable = variable
        self.origin = f"{variable} in the environment"

    def _refuse(self) -> NotOursError:
        return NotOursError(
            f"not ours to control: the server is given by {self._variable}"
        )

    def start(self) -> None:
        """Refuse."""
        raise self._refuse()

    def stop(self) -> None:
        """Refuse."""
        raise self._refuse()

    def kill(self) -> None:
        """Refuse."""
        raise self._refuse()

    def pause(self) -> None:
        """Refuse."""
        raise self._refuse()

    def resume(self) -> None:
        """Refuse."""
        raise self._refuse()

    def execute(self, *argv: str) -> str:
        """Refuse."""
        raise self._refuse()

    def close(self) -> None:
        """Leave it alone."""

    def ended(self) -> bool:
        """Return False: nothing is known of its process."""
        return False

    def tail(self) -> str:
        """Return where it comes from: its log is elsewhere."""
        return f"(given by {self._variable})"


_live: list[Control] = []


def watch(control: Control) -> None:
    """Close a server at the latest when this process exits, by SIGTERM and SIGHUP too."""
    if not _live:
        atexit.register(close_all)
        for number in (signal.SIGTERM, signal.SIGHUP):
            _interrupt_on(number)
    _live.append(control)


def forget(control: Control) -> None:
    """Stop watching a server that has been closed."""
    with suppress(ValueError):
        _live.remove(control)


def close_all() -> None:
    """Close every server still running, the last started first; one that fails does not keep the others."""
    failures: list[Exception] = []
    for control in reversed(_live.copy()):
        try:
            control.close()
        except Exception as failed:  # every server gets its turn
            failures.append(failed)
        forget(control)
    if failures:
        raise ExceptionGroup("servers that did not close", failures)


def _interrupt_on(number: signal.Signals) -> None:
    """Turn a signal into KeyboardInterrupt, which pytest and `with` blocks clean up after."""
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(number) is signal.SIG_DFL
    ):
        signal.signal(number, signal.default_int_handler)
