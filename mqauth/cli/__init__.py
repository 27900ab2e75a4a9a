"""The ``mqauth`` command. ``main`` is its entry point, and without the extra ``cli`` it says what to install."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

_EXTRA = ("typer", "rich", "tomlkit")
_INTERRUPTED = 130


def is_interrupt(error: BaseException) -> bool:
    """Tell whether Ctrl-C is behind an error: where a class is made, Python 3.11 makes a RuntimeError of it."""
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: without the name of the program; by default those of the process.

    Returns:
        0 success, 1 something was found or failed, 2 wrong usage or configuration, 3 undecided or out of reach,
        130 interrupted.
    """
    if arguments is None:
        sys.unraisablehook = _dropped
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except BaseException as error:
        if not is_interrupt(error):
            raise
        return _INTERRUPTED
    finally:
        if arguments is None:
            # While the interpreter ends, nothing catches a KeyboardInterrupt any more.
            signal.signal(signal.SIGINT, lambda *_: os._exit(_INTERRUPTED))


def _dropped(error: sys.UnraisableHookArgs) -> None:
    """End the command where Python drops its KeyboardInterrupt, as whatever a weak reference's callback raises.

    Each import calls one. Without this, Ctrl-C would print a traceback, and the command would go on.
    """
    if issubclass(error.exc_type, KeyboardInterrupt):
        os._exit(_INTERRUPTED)
    sys.__unraisablehook__(error)


def _run(arguments: Sequence[str]) -> int:
    try:
        # Rich draws tables late in a command. Without this import a long command would fail at its end.
        for name in _EXTRA:
            import_module(name)
        from mqauth.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print("mqauth: the command needs an extra: install mqauth[cli]", file=sys.stderr)
        return 2
    return run(arguments)
