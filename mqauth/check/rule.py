"""What a rule looks at, and what it yields: a configuration file as far as it can be read, and findings.

One table that is refused does not hide the others. Keystores are seen too: which tables name them, whose keys they
hold, and what references rest on.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from mqauth.authority.application import MAX_AGE
from mqauth.check.codes import CODES, Code, Severity
from mqauth.config.declaration import collect
from mqauth.config.issuer_settings import IssuerSettings, SourceSettings
from mqauth.config.settings import (
    AuthoritySettings,
    CheckSettings,
    FileSettings,
    ReplaySettings,
)
from mqauth.config.toml_file import Place, RefusedSetting, Table, spelt
from mqauth.errors import ConfigurationError, T
from mqauth.keystore import Keystore
from mqauth.keystore.disk.ring import KeyRing
from mqauth.keystore.reference.uri import TokenURI, TransitReference

FRESH: Final = 300
"""Seconds for which a consumer uses a fetched set without asking again, by default."""


class Signs(NamedTuple):
    """A table that names keys which sign.

    Args:
        table: its name.
        settings: its settings, which say where a passphrase is.
        keys: the keystore folder, or a PEM file.
        fresh: seconds for which consumers use a fetched set without asking again.
        retain: seconds for which a retired key is needed after its end.
    """

    table: str
    settings: Any
    keys: Path
    fresh: int
    retain: int

    @property
    def at(self) -> tuple[str, str]:
        """Where the keys are named."""
        return self.table, "keys"

    @property
    def ring(self) -> KeyRing | None:
        """The keys of the keystore folder, ``None`` if they are a single file or cannot be read."""
        return ring_of(self.keys)


class Reference(NamedTuple):
    """A key of a keystore that something else holds.

    Args:
        uri: the reference, as people may see it: without what stands behind its question mark.
        secret: the file with the token or the PIN, ``None`` where the environment has it.
        ca: the file of the CAs to trust in place of the system's.
        host: where it is asked by http.
    """

    uri: str
    secret: Path | None
    ca: Path | None = None
    host: str | None = None

    @classmethod
    def of(cls, uri: str) -> Reference:
        """Return what a reference names on this machine.

        Raises:
            ConfigurationError: it cannot be read, or is none.
        """
        shown = uri.partition("?")[0]
        if uri.startswith("transit:"):
            key = TransitReference.parse(uri)
            host = key.server if key.server.startswith("http:") else None
            return cls(shown, key.token_file, key.ca, host)

        kind, _, name = (TokenURI.parse(uri).pin_source or "").partition(":")
        return cls(shown, Path(name) if kind == "file" else None)


def unless_refused(read: Callable[[], T]) -> T | None:
    """Return what a reader of a file returns, ``None`` where it refuses the file."""
    try:
        return read()
    except ConfigurationError:
        return None


def ring_of(folder: Path) -> KeyRing | None:
    """Return the keys of a keystore folder, ``None`` if it is no folder or cannot be read."""
    if not os.path.isdir(folder):
        return None
    return unless_refused(Keystore(folder=folder).ring)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the rules look at.

    Args:
        file: the configuration file.
        now: UTC seconds.
        settings: its tables; one that is absent or refused is ``None``.
        refusals: the settings that were refused.
        present: the names of the tables that stand in the file, refused or not.
    """

    file: Path
    now: float
    settings: FileSettings
    refusals: tuple[RefusedSetting, ...]
    present: frozenset[str]

    @property
    def options(self) -> CheckSettings:
        """The settings of ``[check]``."""
        return self.settings.check or CheckSettings()

    @property
    def issuers(self) -> tuple[IssuerSettings, ...]:
        """The issuers that the consumer trusts."""
        return () if self.settings.consumer is None else self.settings.consumer.issuers

    @property
    def authorities(self) -> tuple[AuthoritySettings, ...]:
        """Those who may release dead letters."""
        return () if self.settings.release is None else self.settings.release.authorities

    @property
    def sources(self) -> tuple[SourceSettings, ...]:
        """The sources of all keys that are trusted: of issuers, release authorities, and credentials."""
        authority = self.settings.authority
        credentials = () if authority is None else authority.credentials
        return (*self.issuers, *self.authorities, *credentials)

    @property
    def signers(self) -> tuple[Signs, ...]:
        """The tables that name keys which sign."""
        settings = self.settings
        signers = []
        producer = settings.producer
        if producer is not None and producer.keys is not None:
            # A message that waits is verified after its key was retired.
            retain = producer.lifetime
            if settings.consumer is not None:
                retain += settings.consumer.max_queue_age or 0
            signers.append(Signs("producer", producer, producer.keys, FRESH, retain))
        authority = settings.authority
        if authority is not None:
            # What it vouched for lives out by the overlap of its keys, and its set is fresh
            # for a minute.
            signers.append(Signs("authority", authority, authority.keys, MAX_AGE, 0))
        return tuple(signers)

    @property
    def references(self) -> Iterable[tuple[Signs, Reference]]:
        """The references of all keystores, each with the table that names the keystore."""
        references: dict[Any, tuple[Signs, Reference]] = {}
        for signs in self.signers:
            ring = signs.ring
            for key in () if ring is None else ring.keys:
                # What cannot be read is for the configuration's own reader.
                with suppress(ConfigurationError):
                    reference = Reference.of(key.uri or "")
                    identity = (signs.at, *reference[1:])
                    references.setdefault(identity, (signs, reference))
        return references.values()

    @property
    def audit_files(self) -> tuple[tuple[Place, Path], ...]:
        """The audit files, each with where it is named."""
        files: list[tuple[Place, Path]] = []
        if self.settings.audit is not None:
            files.append((("audit", "file"), self.settings.audit.file))
        if self.settings.authority is not None:
            files.append((("authority", "audit"), self.settings.authority.audit))
        return tuple(files)

    @property
    def replay(self) -> ReplaySettings | None:
        """The consumer's replay store; ``None`` if its table is refused."""
        if "replay" not in self.present:
            return ReplaySettings()
        return self.settings.replay

    def shown(self, path: Path) -> str:
        """Return a path relative to the folder of the configuration file, if it lies within."""
        folder = self.file.parent
        if path.is_relative_to(folder):
            path = path.relative_to(folder)
        return str(path)


