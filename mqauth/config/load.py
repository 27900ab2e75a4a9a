"""``mqauth.toml``: one file for everything the objects of this library take; paths are relative to it.

``load`` reads and checks the whole file; the objects are built when they are asked for. Secrets stand in
it by reference only: ``passphrase_env``, ``passphrase_file``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mqauth.audit.file import AuditFile, HeadFile
from mqauth.audit.misuse import Alert, Detector, Thresholds
from mqauth.audit.sinks import FloodGate, MisuseWatch
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.config.declaration import read, secret_of
from mqauth.config.settings import (
    AuditSettings,
    FileSettings,
    MisuseSettings,
    ProducerSettings,
    ReleaseSettings,
    ReplaySettings,
    SourceSettings,
)
from mqauth.config.toml_file import Table, read_toml
from mqauth.errors import ConfigurationError
from mqauth.judging.pipeline import Observer, Pipeline
from mqauth.judging.policy import Allow
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.keystore import ActiveKey, JWKSFile
from mqauth.keystore.disk.folder import read_pem
from mqauth.keystore.remote.jwks import JWKS, discover
from mqauth.letters.authorities import Authority, ReleaseAuthorities
from mqauth.replay.memory import MemoryReplayStore
from mqauth.replay.rules import ReplayStore
from mqauth.signer import Signer
from mqauth.wire.batch_settings import Batching
from mqauth.wire.keys import Key, KeySource

T = TypeVar("T")


def load(
    path: str | Path,
    *,
    observers: Iterable[Observer] = (),
    on_alert: Callable[[Alert], None] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Configuration:
    """Return what a configuration file says, checked as a whole.

    Args:
        path: the file, usually ``mqauth.toml``; at most 1 MiB.
        observers: given to the pipeline, ``[telemetry.observe]`` for example.
        on_alert: called with each misuse alert, ``telemetry.alert`` for example.
        clock: given to the objects that are built.

    Raises:
        ConfigurationError: one line that names the file and, where it has them, the table and key, or the
            line of a syntax error.
    """
    return Configuration(str(path), read_toml(Path(path))[1], clock, observers=observers, on_alert=on_alert)


class Configuration:
    """A checked configuration file; made by ``load``.

    Args:
        file: its path, as errors name it.
        members: what tomllib read.
        clock: given to the objects that are built.
        observers: given to the pipeline.
        on_alert: called with each misuse alert.

    Raises:
        ConfigurationError: an unknown table or key, a wrong type, or a contradiction.
    """

    def __init__(
        self,
        file: str,
        members: dict[str, Any],
        clock: Clock = SYSTEM_CLOCK,
        *,
        observers: Iterable[Observer] = (),
        on_alert: Callable[[Alert], None] | None = None,
    ) -> None:
        self.file = file
        self._clock = clock
        self._observers = tuple(observers)
        self._on_alert = on_alert
        self._found = read(FileSettings, Table(file=file, members=members))

    @cached_property
    def signer(self) -> Signer:
        """The signer of ``[producer]``.

        Raises:
            ConfigurationError: there is no ``[producer]``, or its key may not be used.
        """
        found = self._needed(self._found.producer, "producer")
        return Signer(key=_producer_key(found, self._clock), clock=self._clock, **found.arguments(Signer))

    @property
    def batching(self) -> Batching:
        """What ``[producer]`` says of batches: ``Producer(..., config.signer, **config.batching)``.

        Raises:
            ConfigurationError: there is no ``[producer]``.
        """
        found = self._needed(self._found.producer, "producer")
        return Batching(batch=found.batch, linger=found.linger)

    @cached_property
    def thresholds(self) -> Thresholds:
        """The thresholds of ``[misuse]``; issuers that vouch for all their subjects are among the authorities."""
        found = self._found.misuse or MisuseSettings()
        issuers = () if self._found.consumer is None else self._found.consumer.issuers
        vouching = {issuer.issuer for issuer in issuers if issuer.vouches}
        return Thresholds(**found.arguments(Thresholds) | {"authorities": found.authorities | vouching})

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline of ``[consumer]``; without ``[audit]`` it settles nothing, and wrappers refuse it.

        Raises:
            ConfigurationError: there is no ``[consumer]``, its keys cannot be had, or another process
                writes the audit file.
        """
        found = self._found.audit
        if found is None:
            return self._pipeline(audit=None, observers=self._observers)
        sink = audit_sink(found, self.thresholds, on_alert=self._on_alert, clock=self._clock)
        return self._pipeline(audit=sink, record=found.record, observers=self._observers)

    @cached_property
    def judge(self) -> Pipeline:
        """The pipeline of ``[consumer]`` for verdicts alone: no audit file is opened, nothing is settled.

        Raises:
            ConfigurationError: there is no ``[consumer]``, or its keys cannot be had.
        """
        return self._pipeline(audit=None)

    @property
    def dead_letters_name(self) -> str:
        """The dead-letter queue or topic of ``[dead_letters]``.

        Raises:
            ConfigurationError: there is no ``[dead_letters]``.
        """
        return self._needed(self._found.dead_letters, "dead_letters").name

    def _pipeline(self, **audit: Any) -> Pipeline:
        """Return a pipeline of ``[consumer]`` and ``[replay]``."""
        found = self._needed(self._found.consumer, "consumer")
        issuers = {
            issuer.issuer: Issuer(keys=_key_source(issuer, self._clock), **issuer.arguments(Issuer))
            for issuer in found.issuers
        }
        verifier = Verifier(keys=issuers, release=self._releases(found.leeway), **found.arguments(Verifier))
        return Pipeline(
            verifier=verifier, policy=Allow([rule.rule for rule in found.allow]), replay=self._store(),
            scope=found.scope, clock=self._clock, **audit,
        )  # fmt: skip

    def _releases(self, leeway: int) -> ReleaseAuthorities | None:
        """Return who may release dead letters, ``None`` where nobody may."""
        release = self._found.release or ReleaseSettings()
        authorities = {
            found.issuer: Authority(keys=_key_source(found, self._clock), **found.arguments(Authority))
            for found in release.authorities
        }
        return ReleaseAuthorities(authorities, leeway=leeway) if authorities else None

    def _store(self) -> ReplayStore:
        """Return the replay store; nothing is connected yet."""
        found = self._found.replay or ReplaySettings()
        if found.redis is not None:
            return _redis_store(found, found.redis, self._clock)
        return MemoryReplayStore(found.capacity, clock=self._clock)

    def _needed(self, found: T | None, name: str) -> T:
        """Return the settings of a table that must be there."""
        if found is None:
            raise ConfigurationError(f"{self.file}: [{name}]: required here, and missing")
        return found


