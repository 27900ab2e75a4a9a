"""The ``mqauth`` command. ``main`` is its entry point, and without the extra ``cli`` it says what to install."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

_EXTRA = ("typer", "rich", "tomlkit")
INTERRUPTED = 130


def leave(*_: object) -> None:
    """End at once, as a signal handler. A ``KeyboardInterrupt`` is lost in an import that drops or replaces it.

    Python drops what a weak reference's callback raises, and 3.11 makes a ``RuntimeError`` of it within a class.
    """
    os._exit(INTERRUPTED)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: without the name of the program; by default those of the process.

    Returns:
        0 success, 1 something was found or failed, 2 wrong usage or configuration, 3 undecided or out of reach,
        130 interrupted.
    """
    if (
        arguments is None
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        # Until the command's modules are loaded there is nothing to clean up.
        signal.signal(signal.SIGINT, leave)
    try:
        # Rich draws tables late in a command. Without this import a long command would fail at its end.
        for name in _EXTRA:
            import_module(name)
        from mqauth.cli.app import run

        return run(sys.argv[1:] if arguments is None else arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print("mqauth: the command needs an extra: install mqauth[cli]", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return INTERRUPTED
    finally:
        if arguments is None:
            # While the interpreter ends, nothing catches a KeyboardInterrupt any more.
            signal.signal(signal.SIGINT, leave)
