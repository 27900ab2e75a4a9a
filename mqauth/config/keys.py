"""The keys that settings describe, and the authority of ``[authority]``.

Keys of an issuer are trusted, those of a producer sign. The authority is made in parts: a dry run needs neither
its key nor its audit file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path

from mqauth.audit.disk import last_lines
from mqauth.audit.file import AuditFile
from mqauth.audit.misuse import Alert, Detector
from mqauth.audit.query import parse_record
from mqauth.audit.sinks import FloodGate, MisuseWatch
from mqauth.authority.application import MAX_AGE, AuthorityServer
from mqauth.authority.credential import CredentialIssuer
from mqauth.authority.issuing import CredentialDesk, IdentityAuthority
from mqauth.clock import Clock
from mqauth.config.declaration import Settings
from mqauth.config.issuer_settings import IdentityAuthoritySettings, SourceSettings
from mqauth.config.settings import ProducerSettings
from mqauth.errors import ConfigurationError, require
from mqauth.keystore import ActiveKey, JWKSFile, Keystore
from mqauth.keystore.disk.folder import read_pem
from mqauth.keystore.remote.jwks import JWKS
from mqauth.keystore.remote.keyserver import KeyServer
from mqauth.wire.keys import Key, KeySource


def key_source(source: SourceSettings, clock: Clock) -> KeySource:
    """Return the source of an issuer's keys; a remote one fetches nothing yet.

    Raises:
        ConfigurationError: the file cannot be read, or the URL may not be used.
    """
    if source.file is not None:
        with source.table.located("file"):
            return JWKSFile(source.file, clock=clock, svid=source.svid)
    # What is discovered is no SPIFFE bundle.
    given = source.arguments(JWKS) | {
        "clock": clock,
        "svid": None if source.jwks is None else source.svid,
    }
    with source.table.located("discovery" if source.jwks is None else "jwks"):
        return JWKS(source.jwks or source.issuer, **given)


def key_on_disk(
    producer: ProducerSettings, naming: Settings, subject: str, clock: Clock
) -> Key | ActiveKey:
    """Return the key of a PEM file, or the active key of a folder; it must be able to speak for the subject.

    Args:
        producer: has the keys and their passphrase.
        naming: the settings that name keys and subject, for errors.
        subject: whom the key is to speak for.
        clock: tells the time.

    Raises:
        ConfigurationError: the key may not be used.
    """
    passphrase, keys = (
        producer.read_secret("passphrase"),
        require(producer.keys, "no keys"),
    )
    with naming.table.located("keys"):
        # Path.is_dir raises for a path that we may not look at; reading such a path gives the better error.
        key: Key | ActiveKey = (
            ActiveKey(keys, passphrase=passphrase, clock=clock)
            if os.path.isdir(keys)
            else read_pem(keys, passphrase)
        )
        now = key if isinstance(key, Key) else key.signing_key()
    subjects = getattr(now, "subjects", None)
    naming.table.require(
        subjects is None or subject in subjects,
        "subject",
        f"the key {now.kid} does not speak for it",
    )
    return key


class ConfiguredAuthority:
    """What ``[authority]`` describes; each part is made when it is first asked for.

    Args:
        settings: the table.
        clock: of the parts.
        on_alert: called with each misuse alert.
    """

    def __init__(
        self,
        settings: IdentityAuthoritySettings,
        clock: Clock,
        on_alert: Callable[[Alert], None] | None = None,
    ) -> None:
        self.settings = settings
        self._clock = clock
        self._on_alert = on_alert

    @property
    def keystore(self) -> Keystore:
        """The folder of its keys, and of what it has cut off."""
        return Keystore(folder=self.settings.keys, clock=self._clock)

    @cached_property
    def desk(self) -> CredentialDesk:
        """What is to be known of credentials and grants.

        Raises:
            ConfigurationError: the keys of an issuer cannot be read.
        """
        return CredentialDesk(
            issuers=[
                CredentialIssuer(
                    name=each.name,
                    issuer=each.issuer,
                    keys=key_source(each, self._clock),
                    max_lifetime=each.longest,
                    enrolment=each.is_enrolment,
                )
                for each in self.settings.credentials
            ],
            grants=[each.build() for each in self.settings.grants],
            audience=self.settings.url,
            clock=self._clock,
        )

    @cached_property
    def keys(self) -> ActiveKey:
        """The key that signs, followed; nothing asks an HSM or a service for a signature yet.

        Raises:
            ConfigurationError: the key may not be used, or its keystore has too short an overlap.
        """
        settings = self.settings
        passphrase = settings.read_secret("passphrase")
        with settings.table.located("keys"):
            keys = ActiveKey(settings.keys, passphrase=passphrase, clock=self._clock)
            limited, overlap = (
                getattr(keys.signing_key(), "subjects", None),
                self.keystore.ring().overlap,
            )
        settings.table.require(
            limited is None,
            "keys",
            "its key speaks for some subjects only: make it with --pinned",
        )
        settings.table.require(
            overlap >= settings.lifetime,
            "keys",
            f"its overlap of {overlap} s is shorter than lifetime: a retired key would end before its identities; "
            f"run mqauth keys new --dir {settings.keys} --overlap {settings.lifetime}",
        )
        return keys

    def authority(self, audit: Path | None = None) -> IdentityAuthority:
        """Return the authority, with its key and its audit file.

        Args:
            audit: a file in place of that of the settings, which another process may have.

        Raises:
            ConfigurationError: the key may not be used, its keystore has too short an overlap, or another process
                writes the audit file.
        """
        settings, keys, heads = (
            self.settings,
            self.keys,
            self.settings.head_file(self._clock),
        )
        with settings.table.located("audit"):
            file = AuditFile(audit or settings.audit, heads=heads)
            detector = Detector(instances=settings.instances)
            # What was given before the last start is known: a thief's credential is not the first ever seen.
            with suppress(ConfigurationError, ValueError):
                # Records of the audit file that the detectors read at the start.
                for raw in last_lines(file.path, 10_000):
                    detector.observe(parse_record(raw))
            sink = MisuseWatch(
                FloodGate(file), detector, on_alert=self._on_alert, clock=self._clock
            )
        return IdentityAuthority(
            trust_domain=settings.trust_domain,
            desk=self.desk,
            keys=keys,
            audit=sink,
            lifetime=settings.lifetime,
            rate=settings.rate,
            cutoffs=self.keystore.cutoffs,
            clock=self._clock,
        )

    def key_age(self) -> float | None:
        """Return the seconds for which the present key has signed, ``None`` where none does."""
        active = self.keystore.ring().active
        return (
            None
            if active is None or active.activated is None
            else self._clock.now() - active.activated
        )

    def server(
        self, authority: IdentityAuthority, observers: Iterable[Callable[..., None]] = ()
    ) -> AuthorityServer:
        """Return the application that serves an authority and its JWK Set.

        Args:
            authority: judges requests.
            observers: called with each answer.

        Raises:
            ConfigurationError: the JWK Set cannot be published.
        """
        return AuthorityServer(
            authority,
            KeyServer([self.settings.keys], most=MAX_AGE, clock=self._clock),
            refusals=self.settings.refusal_rate,
            observers=observers,
            clock=self._clock,
        )
