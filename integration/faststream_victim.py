"""A FastStream process that kills itself with SIGKILL in its handler; run by the tests of kills.

Arguments: FastStream's package (``faststream.rabbit`` for example), URL, source, dead letters, file of the
issuer's public keys, file that handled bodies go to, audit file, and the number of the handler in which it dies,
0 for none. Ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kafka
from faststream import FastStream

from integration.kafka_victim import Doom
from mqauth import Allow, AuditFile, Issuer, MemoryReplayStore, Pipeline, Verifier
from mqauth.brokers import kafka as on_kafka
from mqauth.brokers import rabbitmq as on_rabbitmq
from mqauth.integrations.faststream import VerifiedMessage, protect
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.wire.jwk import load_key_set

RABBIT = "faststream.rabbit"
_PYTHON: Any = kafka  # untyped


def broker_of(package: str, url: str) -> Any:
    """Return a broker of one of FastStream's packages."""
    module = importlib.import_module(package)
    return module.RabbitBroker(url) if package == RABBIT else module.KafkaBroker(url)


def subscriber_of(broker: Any, package: str, source: str, **settings: Any) -> Any:
    """Return the decorator of the handler of a queue or topic, declared by whoever made it."""
    if package == RABBIT:
        queue = importlib.import_module(package).RabbitQueue(source, declare=False)
        return broker.subscriber(queue)
    return broker.subscriber(source, group_id=source, auto_offset_reset="earliest", **settings)


def letters_of(package: str, broker: Any, url: str, dead: str) -> Any:
    """Return what makes the dead letters."""

    async def rabbit() -> Any:
        return on_rabbitmq.DeadLetters(await (await broker.connect()).channel(), dead)

    def topic() -> Any:
        producer = _PYTHON.KafkaProducer(bootstrap_servers=url, acks="all", enable_idempotence=False)
        return on_kafka.DeadLetters(producer, dead)

    return rabbit if package == RABBIT else topic


def main(places: Sequence[str], after: str) -> None:
    """Consume until told to end."""
    package, url, source, dead, keys, handled, audit = places
    doom, broker = Doom("handler", int(after)), broker_of(package, url)
    place = f"rabbitmq:/{source}" if package == RABBIT else f"kafka:{source}"
    with AuditFile(audit, fsync=False) as sink:
        guard = Pipeline(
            verifier=Verifier(
                keys={ISSUER: Issuer(keys=load_key_set(Path(keys).read_bytes()))}, audience=AUDIENCE
            ),
            policy=Allow({SUBJECT: [place]}), replay=MemoryReplayStore(), audit=sink,
        )  # fmt: skip
        protect(broker, guard=guard, dead_letters=letters_of(package, broker, url, dead))

        @subscriber_of(broker, package, source)
        def handle(order: int, verified: VerifiedMessage) -> None:
            with Path(handled).open("ab", buffering=0) as file:
                file.write((verified.body or b"") + b"\n")
            if int(after):
                doom.at("handler")

        asyncio.run(FastStream(broker).run())


if __name__ == "__main__":
    *_places, _after = sys.argv[1:]
    main(_places, _after)
