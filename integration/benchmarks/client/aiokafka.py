"""The contenders on Kafka by aiokafka: ``send`` and ``flush``, ``getmany`` and a commit for each batch.

``bare`` is aiokafka as its users write it. Topics, and the records that wait in them, are made by kafka-python.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiokafka as client_library

from integration.benchmarks.client import kafka
from integration.benchmarks.client.contenders import WORK, benchmark_of
from integration.benchmarks.client.event_loop import Send, at_pace, fail, failing, settle, with_latencies
from integration.benchmarks.client.kafka import token_of
from integration.benchmarks.client.rounds import Measured, Stopwatch
from integration.benchmarks.client.workload import PATIENCE, Refusals, Tally, guard
from mqauth.brokers import aiokafka
from mqauth.judging.verified import Verified
from mqauth.wire import destination

_CLIENT: Any = client_library  # its classes have no types
Flush = Callable[[], Awaitable[object]]


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


class Assigned(kafka.TopicContender):
    """A contender on an event loop.

    Subclasses say how a record is sent, and how records are consumed.
    """

    connections: Connections

    def publish(self, count: int, /) -> Measured:
        """Send records until all are acknowledged."""
        self.fill(0)
        return self.connections.runner.run(self._publish(count))

    def consume(self, count: int, work: float, /) -> Measured:
        """Consume records that wait already."""
        self.fill(count)
        return self.connections.runner.run(self._consume(count, work))

    def paced(self, count: int, pace: float, /) -> Measured:
        """Send records at a pace while consuming."""
        return self.connections.runner.run(self._paced(count, pace))

    def close(self) -> None:
        """Delete the topics; the clients are stopped with all others."""
        self._client = None
        kafka.TopicContender.close(self)

    def sending(self, topic: str) -> tuple[Send, Flush]:
        """Return a coroutine function that sends the record of a number, and one that waits for all of them."""
        raise NotImplementedError

    async def consuming(self, client: Any, tally: Tally, until: asyncio.Future[Measured]) -> None:
        """Consume until the tally has seen all records."""
        raise NotImplementedError

    async def _publish(self, count: int) -> Measured:
        send, flush = self.sending(self.scratch)
        watch = Stopwatch()
        watch.start()
        for number in range(count):
            await send(number)
        await flush()
        return watch.stop(count)

    async def _consume(self, count: int, work: float) -> Measured:
        client, watch = await self._ready(), Stopwatch()
        client.seek(_CLIENT.TopicPartition(self.topic, 0), 0)
        until: asyncio.Future[Measured] = asyncio.get_running_loop().create_future()
        tally = Tally(count, lambda: settle(until, watch.stop(count)), work)
        watch.start()
        return await self._patiently(client, tally, until)

    async def _paced(self, count: int, pace: float) -> Measured:
        client, watch, sent = await self._ready(), Stopwatch(), dict[int, float]()
        await client.seek_to_end()
        until: asyncio.Future[Measured] = asyncio.get_running_loop().create_future()
        tally = Tally(count, lambda: settle(until, watch.stop(count)), arrivals={})
        consumer = asyncio.ensure_future(self._patiently(client, tally, until))
        watch.start()
        send, flush = self.sending(self.topic)
        await at_pace(send, count, pace, sent)
        await flush()
        return with_latencies(await consumer, sent, tally)

    async def _ready(self) -> Any:
        if self._client is None:
            self._client = await self.connections.consuming(self.topic)
        return self._client

    async def _patiently(self, client: Any, tally: Tally, until: asyncio.Future[Measured]) -> Measured:
        async with asyncio.timeout(PATIENCE):
            await self.consuming(client, tally, until)
            return await until


class Wrapped(Assigned, kafka.Wrapped):
    """aiokafka as its users write it, with what a wrapper adds to each record."""

    def sending(self, topic: str) -> tuple[Send, Flush]:
        """Return ``send`` of a sealed record, and ``flush``."""
        native, place = self.connections.native, destination.kafka(topic)

        async def send(number: int) -> None:
            body, headers = self._seal(place, number)
            await native.send(topic, body, headers=headers)

        return send, native.flush

    async def consuming(self, client: Any, tally: Tally, until: asyncio.Future[Measured]) -> None:
        """Open each record, handle it, and commit each batch."""
        open_, headed = self._wrapper.opener(self.place), self._wrapper.headed
        while not until.done():
            with failing(until):
                for records in (await client.getmany(timeout_ms=200)).values():
                    for record in records:
                        tally(open_(record.value, token_of(record.headers) if headed else None))
                await client.commit()


class Signed(Assigned, kafka.Signed):
    """mqauth with a token for each record."""

    def producer(self) -> Any:
        """Return mqauth's producer."""
        client = self.connections.runner.run(self.connections.producing())
        return aiokafka.Producer(client, self._forge.signer(), batch=self.batch)

    def sending(self, topic: str) -> tuple[Send, Flush]:
        """Return ``send`` and ``flush`` of mqauth's producer."""
        send, workload, headers = self._producer.send, self.connections.workload, self.connections.headers
        return lambda number: send(topic, workload.body(number), headers=headers), self._producer.flush

    async def consuming(self, client: Any, tally: Tally, until: asyncio.Future[Measured]) -> None:
        """Consume through mqauth's consumer."""
        refusals = Refusals(lambda reason: fail(until, f"refused as {reason}"))

        def handler(verified: Verified) -> None:
            tally(verified.body)

        pipeline = guard(self._forge, self.place)
        async with aiokafka.Consumer(client, pipeline, handler, dead_letters=refusals):
            await asyncio.wait((until,))


class Batched(Signed, kafka.Batched):
    """mqauth with one token for up to 64 records."""


contenders, measure = benchmark_of(Wrapped, Signed, Batched, works=(0.0, WORK))
