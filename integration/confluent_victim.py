"""A confluent-kafka consumer process that kills itself with SIGKILL at a chosen moment; run by the chaos tests.

Arguments as those of ``kafka_victim``; at the moment ``slow`` it does not die, and its
handler takes its time. Ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, Producer
from confluent_kafka.aio import AIOConsumer

from integration.kafka_victim import Doom, DoomedCommits
from mqauth import Allow, AuditFile, Issuer, MemoryReplayStore, Pipeline, Verified, Verifier
from mqauth.brokers import confluent
from mqauth.brokers.event_loop import on_thread
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.wire.jwk import load_key_set

SLOW = 0.1
"""Seconds of a slow handler."""


class DoomedLetters(confluent.DeadLetters):
    """Dead letters after whose confirm, and before the commit, the process may die."""

    def __init__(self, settings: dict[str, Any], topic: str, doom: Doom) -> None:
        super().__init__(Producer(settings), topic, config=settings)
        self._doom = doom

    def publish(self, letter: DeadLetter, /) -> None:
        """Publish, confirmed; then perhaps die."""
        super().publish(letter)
        self._doom.at("letter")


class DoomedTransactions(DoomedCommits, confluent.TransactionalDeadLetters):
    """Transactions around whose commit the process may die."""


def dead_letters(servers: dict[str, Any], dead: str, transactional: str, doom: Doom) -> Any:
    """Return the doomed sink, transactional where an id is given."""
    if not transactional:
        return DoomedLetters(servers, dead, doom)
    settings = servers | {"transactional.id": transactional}
    letters = DoomedTransactions(lambda: Producer(settings), dead, 10, config=settings)
    letters.doom = doom
    return letters


async def in_event_loop(settings: dict[str, Any], guard: Pipeline, handler: Any, **rest: Any) -> None:
    """Consume in an event loop until told to end."""
    async with AIOConsumer(settings) as client:
        await confluent.AIOConsumer(client, guard, on_thread(handler), **rest).run(signals=True)


def main(places: Sequence[str], doom: Doom, transactional: str, *, slow: bool, aio: bool = False) -> None:
    """Consume until told to end, in an event loop or not."""
    url, topic, dead, group, keys, handled, audit = places
    servers = {"bootstrap.servers": url.partition("://")[2], "log_level": 2}

    def handler(verified: Verified) -> None:
        with Path(handled).open("ab", buffering=0) as file:
            file.write((verified.body or b"") + b"\n")
        doom.at("handler")
        time.sleep(SLOW if slow else 0)

    settings = servers | {
        "group.id": group, "enable.auto.offset.store": False, "auto.offset.reset": "earliest",
        "session.timeout.ms": 6000, "heartbeat.interval.ms": 300,
    }  # fmt: skip
    letters = dead_letters(servers, dead, transactional, doom)
    with AuditFile(audit, fsync=False) as sink:
        guard = Pipeline(
            verifier=Verifier(
                keys={ISSUER: Issuer(keys=load_key_set(Path(keys).read_bytes()))}, audience=AUDIENCE
            ),
            policy=Allow({SUBJECT: ["kafka:" + topic]}),
            replay=MemoryReplayStore(),
            audit=sink,
        )
        rest: Any = {"config": settings, "topics": [topic], "dead_letters": letters}
        if aio:
            asyncio.run(in_event_loop(settings, guard, handler, **rest))
        else:
            client = Consumer(settings)
            confluent.Consumer(client, guard, handler, **rest).run(signals=True)
            client.close()
    if not transactional:
        letters.client.close()


if __name__ == "__main__":
    *_places, _moment, _after, _transactional = sys.argv[1:]
    main(_places, Doom(_moment, int(_after)), _transactional, slow=_moment == "slow")