def read(file: Path, members: Mapping[str, Any], *, now: float) -> Target:
    """Return the settings of every table that is not refused, and the refusals."""
    values, refusals = collect(FileSettings, Table(file=str(file), members=members))
    return Target(
        file=file,
        now=now,
        settings=FileSettings(**values),
        refusals=tuple(refusals),
        present=frozenset(members),
    )


def others(path: Path) -> int:
    """Return what group and others may do with a file or folder, as bits of its mode; 0 if it is missing."""
    return _status(path).st_mode & 0o077


def strangers(path: Path) -> int:
    """Return the bits of ``others``, without those of a group that is only the owner's or that root has chosen."""
    status = _status(path)
    if is_own_group(status.st_uid, status.st_gid):
        return status.st_mode & 0o007
    return status.st_mode & 0o077


def is_own_group(user: int, group: int) -> bool:
    """Tell whether a group has no member but its user, as with ``umask 002``, or the user is root."""
    if user == 0:
        return True
    try:
        name = pwd.getpwuid(user).pw_name
        entry = grp.getgrgid(group)
    except KeyError:
        return False
    return entry.gr_name == name and set(entry.gr_mem) <= {name}


def mode(path: Path) -> str:
    """Return a file's mode as people write it."""
    return f"{stat.S_IMODE(_status(path).st_mode):04o}"


def _status(path: Path) -> os.stat_result:
    # A missing file is no finding here: the configuration's own reader reports it.
    try:
        return path.stat()
    except OSError:
        return os.stat_result([0] * 10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A pitfall at a place; ``line`` counts from 1, and is ``None`` if not even the table stands in the file."""

    code: Code
    severity: Severity
    path: Place
    message: str
    line: int | None = None

    @property
    def key(self) -> str:
        """The place as people read it, like ``consumer.issuers[0].jwks``."""
        key = ""
        for part in self.path:
            key += f"[{part}]" if isinstance(part, int) else f".{spelt(part)}"
        return key.removeprefix(".")

    def as_dict(self) -> dict[str, Any]:
        """Return the finding as JSON values."""
        return {
            "code": self.code.name,
            "severity": self.severity.value,
            "line": self.line,
            "key": self.key,
            "message": self.message,
            "why": self.code.why,
            "instead": self.code.instead,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All findings of one file, by severity, and within a severity by line.

    Args:
        findings: what was found.
        unseen: what could not be looked at, and the setting that makes it visible.
        accepted: how many findings ``[check] accept`` left out.
    """

    findings: tuple[Finding, ...]
    unseen: tuple[str, ...] = ()
    accepted: int = 0

    def count(self, severity: Severity) -> int:
        """Return how many findings have a severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def strict(self) -> Report:
        """Return the report with every warning as an error."""
        findings = []
        for finding in self.findings:
            is_warning = finding.severity is Severity.WARNING
            severity = Severity.ERROR if is_warning else finding.severity
            findings.append(replace(finding, severity=severity))
        return replace(self, findings=ordered(findings))

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {
            "findings": [finding.as_dict() for finding in self.findings],
            "errors": self.count(Severity.ERROR),
            "warnings": self.count(Severity.WARNING),
        }


def ordered(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings by severity, then by line."""
    ranks = list(Severity)

    def by_severity_and_line(finding: Finding) -> tuple[int, int]:
        return ranks.index(finding.severity), finding.line or 0

    return tuple(sorted(findings, key=by_severity_and_line))


def finding(name: str, path: Place, message: str) -> Finding:
    """Return a finding.

    Args:
        name: one of ``CODES``.
        path: where in the file; the key may be absent from it.
        message: what is wrong, without key material, passphrase or a URL's credentials. Names and paths in it come
            from the file: whoever prints it escapes what a terminal might act on.
    """
    code = CODES[name]
    return Finding(code=code, severity=code.severity, path=path, message=message)


Rule = Callable[[Target], Iterable[Finding]]


def on(table: str) -> Callable[[Callable[[Target, Any], Iterable[Finding]]], Rule]:
    """Return the decorator of a rule on one table of the file: without the table there is nothing to find."""

    def decorated(rule: Callable[[Target, Any], Iterable[Finding]]) -> Rule:
        def rule_if_present(target: Target) -> Iterable[Finding]:
            settings = getattr(target.settings, table)
            return () if settings is None else rule(target, settings)

        return rule_if_present

    return decorated
