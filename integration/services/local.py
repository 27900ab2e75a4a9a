"""Servers run as processes of ours: own process groups, data in a temporary folder, a guard beside them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from integration.services.control import forget, watch
from integration.services.machine import Port, run

# Reads a word at an orderly stop; at end of file our process has died, even by SIGKILL, and it cleans up.
_GUARD = """
read -r word && exit
folder=$1; shift
for group; do kill -s KILL -- "-$group"; done
sleep 1
rm -rf -- "$folder"
"""
_STOP_WITHIN = 20.0
_TAIL = 25


class LocalServer:
    """A server of ours on this machine; the last of its commands is the server itself."""

    def __init__(
        self,
        *,
        origin: str,
        commands: Sequence[Sequence[str]],
        env: Mapping[str, str],
        folder: Path,
        ports: Sequence[Port],
        tool: Sequence[str] = (),
    ) -> None:
        self.origin = origin
        self._commands = commands
        self._env = dict(env)
        self.folder = folder
        self._ports = ports
        self._tool = tool
        self._log = folder / "server.log"
        self._running: list[subprocess.Popen[bytes]] = []
        self._guard: subprocess.Popen[bytes] | None = None
        watch(self)

    def start(self) -> None:
        """Start the commands, or continue them where they are paused."""
        if self._running and not self.ended():
            return self.resume()
        self._reap()
        with self._log.open("ab") as log:
            for argv in self._commands:
                self._running.append(
                    subprocess.Popen(
                        argv, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                        cwd=self.folder, start_new_session=True,
                    )
                )  # fmt: skip
        groups = [str(process.pid) for process in self._running]
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD, "guard", str(self.folder), *groups], env=self._env, stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        return None

    def stop(self) -> None:
        """Send SIGTERM to the server, wait for its end, then end what ran beside it."""
        self.resume()
        for process in reversed(self._running):
            with suppress(ProcessLookupError):
                process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(_STOP_WITHIN)
        self._reap()

    def kill(self) -> None:
        """Send SIGKILL to every process group of the server."""
        self._reap()

    def pause(self) -> None:
        """Send SIGSTOP to every process group of the server; return when every thread has stopped."""
        self._signal(signal.SIGSTOP)
        for process in (
            self._running
        ):  # a busy machine lets threads go on for a while after the signal
            with suppress(ChildProcessError):
                os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def resume(self) -> None:
        """Send SIGCONT to every process group of the server."""
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill the server, remove its folder and give its ports back."""
        self._reap()
        shutil.rmtree(self.folder, ignore_errors=True)
        for port in self._ports:
            port.release()
        forget(self)

    def ended(self) -> bool:
        """Tell whether the server, or anything it needs beside it, has ended."""
        return not self._running or any(
            process.poll() is not None for process in self._running
        )

    def tail(self) -> str:
        """Return the last lines of the server's log."""
        try:
            lines = self._log.read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "(no log)"
        return "\n".join(lines[-_TAIL:])

    def execute(self, *argv: str) -> str:
        """Run a command where the server runs."""
        return run([*self._tool, *argv], env=self._env, timeout=60, stderr=False)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)

    def _reap(self) -> None:
        self._signal(signal.SIGKILL)
        for process in self._running:
            process.wait()
        self._running.clear()
        if self._guard is not None:
            self._guard.communicate(b"done\n")
            self._guard = None
