"""The process that fuzzes: atheris instruments mqauth while it is imported, and libFuzzer ends the process."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def saving(run: Callable[[bytes], None], folder: Path) -> Callable[[bytes], None]:
    """Return a target that writes the input at which an oracle does not hold; atheris 3.0 does not."""

    def tried(raw: bytes) -> None:
        try:
            run(raw)
        except Exception:
            name = hashlib.sha1(raw, usedforsecurity=False).hexdigest()
            (folder / f"crash-{name}").write_bytes(raw)
            raise

    return tried


def main() -> None:
    """Fuzz a target: its name, a folder for what is found, and libFuzzer's arguments."""
    atheris: Any = importlib.import_module("atheris")
    name, folder, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=["mqauth"]):
        targets: Any = importlib.import_module("integration.fuzz.targets")
    # Only now, or a busy machine would take minutes to import and instrument.
    os.nice(19)
    atheris.Setup(
        [sys.argv[0], *arguments], saving(targets.TARGETS[name].run, Path(folder))
    )
    atheris.Fuzz()


if __name__ == "__main__":
    main()
