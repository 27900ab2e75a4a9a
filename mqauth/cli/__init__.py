"""The ``mqauth`` command; ``main`` is its entry point and the only thing here that needs no extra."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module

_EXTRA = ("typer", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 fine, 1 found or failed, 2 usage or configuration, 3 undecided.

    Args:
        arguments: without the program's name; by default those of the process.
    """
    try:
        for name in _EXTRA:  # tables are drawn late: what is missing is said at once
            import_module(name)
        from mqauth.cli.app import run
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        print("mqauth: the command needs an extra: install mqauth[cli]", file=sys.stderr)
        return 2
    return run(sys.argv[1:] if arguments is None else arguments)
