"""Kafka by aiokafka: wrap an ``AIOKafkaProducer`` and an ``AIOKafkaConsumer``.

``Producer`` signs what it sends, ``Consumer`` polls and gives verified messages to a handler, ``DeadLetters``
takes what is rejected, and ``TransactionalDeadLetters`` commits it together with the offsets. ``judge`` serves
those who keep their own loop. Install the ``aiokafka`` extra.
"""

from mqauth.brokers.closing import UnconfirmedError
from mqauth.errors import needs_extra

with needs_extra("aiokafka"):
    from mqauth.brokers.aiokafka.client import Logs, from_native, judge
from mqauth.brokers.aiokafka.confirmed import (
    AuditTopic,
    DeadLetters,
    TransactionalDeadLetters,
)
from mqauth.brokers.aiokafka.consumer import Consumer
from mqauth.brokers.aiokafka.producer import Producer
from mqauth.brokers.judge import AsyncJudgement
from mqauth.brokers.log.records import (
    Log,
    OffsetsRefusedError,
    PoisonRecordError,
    ProducerFatalError,
)
from mqauth.clock import Backoff
from mqauth.delivery.health import LogHealth as Health
from mqauth.delivery.health import Stall

__all__ = [
    "AsyncJudgement",
    "AuditTopic",
    "Backoff",
    "Consumer",
    "DeadLetters",
    "Health",
    "Log",
    "Logs",
    "OffsetsRefusedError",
    "PoisonRecordError",
    "Producer",
    "ProducerFatalError",
    "Stall",
    "TransactionalDeadLetters",
    "UnconfirmedError",
    "from_native",
    "judge",
]
