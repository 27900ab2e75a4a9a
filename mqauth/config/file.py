"""What a configuration is read from: a TOML file, and the secrets that it only refers to.

A secret stands in an environment variable or in a file of its own; the setting that names it ends in ``_env`` or
``_file``.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Any, Final, TypeVar

from mqauth.config.declaration import Settings, read
from mqauth.config.table import Table
from mqauth.errors import ConfigurationError
from mqauth.keystore.disk import files

_MAX_FILE: Final = 1024 * 1024
_MAX_SECRET_FILE: Final = 64 * 1024
_MAX_PASSPHRASE: Final = 1023
S = TypeVar("S", bound=Settings)


def read_file(declared: type[S], path: Path) -> S:
    """Return the settings of a TOML file.

    Args:
        declared: the settings of the file as a whole.
        path: the file, at most 1 MiB.

    Raises:
        ConfigurationError: the file cannot be read, or a setting is refused.
    """
    return read(declared, Table(file=str(path), members=read_toml(path)[1]))


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
        name = str(file)
        raw = files.read_bounded(file, _MAX_SECRET_FILE).removesuffix(b"\n").removesuffix(b"\r")
    else:
        return None
    if not 1 <= len(raw) <= _MAX_PASSPHRASE:
        raise ConfigurationError(f"{name}: a passphrase has 1 to {_MAX_PASSPHRASE} bytes")
    return raw


def secret_of(found: Settings, name: str) -> bytes | None:
    """Return the secret that settings refer to, ``None`` where they name none.

    Args:
        found: settings with the fields ``NAME_env`` and ``NAME_file``.
        name: what is before these endings.

    Raises:
        RefusedSetting: as ``read_passphrase``, at the setting.
    """
    env, file = getattr(found, f"{name}_env"), getattr(found, f"{name}_file")
    with found.table.located(f"{name}_file" if env is None else f"{name}_env"):
        return read_passphrase(env=env, file=file)
