"""Signed answers while the connection they go by is lost, on a real RabbitMQ."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from integration.services import RabbitMQ
from integration.test_rabbitmq_wrapper import Bench, _bench, until
from integration.wire import Wire
from mqauth import Verdict, Verified
from mqauth.brokers import rabbitmq as wrapper
from mqauth.errors import Cause, Unavailable
from mqauth.flow import Attempts

REQUESTS = 10
AWAY = 1.5
"""Seconds that the connection of the answers is away: longer than three attempts of a handler take."""


@pytest.fixture
async def bench(rabbitmq: RabbitMQ, tmp_path: Path) -> AsyncIterator[Bench]:
    """A bench on the shared broker, its dead-letter queue declared."""
    async with _bench(rabbitmq.url, tmp_path) as bench:
        await bench.letters().declare()
        yield bench


async def _asked(bench: Bench) -> str:
    """Publish requests, and return the name of the queue for their answers."""
    mailbox = await (await bench.publishing.channel()).declare_queue(exclusive=True)
    for number in range(REQUESTS):
        await bench.publish(b"%d" % number, reply_to=mailbox.name)
    return mailbox.name


@pytest.mark.parametrize("lost", ["before the answer", "before its confirm"])
async def test_connection_lost(bench: Bench, rabbitmq: RabbitMQ, lost: str) -> None:
    """A handler whose answer cannot be sent is put off, and not failed: each request is answered and settled."""
    mailbox, calls = await _asked(bench), Counter[bytes]()

    async def handler(verified: Verified) -> None:
        calls[verified.body or b""] += 1
        await verified.reply(verified.body or b"")

    async with (
        Wire(rabbitmq.url) as wire,
        await aio_pika.connect_robust(wire.url, reconnect_interval=AWAY) as connection,
    ):
        channel = await connection.channel()
        replies = wrapper.Producer(channel.default_exchange, bench.forge.signer())
        if lost == "before the answer":
            wire.cut()
        else:
            wire.mute()
        async with bench.consumer(handler, bench.guard(attempts=Attempts()), replies=replies) as consumer:
            await until(lambda: len(calls) == REQUESTS)
            wire.cut()
            await until(lambda: consumer.health().cause is Cause.HANDLER_DEFERRED)
            await until(lambda: _accepted(bench) == REQUESTS)
    assert await bench.buried() == []
    assert await bench.left() == 0
    assert await bench.left(mailbox) >= REQUESTS


def _accepted(bench: Bench) -> int:
    """Return how many requests were accepted; none may be rejected."""
    assert not [outcome for outcome in bench.outcomes if outcome.verdict is Verdict.REJECTED]
    return sum(outcome.verdict is Verdict.ACCEPTED for outcome in bench.outcomes)


class _Away:
    """A signer whose keys are out of reach at first."""

    blocking = False

    def __init__(self, signer: Any) -> None:
        self.prepare = signer.prepare
        self._seal = signer.seal
        self._left = REQUESTS * 4

    def seal(self, prepared: Any) -> Any:
        """Sign, at last."""
        self._left -= len(prepared)
        if self._left > 0:
            raise Unavailable(Cause.KEYS_UNAVAILABLE, "down")
        return self._seal(prepared)


async def test_signer_out_of_reach(bench: Bench) -> None:
    """Nor does a signing key that cannot be had now fail a handler."""
    mailbox = await _asked(bench)
    replies = wrapper.Producer(bench.channel.default_exchange, _Away(bench.forge.signer()))  # type: ignore[arg-type]

    async def handler(verified: Verified) -> None:
        await verified.reply(b"42")

    async with bench.consumer(handler, bench.guard(attempts=Attempts()), replies=replies):
        await until(lambda: _accepted(bench) == REQUESTS)
    assert await bench.buried() == []
    assert await bench.left(mailbox) == REQUESTS


async def test_what_the_broker_refuses(bench: Bench) -> None:
    """An answer that no queue takes is the handler's failure: it would be refused again, whenever it is sent."""
    await bench.publish(b"ping", reply_to="no-such-queue")

    async def handler(verified: Verified) -> None:
        await verified.reply(b"pong")

    replies = wrapper.Producer(bench.channel.default_exchange, bench.forge.signer())
    async with bench.consumer(handler, replies=replies):
        await until(lambda: bool(bench.outcomes))
    (letter,) = await bench.buried()
    assert ("mqauth-dead-reason", "handler_failed") in letter.headers
