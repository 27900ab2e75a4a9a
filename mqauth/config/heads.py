"""The settings of signed heads, which an audit file of a consumer and one of an authority have alike."""

# No ``from __future__ import annotations``, as in ``settings``.

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

from mqauth.audit.file import HeadFile
from mqauth.clock import Clock
from mqauth.config.declaration import Settings, not_with, only_with
from mqauth.config.kinds import NAME, PATH, POSITIVE, seconds
from mqauth.wire.keys import Key

_HEADS: Final = only_with("heads")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadsSettings(Settings):
    """The part of a table with an audit file that says where the heads of its chain are signed."""

    heads: Annotated[
        Path | None, PATH, "A file for signed heads of the chain, best on another disk.", only_with("heads_key")
    ] = None
    heads_key: Annotated[Path | None, PATH, "The private key that signs the heads.", _HEADS] = None
    heads_every: Annotated[int, POSITIVE, "Records after which a head is signed.", _HEADS] = 1000
    heads_seconds: Annotated[int, seconds(1), "The time after which a head is signed.", _HEADS] = 60
    heads_passphrase_env: Annotated[
        str | None, NAME, "The environment variable with the passphrase of that key.", _HEADS
    ] = None
    heads_passphrase_file: Annotated[
        Path | None, PATH, "The file with the passphrase of that key.", _HEADS, not_with("heads_passphrase_env")
    ] = None

    def head_file(self, clock: Clock) -> HeadFile | None:
        """Return where heads are signed, ``None`` where they are not.

        Raises:
            RefusedSetting: the key cannot be read.
        """
        if self.heads is None or self.heads_key is None:
            return None
        passphrase = self.read_secret("heads_passphrase")
        with self.table.located("heads_key"):
            key = Key.load(self.heads_key, passphrase=passphrase)
        return HeadFile(self.heads, key, every=self.heads_every, seconds=self.heads_seconds, clock=clock)
