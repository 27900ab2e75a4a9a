"""The kept inputs of each target: one file of text, one input a line, as Python writes bytes."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "corpus"


def kept(target: str) -> list[bytes]:
    """Return the kept inputs of a target."""
    path = FOLDER / f"{target}.txt"
    lines = path.read_text(encoding="ascii").splitlines() if path.exists() else []
    return [bytes(ast.literal_eval(line)) for line in lines]


def keep(target: str, inputs: Iterable[bytes]) -> None:
    """Write the inputs of a target, the shortest first; nothing where there are none."""
    found = sorted(set(inputs), key=lambda one: (len(one), one))
    if found:
        (FOLDER / f"{target}.txt").write_text(
            "".join(f"{one!r}\n" for one in found), encoding="ascii"
        )


def unpack(folder: Path, inputs: Iterable[bytes]) -> None:
    """Write each input to a file of its own, as libFuzzer reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    for one in inputs:
        (folder / hashlib.sha1(one, usedforsecurity=False).hexdigest()).write_bytes(one)
