"""The third service, on Kafka: takes payments; ``SHOP_CLIENT`` names FastStream's package, and so the client."""

from __future__ import annotations

import asyncio
import importlib
import os
from typing import Any

from faststream import FastStream

from integration.examples.wiring import (
    KAFKA,
    SHOP,
    handled,
    kafka_letters,
    ready,
    settings,
)
from mqauth.integrations.faststream import VerifiedMessage, protect

client: Any = importlib.import_module(f"faststream.{os.environ['SHOP_CLIENT']}")
broker = protect(
    client.KafkaBroker(KAFKA), guard=settings.pipeline, dead_letters=kafka_letters
)


@broker.subscriber(
    f"{SHOP}.payments", group_id=f"{SHOP}.billing", auto_offset_reset="earliest"
)
async def pay(payment: dict[str, int], verified: VerifiedMessage) -> None:
    """Take a payment."""
    handled(verified)


if __name__ == "__main__":
    asyncio.run(FastStream(broker, after_startup=[ready]).run())
