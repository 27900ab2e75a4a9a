"""Kafka through kafka-python: wrap a connected ``KafkaProducer`` and a subscribed ``KafkaConsumer``.

``Producer`` signs the records that it sends, and ``Consumer`` has the poll loop. ``DeadLetters`` takes what is
rejected, ``TransactionalDeadLetters`` commits it together with the offsets. A program that has its own poll loop
takes ``judge``. Install the ``kafka`` extra.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mqauth.brokers.kafka.confirmed import AuditTopic, DeadLetters
from mqauth.brokers.kafka.consumer import Consumer
from mqauth.brokers.kafka.poison import PoisonRecordError
from mqauth.brokers.kafka.producer import Producer, ProducerFatalError
from mqauth.brokers.kafka.transaction import TransactionalDeadLetters
from mqauth.brokers.kafka.translate import Logs, from_native
from mqauth.brokers.log.records import NO_LOG, Log
from mqauth.delivery.health import Health, Stall
from mqauth.delivery.partition import Backoff
from mqauth.errors import Cause, Reason
from mqauth.flow import run
from mqauth.judging.pipeline import Delivery, Outcome, Pipeline, Verdict
from mqauth.judging.verified import Verified
from mqauth.letters.dead_letter import DeadLetterSink

__all__ = [
    "AuditTopic",
    "Backoff",
    "Consumer",
    "DeadLetters",
    "Health",
    "Judgement",
    "Log",
    "Logs",
    "PoisonRecordError",
    "Producer",
    "ProducerFatalError",
    "Stall",
    "TransactionalDeadLetters",
    "from_native",
    "judge",
]


@dataclass(slots=True)
class Judgement:
    """The verdict on one record, and the steps that follow from it; commit its offset only after the last one.

    The last step of an accepted record is ``confirm`` after your handler, or ``release``, which makes it
    ``DEFERRED``; of a rejected one it is ``dead_letter``; a duplicate needs none. A deferred record is judged
    ``again``. Each step returns this judgement. Where it says ``DEFERRED``, repeat the step and commit nothing. A
    step that does not fit the verdict raises ``ConfigurationError``.
    """

    _guard: Pipeline
    _delivery: Delivery
    outcome: Outcome

    @property
    def verdict(self) -> Verdict:
        """The verdict; compare it by identity."""
        return self.outcome.verdict

    @property
    def reason(self) -> Reason | None:
        """Why it was rejected."""
        return self.outcome.reason

    @property
    def cause(self) -> Cause | None:
        """Why it was deferred."""
        return self.outcome.cause

    @property
    def verified(self) -> Verified | None:
        """The message, where it was accepted."""
        return self.outcome.verified

    def again(self) -> Judgement:
        """Judge a deferred record again, by the time when it was first received."""
        self.outcome = run(self._guard.judge(self._delivery))
        return self

    def confirm(self) -> Judgement:
        """Mark the message as handled in the replay store, after your handler; then commit."""
        self.outcome = run(self._guard.confirm(self._delivery))
        return self

    def release(self) -> Judgement:
        """Give the claim back because the message was not handled; do not commit."""
        self.outcome = run(self._guard.release(self._delivery))
        return self

    def dead_letter(self, dead_letters: DeadLetterSink) -> Judgement:
        """Audit and dead-letter a rejected record; then commit."""
        self.outcome = run(self._guard.bury(self._delivery, dead_letters))
        return self


def judge(guard: Pipeline, record: Any, *, scope: str, log: Log = NO_LOG) -> Judgement:
    """Judge one ``ConsumerRecord``, and claim it in the replay store where it is accepted.

    Args:
        guard: the pipeline.
        record: as ``KafkaConsumer.poll`` returned it, without deserializers.
        scope: the consumer group.
        log: the ids of cluster and topic, ``Logs(client).of(record.topic)``. Without them the replay store cannot
            tell two clusters, or a topic from one that was deleted and made anew, apart.

    Raises:
        ConfigurationError: a plug-in is asynchronous, or the record is aiokafka's or confluent-kafka's.
    """
    delivery = guard.receive(from_native(record, scope=scope, log=log))
    return Judgement(guard, delivery, run(guard.judge(delivery)))
