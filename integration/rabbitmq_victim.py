"""A consumer process that kills itself with SIGKILL at a chosen moment; run by the chaos tests.

Arguments: URL, queue, dead-letter queue, file of the issuer's public keys, file that handled bodies go to,
audit file, moment (``handler``, ``letter`` or ``never``), how many messages before it dies.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel

from mqauth import Allow, AuditFile, Issuer, KeySet, MemoryReplayStore, Pipeline, Verified, Verifier
from mqauth.brokers import rabbitmq
from mqauth.deadletter import DeadLetter
from mqauth.jwk import load_key_set
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT


class Doom:
    """Kills this process at the n-th time its moment comes."""

    def __init__(self, moment: str, after: int) -> None:
        self._moment = moment
        self._left = after

    def at(self, moment: str) -> None:
        """Die here, if this is the moment."""
        if moment != self._moment:
            return
        self._left -= 1
        if self._left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


class DoomedLetters(rabbitmq.DeadLetters):
    """Dead letters after whose confirm, and before the settling, the process may die."""

    def __init__(self, channel: AbstractChannel, name: str, doom: Doom) -> None:
        super().__init__(channel, name)
        self._doom = doom

    async def publish(self, letter: DeadLetter, /) -> None:
        """Publish, confirmed; then perhaps die."""
        await super().publish(letter)
        self._doom.at("letter")


async def main(places: Sequence[str], doom: Doom) -> None:
    """Consume until the queue is empty and everything in flight is settled."""
    url, queue, dead, keys, handled, audit = places

    def handler(verified: Verified) -> None:
        with Path(handled).open("ab", buffering=0) as file:
            file.write((verified.body or b"") + b"\n")
        doom.at("handler")

    consuming, publishing = await aio_pika.connect_robust(url), await aio_pika.connect_robust(url)
    source = await (await consuming.channel()).get_queue(queue)
    letters = DoomedLetters(await publishing.channel(), dead, doom)
    with AuditFile(audit, fsync=False) as sink:
        guard = Pipeline(
            verifier=Verifier(keys={ISSUER: Issuer(keys=_keys(keys))}, audience=AUDIENCE),
            policy=Allow({SUBJECT: ["rabbitmq:/" + queue]}),
            replay=MemoryReplayStore(),
            audit=sink,
        )
        async with rabbitmq.Consumer(source, guard, handler, dead_letters=letters) as consumer:
            await _until_empty(await consuming.channel(), queue, consumer)
    await consuming.close()
    await publishing.close()


async def _until_empty(channel: AbstractChannel, queue: str, consumer: rabbitmq.Consumer) -> None:
    """Wait until the broker has nothing for us and we have nothing in flight."""
    quiet = 0
    while quiet < 5:
        await asyncio.sleep(0.1)
        declared: Any = await channel.declare_queue(queue, passive=True)
        empty = declared.declaration_result.message_count == 0 and consumer.health().in_flight == 0
        quiet = quiet + 1 if empty else 0


def _keys(path: str) -> KeySet:
    """Return the key set of a file."""
    return load_key_set(Path(path).read_bytes())


if __name__ == "__main__":
    *_names, _moment, _after = sys.argv[1:]
    asyncio.run(main(_names, Doom(_moment, int(_after))))
