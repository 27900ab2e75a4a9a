"""Commands that are run by forks, as the tests of commands have them run."""

from __future__ import annotations

import array
import json
import os
import signal
import socket

from integration import ask_fork
from integration.forked import ROOT, Forks


def test_a_signal_that_comes_with_the_command() -> None:
    """A signal that was sent before the fork has read its command is passed on to it."""
    forks = Forks()
    wish = {
        "kind": "python",
        "arguments": ["-c", "import time; time.sleep(60)"],
        "cwd": str(ROOT),
        "env": {},
    }
    body, nowhere = json.dumps(wish).encode(), os.open(os.devnull, os.O_RDWR)
    streams = array.array("i", [nowhere] * ask_fork.STREAMS)
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(forks.words("python")[4])
        asking.sendmsg(
            [len(body).to_bytes(4, "big")],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)],
        )
        asking.sendall(body + bytes([signal.SIGTERM]))
        code = int.from_bytes(asking.recv(ask_fork.CODE), "big", signed=True)
    os.close(nowhere)
    forks.close()
    assert code == -signal.SIGTERM
