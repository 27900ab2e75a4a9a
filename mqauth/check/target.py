"""A configuration file as the rules see it: its settings as far as they can be read, and where each key stands.

One table that is refused does not hide the others. Keystores are seen too: which tables name them, whose keys they
hold, and what references rest on. ``tomllib`` gives values without their places, so the file is read once more, a
statement at a time, to learn on which line each key stands.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any, Final, NamedTuple, TypeVar

from mqauth.authority.application import MAX_AGE
from mqauth.config.declaration import collect
from mqauth.config.issuer_settings import IssuerSettings, SourceSettings
from mqauth.config.settings import AuthoritySettings, CheckSettings, FileSettings, ReplaySettings
from mqauth.config.toml_file import RefusedSetting, Table, read_passphrase
from mqauth.errors import ConfigurationError
from mqauth.keystore import Keystore
from mqauth.keystore.disk.ring import KeyRing
from mqauth.keystore.reference import pkcs11_uri, transit

Path = tuple[str | int, ...]
"""Keys from the top of the file; an element of an array by its number, from 0."""
_FEW: Final = 3
FRESH: Final = 300
"""Seconds for which a consumer uses a fetched set without asking again, by default."""
T = TypeVar("T")


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
    keys: FilePath
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

    def passphrase(self) -> bytes | None:
        """Return the passphrase, ``None`` if there is none.

        Raises:
            ConfigurationError: it cannot be read.
        """
        return read_passphrase(env=self.settings.passphrase_env, file=self.settings.passphrase_file)


class Reference(NamedTuple):
    """A key of a keystore that something else holds.

    Args:
        uri: the reference, as people may see it: without what stands behind its question mark.
        secret: the file with the token or the PIN, ``None`` where the environment has it.
        ca: the file of the CAs to trust in place of the system's.
        host: where it is asked by http.
    """

    uri: str
    secret: FilePath | None
    ca: FilePath | None = None
    host: str | None = None

    @classmethod
    def of(cls, uri: str) -> Reference:
        """Return what a reference names on this machine.

        Raises:
            ConfigurationError: it cannot be read, or is none.
        """
        shown = uri.partition("?")[0]
        if uri.startswith(transit.SCHEME):
            key = transit.TransitReference.parse(uri)
            return cls(shown, key.token_file, key.ca, key.server if key.server.startswith("http:") else None)
        kind, _, name = (pkcs11_uri.parse(uri).pin_source or "").partition(":")
        return cls(shown, FilePath(name) if kind == "file" else None)


def unless_refused(read: Callable[[], T]) -> T | None:
    """Return what a reader of a file returns, ``None`` where it refuses the file."""
    try:
        return read()
    except ConfigurationError:
        return None


def ring_of(folder: FilePath) -> KeyRing | None:
    """Return the keys of a keystore folder, ``None`` if it is no folder or cannot be read."""
    return unless_refused(Keystore(folder=folder).ring) if os.path.isdir(folder) else None


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

    file: FilePath
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
        return (*self.issuers, *self.authorities, *(() if authority is None else authority.credentials))

    @property
    def signers(self) -> tuple[Signs, ...]:
        """The tables that name keys which sign."""
        producer, authority = self.settings.producer, self.settings.authority
        signers = []
        if producer is not None and producer.keys is not None:
            waits = 0 if self.settings.consumer is None else self.settings.consumer.max_queue_age or 0
            signers.append(Signs("producer", producer, producer.keys, FRESH, producer.lifetime + waits))
        if authority is not None:
            # What it vouched for lives out by the overlap of its keys, and its set is fresh for a minute.
            signers.append(Signs("authority", authority, authority.keys, MAX_AGE, 0))
        return tuple(signers)

    @property
    def references(self) -> Iterator[tuple[Signs, Reference]]:
        """The references of all keystores, each with the table that names the keystore."""
        seen = set()
        for signs in self.signers:
            for key in () if signs.ring is None else signs.ring.keys:
                # What cannot be read is for the configuration's own reader.
                with suppress(ConfigurationError):
                    named = Reference.of(key.uri or "")
                    if (signs.at, *named[1:]) not in seen:
                        seen.add((signs.at, *named[1:]))
                        yield signs, named

    @property
    def audit_files(self) -> tuple[tuple[Path, FilePath], ...]:
        """The audit files, each with where it is named."""
        audit, authority = self.settings.audit, self.settings.authority
        files = [] if audit is None else [(("audit", "file"), audit.file)]
        return (*files, *([] if authority is None else [(("authority", "audit"), authority.audit)]))

    @property
    def replay(self) -> ReplaySettings | None:
        """The consumer's replay store; ``None`` if its table is refused."""
        return ReplaySettings() if "replay" not in self.present else self.settings.replay

    def shown(self, path: FilePath) -> str:
        """Return a path relative to the folder of the configuration file, if it lies within."""
        return str(path.relative_to(self.file.parent) if path.is_relative_to(self.file.parent) else path)


