"""SoftHSM, from the distribution's packages: an HSM in software, a library that is loaded where it is used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from integration.services.machine import UnavailableError, install, run

PIN: Final = "1234"
_SO_PIN: Final = "5678"
_PROGRAMS: Final = {"softhsm2-util": "softhsm2", "pkcs11-tool": "opensc"}
_LIBRARIES: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)


def prepare() -> None:
    """Install what a SoftHSM needs here."""
    missing = [
        package for program, package in _PROGRAMS.items() if not shutil.which(program)
    ]
    if missing:
        install(*missing, why="SoftHSM, and the command that makes its keys")


@cache
def library() -> str:
    """Return the path of the library."""
    prepare()
    for path in _LIBRARIES:
        if Path(path).is_file():
            return path
    raise UnavailableError(f"SoftHSM: its library is none of {', '.join(_LIBRARIES)}")


@dataclass(frozen=True, kw_only=True)
class SoftHSM:
    """Tokens in a folder, for each process that has ``environment``; there is nothing to start or stop.

    Args:
        folder: its configuration and its tokens.
    """

    folder: Path

    ours = False
    """It cannot be brought up again, since it is never down."""
    origin = "Debian packages softhsm2 and opensc"

    @property
    def url(self) -> str:
        """The path of the library."""
        return library()

    @property
    def version(self) -> str:
        """What it says of itself."""
        return run(["softhsm2-util", "--version"], timeout=60).strip()

    @property
    def tokens(self) -> Path:
        """The folder of the tokens; what moves it away takes all tokens out of the machine."""
        return self.folder / "tokens"

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables of processes that use it."""
        return {
            "SOFTHSM2_CONF": str(self.folder / "softhsm2.conf"), "PKCS11_MODULE": library(),
            "MQAUTH_PKCS11_PIN": PIN,
        }  # fmt: skip

    @classmethod
    def launch(cls, folder: Path, *labels: str) -> SoftHSM:
        """Make one in a folder, with a token of each label."""
        library()
        found = cls(folder=folder)
        found.tokens.mkdir(parents=True)
        (folder / "softhsm2.conf").write_text(
            f"directories.tokendir = {found.tokens}\nobjectstore.backend = file\nlog.level = ERROR\n"
        )
        for label in labels:
            found.token(label)
        return found

    def token(self, label: str) -> None:
        """Make a token."""
        self._run(
            "softhsm2-util",
            "--init-token",
            "--free",
            "--label",
            label,
            "--pin",
            PIN,
            "--so-pin",
            _SO_PIN,
        )

    def generate(
        self,
        label: str,
        kind: str = "EC:prime256v1",
        *,
        inside: str = "prod",
        id: str = "01",
    ) -> None:
        """Make a key pair in a token.

        Args:
            label: of both its objects.
            kind: as ``pkcs11-tool --key-type`` has it, ``EC:edwards25519`` for example.
            inside: the label of the token.
            id: hexadecimal.
        """
        self.tool(
            "--token-label",
            inside,
            "--keypairgen",
            "--key-type",
            kind,
            "--label",
            label,
            "--id",
            id,
        )

    def tool(self, *arguments: str) -> str:
        """Run ``pkcs11-tool``, logged in."""
        return self._run(
            "pkcs11-tool", "--module", library(), "--login", "--pin", PIN, *arguments
        )

    def _run(self, *command: str) -> str:
        return run([*command], timeout=60, env={**os.environ, **self.environment})
