"""A verdict on one record of kafka-python, for programs that have their own poll loop and commit themselves."""

from __future__ import annotations

from typing import Any

from mqauth.brokers.kafka.translate import from_native
from mqauth.brokers.log.judge import Judgement, judged
from mqauth.brokers.log.records import NO_LOG, Log
from mqauth.judging.pipeline import Pipeline


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
    return judged(guard, from_native(record, scope=scope, log=log))
