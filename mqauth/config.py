"""``mqauth.toml``: one file for everything the objects of this library take; paths are relative to it.

``load`` reads and checks the whole file; the objects are built when they are asked for. Secrets stand in
it by reference only: ``passphrase_env``, ``passphrase_file``.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

from mqauth import config_settings as settings
from mqauth.batching import Batching
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.config_audit import audit_sink
from mqauth.config_settings import AuthoritySettings, IssuerSettings, ProducerSettings, SourceSettings
from mqauth.config_table import Table
from mqauth.errors import ConfigurationError
from mqauth.keys import Key, KeySource
from mqauth.keystore import ActiveKey, JWKSFile, files
from mqauth.keystore.discovery import discover
from mqauth.keystore.folder import read_pem
from mqauth.keystore.jwks import JWKS
from mqauth.misuse import Alert, Thresholds
from mqauth.pipeline import Observer, Pipeline
from mqauth.policy import Allow
from mqauth.release import Authority, ReleaseAuthorities
from mqauth.replay import ReplayStore
from mqauth.signer import Signer
from mqauth.stores.memory import MemoryReplayStore
from mqauth.verifier import Issuer, Verifier

_MAX_FILE: Final = 1024 * 1024
_MAX_PASSPHRASE: Final = 1023
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
        top = Table(file=file, name="", members=members, known=tuple(settings.TABLES))
        tables = {name: top.table(name, known) for name, known in settings.TABLES.items()}
        self._tables = {name: table for name, table in tables.items() if table is not None}
        self._producer = self._read("producer", settings.producer)
        self._consumer = self._read("consumer", settings.consumer)
        self._replay = self._read("replay", settings.replay)
        self._audit = self._read("audit", settings.audit)
        self.thresholds = self._trusting(self._read("misuse", settings.misuse) or Thresholds())
        self._dead_letters = self._read("dead_letters", lambda table: table.name_of("name"))
        self._authorities = self._read("release", settings.authorities) or ()
        self._read("check", settings.check)

    @cached_property
    def signer(self) -> Signer:
        """The signer of ``[producer]``.

        Raises:
            ConfigurationError: there is no ``[producer]``, or its key may not be used.
        """
        found = self._needed(self._producer, "producer")
        return Signer(
            key=_producer_key(found, self._clock), issuer=found.issuer, subject=found.subject,
            audience=found.audience, audiences=found.audiences, lifetime=found.lifetime, clock=self._clock,
        )  # fmt: skip

    @property
    def batching(self) -> Batching:
        """What ``[producer]`` says of batches: ``Producer(..., config.signer, **config.batching)``.

        Raises:
            ConfigurationError: there is no ``[producer]``.
        """
        return self._needed(self._producer, "producer").batching

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline of ``[consumer]``; without ``[audit]`` it settles nothing, and wrappers refuse it.

        Raises:
            ConfigurationError: there is no ``[consumer]``, its keys cannot be had, or another process
                writes the audit file.
        """
        found = self._audit
        if found is None:
            return self._pipeline(audit=None, observers=self._observers)
        sink = audit_sink(
            found, self.thresholds, on_alert=self._on_alert, passphrase=read_passphrase,
            clock=self._clock,
        )  # fmt: skip
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
        return self._needed(self._dead_letters, "dead_letters")

    def _pipeline(self, **audit: Any) -> Pipeline:
        """Return a pipeline of ``[consumer]`` and ``[replay]``."""
        found = self._needed(self._consumer, "consumer")
        verifier = Verifier(
            keys={issuer.source.issuer: _issuer(issuer, self._clock) for issuer in found.issuers},
            audience=found.audience, max_lifetime=found.max_lifetime, leeway=found.leeway, at=found.at,
            max_queue_age=found.max_queue_age, append_evidence=found.append_evidence,
            require_headers=found.require_headers, unsigned_headers=found.unsigned_headers,
            user_id=found.user_id, release=self._releases(found.leeway),
        )  # fmt: skip
        return Pipeline(
            verifier=verifier, policy=Allow(found.allow), replay=self._store(), scope=found.scope,
            clock=self._clock, **audit,
        )  # fmt: skip

    def _releases(self, leeway: int) -> ReleaseAuthorities | None:
        """Return who may release dead letters, ``None`` where nobody may."""
        if not self._authorities:
            return None
        return ReleaseAuthorities(
            {found.source.issuer: _authority(found, self._clock) for found in self._authorities}, leeway=leeway
        )

    def _trusting(self, thresholds: Thresholds) -> Thresholds:
        """Return the thresholds with the issuers that vouch for all their subjects among the authorities."""
        issuers = () if self._consumer is None else self._consumer.issuers
        vouching = {issuer.source.issuer for issuer in issuers if issuer.vouches}
        return replace(thresholds, authorities=thresholds.authorities | vouching)

    def _store(self) -> ReplayStore:
        """Return the replay store; the one in memory where ``[replay]`` is absent."""
        if self._replay is None:
            return MemoryReplayStore(clock=self._clock)
        if self._replay.redis is not None:
            return _redis_store(self._replay, self._replay.redis, self._clock)
        return MemoryReplayStore(self._replay.capacity, clock=self._clock)

    def _read(self, name: str, parse: Callable[[Table], T]) -> T | None:
        """Return the settings of a table, ``None`` where it is absent."""
        table = self._tables.get(name)
        return None if table is None else parse(table)

    def _needed(self, found: T | None, name: str) -> T:
        """Return the settings of a table that must be there."""
        if found is None:
            raise ConfigurationError(f"{self.file}: [{name}]: required here, and missing")
        return found


