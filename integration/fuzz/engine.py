"""The process that fuzzes: atheris instruments mqauth while it is imported, and libFuzzer ends the process."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def main() -> None:
    """Fuzz the target that the first argument names; the others are libFuzzer's."""
    atheris: Any = importlib.import_module("atheris")
    name, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["mqauth"]):
        targets: Any = importlib.import_module("integration.fuzz.targets")
    # Only now, or a busy machine would take minutes to import and instrument.
    os.nice(19)
    atheris.Setup([sys.argv[0], *arguments], targets.TARGETS[name].run)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
