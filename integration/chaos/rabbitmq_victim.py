"""A RabbitMQ consumer in a process of its own, which may kill itself with SIGKILL at a chosen moment.

``python -m integration.chaos.rabbitmq_victim JSON``: the members of ``Orders``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import aio_pika
from aio_pika.abc import AbstractChannel

from integration.chaos.rabbitmq_scene import APPEND
from mqauth import Allow, AuditFile, Issuer, Pipeline, Verified, Verifier
from mqauth.audit.record import AuditRecord
from mqauth.brokers import rabbitmq
from mqauth.letters.dead_letter import DeadLetter
from mqauth.replay.rules import ClaimRequest
from mqauth.stores.redis import AsyncRedisReplayStore
from mqauth.testing.forge import AUDIENCE, ISSUER, SUBJECT
from mqauth.wire.jwk import load_key_set

Moment = Literal["handler", "confirm", "audit", "letter", "never"]
_QUIET = 5
_GLANCE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a consumer process is to do.

    Args:
        url: of the broker.
        queue: to consume.
        dead: the dead-letter queue.
        redis: URL of the replay store.
        keys: file of the issuer's public keys.
        handled: file that the bodies of handled messages are appended to, a line each.
        audit: file of the audit.
        moment: after which it dies: the handler, the claim's confirm, the audit's record, the dead letter's
            confirm; or never.
        after: how many times the moment comes.
        lease: seconds of a claim.
        prefetch: deliveries at once.
        hold: seconds a deferred delivery is kept.
        ends: when the queue is empty; else at SIGTERM.
    """

    url: str
    queue: str
    dead: str
    redis: str
    keys: str
    handled: str
    audit: str
    moment: Moment = "never"
    after: int = 0
    lease: float = 60
    prefetch: int = 10
    hold: float = 60
    ends: bool = True

    @property
    def command(self) -> list[str]:
        """The words that start the process."""
        return [sys.executable, "-m", __spec__.name, json.dumps(asdict(self))]

    async def process(self, **settings: Any) -> asyncio.subprocess.Process:
        """Start the process; its settings are those of ``create_subprocess_exec``."""
        return await asyncio.create_subprocess_exec(*self.command, **settings)


class Doom:
    """Kills this process at the n-th time its moment comes."""

    def __init__(self, orders: Orders) -> None:
        self._moment = orders.moment
        self._left = orders.after

    def at(self, moment: Moment) -> None:
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


class DoomedAudit(AuditFile):
    """An audit after whose record, and before the dead letter, the process may die."""

    def __init__(self, path: str, doom: Doom) -> None:
        super().__init__(path, fsync=False)
        self._doom = doom

    def write(self, record: AuditRecord, /) -> None:
        """Write; then perhaps die."""
        super().write(record)
        self._doom.at("audit")


class DoomedStore(AsyncRedisReplayStore):
    """A store after whose confirm, and before the ack, the process may die."""

    doom: Doom

    async def confirm(self, request: ClaimRequest, /) -> None:
        """Confirm; then perhaps die."""
        await super().confirm(request)
        self.doom.at("confirm")


@asynccontextmanager
async def consumer(orders: Orders) -> AsyncIterator[rabbitmq.Consumer]:
    """Connect everything and consume."""
    doom = Doom(orders)

    def handler(verified: Verified) -> None:
        os.write(handled, (verified.body or b"") + b"\n")
        doom.at("handler")

    async with AsyncExitStack() as stack:
        handled = os.open(orders.handled, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        stack.callback(os.close, handled)
        audit = stack.enter_context(DoomedAudit(orders.audit, doom))
        store = DoomedStore.from_url(orders.redis, timeout=1, namespace=orders.queue)
        assert isinstance(store, DoomedStore)
        store.doom = doom
        stack.push_async_callback(store.aclose)
        channels = [await (await stack.enter_async_context(await _connection(orders))).channel() for _ in range(2)]
        guard = Pipeline(
            verifier=Verifier(keys={ISSUER: Issuer(keys=_keys(orders))}, audience=AUDIENCE, **APPEND),
            policy=Allow({SUBJECT: ["rabbitmq:/" + orders.queue]}),
            replay=store,
            audit=audit,
            lease=orders.lease,
        )
        source = await channels[0].get_queue(orders.queue, ensure=False)
        letters = DoomedLetters(channels[1], orders.dead, doom)
        yield rabbitmq.Consumer(
            source, guard, handler, dead_letters=letters, prefetch=orders.prefetch, hold=orders.hold
        )


async def main(orders: Orders) -> None:
    """Consume until the queue is empty and everything in flight is settled, or until SIGTERM."""
    async with consumer(orders) as running:
        if not orders.ends:
            return await running.run(signals=True)
        async with running, await aio_pika.connect(orders.url) as connection:
            await _until_empty(await connection.channel(), orders.queue, running)


async def _until_empty(channel: AbstractChannel, queue: str, running: rabbitmq.Consumer) -> None:
    """Wait until the broker has nothing for us and we have nothing in flight."""
    quiet = 0
    while quiet < _QUIET:
        await asyncio.sleep(_GLANCE)
        declared: Any = await channel.declare_queue(queue, passive=True)
        empty = declared.declaration_result.message_count == 0 and running.health().in_flight == 0
        quiet = quiet + 1 if empty else 0


async def _connection(orders: Orders) -> Any:
    """Return a robust connection."""
    return await aio_pika.connect_robust(orders.url, reconnect_interval=0.2)


def _keys(orders: Orders) -> Any:
    """Return the key set of a file."""
    return load_key_set(Path(orders.keys).read_bytes())


if __name__ == "__main__":
    asyncio.run(main(Orders(**json.loads(sys.argv[1]))))
