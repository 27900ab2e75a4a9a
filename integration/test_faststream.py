"""FastStream on real brokers: what reaches handlers, what becomes a dead letter, and answers of requests."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aio_pika
import pytest
from faststream.rabbit import RabbitBroker
from faststream.rabbit.opentelemetry import RabbitTelemetryMiddleware
from opentelemetry.sdk.trace import TracerProvider

from integration.services import RabbitMQ
from mqauth import AuditFile, Key, KeySet, MemoryReplayStore, Message, Pipeline, Signer, Verified
from mqauth.audit.chain import verify_chain
from mqauth.brokers import rabbitmq as wrapper
from mqauth.brokers.rabbitmq.translate import Measured, to_native
from mqauth.integrations.faststream import NotHandledError, UnverifiedMessage, VerifiedMessage, protect, unverified
from mqauth.judging.rollout import WEEK, Rollout, RolloutEntry, Rung
from mqauth.testing.forge import Forge

PATIENCE = 60.0


def observing(place: str) -> Rollout:
    """Return a rollout that observes one destination."""
    day = datetime.now(UTC).date()
    return Rollout([
        RolloutEntry(
            destinations=(place,), rung=Rung.OBSERVE, since=day, until=day + timedelta(9), owner="team",
            window=WEEK,
        )
    ])  # fmt: skip


class Store(MemoryReplayStore):
    """A replay store that may be away."""

    def __init__(self) -> None:
        super().__init__()
        self.away = False
        self.asked = asyncio.Event()

    def claim(self, request: Any, /) -> Any:
        """Claim, or fail."""
        if not self.away:
            return super().claim(request)
        self.asked.set()
        raise ConnectionError


class Shop:
    """A protected broker on RabbitMQ, and what its handler got.

    Args:
        url: of RabbitMQ.
        audit: where its records go.
        observed: whether its queue is on the rung ``observe``.
        signer: of what it publishes, in place of the forge's.
        trusts: keys of the issuer beside the forge's.
    """

    def __init__(
        self, url: str, audit: AuditFile, *, observed: bool = False, signer: Signer | None = None,
        trusts: Sequence[Key] = (),
    ) -> None:  # fmt: skip
        self.forge = Forge()
        self.name = f"orders-{uuid.uuid4().hex}"
        self.dead = f"{self.name}.dead"
        self.handled: asyncio.Queue[Verified] = asyncio.Queue()
        self.store = Store()
        self.guard = Pipeline(
            verifier=self.forge.verifier(keys={self.forge.issuer: KeySet([*self.forge.keys, *trusts])}),
            policy=self.forge.policy(f"rabbitmq:/{self.name}", "rabbitmq:/amq.rabbitmq.reply-to.#"),
            replay=self.store, audit=audit,
            rollout=observing(f"rabbitmq:/{self.name}") if observed else None,
        )  # fmt: skip
        self.broker: Any = protect(
            RabbitBroker(url, graceful_timeout=0.1),
            guard=self.guard,
            dead_letters=self.letters,
            signer=signer or self.forge.signer(),
        )

    async def letters(self) -> wrapper.DeadLetters:
        """Return the dead letters, their queue declared."""
        connection = await self.broker.connect()
        found = wrapper.DeadLetters(await connection.channel(), self.dead)
        await found.declare()
        return found

    async def buried(self, number: int) -> list[tuple[str, bytes]]:
        """Return reason and body of so many dead letters."""
        channel = await (await self.broker.connect()).channel()
        found = []
        async with asyncio.timeout(PATIENCE), (await channel.get_queue(self.dead)).iterator() as letters:
            async for letter in letters:
                found.append((str(letter.headers["mqauth-dead-reason"]), letter.body))
                await letter.ack()
                if len(found) == number:
                    return found
        raise AssertionError

    async def send(self, message: Message) -> None:
        """Publish a message past FastStream."""
        channel = await (await self.broker.connect()).channel()
        await channel.default_exchange.publish(to_native(message, message_id=uuid.uuid4().hex), self.name)

    async def ask(self, order: dict[str, int]) -> Any:
        """Return the answer to a request."""
        # RabbitMQ 4.0.5 returns direct replies in its first seconds, and delivers them to nobody (seen here).
        async with asyncio.timeout(PATIENCE):
            while True:
                try:
                    return await self.broker.request(order, self.name, timeout=2)
                except TimeoutError:
                    continue

    async def end(self) -> None:
        """Stop, and leave nothing at the broker."""
        await self.broker.stop()
        async with await aio_pika.connect(self.broker.specification.url[0]) as connection:
            channel = await connection.channel()
            for name in (self.name, self.dead):
                await channel.queue_delete(name)


@pytest.fixture
async def shop(rabbitmq: RabbitMQ, tmp_path: Path) -> Any:
    """Yield a shop that is not started yet."""
    with AuditFile(tmp_path / "audit.jsonl") as audit:
        shop = Shop(rabbitmq.url, audit)
        yield shop
        await shop.end()
    assert verify_chain(tmp_path / "audit.jsonl").intact


async def test_rabbitmq(shop: Shop) -> None:
    """An honest message is handled; an unsigned, a forged and a replayed one become dead letters."""

    @shop.broker.subscriber(shop.name)
    async def take(order: dict[str, int], verified: VerifiedMessage) -> None:
        shop.handled.put_nowait(verified)

    await shop.broker.start()
    await shop.broker.publish({"order": 1}, shop.name)
    async with asyncio.timeout(PATIENCE):
        honest = await shop.handled.get()
    assert honest.body == b'{"order":1}'
    place = Message(destination=f"rabbitmq:/{shop.name}", body=b"unsigned")
    await shop.send(place)
    await shop.send(shop.forge.seal(place, key=shop.forge.stranger))
    channel = await (await shop.broker.connect()).channel()
    await channel.default_exchange.publish(Measured.of(honest.native), shop.name)
    found = await shop.buried(3)
    assert sorted(found) == [
        ("key_unknown", b"unsigned"),
        ("replayed", honest.body),
        ("token_missing", b"unsigned"),
    ]
    assert shop.handled.empty()
    queue: Any = await channel.declare_queue(shop.name, passive=True)
    assert queue.declaration_result.message_count == 0


async def test_rabbitmq_rollout(rabbitmq: RabbitMQ, tmp_path: Path) -> None:
    """While a queue is observed, what is not signed reaches the second handler alone, and is acked."""
    with AuditFile(tmp_path / "audit.jsonl") as audit:
        shop = Shop(rabbitmq.url, audit, observed=True)
        orders, proofless = shop.broker.subscriber(shop.name), asyncio.Queue[Any]()

        @orders(filter=unverified)
        async def old(body: bytes, message: UnverifiedMessage) -> None:
            proofless.put_nowait((body, message.would and message.would.code))

        @orders
        async def take(body: bytes, verified: VerifiedMessage) -> None:
            shop.handled.put_nowait(verified)

        await shop.broker.start()
        await shop.send(Message(destination=f"rabbitmq:/{shop.name}", body=b"unsigned"))
        await shop.broker.publish(b"signed", shop.name)
        async with asyncio.timeout(PATIENCE):
            assert await proofless.get() == (b"unsigned", "token_missing")
            assert (await shop.handled.get()).body == b"signed"
        await shop.end()
    assert proofless.empty()
    assert shop.handled.empty()


async def test_rabbitmq_request(shop: Shop) -> None:
    """A request and its answer are both signed and verified, by FastStream's direct reply-to, traced or not."""
    shop.broker.add_middleware(RabbitTelemetryMiddleware(tracer_provider=TracerProvider()))

    @shop.broker.subscriber(shop.name)
    async def take(order: dict[str, int], verified: VerifiedMessage) -> dict[str, int]:
        shop.handled.put_nowait(verified)
        return {"taken": order["order"]}

    await shop.broker.start()
    answer = await shop.ask({"order": 7})
    assert await answer.decode() == {"taken": 7}
    request = shop.handled.get_nowait()
    # the trace's header came after the signature: it is there, and not shown
    assert ("traceparent" in request.native.headers, request.headers) == (True, ())


