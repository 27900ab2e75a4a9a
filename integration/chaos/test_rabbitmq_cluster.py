"""Rows of the chaos table on a RabbitMQ cluster of three, where nodes die and are cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from integration.chaos.conftest import INTERCEPTOR
from integration.chaos.count import Count
from integration.chaos.rabbitmq_scene import Scene, scene, until
from integration.services import RabbitMQ, Redis
from integration.services.rabbitmq_cluster import RabbitMQCluster
from integration.wire import Wire
from mqauth import Verified

pytestmark = [pytest.mark.cluster, pytest.mark.slow]
Report = Callable[[Count], None]
HEARTBEAT = "?heartbeat=2"


@pytest.fixture(scope="module")
def _cluster() -> Iterator[RabbitMQCluster]:
    """A cluster that stamps what it receives; a node that is cut off stops until it sees another."""
    settings = [INTERCEPTOR, "cluster_partition_handling = pause_minority"]
    with RabbitMQCluster.launch(extra_config=settings) as cluster:
        yield cluster


@pytest.fixture
async def cluster(_cluster: RabbitMQCluster) -> AsyncIterator[RabbitMQCluster]:
    """The cluster, every node of it running and joined."""
    yield _cluster
    await asyncio.to_thread(_cluster.mend)


async def _slowly(row: Scene, verified: Verified) -> None:
    await asyncio.sleep(0.02)
    await row.handle(verified)


async def test_leader_killed(cluster: RabbitMQCluster, own_redis: Redis, tmp_path: Path, report: Report) -> None:
    """The node dies that leads the queues and has the clients: they go on at another, by one address for all."""
    urls = [node.url for node in cluster.nodes]
    async with Wire(*urls) as front, scene(front.url, tmp_path) as row:
        await row.send_stubbornly(200)
        await row.forge_some(50)
        leading = await asyncio.to_thread(cluster.leader, row.name)
        with row.audit_file() as audit:
            guard = row.guard(audit, row.store(own_redis.url))
            async with await row.consumer(guard, lambda verified: _slowly(row, verified)) as consumer:
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


async def test_node_cut_off(cluster: RabbitMQCluster, own_redis: Redis, tmp_path: Path, report: Report) -> None:
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
                await row.handle(verified)

            async with await row.consumer(guard, at_the_lost, url=lost.url + HEARTBEAT) as first:
                await until(lambda: first.health().in_flight == 10)
                handler = lambda verified: _slowly(row, verified)  # noqa: E731
                async with await row.consumer(guard, handler, url=third.url) as second:
                    await _cut_until_it_stops(cluster, lost, lambda: first.health().connection_deaths > 0, row)
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
