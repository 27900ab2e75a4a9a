"""Rows of the chaos table on a RabbitMQ cluster of three, and what it does with deliveries that come back."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import aio_pika
import pytest
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from integration.chaos.conftest import INTERCEPTOR
from integration.chaos.rabbitmq_scene import MOMENT, Scene, scene, until
from integration.chaos.row import Count
from integration.services import RabbitMQ, Redis
from integration.services.cluster import TICK, RabbitMQCluster
from integration.wire import Wire
from mqauth import Verified

QUORUM: Final[dict[str, Any]] = {
    "x-queue-type": "quorum",
    "x-consumer-disconnected-timeout": 1_000,
}
"""RabbitMQ 4.3 waits for a consumer whose node is out of sight; earlier ones know no such argument."""
COUNTS: Final = ("x-delivery-count", "x-acquired-count")


@dataclass(slots=True)
class Holder:
    """A consumer that holds what it gets.

    Args:
        connection: of its own.
        channel: the one it consumes on.
        taken: what it got, each with the monotonic second it came at.
    """

    connection: AbstractConnection
    channel: AbstractChannel
    taken: list[tuple[float, AbstractIncomingMessage]] = field(default_factory=list)

    @classmethod
    async def at(cls, url: str, queue: str, prefetch: int = 10) -> Self:
        """Consume a queue by one node."""
        connection = await aio_pika.connect(url)
        holder = cls(connection, await connection.channel())
        await holder.channel.set_qos(prefetch)
        await (await holder.channel.get_queue(queue, ensure=False)).consume(holder._take)
        return holder

    async def _take(self, message: AbstractIncomingMessage) -> None:
        self.taken.append((time.monotonic(), message))

    async def has(
        self, number: int, seconds: float = 120
    ) -> list[AbstractIncomingMessage]:
        """Wait for so many deliveries, and return them."""
        await until(lambda: len(self.taken) >= number, seconds)
        return [message for _, message in self.taken]

    async def answers(self, prefetch: int = 10) -> bool:
        """Tell whether the consuming channel answers a round trip."""
        try:
            await self.channel.set_qos(prefetch, timeout=5)
        except Exception:  # of aio-pika, aiormq or asyncio, by the way the channel ended
            return False
        return True


async def queue_with(
    url: str, number: int, arguments: dict[str, Any] | None = None
) -> str:
    """Declare a queue at a node, which leads it then, and publish so many messages, confirmed."""
    name = f"mqauth-held-{uuid.uuid4().hex[:12]}"
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        await channel.declare_queue(
            name, durable=True, arguments=QUORUM if arguments is None else arguments
        )
        for each in range(number):
            message = aio_pika.Message(b"%d" % each, delivery_mode=2)
            await channel.default_exchange.publish(message, routing_key=name)
    return name


def counted(message: AbstractIncomingMessage) -> int | None:
    """Return how many deliveries came before, by the larger of the broker's counts; ``None`` without one."""
    found = [
        int(str(message.headers[name])) for name in COUNTS if name in message.headers
    ]
    return max(found, default=None)


pytestmark = [pytest.mark.cluster, pytest.mark.slow]
Report = Callable[[Count], Count]
HEARTBEAT = "?heartbeat=2"
SOONER = "application:set_env(rabbit, channel_tick_interval, 1000)."
"""Channels look for deliveries that are held too long once a second, in place of once a minute."""


@pytest.fixture(scope="module")
def _cluster() -> Iterator[RabbitMQCluster]:
    """A cluster that stamps what it receives; a node that is cut off stops until it sees another."""
    settings = [INTERCEPTOR, "cluster_partition_handling = pause_minority"]
    with RabbitMQCluster.launch(extra_config=settings) as cluster:
        for node in cluster.nodes:
            node.ctl("eval", SOONER)
        yield cluster


@pytest.fixture
async def cluster(_cluster: RabbitMQCluster) -> AsyncIterator[RabbitMQCluster]:
    """The cluster, every node of it running and joined."""
    yield _cluster
    await asyncio.to_thread(_cluster.mend)


async def _slowly(row: Scene, verified: Verified) -> None:
    await asyncio.sleep(0.02)
    row.handle(verified)


async def test_leader_killed(
    cluster: RabbitMQCluster, own_redis: Redis, tmp_path: Path, report: Report
) -> None:
    """The node dies that leads the queues and has the clients: they go on at another, by one address for all."""
    urls = [node.url for node in cluster.nodes]
    async with Wire(*urls) as front, scene(front.url, tmp_path) as row:
        await row.send_stubbornly(200)
        await row.forge_some(50)
        leading = await asyncio.to_thread(cluster.leader, row.name)
        with row.audit_file() as audit:
            guard = row.guard(audit, row.store(own_redis.url))
            async with await row.consumer(
                guard, lambda verified: _slowly(row, verified)
            ) as consumer:
                await until(lambda: len(row.handled) > 40)
                dying = asyncio.create_task(asyncio.to_thread(leading.kill))
                again = 0
                while not dying.done() or len(row.honest) < 400:
                    again += await row.send_stubbornly(10)
                await dying
                await row.done(consumer)
                assert consumer.health().connection_deaths > 0
        assert await asyncio.to_thread(cluster.leader, row.name) is not leading
        found = await row.count("leader's node killed in a cluster")
        report(found)
        assert leading is cluster.nodes[0]
        assert found.handled_again <= again


