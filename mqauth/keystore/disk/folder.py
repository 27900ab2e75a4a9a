"""A keystore folder: a PEM file for each key, and ``keyset.json`` with the states of all keys.

A PEM file (PKCS#8) has the kid of its key as its name. A key that an HSM or a service holds has a URI in
``keyset.json`` in place of a file. Every change is made under the folder's lock, and written as a whole; readers
need no lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from mqauth.audit import disk
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.errors import file_errors, require
from mqauth.keystore.disk import ring
from mqauth.keystore.disk.ring import KeyRing, RingKey
from mqauth.wire import claims, identity, jwk, strict_json
from mqauth.wire.keys import NO_CUTOFFS, Cutoff, Key, KeySet, SigningKey

KEYSET: Final = "keyset.json"
CUTOFFS: Final = "cutoffs.json"
"""The subjects that an authority has cut off: a JWK Set without keys, so that one reader reads both.

An entry stays until the last identity that it refuses has ended, and as long again as a retired key stays
published: a consumer that judges by append time may read a message that waited so long.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keystore:
    """The keys of a producer in a folder.

    Args:
        folder: the folder; the first ``create`` makes it.
        passphrase: the passphrase of the PEM files, ``None`` where they are not encrypted.
        clock: gives the times of states.
    """

    folder: Path
    passphrase: bytes | None = None
    clock: Clock = SYSTEM_CLOCK

    def __repr__(self) -> str:
        return f"Keystore({str(self.folder)!r})"

    def ring(self) -> KeyRing:
        """Return the keys and their states as they are on the disk.

        Raises:
            ConfigurationError: the folder is not a keystore.
        """
        path = self.folder / KEYSET
        require(
            not disk.is_missing(path),
            f"{self.folder}: no keystore (no {KEYSET}): mqauth keys new --dir {self.folder} makes one",
        )
        return ring.load(disk.read_bounded(path, 4 * 1024 * 1024), name=str(path))

    def create(
        self,
        *,
        algorithm: str = "EdDSA",
        subjects: Iterable[str] | None = None,
        publish_delay: int | None = None,
        pending: bool = False,
        overlap: int | None = None,
    ) -> RingKey:
        """Make a key, write it, and return it with its state.

        Args:
            algorithm: one of ``mqauth.wire.keys.ALGORITHMS``.
            subjects: the producers it may speak for. By default those of the newest key in the folder, so that a
                rotation changes nothing for consumers.
            publish_delay: seconds for which new keys stay pending, also those made later. If it is lower than
                before, this key still waits for as long as consumers were told last.
            pending: do not let a first key sign at once.
            overlap: seconds by which the end of each retired key comes later, from now on.

        Raises:
            ConfigurationError: a bad argument, another passphrase than that of the other keys, or an error of
                the disk.
        """
        names = None if subjects is None else _subjects(subjects)
        key = Key.generate(algorithm)
        return self._add(
            key,
            names,
            {"publish_delay": publish_delay, "overlap": overlap},
            pending=pending,
        )

    def adopt(
        self,
        uri: str,
        *,
        subjects: Iterable[str] | None = None,
        publish_delay: int | None = None,
        overlap: int | None = None,
    ) -> RingKey:
        """Enter a key that an HSM or a service holds, as pending, and return it with its state.

        Its public half is read from there, and it must sign something once. The private half stays where it is.

        Args:
            uri: names the key, as ``pkcs11:token=prod;object=orders-1`` does (RFC 7512). An alias of AWS KMS is
                replaced by the key that it stands for now.
            subjects: as for ``create``.
            publish_delay: as for ``create``.
            overlap: as for ``create``.

        Raises:
            ConfigurationError: a bad argument, the key is not as the URI says or stands in the keystore already,
                or an error of the disk.
            Unavailable: ``keys_unavailable``: what holds the key is out of reach.
        """
        names = None if subjects is None else _subjects(subjects)
        delays = {"publish_delay": publish_delay, "overlap": overlap}
        from mqauth.keystore.reference.key import adopted

        return self._add(adopted(uri), names, delays, pending=True, uri=uri)

    def _add(
        self,
        key: Key,
        names: frozenset[str] | None,
        delays: Mapping[str, int | None],
        *,
        pending: bool,
        uri: str | None = None,
    ) -> RingKey:
        """Enter a key, and write its private half if it has one."""
        with file_errors(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with disk.locked(self.folder):
            before = KeyRing() if disk.is_missing(self.folder / KEYSET) else self.ring()
            announced = before.publish_delay if before.keys else 0
            given: dict[str, Any] = {
                name: value for name, value in delays.items() if value is not None
            }
            before = replace(before, **given)
            if names is None and before.keys:
                names = before.keys[-1].key.subjects
            after = ring.add(
                before,
                replace(key, subjects=names),
                self._now(),
                pending=pending,
                announced=announced,
                uri=uri,
            )
            # The user of the folder can name only one passphrase, so the active key must open with it, too.
            if before.active is not None and uri is None:
                self.private_key(before.active)
            # The key first: a keyset must not name a key that is not there.
            if uri is None:
                disk.write_whole(self._pem(key.kid), key.to_pem(self.passphrase))
            disk.write_whole(self.folder / KEYSET, ring.dump(after))
        return after.get(key.kid)

    def change(self, change: Callable[[KeyRing, int], KeyRing]) -> KeyRing:
        """Replace the ring by the result of a pure function of the ring and the present time, and return it.

        The PEM file of a key that is no longer in the ring is removed.

        Raises:
            ConfigurationError: the folder is not a keystore, or the function refuses.
        """
        # Read once before the lock, which would leave its file in a folder that is not a keystore.
        self.ring()
        with disk.locked(self.folder):
            before = self.ring()
            after = change(before, self._now())
            if after != before:
                disk.write_whole(self.folder / KEYSET, ring.dump(after))
            for kid in {key.kid for key in before.keys} - {key.kid for key in after.keys}:
                self._pem(kid).unlink(missing_ok=True)
        return after

    def signing_key(self) -> Key | SigningKey:
        """Return the active key with its private half, or what signs with it where that is elsewhere.

        Raises:
            ConfigurationError: no key is active, or ``private_key`` refuses it.
        """
        keys = self.ring()
        return self.private_key(require(keys.active, self.no_active_key(keys)))

    def private_key(self, ring_key: RingKey) -> Key | SigningKey:
        """Return the private key of an entry of the ring, or what signs with it where that is elsewhere.

        Raises:
            ConfigurationError: its PEM file is missing, is open to others, or holds another key; its URI cannot be
                used, or others may write it.
        """
        if ring_key.uri is not None:
            # A URI may name a library, which is loaded into this process.
            disk.refuse_writable(self.folder / KEYSET)
            from mqauth.keystore.reference.key import ReferenceKey

            return ReferenceKey(ring_key.key, ring_key.uri)
        path = self._pem(ring_key.kid)
        key = read_pem(path, self.passphrase, ring_key.key.algorithm)
        require(
            key.kid == ring_key.kid,
            f"{path}: holds another key than its name says, {key.kid}",
        )
        return replace(key, subjects=ring_key.key.subjects)

    def stamp(self) -> disk.Stamp | None:
        """Return the stamp of the folder's keys and states, at the cost of one ``stat``."""
        return disk.stamp(self.folder / KEYSET)

    def cutoffs_stamp(self) -> disk.Stamp | None:
        """Return the stamp of the subjects that are cut off, ``None`` where none is."""
        return disk.stamp(self.folder / CUTOFFS)

    def no_active_key(self, keys: KeyRing) -> str:
        """Return the message that no key is active, with the command that helps."""
        waits = [
            key.ready - self._now()
            for key in keys.keys
            if key.state is ring.State.PENDING
        ]
        advice = "rotate" if waits else "new"
        soon = f" in {min(waits)} s" if waits and min(waits) > 0 else ""
        return f"{self.folder}: no active key: run mqauth keys {advice}{soon}"

    def public_keys(self) -> KeySet:
        """Return the public halves of all keys, with their subjects and ends.

        Raises:
            ConfigurationError: the folder is not a keystore.
        """
        return KeySet(self.ring().published, (), self.cutoffs())

    def cutoffs(self) -> Mapping[str, Cutoff]:
        """Return the subjects that an authority has cut off, as they are on the disk.

        Raises:
            ConfigurationError: they cannot be read.
        """
        path = self.folder / CUTOFFS
        if disk.is_missing(path):
            return NO_CUTOFFS
        key_set = jwk.load_key_set(
            disk.read_bounded(path, jwk.MAX_DOCUMENT), name=str(path)
        )
        require(not key_set.misread, f"{path}: mqauth_cutoff cannot be read")
        return key_set.cutoffs

    def cut_off(self, subject: str, *, reason: str, before: int | None = None) -> Cutoff:
        """Refuse all identities of a subject that were issued before a moment, and return what is published.

        Args:
            subject: whose, an identifier of a workload.
            reason: for the readers of the JWK Set.
            before: UTC seconds; by default all that were issued up to now.

        Raises:
            ConfigurationError: the folder is not a keystore, the subject or the reason is out of its limits, or
                there is no room for another one.
        """
        now = self._now()
        # A WIT of this very second is cut off too, since nobody can tell on which side of it a thief asked.
        cutoff = Cutoff(before=now + 1 if before is None else before, reason=reason)
        with disk.locked(self.folder):
            keys = self.ring()
            require(
                identity.trust_domain_of(subject),
                "a subject is wimse:// or spiffe://, a trust domain, and a path",
            )
            require(
                claims.is_name(reason, 0),
                "a reason is one line of at most 256 characters",
            )
            # Entries that refuse nothing any more go.
            oldest = now - keys.grace - keys.retain
            entries = {
                name: earlier
                for name, earlier in self.cutoffs().items()
                if earlier.before > oldest
            }
            # An earlier moment would take back part of what was cut off.
            entries[subject] = max(
                cutoff, entries.get(subject, cutoff), key=lambda each: each.before
            )
            raw = strict_json.dumps(jwk.dump_key_set(KeySet((), (), entries)))
            require(
                len(entries) <= jwk.MAX_CUTOFFS and len(raw) <= jwk.MAX_DOCUMENT // 2,
                f"no room for more than {jwk.MAX_CUTOFFS} subjects that are cut off: revoke the authority's key",
            )
            disk.write_whole(self.folder / CUTOFFS, raw + b"\n")
        return cutoff

    def _pem(self, kid: str) -> Path:
        return self.folder / f"{kid}.pem"

    def _now(self) -> int:
        return int(self.clock.now())


def signing_key(path: Path, *, passphrase: bytes | None = None) -> Key | SigningKey:
    """Return the active key of a keystore folder, as ``Keystore`` does, or the key of a single PEM file.

    Raises:
        ConfigurationError: there is none, or it may not be used.
    """
    # Path.is_dir raises for a path that we may not look at; reading such a path gives the better error.
    if os.path.isdir(path):
        return Keystore(folder=path, passphrase=passphrase).signing_key()
    return read_pem(path, passphrase)


def public_keys(path: Path, *, passphrase: bytes | None = None) -> KeySet:
    """Return the public keys of a keystore folder, or of a single PEM file.

    Raises:
        ConfigurationError: the path is neither, or the PEM file may not be used.
    """
    if os.path.isdir(path):
        return Keystore(folder=path, passphrase=passphrase).public_keys()
    return KeySet([read_pem(path, passphrase)])


def read_pem(
    path: Path, passphrase: bytes | None = None, algorithm: str | None = None
) -> Key:
    """Return the private key of a PEM file that only its owner can read.

    Raises:
        ConfigurationError: the file is missing, is open to others, holds no such key, or needs another
            passphrase.
    """
    return Key.from_pem(
        disk.read_bounded(path, 64 * 1024, private=True),
        passphrase=passphrase,
        algorithm=algorithm,
        name=str(path),
    )


def _subjects(subjects: Iterable[str]) -> frozenset[str]:
    names = frozenset(subjects)
    require(
        names and all(claims.is_name(name) for name in names),
        "a subject is text of 1 to 256 characters, and at least one is needed",
    )
    return names
