"""SIGKILL of a consumer process on a real RabbitMQ: what was sent is handled or dead-lettered, nothing lost."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import aio_pika
import pytest
from aio_pika.abc import AbstractConnection

from integration.services import RabbitMQ
from mqauth.auditchain import verify_chain
from mqauth.brokers import rabbitmq as wrapper
from mqauth.brokers.rabbitmq_consumer import DEFAULT_PREFETCH
from mqauth.jwk import dump_key_set
from mqauth.keys import KeySet
from mqauth.message import Message
from mqauth.testing.forge import Forge

HONEST = 40
FORGED = 20


class Scene:
    """A source full of honest and forged messages, and victims that consume it."""

    def __init__(self, connection: AbstractConnection, url: str, folder: Path) -> None:
        self.name = f"mqauth-kill-{uuid.uuid4().hex[:12]}"
        self.dead = self.name + ".dead"
        self.handled = folder / "handled"
        self.handled.touch()
        self.audit = folder / "audit.jsonl"
        self._keys = folder / "jwks.json"
        self._url = url
        self._connection = connection
        self._forge = Forge(lifetime=600)

    async def set(self) -> None:
        """Declare the queues and publish every message, honest and forged in turn."""
        self._keys.write_text(json.dumps(dump_key_set(KeySet([self._forge.key.public_only]))))
        channel = await self._connection.channel()
        await wrapper.declare_source(channel, self.name)
        await wrapper.declare_dead_letters(channel, self.dead)
        producer = wrapper.Producer(channel.default_exchange, self._forge.signer())
        for number in range(HONEST):
            await producer.publish(aio_pika.Message(b"honest %d" % number, delivery_mode=2), self.name)
            if number % 2 == 0:
                forged = aio_pika.Message(b"forged %d" % number, delivery_mode=2)
                await channel.default_exchange.publish(forged, self.name)

    async def victim(self, moment: str, after: int) -> int:
        """Run a consumer process and return its exit code."""
        places = (self._url, self.name, self.dead, self._keys, self.handled, self.audit, moment, after)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "integration.rabbitmq_victim", *map(str, places)
        )
        return await asyncio.wait_for(process.wait(), 60)

    async def letters(self) -> list[Message]:
        """Take every dead letter."""
        queue = await (await self._connection.channel()).get_queue(self.dead)
        found = []
        while (letter := await queue.get(fail=False)) is not None:
            found.append(wrapper.from_native(letter, queue=self.dead))
            await letter.ack()
        return found

    async def strike(self) -> None:
        """Delete the queues."""
        channel = await self._connection.channel()
        for queue in (self.name, self.name + ".unparseable", self.dead):
            await channel.queue_delete(queue)


@pytest.fixture
async def scene(rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Scene]:
    """A set scene."""
    async with await aio_pika.connect(rabbitmq.url) as connection:
        scene = Scene(connection, rabbitmq.url, tmp_path)
        await scene.set()
        yield scene
        await scene.strike()


@pytest.mark.parametrize("moment", ["handler", "letter"])
async def test_killed_and_started_again(scene: Scene, moment: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed twice between handler and ack, or dead letter and ack: sent = handled + dead-lettered, none lost."""
    for after in (3, 7):
        assert await scene.victim(moment, after) == -signal.SIGKILL
    assert await scene.victim("never", 0) == 0
    handled = Counter(scene.handled.read_bytes().split(b"\n")[:-1])
    letters = await scene.letters()
    honest = {b"honest %d" % number for number in range(HONEST)}
    forged = {b"forged %d" % number for number in range(0, HONEST, 2)}
    assert set(handled) == honest
    assert {letter.body for letter in letters} == forged
    ids = Counter(letter.occurrences("mqauth-dead-id") for letter in letters)
    assert len(ids) == FORGED
    repeated = handled.total() - HONEST if moment == "handler" else ids.total() - FORGED
    assert 0 < repeated <= 2 * DEFAULT_PREFETCH
    assert verify_chain(scene.audit).intact
    with capsys.disabled():
        print(
            f"\nkilled at {moment}: sent {HONEST + FORGED}, handled {len(handled)} (+{handled.total() - HONEST}),"
            f" dead-lettered {len(ids)} (+{ids.total() - FORGED}), lost 0, honest condemned 0"
        )
