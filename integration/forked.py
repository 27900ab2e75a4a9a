"""Python commands by forks of one interpreter that has imported what they need, which takes most of their time.

A fork has the folder, environment, streams and arguments of whoever asks for it by ``integration.ask_fork``; it
gets his signals, and he its exit code. The nightly form of the tests starts an interpreter for each command, as
users do: only so is an import seen that a page forgot.
"""

from __future__ import annotations

import array
import atexit
import gc
import importlib
import json
import os
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal, NoReturn

from integration import ask_fork
from integration.scale import is_nightly

ROOT: Final = Path(__file__).resolve().parents[1]
IMPORTED: Final = (
    "asyncio", "sqlite3", "pydantic", "rich.console", "starlette.applications", "uvicorn", "mqauth.cli.app",
    "mqauth.cli.check", "mqauth.cli.dlq", "mqauth.cli.init", "mqauth.cli.keys", "mqauth.cli.serve",
    "mqauth.cli.sign", "mqauth.config.load", "mqauth.testing", "mqauth.signer", "mqauth.judging.pipeline",
    "mqauth.brokers.memory", "mqauth.brokers.rabbitmq", "mqauth.brokers.pika", "mqauth.brokers.kafka",
    "mqauth.brokers.confluent", "mqauth.brokers.aiokafka",
)  # fmt: skip
"""Modules that are imported before a fork."""


class Forks:
    """An interpreter that forks, until this process ends."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="mqauth-forks-"))
        self._address = self._folder / "socket"
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self._address))
            listening.listen(64)
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "integration.forked", str(listening.fileno())],
                cwd=ROOT, pass_fds=[listening.fileno()], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            )  # fmt: skip
        atexit.register(self.close)

    def words(self, kind: str) -> list[str]:
        """Return the beginning of a command that is run by a fork."""
        return [sys.executable, "-I", "-S", ask_fork.__file__, str(self._address), kind]

    def close(self) -> None:
        """End the interpreter; its forks go on for as long as those who asked for them."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)


@cache
def _forks() -> Forks:
    return Forks()


def words(kind: Literal["mqauth", "python"]) -> list[str]:
    """Return the beginning of a command: ``mqauth``, or ``python`` with a file, ``-m`` or ``-c``."""
    if is_nightly():
        return [sys.executable, *(["-m", "mqauth"] if kind == "mqauth" else [])]
    return _forks().words(kind)


def serve(listening: socket.socket) -> dict[str, Any]:
    """Fork for each that asks; return, in what was forked, what it is to run."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [])
        if sys.stdin in ready:
            sys.exit()
        asking, _ = listening.accept()
        # What a fork has cost counts for this process once it was waited for.
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:
            listening.close()
            return _accompanied(asking)
        asking.close()


def _accompanied(asking: socket.socket) -> dict[str, Any]:
    """Fork once more: the child is to run the command, the parent stays beside it."""
    head, ancillary, *_ = asking.recvmsg(4, socket.CMSG_SPACE(ask_fork.STREAMS * 4))
    streams = array.array("i", ancillary[0][2])
    wish = b""
    # No byte more: what follows are signals.
    while missing := int.from_bytes(head, "big") - len(wish):
        part = asking.recv(missing)
        if not part:
            os._exit(0)
        wish += part
    running = os.fork()
    if running:
        for stream in streams:
            os.close(stream)
        _stay_beside(running, asking)
    asking.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin, sys.stdout, sys.stderr = (
        os.fdopen(number, mode) for number, mode in enumerate("rww")
    )
    sys.stderr.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    wanted: dict[str, Any] = json.loads(wish)
    return wanted


def _stay_beside(running: int, asking: socket.socket) -> NoReturn:
    """Tell a process's exit code; pass signals on to it, and kill it where whoever asked is gone."""
    ended = os.pidfd_open(running)
    while True:
        ready, _, _ = select.select([ended, asking], [], [])
        if ended in ready:
            code = os.waitstatus_to_exitcode(os.waitpid(running, 0)[1])
            with suppress(OSError):
                asking.sendall(code.to_bytes(ask_fork.CODE, "big", signed=True))
            os._exit(0)
        number = asking.recv(1)
        os.kill(running, number[0] if number else signal.SIGKILL)
        if not number:
            os.waitpid(running, 0)
            os._exit(0)


def run(kind: str, arguments: list[str], cwd: str, env: dict[str, str]) -> int:
    """Run a command in this process, as a new interpreter would."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if kind == "mqauth":
        from mqauth.cli import main

        sys.argv = ["mqauth", *arguments]
        return main()
    if arguments[0] == "-m":
        # pytest, for one, is told of modules that were imported before it.
        os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606 - the command itself
    elif arguments[0] == "-c":
        sys.path[0], sys.argv = cwd, ["-c", *arguments[2:]]
        sys.modules["__main__"] = program = ModuleType("__main__")
        exec(compile(arguments[1], "<string>", "exec"), program.__dict__)  # noqa: S102 - a test's own program
    else:
        sys.path[0], sys.argv = str(Path(arguments[0]).resolve().parent), arguments
        runpy.run_path(arguments[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    for name in IMPORTED:
        importlib.import_module(name)
    # What is there already is neither looked through for garbage nor copied for that.
    gc.collect()
    gc.freeze()
    sys.exit(run(**serve(socket.socket(fileno=int(sys.argv[1])))))
