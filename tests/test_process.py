"""What was made before a fork is refused in the child."""

from __future__ import annotations

import subprocess
import sys

_FORKED = """
import asyncio, os
from mqauth import ConfigurationError
from mqauth.brokers.process import HomeProcess
from mqauth.brokers.sealing import Sealing
from mqauth.testing import FakeClock, Forge

sealing = Sealing(Forge(FakeClock()).signer(), 1, 0, RuntimeError)
sealing.home.check()
if os.fork() == 0:
    refused = 0
    for call in (sealing.publish(None, None), sealing.close()):
        try:
            asyncio.run(call)
        except ConfigurationError as error:
            refused += "before a fork" in str(error)
    os._exit(refused)
print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_a_producer_is_refused_in_a_child_that_was_forked() -> None:
    """In a forked child a publish and a close are refused at once; where it was made they are not."""
    ran = subprocess.run(
        [sys.executable, "-c", _FORKED],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert ran.stdout.strip() == "2"
