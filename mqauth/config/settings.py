"""The declarations of all settings of ``mqauth.toml``, table by table, with bounds, help and default.

To add a setting, add its line here, and give the object that uses it an argument of the same name. The bounds are
imported from the objects that enforce them, and a test compares the defaults. Reading the settings checks their
values and opens no file. ``python -m integration.settings`` writes ``docs/configuration.md`` and
``docs/mqauth.schema.json`` from this module.
"""

# No ``from __future__ import annotations``: the declarations are read from the annotations, and to evaluate them
# from texts would cost 5 ms at the first ``load``.

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal, cast

from mqauth.audit.file import MIN_BYTES
from mqauth.audit.misuse import Thresholds
from mqauth.audit.sinks import DEFAULT_FLOOD_AFTER
from mqauth.config.broker import BrokerSettings, ReviewSettings
from mqauth.config.consumer_settings import ConsumerSettings, RolloutSettings
from mqauth.config.declaration import Settings, inner, inners, not_with
from mqauth.config.issuer_settings import (
    HeadsSettings,
    IdentityAuthoritySettings,
    IdentitySettings,
    SourceSettings,
)
from mqauth.config.kinds import (
    BROKER_URL,
    DESTINATION,
    EXACT_NAME,
    FLAG,
    NAME,
    PATH,
    POSITIVE,
    choice,
    entries,
    many,
    seconds,
    url,
    whole,
)
from mqauth.config.toml_file import RefusedSetting
from mqauth.errors import Reason
from mqauth.keystore.identity.request import MAX_LIFE
from mqauth.letters.release import WAIVABLE
from mqauth.replay.memory import DEFAULT_CAPACITY
from mqauth.signer import DEFAULT_BATCH, MAX_LIFETIME, MAX_LINGER, SPARE
from mqauth.wire.claims import MAX_BATCH
from mqauth.wire.identity import trust_domain_of

