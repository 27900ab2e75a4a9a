"""An audit file as it grows: every record once, through rotation, from the end of what is there."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BufferedReader
from pathlib import Path

from mqauth.audit.file import parts
from mqauth.audit.log import parse_record
from mqauth.audit.record import Record
from mqauth.errors import ConfigurationError


def follow(path: Path, wait: Callable[[], None]) -> Iterator[Record]:
    """Yield the records written from now on, for ever.

    Args:
        path: the file; where it is rotated, its parts are read to their end.
        wait: called where there is nothing new; what it raises ends this.

    Raises:
        ConfigurationError: the file cannot be read.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror or 'cannot be read'}") from error
    file.seek(0, os.SEEK_END)
    try:
        while True:
            yield from _whole_lines(file)
            later = _successor(file, path)
            if later is None:
                wait()
                continue
            yield from _whole_lines(file)  # what came before it was renamed
            file.close()
            file = later
    finally:
        file.close()


def _whole_lines(file: BufferedReader) -> Iterator[Record]:
    """Yield what stands between here and the last newline; a file that was cut is read from its beginning."""
    if os.fstat(file.fileno()).st_size < file.tell():
        file.seek(0)
    while (raw := file.readline()).endswith(b"\n"):
        with suppress(ValueError):  # a line somebody broke: verify names it
            yield parse_record(raw)
    file.seek(-len(raw), os.SEEK_CUR)


def _successor(file: BufferedReader, path: Path) -> BufferedReader | None:
    """Return the file that follows this one, ``None`` while it is still the one that is written."""
    own = os.fstat(file.fileno())
    with suppress(OSError):  # between a rename and the new file
        files = [part.open("rb") for part in parts(path)]
        later = _after(own, files)
        for other in files:
            if other is not later:
                other.close()
        return later
    return None


def _after(own: os.stat_result, files: list[BufferedReader]) -> BufferedReader | None:
    """Return the file behind our own; the one that is written, where ours is not among them."""
    found = [os.path.samestat(own, os.fstat(file.fileno())) for file in files]
    place = found.index(True) if True in found else len(files) - 2
    return files[place + 1] if place + 1 < len(files) else None
