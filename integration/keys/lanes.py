"""Both brokers behind one face: send many, consume until told to stop, and look at the dead letters."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, Final

import aio_pika

from mqauth import Message, Pipeline, Signer, Verified
from mqauth.brokers import kafka, rabbitmq
from mqauth.brokers.log.records import dead_letter_headers
from mqauth.testing.stage_kafka import KafkaStage
from mqauth.testing.stage_rabbitmq import RabbitMQStage

Handler = Callable[[Verified], None]
_PREFETCH = 100


class RabbitMQLane:
    """A lane on RabbitMQ."""

    name = "rabbitmq"

    def __init__(self, url: str) -> None:
        self._stage = RabbitMQStage(url, prefetch=_PREFETCH)
        self.destination = self._stage.destination

    def send(self, signer: Signer, bodies: Sequence[bytes]) -> None:
        """Publish side by side, each confirmed."""
        self._stage._call(self._send(signer, bodies))

    async def _send(self, signer: Signer, bodies: Sequence[bytes]) -> None:
        exchange = await self._stage._channel.get_exchange(self._stage._exchange, ensure=False)
        producer = rabbitmq.Producer(exchange, signer)
        await asyncio.gather(*(producer.publish(aio_pika.Message(body), "orders.created") for body in bodies))

    def inject(self, messages: Sequence[Message]) -> None:
        """Publish messages as they are, side by side."""

        async def publish() -> None:
            await asyncio.gather(*(self._stage._inject(message) for message in messages))

        self._stage._call(publish())

    @contextmanager
    def consuming(self, guard: Pipeline, handler: Handler) -> Iterator[Any]:
        """Run the consumer on the stage's loop."""
        consumer = self._stage._call(self._stage._consumer(guard, handler))
        try:
            yield consumer
        finally:
            self._stage._call(consumer.__aexit__(None, None, None))

    def letters(self) -> list[Message]:
        """Browse the dead-letter queue."""
        return self._stage.letters()

    def close(self) -> None:
        """Delete the queues."""
        self._stage.close()


class KafkaLane:
    """A lane on Kafka, one partition."""

    name = "kafka"

    def __init__(self, url: str) -> None:
        self.stage = KafkaStage(url)
        self.destination = self.stage.destination

    def send(self, signer: Signer, bodies: Sequence[bytes]) -> None:
        """Send, and flush."""
        producer = kafka.Producer(self.stage._client, signer)
        futures: list[Any] = [producer.send(self.stage.topic, value=body, key=b"k") for body in bodies]
        self.stage._client.flush()
        for future in futures:
            future.get(timeout=60)

    def inject(self, messages: Sequence[Message]) -> None:
        """Send messages as they are, and flush."""
        for message in messages:
            headers = dead_letter_headers(message.headers)
            self.stage._client.send(self.stage.topic, value=message.body, key=message.key, headers=headers)
        self.stage._client.flush()

    def send_mixed(self, batches: Sequence[tuple[Signer, Sequence[bytes]]]) -> None:
        """Send the bodies of several signers spread among each other, and flush."""
        producers = [(kafka.Producer(self.stage._client, signer), iter(bodies)) for signer, bodies in batches]
        sizes = [len(bodies) for _, bodies in batches]
        for turn in range(max(sizes)):
            for (producer, bodies), size in zip(producers, sizes, strict=True):
                wanted = (turn + 1) * size // max(sizes) - turn * size // max(sizes)
                for body in islice(bodies, wanted):
                    producer.send(self.stage.topic, value=body, key=b"k")
        self.stage._client.flush()

    @contextmanager
    def consuming(self, guard: Pipeline, handler: Handler, **settings: Any) -> Iterator[Any]:
        """Run the consumer on a thread."""
        client, letters = self.stage.consumer(), self.stage.dead_letter_client()
        consumer = kafka.Consumer(
            client,
            guard,
            handler,
            dead_letters=kafka.DeadLetters(letters, self.stage.dead, timeout=10),
            **settings,
        )
        try:
            with consumer:
                yield consumer
        finally:
            client.close()
            letters.close()

    def letters(self) -> list[Message]:
        """Read the dead-letter topic."""
        return self.stage.letters()

    def close(self) -> None:
        """Delete the topics."""
        self.stage.close()


Lane = RabbitMQLane | KafkaLane
"""A source with its dead letters on a real broker."""
LANES: Final = {"rabbitmq": RabbitMQLane, "kafka": KafkaLane}
