"""The Kafka consumer: a ``KafkaConsumer`` with the delivery engine."""

from __future__ import annotations

from typing import Literal, Unpack

from kafka import KafkaConsumer

from mqauth.brokers.kafka import client as kafka_client
from mqauth.brokers.kafka.confirmed import TransactionalDeadLetters
from mqauth.brokers.kafka.poller import Poller, listen
from mqauth.brokers.kafka.producer import Producer, Replies
from mqauth.brokers.log.consumer import LogConsumer
from mqauth.brokers.options import LogOptions
from mqauth.errors import require
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.letters.dead_letter import DeadLetterSink


class Consumer(LogConsumer):
    """Judges the records of a subscribed ``KafkaConsumer`` and gives the accepted ones to a handler.

    A long handler costs no heartbeat and no rebalance, since another thread polls meanwhile. Offsets are committed
    explicitly, and only up to the first record that is not settled.

    Args:
        client: with ``group_id``, ``enable_auto_commit=False`` and no deserializers, subscribed; the consumer
            alone uses it until ``run`` has returned. It is not closed.
        guard: the pipeline, with an audit sink.
        handler: takes a ``Verified``; runs on a worker thread.
        dead_letters: where rejected messages go: ``DeadLetters``, or ``TransactionalDeadLetters`` for letters that
            are committed in one transaction with their offsets.
        replies: sends what ``Verified.reply`` is given to the topic in ``reply-to``. Where its client fails for
            good, since the broker refused an answer for example, ``run`` ends with ``ProducerFatalError``.
        on_poison: ``"stop"`` with an error at a record that kafka-python cannot parse, or ``"skip"`` its batch and
            write an audit record of the range.
        options: as ``mqauth.brokers.options.LogOptions`` has them.

    Raises:
        ConfigurationError: the client or a setting is not as said, or a plug-in is asynchronous.
    """

    def __init__(
        self,
        client: KafkaConsumer,
        guard: Pipeline,
        handler: Handler,
        *,
        dead_letters: DeadLetterSink,
        replies: Producer | None = None,
        on_poison: Literal["stop", "skip"] = "stop",
        **options: Unpack[LogOptions],
    ) -> None:
        kafka_client.check_client(client)
        require(on_poison in ("stop", "skip"), f'on_poison must be "stop" or "skip", not {on_poison!r}')
        answer = None if replies is None else Replies(replies)
        super().__init__(
            guard,
            handler,
            dead_letters,
            answer=answer,
            patience=kafka_client.rebalance_patience(client),
            session=kafka_client.session_of(client),
            **options,
        )
        if isinstance(dead_letters, TransactionalDeadLetters):
            kafka_client.check_isolation(client)
        self.attach(Poller(client, self._assignment, self._work, guard, skip=on_poison == "skip", replies=answer))
        listen(client, self._assignment)
