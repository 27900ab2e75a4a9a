"""A configuration file as far as it can be read: one refused table does not hide the others from the rules."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mqauth.check.findings import Finding
from mqauth.config.declaration import collect
from mqauth.config.settings import (
    AuditSettings,
    AuthoritySettings,
    CheckSettings,
    ConsumerSettings,
    FileSettings,
    ProducerSettings,
    ReplaySettings,
    SourceSettings,
)
from mqauth.config.toml_file import RefusedSetting, Table

_FEW: Final = 3


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
        return (*issuers, *self.authorities)

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
    values, refusals = collect(FileSettings, Table(file=str(file), members=members))
    found = FileSettings(**values)
    return Target(
        file=file,
        now=now,
        producer=found.producer,
        consumer=found.consumer,
        replay=found.replay,
        audit=found.audit,
        dead_letters=None if found.dead_letters is None else found.dead_letters.name,
        authorities=() if found.release is None else found.release.authorities,
        options=found.check or CheckSettings(),
        refusals=tuple(refusals),
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
