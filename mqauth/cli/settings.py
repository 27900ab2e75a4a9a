"""The configuration of a command: ``--config``, else ``MQAUTH_CONFIG``, else ``mqauth.toml`` in this folder."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from mqauth.config.broker import ReviewSettings
from mqauth.config.declaration import read_file
from mqauth.config.settings import FileSettings
from mqauth.config.toml_file import read_passphrase
from mqauth.errors import require
from mqauth.keystore import signing_key
from mqauth.wire.keys import Key, SigningKey

FILE: Final = "mqauth.toml"


def file_of(config: Path | None) -> Path:
    """Return the configuration file.

    Args:
        config: the value of the option or of the environment.

    Raises:
        ConfigurationError: none is named, and this folder has none.
    """
    return require(
        config or (Path(FILE) if os.path.lexists(FILE) else None),
        f"no {FILE} in this folder: give --config FILE (of check: FILE alone), or set MQAUTH_CONFIG",
    )


def settings_of(config: Path | None) -> FileSettings:
    """Return the settings of the configuration file; without one, no setting is set.

    Raises:
        ConfigurationError: the file cannot be read, or a setting is refused.
    """
    is_there = config is not None or os.path.lexists(FILE)
    return read_file(FileSettings, file_of(config)) if is_there else FileSettings()


def review_of(file: FileSettings) -> ReviewSettings:
    """Return ``[review]``, without settings where the file has no such table."""
    return file.review or ReviewSettings()


def given(value: Path | None, option: str, setting: Path | None) -> Path:
    """Return the value of an option or, without it, of its setting in ``[review]``.

    Raises:
        ConfigurationError: neither is there.
    """
    return require(
        value or setting,
        f"{option}: required, or [review] {option.lstrip('-')} in {FILE}",
    )


def key_reader(
    path: Path, passphrase_env: str | None, passphrase_file: Path | None
) -> Callable[[], Key | SigningKey]:
    """Return a function that reads the reviewer's key from a keystore folder or PEM file."""
    return lambda: signing_key(
        path, passphrase=read_passphrase(env=passphrase_env, file=passphrase_file)
    )


def reviewer_of(read_key: Callable[[], Key | SigningKey], named: str | None) -> str:
    """Return the name of the reviewer: as given, the key's only subject, or the user of this machine."""
    subjects = sorted(getattr(read_key(), "subjects", None) or ())
    return named or (subjects[0] if len(subjects) == 1 else getpass.getuser())
