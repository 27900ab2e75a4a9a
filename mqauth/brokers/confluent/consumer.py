"""The Kafka consumer of confluent-kafka: a ``confluent_kafka.Consumer`` with the delivery engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import confluent_kafka

from mqauth.brokers.confluent.client import check_consumer
from mqauth.brokers.confluent.poller import Poller
from mqauth.brokers.confluent.producer import Producer
from mqauth.brokers.confluent.replies import Replies
from mqauth.brokers.log.consumer import LogConsumer
from mqauth.clock import Backoff
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.judging.unverified import Unverifieds
from mqauth.judging.verified import Decode
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
        decode: makes ``Verified.value`` of the body after verification; what it raises dead-letters the
            message as ``handler_failed``. Not called for a tombstone.
        replies: sends what ``Verified.reply`` is given to the topic in ``reply-to``. Where its client fails for
            good, ``run`` ends with ``ProducerFatalError``.
        grace: seconds that a running handler may take to finish after ``stop``, and before a rebalance; keep it
            below the client's ``max.poll.interval.ms``.
        workers: threads that run handlers; each partition stays in order. With 0 handlers run on the thread of
            ``run`` and each must be done well within ``max.poll.interval.ms``.
        commit_interval: longest time between commits while records are settled, seconds.
        backoff: how long a deferred partition waits.
        unverified: takes an ``Unverified``, where a rung below ``enforce`` or an exemption lets such messages
            pass; or a table of handlers by kind. It is another function than ``handler``.

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
        decode: Decode | None = None,
        replies: Producer | None = None,
        grace: float = 30,
        workers: int = 1,
        commit_interval: float = 5,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        unverified: Unverifieds | None = None,
    ) -> None:
        settings = check_consumer(client, config)
        answer = None if replies is None else Replies(replies)
        super().__init__(
            guard, handler, dead_letters, decode=decode, answer=answer, workers=workers, grace=grace,
            patience=grace, commit_interval=commit_interval, session=SESSION, backoff=backoff,
            unverified=unverified,
        )  # fmt: skip
        poller = Poller(client, self._assignment, settings, replies=answer)
        self.attach(poller)
        poller.listen(topics, self.settle)