async def test_node_cut_off(
    cluster: RabbitMQCluster, own_redis: Redis, tmp_path: Path, report: Report
) -> None:
    """A consumer's node is cut off from the others and joined again: others handle what it held, none twice."""
    lost, leading, third = cluster.nodes
    async with scene(leading.url, tmp_path) as row:
        await row.send_stubbornly(200)
        await row.forge_some(50)
        assert await asyncio.to_thread(cluster.leader, row.name) is leading
        with row.audit_file() as audit:
            guard = row.guard(audit, row.store(own_redis.url))
            held = asyncio.Event()

            async def at_the_lost(verified: Verified) -> None:
                await held.wait()
                row.handle(verified)

            async with await row.consumer(
                guard, at_the_lost, url=lost.url + HEARTBEAT
            ) as first:
                await until(lambda: first.health().in_flight == 10)
                handler = lambda verified: _slowly(row, verified)  # noqa: E731
                async with await row.consumer(guard, handler, url=third.url) as second:
                    await _cut_until_it_stops(
                        cluster, lost, lambda: first.health().connection_deaths > 0, row
                    )
                    held.set()
                    cluster.heal()
                    await row.done(second)
                    await row.done(first)
        found = await row.count("consumer's node cut off and joined again")
        report(found)
        assert found.handled_again == 0


async def _cut_until_it_stops(
    cluster: RabbitMQCluster, lost: RabbitMQ, stopped: Callable[[], bool], row: Scene
) -> None:
    """Cut a node off, and publish to the others until its clients have been sent away."""
    cluster.cut(lost)
    async with asyncio.timeout(120):
        while not stopped():
            await row.send_stubbornly(5)
            await asyncio.sleep(0.5)


Say = Callable[[str], None]
HELD = 3
ENOUGH = 2.0 * TICK
SHORT = 5_000
TIMES_OUT = {**QUORUM, "x-consumer-timeout": SHORT}


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Print a line, whatever pytest captures."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}")

    return say


@pytest.mark.parametrize("strategy", ["ignore", "khepri", "pause_minority", "autoheal"])
async def test_redelivered_while_the_channel_lives(strategy: str, say: Say) -> None:
    """A leader that loses sight of a channel's node redelivers what it holds, flagged, while the channel answers.

    It answers for good where the node does not stop by itself: with `ignore`, the default, and with Khepri,
    which knows no strategies. Else it answers until the node notices by itself that it is alone.
    """
    handling = "ignore" if strategy == "khepri" else strategy
    with RabbitMQCluster.launch(
        extra_config=[f"cluster_partition_handling = {handling}"]
    ) as cluster:
        if strategy == "khepri" and _version(cluster) < (4, 2):
            await asyncio.to_thread(
                cluster.nodes[0].ctl, "enable_feature_flag", "--opt-in", "khepri_db"
            )
        lost, leading, third = cluster.nodes
        queue = await queue_with(leading.url, HELD)
        assert await asyncio.to_thread(cluster.leader, queue) is leading
        holder = await Holder.at(lost.url, queue)
        first = await holder.has(HELD)
        witness = await Holder.at(third.url, queue)
        begun = time.monotonic()
        cluster.cut(lost)
        again = await witness.has(HELD)
        assert [
            (message.body, message.redelivered, counted(message)) for message in again
        ] == [(message.body, True, 1) for message in first]
        lived = await _answers_for(holder, since := witness.taken[0][0])
        say(
            f"RabbitMQ {lost.version}, {strategy}: redelivered {since - begun:.0f} s after the cut,"
            f" the first channel answers {lived:.0f} s longer"
        )
        if handling == "ignore":
            assert lived >= ENOUGH
            await _stale_settlements_change_nothing(cluster, queue, holder, witness)


def _version(cluster: RabbitMQCluster) -> tuple[int, ...]:
    return tuple(int(part) for part in cluster.nodes[0].version.split("."))


async def _stale_settlements_change_nothing(
    cluster: RabbitMQCluster, queue: str, holder: Holder, witness: Holder
) -> None:
    """Heal, then ack and give back what the holder has no more: the witness keeps all of it.

    What the holder publishes after that reaches the leader after that, by the same way.
    """
    cluster.heal()
    (_, acked), (_, returned), _ = holder.taken
    await acked.ack()
    await returned.nack(requeue=True)
    await holder.channel.default_exchange.publish(
        aio_pika.Message(b"after"), routing_key=queue, timeout=60
    )
    await until(lambda: len(holder.taken) + len(witness.taken) == 2 * HELD + 1)
    await until(
        lambda: _unacked_and_ready(cluster.nodes[1], queue) == [str(HELD + 1), "0"]
    )
    assert len(holder.taken) + len(witness.taken) == 2 * HELD + 1


