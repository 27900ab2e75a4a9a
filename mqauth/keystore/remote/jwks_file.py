"""The keys of an issuer in a JWK Set file, which is read again when it changes."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Final

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import ConfigurationError
from mqauth.keystore.disk import files
from mqauth.wire.jwk import MAX_DOCUMENT, load_key_set
from mqauth.wire.keys import KeySet

LOOK_EVERY: Final = 1.0
"""Seconds between two looks for the sake of known kids, so that a revocation is noticed."""
_LOG: Final = logging.getLogger("mqauth.keystore")


class JWKSFile:
    """The keys of a JWK Set file, as fresh as the file.

    If the file later becomes unusable, the last good set stays in use, and one error is logged for each change of
    the file. An unknown kid causes a look at once. A known kid causes a look at most once a second, which costs a
    ``stat`` and waits for nobody.

    Args:
        path: the file, at most 256 KiB.
        clock: tells the time.

    Raises:
        ConfigurationError: the file is missing, is not a JWK Set, or has no key that can be used.
    """

    def __init__(self, path: str | Path, *, clock: Clock = SYSTEM_CLOCK) -> None:
        self.path = Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._stamp = files.stamp(self.path)
        self._looked = clock.monotonic()
        self._keys = self._read()
        if not self._keys.keys:
            raise ConfigurationError(f"{self.path}: no key that can be used")

    def key_set(self) -> KeySet:
        """Return the set in use, after a look at the file where the last one is a second ago."""
        if self._clock.monotonic() - self._looked >= LOOK_EVERY and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        return self._keys

    def refresh(self, kid: str, received: float, /) -> KeySet:
        """Look at the file again and return the set that is in use then (``KeySource``)."""
        with self._lock:
            self._look()
        return self._keys

    def _look(self) -> None:
        self._looked = self._clock.monotonic()
        # The stamp comes before the content, so that a write in between shows at the next look.
        stamp = files.stamp(self.path)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._keys = self._read()
        except ConfigurationError as error:
            _LOG.error("%s; the last good set of %d keys stays in use", error, len(self._keys.keys))

    def _read(self) -> KeySet:
        keys = load_key_set(files.read_bounded(self.path, MAX_DOCUMENT), name=str(self.path))
        # An empty set may be meant, for example after all keys were revoked. One without a usable key is a
        # mistake.
        if keys.skipped and not keys.keys:
            raise ConfigurationError(f"{self.path}: no key that can be used: {keys.skipped[0]}")
        for line in keys.skipped:
            _LOG.warning("%s: skipped %s", self.path, line)
        return keys
