"""A producer's private keys: who can read them, how strong and how old they are, and what comes after them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mqauth.check import codes
from mqauth.check.findings import Finding
from mqauth.check.jwks import DAY, ring
from mqauth.check.target import Rule, Target, mode, others
from mqauth.config.settings import ProducerSettings
from mqauth.config.toml_file import read_passphrase
from mqauth.errors import ConfigurationError
from mqauth.keystore import State
from mqauth.keystore.disk import files
from mqauth.wire.keys import MIN_RSA_BITS

KEYS: Final = ("producer", "keys")
FRESH: Final = 300
"""Seconds for which a consumer's set is fresh by default."""
_MAX_PEM: Final = 64 * 1024
_ENCRYPTED: Final = (b"-----BEGIN ENCRYPTED PRIVATE KEY-----", b"Proc-Type: 4,ENCRYPTED")
_WRITE: Final = 0o022


def exposed(target: Target) -> Iterator[Finding]:
    """Keys and folders that are open to others."""
    for path in _pems(target):
        if others(path):
            said = f"{target.shown(path)} is open to others (mode {mode(path)})"
            yield codes.KEY_READABLE.at(KEYS, said)
    folder = _folder(target)
    if folder is not None and others(folder):
        code = codes.KEYSTORE_WRITABLE if others(folder) & _WRITE else codes.KEYSTORE_READABLE
        yield code.at(KEYS, f"{target.shown(folder)} is open to others (mode {mode(folder)})")


def weak(target: Target) -> Iterator[Finding]:
    """RSA keys that are too short, where they can be opened."""
    passphrase = None if target.producer is None else _passphrase(target.producer)
    for path in _pems(target):
        bits = _rsa_bits(_raw(path), passphrase)
        if bits is not None and bits < MIN_RSA_BITS:
            yield codes.KEY_WEAK.at(KEYS, f"{target.shown(path)}: RSA of {bits} bits")


def plain(target: Target) -> Iterator[Finding]:
    """Keys on disk without a passphrase."""
    found = [path for path in _pems(target) if b"PRIVATE KEY-----" in _raw(path) and not _is_encrypted(_raw(path))]
    if found:
        said = f"{len(found)} of {len(_pems(target))} PEM files under {KEYS[1]} without a passphrase"
        yield codes.KEY_PLAIN.at(KEYS, said)


def passphrases(target: Target) -> Iterator[Finding]:
    """A passphrase that cannot be had, or lies where the keys lie."""
    producer = target.producer
    if producer is None:
        return
    key = "passphrase_env" if producer.passphrase_env is not None else "passphrase_file"
    try:
        read_passphrase(env=producer.passphrase_env, file=producer.passphrase_file)
    except ConfigurationError as error:
        yield codes.PASSPHRASE_UNAVAILABLE.at(("producer", key), str(error))
    folder = producer.keys if os.path.isdir(producer.keys) else producer.keys.parent
    if producer.passphrase_file is not None and producer.passphrase_file.absolute().parent == folder.absolute():
        said = f"{target.shown(producer.passphrase_file)} lies beside the keys"
        yield codes.PASSPHRASE_BESIDE_KEYS.at(("producer", "passphrase_file"), said)


def age(target: Target) -> Iterator[Finding]:
    """Keys older than they should be, and no next one."""
    found = None if target.producer is None else ring(target.producer.keys)
    if target.producer is not None and os.path.isfile(target.producer.keys):
        yield codes.KEY_ALONE.at(KEYS, f"{target.shown(target.producer.keys)} is a single PEM file")
    if found is None or found.active is None or found.active.activated is None:
        return
    used, rotation = int(target.now) - found.active.activated, target.options.rotation
    if used > rotation:
        said = f"the key {found.active.kid} has signed for {_days(used)}, longer than {_days(rotation)}"
        yield codes.KEY_OVERDUE.at(KEYS, said)
    waiting = [key for key in found.keys if key.state is State.PENDING]
    if not waiting and used > rotation - max(found.publish_delay, rotation // 10):
        said = f"the key {found.active.kid} is due in {_days(max(rotation - used, 0))}, and no other is pending"
        yield codes.KEY_NO_NEXT.at(KEYS, said)
    if any(key.ready + DAY < target.now for key in waiting):
        yield codes.ROTATION_STALLED.at(KEYS, "a pending key has been ready for more than a day")


def delays(target: Target) -> Iterator[Finding]:
    """Keys that sign too soon after they are published, or go too soon after they are retired."""
    producer = target.producer
    found = None if producer is None else ring(producer.keys)
    if producer is None or found is None:
        return
    if found.publish_delay < FRESH:
        said = f"the keystore's publish_delay is {found.publish_delay} s, under {FRESH} s"
        yield codes.PUBLISH_DELAY_SHORT.at(KEYS, said)
    waits = 0 if target.consumer is None else target.consumer.max_queue_age or 0
    if found.retain < producer.lifetime + waits:
        said = f"the keystore's retain is {found.retain} s, under {producer.lifetime + waits} s"
        yield codes.RETAIN_SHORT.at(KEYS, said)


def is_open(producer: ProducerSettings) -> bool:
    """Tell whether the keys need no passphrase, or theirs can be had here."""
    named = producer.passphrase_env is not None or producer.passphrase_file is not None
    return not named or _passphrase(producer) is not None


def _folder(target: Target) -> Path | None:
    """Return the keystore folder, if it is one."""
    return target.producer.keys if target.producer is not None and os.path.isdir(target.producer.keys) else None


def _pems(target: Target) -> list[Path]:
    """Return the producer's PEM files."""
    if target.producer is None:
        return []
    keys = target.producer.keys
    return sorted(keys.glob("*.pem")) if os.path.isdir(keys) else [keys] if os.path.isfile(keys) else []


def _raw(path: Path) -> bytes:
    """Return a PEM file's bytes; none where it cannot be read."""
    try:
        return files.read_bounded(path, _MAX_PEM)
    except ConfigurationError:
        return b""


def _is_encrypted(raw: bytes) -> bool:
    """Tell whether a PEM wants a passphrase."""
    return any(mark in raw for mark in _ENCRYPTED)


def _rsa_bits(raw: bytes, passphrase: bytes | None) -> int | None:
    """Return the size of an RSA key, ``None`` where it is none or cannot be opened."""
    try:
        key = serialization.load_pem_private_key(raw, passphrase if _is_encrypted(raw) else None)
    except (TypeError, ValueError, UnsupportedAlgorithm):
        return None
    return key.key_size if isinstance(key, rsa.RSAPrivateKey) else None


def _passphrase(producer: ProducerSettings) -> bytes | None:
    """Return the passphrase, ``None`` where it cannot be had."""
    try:
        return read_passphrase(env=producer.passphrase_env, file=producer.passphrase_file)
    except ConfigurationError:
        return None


def _days(seconds: int) -> str:
    """Return seconds for people."""
    return f"{seconds // DAY} d" if seconds >= DAY else f"{seconds} s"


RULES: Final[tuple[Rule, ...]] = (exposed, weak, plain, passphrases, age, delays)
