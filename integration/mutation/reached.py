"""Which vectors run which lines of our modules: a vector that does not reach a fault cannot tell of it."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from integration.mutation.planted import OURS, ROOT, module_of
from integration.services.machine import cache_folder

Lines = dict[str, dict[int, list[int]]]


def traced(checks: Mapping[str, Callable[[], None]], anew: Callable[[], None]) -> Lines:
    """Return, by module and line, the numbers of the checks that run it, none where only an import does.

    Args:
        checks: by name; the memos of this process are empty.
        anew: imports everything anew.
    """
    found: Lines = {}
    for number, run in enumerate(checks.values()):
        for path, line in _lines(run):
            found.setdefault(module_of(path), {}).setdefault(line, []).append(number)
    for path, line in _lines(anew):
        found.setdefault(module_of(path), {}).setdefault(line, [])
    return found


def _lines(run: Callable[[], None]) -> set[tuple[str, int]]:
    ours, seen = str(OURS), set[tuple[str, int]]()

    def call(frame: FrameType, _event: str, _what: Any) -> Any:
        path = frame.f_code.co_filename
        if not path.startswith(ours):
            return None

        def line(frame: FrameType, _event: str, _what: Any) -> Any:
            seen.add((path, frame.f_lineno))
            return line

        return line

    sys.settrace(call)
    try:
        run()
    finally:
        sys.settrace(None)
    return seen


def cached(make: Callable[[], Lines]) -> Lines:
    """Return what was traced of this very code and these vectors, if it was; else make it."""
    path = cache_folder() / f"mutation-{_digest()}.json"
    if not path.exists():
        path.write_text(json.dumps(make()))
    return {
        module: {int(line): numbers for line, numbers in lines.items()}
        for module, lines in json.loads(path.read_text()).items()
    }


def _digest() -> str:
    folders: Iterable[Path] = (OURS, ROOT / "tests" / "vectors")
    files = [
        path
        for folder in folders
        for kind in ("*.py", "*.json")
        for path in sorted(folder.rglob(kind))
    ]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]
