"""An aiokafka consumer process that kills itself with SIGKILL at a chosen moment; run by the chaos tests.

Arguments as those of ``kafka_victim``; at the moment ``slow`` it does not die, and its
handler takes its time. Ends on SIGTERM.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from integration.kafka_victim import Doom, DoomedCommits
from mqauth import Allow, AuditFile, FileReplayStore, Issuer, Pipeline, Verified, Verifier
from mqauth.brokers import aiokafka
from mqauth.letters.dead_letter import DeadLetter
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.wire.jwk import load_key_set
from mqauth.wire.keys import KeySet

SLOW = 0.1
"""Seconds of a slow handler."""


class DoomedLetters(aiokafka.DeadLetters):
    """Dead letters after whose confirm, and before the commit, the process may die."""

    doom: Doom

    async def publish(self, letter: DeadLetter, /) -> None:
        """Publish, confirmed; then perhaps die."""
        await super().publish(letter)
        self.doom.at("letter")


class DoomedTransactions(DoomedCommits, aiokafka.TransactionalDeadLetters):
    """Transactions around whose commit the process may die."""


def note(path: str, verified: Verified) -> None:
    """Write down what was handled."""
    with Path(path).open("ab", buffering=0) as file:
        file.write((verified.body or b"") + b"\n")


def key_set(path: str) -> KeySet:
    """Return the issuer's public keys."""
    return load_key_set(Path(path).read_bytes())


async def main(places: Sequence[str], doom: Doom, transactional: str, *, slow: bool) -> None:
    """Consume until told to end."""
    url, topic, dead, group, keys, handled, audit = places
    servers = url.partition("://")[2]

    async def handler(verified: Verified) -> None:
        note(handled, verified)
        doom.at("handler")
        await asyncio.sleep(SLOW if slow else 0)

    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all")
    letters: Any = DoomedLetters(producer, dead)
    if transactional:
        letters = DoomedTransactions(
            lambda: AIOKafkaProducer(bootstrap_servers=servers, transactional_id=transactional), dead, 10
        )
    letters.doom = doom
    client = AIOKafkaConsumer(
        topic, bootstrap_servers=servers, group_id=group, enable_auto_commit=False, auto_offset_reset="earliest",
        session_timeout_ms=6000, heartbeat_interval_ms=300, max_poll_records=8,
        isolation_level="read_committed",
    )  # fmt: skip
    with AuditFile(audit, fsync=False) as sink:
        guard = Pipeline(
            verifier=Verifier(keys={ISSUER: Issuer(keys=key_set(keys))}, audience=AUDIENCE),
            policy=Allow({SUBJECT: ["kafka:" + topic]}),
            replay=FileReplayStore(Path(audit).with_suffix(".sqlite")),
            audit=sink,
        )
        async with producer, client:
            await aiokafka.Consumer(client, guard, handler, dead_letters=letters).run(signals=True)


if __name__ == "__main__":
    *_places, _moment, _after, _transactional = sys.argv[1:]
    asyncio.run(main(_places, Doom(_moment, int(_after)), _transactional, slow=_moment == "slow"))