def _unacked_and_ready(node: RabbitMQ, queue: str) -> list[str]:
    """Return what a node says that the leader of a queue counts."""
    columns = ("name", "messages_unacknowledged", "messages_ready")
    lines = node.ctl("--silent", "list_queues", *columns).splitlines()
    return next(line.split("\t")[1:] for line in lines if line.startswith(queue))


async def _answers_for(holder: Holder, since: float) -> float:
    """Return the seconds since then for which a channel went on to answer, until they are enough."""
    lived = 0.0
    while lived < ENOUGH and await holder.answers():
        lived = time.monotonic() - since
        await asyncio.sleep(MOMENT)
    return lived


async def test_no_two_deliveries_of_a_message_count_the_same(
    cluster: RabbitMQCluster,
) -> None:
    """Each return counts one more, so that a delivery's count tells it from every other of its message."""
    near, leading, _ = cluster.nodes
    holder = await Holder.at(near.url, await queue_with(leading.url, 1))
    for returns in range(5):
        deliveries = await holder.has(returns + 1)
        assert [counted(message) or 0 for message in deliveries] == [*range(returns + 1)]
        await deliveries[-1].nack(requeue=True)
    await holder.connection.close()


async def test_a_leader_that_dies_returns_nothing(cluster: RabbitMQCluster) -> None:
    """What a channel holds stays its own while the queue gets another leader: its ack counts there."""
    near, leading, third = cluster.nodes
    queue = await queue_with(leading.url, 1)
    holder = await Holder.at(near.url, queue)
    (held,) = await holder.has(1)
    witness = await Holder.at(third.url, queue)
    await asyncio.to_thread(leading.kill)
    await until(lambda: cluster.leader(queue) is not leading)
    await held.ack()
    await until(lambda: _unacked_and_ready(near, queue) == ["0", "0"])
    assert (len(holder.taken), len(witness.taken)) == (1, 0)
    await holder.connection.close()
    await witness.connection.close()


async def _nack(holder: Holder, *_: object) -> None:
    await holder.taken[-1][1].nack(requeue=True)


async def _reject(holder: Holder, *_: object) -> None:
    await holder.taken[-1][1].reject(requeue=True)


async def _close_channel(holder: Holder, *_: object) -> None:
    await holder.channel.close()


async def _close_connection(holder: Holder, *_: object) -> None:
    await holder.connection.close()


async def _lose_connection(_: Holder, __: RabbitMQ, wire: Wire) -> None:
    wire.cut()


async def _time_out(holder: Holder, *_: object) -> None:
    """Hold it longer than the queue allows."""


async def _kill(_: Holder, node: RabbitMQ, *__: object) -> None:
    await asyncio.to_thread(node.kill)


async def _pause(_: Holder, node: RabbitMQ, *__: object) -> None:
    await asyncio.to_thread(node.pause)


WAYS = [
    _nack,
    _reject,
    _close_channel,
    _close_connection,
    _lose_connection,
    _time_out,
    _kill,
    _pause,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
async def test_every_return_is_flagged_and_counted(
    cluster: RabbitMQCluster,
    say: Say,
    way: Callable[[Holder, RabbitMQ, Wire], Awaitable[None]],
) -> None:
    """Whatever returns a delivery of a quorum queue, the next one is flagged and counts one more."""
    near, leading, third = cluster.nodes
    queue = await queue_with(leading.url, 1, TIMES_OUT if way is _time_out else QUORUM)
    async with Wire(near.url) as wire:
        holder = await Holder.at(wire.url, queue)
        (first,) = await holder.has(1)
        witness = await Holder.at(third.url, queue)
        await way(holder, near, wire)
        again = await _next_of(holder, witness)
        lives = await holder.answers()
    headers = {name: again.headers[name] for name in COUNTS if name in again.headers}
    said = f"redelivered {again.redelivered}, {headers}, the first channel {'answers' if lives else 'is gone'}"
    say(f"RabbitMQ {near.version}, {way.__name__.strip('_')}: {said}")
    assert (first.redelivered, counted(first)) == (False, None)
    assert (again.redelivered, counted(again)) == (True, 1)
    with suppress(Exception):  # of a node that is gone
        await holder.connection.close()
    await witness.connection.close()


async def _next_of(holder: Holder, witness: Holder) -> AbstractIncomingMessage:
    """Return the second delivery, whoever of the two gets it."""
    await until(lambda: len(holder.taken) + len(witness.taken) == 2, 180)
    return (witness.taken or holder.taken)[-1][1]
