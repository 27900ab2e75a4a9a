"""What RabbitMQ does with deliveries that come back, tried with plain aio-pika on three nodes.

A holder on one node has deliveries of a queue that another node leads; a witness on the third takes what comes
back. Decision 10 has what follows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress

import aio_pika
import pytest
from aio_pika.abc import AbstractIncomingMessage

from integration.chaos.deliveries import COUNTS, QUORUM, Holder, counted, queue_with
from integration.chaos.rabbitmq_scene import MOMENT, until
from integration.services import RabbitMQ
from integration.services.rabbitmq_cluster import TICK, RabbitMQCluster
from integration.wire import Wire

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
Say = Callable[[str], None]
HELD = 3
ENOUGH = 2.0 * TICK
SHORT = 5_000
TIMES_OUT = {**QUORUM, "x-consumer-timeout": SHORT}
SOONER = "application:set_env(rabbit, channel_tick_interval, 1000)."
"""Channels look for deliveries that are held too long once a second, in place of once a minute."""


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Print a line, whatever pytest captures."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n{line}")

    return say


@pytest.fixture(scope="module")
def _cluster() -> Iterator[RabbitMQCluster]:
    """A cluster whose channels soon miss an acknowledgement that is due."""
    with RabbitMQCluster.launch(extra_config=["cluster_partition_handling = pause_minority"]) as cluster:
        for node in cluster.nodes:
            node.ctl("eval", SOONER)
        yield cluster


@pytest.fixture
async def cluster(_cluster: RabbitMQCluster) -> AsyncIterator[RabbitMQCluster]:
    """The cluster, every node of it running and joined."""
    yield _cluster
    await asyncio.to_thread(_cluster.mend)


@pytest.mark.parametrize("strategy", ["ignore", "khepri", "pause_minority", "autoheal"])
async def test_redelivered_while_the_channel_lives(strategy: str, say: Say) -> None:
    """A leader that loses sight of a channel's node redelivers what it holds, flagged, while the channel answers.

    It answers for good where the node does not stop by itself: with `ignore`, the default, and with Khepri,
    which knows no strategies. Else it answers until the node notices by itself that it is alone.
    """
    handling = "ignore" if strategy == "khepri" else strategy
    with RabbitMQCluster.launch(extra_config=[f"cluster_partition_handling = {handling}"]) as cluster:
        if strategy == "khepri" and _version(cluster) < (4, 2):
            await asyncio.to_thread(cluster.nodes[0].ctl, "enable_feature_flag", "--opt-in", "khepri_db")
        lost, leading, third = cluster.nodes
        queue = await queue_with(leading.url, HELD)
        assert await asyncio.to_thread(cluster.leader, queue) is leading
        holder = await Holder.at(lost.url, queue)
        first = await holder.has(HELD)
        witness = await Holder.at(third.url, queue)
        begun = time.monotonic()
        cluster.cut(lost)
        again = await witness.has(HELD)
        assert [(message.body, message.redelivered, counted(message)) for message in again] == [
            (message.body, True, 1) for message in first
        ]
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
    await holder.channel.default_exchange.publish(aio_pika.Message(b"after"), routing_key=queue, timeout=60)
    await until(lambda: len(holder.taken) + len(witness.taken) == 2 * HELD + 1)
    await until(lambda: _unacked_and_ready(cluster.nodes[1], queue) == [str(HELD + 1), "0"])
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


async def test_no_two_deliveries_of_a_message_count_the_same(cluster: RabbitMQCluster) -> None:
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


WAYS = [_nack, _reject, _close_channel, _close_connection, _lose_connection, _time_out, _kill, _pause]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.strip("_"))
async def test_every_return_is_flagged_and_counted(
    cluster: RabbitMQCluster, say: Say, way: Callable[[Holder, RabbitMQ, Wire], Awaitable[None]]
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
