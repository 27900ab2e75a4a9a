"""The objects that ``mqauth.toml`` describes; paths in the file are relative to it.

``load`` reads and checks the whole file. An object is built when it is first asked for. The file holds no secret:
it names an environment variable or a file that does (``passphrase_env``, ``passphrase_file``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mqauth.audit.file import AuditFile, HeadFile
from mqauth.audit.misuse import Alert, Detector, Thresholds
from mqauth.audit.rollout_watch import last_rollout
from mqauth.audit.sinks import FloodGate, MisuseWatch
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.config.declaration import read
from mqauth.config.issuer_settings import IssuerSettings, SourceSettings
from mqauth.config.settings import (
    AuditSettings,
    FileSettings,
    MisuseSettings,
    ProducerSettings,
    ReleaseSettings,
    ReplaySettings,
)
from mqauth.config.toml_file import Table, read_toml
from mqauth.errors import require
from mqauth.judging.pipeline import Observer, Pipeline
from mqauth.judging.policy import Allow
from mqauth.judging.rollout import Rollout
from mqauth.judging.trust_domain import TrustDomain
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.keystore import ActiveKey, JWKSFile
from mqauth.keystore.disk.folder import read_pem
from mqauth.keystore.remote.jwks import JWKS, discover
from mqauth.letters.authorities import Authority, ReleaseAuthorities
from mqauth.replay.memory import MemoryReplayStore
from mqauth.replay.rules import ReplayStore
from mqauth.signer import Signer
from mqauth.wire.batch import Batching
from mqauth.wire.keys import Key, KeySource

T = TypeVar("T")


def load(
    path: str | Path,
    *,
    observers: Iterable[Observer] = (),
    on_alert: Callable[[Alert], None] | None = None,
    clock: Clock = SYSTEM_CLOCK,
) -> Configuration:
    """Read a configuration file and check it as a whole.

    Args:
        path: the file, usually ``mqauth.toml``; at most 1 MiB.
        observers: the observers of the pipeline, such as ``telemetry.observe``.
        on_alert: called with each misuse alert; ``telemetry.alert``, for example.
        clock: the clock of the objects that are built.

    Raises:
        ConfigurationError: one line that names the file and, where there is one, the table and key, or the line
            of a syntax error.
    """
    return Configuration(str(path), read_toml(Path(path))[1], clock, observers=observers, on_alert=on_alert)


class Configuration:
    """A checked configuration file, made by ``load``.

    Args:
        file: its path, as errors name it.
        members: the tables that tomllib read.
        clock: the clock of the objects that are built.
        observers: the observers of the pipeline.
        on_alert: called with each misuse alert.

    Raises:
        ConfigurationError: an unknown table or key, a wrong type or value, or a contradiction.
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
        self._settings = read(FileSettings, Table(file=file, members=members))

    @cached_property
    def signer(self) -> Signer:
        """The signer of ``[producer]``.

        Raises:
            ConfigurationError: there is no ``[producer]``, or its key may not be used.
        """
        found = self._required(self._settings.producer, "producer")
        return Signer(key=_producer_key(found, self._clock), clock=self._clock, **found.arguments(Signer))

    @property
    def batching(self) -> Batching:
        """The batch settings of ``[producer]``, for ``Producer(..., config.signer, **config.batching)``.

        Raises:
            ConfigurationError: there is no ``[producer]``.
        """
        found = self._required(self._settings.producer, "producer")
        return Batching(batch=found.batch, linger=found.linger)

    @cached_property
    def thresholds(self) -> Thresholds:
        """The thresholds of ``[misuse]``; the authorities include every issuer with ``vouches``."""
        found = self._settings.misuse or MisuseSettings()
        issuers = () if self._settings.consumer is None else self._settings.consumer.issuers
        vouching = {each.issuer for each in issuers if each.vouches or each.trust_domain is not None}
        return Thresholds(**found.arguments(Thresholds) | {"authorities": found.authorities | vouching})

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline of ``[consumer]``. Without ``[audit]`` it cannot settle messages, and wrappers refuse it.

        Raises:
            ConfigurationError: there is no ``[consumer]``, its keys cannot be read, or another process writes
                the audit file.
        """
        found = self._settings.audit
        audit: dict[str, Any] = (
            {"audit": None} if found is None else {"audit": self._audit_sink(found), "record": found.record}
        )
        return self._pipeline(observers=self._observers, rollout=self.rollout, **audit)

    @cached_property
    def rollout(self) -> Rollout:
        """The rungs of ``[[rollout]]`` and the exemptions of ``[[consumer.unsigned]]``."""
        consumer = self._settings.consumer
        unsigned = () if consumer is None else consumer.unsigned
        return Rollout([found.entry for found in self._settings.rollout], [found.exemption for found in unsigned])

    @cached_property
    def judge(self) -> Pipeline:
        """The pipeline of ``[consumer]`` for verdicts alone: it opens no audit file and settles nothing.

        It judges at ``enforce``, whatever ``[[rollout]]`` says.

        Raises:
            ConfigurationError: there is no ``[consumer]``, or its keys cannot be read.
        """
        return self._pipeline(audit=None)

    @cached_property
    def trial(self) -> Pipeline:
        """The pipeline of ``[consumer]`` with the rungs of ``[[rollout]]``, to be tried; it settles nothing.

        Raises:
            ConfigurationError: there is no ``[consumer]``, or its keys cannot be read.
        """
        return self._pipeline(audit=None, rollout=self.rollout)

    @property
    def dead_letters_name(self) -> str:
        """The dead-letter queue or topic of ``[dead_letters]``.

        Raises:
            ConfigurationError: there is no ``[dead_letters]``.
        """
        return self._required(self._settings.dead_letters, "dead_letters").name

    def _pipeline(self, **more: Any) -> Pipeline:
        found = self._required(self._settings.consumer, "consumer")
        issuers = {issuer.issuer: _issuer(issuer, self._clock) for issuer in found.issuers}
        settings = found.arguments(Verifier) | {"accept_as": [each.alias for each in found.accept_as]}
        verifier = Verifier(keys=issuers, release=self._releases(found.leeway), **settings)
        return Pipeline(
            verifier=verifier, policy=Allow([rule.rule for rule in found.allow]), replay=self._store(),
            scope=found.scope, exception_messages=found.exception_messages, self_test=found.self_test,
            clock=self._clock, **more,
        )  # fmt: skip

    def _releases(self, leeway: int) -> ReleaseAuthorities | None:
        release = self._settings.release or ReleaseSettings()
        authorities = {
            found.issuer: Authority(keys=_key_source(found, self._clock), **found.arguments(Authority))
            for found in release.authorities
        }
        return ReleaseAuthorities(authorities, leeway=leeway) if authorities else None

    def _store(self) -> ReplayStore:
        """Return the replay store; a store on Redis connects with its first claim."""
        found = self._settings.replay or ReplaySettings()
        if found.redis is None:
            return MemoryReplayStore(found.capacity, clock=self._clock)
        try:
            from mqauth.stores.redis import EitherRedisReplayStore
        except ImportError as error:
            raise found.table.refuse("store", 'needs redis-py: install "mqauth[redis]"') from error
        with found.table.located("store"):
            return EitherRedisReplayStore(found.redis, clock=self._clock)

    def _audit_sink(self, found: AuditSettings) -> MisuseWatch:
        heads = self._heads(found)
        scope = None if self._settings.consumer is None else self._settings.consumer.scope
        if scope is None and "{scope}" in str(found.file):
            raise found.table.refuse("file", "{scope} needs [consumer] scope")
        with found.table.located("file"):
            path = Path(str(found.file).replace("{scope}", (scope or "").replace("/", "_")))
            file = AuditFile(path, fsync=not found.unsafe_no_fsync, max_bytes=found.max_bytes, heads=heads)
        # The watch stands before the flood gate: a detector has to count the records that the gate sums up.
        gate = FloodGate(file, found.flood_after)
        detector = Detector(self.thresholds)
        before = last_rollout(found.file) if self.rollout else None
        # A rung that was lowered since the last start is an alert.
        if before is not None:
            detector.observe(before)
        return MisuseWatch(gate, detector, on_alert=self._on_alert, clock=self._clock)

    def _heads(self, found: AuditSettings) -> HeadFile | None:
        if found.heads is None or found.heads_key is None:
            return None
        passphrase = found.read_secret("heads_passphrase")
        with found.table.located("heads_key"):
            key = Key.load(found.heads_key, passphrase=passphrase)
        return HeadFile(found.heads, key, every=found.heads_every, seconds=found.heads_seconds, clock=self._clock)

    def _required(self, found: T | None, name: str) -> T:
        return require(found, f"{self.file}: [{name}]: required here, and missing")


def _producer_key(found: ProducerSettings, clock: Clock) -> Key | ActiveKey:
    """Return the key of a PEM file, or the active key of a folder; it must be able to speak for the subject."""
    passphrase = found.read_secret("passphrase")
    with found.table.located("keys"):
        # Path.is_dir raises for a path that we may not look at; reading such a path gives the better error.
        if os.path.isdir(found.keys):
            key: Key | ActiveKey = ActiveKey(found.keys, passphrase=passphrase, clock=clock)
        else:
            key = read_pem(found.keys, passphrase)
        now = key if isinstance(key, Key) else key.signing_key()
    subjects = getattr(now, "subjects", None)
    if subjects is not None and found.subject not in subjects:
        raise found.table.refuse("subject", f"the key {now.kid} does not speak for it")
    return key


def _issuer(found: IssuerSettings, clock: Clock) -> Issuer | TrustDomain:
    keys = _key_source(found, clock)
    if found.trust_domain is None:
        return Issuer(keys=keys, **found.arguments(Issuer))
    return TrustDomain(keys=keys, **found.arguments(TrustDomain))


def _key_source(found: SourceSettings, clock: Clock) -> KeySource:
    """Return the source of an issuer's keys; a remote one fetches nothing yet."""
    if found.file is not None:
        with found.table.located("file"):
            return JWKSFile(found.file, clock=clock)
    given = {"clock": clock, **found.arguments(JWKS)}
    with found.table.located("discovery" if found.jwks is None else "jwks"):
        return discover(found.issuer, **given) if found.jwks is None else JWKS(found.jwks, **given)
