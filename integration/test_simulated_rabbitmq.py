"""The simulated RabbitMQ answers short AMQP scripts as the real one does."""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from integration.services import RabbitMQ
from tests.simulation.contract import SCRIPTS, Client

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def simulated() -> dict[str, Any]:
    """What each script sees on the simulated broker."""
    command = [sys.executable, "-m", "tests.simulation.contract_run", *SCRIPTS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(run.stdout)
    return found


@pytest.mark.parametrize("name", SCRIPTS)
async def test_alike(name: str, rabbitmq: RabbitMQ, simulated: dict[str, Any]) -> None:
    """A script sees the same on the simulated broker and on the real one."""
    client = Client(rabbitmq.url, secrets.token_hex(4))
    try:
        real = await SCRIPTS[name](client)
    finally:
        await client.close()
    assert simulated[name] == json.loads(json.dumps(real, default=repr))
