"""Services run by Docker Compose from the repository's docker-compose.yml, a project of its own for each."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

from integration.services.control import forget, watch
from integration.services.machine import CommandError, Port, run

FILE = Path(__file__).resolve().parents[2] / "docker-compose.yml"
RUN_VARIABLE = "MQAUTH_TEST_RUN"
_UP_WITHIN = 600.0  # images are pulled on first use
_WITHIN = 90.0


class ComposeService:
    """One service of docker-compose.yml, in a Compose project that nobody else has."""

    origin = "Docker Compose"

    def __init__(
        self,
        service: str,
        *,
        env: Mapping[str, str],
        ports: Sequence[Port],
        folder: Path | None = None,
    ) -> None:
        project = f"mqauth-{os.environ.get(RUN_VARIABLE, 'own')}-{secrets.token_hex(3)}"
        self._service = service
        self._words = [
            "docker",
            "compose",
            "--ansi",
            "never",
            "-p",
            project,
            "-f",
            str(FILE),
        ]
        self._env = {**os.environ, **env}
        self._ports = ports
        self._folder = folder
        watch(self)

    def _compose(self, *words: str, timeout: float = _WITHIN, stderr: bool = True) -> str:
        return run([*self._words, *words], env=self._env, timeout=timeout, stderr=stderr)

    def start(self) -> None:
        """Create and start the container, or continue it where it is paused."""
        state = self._state()
        if state == "paused":
            self._compose("unpause", self._service)
        elif (
            state != "running"
        ):  # no --wait: the handle asks by protocol, and three start side by side
            self._compose("up", "-d", "--no-recreate", self._service, timeout=_UP_WITHIN)

    def stop(self) -> None:
        """Stop the container and keep its data."""
        self.resume()
        self._compose("stop", self._service)

    def kill(self) -> None:
        """Send SIGKILL to the container's server."""
        self._compose("kill", "-s", "SIGKILL", self._service)

    def pause(self) -> None:
        """Freeze the container."""
        self._compose("pause", self._service)

    def resume(self) -> None:
        """Let the container go on, if it was paused."""
        if self._state() == "paused":
            self._compose("unpause", self._service)

    def close(self) -> None:
        """Remove the project with its container, network and volumes."""
        self.resume()
        self._compose("down", "--volumes", "--timeout", "5")
        if self._folder is not None:
            for file in self._folder.iterdir():
                file.unlink()
            self._folder.rmdir()
        for port in self._ports:
            port.release()
        forget(self)

    def ended(self) -> bool:
        """Tell whether the container is not running."""
        return self._state() not in {"running", "paused"}

    def tail(self) -> str:
        """Return the last lines of the container's log."""
        try:
            return self._compose("logs", "--no-color", "--tail", "25", self._service)
        except CommandError as failed:
            return str(failed)

    def execute(self, *argv: str) -> str:
        """Run a command in the container."""
        return self._compose("exec", "-T", self._service, *argv, stderr=False)

    def image_tag(self) -> str:
        """Return the tag of the image that the container runs."""
        return self._inspect("{{.Config.Image}}").rpartition(":")[2]

    def _inspect(self, template: str) -> str:
        container = self._container()
        return run(
            ["docker", "inspect", "--format", template, container], timeout=_WITHIN
        ).strip()

    def _container(self) -> str:
        return self._compose("ps", "--all", "-q", self._service, stderr=False).strip()

    def _state(self) -> str:
        return self._inspect("{{.State.Status}}") if self._container() else "absent"