def read_toml(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a TOML file and its tables.

    Raises:
        ConfigurationError: it cannot be read, is over 1 MiB, or is no TOML; a syntax error names its line.
    """
    raw = files.read_bounded(path, _MAX_FILE)
    try:
        text = raw.decode("utf-8")
        return text, tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}: not UTF-8 (at line {line})") from error
    except RecursionError as error:
        raise ConfigurationError(f"{path}: nested too deep") from error
    except ValueError as error:
        last = raw.rstrip(b"\n").count(b"\n") + 1
        what = str(error).replace("(at end of document)", f"(at line {last}, the end)")
        raise ConfigurationError(f"{path}: no TOML: {what}") from error


def _producer_key(found: ProducerSettings, clock: Clock) -> Key | ActiveKey:
    """Return the key that signs, a folder's followed through rotation; it must speak for the subject."""
    passphrase = _passphrase(found)
    try:
        key = _signing_key(found.keys, passphrase, clock)
        now = key if isinstance(key, Key) else key.signing_key()
    except ConfigurationError as error:
        raise found.table.refuse("keys", str(error)) from error
    if now.subjects is not None and found.subject not in now.subjects:
        raise found.table.refuse("subject", f"the key {now.kid} does not speak for it")
    return key


def _signing_key(keys: Path, passphrase: bytes | None, clock: Clock) -> Key | ActiveKey:
    """Return a folder's active key, or the key of a single PEM file."""
    if os.path.isdir(keys):
        return ActiveKey(keys, passphrase=passphrase, clock=clock)
    return read_pem(keys, passphrase)


def _passphrase(found: ProducerSettings) -> bytes | None:
    """Return the passphrase the producer's table refers to."""
    key = "passphrase_env" if found.passphrase_env is not None else "passphrase_file"
    try:
        return read_passphrase(env=found.passphrase_env, file=found.passphrase_file)
    except ConfigurationError as error:
        raise found.table.refuse(key, str(error)) from error


def read_passphrase(*, env: str | None = None, file: Path | None = None) -> bytes | None:
    """Return the passphrase an environment variable or a file holds, ``None`` where neither is named.

    Args:
        env: name of the variable.
        file: the file; one newline at its end does not count.

    Raises:
        ConfigurationError: the variable is not set, the file cannot be read, or it is empty or too long.
    """
    if env is not None:
        name, raw = f"the variable {env}", os.environb.get(os.fsencode(env))
        if raw is None:
            raise ConfigurationError(f"{name} is not set")
    elif file is not None:
        name, raw = str(file), files.read_bounded(file, 64 * 1024).removesuffix(b"\n").removesuffix(b"\r")
    else:
        return None
    if not 1 <= len(raw) <= _MAX_PASSPHRASE:
        raise ConfigurationError(f"{name}: a passphrase has 1 to {_MAX_PASSPHRASE} bytes")
    return raw


def _issuer(found: IssuerSettings, clock: Clock) -> Issuer:
    """Return one trusted issuer."""
    return Issuer(keys=_key_source(found.source, clock), subjects=found.subjects, vouches=found.vouches)


def _key_source(found: SourceSettings, clock: Clock) -> KeySource:
    """Return the source of an issuer's keys."""
    if found.file is not None:
        return _from_file(found, found.file, clock)
    return _from_remote(found, clock)


def _from_file(found: SourceSettings, file: Path, clock: Clock) -> KeySource:
    """Return the keys of a JWK Set file."""
    try:
        return JWKSFile(file, clock=clock)
    except ConfigurationError as error:
        raise found.table.refuse("file", str(error)) from error


def _from_remote(found: SourceSettings, clock: Clock) -> KeySource:
    """Return the keys at a URL, or where OIDC discovery leads to; nothing is fetched yet."""
    bounds: dict[str, Any] = {"max_stale": found.max_stale, "publish_delay": found.publish_delay}
    given: dict[str, Any] = {
        "ca": found.ca, "snapshot": found.snapshot, "unsafe_http_loopback": found.unsafe_http_loopback,
        "clock": clock, **{name: value for name, value in bounds.items() if value is not None},
    }  # fmt: skip
    try:
        return discover(found.issuer, **given) if found.jwks is None else JWKS(found.jwks, **given)
    except ConfigurationError as error:
        raise found.table.refuse("discovery" if found.jwks is None else "jwks", str(error)) from error


def _redis_store(found: settings.ReplaySettings, url: str, clock: Clock) -> ReplayStore:
    """Return the replay store on Redis; nothing is connected yet, and it serves consumers of either colour."""
    try:
        from mqauth.stores.rediseither import EitherRedisReplayStore

        return EitherRedisReplayStore(url, clock=clock)
    except ImportError as error:
        raise found.table.refuse("store", 'needs redis-py: install "mqauth[redis]"') from error
    except ConfigurationError as error:
        raise found.table.refuse("store", str(error)) from error


def _authority(found: AuthoritySettings, clock: Clock) -> Authority:
    """Return one release authority."""
    return Authority(keys=_key_source(found.source, clock), waive=frozenset(found.waive))
