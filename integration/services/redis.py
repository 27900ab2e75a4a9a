"""Redis or Valkey: from a URL, from Docker Compose, or from the distribution's packages."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from integration.services import debian, probes
from integration.services.compose import ComposeService
from integration.services.handle import Service, from_environment
from integration.services.local import LocalServer
from integration.services.machine import LOOPBACK, Port, docker_answers, install

VARIABLE = "MQAUTH_REDIS_URL"
PACKAGE_VARIABLE = "MQAUTH_REDIS_PACKAGE"
"""Names a package of Debian's suite, `valkey-server` for example, to try another server than the machine's own."""
STANDARD_PORT = 6379


@dataclass(frozen=True, kw_only=True)
class Redis(Service):
    """A running Redis or Valkey."""

    ask = staticmethod(probes.redis)

    @classmethod
    def launch(cls) -> Redis:
        """Start one and return its handle."""
        return cls.begin()()

    @classmethod
    def begin(cls) -> Callable[[], Redis]:
        """Start one without waiting; the function returned waits until it is ready."""
        given = from_environment(VARIABLE)
        if given:
            return lambda: cls.ready(*given)
        port = Port(STANDARD_PORT)
        url = f"redis://{LOOPBACK}:{port.number}/0"
        server: ComposeService | LocalServer
        if docker_answers():
            server = ComposeService(
                "redis", env={"MQAUTH_REDIS_PORT": str(port.number)}, ports=[port]
            )
        else:
            server = _local(port)
        server.start()
        return lambda: cls.ready(url, server)


def prepare() -> None:
    """Install what a Redis needs here."""
    if not os.environ.get(VARIABLE) and not docker_answers():
        _program()


def _program() -> list[str]:
    """Return the words that start the server."""
    if package := os.environ.get(PACKAGE_VARIABLE):
        # Run with its own loader and libraries, it needs no chroot, and its data are where ours are.
        root = debian.root_with(package)
        loader, libraries = (
            next(root.glob("lib*/ld-linux-*")),
            next(root.glob("usr/lib/*-linux-gnu*")),
        )
        return [
            str(loader),
            "--library-path",
            str(libraries),
            str(root / "usr/bin" / package),
        ]
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return [found]
    install("redis-server", why="Redis")
    return ["redis-server"]


def _local(port: Port) -> LocalServer:
    program = _program()
    folder = Path(tempfile.mkdtemp(prefix="mqauth-redis-"))
    return LocalServer(
        origin=program[-1],
        commands=[
            [*program, "--bind", LOOPBACK, "--port", str(port.number), "--dir", str(folder),
             "--appendonly", "yes", "--save", ""]
        ],
        env=os.environ,
        folder=folder,
        ports=[port],
    )  # fmt: skip
