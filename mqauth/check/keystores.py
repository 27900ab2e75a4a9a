"""Keystores as the rules see them: which tables name them, whose keys they hold, and what references rest on."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path as FilePath
from typing import Any, Final, NamedTuple, TypeVar

from mqauth.config.toml_file import read_passphrase
from mqauth.errors import ConfigurationError
from mqauth.keystore import Keystore
from mqauth.keystore.disk.ring import KeyRing
from mqauth.keystore.reference import pkcs11_uri, transit

T = TypeVar("T")
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
        """Return the passphrase, ``None`` if there is none or it cannot be read."""
        env, file = self.settings.passphrase_env, self.settings.passphrase_file
        return unless_refused(lambda: read_passphrase(env=env, file=file))

    @property
    def is_open(self) -> bool:
        """Whether the keys need no passphrase, or theirs can be read here."""
        named = self.settings.passphrase_env is not None or self.settings.passphrase_file is not None
        return not named or self.passphrase() is not None


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


def unless_refused(read: Callable[[], T]) -> T | None:
    """Return what a reader of a file returns, ``None`` where it refuses the file."""
    try:
        return read()
    except ConfigurationError:
        return None


def ring_of(folder: FilePath) -> KeyRing | None:
    """Return the keys of a keystore folder, ``None`` if it is no folder or cannot be read."""
    return unless_refused(Keystore(folder=folder).ring) if os.path.isdir(folder) else None


def reference_of(uri: str) -> Reference | None:
    """Return what a reference names on this machine, ``None`` where it cannot be read."""
    shown = uri.partition("?")[0]
    if uri.startswith(transit.SCHEME):
        place = unless_refused(lambda: transit.Place.parse(uri))
        plain = place is not None and place.server.startswith("http:")
        return (
            None
            if place is None
            else Reference(shown, place.token_file, place.ca, place.server if plain else None)
        )
    token = unless_refused(lambda: pkcs11_uri.parse(uri))
    kind, _, name = ((token and token.pin_source) or "").partition(":")
    return None if token is None else Reference(shown, FilePath(name) if kind == "file" else None)
