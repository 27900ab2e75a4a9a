"""The Kafka consumer of aiokafka: an ``AIOKafkaConsumer`` with the delivery engine."""

from __future__ import annotations

from functools import partial
from typing import Literal, Unpack

import aiokafka

from mqauth.brokers.aiokafka import client as aiokafka_client
from mqauth.brokers.aiokafka.confirmed import TransactionalDeadLetters
from mqauth.brokers.aiokafka.poller import Poller
from mqauth.brokers.aiokafka.producer import Producer, Replies
from mqauth.brokers.log.event_loop import AsyncLogConsumer
from mqauth.brokers.log.poison import step_over
from mqauth.brokers.options import LogOptions
from mqauth.errors import require
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.judging.verified import V
from mqauth.letters.dead_letter import DeadLetterSink


class Consumer(AsyncLogConsumer):
    """Judges the records of a subscribed ``AIOKafkaConsumer`` and gives the accepted ones to a handler.

    A handler that waits for long costs no heartbeat and no rebalance. Offsets are committed explicitly, and only
    up to the first record that is not settled.

    Args:
        client: with ``group_id``, ``enable_auto_commit=False`` and no deserializers, subscribed and started; the
            consumer alone uses it until ``run`` has returned. It is not stopped.
        guard: the pipeline, with an audit sink.
        handler: takes a ``Verified``; may be asynchronous. A synchronous one blocks the event loop.
        dead_letters: where rejected messages go: ``DeadLetters``, or ``TransactionalDeadLetters`` for letters that
            are committed in one transaction with their offsets.
        replies: sends what ``Verified.reply`` is given to the topic in ``reply-to``. Where its client fails for
            good, ``run`` ends with ``ProducerFatalError``.
        on_poison: ``"stop"`` with an error at a record that aiokafka cannot parse, or ``"skip"`` its batch and
            write an audit record of the range.
        options: as ``mqauth.brokers.options.LogOptions`` has them.

    Raises:
        ConfigurationError: the client or a setting is not as said.
    """

    def __init__(
        self,
        client: aiokafka.AIOKafkaConsumer,
        guard: Pipeline,
        handler: Handler[V],
        *,
        dead_letters: DeadLetterSink,
        replies: Producer | None = None,
        on_poison: Literal["stop", "skip"] = "stop",
        **options: Unpack[LogOptions[V]],
    ) -> None:
        aiokafka_client.check_consumer(client)
        require(on_poison in ("stop", "skip"), f'on_poison must be "stop" or "skip", not {on_poison!r}')
        answer = None if replies is None else Replies(replies)
        super().__init__(
            guard,
            handler,
            dead_letters,
            answer=answer,
            patience=aiokafka_client.rebalance_patience(client),
            session=aiokafka_client.session_of(client),
            **options,
        )
        policy = partial(
            step_over,
            work=self._work,
            guard=guard,
            scope=aiokafka_client.group_of(client),
            skip=on_poison == "skip",
            lacking=aiokafka_client.lacking,
        )
        poller = Poller(client, self._assignment, policy, replies=answer)
        self.attach(poller)
        if isinstance(dead_letters, TransactionalDeadLetters):
            aiokafka_client.check_isolation(client)
            poller.require_stable()
        poller.listen(self.settle, self.fail)
