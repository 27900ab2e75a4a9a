"""The row of identities in the chaos table, on a real RabbitMQ and a real Kafka, with an authority that is killed.

Identities live 20 s here, so that an outage of three lifetimes takes a minute; in the nightly form 60 s, and three
minutes. A thousand honest messages, at night 10,000, go through the wrapped producers meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from integration.chaos import kafka_scene, rabbitmq_scene
from integration.chaos.identity_world import PAUSE, TOTAL, Play, Workload, World, world
from integration.chaos.row import Count
from integration.services import Kafka, RabbitMQ
from integration.waiting import until
from mqauth import Unavailable
from mqauth.brokers import kafka, rabbitmq

Report = Callable[[Count], Count]


@pytest.mark.slow
async def test_authority_killed_and_a_subject_cut_off_on_rabbitmq(
    own_rabbitmq: RabbitMQ,
    tmp_path: Path,
    report: Report,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Producers stop without an identity and go on by themselves; nothing is lost, condemned or let in."""
    async with rabbitmq_scene.scene(own_rabbitmq.url, tmp_path) as row:
        loop = asyncio.get_running_loop()

        def forge(number: int, signer: Any) -> None:
            asyncio.run_coroutine_threadsafe(
                row.forge_some(number, signer=signer), loop
            ).result()

        with world(tmp_path, "rabbitmq:/" + row.name) as there, row.audit_file() as audit:
            guard = there.guard(row, audit, **rabbitmq_scene.APPEND)
            async with await row.consumer(guard) as consumer:
                tasks = [
                    asyncio.create_task(_publish(row, work)) for work in there.workloads
                ]
                play = Play(there, row, forge, consumer.health)
                await asyncio.to_thread(play.all)
                await asyncio.gather(*tasks)
                await rabbitmq_scene.until(lambda: consumer.health().in_flight == 0)
        found = there.count("rabbitmq", row.handled, await row.letters())
    _tell(there, found, report, capsys)


@pytest.mark.slow
def test_authority_killed_and_a_subject_cut_off_on_kafka(
    kafka: Kafka, tmp_path: Path, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    """Producers stop without an identity and go on by themselves; nothing is lost, condemned or let in."""
    with kafka_scene.scene(kafka.url, tmp_path) as row:

        def forge(number: int, signer: Any) -> None:
            row.forge_some(number, signer=signer)

        with world(tmp_path, "kafka:" + row.name) as there, row.audit_file() as audit:
            guard = there.guard(row, audit, **kafka_scene.APPEND)
            with row.consumer(guard) as consumer:
                threads = [
                    threading.Thread(target=_send, args=(row, work))
                    for work in there.workloads
                ]
                for thread in threads:
                    thread.start()
                Play(there, row, forge, consumer.health).all()
                for thread in threads:
                    thread.join()
                until(lambda: row.uncommitted() == 0, consumer)
        found = there.count("kafka", row.handled, row.letters())
    _tell(there, found, report, capsys)


async def _publish(row: rabbitmq_scene.Scene, work: Workload) -> None:
    """Publish bursts on a connection of the producer's own, until it is told to end."""
    producer = rabbitmq.Producer((await row.channel()).default_exchange, work.signer)
    while not work.ended.is_set():
        bodies = work.burst()
        results = await asyncio.gather(
            *(
                producer.publish(aio_pika.Message(body, delivery_mode=2), row.name)
                for body in bodies
            ),
            return_exceptions=True,
        )
        assert all(
            isinstance(result, Unavailable)
            for result in results
            if isinstance(result, BaseException)
        )
        pairs = [*zip(bodies, results, strict=True)]
        work.took(
            [body for body, result in pairs if not isinstance(result, BaseException)],
            [result for result in results if isinstance(result, Unavailable)],
        )
        await asyncio.sleep(PAUSE)
    work.gone.set()


def _send(row: kafka_scene.Scene, work: Workload) -> None:
    """Send bursts by a client of the producer's own, until it is told to end."""
    client: Any = kafka_scene._PYTHON.KafkaProducer(
        bootstrap_servers=row.stage.servers, linger_ms=5
    )
    producer = kafka.Producer(row.keep(client), work.signer)
    while not work.ended.is_set():
        sent: list[tuple[bytes, Any]] = []
        bodies: list[bytes] = []
        refusals: list[Unavailable] = []
        # The first record to a topic is signed at once; those that share a signature learn by their futures that
        # there is no identity to sign with.
        for body in work.burst():
            try:
                sent.append((body, producer.send(row.name, body, b"k")))
            except Unavailable as refusal:
                refusals.append(refusal)
                break
        for body, future in sent:
            try:
                future.get(timeout=kafka_scene.PATIENCE)
                bodies.append(body)
            except Unavailable as refusal:
                refusals.append(refusal)
        work.took(bodies, refusals)
        work.ended.wait(PAUSE)
    work.gone.set()


def _tell(
    there: World, found: Count, report: Report, capsys: pytest.CaptureFixture[str]
) -> None:
    """Print the sums and what led to them, and assert them."""
    refused = sum(len(work.refusals) for work in there.workloads)
    with capsys.disabled():
        print(f"\n{there.figures}, publishes refused {refused}")
    report(found)
    assert len(there.honest) >= TOTAL
    assert found.duplicates == 0
