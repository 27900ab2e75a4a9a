"""Kafka through kafka-python: wrap a connected ``KafkaProducer`` and a subscribed ``KafkaConsumer``.

``Producer`` signs the records that it sends, and ``Consumer`` has the poll loop. ``DeadLetters`` takes what is
rejected, ``TransactionalDeadLetters`` commits it together with the offsets. A program that has its own poll loop
takes ``judge``. Install the ``kafka`` extra.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mqauth.brokers.closing import UnconfirmedError
from mqauth.errors import needs_extra

with needs_extra("kafka"):
    from mqauth.brokers.kafka.client import Logs, from_native, judge
from mqauth.brokers.judge import Judgement
from mqauth.brokers.kafka.confirmed import (
    AuditTopic,
    DeadLetters,
    TransactionalDeadLetters,
)
from mqauth.brokers.kafka.consumer import Consumer
from mqauth.brokers.log.records import (
    Log,
    OffsetsRefusedError,
    PoisonRecordError,
    ProducerFatalError,
)
from mqauth.clock import Backoff
from mqauth.delivery.health import LogHealth as Health
from mqauth.delivery.health import Stall

if TYPE_CHECKING:
    from mqauth.brokers.kafka.producer import Producer

__all__ = [
    "AuditTopic",
    "Backoff",
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
    "from_native",
    "judge",
]


def __getattr__(name: str) -> Any:
    """Import what publishes when it is first used (PEP 562): a program that only consumes does not load it."""
    if name != "Producer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.producer"), name)
