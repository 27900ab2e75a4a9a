"""The active key of a keystore folder, followed through its rotation by a producer that goes on running."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import ConfigurationError
from mqauth.keystore.disk.files import Stamp
from mqauth.keystore.disk.folder import Keystore
from mqauth.keystore.disk.ring import PICKUP, KeyRing
from mqauth.wire.jws import LocalSigningKey

LOOK_EVERY: Final = 5.0
MAX_LOOK: Final = 60.0
"""Seconds; with it a fifth of ``ring.PICKUP`` is gone before a producer has noticed that its key retired."""
MAX_STALE: Final = PICKUP - MAX_LOOK
"""Seconds; a key that retired unnoticed is refused by consumers after ``ring.PICKUP``."""
LONGEST_STALE: Final = 86_400.0
_SAY_EVERY: Final = 60.0
_LOG: Final = logging.getLogger("mqauth.keystore")


@dataclass(frozen=True, slots=True)
class _State:
    """What was found: the key that signs, or why there is none; swapped whole."""

    key: LocalSigningKey | None
    why: str = ""


class ActiveKey:
    """The key that signs for a folder now, as a ``SigningKeySource``: rotation needs no restart.

    ``mqauth keys rotate`` alone moves keys on; this follows what it wrote. Each token compares two numbers;
    every ``look_every`` seconds one of them costs a ``stat``, and a read where the file changed. A key that is
    known to be retired or revoked signs nothing more, even where its successor cannot be read. A folder that
    cannot be read leaves the last key in use, is logged as an error each minute, and ends it after
    ``max_stale``. Serves threads and event loops at once, and goes on in a child after a fork.

    Args:
        folder: the keystore folder.
        passphrase: of its PEM files.
        look_every: seconds between two looks at the folder, at most 60.
        max_stale: seconds the last key signs while the folder cannot be read, at most a day. Beyond the default
            it may have retired so long ago that consumers refuse what it signs.
        clock: tells the time.

    Raises:
        ConfigurationError: no keystore, no active key, its PEM may not be used, or a bound is out of range.
    """

    def __init__(
        self, folder: str | Path, *, passphrase: bytes | None = None, look_every: float = LOOK_EVERY,
        max_stale: float = MAX_STALE, clock: Clock = SYSTEM_CLOCK,
    ) -> None:  # fmt: skip
        if not 0 < look_every <= MAX_LOOK or not look_every <= max_stale <= LONGEST_STALE:
            raise ConfigurationError("look_every is above 0 and at most 60 s, max_stale from it to a day")
        self._keystore = Keystore(folder=Path(folder), passphrase=passphrase, clock=clock)
        self._every = look_every
        self._max_stale = max_stale
        self._clock = clock
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._stamp: Stamp | None = None
        self._looked = self._seen = clock.monotonic()
        self._said = ("", self._looked)
        self._state = _State(None)
        self._read(self._keystore.stamp())
        self.signing_key()

    def __repr__(self) -> str:
        return f"ActiveKey({str(self._keystore.folder)!r})"

    def signing_key(self) -> LocalSigningKey:
        """Return the key that signs now; looks at the folder where the last look is long enough ago.

        Raises:
            ConfigurationError: no key may sign: none is active, its PEM may not be used, or the folder could not
                be read for too long.
        """
        if self._clock.monotonic() - self._looked >= self._every and self._turn():
            try:
                self._look()
            finally:
                self._lock.release()
        state = self._state
        if state.key is None:
            with self._lock:  # another thread may be reading the next key just now
                state = self._state
        if state.key is None:
            raise ConfigurationError(state.why)
        return state.key

    def _turn(self) -> bool:
        """Take the lock, unless somebody is looking; a child does not wait for a thread of its parent."""
        if self._process != os.getpid():
            self._lock, self._process = threading.Lock(), os.getpid()
        return self._lock.acquire(blocking=False)

    def _look(self) -> None:
        """Read the folder again where it changed; where it cannot be read the last key stays, for a while."""
        self._looked = now = self._clock.monotonic()
        stamp = self._keystore.stamp()
        if stamp is not None and stamp == self._stamp:
            self._seen = now
            return
        try:
            self._read(stamp)
        except ConfigurationError as error:
            self._keep(str(error), now)

    def _read(self, stamp: Stamp | None) -> None:
        """Follow the folder; a stamp taken before counts only once the key could be read, too."""
        keys = self._keystore.ring()
        self._seen = self._looked
        self._stamp = None
        if self._follow(keys):
            self._stamp = stamp

    def _follow(self, keys: KeyRing) -> bool:
        """Sign with the active key of a ring, with none before it is read; tell whether that is settled."""
        active, before = keys.active, self._state.key
        if active is not None and before is not None and before.kid == active.kid:
            return True
        try:
            if active is None:
                self._state = _State(None, self._keystore.no_active_key(keys))
            else:
                self._state = _State(None, "the next key is being read")
                self._state = _State(LocalSigningKey(self._keystore.private_key(active)))
        except ConfigurationError as error:
            self._state = _State(None, str(error))
        self._tell(before)
        return active is None or self._state.key is not None

    def _tell(self, before: LocalSigningKey | None) -> None:
        """Log that another key signs, or that none does."""
        after = self._state.key
        if after is None:
            self._say(f"{self._state.why}; nothing can be signed")
        elif before is not None or self._said[0]:
            _LOG.info("%r: key %s signs from now on", self, after.kid)

    def _keep(self, why: str, now: float) -> None:
        """Go on with the last key while the folder cannot be read, and give up after ``max_stale``."""
        left, key = self._seen + self._max_stale - now, self._state.key
        if key is None:
            self._say(why)
        elif left > 0:
            self._say(f"{why}; key {key.kid} signs on, at most until {self._max_stale:.0f} s after it was read")
        else:
            self._state = _State(None, f"{why}, for too long to know whether key {key.kid} may sign")
            self._say(self._state.why)

    def _say(self, text: str) -> None:
        """Log an error, the same one once a minute."""
        said, at = self._said
        now = self._clock.monotonic()
        if text != said or now - at >= _SAY_EVERY:
            self._said = (text, now)
            _LOG.error("%s", text)
