"""The options of consumers are told once, and taken by every client under the same names."""

from __future__ import annotations

import inspect
import warnings
from typing import Any, get_origin, get_type_hints

import pytest

from mqauth.brokers import aiokafka, confluent, pika, rabbitmq
from mqauth.brokers.log.poller import LogEngine
from mqauth.brokers.options import DeliveryOptions, LogOptions, QueueOptions
from mqauth.brokers.queue.consumer import QueueConsumer
from mqauth.brokers.queue.processor import Processor
from mqauth.brokers.queue.subscription import Subscription

with warnings.catch_warnings():  # kafka-python reads its schemas by a deprecated function
    warnings.simplefilter("ignore", DeprecationWarning)
    from mqauth.brokers import kafka

LOGS = (kafka.Consumer, confluent.Consumer, confluent.AIOConsumer, aiokafka.Consumer)
QUEUES = (rabbitmq.Consumer, pika.Consumer)


def keywords(call: Any) -> set[str]:
    """Return the keywords that a call takes by name."""
    return {
        name
        for name, each in inspect.signature(call).parameters.items()
        if each.kind is each.KEYWORD_ONLY
    }


def test_the_engines_take_what_is_told() -> None:
    """Each option that is told has a default in the engine that takes it, and none is told twice."""
    assert keywords(LogEngine) >= LogOptions.__optional_keys__
    assert (
        keywords(QueueConsumer) | keywords(Subscription) | keywords(Processor)
        >= QueueOptions.__optional_keys__
    )
    assert keywords(Processor) >= DeliveryOptions.__optional_keys__
    for consumer in (*LOGS, *QUEUES):
        assert not keywords(consumer) & (
            LogOptions.__optional_keys__ | QueueOptions.__optional_keys__
        )


@pytest.mark.parametrize("consumer", [*LOGS, *QUEUES, rabbitmq.guarded], ids=str)
def test_every_client_takes_the_same_options(consumer: Any) -> None:
    """A consumer takes the options of its broker as they are told, whatever its client."""
    call = consumer.__init__ if inspect.isclass(consumer) else consumer
    # A client that old releases lack, and producers of answers, are imported for type checkers alone.
    options = get_type_hints(call, localns={"Client": Any, "Producer": Any})[
        "options"
    ].__args__[0]
    wanted = (
        LogOptions
        if consumer in LOGS
        else QueueOptions
        if consumer in QUEUES
        else DeliveryOptions
    )
    assert (get_origin(options) or options) is wanted


@pytest.mark.parametrize("engine", [LogEngine, Processor])
def test_an_unknown_option_is_refused(engine: Any) -> None:
    """A name that no engine knows is refused by a ``TypeError`` that names it."""
    with pytest.raises(TypeError, match="prefech"):
        engine(None, None, None, prefech=1)
