"""A keystore folder: one PKCS#8 PEM a key, named by its kid, and ``keyset.json`` with every key's state.

Every change is made under the folder's lock and written whole; readers take no lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import ConfigurationError
from mqauth.keystore.disk import files, ring
from mqauth.keystore.disk.ring import KeyRing, RingKey
from mqauth.wire.claims import is_name
from mqauth.wire.keys import Key, KeySet

KEYSET: Final = "keyset.json"
_MAX_KEYSET: Final = 4 * 1024 * 1024
_MAX_PEM: Final = 64 * 1024
Change = Callable[[KeyRing, int], KeyRing]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keystore:
    """A producer's keys in a folder.

    Args:
        folder: made by the first ``create``.
        passphrase: what the PEM files are encrypted with, ``None`` for not at all.
        clock: gives the times of states.
    """

    folder: Path
    passphrase: bytes | None = None
    clock: Clock = SYSTEM_CLOCK

    def __repr__(self) -> str:
        return f"Keystore({str(self.folder)!r})"

    def ring(self) -> KeyRing:
        """Return the keys and their states as they stand on disk.

        Raises:
            ConfigurationError: the folder is no keystore.
        """
        path = self.folder / KEYSET
        if os.path.isdir(self.folder) and files.is_missing(path):
            raise ConfigurationError(f"{self.folder}: no keystore (no {KEYSET}): run mqauth keys new")
        return ring.load(files.read_bounded(path, _MAX_KEYSET), name=str(path))

    def create(
        self,
        *,
        algorithm: str = "EdDSA",
        subjects: Iterable[str] | None = None,
        publish_delay: int | None = None,
        pending: bool = False,
    ) -> RingKey:
        """Make a key, write it, and return it with its state.

        Args:
            algorithm: one of ``mqauth.wire.keys.ALGORITHMS``.
            subjects: the producers it may speak for; by default those of the folder's newest key, so that a
                rotation changes nothing for consumers.
            publish_delay: seconds new keys stay pending, kept for later ones too. Of a lower one than before
                consumers have to hear first, so this key waits for as long as they were told last.
            pending: do not let a first key sign at once.

        Raises:
            ConfigurationError: a bad argument, another passphrase than the other keys', or the disk refused.
        """
        names = None if subjects is None else _subjects(subjects)
        key = Key.generate(algorithm)
        files.make_folder(self.folder)
        with files.locked(self.folder):
            before = self._ring_or_empty()
            told = before.publish_delay if before.keys else 0
            if publish_delay is not None:
                before = replace(before, publish_delay=publish_delay)
            if names is None and before.keys:
                names = before.keys[-1].key.subjects
            after = ring.add(before, replace(key, subjects=names), self._now(), pending=pending, told=told)
            self._check_passphrase(before)
            files.write_whole(self._pem(key.kid), key.to_pem(self.passphrase))
            files.write_whole(self.folder / KEYSET, ring.dump(after))
        return after.get(key.kid)

    def change(self, change: Change) -> KeyRing:
        """Replace the ring by what a pure function of ring and now makes of it, and return that.

        The PEM of a key that is gone from the ring is removed.

        Raises:
            ConfigurationError: the folder is no keystore, or the function refuses.
        """
        self.ring()  # before the lock file is made in what may be no keystore
        with files.locked(self.folder):
            before = self.ring()
            after = change(before, self._now())
            if after != before:
                files.write_whole(self.folder / KEYSET, ring.dump(after))
            for kid in {key.kid for key in before.keys} - {key.kid for key in after.keys}:
                self._pem(kid).unlink(missing_ok=True)
        return after

    def signing_key(self) -> Key:
        """Return the active key with its private half.

        Raises:
            ConfigurationError: no key is active, or its PEM is missing, open to others, or another key's.
        """
        keys = self.ring()
        if keys.active is None:
            raise ConfigurationError(self.no_active_key(keys))
        return self.private_key(keys.active)

    def private_key(self, found: RingKey) -> Key:
        """Return the private key of an entry, and make sure that it is the one it is listed as.

        Raises:
            ConfigurationError: its PEM is missing, open to others, or another key's.
        """
        path = self._pem(found.kid)
        key = read_pem(path, self.passphrase, found.key.algorithm)
        if key.kid != found.kid:
            raise ConfigurationError(f"{path}: holds another key than its name says")
        return replace(key, subjects=found.key.subjects)

    def stamp(self) -> files.Stamp | None:
        """Return what changes with the folder's keys and their states, at the cost of one ``stat``."""
        return files.stamp(self.folder / KEYSET)

    def no_active_key(self, keys: KeyRing) -> str:
        """Say that no key is active, and what to do."""
        return f"{self.folder}: no active key: {_advice(keys, self._now())}"

    def public_keys(self) -> KeySet:
        """Return the public side, every key with its subjects and its end.

        Raises:
            ConfigurationError: the folder is no keystore.
        """
        return KeySet(key.published for key in self.ring().keys)

    def _check_passphrase(self, keys: KeyRing) -> None:
        """Refuse a second passphrase in one folder: its user can name only one."""
        if keys.active is not None:
            self.private_key(keys.active)

    def _ring_or_empty(self) -> KeyRing:
        """Return the ring, an empty one where the folder is new."""
        return KeyRing() if files.is_missing(self.folder / KEYSET) else self.ring()

    def _pem(self, kid: str) -> Path:
        """Return where a key's PEM is; a kid is a thumbprint, so it has no slash."""
        return self.folder / f"{kid}.pem"

    def _now(self) -> int:
        """Return UTC seconds."""
        return int(self.clock.now())


def signing_key(path: Path, *, passphrase: bytes | None = None) -> Key:
    """Return the key that signs: a keystore folder's active one, or that of a single PEM file.

    Raises:
        ConfigurationError: there is none, or it may not be used.
    """
    if os.path.isdir(path):  # unlike is_dir, False where we may not look
        return Keystore(folder=path, passphrase=passphrase).signing_key()
    return read_pem(path, passphrase)


def public_keys(path: Path, *, passphrase: bytes | None = None) -> KeySet:
    """Return the public side of a keystore folder, or of a single PEM file.

    Raises:
        ConfigurationError: neither, or the PEM may not be used.
    """
    if os.path.isdir(path):  # unlike is_dir, False where we may not look
        return Keystore(folder=path, passphrase=passphrase).public_keys()
    return KeySet([read_pem(path, passphrase)])


def read_pem(path: Path, passphrase: bytes | None = None, algorithm: str | None = None) -> Key:
    """Return the private key of a PEM file that only its owner can read.

    Raises:
        ConfigurationError: the file is missing, open to others, no such key, or wants another passphrase.
    """
    raw = files.read_bounded(path, _MAX_PEM, private=True)
    return Key.from_pem(raw, passphrase=passphrase, algorithm=algorithm, name=str(path))


def _subjects(subjects: Iterable[str]) -> frozenset[str]:
    """Return subjects, each a name."""
    names = frozenset(subjects)
    if not names or not all(is_name(name) for name in names):
        raise ConfigurationError("a subject is text of 1 to 256 characters")
    return names


def _advice(keys: KeyRing, now: int) -> str:
    """Return what to do where no key is active."""
    waits = [key.ready - now for key in keys.keys if key.state is ring.State.PENDING]
    if not waits:
        return "run mqauth keys new"
    return "run mqauth keys rotate" + (f" in {min(waits)} s" if min(waits) > 0 else "")
