"""Keys that follow the disk while a process runs: the active key of a keystore folder, and a JWK Set file.

Both look at the disk when a key is asked for, and not more often than every few seconds. Of several threads one
looks, and the others go on with what they have. What can no longer be read leaves the last good state in use for a
while, and is logged.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Final

from mqauth.audit import disk
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import ConfigurationError, require
from mqauth.keystore.disk import ring
from mqauth.keystore.disk.folder import Keystore
from mqauth.keystore.remote import rules
from mqauth.logs import Rate, emit
from mqauth.threads import after_fork
from mqauth.wire import jwk, jws
from mqauth.wire.keys import Key, KeySet, SigningKey

MAX_LOOK: Final = 60.0
"""Seconds; a producer then notices that its key retired within a fifth of ``ring.RETIREMENT_GRACE``."""
MAX_STALE: Final = ring.RETIREMENT_GRACE - MAX_LOOK
"""Seconds; consumers refuse a key that retired unnoticed after ``ring.RETIREMENT_GRACE``."""


class ActiveKey:
    """The key of a folder that signs now, as a ``SigningKeySource``: a rotation needs no restart.

    ``mqauth keys rotate`` alone changes the states of keys, and this class follows what it wrote. For each token
    two numbers are compared. Every ``look_every`` seconds a token costs a ``stat``, and a read if the file has
    changed. A key that is known to be retired or revoked signs nothing more, even if its successor cannot be
    read. While the folder cannot be read the last key goes on signing, for ``max_stale`` seconds at most, and an
    error is logged once a minute. Threads and event loops may share it, and a child after a fork.

    Args:
        folder: the keystore folder.
        passphrase: the passphrase of its PEM files.
        look_every: seconds between two looks at the folder, at most 60.
        max_stale: seconds for which the last key signs while the folder cannot be read, at most a day. Beyond the
            default the key may have retired so long ago that consumers refuse its tokens.
        clock: tells the time.

    Raises:
        ConfigurationError: the folder is not a keystore, no key is active, its PEM file may not be used, or a
            bound is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        passphrase: bytes | None = None,
        look_every: float = 5.0,
        max_stale: float = MAX_STALE,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        require(
            0 < look_every <= MAX_LOOK and look_every <= max_stale <= 86_400.0,
            "look_every is above 0 and at most 60 s, max_stale from it to a day",
        )
        self._keystore = Keystore(folder=Path(folder), passphrase=passphrase, clock=clock)
        self._every = look_every
        self._max_stale = max_stale
        self._clock = clock
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._rate = Rate(clock)
        self._looked = self._read = clock.monotonic()
        # The key, or the reason why there is none. One tuple, so that a thread never sees parts of two states.
        self._state: tuple[SigningKey | None, str] = (None, "")
        self._stamp: disk.Stamp | None = None
        self._follow(self._keystore.stamp(), self._keystore.ring())
        self.signing_key()

    def __repr__(self) -> str:
        return f"ActiveKey({str(self._keystore.folder)!r})"

    def signing_key(self) -> SigningKey:
        """Return the key that signs now, after a look at the folder where the last one is long enough ago.

        Raises:
            ConfigurationError: no key may sign: none is active, its PEM file may not be used, or the folder could
                not be read for too long.
        """
        # A thread of the parent may have held the lock at the fork, and there is no such thread in the child.
        if self._process != os.getpid():
            self._lock, self._process = threading.Lock(), os.getpid()
        if self._clock.monotonic() - self._looked >= self._every and self._lock.acquire(
            blocking=False
        ):
            try:
                self._look()
            finally:
                self._lock.release()
        key, why = self._state
        if key is None:
            # Another thread may be reading the next key at this moment.
            with self._lock:
                key, why = self._state
        return require(key, why)

    def _look(self) -> None:
        """Read the folder again if it has changed; keep the last key for a while if it cannot be read."""
        self._looked = now = self._clock.monotonic()
        # The stamp comes before the content, so that a write in between shows at the next look.
        stamp = self._keystore.stamp()
        if stamp is None or stamp != self._stamp:
            try:
                keys = self._keystore.ring()
            except ConfigurationError as error:
                # The last key signs on while the folder cannot be read, until ``max_stale`` has passed.
                why, (key, _) = str(error), self._state
                if key is not None and self._read + self._max_stale - now > 0:
                    until = f"at most until {self._max_stale:.0f} s after it was read"
                    why = f"{why}; key {key.kid} signs on, {until}"
                elif key is not None:
                    why = f"{why}, for too long to know whether key {key.kid} may sign"
                    self._state = (None, why)
                self._warn(why)
                return
            self._follow(stamp, keys)
        self._read = now

    def _follow(self, stamp: disk.Stamp | None, keys: ring.KeyRing) -> None:
        """Sign with the active key of a ring, and with none until that key was read."""
        active, (before, ended) = keys.active, self._state
        # The stamp counts once the key was read, so that a PEM file that could not be read is tried at each look.
        self._stamp = None
        if active is None:
            self._state = (None, self._keystore.no_active_key(keys))
        elif before is None or before.kid != active.kid:
            self._state = (None, "the next key is being read")
            try:
                key = self._keystore.private_key(active)
                self._state = (
                    jws.LocalSigningKey(key) if isinstance(key, Key) else key,
                    "",
                )
            # The key before has ended, even if this one cannot be read.
            except ConfigurationError as error:
                self._state = None, str(error)
        if active is None or self._state[0] is not None:
            self._stamp = stamp
        after, why = self._state
        if after is None:
            self._warn(f"{why}; nothing can be signed")
        elif after is not before and (before is not None or ended):
            emit("keys.signing", "%r: key %s signs from now on", self, after.kid)

    def _warn(self, why: str) -> None:
        if self._rate.admits("keys.kept", (why,), {}):
            emit("keys.kept", "%s", why)


