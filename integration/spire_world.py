"""A trust domain of a real SPIRE, and whoever follows the page on it: for the tests of SPIRE.

All that is set up, SPIRE's settings included, stands on the page. An authority runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from integration import waiting
from integration.documentation import Block, Reader, blocks, matches
from integration.services.machine import LOOPBACK, CommandError, Port, run
from integration.services.spire import PROGRAMS, Agent, Spire, program
from integration.waiting import PATIENCE
from mqauth import TokenFile
from mqauth.clock import SYSTEM_CLOCK, SYSTEM_RANDOMNESS
from mqauth.keystore.identity.request import IdentityRequest, Refused

PAGE: Final = "docs/how-to/use-spire.md"
DOMAIN: Final = "prod.example"
ORDERS: Final = f"spiffe://{DOMAIN}/shop/orders-api"
STOCK: Final = f"spiffe://{DOMAIN}/shop/stock-api"
SUBJECT: Final = f"wimse://{DOMAIN}/shop/orders-api"
until: Final = partial(waiting.until, moment=0.5)
_SERVE: Final = "mqauth authority serve"
_FETCH: Final = "spire-agent api fetch"


class Answered(NamedTuple):
    """What the authority did with a credential.

    Args:
        error: what it answered, empty where it gave an identity.
        record: of its audit.
    """

    error: str
    record: dict[str, Any]

    @property
    def reason(self) -> str:
        """Why, by the audit record."""
        return str(self.record.get("reason"))


def settings() -> str:
    """Return what the page has for the ``server`` section of SPIRE's settings."""
    return "\n".join(block.text for block in blocks(PAGE) if block.language == "hcl")


def parts() -> tuple[list[Block], list[Block]]:
    """Return the blocks of the page on JWT-SVIDs, and those on WIT-SVIDs."""
    found = list(blocks(PAGE))
    (begins,) = (
        number
        for number, block in enumerate(found)
        if block.text.startswith("experimental")
    )
    return found[:begins], found[begins:]


class Shop:
    """Someone who follows the page beside a server and an agent.

    Args:
        spire: the server.
        agent: of it.
        folder: an empty one.
    """

    def __init__(self, spire: Spire, agent: Agent, folder: Path) -> None:
        self.spire, self.agent, self.folder = spire, agent, folder
        self.port = Port()
        self.url = f"http://{LOOPBACK}:{self.port.number}"
        self.reader = Reader(
            folder,
            {"8443": str(self.port.number), "unix:uid:1000": f"unix:uid:{os.getuid()}"},
        )
        self.printed: list[str] = []
        for name, socket in zip(PROGRAMS, (spire.socket, agent.socket), strict=True):
            command = folder / ".commands" / name
            command.write_text(
                f'#!/bin/sh\nexec {program(name)} "$@" -socketPath {socket}\n'
            )
            command.chmod(0o755)

    # --- the page -------------------------------------------------------------------------------------------

    def follow(self, found: Sequence[Block]) -> None:
        """Write the files of some blocks, and run their commands; what these print is kept."""
        for block in found:
            if block.language == "toml":
                self.reader.write(block)
            elif block.mark == "output":
                assert matches(block.text, self.printed[-1]), (
                    f"{PAGE}:{block.line}: printed {self.printed[-1]}"
                )
            elif block.language in ("python", "sh"):
                if _FETCH in block.text:
                    until(lambda: self.jwt(ORDERS, self.url))
                self.printed.append(self.reader.run(block))

    @contextmanager
    def following(self) -> Iterator[None]:
        """Follow the page's part on JWT-SVIDs, and let its authority run while the block does."""
        found = parts()[0]
        (serve,) = (
            number for number, block in enumerate(found) if block.text.startswith(_SERVE)
        )
        self.follow(found[:serve])
        with self.serving(found[serve]):
            self.follow(found[serve + 1 :])
            yield

    @contextmanager
    def serving(self, block: Block) -> Iterator[None]:
        """Run an authority while the block does."""
        process = self.reader.start(block)
        assert process.stdout is not None
        watch = threading.Timer(10 * PATIENCE, process.kill)
        watch.start()
        try:
            assert f"{self.url}/v1/identity" in process.stdout.readline()
            yield
            process.terminate()
            assert process.wait(PATIENCE) == 0
        finally:
            watch.cancel()
            process.kill()
            process.wait()
            process.stdout.close()

    def run(self, text: str) -> str:
        """Run a command as the page's are, and return what it printed."""
        return self.reader.run(
            Block(page=PAGE, line=0, language="sh", mark="", text=text)
        )

    def fails(self, text: str) -> str:
        """Return what a command prints that fails as the page says."""
        try:
            return f"it ended well: {self.run(text)}"
        except AssertionError as failed:
            return str(failed)

    # --- what SPIRE gives -----------------------------------------------------------------------------------

    def register(self, subject: str) -> None:
        """Register a workload that runs as we do, and wait until the agent knows of it."""
        words = [
            "-parentID",
            self.agent.identity,
            "-spiffeID",
            subject,
            "-selector",
            f"unix:uid:{os.getuid()}",
        ]
        self.spire.tell("entry", "create", *words)
        until(lambda: self.jwt(subject, self.url))

    def jwt(self, subject: str, *audience: str) -> str:
        """Return a JWT-SVID from the agent, empty where it gives none."""
        words = [
            "-audience",
            ",".join(audience),
            "-spiffeID",
            subject,
            "-socketPath",
            str(self.agent.socket),
        ]
        command = [
            str(program("spire-agent")),
            "api",
            "fetch",
            "jwt",
            *words,
            "-output",
            "json",
        ]
        with suppress(CommandError):
            return str(
                json.loads(run(command, timeout=60, stderr=False))[0]["svids"][0]["svid"]
            )
        return ""

    # --- the authority --------------------------------------------------------------------------------------

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the authority's audit file that are no alerts."""
        lines = (self.folder / "authority.jsonl").read_text().splitlines()
        return [found for found in map(json.loads, lines) if found["verdict"] != "alert"]

    def ask(self, credential: str) -> Answered:
        """Ask the authority as a producer does."""
        before, path = len(self.records()), self.folder / "asked"
        path.write_text(credential)
        request = IdentityRequest(
            self.url, subject=SUBJECT, credential=TokenFile(path), timeout=5, ca=None, unsafe_http_loopback=True,
            clock=SYSTEM_CLOCK, randomness=SYSTEM_RANDOMNESS,
        )  # fmt: skip
        error = ""
        try:
            request()
        except Refused as refused:
            error = str(refused)
        (record,) = self.records()[before:]
        return Answered(error, record)

    def close(self) -> None:
        """Give the port back."""
        self.port.release()


def mint(spire: Spire, *words: str, subject: str = ORDERS) -> dict[str, Any]:
    """Return what ``wit mint`` or ``jwt mint`` of a server's administrator prints."""
    kind, *rest = words
    found: dict[str, Any] = spire.tell(kind, "mint", "-spiffeID", subject, *rest)
    return found


def completed(*words: str) -> subprocess.CompletedProcess[str]:
    """Run a program of SPIRE that may fail."""
    return subprocess.run(
        words, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
