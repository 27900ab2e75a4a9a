"""The contenders on Kafka by aiokafka: ``send`` and ``flush``, ``getmany`` and a commit for each batch.

``bare`` is aiokafka as its users write it. Topics, and the records that wait in them, are made by kafka-python.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiokafka as client_library

from integration.benchmarks.client import kafka
from integration.benchmarks.client.contenders import WORK, benchmark_of
from integration.benchmarks.client.event_loop import (
    Flush,
    LoopContender,
    Send,
    fail,
    failing,
)
from integration.benchmarks.client.kafka import token_of
from integration.benchmarks.client.rounds import Measured
from integration.benchmarks.client.workload import Refusals, Tally, guard
from mqauth.brokers import aiokafka
from mqauth.judging.verified import Verified
from mqauth.wire import destination

_CLIENT: Any = client_library  # its classes have no types


class Connections(kafka.Connections):
    """The clients that all contenders share, with an event loop of their own.

    Args:
        address: ``host:port``, or several with commas.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.runner = asyncio.Runner()
        self.started: list[Any] = []
        self.native = self.runner.run(self.producing())

    async def producing(self) -> Any:
        """Return a started producer with the settings of every contender."""
        client = _CLIENT.AIOKafkaProducer(
            bootstrap_servers=self.address, enable_idempotence=True, linger_ms=kafka.LINGER,
            max_batch_size=kafka.BUFFER,
        )  # fmt: skip
        return await self._start(client)

    async def consuming(self, topic: str) -> Any:
        """Return a started consumer that has its partition assigned by hand: it rests between its rounds."""
        client = _CLIENT.AIOKafkaConsumer(
            bootstrap_servers=self.address, group_id=f"{topic}.group", enable_auto_commit=False,
            auto_offset_reset="earliest",
        )  # fmt: skip
        client.assign([_CLIENT.TopicPartition(topic, 0)])
        return await self._start(client)

    async def _start(self, client: Any) -> Any:
        await client.start()
        self.started.append(client)
        return client

    def __exit__(self, *_: object) -> None:
        """Close the clients."""
        for client in self.started:
            self.runner.run(client.stop())
        self.runner.close()
        super().__exit__()


class Assigned(LoopContender, kafka.TopicContender):
    """A contender on an event loop."""

    connections: Connections

    def close(self) -> None:
        """Delete the topics; the clients are stopped with all others."""
        self._client = None
        kafka.TopicContender.close(self)

    async def ready(self, *, at_end: bool) -> None:
        """Have the consumer take what waits next, or what is sent from now on."""
        if self._client is None:
            self._client = await self.connections.consuming(self.topic)
        if at_end:
            await self._client.seek_to_end()
        else:
            self._client.seek(_CLIENT.TopicPartition(self.topic, 0), 0)


class Wrapped(Assigned, kafka.Wrapped):
    """aiokafka as its users write it, with what a wrapper adds to each record."""

    def sending(self, *, scratch: bool) -> tuple[Send, Flush]:
        """Return ``send`` of a sealed record, and ``flush``."""
        native, topic = self.connections.native, self.scratch if scratch else self.topic
        place = destination.kafka(topic)

        async def send(number: int) -> None:
            body, headers = self._seal(place, number)
            await native.send(topic, body, headers=headers)

        return send, native.flush

    async def consuming(self, tally: Tally, until: asyncio.Future[Measured]) -> None:
        """Open each record, handle it, and commit each batch."""
        open_, headed = self._wrapper.opener(self.place), self._wrapper.headed
        while not until.done():
            with failing(until):
                for records in (await self._client.getmany(timeout_ms=200)).values():
                    for record in records:
                        tally(
                            open_(
                                record.value, token_of(record.headers) if headed else None
                            )
                        )
                await self._client.commit()


class Signed(Assigned, kafka.Signed):
    """mqauth with a token for each record."""

    def producer(self) -> Any:
        """Return mqauth's producer."""
        client = self.connections.runner.run(self.connections.producing())
        return aiokafka.Producer(client, self._forge.signer(), batch=self.batch)

    def sending(self, *, scratch: bool) -> tuple[Send, Flush]:
        """Return ``send`` and ``flush`` of mqauth's producer."""
        send, workload, headers = (
            self._producer.send,
            self.connections.workload,
            self.connections.headers,
        )
        topic = self.scratch if scratch else self.topic
        return lambda number: send(
            topic, workload.body(number), headers=headers
        ), self._producer.flush

    async def consuming(self, tally: Tally, until: asyncio.Future[Measured]) -> None:
        """Consume through mqauth's consumer."""
        refusals = Refusals(lambda reason: fail(until, f"refused as {reason}"))

        def handler(verified: Verified) -> None:
            tally(verified.body)

        pipeline = guard(self._forge, self.place)
        async with aiokafka.Consumer(
            self._client, pipeline, handler, dead_letters=refusals
        ):
            await asyncio.wait((until,))


class Batched(Signed, kafka.Batched):
    """mqauth with one token for up to 64 records."""


contenders, measure = benchmark_of(Wrapped, Signed, Batched, works=(0.0, WORK))
