"""Plays contract scripts on the simulated broker, in a process of its own, since it replaces the machine's clock.

``python -m tests.simulation.contract_run NAME...`` prints what each script saw, as JSON.
"""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from tests.simulation import determinism


def seen(name: str) -> Any:
    """Return what a script sees on the simulated broker."""
    from tests.simulation.contract import SCRIPTS, Client
    from tests.simulation.process import Process
    from tests.simulation.world import World

    world = World(0)
    found: list[Any] = []

    async def main(_process: Process) -> None:
        client = Client("amqp://guest:guest@rabbitmq:5672/", "")
        found.append(await SCRIPTS[name](client))
        await client.close()

    process = Process(world, "script#1", main)
    while process.alive and world.agenda.now < 600 and world.agenda.step():
        pass
    if process.failure is not None:
        raise process.failure
    return found[0]


def main() -> None:
    """Play the scripts that are named, each in a world of its own."""
    if not determinism.is_hashed():
        determinism.again_hashed()
    determinism.install()
    logging.disable(logging.CRITICAL)
    print(json.dumps({name: seen(name) for name in sys.argv[1:]}, default=repr))


if __name__ == "__main__":
    main()
