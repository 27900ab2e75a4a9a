"""The Kafka consumer: a ``KafkaConsumer`` with the delivery engine."""

from __future__ import annotations

from typing import Literal

from kafka import KafkaConsumer

from mqauth.brokers.kafka import client as kafka_client
from mqauth.brokers.kafka.poller import Poller, listen
from mqauth.brokers.kafka.producer import Producer
from mqauth.brokers.kafka.replies import Replies
from mqauth.brokers.kafka.transaction import TransactionalDeadLetters
from mqauth.brokers.log.consumer import LogConsumer
from mqauth.clock import Backoff
from mqauth.errors import require
from mqauth.judging.pipeline import Handler, Pipeline
from mqauth.judging.unverified import Unverifieds
from mqauth.judging.verified import Decode
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
        decode: makes ``Verified.value`` of the body after verification; what it raises dead-letters the
            message as ``handler_failed``. Not called for a tombstone.
        replies: sends what ``Verified.reply`` is given to the topic in ``reply-to``. Where its client fails for
            good, since the broker refused an answer for example, ``run`` ends with ``ProducerFatalError``.
        grace: seconds that a running handler may take to finish after ``stop``, and before a rebalance; before
        one at
            most half of the client's ``max_poll_interval_ms``.
        on_poison: ``"stop"`` with an error at a record that kafka-python cannot parse, or ``"skip"`` its batch and
            write an audit record of the range.
        workers: threads that run handlers; each partition stays in order. With 0 handlers run on the thread of
            ``run`` and each must be done well within ``max_poll_interval_ms``.
        commit_interval: longest time between commits while records are settled, seconds.
        backoff: how long a deferred partition waits.
        unverified: takes an ``Unverified``, where a rung below ``enforce`` or an exemption lets such messages
            pass; or a table of handlers by kind. It is another function than ``handler``.

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
        decode: Decode | None = None,
        replies: Producer | None = None,
        grace: float = 30,
        on_poison: Literal["stop", "skip"] = "stop",
        workers: int = 1,
        commit_interval: float = 5,
        backoff: Backoff = Backoff(),  # noqa: B008 - frozen
        unverified: Unverifieds | None = None,
    ) -> None:
        kafka_client.check_client(client)
        require(on_poison in ("stop", "skip"), f'on_poison must be "stop" or "skip", not {on_poison!r}')
        answer = None if replies is None else Replies(replies)
        super().__init__(
            guard, handler, dead_letters, decode=decode, answer=answer, workers=workers, grace=grace,
            patience=kafka_client.rebalance_patience(client, grace), commit_interval=commit_interval,
            session=kafka_client.session_of(client), backoff=backoff,
            unverified=unverified,
        )  # fmt: skip
        if isinstance(dead_letters, TransactionalDeadLetters):
            kafka_client.check_isolation(client)
        self.attach(Poller(client, self._assignment, self._work, guard, skip=on_poison == "skip", replies=answer))
        listen(client, self._assignment)
