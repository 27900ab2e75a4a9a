"""Files: who else may read what is secret, or write what trust rests on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from mqauth.check import codes
from mqauth.check.findings import Finding
from mqauth.check.locator import Path as Place
from mqauth.check.target import Rule, Target, mode, strangers
from mqauth.check.transport import passwords

_READ: Final = 0o044
_WRITE: Final = 0o022
_WORLD_READ: Final = 0o004


def writable(target: Target) -> Iterator[Finding]:
    """Files that decide whom we trust and that others may change."""
    for path, place in _trusted(target):
        if strangers(path) & _WRITE:
            said = f"{target.shown(path)} may be written by others (mode {mode(path)})"
            yield codes.TRUST_WRITABLE.at(place, said)


def readable(target: Target) -> Iterator[Finding]:
    """Secrets that others may read."""
    passphrase = None if target.producer is None else target.producer.passphrase_file
    if passphrase is not None and strangers(passphrase):
        said = f"{target.shown(passphrase)} is open to others (mode {mode(passphrase)})"
        yield codes.SECRET_READABLE.at(("producer", "passphrase_file"), said)
    if passphrase is not None and strangers(target.file) & _WORLD_READ:
        said = f"{target.file.name} may be read by everybody and names a passphrase_file"
        yield codes.CONFIG_READABLE.at(("producer", "passphrase_file"), said)
    if strangers(target.file) & _READ:
        for place, shown in passwords(target):
            said = f"a password for {shown} in a file that others may read (mode {mode(target.file)})"
            yield codes.SECRET_READABLE.at(place, said)


def _trusted(target: Target) -> Iterator[tuple[Path, Place]]:
    """Yield each file that trust rests on, and where it is named."""
    yield target.file, ()
    for source in target.sources:
        for key, path in (("file", source.file), ("ca", source.ca), ("snapshot", source.snapshot)):
            if path is not None:
                yield path, (*source.table.path, key)


RULES: Final[tuple[Rule, ...]] = (writable, readable)
