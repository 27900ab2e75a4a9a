"""The contenders on Kafka by confluent-kafka in an event loop: ``AIOConsumer.consume``, a commit a batch.

``bare`` is an ``AIOConsumer`` as its users write it. Records are sent as in ``bench.confluent``, since
``AIOProducer`` refuses headers.
"""

from __future__ import annotations

import asyncio
from typing import Any

from confluent_kafka import OFFSET_END, TopicPartition
from confluent_kafka.aio import AIOConsumer

from integration.benchmarks.client import confluent
from integration.benchmarks.client.confluent import MOST
from integration.benchmarks.client.contenders import WORK, benchmark_of
from integration.benchmarks.client.kafka import token_of
from integration.benchmarks.client.workload import (
    PATIENCE,
    Refusals,
    RoundEnd,
    Tally,
    guard,
)
from mqauth.brokers import confluent as leaf
from mqauth.judging.verified import Verified


class Connections(confluent.Connections):
    """The clients that all contenders share, with an event loop of their own.

    Args:
        address: ``host:port``, or several with commas.
    """

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.runner = asyncio.Runner()

    def __exit__(self, *_: object) -> None:
        """Close the clients."""
        self.runner.close()
        super().__exit__()


class Assigned(confluent.Assigned):
    """A contender whose consumer is in an event loop, with its partition assigned by hand.

    Subclasses say how records are consumed.
    """

    connections: Connections

    def reading(self, client: Any, tally: Tally, ended: RoundEnd) -> None:
        """Consume until the tally has seen all messages, or until an error ends the round."""
        try:
            self.connections.runner.run(self.consuming(client, tally, ended))
        except Exception as error:
            ended.fail(f"{type(error).__name__}: {error}")

    async def consuming(self, client: Any, tally: Tally, ended: RoundEnd) -> None:
        """Consume until the round has ended."""
        raise NotImplementedError

    def rest(self, client: Any) -> None:
        """Leave the consumer until the next round."""
        self.connections.runner.run(client.unassign())

    def close(self) -> None:
        """Delete the topics and close the clients."""
        client, self._client = self._client, None
        if client is not None:
            self.connections.runner.run(client.close())
        super().close()

    def _at(self, offset: int) -> Any:
        return self.connections.runner.run(self._placed(offset))

    async def _placed(self, offset: int) -> Any:
        if self._client is None:
            self._client = AIOConsumer(self.settings())
        await self._client.assign([TopicPartition(self.topic, 0, offset)])
        if offset == OFFSET_END:
            # The end is looked up while it is polled.
            await self._client.consume(1, 1.0)
        return self._client


class Wrapped(Assigned, confluent.Wrapped):
    """An ``AIOConsumer`` as its users write it, with what a wrapper adds to each record."""

    async def consuming(self, client: Any, tally: Tally, ended: RoundEnd) -> None:
        """Open each record, handle it, and commit each batch."""
        open_, headed = self._wrapper.opener(self.place), self._wrapper.headed
        async with asyncio.timeout(PATIENCE):
            while not ended.is_set():
                records = await client.consume(MOST, 0) or await client.consume(1, 0.2)
                for record in records:
                    tally(
                        open_(
                            record.value(), token_of(record.headers()) if headed else None
                        )
                    )
                if records:
                    await client.commit(message=records[-1], asynchronous=False)


class Signed(Assigned, confluent.Signed):
    """mqauth with a token for each record."""

    async def consuming(self, client: Any, tally: Tally, ended: RoundEnd) -> None:
        """Consume through mqauth's consumer."""
        refusals = Refusals(
            lambda reason: ended.fail(f"an honest message was refused as {reason}")
        )

        def handler(verified: Verified) -> None:
            tally(verified.body)

        pipeline = guard(self._forge, self.place)
        config = self.settings()
        async with leaf.AIOConsumer(
            client, pipeline, handler, config=config, topics=[], dead_letters=refusals
        ):
            await asyncio.to_thread(ended.wait)


class Batched(Signed, confluent.Batched):
    """mqauth with one token for up to 64 records."""


contenders, measure = benchmark_of(Wrapped, Signed, Batched, works=(0.0, WORK))
