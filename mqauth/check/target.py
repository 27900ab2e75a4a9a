"""A configuration file as far as it can be read: one refused table does not hide the others from the rules."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from mqauth import config_settings as settings
from mqauth.check.findings import Finding
from mqauth.config_settings import (
    AuditSettings,
    AuthoritySettings,
    CheckSettings,
    ConsumerSettings,
    ProducerSettings,
    ReplaySettings,
    SourceSettings,
)
from mqauth.config_table import RefusedSetting, Table

_FEW: Final = 3
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the rules look at; a table that is absent or refused is ``None``.

    Args:
        file: the configuration file.
        now: UTC seconds.
        producer, consumer, replay, audit, dead_letters, authorities: the settings.
        options: ``[check]``.
        refusals: what was refused, one a table at most.
        present: the tables that are there, refused or not.
    """

    file: Path
    now: float
    producer: ProducerSettings | None
    consumer: ConsumerSettings | None
    replay: ReplaySettings | None
    audit: AuditSettings | None
    dead_letters: str | None
    authorities: tuple[AuthoritySettings, ...]
    options: CheckSettings
    refusals: tuple[RefusedSetting, ...]
    present: frozenset[str]

    @property
    def sources(self) -> tuple[SourceSettings, ...]:
        """Where keys come from that are believed: those of issuers and of release authorities."""
        issuers = () if self.consumer is None else self.consumer.issuers
        return (*(issuer.source for issuer in issuers), *(found.source for found in self.authorities))

    @property
    def is_memory(self) -> bool:
        """Whether the consumer's replay store is the one in memory."""
        return "replay" not in self.present if self.replay is None else self.replay.redis is None

    def shown(self, path: Path) -> str:
        """Return a path as the file names it, relative to its folder where it lies within."""
        return str(path.relative_to(self.file.parent) if path.is_relative_to(self.file.parent) else path)


Rule = Callable[[Target], Iterator[Finding]]
"""Looks for one kind of pitfall."""


def read(file: Path, members: Mapping[str, Any], *, now: float) -> Target:
    """Return the settings of every table that is not refused, and the refusals."""
    reader = _Reader(str(file), members)
    return Target(
        file=file,
        now=now,
        producer=reader.parse("producer", settings.producer),
        consumer=reader.parse("consumer", settings.consumer),
        replay=reader.parse("replay", settings.replay),
        audit=reader.parse("audit", settings.audit),
        dead_letters=reader.parse("dead_letters", lambda table: table.name_of("name")),
        authorities=reader.parse("release", settings.authorities) or (),
        options=reader.parse("check", settings.check) or CheckSettings(),
        refusals=tuple(reader.refusals),
        present=frozenset(members),
    )


def others(path: Path) -> int:
    """Return what group and others may do with a file or folder, as bits of its mode; 0 where it is missing."""
    status = _status(path)
    return 0 if status is None else stat.S_IMODE(status.st_mode) & 0o077


def strangers(path: Path) -> int:
    """Return the same but for a group that is nobody else: the owner's own, or one that root gave a file to."""
    status = _status(path)
    return 0 if status is None else others(path) & (0o007 if is_own_group(status.st_uid, status.st_gid) else 0o077)


def is_own_group(user: int, group: int) -> bool:
    """Tell whether a group is its user's alone, as with ``umask 002``, or a file is root's to share."""
    if user == 0:
        return True
    try:
        name, found = pwd.getpwuid(user).pw_name, grp.getgrgid(group)
    except KeyError:
        return False
    return found.gr_name == name and set(found.gr_mem) <= {name}


def mode(path: Path) -> str:
    """Return a file's mode as people write it."""
    status = _status(path)
    return "" if status is None else f"{stat.S_IMODE(status.st_mode):04o}"


def few(names: Sequence[str]) -> str:
    """Return a list as a few words."""
    more = len(names) - _FEW
    return ", ".join(names[:_FEW]) + (f" and {more} more" if more > 0 else "")


def _status(path: Path) -> os.stat_result | None:
    """Return what the system says of a file; ``None`` where it is missing, on which another rule speaks."""
    try:
        return path.stat()
    except OSError:
        return None


class _Reader:
    """Parses tables one by one and collects what is refused."""

    def __init__(self, file: str, members: Mapping[str, Any]) -> None:
        self.refusals: list[RefusedSetting] = []
        self._file = file
        self._members = members
        self._whole(tuple(settings.TABLES))

    def parse(self, name: str, parse: Callable[[Table], T]) -> T | None:
        """Return the settings of a table, ``None`` where it is absent or refused."""
        try:
            table = self._whole(None).table(name, settings.TABLES[name])
            return None if table is None else parse(table)
        except RefusedSetting as refused:
            self.refusals.append(refused)
            return None

    def _whole(self, known: tuple[str, ...] | None) -> Table:
        """Return the file as a table; an unknown table is noted."""
        try:
            return Table(file=self._file, name="", members=self._members, known=known)
        except RefusedSetting as refused:
            self.refusals.append(refused)
            return Table(file=self._file, name="", members=self._members)
