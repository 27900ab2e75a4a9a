"""Ask the interpreter of ``integration.forked`` for a fork that runs a command, and end as that does.

It runs without site-packages, and imports little: to start it takes a hundredth of a second.
"""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import sys

STREAMS = 3
CODE = 2


def ask(address: str, kind: str, *arguments: str) -> int:
    """Have a fork run a command with this process's streams, pass signals on to it, and end as it does."""
    with socket.socket(socket.AF_UNIX) as asking:
        asking.connect(address)
        wish = {
            "kind": kind,
            "arguments": arguments,
            "cwd": os.getcwd(),
            "env": dict(os.environ),
        }
        body = json.dumps(wish).encode()
        streams = array.array("i", range(STREAMS))
        asking.sendmsg(
            [len(body).to_bytes(4, "big")],
            [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)],
        )
        asking.sendall(body)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, lambda number, _frame: asking.sendall(bytes([number])))
        code = int.from_bytes(asking.recv(CODE), "big", signed=True)
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    sys.exit(ask(*sys.argv[1:]))
