"""Valgrind, from the distribution's packages: it counts the processor instructions of a program."""

from __future__ import annotations

import shutil

from integration.services.machine import UnavailableError, install, run


def prepare() -> None:
    """Install it here."""
    if not shutil.which("callgrind_control"):
        install("valgrind", why="counts processor instructions")
    if not shutil.which("callgrind_control"):
        raise UnavailableError("valgrind: its callgrind_control is not on the path")


def version() -> str:
    """Return what it says of itself, ``valgrind-3.19.0`` for example."""
    prepare()
    return run(["valgrind", "--version"], timeout=60).strip()
