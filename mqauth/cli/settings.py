"""The configuration of a command: ``--config``, else ``MQAUTH_CONFIG``, else ``mqauth.toml`` in this folder."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from mqauth.config.broker import ReviewSettings
from mqauth.config.declaration import read_file
from mqauth.config.settings import FileSettings
from mqauth.errors import ConfigurationError

FILE: Final = "mqauth.toml"


def file_of(config: Path | None) -> Path:
    """Return the configuration file.

    Args:
        config: the value of the option or of the environment.

    Raises:
        ConfigurationError: none is named, and this folder has none.
    """
    if config is not None or os.path.lexists(FILE):
        return config or Path(FILE)
    raise ConfigurationError(
        f"no {FILE} in this folder: give --config FILE (of check: FILE alone), or set MQAUTH_CONFIG"
    )


def settings_of(config: Path | None) -> FileSettings:
    """Return the settings of the configuration file; without one, no setting is set.

    Raises:
        ConfigurationError: the file cannot be read, or a setting is refused.
    """
    if config is None and not os.path.lexists(FILE):
        return FileSettings()
    return read_file(FileSettings, file_of(config))


def review_of(file: FileSettings) -> ReviewSettings:
    """Return ``[review]``, without settings where the file has no such table."""
    return file.review or ReviewSettings()


def given(value: Path | None, option: str, setting: Path | None) -> Path:
    """Return the value of an option or, without it, of its setting in ``[review]``.

    Raises:
        ConfigurationError: neither is there.
    """
    found = setting if value is None else value
    if found is None:
        raise ConfigurationError(f"{option}: required, or [review] {option.lstrip('-')} in {FILE}")
    return found
