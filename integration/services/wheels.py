"""Programs that PyPI's wheels hold: fetched once to the cache, in the versions and with the hashes of a list."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Final

from integration.services.machine import CommandError, UnavailableError, cache_folder, locked, run, say

_WITHIN: Final = 600.0


def unpacked(listed: Path) -> Path:
    """Return the folder that holds the wheels of a list.

    Args:
        listed: requirements with hashes; its stem names the folder.

    Raises:
        UnavailableError: PyPI gave none.
    """
    digest = hashlib.sha256(listed.read_bytes()).hexdigest()[:16]
    folder = cache_folder() / f"{listed.stem}-{digest}"
    with locked(folder.name):
        if not folder.is_dir():
            _fetch(listed, folder)
    return folder


def _fetch(listed: Path, folder: Path) -> None:
    fetching = Path(tempfile.mkdtemp(prefix=f"{listed.stem}-", suffix=".fetch", dir=folder.parent))
    say(f"fetching {listed.stem} to {folder.parent}: once")
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(fetching), "--no-deps"]
    try:
        run([*words, "--only-binary", ":all:", "--require-hashes", "-r", str(listed)], timeout=_WITHIN)
        fetching.rename(folder)
    except CommandError as failed:
        shutil.rmtree(fetching)
        raise UnavailableError(f"{listed.stem}: PyPI gave no wheel\n{failed}") from failed
    except BaseException:
        shutil.rmtree(fetching)
        raise
