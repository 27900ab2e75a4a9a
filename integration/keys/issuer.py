"""``mqauth keys serve`` in a process of its own, that can go down and come back at the same address."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from integration.services.machine import Port

PATIENCE = 60.0
_COMMAND = [sys.executable, "-m", "mqauth", "keys", "serve", "--json"]


class IssuerProcess:
    """An issuer's key server; a context manager.

    Args:
        folders: the keystores it publishes.
        options: further options of the command.
    """

    def __init__(self, folders: Sequence[Path], *options: str) -> None:
        self._folders = [word for folder in folders for word in ("--dir", str(folder))]
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._port = Port()  # while the server is down, no client's socket takes it
        self.url = ""

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.down()
        self._port.release()

    def up(self) -> None:
        """Start it, always at the same port."""
        command = [*_COMMAND, *self._folders, "--port", str(self._port.number), *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the key server did not start"
        self.url = json.loads(line)["url"]

    def down(self) -> None:
        """Stop it in order; it must end well."""
        assert self._end(signal.SIGTERM) in (0, None)

    def kill(self) -> None:
        """End it without warning."""
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        process.send_signal(number)
        code = process.wait(PATIENCE)
        assert process.stdout is not None
        process.stdout.close()
        return code