class JWKSFile:
    """The keys of a JWK Set file, as fresh as the file.

    An unknown kid causes a look at once. A known kid causes a look at most once a second, which costs a ``stat``
    and waits for nobody. Threads and event loops may share it, and a child after a fork.

    While the file cannot be read, it is tried each second, and an error is logged once a minute. Kids of the last
    good set are judged by it for an hour, as in an outage of a key server; all others wait.

    Args:
        path: the file, at most 256 KiB.
        svid: of a SPIFFE bundle, read the keys of this use, too: ``"wit-svid"`` for a ``TrustDomain``,
            ``"jwt-svid"`` for credentials of an authority, and nowhere else.
        clock: tells the time.

    Raises:
        ConfigurationError: the file is missing, is not a JWK Set, or has no key that can be used.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        svid: jwk.Svid | None = None,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.path = Path(path)
        self.svid = svid
        self._clock = clock
        self.where = str(self.path)
        self._rate = Rate(clock)
        self._limits = rules.Limits()
        self._looked = self._tried = clock.monotonic()
        # The stamp comes before the content, so that a write in between shows at the next look.
        self._stamp = disk.stamp(self.path)
        keys = self._read()
        require(keys.keys, f"{self.path}: no key that can be used")
        require(not keys.misread, f"{self.path}: {rules.MISREAD}")
        self._cache = rules.Cache(keys=keys, asked=self._looked, fresh_until=math.inf)
        self.forked()
        after_fork(self)

    def forked(self) -> None:
        """Make the lock anew, which a thread of the parent may have held."""
        self._lock = threading.Lock()

    def key_set(self) -> KeySet:
        """Return the set in use, after a look at the file where the last one is a second ago.

        Raises:
            Unavailable: ``keys_unavailable``: the file could not be read for an hour.
        """
        # A look each second for the sake of known kids too, so that a revocation is noticed.
        now = self._clock.monotonic()
        if now - self._looked >= 1.0 and self._lock.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._lock.release()
        cache = self._cache
        keys = rules.usable(cache, now, self._limits)
        if keys is None:
            raise rules.unavailable(cache)
        return keys

    def refresh(self, kid: str, received: float, /) -> KeySet:
        """Look at the file again and return the set that is in use then (``KeySource``).

        Raises:
            Unavailable: ``key_pending``: the file cannot be read now, and the last good set lacks the kid;
                ``keys_unavailable``: it could not be read for an hour.
        """
        with self._lock:
            self._look()
        return rules.answer_on(self._cache, kid, self._clock.monotonic(), self._limits)

    def health(self) -> rules.Health:
        """Return whether the file can be read, and how old the set in use is, after a look at it."""
        with self._lock:
            self._look()
        return rules.health_of(
            self._cache,
            source=self.where,
            now=self._clock.monotonic(),
            limits=self._limits,
            counters={},
        )

    def _look(self) -> None:
        """Read the file again where it has changed, or could not be read a second ago; under the lock."""
        self._looked = now = self._clock.monotonic()
        stamp, before = disk.stamp(self.path), self._cache
        if before.failing_since is None and stamp == self._stamp:
            self._cache = replace(before, asked=now)
            return
        # A flood of unknown kids reads a file that stays unreadable once a second, and not once for each.
        if stamp == self._stamp and now - self._tried < 1.0:
            return

        self._stamp, self._tried = stamp, now
        try:
            keys = self._read()
            if not keys.misread:
                self._cache = replace(
                    before,
                    keys=keys,
                    asked=now,
                    fresh_until=math.inf,
                    failing_since=None,
                    failures=0,
                    failure=None,
                )
                self._tell(before, keys)
                return
            # Its keys count. Whom it has cut off by now is not known: that is a failure all the same.
            why = f"{self.path}: {rules.MISREAD}"
            before = replace(before, keys=keys.after(before.keys or keys))
        except ConfigurationError as error:
            why = str(error)

        begun = replace(rules.begin(before, now), fresh_until=now)
        self._cache, _ = rules.failed(begun, why, jitter=0)
        if self._rate.admits("keys.kept", (why,), {}):
            count = len(before.keys.keys) if before.keys is not None else 0
            emit("keys.kept", "%s; the last good set of %d keys stays in use", why, count)

    def _tell(self, before: rules.Cache, keys: KeySet) -> None:
        """Log that the file can be read again, and that it has no key any more."""
        if before.failing_since is not None:
            emit("keys.changed", "%s: it can be read again", self.path)
        if before.keys is not None and before.keys.keys and not keys.keys:
            level = logging.CRITICAL
            emit("keys.changed", "%s: %s", self.path, rules.EMPTIED, level=level)

    def _read(self) -> KeySet:
        raw = disk.read_bounded(self.path, jwk.MAX_DOCUMENT)
        keys = jwk.load_key_set(raw, name=str(self.path), svid=self.svid)
        # An empty set may be meant. A set in which no key can be used is a mistake.
        for line in keys.skipped:
            require(keys.keys, f"{self.path}: no key that can be used: {line}")
            emit("keys.skipped", "%s: skipped %s", self.path, line)
        return keys
