"""A verdict for people who own their poll loop and commit themselves."""

from __future__ import annotations

from typing import Any

from mqauth.brokers.kafka.translate import from_native
from mqauth.brokers.log.judge import Judgement, judged
from mqauth.brokers.log.records import NO_LOG, Log
from mqauth.judging.pipeline import Pipeline


def judge(guard: Pipeline, record: Any, *, scope: str, log: Log = NO_LOG) -> Judgement:
    """Judge one ``ConsumerRecord``; an accepted one is claimed.

    Args:
        guard: the pipeline.
        record: as ``KafkaConsumer.poll`` returned it, without deserializers.
        scope: the consumer group.
        log: which log the record stands in, ``Logs(client).of(record.topic)``. Without it two clusters behind one
            replay store, or a topic that was deleted and made anew, are one place.

    Raises:
        ConfigurationError: a plug-in is asynchronous, or the record is aiokafka's or confluent-kafka's.
    """
    return judged(guard, from_native(record, scope=scope, log=log))