def read(file: FilePath, members: Mapping[str, Any], *, now: float) -> Target:
    """Return the settings of every table that is not refused, and the refusals."""
    values, refusals = collect(FileSettings, Table(file=str(file), members=members))
    return Target(
        file=file,
        now=now,
        settings=FileSettings(**values),
        refusals=tuple(refusals),
        present=frozenset(members),
    )


def others(path: FilePath) -> int:
    """Return what group and others may do with a file or folder, as bits of its mode; 0 if it is missing."""
    status = _status(path)
    return 0 if status is None else stat.S_IMODE(status.st_mode) & 0o077


def strangers(path: FilePath) -> int:
    """Return the bits of ``others``, without those of a group that is only the owner's or that root has chosen."""
    status = _status(path)
    return 0 if status is None else others(path) & (0o007 if is_own_group(status.st_uid, status.st_gid) else 0o077)


def is_own_group(user: int, group: int) -> bool:
    """Tell whether a group has no member but its user, as with ``umask 002``, or the user is root."""
    try:
        name, entry = pwd.getpwuid(user).pw_name, grp.getgrgid(group)
    except KeyError:
        return user == 0
    return user == 0 or (entry.gr_name == name and set(entry.gr_mem) <= {name})


def mode(path: FilePath) -> str:
    """Return a file's mode as people write it."""
    status = _status(path)
    return "" if status is None else f"{stat.S_IMODE(status.st_mode):04o}"


def few(names: Sequence[str]) -> str:
    """Return the first names of a list, and how many more there are."""
    more = len(names) - _FEW
    return ", ".join(names[:_FEW]) + (f" and {more} more" if more > 0 else "")


def _status(path: FilePath) -> os.stat_result | None:
    # A missing file is no finding here: the configuration's own reader reports it.
    try:
        return path.stat()
    except OSError:
        return None


def lines_of(text: str) -> Mapping[Path, int]:
    """Return the line, from 1, of every table and key of a TOML text; elements have the line of their key.

    It is read by tomllib statement by statement. Of a text that is nested too deep the lines found so far stand.

    Args:
        text: any text that ``tomllib.loads`` accepts.
    """
    lines: dict[Path, int] = {}
    elements: dict[Path, int] = {}
    base: Path = ()
    statement, start = "", 1
    for number, line in enumerate(text.split("\n"), 1):
        statement += f"\n{line}" if statement else line
        try:
            value = tomllib.loads(statement)
        except (RecursionError, ValueError):
            # It goes on in the next line.
            continue
        if statement.lstrip().startswith("["):
            # A header: each table on the way, of an array of tables its last element so far.
            base = ()
            while value:
                ((key, value),) = value.items()
                base = (*base, key)
                # A table may have been noted with one within it before; its own header tells more.
                lines[base] = lines.get(base, number) if value else number
                if isinstance(value, list):
                    value, elements[base] = {}, elements.get(base, 0) + 1
                if base in elements:
                    base = (*base, elements[base] - 1)
                    lines.setdefault(base, number)
        for path in _paths(value, base):
            lines.setdefault(path, start)
        statement, start = "", number + 1
    return lines


def _paths(value: Any, base: Path) -> Iterator[Path]:
    """Yield the paths of all keys and elements within a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in inside:
        yield (*base, key)
        yield from _paths(inner, (*base, key))


def nearest(lines: Mapping[Path, int], path: Path) -> int | None:
    """Return the line of a path or, if it is not in the file, of the innermost table around it."""
    for length in range(len(path), 0, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None