def _producer_key(found: ProducerSettings, clock: Clock) -> Key | ActiveKey:
    """Return the key that signs, a folder's followed through rotation; it must speak for the subject."""
    passphrase = secret_of(found, "passphrase")
    with found.table.located("keys"):
        key = _signing_key(found.keys, passphrase, clock)
        now = key if isinstance(key, Key) else key.signing_key()
    if now.subjects is not None and found.subject not in now.subjects:
        raise found.table.refuse("subject", f"the key {now.kid} does not speak for it")
    return key


def _signing_key(keys: Path, passphrase: bytes | None, clock: Clock) -> Key | ActiveKey:
    """Return a folder's active key, or the key of a single PEM file."""
    if os.path.isdir(keys):
        return ActiveKey(keys, passphrase=passphrase, clock=clock)
    return read_pem(keys, passphrase)


def _key_source(found: SourceSettings, clock: Clock) -> KeySource:
    """Return the source of an issuer's keys; of a remote one nothing is fetched yet."""
    if found.file is not None:
        with found.table.located("file"):
            return JWKSFile(found.file, clock=clock)
    given = {"clock": clock, **found.arguments(JWKS)}
    with found.table.located("discovery" if found.jwks is None else "jwks"):
        return discover(found.issuer, **given) if found.jwks is None else JWKS(found.jwks, **given)


def _redis_store(found: ReplaySettings, url: str, clock: Clock) -> ReplayStore:
    """Return the replay store on Redis; nothing is connected yet, and it serves consumers of either colour."""
    try:
        from mqauth.stores.redis import EitherRedisReplayStore
    except ImportError as error:
        raise found.table.refuse("store", 'needs redis-py: install "mqauth[redis]"') from error
    with found.table.located("store"):
        return EitherRedisReplayStore(url, clock=clock)


def audit_sink(
    found: AuditSettings,
    thresholds: Thresholds,
    *,
    on_alert: Callable[[Alert], None] | None,
    clock: Clock,
) -> MisuseWatch:
    """Return the sinks of ``[audit]``, the file opened for this process alone.

    Args:
        found: the table.
        thresholds: of ``[misuse]``.
        on_alert: called with each alert.
        clock: given to what needs one.

    Raises:
        ConfigurationError: the file is another process's or no audit file, or the heads' key cannot be used.
    """
    heads = _heads(found, clock)
    with found.table.located("file"):
        file = AuditFile(found.file, fsync=not found.unsafe_no_fsync, max_bytes=found.max_bytes, heads=heads)
    return MisuseWatch(FloodGate(file, found.flood_after), Detector(thresholds), on_alert=on_alert, clock=clock)


def _heads(found: AuditSettings, clock: Clock) -> HeadFile | None:
    """Return where heads are signed, ``None`` where they are not."""
    if found.heads is None or found.heads_key is None:
        return None
    passphrase = secret_of(found, "heads_passphrase")
    with found.table.located("heads_key"):
        key = Key.load(found.heads_key, passphrase=passphrase)
    return HeadFile(found.heads, key, every=found.heads_every, seconds=found.heads_seconds, clock=clock)