async def test_rabbitmq_forged_answer(shop: Shop) -> None:
    """An answer that is not signed is given to nobody, and becomes a dead letter."""
    await shop.broker.start()
    channel = await (await shop.broker.connect()).channel()
    requests = await channel.declare_queue(shop.name)

    async def forge(request: aio_pika.abc.AbstractIncomingMessage) -> None:
        answer = aio_pika.Message(b"forged", correlation_id=request.correlation_id)
        await channel.default_exchange.publish(answer, request.reply_to or "", mandatory=False)
        await request.ack()

    await requests.consume(forge)
    with pytest.raises(NotHandledError, match="token_missing"):
        await shop.ask({})
    assert await shop.buried(1) == [("token_missing", b"forged")]


async def test_rabbitmq_unroutable(shop: Shop) -> None:
    """What no queue takes is an error; a message whose result nobody can get is dead-lettered, not acked."""

    @shop.broker.subscriber(shop.name)
    @shop.broker.publisher(f"{shop.name}.missing")
    async def take(order: int, verified: VerifiedMessage) -> int:
        return order

    await shop.broker.start()
    with pytest.raises(wrapper.UnroutableError):
        await shop.broker.publish(7, f"{shop.name}.missing")
    await shop.broker.publish(7, shop.name)
    assert await shop.buried(1) == [("handler_failed", b"7")]


async def test_rabbitmq_stop_while_deferred(shop: Shop) -> None:
    """A broker that stops while a message is held leaves that message in its queue, unhandled."""
    shop.store.away = True

    @shop.broker.subscriber(shop.name)
    async def take(order: int, verified: VerifiedMessage) -> None:
        shop.handled.put_nowait(verified)

    await shop.broker.start()
    await shop.broker.publish(7, shop.name)
    async with asyncio.timeout(PATIENCE):
        await shop.store.asked.wait()
        await shop.broker.stop()
    async with await aio_pika.connect(shop.broker.specification.url[0]) as connection:
        queue: Any = await (await connection.channel()).declare_queue(shop.name, passive=True)
    assert (queue.declaration_result.message_count, shop.handled.qsize()) == (1, 0)
