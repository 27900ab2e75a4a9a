"""A JWK Set in a file, as a source of an issuer's keys: looked at again when it changes."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Final

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import ConfigurationError
from mqauth.keystore.disk import files
from mqauth.wire.jwk import MAX_DOCUMENT, load_key_set
from mqauth.wire.keys import KeySet

LOOK_EVERY: Final = 1.0
"""Seconds after which a known kid makes us look at the file again, so that a revocation is noticed."""
_LOG: Final = logging.getLogger("mqauth.keystore")
_Stamp = tuple[int, int, int, int, int]


class JWKSFile:
    """The keys of a JWK Set file, as fresh as the file.

    A file that later goes bad or missing leaves the last good set in use and is logged as an error, once
    for each change. An unknown kid makes it look at once; a known one looks at most once a second, costs
    one ``stat`` then, and waits for nobody.

    Args:
        path: the file, at most 256 KiB.

    Raises:
        ConfigurationError: the file is missing, no JWK Set, or has no key that can be used.
    """

    def __init__(self, path: str | Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.path = Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp = _stamp(self.path)
        self._looked = clock.monotonic()
        self._keys = _read(self.path)
        if not self._keys.keys:
            why = f": {self._keys.skipped[0]}" if self._keys.skipped else ""
            raise ConfigurationError(f"{self.path}: no key that can be used{why}")
        self._report()

    def key_set(self) -> KeySet:
        """Return the set in use; looks at the file where the last look is a second ago."""
        if self._clock.monotonic() - self._looked >= LOOK_EVERY and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._keys

    def refresh(self, kid: str, received: float, /) -> KeySet:
        """Look at the file again and return the set then in use (``KeySource``)."""
        with self._lock:
            self._look()
        return self._keys

    def _look(self) -> None:
        """Load the file again where it changed; what cannot be used changes nothing."""
        self._looked = self._clock.monotonic()
        stamp = _stamp(self.path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            keys = _read(self.path)
            if keys.skipped and not keys.keys:
                raise ConfigurationError(f"{self.path}: no key that can be used: {keys.skipped[0]}")
        except ConfigurationError as error:
            _LOG.error("%s; the last good set of %d keys stays in use", error, len(self._keys.keys))
            return
        self._keys = keys
        self._report()

    def _report(self) -> None:
        """Log each key that was skipped."""
        for line in self._keys.skipped:
            _LOG.warning("%s: skipped %s", self.path, line)


def _read(path: Path) -> KeySet:
    """Return the usable keys of the file."""
    return load_key_set(files.read_bounded(path, MAX_DOCUMENT), name=str(path))


def _stamp(path: Path) -> _Stamp | None:
    """Return what changes with a file's content, ``None`` where it is missing.

    Taken before the content is read: a write during the read shows as another stamp at the next look.
    """
    try:
        found = os.stat(path)
    except OSError:
        return None
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
