"""The simulated RabbitMQ answers short AMQP scripts as the real one does."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from integration.services import RabbitMQ
from tests.simulation.contract import SCRIPTS, Client

ROOT = Path(__file__).parent.parent


def simulated(name: str) -> object:
    """Return what a script sees on the simulated broker."""
    command = [sys.executable, "-m", "tests.simulation.contract_run", name]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", SCRIPTS)
async def test_alike(name: str, rabbitmq: RabbitMQ) -> None:
    """A script sees the same on the simulated broker and on the real one."""
    client = Client(rabbitmq.url, secrets.token_hex(4))
    try:
        real = await SCRIPTS[name](client)
    finally:
        await client.close()
    assert simulated(name) == json.loads(json.dumps(real, default=repr))
