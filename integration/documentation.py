"""The documentation as data: its pages, their fenced blocks, and a folder in which these can be run in order.

The word after a fence's language says what a block is: `install` is run by CI as a whole, `rabbitmq`, `kafka`,
`kms`, `openbao`, `softhsm`, `keycloak`, `spire`, `taskiq`, `dramatiq` and `celery` need that service, `output` is
what the block before it prints (`...` stands for anything). In a tutorial `consumer` is a command that runs in a
second terminal, `handled` the next line that it prints. `review` is commands on dead letters, which a test runs on
a real queue, with ids of its own and `--yes`. `authority` is a command that serves identities, and then what needs
that server. In the tutorial of agents `again` starts a command anew that runs in a terminal, `attacker` starts one
that knows no graceful stop, and the name of an agent marks a line that its terminal shows.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from integration.forked import words

ROOT = Path(__file__).resolve().parents[1]
RABBITMQ_URL = "amqp://guest:guest@localhost/"
KAFKA_ADDRESS = "localhost:9092"
_FENCE = re.compile(r"^```(\w+)?[ ]?(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_NAME = re.compile(r"# ([\w./]+)\n")
_PATIENCE = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One fenced block: where it stands, and what its fence and its first line say."""

    page: str
    line: int
    language: str
    mark: str
    text: str

    @property
    def name(self) -> str:
        """The file its first line names, or one of our own making."""
        named = _NAME.match(self.text)
        return (
            named[1]
            if named
            else f"block_{self.line}.{'py' if self.language == 'python' else 'txt'}"
        )


def pages() -> list[str]:
    """Return the paths of the pages, from the root of the repository."""
    found = [
        ROOT / "README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / ".github").glob("*.md")),
    ]
    return [str(path.relative_to(ROOT)) for path in found]


def blocks(page: str) -> Iterator[Block]:
    """Yield the blocks of a page, in order."""
    text = (ROOT / page).read_text("utf-8")
    for found in _FENCE.finditer(text):
        line = text.count("\n", 0, found.start()) + 1
        yield Block(
            page=page, line=line, language=found[1] or "", mark=found[2], text=found[3]
        )


class Reader:
    """Someone who follows a page: puts its files into a folder, and runs its commands there.

    Args:
        folder: an empty one.
        changes: what this machine has in place of what the page says, URLs for example.
    """

    def __init__(self, folder: Path, changes: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self._changes = dict(changes or {})
        commands = folder / ".commands"
        commands.mkdir()
        for name in ("mqauth", "python"):
            command = commands / name
            command.write_text(f'#!/bin/sh\nexec {" ".join(words(name))} "$@"\n')
            command.chmod(0o755)
        self._python = str(commands / "python")
        self._environment = {
            **os.environ,
            # What whoever runs the tests asks of pytest is not what a page shows.
            "PYTEST_ADDOPTS": "",
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
        }

    def write(self, block: Block) -> Path:
        """Write a block to the file it names."""
        path = self._folder / block.name
        path.parent.mkdir(exist_ok=True)
        path.write_text(self.here(block.text))
        return path

    def run(self, block: Block) -> str:
        """Run a block to its end and return what it printed; it must exit with 0."""
        done = subprocess.run(
            self._words(block), cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=_PATIENCE, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (
            f"{block.page}:{block.line} exited with {done.returncode}:\n{done.stderr}"
        )
        return done.stdout

    def start(self, block: Block, **settings: Any) -> subprocess.Popen[str]:
        """Start a block that runs until it is stopped; the settings are those of ``Popen``."""
        settings = {"stdout": subprocess.PIPE, **settings}
        return subprocess.Popen(
            self._words(block), cwd=self._folder, env=self._environment, stdin=subprocess.DEVNULL, text=True,
            **settings,
        )  # fmt: skip

    def _words(self, block: Block) -> list[str]:
        if block.language == "python":
            return [self._python, str(self.write(block))]
        return ["bash", "-euo", "pipefail", "-c", self.here(block.text)]

    def here(self, text: str) -> str:
        """Return a text of the page with what this machine has in its place."""
        for said, meant in self._changes.items():
            text = text.replace(said, meant)
        return text


def matches(expected: str, printed: str) -> bool:
    """Tell whether an output block describes what was printed."""
    pattern = ".*".join(re.escape(part) for part in expected.strip().split("..."))
    return re.fullmatch(pattern, printed.strip(), re.DOTALL) is not None