_THRESHOLDS: Final = Thresholds()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProducerSettings(Settings):
    """``[producer]``: the arguments of ``Signer``, the place of its key, and the batches of broker wrappers.

    Once it is read, ``issuer``, ``subject`` and ``keys`` of the identity form have what ``identity`` says.
    """

    # Neither name is None once it was read: ``refusals`` asks for them.
    issuer: Annotated[
        str,
        NAME,
        "The issuer that consumers trust for this key: `iss` of each token.",
        not_with("identity"),
    ] = cast(str, None)
    subject: Annotated[
        str, NAME, "The producer's name: `sub` of each token.", not_with("identity")
    ] = cast(str, None)
    audience: Annotated[
        str,
        EXACT_NAME,
        "The service or stream that messages are meant for: `aud` of each token.",
    ]
    audiences: Annotated[
        Mapping[str, str] | None,
        entries(DESTINATION, EXACT_NAME),
        'Another audience for each destination that is named, such as `"kafka:orders" = "billing"`.',
    ] = None
    keys: Annotated[
        Path | None,
        PATH,
        "The private key: a PEM file, or a keystore folder, whose keys may change, and be in an HSM.",
        not_with("identity"),
    ] = None
    identity: Annotated[
        IdentitySettings | None,
        inner(IdentitySettings),
        "In place of `issuer`, `subject` and `keys`: an identity from an authority; experimental.",
    ] = None
    lifetime: Annotated[int, seconds(1, MAX_LIFETIME), "How long a token lives."] = 60
    leave_unsigned: Annotated[
        tuple[str, ...],
        many(NAME),
        "Names, or beginnings and a `*`, of headers that tracing and transport add: not signed.",
    ] = ()
    batch: Annotated[
        int,
        whole(1, MAX_BATCH),
        "Messages under one signature, at most; 1 is a token each.",
    ] = DEFAULT_BATCH
    linger: Annotated[
        float,
        seconds(0, MAX_LINGER, fractions=True),
        "How long a message may wait for others to share a signature with.",
    ] = 0
    passphrase_env: Annotated[
        str | None, NAME, "The environment variable with the passphrase of the keys."
    ] = None
    passphrase_file: Annotated[
        Path | None,
        PATH,
        "The file with the passphrase of the keys.",
        not_with("passphrase_env"),
    ] = None

    def __post_init__(self) -> None:
        if self.identity is not None:
            derived = {
                "issuer": trust_domain_of(self.identity.subject),
                "subject": self.identity.subject,
                "keys": self.identity.credential.keys,
            }
            for name, value in derived.items():
                object.__setattr__(self, name, value)

    def refusals(self) -> Iterator[RefusedSetting]:
        """Yield the refusals of what the direct form lacks, and of a lifetime that no identity lasts for."""
        needed = ("issuer", "subject", "keys") if self.identity is None else ()
        most = MAX_LIFE // 2 - SPARE
        return self.refused(
            *((name not in self.table.members, name, "required") for name in needed),
            (
                self.identity is not None and self.lifetime > most,
                "lifetime",
                f"must be at most {most} with an identity, half of its life",
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings(Settings):
    """``[replay]``: which store remembers the messages that were handled."""

    store: Annotated[
        str,
        url("redis", "rediss", words=("memory", "none")),
        "A Redis that all consumers of the scope share; `memory` of one process; `none` lets copies pass.",
    ] = field(default="memory", repr=False)
    file: Annotated[
        Path | None,
        PATH,
        "A file on a local disk in place of `store`, for one process; it outlasts a restart.",
        not_with("store"),
    ] = None
    capacity: Annotated[int, POSITIVE, "Ids that the store in memory holds."] = (
        DEFAULT_CAPACITY
    )

    @property
    def redis(self) -> str | None:
        """The URL of the Redis, if it is one."""
        return self.store if "://" in self.store else None

    @property
    def kind(self) -> str:
        """``file``, ``redis``, ``memory`` or ``none``."""
        return (
            "file"
            if self.file is not None
            else "redis"
            if self.redis is not None
            else self.store
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditSettings(HeadsSettings):
    """``[audit]``: the audit file, its flood gate and its signed heads."""

    file: Annotated[
        Path,
        PATH,
        "The audit file; `{pid}`, `{host}`, `{scope}` and `{instance}` are filled in.",
    ]
    record: Annotated[
        Literal["rejections", "all"],
        choice(("rejections", "all")),
        "Which verdicts are recorded.",
    ] = "rejections"
    max_bytes: Annotated[
        int | None,
        whole(MIN_BYTES),
        "Bytes after which the file is rotated; without, it never is.",
    ] = None
    flood_after: Annotated[
        int,
        POSITIVE,
        "Rejections of one kind in a minute, beyond which they are summed up.",
    ] = DEFAULT_FLOOD_AFTER
    unsafe_no_fsync: Annotated[
        bool, FLAG, "Do not wait for the disk; a crash may lose records."
    ] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class MisuseSettings(Settings):
    """``[misuse]``: the arguments of ``Thresholds``."""

    window: Annotated[float, seconds(1), "The time over which events are counted."] = (
        _THRESHOLDS.window
    )
    quiet: Annotated[float, seconds(1), "The time before an alert is repeated."] = (
        _THRESHOLDS.quiet
    )
    burst: Annotated[
        int,
        POSITIVE,
        "Rejections of one reason for one issuer, kid, subject or destination in a window.",
    ] = _THRESHOLDS.burst
    replays: Annotated[int, POSITIVE, "Copies of one token in a window."] = (
        _THRESHOLDS.replays
    )
    expired: Annotated[int, POSITIVE, "Expired tokens in a window."] = _THRESHOLDS.expired
    skewed_producers: Annotated[
        int,
        POSITIVE,
        "Producers of expired tokens that make it a wrong clock, and not a thief.",
    ] = _THRESHOLDS.skewed_producers
    unknown_kids: Annotated[int, POSITIVE, "Unknown kids of one issuer in a window."] = (
        _THRESHOLDS.unknown_kids
    )
    learn: Annotated[
        float,
        seconds(0),
        "How long new pairs of subject and destination, or kid and subject, are learned.",
    ] = _THRESHOLDS.learn
    capacity: Annotated[int, POSITIVE, "Entries that each detector holds."] = (
        _THRESHOLDS.capacity
    )
    authorities: Annotated[
        frozenset[str],
        many(NAME, into=frozenset),
        "Issuers whose keys sign for several producers, beside those that vouch.",
    ] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLettersSettings(Settings):
    """``[dead_letters]``: where rejected messages go."""

    name: Annotated[str, NAME, "The dead-letter queue or topic."]


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthoritySettings(SourceSettings):
    """One of ``[[release.authorities]]``: who may release dead letters."""

    waive: Annotated[
        frozenset[Reason],
        many(choice(WAIVABLE), into=frozenset),
        "The reasons that its releases may waive.",
    ] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseSettings(Settings):
    """``[release]``: whose releases are accepted."""

    authorities: Annotated[
        tuple[AuthoritySettings, ...],
        inners(AuthoritySettings, unique="issuer"),
        "Who may release dead letters, each with one of `file`, `jwks`, `discovery`; without one nobody may.",
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSettings(Settings):
    """``[check]``: what ``mqauth check`` cannot read from the other tables; nothing else uses it."""

    brokers: Annotated[
        tuple[str, ...], many(BROKER_URL), "The brokers' URLs; nothing connects to them."
    ] = field(default=(), repr=False)
    consumers: Annotated[int, POSITIVE, "Processes that share the consumer's scope."] = 1
    rate: Annotated[
        int | None, POSITIVE, "Messages a second, all consumers together."
    ] = None
    rotation: Annotated[
        int, seconds(1), "The time after which a key is to be replaced."
    ] = 90 * 86_400
    accept: Annotated[
        tuple[str, ...], many(NAME), "Codes of findings that are known and wanted."
    ] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSettings(Settings):
    """``mqauth.toml`` as a whole; a table that is absent is ``None``."""

    producer: Annotated[
        ProducerSettings | None,
        inner(ProducerSettings),
        "Signs messages as one producer.",
    ] = None
    consumer: Annotated[
        ConsumerSettings | None,
        inner(ConsumerSettings),
        "Verifies messages: what is trusted, and who may publish where.",
    ] = None
    replay: Annotated[
        ReplaySettings | None,
        inner(ReplaySettings),
        "Remembers what was handled, so that a copy is noticed.",
    ] = None
    audit: Annotated[
        AuditSettings | None,
        inner(AuditSettings),
        "Records verdicts; required where messages are settled.",
    ] = None
    misuse: Annotated[
        MisuseSettings | None,
        inner(MisuseSettings),
        "When a detector of misuse gives an alert.",
    ] = None
    dead_letters: Annotated[
        DeadLettersSettings | None,
        inner(DeadLettersSettings),
        "Takes rejected messages; required where messages are settled.",
    ] = None
    release: Annotated[
        ReleaseSettings | None,
        inner(ReleaseSettings),
        "Who may release dead letters for another try.",
    ] = None
    rollout: Annotated[
        tuple[RolloutSettings, ...],
        inners(RolloutSettings),
        "Destinations that are not at enforce yet; the first entry that matches decides.",
    ] = ()
    broker: Annotated[
        BrokerSettings | None,
        inner(BrokerSettings),
        "Where commands find the dead letters, and how.",
    ] = None
    brokers: Annotated[
        Mapping[str, BrokerSettings] | None,
        entries(NAME, inner(BrokerSettings), 1),
        "The same for several brokers; `--broker NAME` takes one.",
    ] = None
    review: Annotated[
        ReviewSettings | None,
        inner(ReviewSettings),
        "What a reviewer of dead letters works with.",
    ] = None
    authority: Annotated[
        IdentityAuthoritySettings | None,
        inner(IdentityAuthoritySettings),
        "Says which workload a key belongs to: `mqauth authority`.",
    ] = None
    check: Annotated[
        CheckSettings | None,
        inner(CheckSettings),
        "Tells `mqauth check` what the other tables do not say.",
    ] = None
