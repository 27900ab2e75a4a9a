"""Kafka by confluent-kafka: wrap a ``confluent_kafka.Producer`` and a ``confluent_kafka.Consumer``.

``Producer`` signs what it sends, ``Consumer`` owns the poll loop, ``AIOConsumer`` is the same in an event loop,
``DeadLetters`` takes what is rejected, and ``TransactionalDeadLetters`` commits it together with the offsets.
``judge`` serves those who keep their own loop, ``ajudge`` those who have it in an event loop. Install the
``confluent`` extra.
"""

from mqauth.brokers.closing import UnconfirmedError
from mqauth.errors import needs_extra

with needs_extra("confluent"):
    from mqauth.brokers.confluent.client import Logs, ajudge, from_native, judge
from mqauth.brokers.confluent.confirmed import (
    AuditTopic,
    DeadLetters,
    TransactionalDeadLetters,
)
from mqauth.brokers.confluent.consumer import AIOConsumer, Consumer
from mqauth.brokers.confluent.producer import Producer
from mqauth.brokers.judge import AsyncJudgement, Judgement
from mqauth.brokers.log.records import (
    CommitUnansweredError,
    Log,
    OffsetsRefusedError,
    PoisonRecordError,
    ProducerFatalError,
)
from mqauth.clock import Backoff
from mqauth.delivery.health import LogHealth as Health
from mqauth.delivery.health import Stall

__all__ = [
    "AIOConsumer",
    "AsyncJudgement",
    "AuditTopic",
    "Backoff",
    "CommitUnansweredError",
    "Consumer",
    "DeadLetters",
    "Health",
    "Judgement",
    "Log",
    "Logs",
    "OffsetsRefusedError",
    "PoisonRecordError",
    "Producer",
    "ProducerFatalError",
    "Stall",
    "TransactionalDeadLetters",
    "UnconfirmedError",
    "ajudge",
    "from_native",
    "judge",
]
