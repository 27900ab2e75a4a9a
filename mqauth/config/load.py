"""The objects that ``mqauth.toml`` describes; paths in the file are relative to it.

``load`` reads and checks the whole file. An object is built when it is first asked for. The file holds no secret:
it names an environment variable or a file that does (``passphrase_env``, ``passphrase_file``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from mqauth.audit.file import AuditFile
from mqauth.audit.misuse import Alert, Detector, Thresholds
from mqauth.audit.query import last_rollout
from mqauth.audit.sinks import FloodGate, MisuseWatch
from mqauth.clock import SYSTEM_CLOCK, Clock
from mqauth.config.declaration import read
from mqauth.config.keys import ConfiguredAuthority, key_on_disk, key_source
from mqauth.config.settings import (
    FileSettings,
    MisuseSettings,
    ReleaseSettings,
    ReplaySettings,
)
from mqauth.config.toml_file import Table, read_toml
from mqauth.errors import T, refusing, require
from mqauth.judging.identities import TrustDomain
from mqauth.judging.pipeline import Observer, Pipeline
from mqauth.judging.policy import Allow, Policy
from mqauth.judging.rollout import Rollout
from mqauth.judging.verifier import Issuer, Verifier
from mqauth.keystore import ActiveKey
from mqauth.keystore.identity.identity_key import IdentityKey
from mqauth.keystore.identity.request import (
    ClientCredentials,
    Credential,
    OwnKey,
    TokenFile,
)
from mqauth.letters.authorities import Authority, ReleaseAuthorities
from mqauth.policies.opa import OPA
from mqauth.replay.memory import MemoryReplayStore
from mqauth.replay.rules import ReplayStore
from mqauth.signer import Batching, Signer
from mqauth.wire.keys import Key


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
    return Configuration(
        str(path), read_toml(Path(path))[1], clock, observers=observers, on_alert=on_alert
    )


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
        producer = self._required(self._settings.producer, "producer")
        if producer.identity is None:
            key: Key | ActiveKey | IdentityKey = key_on_disk(
                producer, producer, producer.subject, self._clock
            )
        else:
            key = self.identity
            self.identity.start()
        return Signer(key=key, clock=self._clock, **producer.arguments(Signer))

    @cached_property
    def identity(self) -> IdentityKey:
        """The key of ``[producer.identity]``, which the signer signs with; the signer asks its authority at once.

        While the authority is out of reach the producer runs, and signs nothing.

        Raises:
            ConfigurationError: there is no ``[producer.identity]``, or its credential may not be used.
        """
        producer = self._required(self._settings.producer, "producer")
        identity = self._required(producer.identity, "producer.identity")
        # What the authority is shown; exactly one of three kinds is set.
        shown = identity.credential
        if shown.token_file is not None:
            credential: Credential = TokenFile(shown.token_file)
        elif shown.issuer is not None and shown.subject is not None:
            credential = OwnKey(
                key_on_disk(producer, shown, shown.subject, self._clock),
                issuer=shown.issuer,
                subject=shown.subject,
            )
        else:
            with shown.table.located("token_url"):
                credential = ClientCredentials(
                    str(shown.token_url),
                    client_id=str(shown.client_id),
                    client_secret_file=str(shown.client_secret_file),
                    ca=identity.ca,
                    unsafe_http_loopback=identity.unsafe_http_loopback,
                )
        with identity.table.located("authority"):
            return IdentityKey(
                clock=self._clock,
                **identity.arguments(IdentityKey) | {"credential": credential},
            )

    @property
    def batching(self) -> Batching:
        """The batch settings of ``[producer]``, for ``Producer(..., config.signer, **config.batching)``.

        Raises:
            ConfigurationError: there is no ``[producer]``.
        """
        producer = self._required(self._settings.producer, "producer")
        return Batching(batch=producer.batch, linger=producer.linger)

    @cached_property
    def thresholds(self) -> Thresholds:
        """The thresholds of ``[misuse]``; the authorities include every issuer with ``vouches``."""
        misuse = self._settings.misuse or MisuseSettings()
        issuers = (
            () if self._settings.consumer is None else self._settings.consumer.issuers
        )
        vouching = {
            each.issuer
            for each in issuers
            if each.vouches or each.trust_domain is not None
        }
        return Thresholds(
            **misuse.arguments(Thresholds)
            | {"authorities": misuse.authorities | vouching}
        )

    @cached_property
    def pipeline(self) -> Pipeline:
        """The pipeline of ``[consumer]``. Without ``[audit]`` it cannot settle messages, and wrappers refuse it.

        Raises:
            ConfigurationError: there is no ``[consumer]``, its keys cannot be read, or another process writes
                the audit file or has the replay file.
        """
        given, sink = self._settings.audit, dict[str, Any]()
        if given is not None:
            heads = given.head_file(self._clock)
            scope = (
                None if self._settings.consumer is None else self._settings.consumer.scope
            )
            given.table.require(
                scope is not None or "{scope}" not in str(given.file),
                "file",
                "{scope} needs [consumer] scope",
            )
            with given.table.located("file"):
                path = Path(
                    str(given.file).replace("{scope}", (scope or "").replace("/", "_"))
                )
                file = AuditFile(
                    path,
                    fsync=not given.unsafe_no_fsync,
                    max_bytes=given.max_bytes,
                    heads=heads,
                )
            detector = Detector(self.thresholds)
            before = last_rollout(given.file, scope) if self.rollout else None
            # A rung that was lowered since the last start is an alert.
            if before is not None:
                detector.observe(before)
            # The watch stands before the flood gate: a detector has to count the records that the gate sums up.
            sink = {
                "audit": MisuseWatch(
                    FloodGate(file, given.flood_after),
                    detector,
                    on_alert=self._on_alert,
                    clock=self._clock,
                ),
                "record": given.record,
            }
        return self._pipeline(
            observers=self._observers, rollout=self.rollout, beside=False, **sink
        )

    @cached_property
    def rollout(self) -> Rollout:
        """The rungs of ``[[rollout]]`` and the exemptions of ``[[consumer.unsigned]]``."""
        consumer = self._settings.consumer
        return Rollout(
            [each.build() for each in self._settings.rollout],
            [each.build() for each in (() if consumer is None else consumer.unsigned)],
        )

    @cached_property
    def judge(self) -> Pipeline:
        """The pipeline of ``[consumer]`` for verdicts alone: it opens no audit or replay file and settles nothing.

        It judges at ``enforce``, whatever ``[[rollout]]`` says.

        Raises:
            ConfigurationError: there is no ``[consumer]``, or its keys cannot be read.
        """
        return self._pipeline(beside=True)

    @cached_property
    def trial(self) -> Pipeline:
        """The pipeline of ``[consumer]`` with the rungs of ``[[rollout]]``, to be tried; it settles nothing.

        Raises:
            ConfigurationError: there is no ``[consumer]``, or its keys cannot be read.
        """
        return self._pipeline(rollout=self.rollout, beside=True)

    @cached_property
    def authority(self) -> ConfiguredAuthority:
        """The authority of ``[authority]``.

        Raises:
            ConfigurationError: there is no ``[authority]``, its keys cannot be used, or another process writes its
                audit file.
        """
        return ConfiguredAuthority(
            self._required(self._settings.authority, "authority"),
            self._clock,
            self._on_alert,
        )

    @property
    def dead_letters_name(self) -> str:
        """The dead-letter queue or topic of ``[dead_letters]``.

        Raises:
            ConfigurationError: there is no ``[dead_letters]``.
        """
        return self._required(self._settings.dead_letters, "dead_letters").name

    def _pipeline(self, *, beside: bool, **more: Any) -> Pipeline:
        """Return a pipeline; one of a command that runs beside a consumer opens no file that has one owner."""
        clock, consumer = self._clock, self._required(self._settings.consumer, "consumer")
        # Whom it trusts, and who may release what it rejected.
        issuers: dict[str, Issuer | TrustDomain] = {}
        for each in consumer.issuers:
            kind = Issuer if each.trust_domain is None else TrustDomain
            issuers[each.issuer] = kind(
                keys=key_source(each, clock), **each.arguments(kind)
            )
        release = self._settings.release or ReleaseSettings()
        authorities = {
            each.issuer: Authority(
                keys=key_source(each, clock), **each.arguments(Authority)
            )
            for each in release.authorities
        }
        settings = consumer.arguments(Verifier) | {
            "accept_as": [each.build() for each in consumer.accept_as],
            "without_evidence": [each.build() for each in consumer.without_evidence],
        }
        releases = (
            ReleaseAuthorities(authorities, leeway=consumer.leeway)
            if authorities
            else None
        )
        # The rules; an agent decides beside them, and is asked only what the rules allow.
        rules = Allow([rule.build() for rule in consumer.allow])
        policy: Policy = rules
        if consumer.opa is not None:
            with consumer.opa.table.located("url"):
                policy = OPA(
                    **consumer.opa.arguments(OPA),
                    within=rules if consumer.allow else None,
                    scope=consumer.scope,
                    clock=clock,
                )
        return Pipeline(
            verifier=Verifier(keys=issuers, release=releases, **settings),
            policy=policy,
            replay=self._store(beside=beside),
            clock=clock,
            **consumer.arguments(Pipeline),
            **more,
        )

    def _store(self, *, beside: bool) -> ReplayStore | None:
        """Return the replay store; a store on Redis connects with its first claim."""
        settings = self._settings.replay or ReplaySettings()
        if settings.kind == "none":
            return None
        if settings.file is not None and not beside:
            from mqauth.stores.file import FileReplayStore

            with settings.table.located("file"):
                return FileReplayStore(settings.file, clock=self._clock)
        if settings.redis is None:
            return MemoryReplayStore(settings.capacity, clock=self._clock)
        with refusing(
            ImportError,
            'needs redis-py: install "mqauth[redis]"',
            partial(settings.table.refuse, "store"),
        ):
            from mqauth.stores.redis import RedisReplayStore

        with settings.table.located("store"):
            return RedisReplayStore.from_url(settings.redis, clock=self._clock)

    def _required(self, table: T | None, name: str) -> T:
        return require(table, f"{self.file}: [{name}]: required here, and missing")
