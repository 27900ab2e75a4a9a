"""An attacker who may write to the broker and read its messages: forgeries, and copies of honest messages."""

from __future__ import annotations

import random
from typing import Any, Final

from pamqp import commands

from mqauth.testing.forge import Forge
from mqauth.testing.token_attacks import ATTACKS, honest_message
from mqauth.wire.message import Message
from tests.simulation.amqp_broker import Stored
from tests.simulation.services import DESTINATION, EXCHANGE, ROUTING_KEY
from tests.simulation.world import SOURCE, World

_COPIES: Final = 0.4
"""How many of the hostile messages are copies."""


class Attacker:
    """Writes hostile messages into the broker.

    Args:
        world: where.
        forge: has everything an attacker may have got hold of.
        seed: decides what is written.
    """

    def __init__(self, world: World, forge: Forge, seed: int) -> None:
        self._world = world
        self._forge = forge
        self._draw = random.Random(f"attacker {seed}")
        self._attacks = [attack for attack in ATTACKS if attack.fits(DESTINATION)]

    def strike(self, number: int) -> None:
        """Write one hostile message."""
        known = [message for message in self._seen() if message.body in self._world.ledger.sent]
        if known and self._draw.random() < _COPIES:
            self._copy(self._draw.choice(known))
        else:
            self._forge_one(number)

    def _seen(self) -> list[Stored]:
        """Return the messages that the attacker has read so far: those in the queue, and earlier ones."""
        for queue in self._world.broker.found_queues([SOURCE]):
            for message in (*queue.ready, *queue.unacked.values()):
                self._world.published.setdefault(message.body, message)
        return list(self._world.published.values())

    def _copy(self, message: Stored) -> None:
        """Publish a copy of an honest message."""
        stored = self._world.broker.put(message.exchange, message.routing_key, message.properties, message.body)
        self._world.ledger.copies[message.body] += len(stored)
        self._world.note("attacker", f"copies {message.body!r}")

    def _forge_one(self, number: int) -> None:
        """Write a forgery."""
        attack = self._draw.choice(self._attacks)
        message = attack.mount(self._forge, honest_message(DESTINATION, 1_000_000 + number))
        stored = self._world.broker.put(EXCHANGE, ROUTING_KEY, _properties(message), message.body or b"")
        self._world.ledger.forged.extend((attack.name, found.body) for found in stored)
        self._world.note("attacker", f"{attack.name} {message.body!r}")


def _properties(message: Message) -> commands.Basic.Properties:
    """Return a message's properties as AMQP has them."""
    values: dict[str, Any] = {name.replace("-", "_"): value for name, value in message.properties.items()}
    return commands.Basic.Properties(headers=dict(message.headers), delivery_mode=2, **values)
