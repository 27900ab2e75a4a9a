"""The Kafka consumer of confluent-kafka: a ``confluent_kafka.Consumer`` with the delivery engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Unpack

import confluent_kafka

from mqauth.brokers.confluent.client import check_consumer
from mqauth.brokers.confluent.poller import Poller
from mqauth.brokers.confluent.producer import Producer
from mqauth.brokers.confluent.replies import Replies
from mqauth.brokers.log.consumer import LogConsumer
from mqauth.brokers.options import LogOptions
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.letters.dead_letter import DeadLetterSink

SESSION: Final = 6.0
"""Seconds of silence after which the broker may have given our partitions to others.

The client does not tell its ``session.timeout.ms``. This is the shortest one that brokers allow by default; after
a pause in between, one commit more than needed is made."""


class Consumer(LogConsumer):
    """Judges the records of a ``confluent_kafka.Consumer`` and gives the accepted ones to a handler.

    A long handler costs no rebalance, since another thread polls meanwhile. Offsets are committed explicitly, and
    only up to the first record that is not settled.

    Args:
        client: with ``"enable.auto.offset.store": False``, not subscribed; the consumer alone uses it until
            ``run`` has returned. It is not closed.
        guard: the pipeline, with an audit sink.
        handler: takes a ``Verified``; runs on a worker thread.
        config: the settings that the client was made with, which it does not tell.
        topics: the topics to subscribe to, or patterns that begin with ``^``; empty where partitions were
            assigned by hand. The wrapper subscribes, since the client tells nobody else of rebalances.
        dead_letters: where rejected messages go: ``DeadLetters``, or ``TransactionalDeadLetters`` for letters that
            are committed in one transaction with their offsets.
        replies: sends what ``Verified.reply`` is given to the topic in ``reply-to``. Where its client fails for
            good, ``run`` ends with ``ProducerFatalError``.
        options: as ``mqauth.brokers.options.LogOptions`` has them.

    Raises:
        ConfigurationError: the client or a setting is not as said, or a plug-in is asynchronous.
    """

    def __init__(
        self,
        client: confluent_kafka.Consumer,
        guard: Pipeline,
        handler: Handler,
        *,
        config: Mapping[str, Any],
        topics: Sequence[str],
        dead_letters: DeadLetterSink,
        replies: Producer | None = None,
        **options: Unpack[LogOptions],
    ) -> None:
        settings = check_consumer(client, config)
        answer = None if replies is None else Replies(replies)
        super().__init__(guard, handler, dead_letters, answer=answer, session=SESSION, **options)
        poller = Poller(client, self._assignment, settings, replies=answer)
        self.attach(poller)
        poller.listen(topics, self.settle)
